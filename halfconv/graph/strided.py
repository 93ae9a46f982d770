"""Remove a Gather that picks all elements in order: what PyTorch's dynamo exporter makes of an ``as_strided`` that changes nothing.

Its places are computed from the batch size. A shape that is computed keeps ONNX Runtime from a CUDA graph where operators are laid
out channels last (1.31.1: it assigns the integers' operators to the GPU then, and copies their results back).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op
from halfconv.graph.reductions import axes_of
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.sizes import Size
from halfconv.graph.transposes import dropped
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["drop_gather"]

#: How far places are followed up, and elements of a constant among them at most.
DEPTH, MOST = 20, 1 << 20
#: The batch size that places are computed for. They are sums of the row's number times a factor, and constants: three rows tell.
ROWS = 3


def drop_gather(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Remove a Gather from a flattened value that has the value's shape, and picks element after element."""
    flat, places, output = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None, node.outputs[0]
    reshape = flat.producer() if flat is not None else None
    if places is None or reshape is None or node.domain or node.attributes.get_int("axis", 0) != 0 or not is_float(output):
        return None
    value = reshape.inputs[0]
    if value is None or is_weight(places) or not is_op(reshape, "Reshape", node.graph):
        return None
    shape, target = rewriter.sizes.of(value), rewriter.sizes.elements(reshape.inputs[1])
    if target != [-1] or not shape or not all(isinstance(size, int) for size in shape[1:]) or output.is_graph_output():
        return None
    picked = _places(places, shape[0], rewriter, DEPTH)
    wanted = (ROWS, *(size for size in shape[1:] if isinstance(size, int)))
    if picked is None or picked.shape != wanted or not np.array_equal(picked.reshape(-1), np.arange(picked.size)):
        return "its places are not those of all elements in order"
    return dropped(node, value)


def _places(value: ir.Value | None, batch: Size, rewriter: Rewriter, depth: int) -> np.ndarray | None:
    """Compute integers for a batch of `ROWS`, if each is a constant, or a constant times the row's number, or a sum of these."""
    if value is None or depth == 0:
        return None
    if is_weight(value):
        tensor = value.const_value
        return tensor.numpy() if tensor is not None and tensor.size <= MOST and tensor.dtype == ir.DataType.INT64 else None
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Range":
        ends = [rewriter.sizes.elements(read) for read in node.inputs]
        return np.arange(ROWS) if ends == [[0], [batch], [1]] else None
    sides = [_places(read, batch, rewriter, depth - 1) for read in node.inputs[: 1 if node.op_type == "Unsqueeze" else 2]]
    first, *more = sides
    if first is None or any(side is None for side in more):
        return None
    if node.op_type == "Unsqueeze":
        axes = axes_of(node)
        return None if axes is None else np.expand_dims(first, tuple(axes))
    second = more[0] if more else None
    if second is None or first.size * second.size > MOST:
        return None
    if node.op_type == "Add":
        return np.asarray(first + second)
    if node.op_type == "Mul" and any(read is not None and is_weight(read) for read in node.inputs):
        return np.asarray(first * second)
    return None
