"""Convert weights to half precision, and know what that changes.

Rounding is to nearest, ties to even. A finite number beyond the format's largest saturates there with its sign kept;
infinities and NaN stay what they are. A number too small for the format's smallest subnormal becomes a zero of its sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from halfconv.graph.blocks import BlockTensor, blocks

__all__ = [
    "HALF_MAX", "HALF_MIN_NORMAL", "HALF_OVERFLOW", "HALF_TINY", "HalfTensor", "RoundingStats", "rounding_stats", "to_half"
]  # fmt: skip

_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
#: Largest finite number of each format: (2 − 2⁻¹⁰)·2¹⁵ and (2 − 2⁻⁷)·2¹²⁷.
HALF_MAX = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: (2 - 2.0**-7) * 2.0**127}
#: Smallest normal number of each format; below it precision is lost bit by bit.
HALF_MIN_NORMAL = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
#: Smallest subnormal number of each format.
HALF_TINY = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133}
#: From here on a finite number rounds to infinity: half an ulp beyond the largest.
HALF_OVERFLOW = {ir.DataType.FLOAT16: 65520.0, ir.DataType.BFLOAT16: (2 - 2.0**-8) * 2.0**127}
#: Bits of a significand, the implicit one included.
DIGITS = {ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8}
#: Elements looked at in one step, so that temporary arrays stay in a core's cache whatever the weight's size.
CHUNK = 1 << 16
#: The FP32 bits of the smallest number that overflows FP16.
_OVERFLOW_BITS = np.float32(65520.0).view(np.uint32)
#: Largest magnitudes between which sums of squares in FP32 keep their digits.
_PLAIN = (1e-10, 1e15)


@dataclass(frozen=True, slots=True)
class RoundingStats:
    """What half precision does to one weight.

    Attributes:
        size: Number of elements.
        absmax: Largest finite magnitude; 0 if there is none.
        saturated: Finite elements beyond the format's largest number.
        flushed: Non-zero elements that become zero.
        nonfinite: Infinite and NaN elements, which stay as they are.
        rel_l2: Relative L2 error of rounding over the finite elements that fit: sqrt(Σ(half(w)−w)² / Σw²).
        lossy: Non-zero elements that lose more than 1 % of their value.
    """

    size: int
    absmax: float
    saturated: int
    flushed: int
    nonfinite: int
    rel_l2: float
    lossy: int


def to_half(array: np.ndarray, to: ir.DataType) -> np.ndarray:
    """Round an FP32 array to half precision, saturating.

    Args:
        array: float32, any shape.
        to: FLOAT16 or BFLOAT16.

    Returns:
        The array in float16 or bfloat16, same shape.
    """
    array = np.asarray(array, np.float32)
    half = np.empty(array.shape, _NUMPY[to])
    flat, bits = np.ascontiguousarray(array).reshape(-1), half.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        round_into(flat[start : start + CHUNK], bits[start : start + CHUNK], to)
    return half


def round_into(part: np.ndarray, out: np.ndarray, to: ir.DataType) -> None:
    """Round some numbers as `to_half` does, without an array of more than a chunk.

    Args:
        part: float32, 1-D, contiguous, of up to `CHUNK` elements.
        out: Where they go: float16 or bfloat16, 1-D, of the same length.
        to: FLOAT16 or BFLOAT16.
    """
    size = part.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if to == ir.DataType.FLOAT16 and size.size and size.max() < _OVERFLOW_BITS:
        out.view(np.uint16)[:] = _fp16_bits(part.view(np.uint32), size)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out[:] = part.astype(_NUMPY[to])
    wrong = np.isinf(out)
    if wrong.any():
        wrong &= np.isfinite(part)
        out[wrong] = np.copysign(np.float32(HALF_MAX[to]), part[wrong]).astype(_NUMPY[to])


def _fp16_bits(bits: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the FP16 bits of finite FP32 numbers below 65,520: numpy's own cast takes three times as long.

    A number is scaled by 2^2 so that what lies below half's last place falls off when a power of two of its own size (or of
    half's smallest normal number) is added: FP32 addition rounds to nearest, ties to even. The method is that of M. Dukhan's FP16
    library (2017).

    Args:
        bits: Their FP32 bits; uint32.
        size: The same without the sign; it is used up.
    """
    scaled = size.view(np.float32) * np.float32(2.0**112)
    scaled *= np.float32(2.0**-110)
    size <<= np.uint32(1)
    size &= np.uint32(0xFF000000)
    np.maximum(size, np.uint32(0x71000000), out=size)
    size >>= np.uint32(1)
    size += np.uint32(0x07800000)
    scaled += size.view(np.float32)
    found = scaled.view(np.uint32)
    np.right_shift(found, np.uint32(13), out=size)
    size &= np.uint32(0x7C00)
    found &= np.uint32(0x0FFF)
    size += found
    np.right_shift(bits, np.uint32(16), out=found)
    found &= np.uint32(0x8000)
    size |= found
    return size


class HalfTensor(BlockTensor):
    """An FP32 tensor rounded to FP16 or BF16."""

    __slots__ = ()

    def compute(self, block: np.ndarray) -> np.ndarray:
        """Round a block."""
        return to_half(block, self.dtype)


def rounding_stats(tensor: ir.TensorProtocol, to: ir.DataType) -> RoundingStats:
    """Measure what half precision does to a weight, in bounded memory."""
    saturated = flushed = nonfinite = lossy = 0
    absmax = error = energy = 0.0
    tiny = HALF_TINY[to] / 2
    parts = (block[start : start + CHUNK] for block in blocks(tensor) for start in range(0, block.size, CHUNK))
    for part in parts:
        size = np.abs(part)
        largest = float(size.max())
        if not math.isfinite(largest):
            finite = np.isfinite(part)
            nonfinite += int(part.size - finite.sum())
            part, size = part[finite], size[finite]
            largest = float(size.max()) if size.size else 0.0
        absmax = max(absmax, largest)
        if largest >= HALF_MAX[to]:
            fits = size < HALF_OVERFLOW[to]
            saturated += int(part.size - fits.sum())
            part, size = part[fits], size[fits]
        if not size.size:
            continue
        top = float(size.max()) or 1.0
        small = size < HALF_MIN_NORMAL[to]
        some = bool(small.any())
        if some:
            flushed += int(((size <= tiny) & (size > 0)).sum())
        if _PLAIN[0] < top < _PLAIN[1]:
            rounding, scale = _errors(size, to), 1.0
            if some:
                rounding[small] = size[small].astype(_NUMPY[to]).astype(np.float32) - size[small]
            scaled, wrong = size, rounding
        else:  # so that squares neither overflow nor underflow in FP32
            rounding, scale = size.astype(_NUMPY[to]).astype(np.float32) - size, top
            scaled, wrong = size / np.float32(top), rounding / np.float32(top)
        energy += float(np.dot(scaled, scaled)) * scale * scale
        error += float(np.dot(wrong, wrong)) * scale * scale
        if some:
            lossy += int((np.abs(rounding[small]) > 0.01 * size[small]).sum())
    rel_l2 = math.sqrt(error / energy) if energy else 0.0
    return RoundingStats(tensor.size, absmax, saturated, flushed, nonfinite, rel_l2, lossy)


def _errors(size: np.ndarray, to: ir.DataType) -> np.ndarray:
    """Return the rounding errors of numbers in half's normal range, in FP32 arithmetic alone (T. J. Dekker's splitting, 1971)."""
    shifted = size * np.float32(2.0 ** (24 - DIGITS[to]) + 1)
    rounded = shifted - size
    np.subtract(shifted, rounded, out=rounded)
    errors: np.ndarray = np.subtract(rounded, size, out=rounded)
    return errors
