"""The three projections of attention as one operator of ours, in front of ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.fuse import put_in_place
from halfconv.graph.rules import MS, Outcome, Rewriter
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.parts import ALIGNED, HALF, half_weight, is_half, reshaped, zeros

__all__ = ["projections"]

#: Attributes of Attention that MultiHeadAttention has as well, with the same meaning.
ATTRIBUTES = frozenset({"mask_filter_value", "num_heads", "scale", "unidirectional"})
#: Places of the inputs that matter here.
MASK, PAST, BIAS = 3, 4, 5


def projections(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn Attention into QkvLinear and MultiHeadAttention: the products then write what attention reads, bias and all."""
    if node.domain != MS or not is_half(node.inputs[0], node.outputs[0]):
        return None
    given = [*node.inputs, *[None] * (BIAS + 1 - len(node.inputs))]
    source, weight, bias, mask, attention_bias = *given[:3], given[MASK], given[BIAS]
    dims = half_weight(weight)
    if source is None or weight is None or dims is None or len(dims) != 2:
        return "its weight is not an FP16 matrix of the model"
    if given[PAST] is not None or any(given[BIAS + 1 :]) or any(output.name for output in node.outputs[1:]):
        return "it has a cache of keys and values"
    if unknown := sorted(set(node.attributes) - ATTRIBUTES - {"qkv_hidden_sizes"}):
        return f"it has {unknown[0]}, which MultiHeadAttention has not"
    sizes = node.attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in node.attributes else [dims[1] // 3] * 3
    if len(set(sizes)) > 1 or 3 * sizes[0] != dims[1]:
        return "queries, keys and values differ in size"
    if dims[0] % ALIGNED or sizes[0] % ALIGNED:
        return f"its weight of {dims[0]} x {sizes[0]} for each is not in multiples of {ALIGNED}"
    if mask is not None and (mask.shape is None or mask.shape.rank() != 2):
        return "its mask is not one of [batch, length]"
    if bias is not None and half_weight(bias) != (dims[1],):
        return "its bias is not an FP16 vector of the model"
    return lambda: _split(node, source, weight, bias, sizes[0], mask, attention_bias, rewriter)


def _split(
    node: ir.Node, source: ir.Value, weight: ir.Value, bias: ir.Value | None, size: int, mask: ir.Value | None,
    attention_bias: ir.Value | None, rewriter: Rewriter,
) -> ir.Node:  # fmt: skip
    assert weight.const_value is not None and source.shape is not None
    rows = weight.const_value.shape.numpy()[0]
    parts = reshaped(
        weight, "parts", (3, rows, size), lambda array: array.reshape(rows, 3, size).transpose(1, 0, 2), rewriter
    )  # fmt: skip
    shifts = reshaped(bias if bias is not None else zeros(3 * size, rewriter), "parts", (3, size), lambda array: array, rewriter)
    outputs = [
        ir.Value(name=rewriter.fresh(f"{node.outputs[0].name}_{part}"), type=ir.TensorType(HALF), shape=source.shape.copy())
        for part in ("query", "key", "value")
    ]
    for value in outputs:
        assert value.shape is not None
        value.shape[-1] = size
    name = rewriter.fresh(f"{node.outputs[0].name}_qkv")
    made = ir.node(
        "QkvLinear", [source, parts, shifts], domain=DOMAIN, outputs=outputs, name=name,
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    node.prepend(made)
    inputs = [*outputs, *([None, mask, attention_bias] if mask is not None or attention_bias is not None else [])]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {a.name: a for a in node.attributes.values() if a.name in ATTRIBUTES}
    attend = ir.node("MultiHeadAttention", inputs, attributes, domain=MS, metadata_props=dict(node.metadata_props))
    put_in_place(attend, node)
    return made
