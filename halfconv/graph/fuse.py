"""What fusions have in common, and two that half precision needs on every target.

Which fusions there are, and which target gets which, is in `halfconv.graph.fusions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from halfconv.graph.names import subgraphs
from halfconv.graph.reductions import axes_of
from halfconv.graph.typegroups import is_float, is_weight

__all__ = [
    "CancelRootPass",
    "FusionPass",
    "PoolMeanPass",
    "is_op",
    "is_square",
    "only_reader",
    "put_in_place",
    "remove_unread",
    "scalar",
]


class FusionPass(ir.passes.InPlacePass):
    """What all fusions have.

    Attributes:
        count: Number of fusions.
        made: The nodes that they made.
        refused: Nodes where one began to match, and why it was not made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.made: list[ir.Node] = []
        self.refused: list[tuple[ir.Node, str]] = []


def scalar(value: ir.Value | None) -> float | None:
    """Return a weight's number if it holds one."""
    if value is None or not is_weight(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a value, if nothing else does."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def is_op(node: ir.Node | None, op_type: str, graph: ir.Graph | None) -> bool:
    """Tell whether a node is an operator of ONNX's default domain, in a graph."""
    return node is not None and node.op_type == op_type and not node.domain and node.graph is graph


def is_square(node: ir.Node | None) -> bool:
    """Tell whether a node squares its input."""
    if node is None or node.domain or len(node.inputs) < 2:
        return False
    return (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]) or (
        node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0
    )


def _never_negative(value: ir.Value | None) -> bool:
    """Tell whether a value is a square or a sum of squares."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and not node.domain:
        return all(_never_negative(part) for part in node.inputs)
    return is_square(node)


def put_in_place(node: ir.Node, last: ir.Node, parts: Sequence[ir.Node] = ()) -> None:
    """Put a node of one output in the place of a pattern's last node; the output keeps its name, type and shape.

    Args:
        node: The new node, in no graph yet.
        last: The node whose output it makes.
        parts: Nodes before it that go as well, readers first.
    """
    output, result, graph = last.outputs[0], node.outputs[0], last.graph
    assert graph is not None
    result.type, result.shape = output.type, output.shape
    last.append(node)
    node.name, name = last.name, output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove([last, *parts], safe=True)
    result.name = name


def remove_unread(nodes: Iterable[ir.Node | None]) -> None:
    """Remove nodes that nobody reads, and what only they read."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node is None or node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        if next(iter(subgraphs(node)), None) is not None:
            continue
        todo += [value.producer() for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)


class CancelRootPass(FusionPass):
    """Remove a root that is squared again: sqrt(re² + im²)² is re² + im².

    Power spectra are exported so. Only roots of sums of squares are cancelled, for which both forms are the same.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        for square in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            root = square.inputs[0].producer() if is_square(square) and square.inputs[0] is not None else None
            if root is None or not is_op(root, "Sqrt", square.graph) or not _never_negative(root.inputs[0]):
                continue
            output, power = square.outputs[0], root.inputs[0]
            if output.is_graph_output() or power is None or square.graph is None:
                continue
            output.replace_all_uses_with(power)
            square.graph.remove(square, safe=True)
            self.count += 1
        return ir.passes.PassResult(model, modified=bool(self.count))


class PoolMeanPass(FusionPass):
    """Write a mean over all spatial axes as GlobalAveragePool.

    The two are the same, but in half the CUDA provider's mean rounds the sum before it divides, and overflows on feature maps of
    ordinary size; its pooling keeps FP32 inside.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            value = node.inputs[0] if node.op_type == "ReduceMean" and not node.domain and node.inputs else None
            if value is None or value.shape is None or not is_float(value) or node.attributes.get_int("keepdims", 1) != 1:
                continue
            rank, axes = value.shape.rank(), axes_of(node)
            if axes is None or rank not in (4, 5) or {axis % rank for axis in axes} != set(range(2, rank)):
                continue
            self.made.append(ir.node("GlobalAveragePool", [value], metadata_props=dict(node.metadata_props)))
            put_in_place(self.made[-1], node)
            self.count += 1
        return ir.passes.PassResult(model, modified=bool(self.count))
