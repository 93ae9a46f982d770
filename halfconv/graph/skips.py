"""Fuse the addition of a residual, and of a bias, into the norm behind it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader, put_in_place, remove_unread
from halfconv.graph.norms import match_rms
from halfconv.graph.rules import MS, Outcome, Rewriter
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["skip_layer_norm", "skip_rms_norm"]

#: Ranks that ONNX Runtime's kernels take.
RANKS = (2, 3)


def skip_layer_norm(norm: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse LayerNormalization of a sum into SkipLayerNormalization."""
    if norm.domain or not is_float(norm.inputs[0]) or len([output for output in norm.outputs if output.name]) > 1:
        return None
    total = norm.inputs[0]
    rank = total.shape.rank() if total is not None and total.shape is not None else 0
    if norm.attributes.get_int("axis", -1) not in (-1, rank - 1) or norm.attributes.get_int("stash_type", 1) != 1:
        return None
    parameters = [value for value in norm.inputs[1:3] if value is not None]
    return _skip(norm, [norm], total, parameters, norm.attributes.get_float("epsilon", 1e-5), "SkipLayerNormalization", rewriter)


def skip_rms_norm(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse a decomposed RMSNorm, or RMSNormalization, of a sum into SkipSimplifiedLayerNormalization."""
    operator = "SkipSimplifiedLayerNormalization"
    if is_op(node, "RMSNormalization", node.graph):
        total, gamma = node.inputs[0], node.inputs[1]
        rank = total.shape.rank() if total is not None and total.shape is not None else 0
        if gamma is None or not is_float(total) or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
            return None
        return _skip(node, [node], total, [gamma], node.attributes.get_float("epsilon", 1e-5), operator, rewriter)
    found = match_rms(node)
    if found is None or found.scale is None:
        return None
    return _skip(found.nodes[-1], found.nodes, found.x, [found.scale], found.epsilon, operator, rewriter)


def _skip(
    last: ir.Node, nodes: Sequence[ir.Node], total: ir.Value | None, parameters: list[ir.Value], epsilon: float, operator: str,
    rewriter: Rewriter,
) -> Outcome:  # fmt: skip
    add = total.producer() if total is not None else None
    if total is None or add is None or not is_op(add, "Add", last.graph):
        return None
    first, second = add.inputs
    if first is None or second is None or is_weight(first) or is_weight(second):
        return None
    sides = [rewriter.sizes.of(value) for value in (first, second)]
    if sides[0] is None or sides[0] != sides[1]:
        return "the two sides of the sum before it may differ in shape"
    if len(sides[0]) not in RANKS:
        return f"it has {len(sides[0])} axes, and ONNX Runtime's kernel takes 2 or 3"
    width = sides[0][-1]
    if not all(is_weight(value) and value.shape is not None and tuple(value.shape) == (width,) for value in parameters):
        return "its gamma or beta is no weight of the last axis's size"
    return lambda: _make(last, nodes, total, add, parameters, epsilon, operator, rewriter)


def _make(
    last: ir.Node, nodes: Sequence[ir.Node], total: ir.Value, add: ir.Node, parameters: list[ir.Value], epsilon: float,
    operator: str, rewriter: Rewriter,
) -> ir.Node:  # fmt: skip
    """Put the norm and the sum in one node; who else reads the sum reads its fourth result."""
    x, skip, bias = add.inputs[0], add.inputs[1], None
    for one, other in ((x, skip), (skip, x)):
        found = _biased(one, rewriter)
        if found is not None:
            (x, bias), skip = found, other
            break
    inside = set(nodes)
    shared = total.is_graph_output() or any(use.node not in inside for use in total.uses())
    beta = [None] if operator == "SkipLayerNormalization" and len(parameters) == 1 and bias is not None else []
    inputs = [x, skip, *parameters, *beta, *([bias] if bias is not None else [])]
    node = ir.node(
        operator, inputs, {"epsilon": epsilon}, domain=MS, num_outputs=4 if shared else 1,
        metadata_props=dict(last.metadata_props),
    )  # fmt: skip
    put_in_place(node, last)
    if shared:
        place, name, (_, *unused, whole) = add.graph, total.name, node.outputs
        assert place is not None
        for output in unused:
            output.name = ""
        whole.type, whole.shape = total.type, total.shape
        total.replace_all_uses_with(whole, replace_graph_outputs=True)
        place.remove(node)
        add.append(node)  # other readers of the sum may stand before the norm
        total.name, whole.name = None, name
    remove_unread([add, *(part for part in nodes if part is not last)])
    return node


def _biased(value: ir.Value | None, rewriter: Rewriter) -> tuple[ir.Value, ir.Value] | None:
    """Return (x, bias) if a value is x plus a vector of the last axis's size, read by nothing else."""
    node = value.producer() if value is not None else None
    if value is None or node is None or only_reader(value) is None or not is_op(node, "Add", node.graph):
        return None
    for x, bias in (node.inputs, node.inputs[::-1]):
        if x is None or bias is None or not is_weight(bias) or bias.shape is None or bias.shape.rank() != 1:
            continue
        if rewriter.sizes.of(x) == rewriter.sizes.of(value) and rewriter.sizes.size(x, len(x.shape or ()) - 1) == bias.shape[0]:
            return x, bias
    return None
