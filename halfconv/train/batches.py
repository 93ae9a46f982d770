"""The batches of an epoch: in an order that depends on seed and epoch alone, shared among processes, grouped into steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from halfconv.errors import UsageError
from halfconv.train.distributed import Processes
from halfconv.train.randomness import seed_rng

__all__ = ["Batch", "Data", "steps_of"]

Batch = tuple[Any, Any]
Data = Iterable[Batch] | Callable[[int], Iterable[Batch]]


def steps_of(data: Data, epoch: int, *, seed: int, accumulate: int, shared: Processes) -> Iterator[list[Batch]]:
    """Yield, for each step of an epoch, the batches that this process computes its gradients from.

    All generators of random numbers are seeded with (seed, epoch) before the data is asked for its order, a generator of a
    DataLoader's own included, so that an epoch can be begun again. Processes other than the first go on with a seed of their own
    after the first batch, so that dropout differs among them.

    Of N processes, the one of rank r takes the batches r, r + N, r + 2N, …; those left over at the end, too few for all, are left
    out. A DataLoader with a DistributedSampler shares already and is told the epoch.

    Args:
        data: (inputs, target) batches, or a function that returns those of an epoch.
        epoch: Which one; the first is 0.
        seed: The run's seed.
        accumulate: Batches per step; the last step of an epoch may have fewer.
        shared: The processes.

    Raises:
        UsageError: The data is used up, or a batch is no pair.
    """
    seed_rng(seed, epoch)
    sampler = data.sampler if isinstance(data, DataLoader) else None
    for generator in {id(held): held for held in _generators(data)}.values():
        generator.manual_seed(torch.initial_seed())
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
    batches = iter(data(epoch) if callable(data) else data)
    if shared.rank:
        first = list(itertools.islice(batches, 1))  # samplers draw their order when they are asked for the first
        seed_rng(seed, epoch, shared.rank)
        batches = itertools.chain(first, batches)
    if shared.count > 1 and not isinstance(sampler, DistributedSampler):
        batches = _share(batches, shared)
    empty = True
    while group := list(itertools.islice(batches, accumulate)):
        empty = False
        for batch in group:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise UsageError(f"a batch is a {type(batch).__name__}, not a pair", "(inputs, target)")
        yield group
    if empty:
        words = "no batches" if shared.count == 1 else f"fewer batches than the {shared.count} processes"
        raise UsageError(f"the data has {words} in epoch {epoch}", "a list, a DataLoader, or a function of the epoch")


def _generators(data: Data) -> Iterator[torch.Generator]:
    """Yield the generators that decide a DataLoader's order."""
    if isinstance(data, DataLoader):
        for holder in (data, data.sampler):
            if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                yield generator


def _share(batches: Iterator[Batch], shared: Processes) -> Iterator[Batch]:
    while len(group := list(itertools.islice(batches, shared.count))) == shared.count:
        yield group[shared.rank]
