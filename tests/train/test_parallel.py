"""Data parallel training: two processes do what one does with batches twice as large."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from halfconv.errors import UsageError
from halfconv.train.batches import steps_of
from halfconv.train.distributed import Processes, processes
from tests.train.parallel_worker import train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each process imports torch


def launched(kind: str, folder: Path, device: str = "cpu", count: int = 2) -> list[dict[str, Any]]:
    """Run the worker in some processes; return what each of them wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, "-m", "tests.train.parallel_worker", str(folder), kind, device],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("kind", ["plain", "accumulated", "sampler", "resumed"])
def test_two_processes_are_one_with_twice_the_batch(kind: str, tmp_path: Path) -> None:
    first, second = launched(kind, tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    model, result = train("plain" if kind in ("accumulated", "resumed") else kind, 1, alone)
    apart = 0.0
    for name, weight in model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        apart = max(apart, float((first["weights"][name] - weight).abs().max()))
    print(f"{kind}: largest difference {apart:.2e}")
    assert apart <= 1e-5
    assert first["result"]["steps"] == second["result"]["steps"] == result.steps == 18
    assert first["result"]["metrics"] == second["result"]["metrics"]
    losses = [[entry["loss"] for entry in each["history"]] for each in (first["result"], second["result"], result.to_dict())]
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    first, second = launched("plain", tmp_path, "cuda")
    model, result = train("plain", 1, tmp_path, "cuda")
    for name, weight in model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight.cpu(), rtol=0, atol=1e-5)
    assert first["result"]["steps"] == result.steps == 18


def test_all_processes_move_the_same_modules(tmp_path: Path) -> None:
    first, second = launched("adaptive", tmp_path)
    assert first["result"]["moves"] == second["result"]["moves"]
    assert [(move["module"], move["reason"]) for move in first["result"]["moves"]] == [("1", "overflow")]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["result"]["scales"] == second["result"]["scales"]


def test_shares_of_an_epoch() -> None:
    data = [(torch.full((1,), float(number)), None) for number in range(7)]
    shares = [
        [[int(inputs) for inputs, _ in step] for step in steps_of(data, 0, seed=0, accumulate=2, shared=each)]
        for each in (Processes(rank, 3, torch.device("cpu")) for rank in range(3))
    ]
    assert shares == [[[0, 3]], [[1, 4]], [[2, 5]]]
    with pytest.raises(UsageError, match="fewer batches than the 8 processes"):
        list(steps_of(data, 0, seed=0, accumulate=1, shared=Processes(0, 8, torch.device("cpu"))))


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with processes("cpu") as shared:
        assert (shared.rank, shared.count, shared.first) == (0, 1, True)
        assert shared.mean([1.5]) == [1.5] and shared.gather("a") == ["a"]
