"""What each process of `test_parallel` runs (``python -m tests.train.parallel_worker OUT KIND DEVICE``): it trains."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from halfconv.train import AdaptivePolicy, Result, fit
from tests.train.problems import classes

__all__ = ["data", "model", "train"]


class Scaled(nn.Module):
    """Overflows in FP16 on the inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e5 / 1e5


def model(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), *more, nn.ReLU(), nn.Linear(32, 4))


def data(batch: int, rows: int = 96) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(*classes(rows)), batch, shuffle=True)


def train(kind: str, processes: int, folder: Path, device: str = "cpu") -> tuple[nn.Module, Result]:
    """Train with batches that make up the same steps, however many processes there are."""
    options: dict[str, Any] = {"loss": cross_entropy, "epochs": 3, "device": device, "evaluate": lambda _: {"pid": os.getpid()}}
    batch = 16 // processes
    options["optimizer"] = lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9)
    trained, batches = model(), data(batch)
    if kind == "accumulated":
        batches, options["accumulate"] = data(batch // 2), 2
    if kind == "sampler" and processes > 1:
        held = TensorDataset(*classes())
        batches = DataLoader(held, batch, sampler=DistributedSampler(held, 2, int(os.environ["RANK"]), shuffle=False))
    if kind == "sampler" and processes == 1:
        batches = DataLoader(TensorDataset(*classes()), batch)
    if kind == "adaptive":
        trained, options["precision"], options["precision_policy"] = model(Scaled()), "fp16", AdaptivePolicy()
    if kind == "resumed":
        path = folder / "run.pt"
        fit(trained, batches, **{**options, "epochs": 1}, checkpoint=path)
        trained, options["checkpoint"], options["resume"] = model(), path, True
    return trained, fit(trained, batches, **options)


if __name__ == "__main__":
    out, kind, device = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    trained, result = train(kind, int(os.environ["WORLD_SIZE"]), out, device)
    assert torch.distributed.is_initialized()  # for further runs
    torch.save({"weights": trained.cpu().state_dict(), "result": result.to_dict()}, out / f"{os.environ['RANK']}.pt")
    # torch 2.13 with gloo sometimes aborts after Python has ended ("terminate called without an active exception"), whereupon
    # torchrun ends the other process: so wait for it, and leave without C++'s last destructors.
    torch.distributed.barrier()
    os._exit(0)
