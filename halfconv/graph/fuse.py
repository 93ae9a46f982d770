"""Fuse decomposed operators whose inside half precision cannot hold.

LayerNormalization computes its statistics in FP32 inside one kernel, so a fused norm needs no Casts around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from halfconv.graph.lift import lift
from halfconv.graph.reductions import axes_of, over_last
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["CancelRootPass", "FuseLayerNormPass", "PoolMeanPass", "put_in_place"]


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or not is_weight(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is(node: ir.Node | None, op_type: str, graph: ir.Graph | None) -> bool:
    return node is not None and node.op_type == op_type and not node.domain and node.graph is graph


def _is_square(node: ir.Node | None) -> bool:
    if node is None or node.domain or len(node.inputs) < 2:
        return False
    return (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]) or (
        node.op_type == "Pow" and _scalar(node.inputs[1]) == 2.0
    )


def _never_negative(value: ir.Value | None) -> bool:
    """Tell whether a value is a square or a sum of squares."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and not node.domain:
        return all(_never_negative(part) for part in node.inputs)
    return _is_square(node)


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


class CancelRootPass(ir.passes.InPlacePass):
    """Remove a root that is squared again: sqrt(re² + im²)² is re² + im².

    Power spectra are exported so. Only roots of sums of squares are cancelled, for which both forms are the same.

    Attributes:
        count: Number of pairs removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        for square in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            root = square.inputs[0].producer() if _is_square(square) and square.inputs[0] is not None else None
            if root is None or not _is(root, "Sqrt", square.graph) or not _never_negative(root.inputs[0]):
                continue
            output, power = square.outputs[0], root.inputs[0]
            if output.is_graph_output() or power is None or square.graph is None:
                continue
            output.replace_all_uses_with(power)
            square.graph.remove(square, safe=True)
            self.count += 1
        return ir.passes.PassResult(model, modified=bool(self.count))


class PoolMeanPass(ir.passes.InPlacePass):
    """Write a mean over all spatial axes as GlobalAveragePool.

    The two are the same, but in half the CUDA provider's mean rounds the sum before it divides, and overflows on feature maps of
    ordinary size; its pooling keeps FP32 inside.

    Attributes:
        count: Number of means written so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            value = node.inputs[0] if node.op_type == "ReduceMean" and not node.domain and node.inputs else None
            if value is None or value.shape is None or not is_float(value) or node.attributes.get_int("keepdims", 1) != 1:
                continue
            rank, axes = value.shape.rank(), axes_of(node)
            if axes is None or rank not in (4, 5) or {axis % rank for axis in axes} != set(range(2, rank)):
                continue
            put_in_place(ir.node("GlobalAveragePool", [value], metadata_props=dict(node.metadata_props)), node)
            self.count += 1
        return ir.passes.PassResult(model, modified=bool(self.count))


class FuseLayerNormPass(ir.passes.InPlacePass):
    """Fuse (x − mean) / sqrt(mean((x − mean)²) + eps) · gamma + beta over the last axis into LayerNormalization.

    The model's opset is raised to 17 for it where that changes nothing else; models where it would keep their norms decomposed.

    Attributes:
        count: Number of norms fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        found = [match for node in ir.traversal.RecursiveGraphIterator(model.graph) if (match := _match(node))]
        if not found or not lift(model, 17):
            return ir.passes.PassResult(model, modified=False)
        for match in found:
            # Matched again: the input of this norm may be the output of one that was just replaced.
            again = _match(next(node for node in match[0] if node.op_type == "Div"))
            if again is not None:
                nodes, x, scale, bias, epsilon = again
                last, properties = nodes[-1], dict(nodes[-1].metadata_props)
                norm = ir.node("LayerNormalization", [x, scale, bias], {"axis": -1, "epsilon": epsilon}, metadata_props=properties)
                put_in_place(norm, last, nodes[-2::-1])
                self.count += 1
        return ir.passes.PassResult(model, modified=bool(found))


def _match(div: ir.Node) -> tuple[list[ir.Node], ir.Value, ir.Value, ir.Value, float] | None:
    """Match from the division: its numerator is centred, its denominator is the root of the mean square plus epsilon."""
    if div.op_type != "Div" or div.domain or len(div.inputs) != 2:
        return None
    graph = div.graph
    centred, root = (value.producer() if value is not None else None for value in div.inputs)
    if centred is None or root is None or not _is(root, "Sqrt", graph) or not _is(centred, "Sub", graph):
        return None
    add = root.inputs[0].producer() if root.inputs[0] is not None else None
    if add is None or not _is(add, "Add", graph):
        return None
    sides = [(add.inputs[0], _scalar(add.inputs[1])), (add.inputs[1], _scalar(add.inputs[0]))]
    variance, epsilon = next(((v, e) for v, e in sides if e is not None), (None, None))
    mean_square = variance.producer() if variance is not None else None
    if mean_square is None or epsilon is None or not _is(mean_square, "ReduceMean", graph):
        return None
    square = mean_square.inputs[0].producer() if mean_square.inputs[0] is not None else None
    if square is None or square.graph is not graph:
        return None
    if not (
        (_is(square, "Pow", graph) and _scalar(square.inputs[1]) == 2.0)
        or (_is(square, "Mul", graph) and square.inputs[0] is square.inputs[1])
    ):
        return None
    # Some exporters compute x − mean twice.
    centred_again = square.inputs[0].producer() if square.inputs[0] is not None else None
    if centred_again is None or not _is(centred_again, "Sub", graph):
        return None
    x, means = centred.inputs[0], []
    for sub in dict.fromkeys((centred, centred_again)):
        mean = sub.inputs[1].producer() if sub.inputs[1] is not None else None
        if mean is None or not _is(mean, "ReduceMean", graph) or sub.inputs[0] is not x or mean.inputs[0] is not x:
            return None
        means.append(mean)
    if x is None or not is_float(x) or not all(over_last(mean) for mean in (*means, mean_square)):
        return None
    mul = _only_reader(div.outputs[0])
    bias_add = _only_reader(mul.outputs[0]) if mul is not None and _is(mul, "Mul", graph) else None
    if mul is None or bias_add is None or not _is(bias_add, "Add", graph):
        return None
    scale = next((v for v in mul.inputs if v is not div.outputs[0]), None)
    bias = next((v for v in bias_add.inputs if v is not mul.outputs[0]), None)
    if scale is None or bias is None or not _is_vector(scale, x) or not _is_vector(bias, x):
        return None
    inside = list(dict.fromkeys([*means, centred, centred_again, square, mean_square, add, root, div, mul, bias_add]))
    for node in inside[:-1]:
        if any(use.node not in inside for use in node.outputs[0].uses()) or node.outputs[0].is_graph_output():
            return None
    return inside, x, scale, bias, epsilon


def _is_vector(value: ir.Value, x: ir.Value) -> bool:
    """Tell whether a value has one number per element of x's last axis; of a computed one both sizes must be known."""
    if not is_float(value) or value.shape is None or value.shape.rank() != 1:
        return False
    if x.shape is None:
        return is_weight(value)
    if x.shape.rank() == 0:
        return False
    last, size = x.shape[-1], value.shape[0]
    return last == size if isinstance(last, int) else is_weight(value)
