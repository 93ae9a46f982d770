"""Binary floating-point formats as data: how many bits for what, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from halfconv.errors import UsageError

__all__ = ["BFLOAT16", "BINARY16", "BINARY32", "FLOAT8_E4M3FN", "FLOAT8_E5M2", "FORMATS", "Format", "format_named"]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format: a sign bit, then a biased exponent, then the fraction of the significand.

    A number whose exponent field is ``e`` and whose fraction field is ``f`` is ±(1 + f·2^−fraction_bits)·2^(e − bias); with ``e`` =
    0 it is subnormal or zero, ±(f·2^−fraction_bits)·2^(1 − bias). A *pattern* is all the bits as an unsigned integer; patterns
    without their sign bit are ordered as the magnitudes are.

    Attributes:
        name: IEEE 754's name, or the one that ONNX and ml_dtypes use.
        exponent_bits: Width of the exponent field.
        fraction_bits: Width of the fraction field; the significand's leading bit is not stored.
        infinities: Whether the largest exponent field holds infinities and NaNs, as IEEE 754 has it. Otherwise it holds numbers as
            others do, there is no infinity, and only the pattern of all ones is NaN, once with each sign.

    Sources: IEEE 754-2019, 3.4 and 3.6; for float8 "FP8 Formats for Deep Learning", arXiv:2209.05433, table 1.
    """

    name: str
    exponent_bits: int
    fraction_bits: int
    infinities: bool = True

    @property
    def width(self) -> int:
        """Bits of a pattern."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def precision(self) -> int:
        """Bits of the significand, the implicit one included."""
        return self.fraction_bits + 1

    @property
    def bias(self) -> int:
        """What is added to an exponent to store it."""
        return (1 << self.exponent_bits - 1) - 1

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest number."""
        return self.bias if self.infinities else self.bias + 1

    @property
    def max_pattern(self) -> int:
        """The pattern of the largest number."""
        return self.overflow_pattern - 1

    @property
    def overflow_pattern(self) -> int:
        """The pattern that stands for all that is too large: +infinity, or NaN in a format without infinities."""
        every = (1 << self.width - 1) - 1
        return every >> self.fraction_bits << self.fraction_bits if self.infinities else every

    @property
    def nan_pattern(self) -> int:
        """The canonical NaN: positive, quiet, without a payload."""
        return self.overflow_pattern | 1 << self.fraction_bits - 1

    @property
    def max(self) -> float:
        """The largest finite number."""
        fraction = self.max_pattern & (1 << self.fraction_bits) - 1
        return (1 + fraction * self.epsilon) * 2.0**self.max_exponent

    @property
    def overflow(self) -> float:
        """Half an ulp beyond the largest number: what is greater overflows when rounded to nearest.

        So does this number itself, a tie, where the format has infinities: the largest number is then odd.
        """
        return self.max + 2.0 ** (self.max_exponent - self.precision)

    @property
    def min_normal(self) -> float:
        """The smallest number of full precision."""
        return float(2.0**self.min_exponent)

    @property
    def min_subnormal(self) -> float:
        """The smallest number above zero, and the distance between subnormal ones."""
        return float(2.0 ** (self.min_exponent - self.fraction_bits))

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number."""
        return float(2.0**-self.fraction_bits)


#: FP32: IEEE 754's single precision.
BINARY32 = Format("binary32", 8, 23)
#: FP16: IEEE 754's half precision.
BINARY16 = Format("binary16", 5, 10)
#: BF16: the upper half of binary32.
BFLOAT16 = Format("bfloat16", 8, 7)
#: "fn": finite numbers and NaN only.
FLOAT8_E4M3FN = Format("float8_e4m3fn", 4, 3, infinities=False)
#: The upper half of binary16.
FLOAT8_E5M2 = Format("float8_e5m2", 5, 2)
FORMATS = (BINARY32, BINARY16, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UsageError: There is none of that name.
    """
    for known in FORMATS:
        if known.name == name:
            return known
    raise UsageError(f"no number format is called {name!r}", f"one of {', '.join(known.name for known in FORMATS)}")
