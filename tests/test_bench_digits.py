"""The benchmark from training to conversion runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from bench import digits

ROOT = Path(digits.__file__).parents[1]


def done(found: dict[str, float] | Exception) -> Future[dict[str, float]]:
    future: Future[dict[str, float]] = Future()
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
    return future


def test_shares_are_of_all_folds_images() -> None:
    folds = [{"images": 1, "trained": 1.0, "cuda": 0.0}, {"images": 3, "trained": 2.0, "cuda": 3.0}]
    assert digits.shares([done(fold) for fold in folds]) == {"images": 4, "trained": 0.75, "cuda": 0.75}


def test_a_fold_that_fails_is_an_error_of_its_precision() -> None:
    assert digits.shares([done({"images": 1, "trained": 1.0}), done(ValueError("no kernel"))]) == {"error": "ValueError: no kernel"}


@pytest.mark.slow
def test_a_fold_is_trained_and_converted_in_each_precision(tmp_path: Path) -> None:
    target = tmp_path / "digits_cpu.json"
    command = [sys.executable, str(ROOT / "bench" / "digits.py"), "run", str(target), "--device", "cpu", "--folds", "1"]
    ended = subprocess.run(
        [*command, "--epochs", "4", "--jobs", "2"], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(target.read_text("utf-8"))["rows"]
    assert [row["who"] for row in rows] == ["train-fp32", "train-bf16"]
    for row in rows:
        assert row["images"] in (359, 360) and "cuda" not in row
        assert 0.8 < row["trained"] <= 1 and row["exported"] == pytest.approx(row["trained"], abs=1e-5)
        assert row["simulated"] == pytest.approx(row["exported"], abs=0.01)


def test_what_the_documentation_says_of_the_committed_result() -> None:
    rows = json.loads((ROOT / "bench" / "results" / "digits_h200.json").read_text("utf-8"))["rows"]
    assert [row["who"] for row in rows] == ["train-fp32", "train-fp16", "train-bf16"]
    trained = [row["trained"] for row in rows]
    assert min(trained) >= 0.98 and max(trained) - min(trained) <= 0.005
    for row in rows:
        assert row["images"] == 1797
        for stage in ("exported", "simulated", "cuda"):
            assert abs(row[stage] - row["trained"]) <= 0.002
