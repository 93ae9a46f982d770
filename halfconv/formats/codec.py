"""Encode numbers as patterns of a format, and decode them; round; and what lies beside a number."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfconv.errors import InputError, UsageError
from halfconv.formats.layout import Format

__all__ = ["ROUNDINGS", "Rounding", "as_binary64", "decode", "encode", "neighbours", "round_to", "ulp"]

Rounding = Literal["nearest-even", "toward-zero", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

#: binary64, in which numbers arrive.
_FRACTION_BITS, _BIAS = 52, 1023
#: From here on not every integer is a binary64 number.
_WHOLE = 2.0**53
#: Most bits that are dropped in one shift: a significand of 53 bits is then less than half of what it is compared with.
_MOST = 62


def as_binary64(array: ArrayLike) -> NDArray[np.float64]:
    """Return numbers as binary64, unchanged in value.

    Args:
        array: Numbers of any shape, of a type that binary64 holds exactly: any float up to binary64, those of ml_dtypes included;
            booleans; integers below 2^53.

    Returns:
        The same shape, float64; NaN may lose its payload.

    Raises:
        InputError: It is no such array. A type with more digits would be rounded here and once more later.
    """
    given = np.asarray(array)
    if not np.can_cast(given.dtype, np.float64):
        raise InputError(f"numbers of type {given.dtype} do not fit binary64", "an array of float64 or float32")
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = given.astype(np.float64, copy=False)
    if given.dtype.kind in "iu" and np.any(np.abs(wide) >= _WHOLE):
        raise InputError("an integer of 2^53 or more may not be a binary64 number", "an array of float64")
    return wide


def encode(
    array: ArrayLike, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> NDArray[np.unsignedinteger[Any]]:
    """Return the patterns of numbers in a format, rounded once.

    - ``nearest-even``: to the nearest number, of two equally near ones to that with an even pattern. From half an ulp beyond the
      largest number on the result is infinity.
    - ``toward-zero``: to the next number of smaller magnitude. What is finite stays finite.
    - ``stochastic``: to one of the two numbers around it, up with a probability of the distance from the lower one in ulps, so that
      the expectation is the number itself, to 2^-53 ulp. Between the largest number and one ulp beyond, the upper one is infinity.
      One draw for each element, in C order, whatever its value: the same generator gives the same patterns.

    In a format without infinities NaN takes their place: of what overflows, as in ml_dtypes and in ONNX's Cast with ``saturate=0``
    (Cast's default is the largest number), and of infinities. Zeros keep their sign. Subnormal numbers are neither flushed on the
    way in nor on the way out. NaN becomes the format's canonical quiet NaN with its sign kept; a payload is dropped, as by
    ml_dtypes.

    Args:
        array: Numbers of any shape, as `as_binary64` takes them.
        format: The format.
        rounding: One of `ROUNDINGS`.
        rng: Where stochastic rounding draws from.

    Returns:
        The same shape, uint8, uint16 or uint32 as the format is wide.

    Raises:
        InputError: The array holds no numbers of up to 53 bits.
        UsageError: The rounding is unknown, or stochastic without a generator.

    Sources: IEEE 754-2019, 4.3 and 7.4; for stochastic rounding M. Croci et al., "Stochastic rounding: implementation, error
    analysis and applications", 2022.
    """
    wide = as_binary64(array)
    bits = wide.view(np.int64)
    stored = bits >> _FRACTION_BITS & 0x7FF
    significand = (bits & (1 << _FRACTION_BITS) - 1) | (stored > 0).astype(np.int64) << _FRACTION_BITS
    exponent = np.maximum(stored, 1) - _BIAS
    field = np.maximum(exponent + format.bias, 1)  # 1 for subnormal numbers, too, whose leading bit is 0
    dropped = _FRACTION_BITS - format.fraction_bits + (field - format.bias - exponent)
    shift = np.minimum(dropped, _MOST)
    kept = significand >> shift
    rest = significand - (kept << shift)
    up = _rounds_up(kept, rest, shift, dropped, rounding, rng)
    # The leading bit of `kept` adds 1 to the exponent field, and so does a carry out of the fraction.
    magnitude = (field - 1 << format.fraction_bits) + kept + up
    largest = format.max_pattern if rounding == "toward-zero" else format.overflow_pattern
    magnitude = np.where(magnitude > format.max_pattern, largest, magnitude)
    magnitude = np.where(np.isinf(wide), format.overflow_pattern, magnitude)
    magnitude = np.where(np.isnan(wide), format.nan_pattern, magnitude)
    return _storage(magnitude | (bits < 0).astype(np.int64) << format.width - 1, format)


def decode(bits: ArrayLike, format: Format) -> NDArray[np.float64]:
    """Return the numbers that patterns stand for.

    Args:
        bits: Patterns of any shape, of an integer type.
        format: The format.

    Returns:
        The same shape, float64, which holds all numbers of all formats exactly; so does float32. A NaN keeps its sign, not its
        payload.

    Raises:
        InputError: They are no integers, or wider than the format.
    """
    given = np.asarray(bits)
    if given.dtype.kind not in "iu":
        raise InputError(f"patterns of type {given.dtype} are no integers", "an array of unsigned integers")
    if given.size and (int(given.min()) < 0 or int(given.max()) >> format.width):
        raise InputError(f"a pattern does not fit the {format.width} bits of {format.name}", "another format, or a mask")
    code = given.astype(np.int64)
    magnitude = code & (1 << format.width - 1) - 1
    field = magnitude >> format.fraction_bits
    significand = (magnitude & (1 << format.fraction_bits) - 1) | (field > 0).astype(np.int64) << format.fraction_bits
    exponent = np.maximum(field, 1) - format.bias - format.fraction_bits
    value = np.ldexp(significand.astype(np.float64), exponent.astype(np.int32))
    value = np.where(magnitude > format.max_pattern, np.nan, value)
    if format.infinities:
        value = np.where(magnitude == format.overflow_pattern, np.inf, value)
    return np.asarray(np.copysign(value, np.where(code >> format.width - 1, -1.0, 1.0)))


def round_to(
    array: ArrayLike, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Return what a format makes of numbers: `encode`, then `decode`.

    Args:
        array: Numbers of any shape, as `as_binary64` takes them.
        format: The format.
        rounding: One of `ROUNDINGS`.
        rng: Where stochastic rounding draws from.

    Returns:
        The same shape, float64.

    Raises:
        InputError: The array holds no numbers of up to 53 bits.
        UsageError: The rounding is unknown, or stochastic without a generator.
    """
    return decode(encode(array, format, rounding, rng), format)


def ulp(array: ArrayLike, format: Format) -> NDArray[np.float64]:
    """Return the unit in the last place at numbers: the distance of neighbours in the format between the powers of two around each.

    It depends on the magnitude alone. At zero and at subnormal numbers it is the smallest subnormal number; beyond the largest
    number it is that of the largest; at infinities and NaN it is NaN.

    Args:
        array: Numbers of any shape, of the format or not, as `as_binary64` takes them.
        format: The format.

    Returns:
        The same shape, float64.

    Raises:
        InputError: The array holds no numbers of up to 53 bits.
    """
    wide = as_binary64(array)
    exponent = np.where(wide == 0, format.min_exponent, np.frexp(wide)[1] - 1)
    exponent = np.clip(exponent, format.min_exponent, format.max_exponent) - format.fraction_bits
    return np.where(np.isfinite(wide), np.ldexp(1.0, exponent.astype(np.int32)), np.nan)


def neighbours(array: ArrayLike, format: Format) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest number of a format below each number, and the smallest above it.

    Neither is the number itself, as in IEEE 754's nextDown and nextUp, which this extends to numbers between those of the format.
    Only infinity has itself for the neighbour beyond. In a format without infinities NaN lies beyond the largest number.

    Args:
        array: Numbers of any shape, as `as_binary64` takes them.
        format: The format.

    Returns:
        Those below and those above: the same shape, float64; both NaN at NaN.

    Raises:
        InputError: The array holds no numbers of up to 53 bits.
    """
    wide = as_binary64(array)
    return np.asarray(-_above(-wide, format)), _above(wide, format)


def _above(wide: NDArray[np.float64], format: Format) -> NDArray[np.float64]:
    finite = wide if format.infinities else np.clip(wide, -np.finfo(np.float64).max, np.finfo(np.float64).max)
    inside = encode(np.abs(finite), format, "toward-zero").astype(np.int64)
    exact = decode(inside, format) == np.abs(wide)
    upward = np.minimum(inside + 1, format.overflow_pattern)
    downward = np.where(exact, inside - 1, inside) | 1 << format.width - 1
    code = np.where(wide < 0, downward, upward)
    return np.where(np.isnan(wide), np.nan, decode(code, format))


def _rounds_up(
    kept: NDArray[np.int64],
    rest: NDArray[np.int64],
    shift: NDArray[np.int64],
    dropped: NDArray[np.int64],
    rounding: Rounding,
    rng: np.random.Generator | None,
) -> NDArray[np.int64]:
    """Return 1 where a magnitude is rounded up, by what is kept of its significand and the rest in units of 2^-shift."""
    if rounding == "nearest-even":
        half = np.left_shift(1, shift - 1)
        return np.asarray((rest > half) | ((rest == half) & (kept & 1 == 1)), np.int64)
    if rounding == "toward-zero":
        return np.zeros_like(rest)
    if rounding != "stochastic":
        raise UsageError(f"rounding {rounding!r} is not known", f"one of {', '.join(ROUNDINGS)}")
    if rng is None:
        raise UsageError("stochastic rounding needs a generator", "rng=numpy.random.default_rng(seed)")
    return np.asarray(rng.random(rest.shape) < np.ldexp(rest.astype(np.float64), -dropped.astype(np.int32)), np.int64)


def _storage(code: NDArray[np.int64], format: Format) -> NDArray[np.unsignedinteger[Any]]:
    return np.asarray(code, np.dtype(f"u{format.width // 8}"))
