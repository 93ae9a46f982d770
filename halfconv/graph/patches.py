"""Compute a convolution as a product of its image's patches, where its windows do not overlap and its result goes on channels last.

So vision transformers embed an image (kernel 16, stride 16, 3 channels in), and ConvNeXt and Swin begin (kernel 4, stride 4). A
convolution of so few channels leaves most of a tensor core idle. A product of windows, all numbers of each in one row, fills it,
and writes what its reader wants: the Transpose behind the convolution goes, and one before it moves pixels into windows itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader, remove_unread
from halfconv.graph.rules import READ_BY_OTHERS, Outcome, Rewriter, is_transpose, readers
from halfconv.graph.sizes import Size, perm_of
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["patches"]

#: From so many channels on, a convolution fills tensor cores itself: they take 16 bytes of a pixel at once.
ENOUGH = 8
#: Numbers that a window has at least: as many as tensor cores multiply in one step.
STEP = 16


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows that fill an image, each pixel in one.

    Attributes:
        conv: The convolution.
        image: What it reads.
        weight: Its weight, [out, in, *kernel].
        bias: Its bias; None if it has none.
        kernel: Sizes of a window.
        counts: Windows along each axis.
        channels: Channels of the image.
        out: Channels of the result.
    """

    conv: ir.Node
    image: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    kernel: list[int]
    counts: list[int]
    channels: int
    out: int

    @property
    def length(self) -> int:
        """Numbers of a window."""
        return self.channels * math.prod(self.kernel)


def patches(conv: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn a Conv of windows beside each other, and the Transpose behind it, into Reshape, Transpose, Reshape, MatMul and Add."""
    found = _windows(conv)
    if found is None or isinstance(found, str):
        return found
    last = _last(found, rewriter)
    return last if isinstance(last, str) else lambda: _product(found, last, rewriter)


def _windows(conv: ir.Node) -> _Windows | str | None:
    """Match the convolution; None if its windows overlap, are single pixels, or leave gaps."""
    image, weight, *rest = conv.inputs
    if image is None or weight is None or conv.domain or not is_float(image) or image.shape is None or weight.shape is None:
        return None
    dims = [size if isinstance(size, int) else 0 for size in weight.shape]
    out, channels, *kernel = dims
    if 0 in dims or image.shape.rank() != len(dims) or _ints(conv, "strides", 1, kernel) != kernel or set(kernel) == {1}:
        return None
    if any(step != 1 and size != 1 for step, size in zip(_ints(conv, "dilations", 1, kernel), kernel, strict=True)):
        return None
    if (groups := conv.attributes.get_int("group", 1)) != 1:
        return f"it has {groups} groups"
    if channels >= ENOUGH:
        return f"its input has {channels} channels, enough for tensor cores as it is"
    if channels * math.prod(kernel) < STEP:
        return f"its windows have {channels * math.prod(kernel)} numbers, too few for tensor cores"
    if not is_weight(weight) or weight.const_value is None:
        return "its weight is computed"
    padded = conv.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "") and any(_ints(conv, "pads", 0, [*kernel, *kernel]))
    sizes = [size if isinstance(size, int) else 0 for size in image.shape[2:]]
    if 0 in sizes:
        return "the size of its image is not known"
    if padded or any(size % window for size, window in zip(sizes, kernel, strict=True)):
        return "its windows do not fill the image, or reach beyond it"  # as they would with any auto_pad
    counts = [size // window for size, window in zip(sizes, kernel, strict=True)]
    return _Windows(conv, image, weight, rest[0] if rest else None, kernel, counts, channels, out)


def _ints(conv: ir.Node, name: str, default: int, axes: Sequence[int]) -> list[int]:
    return list(conv.attributes[name].as_ints()) if name in conv.attributes else [default] * len(axes)


def _last(found: _Windows, rewriter: Rewriter) -> ir.Node | str:
    """Return the Transpose to channels last that alone reads the result, or reads it with its axes made one."""
    result, graph, rank = found.conv.outputs[0], found.conv.graph, len(found.kernel) + 2
    following = [node for node in readers(result) if not is_op(node, "Shape", graph) or node.outputs[0].is_graph_output()]
    if len(following) != 1 or result.is_graph_output():
        return READ_BY_OTHERS
    node = following[0]
    if is_op(node, "Reshape", graph) and node.inputs[0] is result:
        flat = [rewriter.sizes.size(found.image, 0), found.out, math.prod(found.counts)]
        if rewriter.sizes.of(node.outputs[0]) != flat:
            return "its result is read channels first"
        reader = only_reader(node.outputs[0])
        if reader is None:
            return READ_BY_OTHERS
        node, rank = reader, 3
    if not is_op(node, "Transpose", graph) or not is_transpose(node, (0, *range(2, rank), 1)):
        return "its result is read channels first"
    return node


def _product(found: _Windows, last: ir.Node, rewriter: Rewriter) -> ir.Node:
    """Put the product in the place of the last node, and remove the convolution."""
    conv, axes, batch = found.conv, len(found.kernel), rewriter.sizes.size(found.image, 0)
    rows = found.counts if last.inputs[0] is conv.outputs[0] else [math.prod(found.counts)]
    source, perm = _source(found)
    split: list[int] = []
    outer: dict[int, int] = {}
    inner, order = [], [perm.index(place) for place in range(1, axes + 2)]
    for axis in order:  # 1 is that of channels, as in the weight
        if axis > 1:
            split.append(found.counts[axis - 2])
            outer[axis] = len(split)
        if axis > 1 or found.channels > 1:
            split.append(found.kernel[axis - 2] if axis > 1 else found.channels)
            inner.append(len(split))
    turn, sizes = [0, *(outer[axis] for axis in range(2, axes + 2)), *inner], [batch, *split]
    value = source
    if turn != sorted(turn):  # windows of one axis and one channel follow each other already
        value = _reshaped(source, split, batch, conv, "split", rewriter)
        value = rewriter.add("Transpose", [value], conv, "windows", [sizes[axis] for axis in turn], {"perm": turn})
    matrix = _matrix(found, (*order, 0), rewriter)
    value = _reshaped(value, [*rows, found.length], batch, conv, "patches", rewriter)
    inputs, op = [value, matrix], "MatMul"
    if found.bias is not None:
        inputs = [rewriter.add("MatMul", inputs, conv, "product", [batch, *rows, found.out]), found.bias]
        op = "Add"
    made = rewriter.replace(last, op, inputs)
    rewriter.sizes.learn(made.outputs[0], [batch, *rows, found.out])
    _answer_shapes(found, batch, rewriter)
    return made


def _source(found: _Windows) -> tuple[ir.Value, list[int]]:
    """Return the image, and the order of its axes; if a Transpose makes it that leaves the batch first, what that was given."""
    before, rank = found.image.producer(), len(found.kernel) + 2
    if before is not None and is_op(before, "Transpose", found.conv.graph) and before.inputs[0] is not None:
        perm = perm_of(before, rank)
        if perm[0] == 0:
            return before.inputs[0], perm
    return found.image, list(range(rank))


def _reshaped(value: ir.Value, sizes: list[int], batch: Size, conv: ir.Node, hint: str, rewriter: Rewriter) -> ir.Value:
    """Give a value other sizes behind the batch, which is copied whatever it is."""
    shape = rewriter.constant(np.array([0, *sizes], np.int64), f"{conv.outputs[0].name}_{hint}_shape")
    return rewriter.add("Reshape", [value, shape], conv, hint, [batch, *sizes])


def _matrix(found: _Windows, order: tuple[int, ...], rewriter: Rewriter) -> ir.Value:
    """Return the weight as a matrix, [numbers of a window, out]; the same for all who ask."""
    key, tensor = (found.weight, order), found.weight.const_value
    assert tensor is not None
    if key not in rewriter.shared:

        def arranged() -> np.ndarray:
            return np.ascontiguousarray(tensor.numpy().transpose(order).reshape(found.length, found.out))

        rewriter.shared[key] = rewriter.lazy(arranged, [found.length, found.out], f"{found.weight.name}_matrix")
    return rewriter.shared[key]


def _answer_shapes(found: _Windows, batch: Size, rewriter: Rewriter) -> None:
    """Tell those that ask for the shape of the convolution's result: TorchScript's exporter computes other shapes from it."""
    whole: list[Size] = [batch, found.out, *found.counts]
    for node in readers(found.conv.outputs[0]):
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(whole))
        asked, hint = whole[start:end], node.outputs[0].name
        numbers = [size for size in asked if isinstance(size, int)]
        told = rewriter.constant(np.array(numbers, np.int64), f"{hint}_told")
        if len(numbers) < len(asked):
            shape = rewriter.add("Shape", [found.image], node, "image", [len(whole)], dtype=ir.DataType.INT64)
            first = rewriter.constant(np.array([0], np.int64), "first")
            told = rewriter.add(
                "Concat", [rewriter.add("Gather", [shape, first], node, "batch", [1], dtype=ir.DataType.INT64), told], node, "told",
                [len(asked)], {"axis": 0}, dtype=ir.DataType.INT64,
            )  # fmt: skip
        node.outputs[0].replace_all_uses_with(told)
        remove_unread([node])
