"""Whether the rows of a batch depend on each other: what requests give alone is compared with what they give together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import Spec

__all__ = ["batched", "differ", "far"]

#: Drift (rel_l2) up to which a row alone and the same row in a batch count as equal: other shapes run other kernels.
SAME = 1e-2
#: Share of elements of an integer, boolean or string output that must agree.
AGREE = 0.99


def batched(inputs: Mapping[str, Spec]) -> frozenset[str]:
    """Return the names of all inputs if they have one varying first dimension in common, else none."""
    first = {spec.shape[0] if spec.shape else 1 for spec in inputs.values()}
    return frozenset(inputs) if len(first) == 1 and not isinstance(next(iter(first)), int) else frozenset()


def differ(alone: Sequence[Mapping[str, Any]], together: Mapping[str, Any], rows: Sequence[int]) -> str:
    """Say how outputs differ between requests that ran alone and together; "" if they do not.

    Args:
        alone: Output -> array, of each request.
        together: Output -> array, of all in one batch.
        rows: How many rows each request has.
    """
    for name, whole in together.items():
        parts = [outputs[name] for outputs in alone]
        if not isinstance(whole, np.ndarray) or not whole.ndim or len(whole) != sum(rows):
            return f"output {name!r} does not have a row for each of the inputs' rows"
        if any(part.shape != (count, *whole.shape[1:]) for part, count in zip(parts, rows, strict=True)):
            return f"output {name!r} has another shape when requests run together"
        start = 0
        for want, count in zip(parts, rows, strict=True):  # each on its own: a large row must not hide a small one
            floating = want.dtype.kind in "fV"  # V: bfloat16 of ml_dtypes
            if how := far(whole[start : start + count], want, floating=floating, allowed=SAME):
                return f"output {name!r} is another when requests run together ({how})"
            start += count
    return ""


def far(have: np.ndarray[Any, Any], want: np.ndarray[Any, Any], *, floating: bool, allowed: float) -> str:
    """Say how far an output is from what it should be; "" if it is near enough.

    Args:
        have: The output.
        want: What it should be; of the same shape.
        floating: Whether it holds floating-point numbers; of others, a share must agree.
        allowed: Drift (rel_l2) that is near enough.
    """
    if not want.size:
        return ""
    if not floating:
        share = float(np.mean(want == have))
        return "" if share >= AGREE else f"{share:.0%} agree"
    a, b = have.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return "it is not finite in the same places"
    drift = float(np.linalg.norm((a - b)[finite])) / (float(np.linalg.norm(b[finite])) or 1.0)
    return "" if drift <= allowed else f"rel_l2 {drift:.2g}"
