"""Inputs for a benchmark: one sample, at each batch size; and what TensorRT is told of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from halfconv.errors import InputError, UsageError
from halfconv.model import load
from halfconv.runtime.tensorrt import EngineOptions
from halfconv.sample_checks import InputSpec
from halfconv.samples import open_samples
from halfconv.synthetic import input_specs, synthetic_samples

__all__ = ["engine_message", "inputs_for"]


def inputs_for(
    paths: Sequence[Path], batches: Sequence[int], samples: Any, seed: int
) -> Iterator[tuple[int | None, dict[str, Any], str]]:
    """Yield what models run on.

    Args:
        paths: The models; inputs are made for the first, and the others must take the same.
        batches: Batch sizes.
        samples: Real inputs; None makes them up.
        seed: Seed of those.

    Yields:
        Batch size (None where the inputs have no batch dimension that varies), input -> array, and a note or "".

    Raises:
        InputError: A model or the samples cannot be used.
        UsageError: The models take different inputs.
    """
    models = [load(path).model for path in paths]
    specs = input_specs(models[0])
    names = {spec.name for spec in specs}
    for path, other in zip(paths[1:], models[1:], strict=True):
        if (found := {spec.name for spec in input_specs(other)}) != names:
            raise UsageError(f"{path} takes {sorted(found)}, and {paths[0]} takes {sorted(names)}", "versions of one model")
    if any(spec.sequence for spec in specs):
        raise InputError(f"{paths[0]} takes a sequence, which a benchmark cannot make", "a model with tensors")
    batched = {spec.name for spec in specs if spec.shape and not _is_fixed(spec.shape[0])}
    given = None if samples is None else open_samples(samples, specs).first().feeds
    fixed = {spec.shape[0] for spec in specs if spec.shape and _is_fixed(spec.shape[0])}
    if not batched:
        size = next(iter(fixed)) if len(fixed) == 1 else None
        feeds = given if given is not None else synthetic_samples(models[0], 1, seed).first().feeds
        other_sizes = [batch for batch in batches if batch != size]
        note = f"the inputs have no batch dimension that varies: batch {', '.join(map(str, other_sizes))} left out"
        yield size, dict(feeds), note if size is not None and other_sizes else ""
        return
    for batch in batches:
        symbols = {spec.shape[0]: batch for spec in specs if spec.name in batched and spec.shape and isinstance(spec.shape[0], str)}
        feeds = given if given is not None else synthetic_samples(models[0], 1, seed, dims=symbols).first().feeds
        yield batch, _sized(feeds, batched, batch, specs), ""


def _is_fixed(dim: object) -> TypeGuard[int]:
    """Tell whether a dimension has a size; exporters write -1 for one that varies."""
    return isinstance(dim, int) and dim >= 0


def _sized(feeds: Mapping[str, Any], batched: set[str], batch: int, specs: Sequence[InputSpec]) -> dict[str, Any]:
    """Repeat or cut the rows of inputs to a batch size."""
    found = {}
    for spec in specs:
        if spec.name not in feeds:
            continue
        array = np.asarray(feeds[spec.name])
        if spec.name in batched and len(array) != batch:
            if not len(array):
                raise InputError(f"input '{spec.name}' has no rows", "--samples with at least one")
            array = np.concatenate([array] * -(-batch // len(array)))[:batch]
        found[spec.name] = np.ascontiguousarray(array)
    return found


def engine_message(engine: EngineOptions | None, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a worker is told of TensorRT's engines: without shapes of their own, they are for those of the inputs."""
    engine = engine or EngineOptions()
    shapes = engine.shapes or [{name: array.shape for name, array in feeds.items()} for feeds in inputs]
    cache = None if engine.cache is None else str(engine.cache)
    return {"cache": cache, "builder_level": engine.builder_level, "shapes": [{n: list(s) for n, s in k.items()} for k in shapes]}
