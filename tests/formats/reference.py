"""What formats are compared with: numpy's and ml_dtypes' types, and exact fractions searched in a table of all patterns."""

from __future__ import annotations

import bisect
import functools
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from halfconv.formats import BFLOAT16, BINARY16, BINARY32, FLOAT8_E4M3FN, FLOAT8_E5M2, Format

#: Formats of 16 and 8 bits, all of whose patterns are looked at.
SMALL = (BINARY16, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)
DTYPES: dict[str, np.dtype[Any]] = {
    BINARY32.name: np.dtype(np.float32),
    BINARY16.name: np.dtype(np.float16),
    BFLOAT16.name: np.dtype(ml_dtypes.bfloat16),
    FLOAT8_E4M3FN.name: np.dtype(ml_dtypes.float8_e4m3fn),
    FLOAT8_E5M2.name: np.dtype(ml_dtypes.float8_e5m2),
}


def patterns(format: Format) -> np.ndarray[Any, Any]:
    return np.arange(1 << format.width, dtype=np.uint32).astype(f"u{format.width // 8}")


def numbers(format: Format) -> np.ndarray[Any, Any]:
    """All patterns as the other library's numbers."""
    return patterns(format).view(DTYPES[format.name])


def cast(array: np.ndarray[Any, Any], format: Format) -> np.ndarray[Any, Any]:
    """Patterns of the other library's cast."""
    with np.errstate(all="ignore"):
        return array.astype(DTYPES[format.name]).view(f"u{format.width // 8}")


@functools.cache
def ladder(format: Format) -> list[Fraction]:
    """The finite numbers from zero up, by pattern, worked out from the definition."""
    found = []
    for pattern in range(1 << format.width - 1):
        exponent, fraction = divmod(pattern, 1 << format.fraction_bits)
        special = exponent == (1 << format.exponent_bits) - 1
        if special and (format.infinities or fraction == (1 << format.fraction_bits) - 1):
            break
        bias = (1 << format.exponent_bits - 1) - 1
        significand = Fraction(fraction, 1 << format.fraction_bits) + (exponent > 0)
        found.append(significand * Fraction(2) ** (max(exponent, 1) - bias))
    return found


def nearest(exact: Fraction, format: Format, negative: bool | None = None) -> int:
    """The pattern nearest to an exact number, ties to even, by search; `negative` is the sign of a zero."""
    steps = ladder(format)
    size = abs(exact)
    index = bisect.bisect_right(steps, size) - 1
    above = steps[index + 1] if index + 1 < len(steps) else 2 * steps[index] - steps[index - 1]
    middle = (steps[index] + above) / 2
    index += size > middle or (size == middle and index % 2 == 1)
    sign = exact < 0 if negative is None else negative
    return index | sign << format.width - 1


def truncated(exact: Fraction, format: Format) -> int:
    """The pattern of the largest magnitude that is not beyond that of an exact number."""
    index = bisect.bisect_right(ladder(format), abs(exact)) - 1
    return index | (exact < 0) << format.width - 1


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether arrays agree to the sign of zeros and NaNs."""
    return np.array_equal(one, other, equal_nan=True) and np.array_equal(np.signbit(one), np.signbit(other))
