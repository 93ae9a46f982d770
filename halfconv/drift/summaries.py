"""Bounded summaries of streams of numbers: sums of squares, the largest relative error, a percentile.

Each takes arrays of any number of samples one after the other, keeps a fixed amount of memory, and gives what it would give
for their concatenation. `PeakRatio` and `Percentile` are approximate; their bounds are in their docstrings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["PeakRatio", "Percentile", "ScaledSum", "power_of"]

Floats = NDArray[np.float64]

#: Sums of products of numbers between 2^-SAFE and 2^SAFE neither overflow nor lose anything to underflow.
SAFE = 300


def power_of(largest: float) -> int:
    """The power of two by which numbers up to `largest` are divided before they are squared; 0 where that is not needed."""
    exponent = math.frexp(largest)[1]
    return exponent if largest and not -SAFE < exponent <= SAFE else 0


class ScaledSum:
    """A sum of products that neither overflows nor underflows: `mantissa`·2^`exponent`, as BLAS's nrm2 keeps it."""

    __slots__ = ("exponent", "mantissa")

    def __init__(self) -> None:
        self.mantissa, self.exponent = 0.0, 0

    def add(self, a: Floats, a_power: int, b: Floats, b_power: int) -> None:
        """Add Σ a·b.

        Args:
            a: Finite numbers, float64, 1-D, already divided by 2^`a_power`.
            a_power: See `power_of`.
            b: As many others, already divided by 2^`b_power`.
            b_power: See `power_of`.
        """
        # numpy sums pairwise: the error grows with the logarithm of the number of elements.
        mantissa, exponent = float(np.sum(a * b)), a_power + b_power
        if mantissa == 0.0:
            return
        if self.mantissa == 0.0:
            self.mantissa, self.exponent = mantissa, exponent
            return
        top = max(self.exponent, exponent)
        self.mantissa = math.ldexp(self.mantissa, self.exponent - top) + math.ldexp(mantissa, exponent - top)
        self.exponent = top

    def over(self, *others: ScaledSum) -> float:
        """This sum divided by the geometric mean of one or two other sums that are positive; infinite if that overflows."""
        mantissa, exponent = 1.0, 0
        for other in others:
            part, shift = math.frexp(other.mantissa)
            mantissa *= part
            exponent += shift + other.exponent
        if len(others) == 2:
            mantissa, exponent = math.sqrt(mantissa * (2 if exponent % 2 else 1)), exponent // 2
        part, shift = math.frexp(self.mantissa)
        try:
            return math.ldexp(part / mantissa, shift + self.exponent - exponent)
        except OverflowError:
            return math.copysign(math.inf, part)

    def root_over(self, other: ScaledSum) -> float:
        """Square root of this sum divided by another that is positive; infinite if that overflows."""
        part, shift = math.frexp(self.mantissa)
        below, below_shift = math.frexp(other.mantissa)
        exponent = shift + self.exponent - below_shift - other.exponent
        try:
            return math.ldexp(math.sqrt(part / below * (2 if exponent % 2 else 1)), exponent // 2)
        except OverflowError:
            return math.inf


class PeakRatio:
    """max |d| / max(|r|, 1e-3·max|r|), where the largest |r| is known only at the end.

    The largest |d| and |d|/|r| are kept for 256 bins per power of two of |r|, between 1e-3·max|r| and max|r|. Below that, |d|
    alone matters, since the floor only rises. The result is exact unless it stems from the one bin that holds the floor; then
    it is at most 1/256 (0.4 %) too large, and never too small (for a floor above 2.3e-308).
    """

    FLOOR = 1e-3
    _SHIFT = 52 - 8
    _BINS = 11 << 8  # 1e-3 lies ten powers of two below 1

    __slots__ = ("_base", "_below", "_errors", "_ratios", "largest")

    def __init__(self) -> None:
        self.largest = 0.0
        self._base = 0
        self._below = 0.0
        self._errors = np.zeros(self._BINS)
        self._ratios = np.zeros(self._BINS)

    def add(self, r: Floats, d: Floats) -> None:
        """Add elements.

        Args:
            r: Finite |r|, float64, 1-D, not empty.
            d: As many |d|, which may be infinite.
        """
        self._raise_to(float(r.max()))
        keys = (r.view(np.int64) >> self._SHIFT) - self._base
        inside = (keys >= 0) & (r > 0)
        if not inside.all():
            self._below = max(self._below, float(d[~inside].max()))
            keys, r, d = keys[inside], r[inside], d[inside]
        np.maximum.at(self._errors, keys, d)
        with np.errstate(over="ignore"):
            np.maximum.at(self._ratios, keys, d / r)

    def _raise_to(self, largest: float) -> None:
        if largest <= self.largest:
            return
        self.largest = largest
        base = int(np.float64(self.FLOOR * largest).view(np.int64)) >> self._SHIFT
        fallen = min(base - self._base, self._BINS)
        if fallen:
            self._below = max(self._below, float(self._errors[:fallen].max()))
            for bins in (self._errors, self._ratios):
                bins[: self._BINS - fallen] = bins[fallen:]
                bins[self._BINS - fallen :] = 0.0
        self._base = base

    def result(self) -> float:
        """The ratio; where every r is zero, max |d|."""
        if self.largest == 0.0:
            return self._below
        below = self._over_floor(self._below)
        at_floor = min(self._over_floor(float(self._errors[0])), float(self._ratios[0]))
        return max(below, at_floor, float(self._ratios[1:].max()))

    def _over_floor(self, error: float) -> float:
        mantissa, exponent = math.frexp(self.largest)
        part, shift = math.frexp(error)
        if not math.isfinite(part):
            return part
        try:
            return math.ldexp(part / (self.FLOOR * mantissa), shift - exponent)
        except OverflowError:
            return math.inf


class Percentile:
    """A percentile of non-negative numbers, from counts in 128 bins per power of two between 2^-32 and 2^160.

    The result is the smallest x for which at least that share of the numbers is ≤ x (numpy's ``inverted_cdf``), within 1/256
    (0.4 %). Numbers below 2^-32 count as 0; those of 2^160 and more, as the largest of all.
    """

    _SHIFT = 52 - 7
    _LOW, _HIGH = -32, 160
    _BASE = (1023 + _LOW) << 7
    _BINS = ((_HIGH - _LOW) << 7) + 2  # the first holds what is smaller, the last what is larger

    __slots__ = ("_counts", "infinite", "largest")

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] | None = None
        self.largest = 0.0
        self.infinite = 0

    def add(self, numbers: Floats) -> None:
        """Add numbers ≥ 0: float64, 1-D, not empty; not NaN. Infinite ones may also be counted in `infinite`."""
        if self._counts is None:
            self._counts = np.zeros(self._BINS, np.int64)
        keys = (numbers.view(np.int64) >> self._SHIFT) - (self._BASE - 1)
        self._counts += np.bincount(np.clip(keys, 0, self._BINS - 1), minlength=self._BINS)
        self.largest = max(self.largest, float(numbers.max()))

    def result(self, share: float) -> float | None:
        """The percentile, for a share in (0, 1]; None if there are no numbers."""
        counted = 0 if self._counts is None else int(self._counts.sum())
        total = counted + self.infinite
        if not total:
            return None
        # As numpy counts: the product in float64, so that 0.99 of 100 numbers are 99.
        rank = min(max(math.ceil(share * total), 1), total)
        if rank > counted or self._counts is None:
            return math.inf
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        if index == 0:
            return 0.0
        if index == self._BINS - 1:
            return self.largest
        low = self._BASE + index - 1
        edges = np.array([low << self._SHIFT, (low + 1) << self._SHIFT], np.int64).view(np.float64)
        return min(float(edges.mean()), self.largest)
