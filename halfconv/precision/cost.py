"""What precision costs on the target, in nanoseconds: the weights of the min-cut.

A rough model of one NVIDIA data-centre GPU: each kernel costs a launch, and otherwise the time to move its bytes. It only has
to rank: is a Cast dearer than running a cheap operator in FP32?
"""

from __future__ import annotations

import math

import onnx_ir as ir

__all__ = ["EXACT_OPS", "HEAVY_OPS", "LAUNCH_NS", "cast_time", "elements", "float_time"]

#: Time to launch one kernel, in ns (CUDA stream, small kernels).
LAUNCH_NS = 2500.0
#: Bytes moved per ns (2 TB/s, H100 class).
BYTES_PER_NS = 2000.0
#: Size assumed for a dimension that is not known.
UNKNOWN_DIM = 32
#: Elements assumed for a value of unknown rank.
UNKNOWN_SIZE = 32 * 1024

#: Operators whose time is arithmetic on tensor cores: never moved to FP32 to save a Cast.
HEAVY_OPS = frozenset(
    {
        "Attention", "BiasGelu", "Conv", "ConvTranspose", "DeformConv", "EmbedLayerNormalization", "Einsum", "FusedConv",
        "FusedMatMul", "GRU", "Gemm", "GroupQueryAttention", "LSTM", "MatMul", "MultiHeadAttention", "NhwcConv",
        "PackedAttention", "RNN", "SkipLayerNormalization",
    }
)  # fmt: skip

#: Operators that only move, select or compare numbers: their result needs no rounding, so they may go with either side.
EXACT_OPS = frozenset(
    {
        "Cast", "CastLike", "CenterCropPad", "Col2Im", "Compress", "Concat", "Constant", "ConstantOfShape",
        "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If", "Loop",
        "Pad", "Reshape", "ReverseSequence", "Scan", "ScatterElements", "ScatterND", "Shape", "Size", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
    }
)  # fmt: skip


def elements(value: ir.Value) -> float:
    """Return the number of elements of a value, with a guess for what is unknown."""
    if value.shape is None:
        return UNKNOWN_SIZE
    return float(math.prod(dim if isinstance(dim, int) else UNKNOWN_DIM for dim in value.shape))


def cast_time(value: ir.Value) -> float:
    """Return the time of one Cast of a value between FP32 and half, in ns: a launch, 4 + 2 bytes an element."""
    return LAUNCH_NS + 6 * elements(value) / BYTES_PER_NS


def float_time(node: ir.Node, values: list[ir.Value]) -> float:
    """Return what a node costs more in FP32 than in half, in ns: 2 bytes more per element read or written.

    Args:
        node: The node.
        values: Its FP32 inputs and outputs.
    """
    if node.op_type in HEAVY_OPS:
        return math.inf
    return 0.01 + sum(2 * elements(value) for value in values) / BYTES_PER_NS
