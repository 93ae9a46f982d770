"""One pattern of a format, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfconv.formats.codec import decode
from halfconv.formats.layout import Format

__all__ = ["Fields", "fields"]


@dataclass(frozen=True, slots=True)
class Fields:
    """What a pattern of a format holds.

    Attributes:
        format: The format.
        pattern: All the bits as an unsigned integer.
        sign: The sign bit: 1 for negative numbers, and for −0.
        exponent: The exponent field, with the bias.
        fraction: The fraction field.
        value: The number.
        kind: ``zero``, ``subnormal``, ``normal``, ``infinity`` or ``nan``.
    """

    format: Format
    pattern: int
    sign: int
    exponent: int
    fraction: int
    value: float
    kind: str

    @property
    def significand(self) -> int:
        """The significand of a finite number as an integer, the leading bit included: the number is ±significand·2^`scale`."""
        return self.fraction | (self.exponent > 0) << self.format.fraction_bits

    @property
    def scale(self) -> int:
        """The exponent of the significand's last bit, for a finite number."""
        return max(self.exponent, 1) - self.format.bias - self.format.fraction_bits

    @property
    def bits(self) -> str:
        """Sign, exponent and fraction in binary, with blanks between: ``0 10000 1001001000``."""
        return f"{self.sign} {self.exponent:0{self.format.exponent_bits}b} {self.fraction:0{self.format.fraction_bits}b}"

    @property
    def hex(self) -> str:
        """The pattern, in hexadecimal digits: ``0x4248``."""
        return f"0x{self.pattern:0{self.format.width // 4}x}"

    def to_dict(self) -> dict[str, Any]:
        """Return the pattern and its fields as JSON data."""
        return {
            "pattern": self.hex, "bits": self.bits, "sign": self.sign, "exponent": self.exponent, "fraction": self.fraction,
            "kind": self.kind, "value": self.value,
        }  # fmt: skip


def fields(pattern: int, format: Format) -> Fields:
    """Take a pattern apart.

    Args:
        pattern: The bits as an unsigned integer.
        format: The format.

    Returns:
        Its fields.

    Raises:
        InputError: The pattern does not fit the format.
    """
    value = float(decode(pattern, format))
    magnitude = pattern & (1 << format.width - 1) - 1
    exponent, fraction = magnitude >> format.fraction_bits, magnitude & (1 << format.fraction_bits) - 1
    if value != value:
        kind = "nan"
    elif value - value != 0:
        kind = "infinity"
    elif exponent:
        kind = "normal"
    else:
        kind = "subnormal" if fraction else "zero"
    return Fields(format, pattern, pattern >> format.width - 1, exponent, fraction, value, kind)
