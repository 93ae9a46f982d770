"""Attention as flash attention computes it in half: exponentials are rounded before they meet the values, and divided last.

On an H100 (ONNX Runtime 1.31.1) results agree bit for bit up to 128 keys; beyond, the running maximum of each block of keys moves
the roundings, and the error stays the same in size. Forms with a cache, a causal mask, groups of heads or a soft cap are computed
in FP32 inside and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import MS, Builder, first, given, i64

__all__ = ["contrib_attention", "is_plain_contrib", "is_plain_multi_head", "is_plain_onnx", "multi_head", "onnx_attention"]

LOWEST = np.float32(-3e38)
#: Size of a head below which ONNX Runtime's masked attention is not fused.
SMALL_HEAD = 16


def _only(node: ir.Node, inputs: tuple[int, ...], attributes: tuple[str, ...]) -> bool:
    """Tell whether a node has one output, no other inputs than these, and none of these attributes set."""
    more = any(value is not None and index not in inputs for index, value in enumerate(node.inputs))
    set_ = any(name in node.attributes and node.attributes[name].value not in (0, 0.0) for name in attributes)
    return not more and not set_ and len([output for output in node.outputs if output.name]) == 1


def _flash(
    b: Builder, q: ir.Value, k: ir.Value, v: ir.Value, scale: ir.Value | float, bias: ir.Value | None, *, fused: bool = True
) -> ir.Value:
    """Attention of [batch, heads, length, size]; what is not fused rounds probabilities in place of exponentials."""
    factor = b.constant(np.float32(scale)) if isinstance(scale, float) else scale
    scores = b.wide("Mul", b.wide("MatMul", q, b.wide("Transpose", k, perm=[0, 1, 3, 2])), factor)
    if bias is not None:
        scores = b.wide("Add", scores, bias)
    largest = b.wide("Max", b.reduce("ReduceMax", scores, [-1], 1), b.constant(LOWEST))
    exponentials = b.wide("Exp", b.wide("Sub", scores, largest))
    # A row that is masked as a whole gives zeros.
    total = b.wide("Max", b.reduce("ReduceSum", exponentials, [-1], 1), b.constant(np.float32(1e-30)))
    if not fused:
        return b.half("MatMul", b.half("Div", exponentials, total), v)
    return b.half("Div", b.wide("MatMul", b.round(exponentials), v), total)


def _split_heads(b: Builder, x: ir.Value, heads: int) -> ir.Value:
    """[batch, length, heads · size] → [batch, heads, length, size]."""
    return b.wide("Transpose", b.wide("Reshape", x, b.constant(i64(0, 0, heads, -1))), perm=[0, 2, 1, 3])


def _join_heads(b: Builder, x: ir.Value) -> ir.Value:
    return b.wide("Reshape", b.wide("Transpose", x, perm=[0, 2, 1, 3]), b.constant(i64(0, 0, -1)))


def _scale(b: Builder, node: ir.Node, q: ir.Value) -> ir.Value | float:
    """Return a node's scale; by default 1 / sqrt(size of a head), from the shape at run time."""
    if scale := node.attributes.get_float("scale", 0.0):
        return scale
    shape = b.typed(ir.DataType.INT64, "Shape", q)
    size = b.typed(ir.DataType.INT64, "Gather", shape, b.constant(np.int64(3)))
    return b.wide("Reciprocal", b.wide("Sqrt", b.wide("Cast", size, to=ir.DataType.FLOAT.value)))


def is_plain_multi_head(node: ir.Node) -> bool:
    """Tell whether a com.microsoft.MultiHeadAttention has Q, K, V of rank 3 and at most an attention bias."""
    ranks = [value.shape.rank() if value is not None and value.shape is not None else None for value in node.inputs[:3]]
    return len(node.inputs) > 2 and ranks == [3, 3, 3] and _only(node, (0, 1, 2, 5), ("unidirectional",))


def multi_head(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write com.microsoft.MultiHeadAttention."""
    heads = node.attributes.get_int("num_heads", 1)
    q, k, v = (_split_heads(b, first(node, index), heads) for index in range(3))
    return [_join_heads(b, _flash(b, q, k, v, _scale(b, node, q), given(node, 5)))]


def is_plain_onnx(node: ir.Node) -> bool:
    """Tell whether an ONNX Attention has as many key heads as query heads, no cache, no causal mask and no soft cap."""
    if not _only(node, (0, 1, 2, 3), ("is_causal", "softcap", "qk_matmul_output_mode")):
        return False
    shapes = [first(node, index).shape for index in range(3)]
    heads = node.attributes.get_int("q_num_heads", 0)
    if any(shape is None for shape in shapes) or (heads and heads != node.attributes.get_int("kv_num_heads", 0)):
        return False
    ranks = {shape.rank() for shape in shapes if shape is not None}
    if ranks == {3}:
        return heads > 0
    known = [shape[1] for shape in shapes if shape is not None]
    return ranks == {4} and all(isinstance(size, int) and size == known[0] for size in known)


def _fused(node: ir.Node) -> bool:
    """Tell whether a fused kernel runs an ONNX Attention: values of the queries' size, and no mask on very small heads."""
    heads = node.attributes.get_int("q_num_heads", 0) or 1
    shapes = [first(node, index).shape for index in (0, 2)]
    sizes = [shape[-1] for shape in shapes if shape is not None]
    if len(sizes) < 2 or not all(isinstance(size, int) for size in sizes):
        return True
    small = isinstance(sizes[0], int) and sizes[0] // heads < SMALL_HEAD
    return sizes[0] == sizes[1] and not (small and given(node, 3) is not None)


def onnx_attention(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write ONNX's Attention."""
    heads = node.attributes.get_int("q_num_heads", 0)
    q, k, v = (first(node, index) for index in range(3))
    if heads:
        q, k, v = (_split_heads(b, value, heads) for value in (q, k, v))
    bias = given(node, 3)
    if bias is not None and bias.dtype == ir.DataType.BOOL:
        bias = b.where(bias, 0.0, b.constant(np.float32(-np.inf)))
    result = _flash(b, q, k, v, _scale(b, node, q), bias, fused=_fused(node))
    return [_join_heads(b, result) if heads else result]


def is_plain_contrib(node: ir.Node) -> bool:
    """Tell whether a com.microsoft.Attention has no cache, and queries, keys and values of one size."""
    odd = ("qkv_hidden_sizes", "past_present_share_buffer", "do_rotary")
    if not _only(node, (0, 1, 2, 3, 5), odd) or "qkv_hidden_sizes" in node.attributes:
        return False
    mask, x = given(node, 3), first(node).shape
    if mask is None:
        return True
    # MultiHeadAttention takes no mask of start and end positions, and none of rank 4.
    if mask.shape is None or x is None or mask.shape.rank() not in (1, 2, 3):
        return False
    return mask.shape.rank() > 1 or mask.shape[0] == x[0]


def contrib_attention(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write com.microsoft.Attention: queries, keys and values are rounded, then as MultiHeadAttention."""
    projected, bias = b.half("MatMul", first(node), first(node, 1)), given(node, 2)
    if bias is not None:
        projected = b.half("Add", projected, bias)
    parts: dict[str, Any] = {"num_outputs": 3} if b.opset >= 18 else {}
    q, k, v = b.several("Split", [projected], 3, axis=-1, **parts)
    mask, heads = given(node, 3), node.attributes.get_int("num_heads", 1)
    if mask is None and not node.attributes.get_int("unidirectional", 0):
        q, k, v = (_split_heads(b, value, heads) for value in (q, k, v))
        return [_join_heads(b, _flash(b, q, k, v, _scale(b, node, q), given(node, 5)))]
    kept = {name: a for name, a in node.attributes.items() if name in ("num_heads", "unidirectional", "mask_filter_value", "scale")}
    inputs = [q, k, v, None, mask, given(node, 5)]
    while inputs[-1] is None:
        inputs.pop()
    return [b.round(b.several("MultiHeadAttention", inputs, 1, domain=MS, **kept)[0])]
