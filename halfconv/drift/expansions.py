"""Operators whose CUDA kernel computes in half step by step, written out.

Found by comparing candidates with the results of an H100 bit for bit (ONNX Runtime 1.31.1; the fidelity benchmark repeats the
comparison). ``b.half`` is one step that rounds; ``b.wide`` is not rounded, as the product inside a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from halfconv.drift.activations import (
    bias_gelu,
    elu,
    fast_gelu,
    gelu,
    gelu_bf16,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    quick_gelu,
    selu,
    sigmoid,
    sigmoid_bf16,
    softplus,
    softsign,
)
from halfconv.drift.attention import (
    contrib_attention,
    is_plain_contrib,
    is_plain_multi_head,
    is_plain_onnx,
    multi_head,
    onnx_attention,
)
from halfconv.drift.builder import MS, Builder, first, given, i64, rounded
from halfconv.drift.contrib import (
    bias_softmax,
    bias_split_gelu,
    group_norm,
    is_packed,
    nhwc_conv,
    packed_multi_head,
    skip_group_norm,
)
from halfconv.drift.recurrent import expand_recurrent, recurrent_on_gpu
from halfconv.graph.kernels import on_cuda
from halfconv.graph.reductions import axes_of, over_an_end
from halfconv.graph.schema import signature

__all__ = ["EXPANSIONS", "Expansion", "expansion_of"]

FP16 = frozenset({ir.DataType.FLOAT16})
BF16 = frozenset({ir.DataType.BFLOAT16})
ANY = FP16 | BF16

#: Inner size of a matrix product beyond which cuBLAS sums it in parts.
LONG_SUM = 2048

Write = Callable[[Builder, ir.Node], list[ir.Value]]


def _aligned(node: ir.Node) -> bool:
    """Tell whether a Gemm's inner and outer size suit the kernels that add the bias apart: multiples of 8, and no long sum.

    Measured on an H100: 64 by 80 and 768 by 768 round twice; 7 by 80, 64 by 4 and 3,072 by 80 once.
    """
    shape = first(node, 1).shape
    if shape is None or shape.rank() != 2:
        return True
    inner, outer = reversed(shape) if node.attributes.get_int("transB", 0) else shape
    known = [size for size in (inner, outer) if isinstance(size, int)]
    return all(size % 8 == 0 for size in known) and not (isinstance(inner, int) and inner > LONG_SUM)


def _gemm(b: Builder, node: ir.Node) -> list[ir.Value]:
    """With alpha = beta = 1 the product is rounded before the addend joins; otherwise both factors are rounded to half."""
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    turned: dict[str, Any] = {name: node.attributes.get_int(name, 0) for name in ("transA", "transB")}
    if alpha == beta == 1.0 and _has_bias(node) and _aligned(node):
        zero = b.constant(np.float32(0.0))
        return [b.half("Add", b.half("Gemm", first(node), first(node, 1), zero, **turned), first(node, 2))]
    to = b.to
    factors = {"alpha": float(rounded(alpha, to)), "beta": float(rounded(beta, to))}
    return [b.half("Gemm", *(value for value in node.inputs if value is not None), **turned, **factors)]


def _mean(b: Builder, node: ir.Node) -> list[ir.Value]:
    """A mean over leading or trailing axes: the sum and the count are rounded to half, then the quotient."""
    attributes = {a.name: a for a in node.attributes.values()}
    inputs = [value for value in node.inputs if value is not None]
    if "axes" in attributes and b.opset >= 13:  # ReduceSum takes them as an input then
        inputs.append(b.constant(i64(*attributes.pop("axes").as_ints())))
    total = b.half("ReduceSum", *inputs, **attributes)
    size = b.wide("Cast", b.typed(ir.DataType.INT64, "Size", first(node)), to=ir.DataType.FLOAT.value)
    kept = b.wide("Cast", b.typed(ir.DataType.INT64, "Size", total), to=ir.DataType.FLOAT.value)
    return [b.half("Div", total, b.half("Div", size, kept))]


def _instance_norm(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Beyond one image a batch norm of cuDNN does it, whose statistics are half: a variance above 65,504 is infinite."""
    x, epsilon = first(node), node.attributes.get_float("epsilon", 1e-5)
    shape = x.shape
    rank = shape.rank() if shape is not None else 4
    alone = b.half("InstanceNormalization", x, first(node, 1), first(node, 2), epsilon=epsilon)
    if shape is not None and shape[0] == 1:
        return [alone]
    column = b.constant(i64(1, -1, *[1] * (rank - 2)))
    scale, shift = (b.wide("Reshape", first(node, k), column) for k in (1, 2))
    mean = b.reduce("ReduceMean", x, list(range(2, rank)), 1)
    centred = b.wide("Sub", x, mean)
    variance = b.round(b.reduce("ReduceMean", b.wide("Mul", centred, centred), list(range(2, rank)), 1))
    deviation = b.half("Sqrt", b.half("Add", variance, epsilon))
    scaled = b.half("Div", b.half("Mul", scale, b.half("Sub", x, b.round(mean))), deviation)
    many = b.half("Add", scaled, shift)
    images = b.typed(ir.DataType.INT64, "Gather", b.typed(ir.DataType.INT64, "Shape", x), b.constant(np.int64(0)))
    return [b.where(b.typed(ir.DataType.BOOL, "Equal", images, b.constant(np.int64(1))), alone, many)]


def _constant_axis(node: ir.Node) -> bool:
    axis = node.inputs[1] if len(node.inputs) > 1 else None
    known = axis is not None and axis.const_value is not None and axis.const_value.size == 1 and not axis.is_graph_input()
    shape = first(node).shape
    return known and shape is not None and shape.rank() > 0


def _cumsum(b: Builder, node: ir.Node) -> list[ir.Value]:
    """A running sum is rounded at every step."""
    x, axis = first(node), node.inputs[1]
    assert axis is not None and axis.const_value is not None and x.shape is not None
    rank = x.shape.rank()
    order = list(range(rank))
    order.insert(0, order.pop(int(axis.const_value.numpy().reshape(-1)[0]) % rank))
    inner = Builder(b.to, f"{b.stem}/step", b.opset)
    state, step = (ir.val(f"{inner.stem}/{name}", ir.DataType.FLOAT) for name in ("state", "x"))
    after = inner.half("Add", state, step)
    shown = inner.wide("Identity", state if node.attributes.get_int("exclusive", 0) else after)
    for value in (state, step, after, shown):
        value.shape = ir.Shape([None] * (rank - 1))
    body = ir.Graph([state, step], [after, shown], nodes=inner.nodes, name=inner.stem, opset_imports={"": b.opset})
    turned = b.wide("Transpose", x, perm=order)
    sizes = b.typed(ir.DataType.INT64, "Shape", turned)
    rest = b.typed(ir.DataType.INT64, "Slice", sizes, *(b.constant(i64(number)) for number in (1, rank)))
    start = b.wide("ConstantOfShape", rest)
    direction = [node.attributes.get_int("reverse", 0)]
    sums = b.several(
        "Scan", [start, turned], 2, body=body, num_scan_inputs=1, scan_input_directions=direction, scan_output_directions=direction
    )[1]
    return [b.wide("Transpose", sums, perm=[order.index(i) for i in range(rank)])]


def _pairwise(op: str) -> Write:
    def write(b: Builder, node: ir.Node) -> list[ir.Value]:
        total = first(node)
        for index in range(1, len(node.inputs)):
            total = b.half(op, total, first(node, index))
        return [total]

    return write


def _biased(b: Builder, node: ir.Node) -> list[ir.Value]:
    """A convolution rounds its result, then adds the bias and rounds again."""
    bias = first(node, 2)
    plain = b.half(node.op_type, first(node), first(node, 1), **{a.name: a for a in node.attributes.values()})
    rank = plain_rank(node)
    column = b.wide("Reshape", bias, b.constant(i64(1, -1, *[1] * (rank - 2))))
    return [b.half("Add", plain, column)]


def plain_rank(node: ir.Node) -> int:
    """Return the rank of a convolution's input, from its shape or its weight's."""
    for index in (0, 1):
        shape = first(node, index).shape
        if shape is not None:
            return int(shape.rank())
    return 4


def _has_bias(node: ir.Node) -> bool:
    return given(node, 2) is not None


def _known_axes(node: ir.Node) -> bool:
    return axes_of(node) is not None and not node.attributes.get_int("noop_with_empty_axes", False)


def _log_sum_exp(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Differences, exponentials, their sum, its logarithm and the sum with the largest element are rounded, each."""
    x, axes, keepdims = first(node), axes_of(node) or [], node.attributes.get_int("keepdims", 1)
    exponentials = b.half("Exp", b.half("Sub", x, b.reduce("ReduceMax", x, axes, 1)))
    total = b.round(b.reduce("ReduceSum", exponentials, axes, keepdims))
    return [b.half("Add", b.half("Log", total), b.reduce("ReduceMax", x, axes, keepdims))]


def _logged_sum(b: Builder, node: ir.Node) -> list[ir.Value]:
    """ReduceLogSum rounds the sum before it takes the logarithm."""
    inputs = [value for value in node.inputs if value is not None]
    return [b.half("Log", b.half("ReduceSum", *inputs, **{a.name: a for a in node.attributes.values()}))]


def _is_tanh(node: ir.Node) -> bool:
    return node.attributes.get_string("approximate", "none") == "tanh"


def _skip_layer_norm(b: Builder, node: ir.Node) -> list[ir.Value]:
    """The bias and the skip are added in half; the norm is FP32 inside."""
    simplified = node.op_type.startswith("SkipSimplified")
    total, bias = first(node), given(node, 3 if simplified else 4)
    if bias is not None:
        total = b.half("Add", total, bias)
    total = b.half("Add", total, first(node, 1))
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    beta = None if simplified else given(node, 3)
    operator = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
    inputs = [total, first(node, 2), *([beta] if beta is not None else [])]
    result = b.half(operator, *inputs, axis=-1, epsilon=epsilon)
    unused = b.constant(np.float32(0.0))
    return [result, unused, unused, total][: len(node.outputs)]


def _always(node: ir.Node) -> bool:
    return True


class Expansion(NamedTuple):
    """One row: the operator, for which formats, when, and what it computes."""

    domain: str
    op: str
    formats: frozenset[ir.DataType]
    applies: Callable[[ir.Node], bool]
    write: Write


EXPANSIONS: tuple[Expansion, ...] = (
    Expansion("", "Attention", ANY, is_plain_onnx, onnx_attention),
    Expansion("", "Conv", ANY, _has_bias, _biased),
    Expansion("", "ConvTranspose", ANY, _has_bias, _biased),
    Expansion("", "CumSum", ANY, _constant_axis, _cumsum),
    Expansion("", "Elu", ANY, _always, elu),
    Expansion("", "GRU", FP16, recurrent_on_gpu, expand_recurrent),
    Expansion("", "Gelu", ANY, _is_tanh, gelu),
    Expansion("", "Gelu", BF16, _always, gelu_bf16),
    Expansion("", "Gemm", ANY, _always, _gemm),
    Expansion("", "HardSigmoid", ANY, _always, hard_sigmoid),
    Expansion("", "HardSwish", ANY, _always, hard_swish),
    Expansion("", "InstanceNormalization", ANY, _always, _instance_norm),
    Expansion("", "LSTM", FP16, recurrent_on_gpu, expand_recurrent),
    Expansion("", "LeakyRelu", ANY, _always, leaky_relu),
    Expansion("", "RNN", FP16, recurrent_on_gpu, expand_recurrent),
    Expansion("", "ReduceMean", ANY, over_an_end, _mean),
    Expansion("", "ReduceLogSum", ANY, _always, _logged_sum),
    Expansion("", "ReduceLogSumExp", ANY, _known_axes, _log_sum_exp),
    Expansion("", "Selu", ANY, _always, selu),
    Expansion("", "Sigmoid", BF16, _always, sigmoid_bf16),
    Expansion("", "Sigmoid", FP16, _always, sigmoid),
    Expansion("", "Softplus", ANY, _always, softplus),
    Expansion("", "Softsign", ANY, _always, softsign),
    Expansion("", "Sum", ANY, _always, _pairwise("Add")),
    Expansion(MS, "Attention", ANY, is_plain_contrib, contrib_attention),
    Expansion(MS, "BiasAdd", ANY, _always, _pairwise("Add")),
    Expansion(MS, "BiasGelu", ANY, _always, bias_gelu),
    Expansion(MS, "BiasSoftmax", ANY, _always, bias_softmax),
    Expansion(MS, "BiasSplitGelu", ANY, _always, bias_split_gelu),
    Expansion(MS, "FastGelu", ANY, _always, fast_gelu),
    Expansion(MS, "Gelu", BF16, _always, gelu_bf16),
    Expansion(MS, "GroupNorm", ANY, _always, group_norm),
    Expansion(MS, "NhwcConv", ANY, _always, nhwc_conv),
    Expansion(MS, "MultiHeadAttention", ANY, is_plain_multi_head, multi_head),
    Expansion(MS, "MultiHeadAttention", ANY, is_packed, packed_multi_head),
    Expansion(MS, "QuickGelu", ANY, _always, quick_gelu),
    Expansion(MS, "SkipGroupNorm", ANY, _always, skip_group_norm),
    Expansion(MS, "SkipLayerNormalization", ANY, _always, _skip_layer_norm),
    Expansion(MS, "SkipSimplifiedLayerNormalization", ANY, _always, _skip_layer_norm),
)


def expansion_of(node: ir.Node, to: ir.DataType, opset: int | None) -> Expansion | None:
    """Return the row that applies to a node, if any.

    Args:
        node: The node.
        to: The half format of its results.
        opset: The opset that the model imports for the node's domain. Without a CUDA kernel the CPU provider runs it, in FP32.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    found = signature(domain, node.op_type, opset)
    if found is not None and not on_cuda(domain, node.op_type, found.since, to):
        return None
    for row in EXPANSIONS:
        if row.op == node.op_type and row.domain == domain and to in row.formats and row.applies(node):
            return row
    return None
