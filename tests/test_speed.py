"""What conversion costs on a large model, in processor time: the machine may be busy with other things."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bench import models
from tests.structure import signature

pytestmark = pytest.mark.slow


def _processor_seconds(*arguments: str, cwd: Path) -> float:
    """Run halfconv, and return the seconds of processor time that it and its children took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "halfconv", *arguments]
    subprocess.run(command, cwd=cwd, env=os.environ, check=True, stdout=subprocess.DEVNULL, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.fixture(scope="module")
def transformer() -> Path:
    """BERT-base with 109 million weights, made from a seed: 438 MB."""
    model = models.made("bert_base").model
    assert 400e6 < model.stat().st_size < 500e6
    return model


def test_inspecting_a_transformer_of_400_mb_takes_seconds(transformer: Path, tmp_path: Path) -> None:
    assert _processor_seconds("inspect", str(transformer), cwd=tmp_path) < 10


def test_converting_a_transformer_of_400_mb_takes_seconds(transformer: Path, tmp_path: Path) -> None:
    """The conversion alone; what checks and simulates the result depends on the model's own speed."""
    output = tmp_path / "half.onnx"
    assert _processor_seconds("convert", str(transformer), "-o", str(output), "--no-check", cwd=tmp_path) < 10
    assert output.stat().st_size < 0.51 * transformer.stat().st_size
    assert signature(output) == signature(transformer)


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"]], ids=" ".join)
def test_help_is_there_at_once(arguments: list[str], tmp_path: Path) -> None:
    assert min(_processor_seconds(*arguments, cwd=tmp_path) for _ in range(3)) < 0.3
