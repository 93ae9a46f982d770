"""Fuse decomposed LayerNorms and RMSNorms, whose inside half precision cannot hold.

LayerNormalization and RMSNormalization compute their statistics in FP32 inside one kernel: a fused norm needs no Casts around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import FusionPass, is_op, is_square, only_reader, put_in_place, scalar
from halfconv.graph.lift import Fresh, lift, obstacle
from halfconv.graph.reductions import over_last
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["FuseLayerNormPass", "FuseRmsNormPass", "match_rms"]

#: The longest axis for which a gamma of ones is made: what a file declares may be anything.
MAX_SIZE = 1 << 20
#: The opsets that brought LayerNormalization and RMSNormalization.
OPSET, RMS_OPSET = 17, 23


@dataclass(frozen=True, slots=True)
class _Norm:
    """A decomposed norm over the last axis.

    Attributes:
        nodes: Its nodes; the last one makes the result, and nothing else reads what the others make.
        x: What it normalises.
        scale: Its gamma; None if it has none.
        bias: Its beta; None if it has none.
        epsilon: What it adds to the variance.
    """

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    epsilon: float


class FuseLayerNormPass(FusionPass):
    """Fuse (x − mean) / sqrt(mean((x − mean)²) + eps) · gamma + beta over the last axis into LayerNormalization.

    Gamma and beta may be missing, or be something else than one number per element: then they stay behind the norm. The root may be
    applied as a division, a product with its reciprocal, or a power; and gamma may be multiplied into it first:
    x · w + (beta − mean · w) with w = gamma / sqrt(…).

    The model's opset is raised to 17 for it where that changes nothing else; models where it would keep their norms decomposed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        matching = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _match(node) is not None]
        if matching and not lift(model, OPSET):
            bar = obstacle(model, OPSET)
            what = f"which {bar.op_type} '{bar.name or ''}' keeps it from" if bar is not None else "to which it cannot be raised"
            self.refused = [(node, f"it needs opset {OPSET}, {what}; the model has {_opset(model)}") for node in matching]
            return ir.passes.PassResult(model, modified=False)
        self.made = _fuse(model, _match, "LayerNormalization")
        self.count = len(self.made)
        return ir.passes.PassResult(model, modified=bool(matching))


class FuseRmsNormPass(FusionPass):
    """Fuse x / sqrt(mean(x²) + eps) · gamma over the last axis into RMSNormalization, in models of opset 23 and later.

    Gamma may be missing. Older opsets have no operator for it, and raising a model so far would shut older runtimes out.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        if _opset(model) < RMS_OPSET:
            matching = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if match_rms(node) is not None]
            self.refused = [(node, f"it needs opset {RMS_OPSET}; the model has {_opset(model)}") for node in matching]
            return ir.passes.PassResult(model, modified=False)
        self.made = _fuse(model, match_rms, "RMSNormalization")
        self.count = len(self.made)
        return ir.passes.PassResult(model, modified=bool(self.count))


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", 0)


def _fuse(model: ir.Model, match: Callable[[ir.Node], _Norm | None], operator: str) -> list[ir.Node]:
    """Put an operator in the place of what matches, and return the nodes made."""
    ones, made = _Ones(model), []
    for node in [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if match(node) is not None]:
        # Matched again: the input of this norm may be the output of one that was just replaced.
        found = match(node)
        if found is None:
            continue
        scale = found.scale if found.scale is not None else ones.of(found.x)
        last = found.nodes[-1]
        norm = ir.node(
            operator,
            [found.x, scale, *([found.bias] if found.bias is not None else [])],
            {"axis": -1, "epsilon": found.epsilon},
            metadata_props=dict(last.metadata_props),
        )
        put_in_place(norm, last, found.nodes[-2::-1])
        made.append(norm)
    return made


class _Ones:
    """Makes the gamma of norms that have none, once for each size."""

    def __init__(self, model: ir.Model):
        self.fresh = Fresh(model)
        self.made: dict[int, ir.Value] = {}

    def of(self, x: ir.Value) -> ir.Value:
        size = _last_size(x)
        assert size is not None
        if size not in self.made:
            self.made[size] = self.fresh.constant(np.ones(size, np.float32), "norm_scale")
        return self.made[size]


def _match(node: ir.Node) -> _Norm | None:
    """Match from the node that applies the root."""
    return _match_quotient(node) or _match_spread(node)


def _match_quotient(node: ir.Node) -> _Norm | None:
    """Match (x − mean) / root, with the gamma and beta that follow."""
    for numerator, root in _applications(node):
        centred = numerator.producer()
        if centred is None or not is_op(centred, "Sub", node.graph):
            continue
        inner = _statistics(root, centred.inputs[0], node.graph, centred)
        if inner is None:
            continue
        nodes, x, epsilon = inner
        nodes, bias = [*nodes, node], None
        mul, scale = _scaled(node, x)
        if mul is not None:
            nodes = [*nodes, mul]
            add = only_reader(mul.outputs[0])
            given = _other(add, "Add", mul)
            if add is not None and given is not None and _is_vector(given, x):
                bias, nodes = given, [*nodes, add]
        return _checked(nodes, x, scale, bias, epsilon)
    return None


def _match_spread(node: ir.Node) -> _Norm | None:
    """Match x · w + (beta − mean · w) from the product w of the inverse root and gamma."""
    if node.domain or node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    graph = node.graph
    for inverse, scale in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        root = _root(inverse, node, inverse=True)
        products = [use.node for use in node.outputs[0].uses()]
        if root is None or scale is None or len(products) != 2 or not all(is_op(p, "Mul", graph) for p in products):
            continue
        for of_x, of_mean in (products, products[::-1]):
            x, mean = _other(of_x, "Mul", node), _other(of_mean, "Mul", node)
            inner = _statistics(root, x, graph)
            less = only_reader(of_mean.outputs[0])
            if inner is None or less is None or mean is None or mean.producer() not in inner[0] or not is_op(less, "Sub", graph):
                continue
            add, bias = only_reader(less.outputs[0]), less.inputs[0]
            if add is None or bias is None or not is_op(add, "Add", graph) or _other(add, "Add", less) is not of_x.outputs[0]:
                continue
            if mean.producer() is inner[0][0] and _is_vector(scale, inner[1]) and _is_vector(bias, inner[1]):
                return _checked([*inner[0], node, of_x, of_mean, less, add], inner[1], scale, bias, inner[2])
    return None


def match_rms(node: ir.Node) -> _Norm | None:
    """Match x / root, with the gamma that follows, where the root is of the mean of x²."""
    for x, root in _applications(node):
        inner = _mean_square(root, node.graph)
        if inner is None or inner[1] is not x or not is_float(x):
            continue
        mul, scale = _scaled(node, x)
        return _checked([*inner[0], node, *([mul] if mul is not None else [])], x, scale, None, inner[2])
    return None


def _applications(node: ir.Node) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Yield what a node divides by a root, with the root's nodes; a product with an inverse root is such a division."""
    if node.domain or node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
        return
    sides = [(node.inputs[0], node.inputs[1])] + ([(node.inputs[1], node.inputs[0])] if node.op_type == "Mul" else [])
    for numerator, other in sides:
        root = _root(other, node, inverse=node.op_type == "Mul")
        if numerator is not None and root is not None:
            yield numerator, root


def _scaled(node: ir.Node, x: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the product of a normalised value with its gamma, and the gamma, if that is all that reads it."""
    mul = only_reader(node.outputs[0])
    given = _other(mul, "Mul", node)
    return (mul, given) if given is not None and _is_vector(given, x) else (None, None)


def _checked(nodes: list[ir.Node], x: ir.Value, scale: ir.Value | None, bias: ir.Value | None, epsilon: float) -> _Norm | None:
    """Return a norm if nothing else reads what is inside, and its gamma is given or can be made."""
    inside = tuple(dict.fromkeys(nodes))
    for node in inside[:-1]:
        if any(use.node not in inside for use in node.outputs[0].uses()) or node.outputs[0].is_graph_output():
            return None
    if scale is None and _last_size(x) is None:
        return None
    return _Norm(inside, x, scale, bias, epsilon)


def _root(value: ir.Value | None, reader: ir.Node, *, inverse: bool) -> list[ir.Node] | None:
    """Return the nodes between the sum of variance and epsilon and a root, or the inverse of one, the sum's reader first."""
    node = value.producer() if value is not None else None
    if node is None or node.graph is not reader.graph or node.domain:
        return None
    if node.op_type == "Pow":
        return [node] if scalar(node.inputs[1]) == (-0.5 if inverse else 0.5) else None
    if not inverse:
        return [node] if node.op_type == "Sqrt" else None
    if node.op_type == "Reciprocal" or (node.op_type == "Div" and scalar(node.inputs[0]) == 1.0):
        below = _root(node.inputs[-1], node, inverse=False)
        return [*below, node] if below is not None else None
    return None


def _statistics(
    root: list[ir.Node], x: ir.Value | None, graph: ir.Graph | None, centred: ir.Node | None = None
) -> tuple[list[ir.Node], ir.Value, float] | None:
    """Match what is under a root: the mean of the squares of x − mean(x), plus an epsilon.

    Args:
        root: The nodes of the root.
        x: What the norm normalises.
        graph: The graph of all nodes.
        centred: The x − mean(x) that the norm divides; None if it does not.

    Returns:
        The nodes, the mean of x first, with the root's at the end; x; and the epsilon.
    """
    found = _mean_square(root, graph)
    if found is None:
        return None
    nodes, squared, epsilon = found
    # Some exporters compute x − mean twice.
    again = squared.producer()
    if again is None or x is None or not is_float(x):
        return None
    means, differences = [], list(dict.fromkeys((again, centred or again)))
    for sub in differences:
        mean = sub.inputs[1].producer() if is_op(sub, "Sub", graph) and sub.inputs[1] is not None else None
        if mean is None or not is_op(mean, "ReduceMean", graph) or sub.inputs[0] is not x or mean.inputs[0] is not x:
            return None
        means.append(mean)
    if not all(over_last(mean) for mean in means):
        return None
    return [*means, *differences, *nodes], x, epsilon


def _mean_square(root: list[ir.Node], graph: ir.Graph | None) -> tuple[list[ir.Node], ir.Value, float] | None:
    """Match the mean of squares over the last axis, plus an epsilon, under a root.

    Returns:
        The nodes, with the root's at the end; what is squared; and the epsilon.
    """
    below = root[0].inputs[0]
    add = below.producer() if below is not None else None
    if add is None or not is_op(add, "Add", graph):
        return None
    sides = [(add.inputs[0], scalar(add.inputs[1])), (add.inputs[1], scalar(add.inputs[0]))]
    variance, epsilon = next(((v, e) for v, e in sides if e is not None), (None, None))
    mean = variance.producer() if variance is not None else None
    if mean is None or epsilon is None or not is_op(mean, "ReduceMean", graph) or not over_last(mean):
        return None
    square = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    squared = square.inputs[0] if square is not None and square.graph is graph and is_square(square) else None
    if square is None or squared is None:
        return None
    return [square, mean, add, *root], squared, epsilon


def _other(node: ir.Node | None, op_type: str, one: ir.Node) -> ir.Value | None:
    """Return what a node of two inputs reads beside the result of another."""
    if node is None or not is_op(node, op_type, one.graph):
        return None
    return next((value for value in node.inputs if value is not one.outputs[0]), None)


def _last_size(value: ir.Value) -> int | None:
    """Return the size of a value's last axis, if it is known; of one that no weight of that size proves, up to a limit."""
    size = value.shape[-1] if value.shape is not None and value.shape.rank() else None
    return size if isinstance(size, int) and 0 <= size <= MAX_SIZE else None


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
