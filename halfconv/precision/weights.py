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

__all__ = ["HALF_MAX", "HALF_MIN_NORMAL", "HALF_OVERFLOW", "HALF_TINY", "RoundingStats", "half_tensor", "rounding_stats", "to_half"]

_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
#: Largest finite number of each format: (2 − 2⁻¹⁰)·2¹⁵ and (2 − 2⁻⁷)·2¹²⁷.
HALF_MAX = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: (2 - 2.0**-7) * 2.0**127}
#: Smallest normal number of each format; below it precision is lost bit by bit.
HALF_MIN_NORMAL = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
#: Smallest subnormal number of each format.
HALF_TINY = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133}
#: From here on a finite number rounds to infinity: half an ulp beyond the largest.
HALF_OVERFLOW = {ir.DataType.FLOAT16: 65520.0, ir.DataType.BFLOAT16: (2 - 2.0**-8) * 2.0**127}
#: Elements looked at in one step, so that temporary memory stays small whatever the weight's size.
CHUNK = 1 << 20


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
    limit = HALF_MAX[to]
    with np.errstate(over="ignore", invalid="ignore"):
        half: np.ndarray = np.asarray(array).astype(_NUMPY[to])
        wrong = np.isinf(half)
        if wrong.any():
            wrong &= np.isfinite(array)
            half[wrong] = np.where(np.signbit(np.asarray(array)[wrong]), -limit, limit).astype(_NUMPY[to])
    return half


def half_tensor(tensor: ir.TensorProtocol, to: ir.DataType, name: str) -> ir.LazyTensor:
    """Return a tensor that is converted when it is written, and not kept."""

    def convert() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(to_half(tensor.numpy(), to), dtype=to, name=name)

    return ir.LazyTensor(convert, dtype=to, shape=ir.Shape(tensor.shape.numpy()), name=name, cache=False)


def rounding_stats(tensor: ir.TensorProtocol, to: ir.DataType) -> RoundingStats:
    """Measure what half precision does to a weight, in bounded memory."""
    flat = tensor.numpy().reshape(-1)
    saturated = flushed = nonfinite = lossy = 0
    absmax = error = energy = 0.0
    tiny = HALF_TINY[to] / 2
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
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
        small = size < HALF_MIN_NORMAL[to]
        if small.any():
            flushed += int(((size <= tiny) & (size > 0)).sum())
        rounding = part.astype(_NUMPY[to]).astype(np.float32) - part
        # Scaled, so that squares neither overflow nor underflow in FP32.
        top = float(size.max()) or 1.0
        scaled, wrong = size / np.float32(top), rounding / np.float32(top)
        energy += float(np.dot(scaled, scaled)) * top * top
        error += float(np.dot(wrong, wrong)) * top * top
        if small.any():
            lossy += int((np.abs(rounding[small]) > 0.01 * size[small]).sum())
    rel_l2 = math.sqrt(error / energy) if energy else 0.0
    return RoundingStats(int(flat.size), absmax, saturated, flushed, nonfinite, rel_l2, lossy)
