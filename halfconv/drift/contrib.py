"""ONNX Runtime's own operators that have a CUDA kernel only, written with operators that the CPU has.

Their kernels compute in FP32 from half inputs and round once, except where `halfconv.drift.builder.Builder.half` says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import MS, Builder, first, given, i64

__all__ = ["bias_softmax", "bias_split_gelu", "group_norm", "is_packed", "nhwc_conv", "packed_multi_head", "skip_group_norm"]

#: What a file declares may be anything.
MAX_GROUPS = 1 << 20
#: Rank of a tensor that holds keys and values.
PACKED = 5
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def bias_softmax(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write softmax(x + bias) over all axes from one on; rows of the bias repeat one by one, or each many times in a row."""
    x, axis = first(node), node.attributes.get_int("axis", 1)
    rows = b.wide("Flatten", x, axis=axis)
    sizes = b.typed(ir.DataType.INT64, "Shape", rows)
    length = b.typed(ir.DataType.INT64, "Gather", sizes, b.constant(i64(1)), axis=0)
    free = b.constant(i64(-1))
    bias = b.wide("Reshape", first(node, 1), b.typed(ir.DataType.INT64, "Concat", free, length, axis=0))
    shape = b.typed(ir.DataType.INT64, "Shape", bias)
    wanted = [free, shape]
    if node.attributes.get_int("is_inner_broadcast", 0):
        count = b.typed(ir.DataType.INT64, "Gather", shape, b.constant(i64(0)), axis=0)
        bias, wanted = b.unsqueeze(bias, 1), [count, free, length]
    total = b.wide("Add", b.wide("Reshape", rows, b.typed(ir.DataType.INT64, "Concat", *wanted, axis=0)), bias)
    done = b.wide("Softmax", b.wide("Reshape", total, sizes), axis=1)
    return [b.round(b.wide("Reshape", done, b.typed(ir.DataType.INT64, "Shape", x)))]


def bias_split_gelu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write left · gelu(right), the halves of x + bias, which is rounded."""
    biased = b.half("Add", first(node), first(node, 1))
    parts: dict[str, Any] = {"num_outputs": 2} if b.opset >= 18 else {}
    left, right = b.several("Split", [biased], 2, axis=-1, **parts)
    erf = b.wide("Erf", b.wide("Mul", right, b.constant(np.float32(0.7071067811865476))))
    gelu = b.wide("Mul", b.wide("Mul", right, 0.5), b.wide("Add", erf, 1.0))
    return [b.half("Mul", left, gelu)]


def _group_norm(b: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    last = bool(node.attributes.get_int("channels_last", 1))
    image = b.wide("Transpose", x, perm=TO_FIRST) if last else x
    groups = min(max(node.attributes.get_int("groups", 1), 0), MAX_GROUPS)  # such a node fails in ONNX Runtime, too
    grouped = b.wide("Reshape", image, b.constant(i64(0, groups, -1)))
    ones, zeros = (b.constant(np.full(groups, number, np.float32)) for number in (1, 0))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normal = b.wide("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    normal = b.wide("Reshape", normal, b.typed(ir.DataType.INT64, "Shape", image))
    gamma, beta = (b.wide("Reshape", first(node, slot), b.constant(i64(1, -1, 1, 1))) for slot in (1, 2))
    result = b.wide("Add", b.wide("Mul", normal, gamma), beta)
    if node.attributes.get_int("activation", 0):
        result = b.wide("Mul", result, b.wide("Sigmoid", result))
    return b.round(b.wide("Transpose", result, perm=TO_LAST) if last else result)


def group_norm(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write a group norm of [image, height, width, channel], and SiLU behind it if asked for."""
    return [_group_norm(b, node, first(node))]


def skip_group_norm(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write a group norm of x + bias + skip, which is a second result; the sums are rounded."""
    x, skip = first(node), first(node, 3)
    bias = given(node, 4)
    total = b.half("Add", x, bias) if bias is not None else x
    if skip.shape is not None and skip.shape.rank() == 2:
        skip = b.wide("Reshape", skip, b.constant(i64(0, 1, 1, -1)))
    total = b.half("Add", total, skip)
    return [_group_norm(b, node, total), total][: len(node.outputs)]


def nhwc_conv(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write a convolution of [image, height, width, channel] with weights [out, height, width, in]."""
    x, weight = (b.wide("Transpose", first(node, slot), perm=TO_FIRST) for slot in (0, 1))
    result = b.half("Conv", x, weight, **{a.name: a for a in node.attributes.values()})
    bias = given(node, 2)
    if bias is not None:
        result = b.half("Add", result, b.wide("Reshape", bias, b.constant(i64(1, -1, 1, 1))))
    return [b.wide("Transpose", result, perm=TO_LAST)]


def is_packed(node: ir.Node) -> bool:
    """Tell whether a MultiHeadAttention has keys and values in one tensor, with or without the queries."""
    present = [value for value in node.inputs[:3] if value is not None]
    last = present[-1].shape
    return len(present) < 3 and last is not None and last.rank() == PACKED


def packed_multi_head(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Unpack queries, keys and values of [batch, length, heads, 2 or 3, size], which the CPU's MultiHeadAttention wants apart."""
    present = [value for value in node.inputs[:3] if value is not None]
    parts = [b.wide("Gather", present[-1], b.constant(np.int64(k)), axis=3) for k in range(4 - len(present))]
    flat = [b.wide("Reshape", part, b.constant(i64(0, 0, -1))) for part in parts]
    inputs = [*present[:-1], *flat, *node.inputs[3:]]
    kept = {a.name: a for a in node.attributes.values()}
    return [b.round(value) for value in b.several("MultiHeadAttention", inputs, len(node.outputs), domain=MS, **kept)]
