"""Whether a model must be raised to opset 22 so that its operators may be BF16, and raising it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from halfconv.graph.kernels import on_any, support
from halfconv.graph.names import Names
from halfconv.graph.prepare import Prepared, prepare
from halfconv.graph.raise_opset import BF16_OPSET, raise_opset
from halfconv.graph.schema import signature
from halfconv.graph.structure import Structure
from halfconv.graph.typegroups import TypeGroups, is_float
from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.formats import BF16, HalfFormat
from halfconv.precision.rules import Decision, Rules, decisions

__all__ = ["decide", "needs_raising", "raise_for"]

#: The formats that most operators take from opset 22 on only.
RAISED = (BF16,)
#: The first opset in which Cast takes BF16.
CAST_OPSET = 13


def decide(
    model: ir.Model, rules: Rules, to: HalfFormat, done: Prepared, *, label: str, fuse: bool, target: str,
    without: frozenset[str], half_io: bool, raising: bool,
) -> tuple[Names, list[Decision], int]:  # fmt: skip
    """Take the rules' decisions on a prepared model; raise it first where an operator that they let go is half only at opset 22.

    Args:
        model: The prepared model.
        rules: The user's rules.
        to: The half-precision format.
        done: What preparing the model did; what preparing the raised model does is added.
        label: What messages call the model.
        fuse: Whether groups of operators become one.
        target: The kind of hardware, which decides which.
        without: Names of the target's fusions that are left out.
        half_io: Whether inputs or outputs become half, whatever the operators do.
        raising: Whether the model may be raised at all.

    Returns:
        The model's ids, the decisions, and the opset from which it was raised (0: it was not).

    Raises:
        UnsupportedModel: The model must be raised and cannot be.
        UsageError: A rule matches nothing.
    """
    names = Names.of(model)
    decided = list(decisions(names, rules, to))
    opset = model.opset_imports.get("", 0)
    if to not in RAISED or not raising or not 0 < opset < BF16_OPSET:
        return names, decided, 0
    kept, versions = _kept(decided), model.opset_imports
    casts = half_io and opset < CAST_OPSET
    if not (casts or any(_gains(node, versions, to.dtype) for node in names.nodes() if node not in kept)):
        return names, decided, 0
    _raise(model, done, label, fuse, target, without, to)
    names = Names.of(model)
    return names, list(decisions(names, rules, to)), opset


def raise_for(
    model: ir.Model, structure: str, to: HalfFormat, done: Prepared, label: str, *, fuse: bool, target: str,
    without: frozenset[str],
) -> Names:  # fmt: skip
    """Raise a prepared model where it lacks the structure of a plan, which may have been made of a raised one.

    Args:
        model: The prepared model.
        structure: The plan's fingerprint of its model's structure.
        to: The half-precision format.
        done: What preparing the model did; what preparing the raised model does is added.
        label: What messages call the model.
        fuse: Whether groups of operators become one.
        target: The kind of hardware, which decides which.
        without: Names of the target's fusions that are left out.

    Returns:
        The model's ids.

    Raises:
        UnsupportedModel: The model cannot be raised.
    """
    names = Names.of(model)
    if to in RAISED and 0 < model.opset_imports.get("", 0) < BF16_OPSET and Structure.of(model, names).sha256 != structure:
        _raise(model, done, label, fuse, target, without, to)
        names = Names.of(model)
    return names


def _raise(
    model: ir.Model, done: Prepared, label: str, fuse: bool, target: str, without: frozenset[str], to: HalfFormat
) -> None:  # fmt: skip
    opset = model.opset_imports.get("", 0)
    lost = sorted({node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if _loses(node, opset)})
    raise_opset(model, label)
    again = prepare(model, label=label, fuse=fuse, target=target, to=to.dtype, without=without)
    again.notes.append(f"the model was raised to opset {BF16_OPSET}, which BF16 needs: ONNX Runtime 1.20 and older do not load it")
    if lost:
        again.notes.append(
            f"ONNX Runtime runs {', '.join(lost)} of opset {BF16_OPSET} on the CPU: its CUDA kernels end at older opsets"
        )
    done.add(again)


def needs_raising(names: Names, groups: TypeGroups, half: Sequence[bool], opset: int, to: ir.DataType) -> bool:
    """Tell whether a plan holds values in half that the model's own opset forbids.

    Args:
        names: Ids of the raised model's nodes.
        groups: Its type groups.
        half: For each group, whether it is half.
        opset: The opset before raising.
        to: BFLOAT16.
    """
    if opset < CAST_OPSET and any(half):
        return True
    standard = (node for node in names.nodes() if _is_standard(node))
    return any(any(half[group] for group in groups.of_node(node)) and not _able(node, opset, to) for node in standard)


def _kept(decided: Sequence[Decision]) -> set[ir.Node]:
    """Return the nodes whose strongest decision is FP32."""
    strongest: dict[ir.Node, Decision] = {}
    for decision in decided:
        known = strongest.get(decision.node)
        if known is None or decision.strength < known.strength:
            strongest[decision.node] = decision
    return {node for node, decision in strongest.items() if not decision.half}


def _is_standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _able(node: ir.Node, version: int | None, to: ir.DataType) -> bool:
    """Tell whether some FP32 input or output of a node may be half at a version of its domain."""
    found = signature(node.domain, node.op_type, version)
    if found is None:
        return False
    variables = {found.input_variable(i) for i, value in enumerate(node.inputs) if is_float(value)}
    variables |= {found.output_variable(i) for i, value in enumerate(node.outputs) if is_float(value)}
    allowed = frozenset(name for name in variables if found.may_hold(name, to))
    return bool(allowed & support(node.domain, node.op_type, found, allowed, to).half)


def _gains(node: ir.Node, versions: Mapping[str, int], to: ir.DataType) -> bool:
    """Tell whether a node that computes may be half at opset 22 and not in the model as it is."""
    if node.op_type in EXACT_OPS:
        return False
    if not _is_standard(node):  # which needs Casts around it
        return versions.get("", 0) < CAST_OPSET and _able(node, versions.get(node.domain), to)
    return _able(node, BF16_OPSET, to) and not _able(node, versions.get("", 0), to)


def _loses(node: ir.Node, opset: int) -> bool:
    """Tell whether CUDA has a kernel of a node's version, and none of its version at opset 22."""
    if not _is_standard(node) or not any(is_float(output) for output in node.outputs):
        return False
    since, later = signature("", node.op_type, opset), signature("", node.op_type, BF16_OPSET)
    return since is not None and later is not None and on_any(node.op_type, since.since) and not on_any(node.op_type, later.since)
