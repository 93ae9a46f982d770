"""Convert weights to half precision, and know what that changes.

Rounding is to nearest, ties to even. A finite number beyond the format's largest saturates there with its sign kept;
infinities and NaN stay what they are. A number too small for the format's smallest subnormal becomes a zero of its sign.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from halfconv.formats.layout import BFLOAT16, BINARY16
from halfconv.graph.blocks import BLOCK, BlockTensor, blocks

__all__ = [
    "HALF_MAX", "HALF_MIN_NORMAL", "HALF_OVERFLOW", "HALF_TINY", "HalfTensor", "RoundingStats", "rounding_stats", "to_half"
]  # fmt: skip

_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_FORMATS = {ir.DataType.FLOAT16: BINARY16, ir.DataType.BFLOAT16: BFLOAT16}
#: Largest finite number of each format.
HALF_MAX = {to: known.max for to, known in _FORMATS.items()}
#: Smallest normal number of each format; below it precision is lost bit by bit.
HALF_MIN_NORMAL = {to: known.min_normal for to, known in _FORMATS.items()}
#: Smallest subnormal number of each format.
HALF_TINY = {to: known.min_subnormal for to, known in _FORMATS.items()}
#: From here on a finite number rounds to infinity: half an ulp beyond the largest.
HALF_OVERFLOW = {to: known.overflow for to, known in _FORMATS.items()}
#: Bits of a significand, the implicit one included.
DIGITS = {to: known.precision for to, known in _FORMATS.items()}
#: Elements looked at in one step, so that temporary arrays stay in a core's cache whatever the weight's size.
CHUNK = 1 << 16
#: Elements of which figures are taken in one step: each holds Python's lock for a moment, for which two threads then seldom meet.
LOOK = 1 << 17
#: The smallest number that overflows FP16; and of each format, its FP32 bits.
OVERFLOW = np.float32(BINARY16.overflow)
_OVERFLOW_BITS = {to: np.float32(number).view(np.uint32) for to, number in HALF_OVERFLOW.items()}
#: One chunk in so many of a large weight tells how much rounding its normal numbers costs: the figure is within 1 % of all of them.
SAMPLED = 16
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
    flat, rounded = np.ascontiguousarray(array).reshape(-1), half.reshape(-1)
    if to == ir.DataType.FLOAT16 and flat.size >= BLOCK // 4 and (cast := runtime_cast()) is not None:
        for start in range(0, flat.size, BLOCK):
            part, out = flat[start : start + BLOCK], rounded[start : start + BLOCK]
            if np.max(part) < OVERFLOW and np.min(part) > -OVERFLOW:  # of NaN, no comparison is true
                out[:] = cast(part)
            else:
                _by_chunks(part, out, to)
    else:
        _by_chunks(flat, rounded, to)
    return half


def _by_chunks(flat: np.ndarray, out: np.ndarray, to: ir.DataType) -> None:
    for start in range(0, flat.size, CHUNK):
        round_into(flat[start : start + CHUNK], out[start : start + CHUNK], to)


@functools.cache
def runtime_cast() -> Callable[[np.ndarray], np.ndarray] | None:
    """Return ONNX Runtime's Cast to FP16, which is several times as fast as numpy; None without a runtime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    from onnx import TensorProto, helper

    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT16}
    ends = [helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in kinds.items()]
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], "cast", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # whoever casts does so on several threads already
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def cast(part: np.ndarray) -> np.ndarray:
        half: np.ndarray = session.run(None, {"x": part})[0]
        return half

    return cast


def round_into(part: np.ndarray, out: np.ndarray, to: ir.DataType) -> None:
    """Round some numbers as `to_half` does, without an array of more than a chunk.

    Args:
        part: float32, 1-D, contiguous, of up to `CHUNK` elements.
        out: Where they go: float16 or bfloat16, 1-D, of the same length.
        to: FLOAT16 or BFLOAT16.
    """
    size = part.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if size.size and size.max() < _OVERFLOW_BITS[to]:
        bits = part.view(np.uint32)
        out.view(np.uint16)[:] = _fp16_bits(bits, size) if to == ir.DataType.FLOAT16 else _bf16_bits(bits, size)
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


def _bf16_bits(bits: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """Return the BF16 bits of finite FP32 numbers: the upper half, one more where the lower says so, ties to even.

    Args:
        bits: Their FP32 bits; uint32.
        spare: As many numbers that are used up.
    """
    np.right_shift(bits, np.uint32(16), out=spare)
    spare &= np.uint32(1)
    spare += np.uint32(0x7FFF)
    spare += bits
    spare >>= np.uint32(16)
    return spare


class HalfTensor(BlockTensor):
    """An FP32 tensor rounded to FP16 or BF16."""

    __slots__ = ()

    def compute(self, block: np.ndarray) -> np.ndarray:
        """Round a block."""
        return to_half(block, self.dtype)


def rounding_stats(tensor: ir.TensorProtocol, to: ir.DataType) -> RoundingStats:
    """Measure what half precision does to a weight, in bounded memory.

    What leaves half's normal range is counted exactly. How much rounding costs the other numbers, a sample of a large weight tells.
    """
    saturated = nonfinite = 0
    absmax = energy = 0.0  # Σw² below the normal range
    normal = seen = lost = 0.0  # Σw² of normal numbers; both sums over those that are sampled
    step = SAMPLED if tensor.size > SAMPLED * LOOK else 1
    tiny = _Below(to)
    parts = (block[start : start + LOOK] for block in blocks(tensor) for start in range(0, block.size, LOOK))
    sizes, smalls = np.empty(min(LOOK, tensor.size), np.float32), np.empty(min(LOOK, tensor.size), np.bool_)
    for number, part in enumerate(parts):
        size: np.ndarray = np.abs(part, out=sizes[: part.size])
        largest = float(size.max())
        if not math.isfinite(largest):
            finite = np.isfinite(part)
            nonfinite += int(part.size - finite.sum())
            size = size[finite]
            largest = float(size.max()) if size.size else 0.0
        absmax = max(absmax, largest)
        if largest >= HALF_MAX[to]:
            fits = size < HALF_OVERFLOW[to]
            saturated += int(size.size - fits.sum())
            size = size[fits]
            largest = float(size.max()) if size.size else 0.0
        if not size.size:
            continue
        top = largest or 1.0
        scale = 1.0 if _PLAIN[0] < top < _PLAIN[1] else top  # so that squares neither overflow nor underflow in FP32
        sampled, whole = number % step == 0 or scale != 1.0, _energy(size, scale)
        small = np.less(size, HALF_MIN_NORMAL[to], out=smalls[: size.size])
        if np.count_nonzero(small):
            below = size[small]
            under = _energy(below, scale)
            energy, whole = energy + under, max(whole - under, 0.0)
            tiny.add(below, scale)
            size = size[~small] if sampled else size
        normal += whole
        if sampled:
            seen += _energy(size, scale)
            wrong = _errors(size, to) if scale == 1.0 else size.astype(_NUMPY[to]).astype(np.float32) - size
            lost += _energy(wrong, scale)
    tiny.look()
    error = tiny.error + (lost * (normal / seen) if seen else 0.0)
    rel_l2 = math.sqrt(error / (energy + normal)) if energy + normal else 0.0
    return RoundingStats(tensor.size, absmax, saturated, tiny.flushed, nonfinite, rel_l2, tiny.lossy)


class _Below:
    """Magnitudes below the normal range: how many become zero, how many lose over 1 %, and Σ(half(w)−w)².

    Most steps have a few, so they wait until they are many.
    """

    def __init__(self, to: ir.DataType):
        self.flushed = self.lossy = 0
        self.error = 0.0
        self._to, self._waiting = to, list[np.ndarray]()

    def add(self, below: np.ndarray, scale: float) -> None:
        """Take some, whose squares are taken at a scale."""
        if scale != 1.0:
            self._look(below, scale)
            return
        self._waiting.append(below)
        if sum(map(len, self._waiting)) >= LOOK:
            self.look()

    def look(self) -> None:
        """Look at those that wait."""
        if self._waiting:
            self._look(np.concatenate(self._waiting), 1.0)
            self._waiting.clear()

    def _look(self, below: np.ndarray, scale: float) -> None:
        rounding = np.abs(below.astype(_NUMPY[self._to]).astype(np.float32) - below)
        self.flushed += int(((below <= HALF_TINY[self._to] / 2) & (below > 0)).sum())
        self.lossy += int((rounding > 0.01 * below).sum())
        self.error += _energy(rounding, scale)


def _energy(part: np.ndarray, scale: float) -> float:
    """Return the sum of squares."""
    scaled = part if scale == 1.0 else part / np.float32(scale)
    return float(np.dot(scaled, scaled)) * scale * scale


def _errors(size: np.ndarray, to: ir.DataType) -> np.ndarray:
    """Return the rounding errors of numbers in half's normal range, in FP32 arithmetic alone (T. J. Dekker's splitting, 1971)."""
    shifted = size * np.float32(2.0 ** (24 - DIGITS[to]) + 1)
    rounded = shifted - size
    np.subtract(shifted, rounded, out=rounded)
    errors: np.ndarray = np.subtract(rounded, size, out=rounded)
    return errors
