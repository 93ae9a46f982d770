"""Formats, encode, decode, ulp and neighbours: over all patterns, and over float32 and float64."""

from __future__ import annotations

import dataclasses
import doctest
import struct
import subprocess
import sys
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halfconv.formats
from halfconv.errors import InputError, UsageError
from halfconv.formats import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    FLOAT8_E4M3FN,
    FORMATS,
    Format,
    decode,
    encode,
    fields,
    format_named,
    neighbours,
    round_to,
    ulp,
)
from tests.formats.reference import DTYPES, SMALL, cast, ladder, nearest, numbers, patterns, same, truncated

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
each = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
each_small = pytest.mark.parametrize("format", SMALL, ids=lambda format: format.name)
thoroughly = settings(derandomize=True, deadline=None, max_examples=100)

float32_bits = st.integers(0, 2**32 - 1)
float64_bits = st.integers(0, 2**64 - 1)


def float64(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


# Facts


@each
def test_facts_are_those_of_the_other_library(format: Format) -> None:
    known = ml_dtypes.finfo(DTYPES[format.name])
    assert format.max == float(known.max)
    assert format.min_normal == float(known.smallest_normal)
    assert format.min_subnormal == float(known.smallest_subnormal)
    assert format.epsilon == float(known.eps)
    assert format.fraction_bits == known.nmant and format.exponent_bits == known.nexp
    assert format.width == known.bits
    assert format.min_exponent == known.minexp and format.max_exponent == known.maxexp - 1
    assert format.precision == format.fraction_bits + 1
    assert hash(format) == hash(dataclasses.replace(format))


def test_facts_in_figures() -> None:
    assert [format.bias for format in FORMATS] == [127, 15, 127, 7, 15]
    assert [format.max_pattern for format in FORMATS] == [0x7F7FFFFF, 0x7BFF, 0x7F7F, 0x7E, 0x7B]
    assert [format.overflow_pattern for format in FORMATS] == [0x7F800000, 0x7C00, 0x7F80, 0x7F, 0x7C]
    assert [format.nan_pattern for format in FORMATS] == [0x7FC00000, 0x7E00, 0x7FC0, 0x7F, 0x7E]
    assert [format.overflow for format in SMALL] == [65520.0, (2 - 2.0**-8) * 2.0**127, 464.0, 61440.0]
    assert all(format_named(format.name) is format for format in FORMATS)
    with pytest.raises(UsageError, match="'half'; try: one of binary32, binary16"):
        format_named("half")


def test_the_older_facts_are_these() -> None:
    from halfconv.precision import formats as precision

    for half, format in ((precision.FP16, BINARY16), (precision.BF16, BFLOAT16)):
        assert (half.max, half.min_normal, half.whole) == (format.max, format.min_normal, 2**format.precision)


# All patterns


@each_small
def test_decode_is_right_for_all_patterns(format: Format) -> None:
    ours = decode(patterns(format), format)
    assert ours.dtype == np.float64
    assert same(ours, numbers(format).astype(np.float64))
    assert [Fraction(value) for value in ours[: format.max_pattern + 1]] == ladder(format)


@each_small
def test_encode_of_decode_is_the_pattern(format: Format) -> None:
    codes = patterns(format)
    values = decode(codes, format)
    number = ~np.isnan(values)
    for rounding in ("nearest-even", "toward-zero", "stochastic"):
        again = encode(values, format, rounding, np.random.default_rng(0))
        assert again.dtype == codes.dtype
        assert np.array_equal(again[number], codes[number])
        assert same(decode(again, format), values)
        assert {int(code) & (1 << format.width - 1) - 1 for code in again[~number]} == {format.nan_pattern}
    assert np.array_equal(encode(numbers(format), format)[number], codes[number])


@each_small
def test_ulp_and_neighbours_of_all_numbers(format: Format) -> None:
    every = numbers(format)
    values = every.astype(np.float64)
    finite = np.isfinite(values)
    below, above = neighbours(values, format)
    # ml_dtypes steps to NaN where the aim is NaN, which in float8_e4m3fn infinity is.
    aim = np.array(np.inf if format.infinities else format.max, every.dtype)
    with np.errstate(all="ignore"):
        up, down = (np.nextafter(every, to).astype(np.float64) for to in (aim, -aim))
        spacing = np.spacing(np.abs(every)).astype(np.float64)
    if not format.infinities:
        up[values == format.max] = down[values == -format.max] = np.nan
    assert np.array_equal(above, up, equal_nan=True) and np.array_equal(below, down, equal_nan=True)
    zeros = above == 0
    assert np.array_equal(np.signbit(above[zeros]), np.signbit(up[zeros])) and np.all(np.signbit(above[zeros]))
    inner = finite & (np.abs(values) < format.max)
    ours = ulp(values, format)
    assert np.array_equal(ours[inner], spacing[inner])
    assert np.all(ours[np.abs(values) == format.max] == 2.0 ** (format.max_exponent - format.fraction_bits))
    assert np.all(np.isnan(ours[~finite]))


@each_small
def test_fields_of_all_patterns_give_the_number(format: Format) -> None:
    step = 1 if format.width == 8 else 17
    for pattern in range(0, 1 << format.width, step):
        known = fields(pattern, format)
        assert int(known.bits.replace(" ", ""), 2) == pattern == int(known.hex, 16)
        assert (known.sign, known.exponent, known.fraction) == tuple(int(part, 2) for part in known.bits.split())
        if known.kind in ("zero", "subnormal", "normal"):
            assert (-1) ** known.sign * known.significand * Fraction(2) ** known.scale == Fraction(known.value)
        assert (known.kind == "subnormal") == (0 < abs(known.value) < format.min_normal)
        assert (known.kind == "nan") == (known.value != known.value)
        assert (known.kind == "infinity") == (abs(known.value) == float("inf"))


@each_small
def test_midpoints_and_what_is_beside_them(format: Format) -> None:
    """Between all neighbours: a tie goes to even, and the binary64 numbers beside it to the nearer one."""
    steps = np.array([float(number) for number in ladder(format)] + [2 * format.overflow - format.max])
    middle = (steps[:-1] + steps[1:]) / 2
    code = np.arange(middle.size)
    for sign, bit in ((1, 0), (-1, 1 << format.width - 1)):
        assert np.array_equal(encode(sign * middle, format), (code + code % 2) | bit)
        assert np.array_equal(encode(sign * np.nextafter(middle, 0), format), code | bit)
        assert np.array_equal(encode(sign * np.nextafter(middle, np.inf), format), (code + 1) | bit)
        inside = steps[:-1][1:]
        assert np.array_equal(encode(sign * np.nextafter(inside, 0), format, "toward-zero"), code[:-1] | bit)


# Any float32, any float64


@each
@thoroughly
@given(st.lists(float32_bits, min_size=1, max_size=200))
def test_encode_is_the_cast_of_float32(format: Format, bits: list[int]) -> None:
    array = np.array(bits, np.uint32).view(np.float32)
    ours, theirs = encode(array, format), cast(array, format)
    number = ~np.isnan(array)
    assert np.array_equal(ours[number], theirs[number])
    assert np.all(ours[~number] & (1 << format.width - 1) - 1 == format.nan_pattern)
    assert np.array_equal(ours[~number] >> format.width - 1, np.array(bits, np.uint32)[~number] >> 31)


@pytest.mark.parametrize("format", [BINARY16, BFLOAT16], ids=lambda format: format.name)
def test_encode_is_the_cast_of_float32s_with_every_upper_half(format: Format) -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        array = (upper | np.uint32(lower)).view(np.float32)
        number = ~np.isnan(array)
        assert np.array_equal(encode(array, format)[number], cast(array, format)[number])


@pytest.mark.parametrize("format", [BINARY16, BINARY32], ids=lambda format: format.name)
@thoroughly
@given(st.lists(float64_bits, min_size=1, max_size=200))
def test_encode_is_numpys_cast_of_float64(format: Format, bits: list[int]) -> None:
    array = np.array(bits, np.uint64).view(np.float64)
    number = ~np.isnan(array)
    assert np.array_equal(encode(array, format)[number], cast(array, format)[number])


@each_small
@thoroughly
@given(data=st.data())
def test_float64_near_a_tie_is_rounded_once(format: Format, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, format.max_pattern))
    steps = ladder(format)
    high = steps[low + 1] if low < format.max_pattern else 2 * steps[low] - steps[low - 1]
    value = float((steps[low] + high) / 2)
    moved = float64(struct.unpack("<Q", struct.pack("<d", value))[0] + data.draw(st.integers(-(2**30), 2**30)))
    assert int(encode(moved, format)) == nearest(Fraction(moved), format)
    assert int(encode(-moved, format, "toward-zero")) == truncated(-Fraction(moved), format)


def test_the_other_library_rounds_float64_twice_and_this_does_not() -> None:
    value = 1 + 2**-8 + 2**-40  # a little above the tie between 1 and the next bfloat16
    assert float(np.float64(value).astype(ml_dtypes.bfloat16)) == 1.0
    assert float(round_to(value, BFLOAT16)) == 1 + 2**-7
    assert nearest(Fraction(value), BFLOAT16) == int(encode(value, BFLOAT16))


@each
@thoroughly
@given(st.lists(float64_bits.map(float64).filter(lambda value: value == value), min_size=2, max_size=100), st.booleans())
def test_rounding_is_monotone_odd_and_idempotent(format: Format, values: list[float], truncate: bool) -> None:
    rounding = "toward-zero" if truncate else "nearest-even"
    ordered = np.sort(np.array(values))
    if not format.infinities:  # beyond the largest number is NaN, which has no order
        ordered = ordered[np.abs(ordered) <= format.max]
    rounded = round_to(ordered, format, rounding)
    assert np.all(rounded[:-1] <= rounded[1:])
    assert same(round_to(-ordered, format, rounding), -rounded)
    assert same(round_to(rounded, format, rounding), rounded)
    if truncate:
        assert np.all(np.abs(rounded) <= np.abs(ordered))


@each
@thoroughly
@given(st.lists(float64_bits.map(float64).filter(lambda value: abs(value) < float("inf")), min_size=1, max_size=100))
def test_neighbours_enclose_and_ulp_bounds_the_error(format: Format, values: list[float]) -> None:
    array = np.array(values)
    below, above = neighbours(array, format)
    assert np.all((below < array) | np.isnan(below)) and np.all((array < above) | np.isnan(above))
    inside = np.abs(array) <= format.max
    error = np.abs(round_to(array, format) - array)[inside]
    assert np.all(error <= ulp(array, format)[inside] / 2)
    truncated_error = np.abs(round_to(array, format, "toward-zero") - array)[inside]
    assert np.all(truncated_error < ulp(array, format)[inside])


# Edges


@each
def test_overflow_by_rounding(format: Format) -> None:
    over = float("inf") if format.infinities else float("nan")
    beyond = np.array([format.max, np.nextafter(format.overflow, 0), np.nextafter(format.overflow, np.inf), 1e300, -1e300])
    assert same(round_to(beyond, format), np.array([format.max, format.max, over, over, -over]))
    assert same(round_to(format.overflow, format), np.array(over if format.infinities else format.max))
    toward = round_to(beyond, format, "toward-zero")
    assert same(toward, np.array([format.max] * 4 + [-format.max]))
    assert same(round_to([np.inf, -np.inf], format, "toward-zero"), np.array([over, -over]))


@each
def test_underflow_keeps_the_sign(format: Format) -> None:
    tiny = format.min_subnormal
    array = np.array([tiny / 2, -tiny / 2, np.nextafter(tiny / 2, 1), 5e-324, -5e-324, 0.0, -0.0])
    assert same(round_to(array, format), np.array([0.0, -0.0, tiny, 0.0, -0.0, 0.0, -0.0]))


def test_neighbours_at_the_ends() -> None:
    assert [float(part) for part in neighbours(np.inf, BINARY16)] == [65504.0, np.inf]
    assert [float(part) for part in neighbours(-np.inf, BINARY16)] == [-np.inf, -65504.0]
    assert [float(part) for part in neighbours(1e9, BINARY16)] == [65504.0, np.inf]
    below, above = neighbours([np.inf, 448.0, 470.0, np.nan], FLOAT8_E4M3FN)
    assert np.array_equal(below, [448.0, 416.0, 448.0, np.nan], equal_nan=True) and np.all(np.isnan(above))


def test_shapes_and_types() -> None:
    array = np.asfortranarray(np.linspace(-3, 3, 24).reshape(2, 3, 4))
    assert encode(array, BINARY16).shape == (2, 3, 4)
    assert np.array_equal(encode(array.T, BINARY16), encode(array, BINARY16).T)
    assert np.array_equal(encode(array[:, ::2], BINARY16), encode(array, BINARY16)[:, ::2])
    assert np.array_equal(encode(array.astype(">f8"), BINARY16), encode(array, BINARY16))
    for function in (encode, ulp, round_to):
        assert function(1.5, BINARY16).shape == () and isinstance(function(1.5, BINARY16), np.ndarray)
        assert function([], BINARY16).shape == (0,)
    assert decode(np.zeros((0, 2), np.uint16), BINARY16).shape == (0, 2)
    assert int(encode(True, BINARY16)) == int(encode(1, BINARY16)) == 0x3C00
    assert [encode(0.0, format).dtype for format in FORMATS] == [np.uint32, np.uint16, np.uint16, np.uint8, np.uint8]


@pytest.mark.parametrize("wrong", ["1.0", 1j, np.longdouble(1), None, 2**53 + 1, -(2**63), [Fraction(1, 3)]], ids=repr)
def test_what_binary64_does_not_hold_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="; try: an array of float64"):
        encode(wrong, BINARY16)


def test_wrong_patterns_and_roundings_are_refused() -> None:
    for wrong, words in (([1.0], "no integers"), ([-1], "does not fit"), (0x10000, "16 bits of binary16")):
        with pytest.raises(InputError, match=words):
            decode(wrong, BINARY16)
    with pytest.raises(UsageError, match="'up' is not known; try: one of nearest-even"):
        encode(1.0, BINARY16, "up")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs a generator"):
        encode(1.0, BINARY16, "stochastic")


# Stochastic rounding


@each
def test_stochastic_rounding_is_unbiased_and_stays_beside(format: Format) -> None:
    rng = np.random.default_rng(7)
    low = rng.integers(0, format.max_pattern, 40)
    below, above = decode(low, format), decode(low + 1, format)
    share = rng.random(40)
    values = below + share * (above - below)
    sign = rng.choice([-1.0, 1.0], 40)
    drawn = round_to(np.broadcast_to(sign * values, (20_000, 40)), format, "stochastic", rng)
    up = np.abs(drawn) == above
    assert np.all(up | (np.abs(drawn) == below))
    exact = (values - below) / (above - below)  # what binary64 made of `share`
    deviation = np.sqrt(exact * (1 - exact) / 20_000)
    assert np.all(np.abs(up.mean(0) - exact) < 4.5 * deviation + 1e-12)


def test_stochastic_rounding_is_reproducible() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    one, two, other = (encode(values, BFLOAT16, "stochastic", np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    mixed = np.concatenate([[np.nan, np.inf, 1.0], values])  # one draw each, whatever they are
    rng = np.random.default_rng(3)
    rng.random(3)
    assert np.array_equal(
        encode(mixed, BFLOAT16, "stochastic", np.random.default_rng(3))[3:], encode(values, BFLOAT16, "stochastic", rng)
    )


def test_stochastic_rounding_below_and_beyond_all_numbers() -> None:
    rng = np.random.default_rng(0)
    tiny = np.full(20_000, BINARY16.min_subnormal / 4)
    assert round_to(tiny, BINARY16, "stochastic", rng).mean() == pytest.approx(tiny[0], rel=0.05)
    assert not np.any(encode(np.full(1000, 1e-300), BINARY16, "stochastic", rng))
    top = round_to(np.full(20_000, 65504.0 + 8), BINARY16, "stochastic", rng)
    assert set(top.tolist()) == {65504.0, np.inf} and np.isinf(top).mean() == pytest.approx(0.25, abs=0.02)


# The package


def test_examples_of_the_docstring() -> None:
    found = doctest.testmod(halfconv.formats, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 20 and found.failed == 0


def test_public_names() -> None:
    assert len(set(halfconv.formats.__all__)) == len(halfconv.formats.__all__)
    for name in halfconv.formats.__all__:
        assert getattr(halfconv.formats, name) is not None


def test_import_loads_numpy_alone() -> None:
    others = ("ml_dtypes", "onnx", "onnx_ir", "scipy", "rich", "click")
    code = f"import sys, halfconv.formats; print([name for name in {others!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
