"""Walk a graph along its values: constants, readers across scopes, closures over operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from halfconv.graph.typegroups import is_float, is_weight
from halfconv.precision.cost import EXACT_OPS

__all__ = ["SELECTION_OPS", "backward", "constant", "forward", "inputs_of", "op", "readers", "scalar"]

#: Operators whose result is one of their inputs' elements, unchanged.
SELECTION_OPS = EXACT_OPS | {
    "Clip", "GlobalMaxPool", "Max", "MaxPool", "Min", "ReduceMax", "ReduceMin", "Relu", "TopK", "Where",
}  # fmt: skip

#: Larger constants are no scalars, masks or bounds.
SMALL = 4096


def op(node: ir.Node | None) -> str:
    """Return a node's operator if it belongs to ONNX's default domain, else ""."""
    return node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a small constant, through Constant nodes and exact operators of one input."""
    seen = 0
    while value is not None and seen < 8:
        if is_weight(value):
            tensor = value.const_value
            if tensor is None or tensor.size > SMALL or tensor.dtype == ir.DataType.STRING:
                return None
            return tensor.numpy()
        producer = value.producer()
        if op(producer) not in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Flatten"):
            return None
        assert producer is not None
        value, seen = producer.inputs[0], seen + 1
    return None


def scalar(value: ir.Value | None) -> float | None:
    """Return a constant's number if all its elements are that number."""
    array = constant(value)
    if array is None or array.size == 0 or array.dtype.kind not in "fiu":
        return None
    first = float(array.reshape(-1)[0])
    return first if np.all(array == array.reshape(-1)[0]) else None


def inputs_of(node: ir.Node) -> Iterator[ir.Value]:
    """Yield a node's FP32 inputs that are no weights."""
    for value in node.inputs:
        if value is not None and is_float(value) and not is_weight(value):
            yield value


def readers(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes that read a node's FP32 outputs, in all scopes."""
    for output in node.outputs:
        if is_float(output):
            yield from dict.fromkeys(use.node for use in output.uses())


def backward(start: Iterable[ir.Value], through: Callable[[ir.Node], bool], stop: Callable[[ir.Node], bool] | None = None,
             limit: int = 200) -> list[ir.Node]:  # fmt: skip
    """Collect the nodes that compute some values.

    Args:
        start: The values.
        through: Whether a node belongs to the closure and is walked through.
        stop: Whether a node that belongs to it ends the walk; default: none does.
        limit: Largest number of nodes; the nearest are kept.

    Returns:
        Nodes of the closure, nearest first.
    """
    found: dict[ir.Node, None] = {}
    todo = list(start)
    for value in todo:  # grows while it is walked: breadth first
        node = value.producer()
        if node is None or node in found or not through(node):
            continue
        if len(found) >= limit:
            break
        found[node] = None
        if stop is None or not stop(node):
            todo += inputs_of(node)
    return list(found)


def forward(start: Iterable[ir.Node], through: Callable[[ir.Node], bool], stop: Callable[[ir.Node], bool] | None = None,
            limit: int = 200) -> list[ir.Node]:  # fmt: skip
    """Collect the nodes that read, directly or not, what some nodes compute; see `backward`."""
    found: dict[ir.Node, None] = {}
    todo = [reader for node in start for reader in readers(node)]
    for node in todo:
        if node in found or not through(node):
            continue
        if len(found) >= limit:
            break
        found[node] = None
        if stop is None or not stop(node):
            todo += readers(node)
    return list(found)
