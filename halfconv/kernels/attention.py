"""Attention as operators of ours: one product for queries, keys and values, and what reads them where it wrote them."""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.fuse import put_in_place
from halfconv.graph.rules import MS, Outcome, Rewriter
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.parts import ALIGNED, HALF, half_weight, is_half, zeros

__all__ = ["attention"]

#: Attributes of Attention that this understands.
ATTRIBUTES = frozenset({"mask_filter_value", "num_heads", "qkv_hidden_sizes", "scale", "unidirectional"})
#: Places of the inputs that matter here.
MASK, PAST, BIAS = 3, 4, 5
#: cuDNN's attention computes heads up to this size.
WIDEST = 128


def attention(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn Attention into Linear and PackedAttention, between which nothing is transposed or copied."""
    if node.domain != MS or not is_half(node.inputs[0], node.outputs[0]):
        return None
    given = [*node.inputs, *[None] * (BIAS + 1 - len(node.inputs))]
    source, weight, shift, bias = *given[:3], given[BIAS]
    dims = half_weight(weight)
    if source is None or weight is None or dims is None or len(dims) != 2:
        return "its weight is not an FP16 matrix of the model"
    if given[PAST] is not None or any(given[BIAS + 1 :]) or any(output.name for output in node.outputs[1:]):
        return "it has a cache of keys and values"
    if unknown := sorted(set(node.attributes) - ATTRIBUTES):
        return f"it has {unknown[0]}, which PackedAttention has not"
    if given[MASK] is not None:
        return "it has a mask of places; try: a mask that is added"
    if "unidirectional" in node.attributes and node.attributes["unidirectional"].as_int():
        return "it looks back only"
    sizes = node.attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in node.attributes else [dims[1] // 3] * 3
    if len(set(sizes)) > 1 or 3 * sizes[0] != dims[1]:
        return "queries, keys and values differ in size"
    heads = node.attributes.get_int("num_heads", 0)
    if heads < 1:
        return "it has no heads"
    if dims[0] % ALIGNED or sizes[0] % heads or (head := sizes[0] // heads) % ALIGNED or head > WIDEST:
        return f"its {heads} heads of {sizes[0]} from {dims[0]} are not in multiples of {ALIGNED} up to {WIDEST}"
    if shift is not None and half_weight(shift) != (dims[1],):
        return "its bias is not an FP16 vector of the model"
    if bias is not None and (not is_half(bias) or bias.shape is None or bias.shape.rank() != 4):
        return "what is added to the products is not FP16 with four axes"
    return lambda: _split(node, source, weight, shift, bias, head, rewriter)


def _split(
    node: ir.Node, source: ir.Value, weight: ir.Value, shift: ir.Value | None, bias: ir.Value | None, head: int, rewriter: Rewriter
) -> ir.Node:
    assert weight.const_value is not None
    width = weight.const_value.shape.numpy()[1]
    packed = ir.Value(
        name=rewriter.fresh(f"{node.outputs[0].name}_qkv"), type=ir.TensorType(HALF),
        shape=None if source.shape is None else source.shape.copy(),
    )  # fmt: skip
    if packed.shape is not None:
        packed.shape[-1] = width
    made = ir.node(
        "Linear", [source, weight, shift if shift is not None else zeros(width, rewriter)], domain=DOMAIN, outputs=[packed],
        name=packed.name, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    node.prepend(made)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 0.0
    attributes = {"num_heads": node.attributes["num_heads"].as_int(), "scale": scale or head**-0.5}
    inputs, kind = ([packed], "PackedAttention") if bias is None else ([packed, bias], "PackedAttentionBias")
    put_in_place(ir.node(kind, inputs, attributes, domain=DOMAIN, metadata_props=dict(node.metadata_props)), node)
    return made
