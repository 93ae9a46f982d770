"""Products with a weight, and what follows products and convolutions: bias, residual, activation, norm become one operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import MS, Outcome, Rewriter
from halfconv.graph.typegroups import is_weight
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.parts import ALIGNED, bias_of, half_weight, is_half, is_own, last_bias, same_shape, zeros

__all__ = ["activated", "biased_product", "gelu_product", "normed", "residual"]

#: What each operator becomes with a residual, with Relu, with GELU behind it.
WITH_RESIDUAL = {"Linear": "LinearAdd", "Conv": "ConvAdd"}
WITH_RELU = {
    "Linear": "LinearRelu", "LinearAdd": "LinearAddRelu", "Conv": "ConvRelu", "ConvAdd": "ConvAddRelu",
}  # fmt: skip
#: The norm behind a depthwise convolution is over so many channels at most.
WIDEST_NORM = 1024
#: Said where an operator could be taken up, were its result not needed itself.
READ_BY_OTHERS = "its result is read by others, too"


def biased_product(add: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn X · W + B into Linear."""
    if add.domain or not is_half(*add.inputs, *add.outputs):
        return None
    for bias, value in (add.inputs, add.inputs[::-1]):
        assert bias is not None and value is not None
        product = value.producer()
        if half_weight(bias) is None or product is None or not is_op(product, "MatMul", add.graph):
            continue
        if isinstance(why := _unfit(product, bias), str) or why is None:
            return why
        return lambda product=product, bias=bias: _linear("Linear", product, bias, add, rewriter)  # type: ignore[misc]
    return None


def gelu_product(gelu: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn gelu(X · W + B) into LinearGelu, where the sum is in the GELU already, and where it is in a Linear."""
    value = gelu.inputs[0]
    if value is None or not is_half(*gelu.inputs, *gelu.outputs):
        return None
    made = value.producer()
    if gelu.op_type == "BiasGelu" and gelu.domain == MS:
        bias = gelu.inputs[1]
        if bias is None or made is None or not is_op(made, "MatMul", gelu.graph):
            return None
        if isinstance(why := _unfit(made, bias), str) or why is None:
            return why
        return lambda: _linear("LinearGelu", made, bias, gelu, rewriter)
    if made is None or not is_own(made, "Linear") or gelu.op_type != "Gelu":
        return None
    if gelu.attributes.get_string("approximate", "none") != "none":
        return "it is GELU by tanh, not by erf"
    return _followed(made, "LinearGelu", gelu, [], {}, rewriter)


def residual(add: ir.Node, rewriter: Rewriter) -> Outcome:
    """Take the addition of a tensor of the same shape into the product or convolution before it."""
    if add.domain or not is_half(*add.inputs, *add.outputs):
        return None
    sides = [(value, other) for value, other in (add.inputs, add.inputs[::-1]) if value is not other]
    why: str | None = None
    # A product before a convolution: the residual of a product is read in the order in which it is written.
    for name in WITH_RESIDUAL:
        for value, other in sides:
            made = value.producer() if value is not None else None
            if value is None or other is None or is_weight(other) or made is None or not is_own(made, name):
                continue
            if not same_shape(value, other, rewriter):
                why = "the two sides of the sum may differ in shape"
            elif only_reader(value) is None:
                why = why or READ_BY_OTHERS
            else:
                return _followed(made, WITH_RESIDUAL[name], add, [other], {}, rewriter)
    return why


def activated(relu: ir.Node, rewriter: Rewriter) -> Outcome:
    """Take Relu into the product or convolution before it."""
    value = relu.inputs[0]
    made = value.producer() if value is not None else None
    if relu.domain or made is None or not is_own(made, *WITH_RELU):
        return None
    return _followed(made, WITH_RELU[made.op_type], relu, [], {}, rewriter)


def normed(norm: ir.Node, rewriter: Rewriter) -> Outcome:
    """Take a LayerNormalization over the channels into the depthwise convolution before it."""
    value = norm.inputs[0]
    made = value.producer() if value is not None else None
    if norm.domain or value is None or made is None or not is_own(made, "DepthwiseConv"):
        return None
    if norm.attributes.get_int("axis", -1) not in (-1, 3) or any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
        return "it is not over the channels alone, or its statistics are read"
    given = half_weight(norm.inputs[1])
    beta = norm.inputs[2] if len(norm.inputs) > 2 else None
    if given is None or given != half_weight(made.inputs[2]) or (beta is not None and half_weight(beta) != given):
        return "its scale and shift are not FP16 vectors of the model, with a number for each channel"
    inputs = [norm.inputs[1], beta if beta is not None else zeros(given[0], rewriter)]
    if given[0] > WIDEST_NORM:
        return f"it is over {given[0]} channels, more than {WIDEST_NORM}"
    return _followed(
        made, "DepthwiseConvNorm", norm, inputs, {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}, rewriter
    )  # fmt: skip


def _unfit(product: ir.Node, bias: ir.Value) -> str | bool | None:
    """Say why a product is not made a Linear: None if it is none with a weight, True if nothing is against it."""
    source, weight = product.inputs
    dims = half_weight(weight)
    if source is None or not is_half(source) or dims is None or len(dims) != 2:
        return None
    if source.shape is None or source.shape.rank() < 2 or not last_bias(bias, dims[1], source.shape.rank()):
        return None
    if any(size % ALIGNED for size in dims):
        return f"its weight of {dims[0]} x {dims[1]} is not in multiples of {ALIGNED}"
    return True if only_reader(product.outputs[0]) is not None else READ_BY_OTHERS


def _linear(name: str, product: ir.Node, bias: ir.Value, last: ir.Node, rewriter: Rewriter) -> ir.Node:
    return _put(last, name, [*product.inputs, bias_of(bias, rewriter)], {}, rewriter)


def _followed(
    made: ir.Node, name: str, last: ir.Node, more: list[ir.Value | None], attributes: dict[str, float], rewriter: Rewriter
) -> Outcome:  # fmt: skip
    """Put an operator of ours, with more inputs and attributes, in the place of the last of two, if only that reads the first."""
    if last.graph is not made.graph:
        return None
    if only_reader(made.outputs[0]) is None:
        return READ_BY_OTHERS
    kept = {a.name: a for a in made.attributes.values()} | attributes
    return lambda: _put(last, name, [*made.inputs, *more], kept, rewriter)


def _put(
    last: ir.Node, name: str, inputs: list[ir.Value | None], attributes: Mapping[str, Any], rewriter: Rewriter
) -> ir.Node:  # fmt: skip
    sizes = rewriter.sizes.of(last.outputs[0])
    node = rewriter.replace(last, name, inputs, attributes, domain=DOMAIN)
    if sizes is not None:
        rewriter.sizes.learn(node.outputs[0], sizes)
    return node
