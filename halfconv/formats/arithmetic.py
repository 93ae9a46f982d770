"""Add and multiply in a format: the exact result, rounded once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfconv.formats.codec import Rounding, round_to
from halfconv.formats.layout import Format

__all__ = ["add", "multiply", "to_odd"]


def add(
    a: ArrayLike, b: ArrayLike, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Return a + b as a processor with this format does: both are stored in it, and their exact sum is rounded once.

    The sum of two bfloat16 numbers may have 260 bits, more than binary64 holds. What binary64's addition drops is known exactly
    (Knuth's TwoSum); if it is not zero, the last bit is made odd, which no later rounding takes for a tie or for an exact number.
    A sum of zero is +0, but that of two negative zeros −0. NaN is the canonical, positive one.

    Args:
        a: Numbers, as `halfconv.formats.encode` takes them; rounded to nearest on the way into the format.
        b: Numbers of a shape that broadcasts with a's.
        format: The format of operands and result.
        rounding: How the sum is rounded.
        rng: Where stochastic rounding draws from.

    Returns:
        The common shape, float64.

    Raises:
        InputError: An array holds no numbers of up to 53 bits.
        UsageError: The rounding is unknown, or stochastic without a generator.

    Sources: IEEE 754-2019, 5.1 and 6.3; D. Knuth, The Art of Computer Programming 2, 4.2.2; S. Boldo and G. Melquiond, "Emulation
    of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    left, right = round_to(a, format), round_to(b, format)
    with np.errstate(invalid="ignore"):  # inf − inf
        total = left + right
        part = total - left
        lost = (left - (total - part)) + (right - part)
    return _rounded(to_odd(total, lost), format, rounding, rng)


def multiply(
    a: ArrayLike, b: ArrayLike, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Return a · b as a processor with this format does: both are stored in it, and their exact product is rounded once.

    Binary64 holds the product of any two numbers of any of the formats: 48 bits at most, and exponents from −298 to 255.
    NaN is the canonical, positive one.

    Args:
        a: Numbers, as `halfconv.formats.encode` takes them; rounded to nearest on the way into the format.
        b: Numbers of a shape that broadcasts with a's.
        format: The format of operands and result.
        rounding: How the product is rounded.
        rng: Where stochastic rounding draws from.

    Returns:
        The common shape, float64.

    Raises:
        InputError: An array holds no numbers of up to 53 bits.
        UsageError: The rounding is unknown, or stochastic without a generator.

    Sources: IEEE 754-2019, 5.1 and 6.3.
    """
    with np.errstate(invalid="ignore"):  # 0 · inf
        product = round_to(a, format) * round_to(b, format)
    return _rounded(product, format, rounding, rng)


def to_odd(nearest: NDArray[np.float64], lost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to odd: of the two binary64 numbers around an exact one that is none itself, return that with the odd last bit.

    Rounded once more, to at most 51 bits, it gives what the exact number gives.

    Args:
        nearest: The exact numbers, rounded to nearest; any shape.
        lost: The exact numbers less those, or anything of that sign; 0 where they are equal. Of the same shape.

    Returns:
        The same shape.
    """
    even = nearest.view(np.int64) & 1 == 0
    with np.errstate(over="ignore", under="ignore"):  # the largest number is odd, and stays
        moved = np.nextafter(nearest, np.copysign(np.inf, lost))
    return np.where(even & (lost != 0) & np.isfinite(nearest), moved, nearest)


def _rounded(
    exact: NDArray[np.float64], format: Format, rounding: Rounding, rng: np.random.Generator | None
) -> NDArray[np.float64]:
    return round_to(np.where(np.isnan(exact), np.nan, exact), format, rounding, rng)
