"""Shape buckets: a batch is padded up to a size that was prepared, and the results are cut to its own size.

That is right only where the rows of a batch do not depend on each other. So nothing is padded unless the profile or the caller asks
for it, and the first padded batch of each bucket is checked: its rows must come out the same whatever fills the rest, and as
they do without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from .arrays import FLOATS, Spec, widen
from .rows import far
from .settings import Bucket

__all__ = ["Buckets", "Fit", "Verdict", "judge", "pad", "shapes_key"]

#: Drift between the same rows at the same shape, where only the filling differs; some kernels add in no fixed order.
SAME_SHAPE = 1e-3
#: Drift between a batch and the same batch padded, where no profile says what is allowed: other shapes run other kernels.
OTHER_SHAPE = 1e-2

#: How tf2onnx names dimensions of which it knows nothing, each anew.
_NAMELESS = "unk__"

Shapes = Mapping[str, tuple[int, ...]]
Array = np.ndarray[Any, Any]


def shapes_key(shapes: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return shapes as a dictionary's key."""
    return tuple(sorted(shapes.items()))


@dataclass(frozen=True, slots=True)
class Fit:
    """A request in its bucket.

    Attributes:
        shapes: The bucket's input shapes.
        rows: The request's batch size.
        size: The bucket's.
        batched: Inputs whose first dimension is the batch.
        graph: Whether a CUDA graph is wanted.
        asked: Whether the caller named the bucket, rather than the profile.
    """

    shapes: Shapes
    rows: int
    size: int
    batched: frozenset[str]
    graph: bool
    asked: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a bucket may be padded.

    Attributes:
        why_not: "" if it may.
        cut: Outputs whose first dimension is the batch.
    """

    why_not: str
    cut: frozenset[str] = frozenset()


class Buckets:
    """The shapes that were prepared.

    Args:
        specs: The model's inputs.
        profile: The profile's buckets.
        sizes: Batch sizes that the caller asks for; they come before the profile's.
        graph: Whether the caller wants CUDA graphs; None leaves it to the profile, and gives them to the caller's own sizes.

    Raises:
        UsageError: The sizes are no positive integers, or the model's inputs have no common first dimension that varies.
    """

    def __init__(self, specs: Mapping[str, Spec], profile: Sequence[Bucket], sizes: Sequence[int] | None, graph: bool | None):
        self._specs = specs
        self._graph = graph
        given: list[Any] = [] if sizes is None else list(sizes) if isinstance(sizes, Iterable) else [None]
        if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in given):
            raise UsageError(f"buckets={sizes!r}", "a list of batch sizes: whole numbers from 1 on")
        self.sizes = tuple(sorted(set(given)))
        first = [spec.shape[0] for spec in specs.values() if spec.shape and not isinstance(spec.shape[0], int)]
        self._batched = frozenset(n for n, spec in specs.items() if spec.shape and not isinstance(spec.shape[0], int))
        named = {dim for dim in first if dim is not None and not str(dim).startswith(_NAMELESS)}
        if self.sizes and (not first or len(named) > 1):
            found = ", ".join(f"{spec.name}: {spec}" for spec in specs.values())
            raise UsageError(f"buckets={sizes!r}: the inputs have no common batch dimension ({found})", "buckets=None")
        self._profile = [bucket for bucket in profile if set(bucket.inputs) <= set(specs)]

    def __bool__(self) -> bool:
        return bool(self.sizes or self._profile)

    @property
    def graphs(self) -> bool:
        """Whether any of them wants a CUDA graph."""
        return self._graph is not False and bool(self.sizes or any(bucket.cuda_graph for bucket in self._profile))

    def shapes(self) -> list[Shapes]:
        """Return the whole input shapes that are known: the profile's, and the sizes of models that vary in nothing else."""
        known: list[Shapes] = [bucket.inputs for bucket in self._profile]
        for size in self.sizes:
            whole = {
                n: (size, *spec.shape[1:]) if n in self._batched else spec.shape for n, spec in self._specs.items() if spec.needed
            }
            fixed = {n: tuple(dim for dim in dims if isinstance(dim, int)) for n, dims in whole.items()}
            if fixed == whole:
                known.append(fixed)
        return known

    def fit(self, shapes: Shapes) -> Fit | None:
        """Return the smallest bucket that a request fits into; None if there is none."""
        if self.sizes:
            rows = {shapes[name][0] for name in self._batched if name in shapes}
            if len(rows) == 1:
                (count,) = rows
                size = next((size for size in self.sizes if size >= count > 0), None)
                if size is not None:
                    padded = {name: (size, *dims[1:]) if name in self._batched else dims for name, dims in shapes.items()}
                    return Fit(padded, count, size, self._batched, self._graph is not False, True)
        fits = [fit for bucket in self._profile if (fit := self._profiled(bucket, shapes)) is not None]
        return min(fits, key=lambda fit: fit.size, default=None)

    def _profiled(self, bucket: Bucket, shapes: Shapes) -> Fit | None:
        """Fit a request into a bucket of the profile: equal but for the first dimension of some inputs, all the same."""
        if set(bucket.inputs) != set(shapes):
            return None
        graph = bucket.cuda_graph if self._graph is None else self._graph
        batched = frozenset(name for name, dims in bucket.inputs.items() if name in self._batched and dims)
        rows, sizes = {shapes[n][0] for n in batched if shapes[n]}, {bucket.inputs[n][0] for n in batched}
        if dict(bucket.inputs) == dict(shapes):
            size = next(iter(sizes), 1)
            return Fit(bucket.inputs, size, size, batched, graph, False)
        if len(rows) != 1 or len(sizes) != 1 or not 0 < next(iter(rows)) < next(iter(sizes)):
            return None
        same = all(
            len(dims) == len(shapes[name]) and (dims[1:] == shapes[name][1:] if name in batched else dims == shapes[name])
            for name, dims in bucket.inputs.items()
        )
        return Fit(bucket.inputs, next(iter(rows)), next(iter(sizes)), batched, graph, False) if same else None


def pad(array: Array, size: int, fill: int | None = None) -> Array:
    """Return a batch filled up to a size.

    Args:
        array: Its rows, at least one.
        size: How many rows it gets.
        fill: What the new rows hold; None for copies of the last one, which no model finds strange.
    """
    if len(array) == size:
        return array
    out = np.empty((size, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    out[len(array) :] = array[-1:] if fill is None else (fill if array.dtype.kind != "O" else "")
    return out


def judge(
    specs: Mapping[str, Spec],
    fit: Fit,
    alone: Mapping[str, Any],
    padded: Mapping[str, Any],
    zeros: Mapping[str, Any] | None,
    allowed: float | None,
) -> Verdict:
    """Decide whether a bucket may be padded.

    Args:
        specs: The model's outputs.
        fit: The request.
        alone: Outputs without padding.
        padded: Outputs with copies of the last row.
        zeros: Outputs with zeros; None if the model fails on them.
        allowed: The profile's tolerance of rel_l2; None for the default.
    """
    cut = set()
    for name, whole in padded.items():
        want, rows = alone[name], fit.rows
        if not isinstance(whole, np.ndarray) or not isinstance(want, np.ndarray):
            return Verdict(f"output {name!r} is no tensor")
        if whole.shape[:1] == (fit.size,) and want.shape == (rows, *whole.shape[1:]):
            cut.add(name)
            whole, other = whole[:rows], None if zeros is None else zeros[name][:rows]
        elif whole.shape == want.shape:
            other = None if zeros is None else zeros[name]
        else:
            return Verdict(f"output {name!r} has the shape {list(want.shape)} alone and {list(whole.shape)} when padded")
        if other is not None and (other.shape != whole.shape or (far := _far(other, whole, specs[name], SAME_SHAPE))):
            return Verdict(
                f"output {name!r} depends on the rows that fill the batch" + (f" ({far})" if other.shape == whole.shape else "")
            )
        if far := _far(whole, want, specs[name], allowed if allowed is not None else OTHER_SHAPE):
            return Verdict(f"output {name!r} is another when the batch is padded ({far})")
    return Verdict("", frozenset(cut))


def _far(have: Array, want: Array, spec: Spec, allowed: float) -> str:
    """Say how far an output is from what it should be; "" if it is near enough."""
    if spec.element == "bfloat16":
        have, want = widen(have), widen(want)
    return far(have, want, floating=spec.element in FLOATS, allowed=allowed)
