"""Products with a weight, and what follows products and convolutions: bias, residual and activation become one operator."""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import MS, READ_BY_OTHERS, Outcome, Rewriter
from halfconv.graph.typegroups import is_weight
from halfconv.kernels.parts import (
    ALIGNED,
    bias_of,
    followed,
    half_weight,
    is_half,
    is_own,
    last_bias,
    put,
    same_shape,
)

__all__ = ["activated", "biased_product", "gelu_product", "residual"]

#: What each operator becomes with a residual, with Relu, with GELU behind it.
WITH_RESIDUAL = {"Linear": "LinearAdd", "Conv": "ConvAdd"}
WITH_RELU = {
    "Linear": "LinearRelu", "LinearAdd": "LinearAddRelu", "Conv": "ConvRelu", "ConvAdd": "ConvAddRelu",
}  # fmt: skip


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
    return followed(made, "LinearGelu", gelu, [], {}, rewriter)


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
                return followed(made, WITH_RESIDUAL[name], add, [other], {}, rewriter)
    return why


def activated(relu: ir.Node, rewriter: Rewriter) -> Outcome:
    """Take Relu into the product or convolution before it."""
    value = relu.inputs[0]
    made = value.producer() if value is not None else None
    if relu.domain or made is None or not is_own(made, *WITH_RELU):
        return None
    return followed(made, WITH_RELU[made.op_type], relu, [], {}, rewriter)


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
    return put(last, name, [*product.inputs, bias_of(bias, rewriter)], {}, rewriter)
