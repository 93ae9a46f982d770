"""The two half-precision formats, and the numbers that rules about them rest on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from halfconv.errors import UsageError
from halfconv.precision.weights import HALF_MAX, HALF_MIN_NORMAL

__all__ = ["BF16", "BOTH", "FORMATS", "FP16", "HalfFormat", "format_of"]


@dataclass(frozen=True, slots=True)
class HalfFormat:
    """A format.

    Attributes:
        name: What ``--to`` takes.
        dtype: ONNX's type.
        half: What reasons call it inside a sentence.
        precision: What reasons call it as a subject.
        whole: Whole numbers are exact up to here.
        sentinel: From here on an ulp exceeds 0.5, and what is added to a mask loses its digits.
        weight_error: A weight whose rounding error exceeds this share of its norm stays FP32: ten times what rounding normal
            numbers costs at most (2⁻¹¹ or 2⁻⁸), so most of its energy is in numbers that flush or keep a few bits.
        targets: The only targets with kernels for it; empty: all have some.
    """

    name: str
    dtype: ir.DataType
    half: str
    precision: str
    whole: int
    sentinel: float
    weight_error: float
    targets: tuple[str, ...] = ()

    @property
    def max(self) -> float:
        """The largest number."""
        return HALF_MAX[self.dtype]

    @property
    def min_normal(self) -> float:
        """The smallest number of full precision."""
        return HALF_MIN_NORMAL[self.dtype]

    def check_target(self, target: str) -> None:
        """Refuse a target that runs nothing in this format.

        Raises:
            UsageError: Naming those that do.
        """
        if self.targets and target not in self.targets:
            raise UsageError(
                f"--to {self.name}: the target {target!r} has no {self.half} kernels", f"--target {self.targets[1]}, or --to fp16"
            )

    def word(self, text: str) -> str:
        """Fill ``{half}``, ``{precision}`` and ``{whole}`` into a reason."""
        return text.format(half=self.half, precision=self.precision, whole=f"{self.whole:,}")


#: 11 bits of precision; ends at 65,504.
FP16 = HalfFormat("fp16", ir.DataType.FLOAT16, "half", "half precision", 2048, 1000.0, 5e-3)
#: 8 bits of precision, and the range of FP32. Of ONNX Runtime's providers only NVIDIA's run it.
BF16 = HalfFormat("bf16", ir.DataType.BFLOAT16, "BF16", "BF16", 256, 125.0, 4e-2,
                  targets=("portable", "cuda", "tensorrt"))  # fmt: skip
FORMATS = {known.name: known for known in (FP16, BF16)}
#: The formats of a rule about precision; one about range is about FP16 alone.
BOTH = (FP16, BF16)


def format_of(dtype: ir.DataType) -> HalfFormat:
    """Return the format of FLOAT16 or BFLOAT16."""
    return FP16 if dtype == FP16.dtype else BF16
