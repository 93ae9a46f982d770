"""What a reduction reduces: its axes, their number of elements, and whether they are at one end of the shape."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["axes_of", "over_an_end", "over_last", "reduced_count"]


def axes_of(node: ir.Node) -> list[int] | None:
    """Return a reduction's axes; an empty list means all, None that they are computed.

    Args:
        node: A reduction of any opset.
    """
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        return []
    if given.const_value is None or given.is_graph_input():
        return None
    return [int(axis) for axis in given.const_value.numpy().reshape(-1)]


def over_an_end(node: ir.Node) -> bool:
    """Tell whether a reduction is over leading or over trailing axes; axes that are computed count as such.

    ONNX Runtime's CUDA provider then runs kernels of its own, whose mean in half rounds the sum before it divides; other means go
    to cuDNN, which divides in FP32 (seen on an H100, 1.31.1).
    """
    value, axes = node.inputs[0], axes_of(node)
    if axes is None:
        return True
    if not axes:
        return not node.attributes.get_int("noop_with_empty_axes", False)
    shape = value.shape if value is not None else None
    if shape is None:
        return axes in ([-1], [0])
    sizes = list(shape)
    reduced = {axis % len(sizes) for axis in axes} if sizes else set()
    summed = [i for i in reduced if sizes[i] != 1]
    kept = [i for i in range(len(sizes)) if i not in reduced and sizes[i] != 1]
    return not kept or not summed or max(summed) < min(kept) or min(summed) > max(kept)


def over_last(node: ir.Node) -> bool:
    """Tell whether a reduction is over the last axis alone, which stays with size 1."""
    value, axes = node.inputs[0], axes_of(node)
    shape = value.shape if value is not None else None
    last = axes == [-1] or (shape is not None and axes == [shape.rank() - 1])
    return last and node.attributes.get_int("keepdims", 1) == 1


def reduced_count(node: ir.Node) -> int | None:
    """Return how many elements one result is made of, or None where that is not known before the run."""
    value, axes = node.inputs[0], axes_of(node)
    shape = value.shape if value is not None else None
    if shape is None or axes is None:
        return None
    sizes = [shape[axis % shape.rank()] for axis in axes] if axes and shape.rank() else list(shape)
    count = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        count *= size
    return count
