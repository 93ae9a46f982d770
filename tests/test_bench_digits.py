"""The benchmark from training to conversion runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import digits

ROOT = Path(digits.__file__).parents[1]


@pytest.mark.slow
def test_a_fold_is_trained_and_converted_in_each_precision(tmp_path: Path) -> None:
    target = tmp_path / "digits_cpu.json"
    command = [sys.executable, str(ROOT / "bench" / "digits.py"), "run", str(target), "--device", "cpu", "--folds", "1"]
    done = subprocess.run(
        [*command, "--epochs", "4"], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text("utf-8"))["rows"]
    assert [row["who"] for row in rows] == ["train-fp32", "train-bf16"]
    for row in rows:
        assert row["images"] in (359, 360) and "cuda" not in row
        assert 0.8 < row["trained"] <= 1 and row["exported"] == pytest.approx(row["trained"], abs=1e-5)
        assert row["simulated"] == pytest.approx(row["exported"], abs=0.01)
