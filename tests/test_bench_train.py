"""The benchmark of training runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import train

ROOT = Path(train.__file__).parents[1]


def test_the_first_epoch_does_not_count_where_there_are_more() -> None:
    history = [{"seconds": 9.0}, {"seconds": 1.0}, {"seconds": 3.0}, {"seconds": 2.0}]
    assert train.figures(history, 40) == {"step_ms": 200.0, "steps": 40}
    assert train.figures(history[:1], 10) == {"step_ms": 900.0, "steps": 10}


@pytest.mark.parametrize("text", ["nothing", "resnet50", "resnet50@", "resnet50@0", "digits_cnn@3"])
def test_unknown_cases_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parsed(["run", "x.json", text])
    assert "try: digits_cnn" in capsys.readouterr().err


@pytest.mark.slow
def test_recipes_and_random_numbers_are_trained_in_each_precision(tmp_path: Path) -> None:
    target = tmp_path / "train_cpu.json"
    command = [sys.executable, str(ROOT / "bench" / "train.py"), "run", str(target), "digits_mlp", "tiny_bert@2", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--epochs", "2"], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text("utf-8"))["rows"]
    assert [(row["case"], row["who"]) for row in rows] == [
        (case, f"train-{kind}") for case in ("digits_mlp", "tiny_bert@2") for kind in ("fp32", "bf16")
    ]
    for row in rows:
        assert "error" not in row and row["step_ms"] > 0 and row["peak_mb"] > 50 and row["skipped"] == 0
        assert (row["metric"] is None) == ("@" in row["case"])
