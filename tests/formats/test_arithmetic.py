"""Sums and products: against exact fractions, against numpy, and against their own steps."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.errors import UsageError
from halfconv.formats import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    FLOAT8_E4M3FN,
    FORMATS,
    Format,
    Trace,
    add,
    decode,
    encode,
    explain_add,
    explain_multiply,
    multiply,
)
from tests.formats.reference import DTYPES, SMALL, cast, nearest, numbers, patterns, same, truncated

each_small = pytest.mark.parametrize("format", SMALL, ids=lambda format: format.name)
each_operation = pytest.mark.parametrize("operation", ["add", "multiply"])
VECTORS = {"add": add, "multiply": multiply}
TRACES = {"add": explain_add, "multiply": explain_multiply}
NUMPY = {"add": np.add, "multiply": np.multiply}
SPECIAL = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan)


def exactly(operation: str, a: float, b: float) -> Fraction:
    return Fraction(a) + Fraction(b) if operation == "add" else Fraction(a) * Fraction(b)


def pairs(format: Format, count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pairs of finite numbers: any two, and two of like magnitude."""
    rng = np.random.default_rng(seed)
    one = rng.integers(0, format.max_pattern + 1, count)
    near = np.clip(one + rng.integers(-3 << format.fraction_bits, 3 << format.fraction_bits, count), 0, format.max_pattern)
    other = np.where(rng.random(count) < 0.5, near, rng.integers(0, format.max_pattern + 1, count))
    signs = rng.integers(0, 2, (2, count)) << format.width - 1
    return decode(one | signs[0], format), decode(other | signs[1], format)


@each_operation
@each_small
def test_exact_and_rounded_once(operation: str, format: Format) -> None:
    a, b = pairs(format, 2000, 1)
    near = encode(VECTORS[operation](a, b, format), format)
    cut = encode(VECTORS[operation](a, b, format, "toward-zero"), format)
    for one, other, got, short in zip(a.tolist(), b.tolist(), near.tolist(), cut.tolist(), strict=True):
        exact = exactly(operation, one, other)
        if exact:
            assert got == nearest(exact, format)
            assert short == truncated(exact, format)


@each_operation
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero", "stochastic"])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_steps_come_to_the_same(operation: str, rounding: Any, format: Format) -> None:
    a, b = pairs(format, 120, 2)
    for one, other in [*zip(a.tolist(), b.tolist(), strict=True), *itertools.product(SPECIAL, SPECIAL)]:
        ours = VECTORS[operation](one, other, format, rounding, np.random.default_rng(5))
        trace = TRACES[operation](one, other, format, rounding, np.random.default_rng(5))
        assert trace.result.pattern == int(encode(ours, format)), (one, other)
        check(trace, one, other)


def check(trace: Trace, a: float, b: float) -> None:
    """That the parts of a trace fit each other."""
    format = trace.result.format
    assert [step.name for step in trace.steps[:2]] == ["a", "b"] and trace.steps[-1].name == "result"
    if trace.rounded is None:
        assert trace.result.kind in ("nan", "infinity", "zero")
        return
    part = trace.rounded
    exact = exactly(trace.operation, trace.a.value, trace.b.value)
    assert part.exact * Fraction(2) ** part.scale == exact
    one, other = part.significands
    assert part.exact == (one + other if trace.operation == "add" else one * other)
    assert Fraction(2) ** part.exponent <= abs(exact) < Fraction(2) ** (part.exponent + 1)
    last = max(part.exponent, format.min_exponent) - format.fraction_bits
    rest = abs(exact) / Fraction(2) ** last - part.kept
    assert 0 <= rest < 1
    assert (part.guard, part.round) == (int(rest * 2), int(rest * 4) % 2)
    assert part.sticky == (rest * 4 % 1 != 0)
    if not part.overflows:
        assert abs(Fraction(trace.result.value)) == (part.kept + part.up) * Fraction(2) ** last
    if trace.rounding == "nearest-even":
        assert part.up == bool(part.guard and (part.round or part.sticky or part.kept & 1))


@each_operation
def test_numpys_half_agrees(operation: str) -> None:
    """numpy computes in float32 and rounds again, which for sums and products of halves comes to the same."""
    rng = np.random.default_rng(3)
    a, b = (patterns(BINARY16)[rng.integers(0, 1 << 16, 1_000_000)].view(np.float16) for _ in range(2))
    with np.errstate(all="ignore"):
        theirs = NUMPY[operation](a, b).astype(np.float64)
    ours = VECTORS[operation](a, b, BINARY16)
    number = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~number)
    assert same(ours[number], theirs[number])


@each_operation
@pytest.mark.parametrize("format", SMALL[2:], ids=lambda format: format.name)
def test_all_pairs_of_float8_agree(operation: str, format: Format) -> None:
    every = numbers(format)
    with np.errstate(all="ignore"):
        theirs = NUMPY[operation](every[:, None], every[None, :]).astype(np.float64)
    ours = VECTORS[operation](every[:, None], every[None, :], format)
    assert np.array_equal(ours, theirs, equal_nan=True)
    number = ~np.isnan(theirs)
    assert np.array_equal(np.signbit(ours)[number], np.signbit(theirs)[number])


@each_operation
@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=100))
def test_float32_agrees(operation: str, bits: list[tuple[int, int]]) -> None:
    a, b = np.array(bits, np.uint32).T.copy().view(np.float32)
    with np.errstate(all="ignore"):
        theirs = NUMPY[operation](a, b)
        ours = VECTORS[operation](a, b, BINARY32)
    assert np.array_equal(ours, theirs.astype(np.float64), equal_nan=True)
    number = ~np.isnan(theirs)
    assert np.array_equal(np.signbit(ours)[number], np.signbit(theirs)[number])


@each_operation
def test_bfloat16_agrees_with_ml_dtypes(operation: str) -> None:
    a, b = pairs(BFLOAT16, 200_000, 4)
    one, other = (cast(part, BFLOAT16).view(DTYPES["bfloat16"]) for part in (a, b))
    with np.errstate(all="ignore"):
        theirs = NUMPY[operation](one, other).astype(np.float64)
    assert same(VECTORS[operation](a, b, BFLOAT16), theirs)


# Cases


def test_a_sum_that_binary64_does_not_hold() -> None:
    assert float(add(1.0, -(2.0**-100), BFLOAT16)) == 1.0
    assert float(add(1.0, -(2.0**-100), BFLOAT16, "toward-zero")) == 1 - 2.0**-8
    above = 1 + 2.0**-7
    tie = float(decode(0x3B80, BFLOAT16))  # 2^-8, half an ulp of 1
    assert float(add(1.0, tie, BFLOAT16)) == 1.0 and float(add(above, tie, BFLOAT16)) == 1 + 2.0**-6


def test_signs_of_zero_and_of_nan() -> None:
    assert not np.signbit(add(1.0, -1.0, BINARY16)) and not np.signbit(add(-0.0, 0.0, BINARY16))
    assert np.signbit(add(-0.0, -0.0, BINARY16)) and np.signbit(multiply(-0.0, 3.0, BINARY16))
    assert np.signbit(multiply(-1e-7, 1e-7, BINARY16))
    for got in (add(np.inf, -np.inf, BINARY16), multiply(0.0, -np.inf, BINARY16), add(-np.nan, 1.0, BINARY16)):
        assert np.isnan(got) and not np.signbit(got)


def test_operands_are_stored_first() -> None:
    assert float(add(0.1, 0.2, BINARY16)) == float(np.float16(0.1) + np.float16(0.2)) == 0.2998046875
    assert float(multiply(70000.0, 0.5, BINARY16)) == math.inf
    assert add([[1.0], [2.0]], [1.0, 2.0, 3.0], BINARY16).tolist() == [[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]


def test_overflow_of_a_format_without_infinities() -> None:
    assert math.isnan(float(multiply(448.0, 2.0, FLOAT8_E4M3FN)))
    assert float(multiply(448.0, 2.0, FLOAT8_E4M3FN, "toward-zero")) == 448.0
    trace = explain_multiply(448.0, 2.0, FLOAT8_E4M3FN)
    assert trace.rounded is not None and trace.rounded.overflows and trace.result.kind == "nan"


def test_steps_in_words() -> None:
    words = {step.name: step.text for step in explain_add(0.1, 0.2, BINARY16).steps}
    assert list(words) == ["a", "b", "align", "exact sum", "normalise", "keep", "round", "result"]
    assert words["exact sum"] == "+10.01100110010 · 2^-3"
    assert words["keep"] == "1.0011001100; guard 1, round 0, sticky 0"
    assert words["round"].startswith("a tie") and words["result"].endswith("= 0.2998046875")
    carried = explain_add(2047.0, 0.5, BINARY16).rounded
    assert carried is not None and carried.carry and carried.up
    assert "99 zeros" not in str(explain_add(1.0, 1.0, BINARY16).steps)
    assert "zeros…" in str(explain_add(1e30, 1.0, BFLOAT16).steps)
    assert "denormalise" in {step.name for step in explain_multiply(1e-4, 1e-3, BINARY16).steps}
    assert {step.name: step.text for step in explain_add(math.inf, -math.inf, BINARY16).steps}["special"].startswith("infinities")


def test_unknown_roundings_are_refused() -> None:
    for call in (add, multiply, explain_add, explain_multiply):
        with pytest.raises(UsageError, match="'up' is not known"):
            call(1.0, 2.0, BINARY16, "up")  # type: ignore[operator]
        with pytest.raises(UsageError, match="needs a generator"):
            call(1.0, 2.0, BINARY16, "stochastic")  # type: ignore[operator]
