"""One addition or multiplication in a format, step by step, in exact integers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from halfconv.errors import UsageError
from halfconv.formats.arithmetic import add, multiply
from halfconv.formats.codec import ROUNDINGS, Rounding, encode
from halfconv.formats.fields import Fields, fields
from halfconv.formats.layout import Format

__all__ = ["Rounded", "Step", "Trace", "explain_add", "explain_multiply"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step, in words.

    Attributes:
        name: What is done.
        text: What comes of it.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Rounded:
    """How an exact result other than zero became one of the format.

    Attributes:
        significands: Of a sum both operands' significands, signed, brought to the same exponent; of a product as they are.
        exact: Their sum or product.
        scale: The exponent of the exact result's last bit: the result is exact·2^scale.
        exponent: The exponent of its leading bit.
        kept: The leading bits that the format has room for, as an integer; fewer for a subnormal result.
        guard: The first bit that is dropped.
        round: The second one.
        sticky: Whether any bit after these is 1.
        up: Whether the magnitude is rounded up.
        carry: Whether that moves the leading bit.
        overflows: Whether what is rounded is beyond the format's largest number.
        why: Why up or not, in words.
    """

    significands: tuple[int, int]
    exact: int
    scale: int
    exponent: int
    kept: int
    guard: int
    round: int
    sticky: int
    up: bool
    carry: bool
    overflows: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data, with significands in binary, which may have hundreds of bits."""
        return {
            "significands": [f"{part:b}" for part in self.significands], "exact": f"{self.exact:b}", "scale": self.scale,
            "exponent": self.exponent, "kept": f"{self.kept:b}", "guard": self.guard, "round": self.round, "sticky": self.sticky,
            "up": self.up, "carry": self.carry, "overflows": self.overflows, "why": self.why,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trace:
    """An operation on two numbers of a format.

    Attributes:
        operation: ``add`` or ``multiply``.
        rounding: How the result is rounded.
        a: The first operand, as it is stored.
        b: The second one.
        rounded: How the exact result was rounded; None where there is none (NaN, infinities), or it is zero.
        result: The result.
        steps: All of it in words.
    """

    operation: str
    rounding: Rounding
    a: Fields
    b: Fields
    rounded: Rounded | None
    result: Fields
    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as JSON data."""
        return {
            "operation": self.operation, "format": self.result.format.name, "rounding": self.rounding, "a": self.a.to_dict(),
            "b": self.b.to_dict(), "rounded": self.rounded.to_dict() if self.rounded else None, "result": self.result.to_dict(),
            "steps": [{"name": step.name, "text": step.text} for step in self.steps],
        }  # fmt: skip


def explain_add(
    a: float, b: float, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> Trace:
    """Add two numbers as `halfconv.formats.add` does, and say how.

    Args:
        a: A number, rounded to nearest on the way into the format.
        b: Another one.
        format: The format of operands and result.
        rounding: How the sum is rounded.
        rng: Where stochastic rounding draws from, once.

    Returns:
        Operands, aligned significands, exact sum, guard, round and sticky bits, decision and result.

    Raises:
        UsageError: The rounding is unknown, or stochastic without a generator.
    """
    left, right, draw = _operands(a, b, format, rounding, rng)
    if not (np.isfinite(left.value) and np.isfinite(right.value)):
        result = fields(int(encode(add(left.value, right.value, format), format)), format)
        why = "infinities of opposite signs have no sum" if result.kind == "nan" else "whatever is added to infinity"
        return _special("add", rounding, left, right, result, why)
    scale = min(left.scale, right.scale)
    one, other = (_signed(part) << part.scale - scale for part in (left, right))
    if one + other == 0:
        negative = left.sign & right.sign
        why = "the sum of two negative zeros is −0" if negative else "a sum that is exactly zero is +0"
        return _special("add", rounding, left, right, fields(negative << format.width - 1, format), why)
    rounded = _round((one, other), one + other, scale, format, rounding, draw)
    shift = abs(left.scale - right.scale)
    top = max(max(abs(one), abs(other)).bit_length() - 1 + scale, format.min_exponent)
    aligned = f"{_point(one, scale, top)} and {_point(other, scale, top)}, times 2^{top}"
    shifted = f"{'a' if left.scale < right.scale else 'b'} is shifted by {shift}" if shift else "the exponents are equal"
    first = Step("align", f"{aligned} ({shifted})")
    return _finite(
        "add", rounding, left, right, rounded, (first, Step("exact sum", f"{_point(one + other, scale, top)} · 2^{top}"))
    )


def explain_multiply(
    a: float, b: float, format: Format, rounding: Rounding = "nearest-even", rng: np.random.Generator | None = None
) -> Trace:
    """Multiply two numbers as `halfconv.formats.multiply` does, and say how.

    Args:
        a: A number, rounded to nearest on the way into the format.
        b: Another one.
        format: The format of operands and result.
        rounding: How the product is rounded.
        rng: Where stochastic rounding draws from, once.

    Returns:
        Operands, significands, exact product, guard, round and sticky bits, decision and result.

    Raises:
        UsageError: The rounding is unknown, or stochastic without a generator.
    """
    left, right, draw = _operands(a, b, format, rounding, rng)
    if not (np.isfinite(left.value) and np.isfinite(right.value)):
        result = fields(int(encode(multiply(left.value, right.value, format), format)), format)
        why = "zero times infinity has no value" if result.kind == "nan" else "whatever infinity is multiplied by"
        return _special("multiply", rounding, left, right, result, why)
    one, other = _signed(left), _signed(right)
    if one * other == 0:
        sign = left.sign ^ right.sign
        result = fields(sign << format.width - 1, format)
        return _special("multiply", rounding, left, right, result, "zero, with the product of the signs")
    scale = left.scale + right.scale
    rounded = _round((one, other), one * other, scale, format, rounding, draw)
    exponents = [part.scale + format.fraction_bits for part in (left, right)]
    first = Step("add exponents", f"{exponents[0]} + {exponents[1]} = {sum(exponents)}")
    product = Step("exact product", f"{_point(one * other, scale, sum(exponents))} · 2^{sum(exponents)}")
    return _finite("multiply", rounding, left, right, rounded, (first, product))


def _operands(
    a: float, b: float, format: Format, rounding: Rounding, rng: np.random.Generator | None
) -> tuple[Fields, Fields, Fraction]:
    """Return both operands as they are stored, and the draw of stochastic rounding."""
    if rounding not in ROUNDINGS:
        raise UsageError(f"rounding {rounding!r} is not known", f"one of {', '.join(ROUNDINGS)}")
    if rounding == "stochastic" and rng is None:
        raise UsageError("stochastic rounding needs a generator", "rng=numpy.random.default_rng(seed)")
    draw = Fraction(rng.random()) if rounding == "stochastic" and rng is not None else Fraction(0)
    left, right = (fields(int(encode(number, format)), format) for number in (a, b))
    return left, right, draw


def _round(
    significands: tuple[int, int], exact: int, scale: int, format: Format, rounding: Rounding, draw: Fraction
) -> Rounded:  # fmt: skip
    magnitude = abs(exact)
    exponent = magnitude.bit_length() - 1 + scale
    last = max(exponent, format.min_exponent) - format.fraction_bits  # the exponent of the last bit that is kept
    dropped = last - scale
    if dropped <= 0:
        kept, rest, dropped = magnitude << -dropped, 0, 0
    else:
        kept, rest = magnitude >> dropped, magnitude & (1 << dropped) - 1
    guard, second = (rest << 2 >> dropped) >> 1, (rest << 2 >> dropped) & 1
    sticky = int((rest << 2) & (1 << dropped) - 1 != 0)
    share = Fraction(rest, 1 << dropped)
    half = Fraction(1, 2)
    if rest == 0:
        up, why = False, "nothing is dropped: the result is exact"
    elif rounding == "toward-zero":
        up, why = False, "what is dropped is not looked at"
    elif rounding == "stochastic":
        up = draw < share
        why = f"{float(share):.4g} ulp is dropped, and {float(draw):.4g} was drawn: {'up' if up else 'not up'}"
    elif share == half:
        up = bool(kept & 1)
        why = f"a tie, half an ulp is dropped: {'up' if up else 'not up'}, so that the last bit is even"
    else:
        up = share > half
        why = f"{'more' if up else 'less'} than half an ulp is dropped: {'up' if up else 'not up'}"
    carry = up and (kept + 1).bit_length() > kept.bit_length() and kept > 0
    overflows = _pattern(kept + up, exponent, format) > format.max_pattern
    return Rounded(significands, exact, scale, exponent, kept, guard, second, sticky, up, carry, overflows, why)


def _pattern(kept: int, exponent: int, format: Format) -> int:
    """Return the pattern of a magnitude, which may be too large for the format; a carry moves into the exponent by itself."""
    return (max(exponent, format.min_exponent) + format.bias - 1 << format.fraction_bits) + kept


def _finite(
    operation: str, rounding: Rounding, a: Fields, b: Fields, rounded: Rounded, before: tuple[Step, ...]
) -> Trace:  # fmt: skip
    format = a.format
    pattern = _pattern(rounded.kept + rounded.up, rounded.exponent, format)
    if rounded.overflows:
        pattern = format.max_pattern if rounding == "toward-zero" else format.overflow_pattern
    result = fields(pattern | (rounded.exact < 0) << format.width - 1, format)
    top = max(rounded.exponent, format.min_exponent)
    steps = [*_stored(a, b), *before]
    words = f"{_point(rounded.exact, rounded.scale, rounded.exponent)} · 2^{rounded.exponent}"
    steps.append(Step("normalise", words))
    if rounded.exponent < top:
        steps.append(Step("denormalise", f"{_point(rounded.exact, rounded.scale, top)} · 2^{top}, where exponents end"))
    kept = _point(rounded.kept, top - format.fraction_bits, top).lstrip("+")
    steps.append(Step("keep", f"{kept}; guard {rounded.guard}, round {rounded.round}, sticky {rounded.sticky}"))
    steps.append(Step("round", rounded.why + ("; the carry moves the leading bit" if rounded.carry else "")))
    if rounded.overflows:
        steps.append(Step("overflow", f"{format.name} ends at {format.max:g}"))
    return Trace(operation, rounding, a, b, rounded, result, (*steps, Step("result", _words(result))))


def _special(operation: str, rounding: Rounding, a: Fields, b: Fields, result: Fields, why: str) -> Trace:
    if "nan" in (a.kind, b.kind):
        why = "NaN in, NaN out"
    steps = (*_stored(a, b), Step("special", why), Step("result", _words(result)))
    return Trace(operation, rounding, a, b, None, result, steps)


def _stored(a: Fields, b: Fields) -> tuple[Step, Step]:
    return Step("a", _words(a)), Step("b", _words(b))


def _words(part: Fields) -> str:
    known = f"{part.bits}  {part.hex}  "
    if part.kind in ("nan", "infinity", "zero"):
        return f"{known}{part.value!r}"
    exponent = part.scale + part.format.fraction_bits
    return f"{known}{_point(_signed(part), part.scale, exponent)} · 2^{exponent} = {part.value!r}"


def _signed(part: Fields) -> int:
    return -part.significand if part.sign else part.significand


def _point(number: int, scale: int, exponent: int) -> str:
    """Write number·2^scale in binary as a multiple of 2^exponent, with long runs of zeros counted."""
    places = max(exponent - scale, 0)
    digits = f"{abs(number) << max(scale - exponent, 0):0{places + 1}b}"
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :]
    fraction = re.sub("0{25,}", lambda run: f"…{len(run[0])} zeros…", fraction)
    return f"{'−' if number < 0 else '+'}{whole}{'.' * bool(fraction)}{fraction}"
