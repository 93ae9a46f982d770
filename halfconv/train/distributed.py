"""Data parallel training: the processes that ``torchrun`` started, and what they tell each other.

Each process has the whole model and takes its share of the batches; gradients are averaged, so that N processes do what one does
with batches N times as large (PyTorch's DistributedDataParallel).
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from halfconv.errors import EnvironmentProblem
from halfconv.train.precision import pick_device

__all__ = ["Processes", "processes"]

_BACKEND = {"cpu": "gloo", "cuda": "nccl"}


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Which one this is; 0 writes files and shows progress.
        count: How many there are.
        device: What this one computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, with gradients averaged over the processes if there are several."""
        if self.count == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def mean(self, values: list[float]) -> list[float]:
        """Return the mean of each value over the processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total / self.count]

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest of each value over the processes."""
        if self.count > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the value that the first process has."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; without it, be the only one.

    A process group that exists already is used. One that is made here stays until the process ends, for further runs: a second one
    would read what the first has left in torchrun's store, and sometimes wait for addresses that are no more.

    Args:
        device: As for `halfconv.train.precision.pick_device`.

    Raises:
        EnvironmentProblem: The device is not here, or the processes do not find each other.
    """
    ours = not (dist.is_available() and dist.is_initialized())
    launched = not ours or ("RANK" in os.environ and "WORLD_SIZE" in os.environ)
    here = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")) if launched else 0)
    if not launched:
        yield Processes(0, 1, here)
        return
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if ours:
        try:
            dist.init_process_group(_BACKEND[here.type])
        except (RuntimeError, ValueError) as error:
            raise EnvironmentProblem(f"the processes do not find each other: {error}", "torchrun --standalone …") from error
        atexit.register(_leave)
    yield Processes(dist.get_rank(), dist.get_world_size(), here)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
