"""Which convolutions our kernels compute, and how a node of ours is written for one, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from halfconv.graph.rules import Rewriter
from halfconv.kernels.parts import ALIGNED, half_weight, is_half, reshaped, zeros

__all__ = ["Convolution", "convolution"]

#: Heights and widths of the kernels of one channel.
FILTERS = (3, 5, 7)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution as an operator of ours.

    Attributes:
        op: The operator.
        weight: Its weight as the model has it, [out, in, height, width].
        form: What the weight's form for our operator is called.
        axes: The axes of that form, by those of the model's.
        shape: Its dimensions.
        bias: The bias; None if it has none.
        attributes: Attributes.
    """

    op: str
    weight: ir.Value
    form: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    bias: ir.Value | None
    attributes: dict[str, Any] = field(default_factory=dict)

    def inputs(self, source: ir.Value, rewriter: Rewriter) -> list[ir.Value]:
        """Return the inputs of our operator, given the image with channels last."""
        assert self.weight.const_value is not None
        channels = self.weight.const_value.shape.numpy()[0]
        weight = reshaped(self.weight, self.form, self.shape, lambda array: array.transpose(self.axes), rewriter)
        return [source, weight, self.bias if self.bias is not None else zeros(channels, rewriter)]


def convolution(node: ir.Node) -> Convolution | str | None:
    """Return the operator of ours for a Conv; why there is none; or None if it is no FP16 convolution of images with a weight."""
    if node.op_type != "Conv" or node.domain or not is_half(node.inputs[0], node.outputs[0]):
        return None
    dims = half_weight(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    weight = node.inputs[1]
    if weight is None or dims is None or len(dims) != 4:
        return None
    if bias is not None and half_weight(bias) != (dims[0],):
        return "its bias is not an FP16 vector of the model"
    strides, dilations = (_two(node, name) for name in ("strides", "dilations"))
    pads = _pads(node, dims[2:], strides, dilations)
    if pads is None:
        return f"its auto_pad {node.attributes.get_string('auto_pad', '')} depends on the size of the image"
    groups, channels = node.attributes.get_int("group", 1), dims[1] * node.attributes.get_int("group", 1)
    if groups == channels == dims[0] and groups > 1:
        return _depthwise(weight, dims, bias, strides, dilations, pads)
    if groups != 1:
        return f"it has {groups} groups"
    if dims[0] % ALIGNED or channels % ALIGNED:
        return f"its {channels} channels in and {dims[0]} out are not multiples of {ALIGNED}"
    if dims[2:] == (1, 1) and strides == [1, 1] and not any(pads):
        return Convolution("Linear", weight, "matrix", (2, 3, 1, 0), (channels, dims[0]), bias)
    shape = (dims[0], *dims[2:], channels)
    attributes = {"strides": strides, "pads": pads, "dilations": dilations}
    return Convolution("Conv", weight, "last", (0, 2, 3, 1), shape, bias, attributes)


def _depthwise(
    weight: ir.Value, dims: Sequence[int], bias: ir.Value | None, strides: list[int], dilations: list[int], pads: list[int]
) -> Convolution | str:  # fmt: skip
    if strides != [1, 1] or dilations != [1, 1]:
        return f"its kernels of one channel have strides {strides} and dilations {dilations}"
    if dims[2] != dims[3] or dims[2] not in FILTERS:
        return f"its kernels of one channel are {dims[2]} x {dims[3]}, not square and {', '.join(map(str, FILTERS))} wide"
    if any(pads[axis] + pads[axis + 2] != dims[axis + 2] - 1 for axis in (0, 1)):
        return "its kernels of one channel change the size of the image"
    if dims[0] % ALIGNED:
        return f"its {dims[0]} channels are not a multiple of {ALIGNED}"
    attributes = {"pads": pads, "group": dims[0]}
    return Convolution("DepthwiseConv", weight, "filter", (2, 3, 1, 0), (dims[2], dims[3], 1, dims[0]), bias, attributes)


def _two(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [1, 1]


def _pads(node: ir.Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int] | None:
    """Return top, left, bottom and right; None if they depend on a size that is not known."""
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind in ("NOTSET", ""):
        return list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else [0, 0, 0, 0]
    if kind == "VALID":
        return [0, 0, 0, 0]
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sides: tuple[list[int], list[int]] = ([], [])
    for axis in (0, 1):
        size = shape[axis + 2] if shape is not None else None
        if not isinstance(size, int) and strides[axis] != 1:
            return None
        steps = -(-size // strides[axis]) - 1 if isinstance(size, int) else 0
        rest = 0 if not isinstance(size, int) else steps * strides[axis] - (size - 1)
        total = max(0, rest + (kernel[axis] - 1) * dilations[axis])
        less, more = total // 2, total - total // 2
        sides[0].append(less if kind == "SAME_UPPER" else more)
        sides[1].append(more if kind == "SAME_UPPER" else less)
    return [*sides[0], *sides[1]]
