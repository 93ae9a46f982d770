"""Raise a model's opset where that changes nothing but the number.

Between two opsets most operators only gain types. `STEPS` names, for each step that halfconv takes, the operators whose meaning
does change; a model that uses one of them stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

__all__ = ["LiftClipPass", "lift"]


def _always(node: ir.Node) -> bool:
    return True


def _trains(node: ir.Node) -> bool:
    return len([output for output in node.outputs if output.name]) > 1


def _default_mode(node: ir.Node) -> bool:
    return "coordinate_transformation_mode" not in node.attributes


#: Step from the opset -> operators that the next opset changes, with a test of whether this node is affected.
STEPS: dict[int, dict[str, Callable[[ir.Node], bool]]] = {
    11: {"Dropout": _always},  # 12: ratio became an input
    13: {"BatchNormalization": _trains},  # 14: other outputs
    14: {},  # 15: only types
    15: {"RoiAlign": _default_mode},  # 16: another default for coordinate_transformation_mode
    16: {},  # 17: only new operators
}


def lift(model: ir.Model, opset: int) -> bool:
    """Raise the default domain's opset in place, if every step on the way leaves the model's meaning alone.

    Args:
        model: A model without functions.
        opset: The opset wanted.

    Returns:
        Whether the model now has that opset, or had a newer one.
    """
    current = model.opset_imports.get("", 0)
    if current >= opset:
        return True
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain in ("", "ai.onnx")]
    for step in range(current, opset):
        if step not in STEPS:
            return False
        changes = STEPS[step]
        if any(node.op_type in changes and changes[node.op_type](node) for node in nodes):
            return False
    model.opset_imports[""] = opset
    return True


class LiftClipPass(ir.passes.InPlacePass):
    """Raise opset 11 to 12 for models with Clip: ONNX Runtime's CUDA provider has no FP16 kernel for Clip-11."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        if model.opset_imports.get("", 0) != 11:
            return ir.passes.PassResult(model, modified=False)
        clips = any(node.op_type == "Clip" for node in ir.traversal.RecursiveGraphIterator(model.graph))
        return ir.passes.PassResult(model, modified=clips and lift(model, 12))
