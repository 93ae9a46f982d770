"""What formats make of one number: the report of ``halfconv formats``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import numpy as np

from halfconv.errors import UsageError
from halfconv.formats.arithmetic import to_odd
from halfconv.formats.codec import Rounding, encode, neighbours, ulp
from halfconv.formats.fields import Fields, fields
from halfconv.formats.layout import BFLOAT16, BINARY16, FORMATS, Format, format_named
from halfconv.formats.trace import Trace, explain_add, explain_multiply

__all__ = ["FormatsReport", "Number", "Stored", "describe", "read_number"]

#: Decimal exponents beyond which numbers are refused: binary64 ends at 308 and −324.
_FAR = 400


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was given.

    Attributes:
        text: The characters.
        nearest: The nearest binary64 number.
        wide: The binary64 number that rounds like the given one: `nearest` if it is exact, else the one beside with the odd last
            bit.
        exact: The number; None for NaN and infinities.
        pattern: The pattern that was given, and its format; None if it is no pattern.
    """

    text: str
    nearest: float
    wide: float
    exact: Fraction | None
    pattern: Fields | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A number in a format.

    Attributes:
        fields: The pattern.
        below: The next smaller number of the format; NaN if there is none.
        above: The next larger one.
        error: What is stored less what was given; NaN where either is.
        relative_error: Its magnitude as a share of what was given; NaN of zero, where there is an error.
        ulps: Its magnitude in ulps at what was given.
        overflows: Whether a finite number is beyond the format's largest, once rounded.
        underflows: Whether a number below the smallest normal one was rounded.
    """

    fields: Fields
    below: float
    above: float
    error: float
    relative_error: float
    ulps: float
    overflows: bool
    underflows: bool

    @property
    def exact(self) -> bool:
        """Whether nothing is lost; never of NaN, which is no number."""
        return self.error == 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        format = self.fields.format
        return {
            "format": format.name, "exponent_bits": format.exponent_bits, "fraction_bits": format.fraction_bits,
            "bias": format.bias, "max": format.max, "min_normal": format.min_normal, "min_subnormal": format.min_subnormal,
            "epsilon": format.epsilon, **self.fields.to_dict(), "below": self.below, "above": self.above, "error": self.error,
            "relative_error": self.relative_error, "ulps": self.ulps, "exact": self.exact, "overflows": self.overflows,
            "underflows": self.underflows,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class FormatsReport:
    """A number in several formats, and operations on it.

    Attributes:
        given: The number.
        rounding: How it, and the result of an operation, was rounded.
        stored: The number in each format.
        operations: Sums and products, step by step.
    """

    given: Number
    rounding: Rounding
    stored: tuple[Stored, ...]
    operations: tuple[Trace, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data: ``halfconv formats --json``."""
        return {
            "schema_version": 1, "given": self.given.text, "number": self.given.nearest, "rounding": self.rounding,
            "formats": [stored.to_dict() for stored in self.stored], "operations": [trace.to_dict() for trace in self.operations],
        }  # fmt: skip


def describe(
    value: str,
    *,
    formats: Sequence[str] = (),
    bits: str | None = None,
    add: str | None = None,
    multiply: str | None = None,
    rounding: Rounding = "nearest-even",
    seed: int = 0,
) -> FormatsReport:
    """Say what formats make of a number, and of a sum and a product with it.

    Args:
        value: The number, in characters.
        formats: Names of the formats; none: all of them, and for operations binary16 and bfloat16.
        bits: The name of a format; the value, and what is added or multiplied, are then patterns of it.
        add: A number to add.
        multiply: A number to multiply by.
        rounding: How the value, and the result of an operation, is rounded; operands are rounded to nearest.
        seed: Of stochastic rounding, for each format anew.

    Returns:
        The report.

    Raises:
        UsageError: What should be a number, a pattern or a format is none.
    """
    chosen = tuple(format_named(name) for name in dict.fromkeys(formats))
    pattern_format = None if bits is None else format_named(bits)
    given = read_number(value, pattern_format)
    stored = tuple(_stored(given, format, rounding, seed) for format in chosen or FORMATS)
    wanted = [
        (explain, read_number(text, pattern_format))
        for explain, text in ((explain_add, add), (explain_multiply, multiply))
        if text is not None
    ]
    operations = tuple(
        explain(given.wide, other.wide, format, rounding, np.random.default_rng(seed))
        for explain, other in wanted
        for format in chosen or (BINARY16, BFLOAT16)
    )
    return FormatsReport(given, rounding, stored, operations)


def read_number(text: str, format: Format | None = None) -> Number:
    """Read a number, exactly.

    Args:
        text: A decimal number, ``inf`` or ``nan``; or a pattern, ``0x3c00``.
        format: The pattern's format; None: it is no pattern.

    Returns:
        The number.

    Raises:
        UsageError: It is neither, or too far beyond binary64's range.
    """
    if format is not None:
        return _read_pattern(text, format)
    try:
        nearest = float(text)
    except ValueError:
        raise UsageError(f"{text!r} is no number", "3.14159, -0, inf or nan; for a bit pattern 0x3c00 --bits binary16") from None
    if nearest != nearest or "inf" in text.lower():
        return Number(text, nearest, nearest, None)
    try:
        digits = Decimal(text.strip())
        far = bool(digits) and not -_FAR < digits.adjusted() < _FAR
    except InvalidOperation:  # the exponent has too many digits
        far = True
    if far:
        raise UsageError(f"{text!r} is far beyond the range of every format", f"a number between 1e-{_FAR} and 1e{_FAR}")
    exact = Fraction(digits) if digits else Fraction(0)
    bound = math.copysign(min(abs(nearest), sys.float_info.max), nearest)
    lost = np.float64((exact > Fraction(bound)) - (exact < Fraction(bound)))
    return Number(text, nearest, float(to_odd(np.asarray(bound), np.asarray(lost))), exact)


def _read_pattern(text: str, format: Format) -> Number:
    try:
        pattern = int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is no bit pattern", "0x3c00, 0b11110000000000 or 15360") from None
    if pattern < 0 or pattern >> format.width:
        raise UsageError(f"{text!r} does not fit the {format.width} bits of {format.name}", "another format for --bits")
    known = fields(pattern, format)
    return Number(text, known.value, known.value, Fraction(known.value) if math.isfinite(known.value) else None, known)


def _stored(given: Number, format: Format, rounding: Rounding, seed: int) -> Stored:
    if given.pattern is not None and given.pattern.format == format:
        known = given.pattern  # a NaN's payload is shown, not dropped
    else:
        known = fields(int(encode(given.wide, format, rounding, np.random.default_rng(seed))), format)
    below, above = (float(beside) for beside in neighbours(known.value, format))
    if given.exact is None or not math.isfinite(known.value):
        far = 0.0 if known.value == given.nearest else known.value - given.wide
        return Stored(known, below, above, far, abs(far), abs(far), given.exact is not None, False)
    error = Fraction(known.value) - given.exact
    relative = abs(error / given.exact) if given.exact else error
    ulps = abs(error) / Fraction(float(ulp(given.wide, format)))
    overflows = abs(given.exact) >= Fraction(format.max) + Fraction(float(ulp(format.max, format)))
    underflows = error != 0 and abs(given.exact) < Fraction(format.min_normal)
    return Stored(known, below, above, _float(error), _float(relative), _float(ulps), overflows, underflows)


def _float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)
