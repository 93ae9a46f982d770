"""Progress: shown where a person looks, and nowhere else."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import halfconv
from halfconv.progress import Progress
from halfconv.terminal import progress


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("now", "words", "amount"),
    [
        (Progress("simulation", "run 7 of at most 30: 4 of 81 values forced to FP32", 3, 8),
         "converting [b]m.onnx: simulation: run 7 of at most 30: 4 of 81 values forced to FP32", "3 of 8"),
        (Progress("write", "weights", 1_500_000_000, 3_000_000_000, "bytes"), "converting [b]m.onnx: write: weights",
         "1.5 GB of 3.0 GB"),
    ],
)  # fmt: skip
def test_a_person_sees_what_is_done_and_how_much(now: Progress, words: str, amount: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress(False, "converting [b]m.onnx") as tell:
        assert tell is not None
        tell(now)
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert words in seen and amount in seen


@pytest.mark.parametrize("quiet", [True, False])
def test_nobody_is_told_where_nobody_looks(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO() if not quiet else Screen()
    monkeypatch.setattr(sys, "stderr", written)
    with progress(quiet, "converting") as tell:
        assert tell is None
    assert not written.getvalue()


def test_a_conversion_tells_its_stages_runs_and_samples(tmp_path: Path) -> None:
    graph = """(float[n, 4] x) => (float[n, 4] y) <float[4] big = {1000, 2000, 3000, 4000}> {
        a = Add(x, big) b = Relu(a) c = Sub(b, big) y = Tanh(c) }"""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {graph}'), tmp_path / "m.onnx")
    samples = [{"x": np.ones((1, 4), np.float32)}, {"x": np.full((1, 4), 0.3, np.float32)}]
    told: list[Progress] = []
    halfconv.convert(tmp_path / "m.onnx", samples=samples, on_progress=told.append)
    stages = [now.stage for now in told]
    assert list(dict.fromkeys(stages)) == [
        "load", "prepare", "weights", "plan", "tune", "ranges", "simulation", "rewrite", "write", "check", "sync"
    ]  # fmt: skip
    assert all(0 <= now.done <= now.total or not now.total for now in told)
    assert any(re.fullmatch(r"run \d+ of at most 30: \d+ of \d+ values forced to FP32", now.detail) for now in told)
    assert {now.done for now in told if now.stage == "ranges"} == {0, 1}
