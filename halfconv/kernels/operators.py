"""The operators of domain ``com.halfconv``: what each computes, in operators that every ONNX Runtime has.

A converted model carries the definitions of those it uses as local functions. Where the library of CUDA kernels is registered, ONNX
Runtime takes a kernel of the same name; anywhere else it inlines the function. So one file runs everywhere. A kernel accumulates in
FP32 and rounds its result, a GELU or a norm perhaps the sum before it too; a residual is added before the activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx.parser
import onnx_ir as ir

__all__ = ["DOMAIN", "OPERATORS", "TO_FIRST", "TO_LAST", "VERSION", "Operator", "altered", "define", "used"]

DOMAIN, VERSION = "com.halfconv", 1
#: Axes of a Transpose from channels last to channels first, and back.
TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class Operator:
    """One row.

    Attributes:
        inputs: Names of its inputs; all are always given.
        body: What computes its output Y from them, in ONNX's text form, where ``@`` refers to an attribute of the operator.
        attributes: Names of its attributes; all are always given.
    """

    inputs: tuple[str, ...]
    body: str
    attributes: tuple[str, ...] = ()


_FIRST, _LAST = (f"Transpose <perm = [{', '.join(map(str, axes))}]>" for axes in (TO_FIRST, TO_LAST))
_PRODUCT = "product = MatMul (X, W)"
_CONV_ATTRIBUTES = ("strides", "pads", "dilations")
_CONV = f"""
    image = {_FIRST} (X)
    kernel = {_FIRST} (W)
    first = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations> (image, kernel, B)
    {{}} = {_LAST} (first)
"""
_DEPTHWISE = f"""
    image = {_FIRST} (X)
    kernel = Transpose <perm = [3, 2, 0, 1]> (W)
    first = Conv <pads: ints = @pads, group: int = @group> (image, kernel, B)
    {{}} = {_LAST} (first)
"""
_XWB, _XWBR = ("X", "W", "B"), ("X", "W", "B", "R")
_NORM = "LayerNormalization <axis = -1, epsilon: float = @epsilon>"
_PARTS = "form = Constant <value = int64[4] {0, 0, 3, -1}> () parts = Reshape (X, form)" + "".join(
    f"""
    at{part} = Constant <value = int64 {{{place}}}> ()
    {part} = Gather <axis = 2> (parts, at{part})
    """
    for place, part in enumerate("QKV")
)
_ATTEND = "com.microsoft.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>"

#: All tensors are FP16 in a converted model; the bodies hold in FP32, too. X of a convolution is [image, height, width, channel].
OPERATORS: Mapping[str, Operator] = {
    # W [in, out]
    "Linear": Operator(_XWB, f"{_PRODUCT} Y = Add (product, B)"),
    "LinearRelu": Operator(_XWB, f"{_PRODUCT} biased = Add (product, B) Y = Relu (biased)"),
    "LinearGelu": Operator(_XWB, f"{_PRODUCT} Y = com.microsoft.BiasGelu (product, B)"),
    "LinearAdd": Operator(_XWBR, f"{_PRODUCT} biased = Add (product, B) Y = Add (biased, R)"),
    "LinearAddRelu": Operator(_XWBR, f"{_PRODUCT} biased = Add (product, B) sum = Add (biased, R) Y = Relu (sum)"),
    # X [batch, length, 3 * width]: queries, keys and values side by side; bias is added to their products
    "PackedAttention": Operator(("X",), f"{_PARTS} Y = {_ATTEND} (Q, K, V)", ("num_heads", "scale")),
    "PackedAttentionBias": Operator(("X", "bias"), f"{_PARTS} Y = {_ATTEND} (Q, K, V, , , bias)", ("num_heads", "scale")),
    # W [out, height, width, in]; one group
    "Conv": Operator(_XWB, _CONV.format("Y"), _CONV_ATTRIBUTES),
    "ConvRelu": Operator(_XWB, f"{_CONV.format('conv')} Y = Relu (conv)", _CONV_ATTRIBUTES),
    "ConvAdd": Operator(_XWBR, f"{_CONV.format('conv')} Y = Add (conv, R)", _CONV_ATTRIBUTES),
    "ConvAddRelu": Operator(_XWBR, f"{_CONV.format('conv')} sum = Add (conv, R) Y = Relu (sum)", _CONV_ATTRIBUTES),
    # W [height, width, 1, channel]; as many groups as channels
    "DepthwiseConv": Operator(_XWB, _DEPTHWISE.format("Y"), ("pads", "group")),
    "DepthwiseConvNorm": Operator(
        (*_XWB, "gamma", "beta"),
        f"{_DEPTHWISE.format('conv')} Y = {_NORM} (conv, gamma, beta)",
        ("pads", "group", "epsilon"),
    ),
    "LayerNorm": Operator(("X", "gamma", "beta"), f"Y = {_NORM} (X, gamma, beta)", ("epsilon",)),
    # Over height and width, kept as axes of size 1. ONNX Runtime's ReduceMean may round the sum before it divides.
    "GlobalAveragePool": Operator(
        ("X",), f"image = {_FIRST} (X) mean = GlobalAveragePool (image) Y = {_LAST} (mean)"
    ),
}  # fmt: skip


def define(name: str, opset: int) -> ir.Function:
    """Return the function of an operator.

    Args:
        name: A name of `OPERATORS`.
        opset: The opset of ONNX's own operators in the model.
    """
    row = OPERATORS[name]
    attributes = f"<{', '.join(row.attributes)}>" if row.attributes else ""
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if "com.microsoft" in row.body else "")
    text = (
        f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n'
        f"{name} {attributes} ({', '.join(row.inputs)}) => (Y) {{ {row.body} }}"
    )
    function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    for node in function:  # ONNX Runtime 1.20 names what it fuses after them, and refuses a name that comes twice
        node.name = node.outputs[0].name
    return function


def altered(model: ir.Model) -> list[str]:
    """Return the operators that a model's own functions define otherwise than `define` does; kernels would beat them."""
    return [
        name
        for (domain, name, _), function in model.functions.items()
        if domain == DOMAIN and name in OPERATORS and _steps(function) != _steps(define(name, function.opset_imports.get("", 1)))
    ]


def _steps(function: ir.Function) -> list[bytes]:
    """Return what a function computes, apart from names of nodes and types that tools write beside it."""
    proto = ir.serde.serialize_function(function)
    for node in proto.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
    return [repr([*proto.input, *proto.output]).encode(), *(node.SerializeToString(deterministic=True) for node in proto.node)]


def used(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """Return which operators are among nodes, and how many of each, in the order of `OPERATORS`."""
    found = dict.fromkeys(OPERATORS, 0)
    for node in nodes:
        if node.domain == DOMAIN:
            found[node.op_type] += 1
    return {name: count for name, count in found.items() if count}
