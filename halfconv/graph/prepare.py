"""Bring a loaded model into the form that planning expects: no functions, no Constants, sorted, typed.

Each step is an `onnx_ir` pass. Shapes are inferred once; later stages write types from the plan and infer nothing again.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.errors import InputError, UnsupportedModel
from halfconv.graph.fuse import FuseLayerNormPass
from halfconv.graph.lift import LiftClipPass
from halfconv.graph.schema import signature

__all__ = ["InferTypesPass", "InputConstantsPass", "Prepared", "prepare"]


@dataclass(slots=True)
class Prepared:
    """What preparation did.

    Attributes:
        notes: Sentences for the report.
        fusions: Fused operator -> how many were made.
    """

    notes: list[str] = field(default_factory=list)
    fusions: dict[str, int] = field(default_factory=dict)


def prepare(model: ir.Model, *, fuse: bool = True) -> Prepared:
    """Prepare a model in place.

    Args:
        model: A loaded model.
        fuse: Whether decomposed norms become one operator.

    Raises:
        InputError: The graph has a cycle.
        UnsupportedModel: A function cannot be inlined.
    """
    done = Prepared()
    try:
        if model.functions:
            common.InlinePass()(model)
            common.RemoveUnusedFunctionsPass()(model)
            model.functions.clear()
    except Exception as error:
        raise UnsupportedModel(
            f"the model's functions cannot be inlined: {error}", "onnx.inliner.inline_local_functions on it"
        ) from None
    constants = InputConstantsPass()
    constants(model)
    if constants.fixed:
        done.notes.append(f"{constants.fixed} weights that were also listed as inputs are now constants only")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    try:
        common.TopologicalSortPass()(model)
    except Exception:
        raise InputError("the graph has a cycle", "export it again") from None
    common.RemoveUnusedNodesPass()(model)
    # The pass reports a failure by a logged traceback; a model that it cannot infer is planned with the types it declares.
    logging.getLogger("onnx_ir.passes.common.shape_inference").setLevel(logging.CRITICAL)
    # onnx-ir cannot hold maps, which inference finds behind ZipMap: such a model keeps the shapes it declares.
    with contextlib.suppress(ir.serde.SerdeError):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    InferTypesPass()(model)
    LiftClipPass()(model)
    if fuse:
        fused = FuseLayerNormPass()
        fused(model)
        if fused.count:
            done.fusions["LayerNormalization"] = fused.count
    return done


class InputConstantsPass(ir.passes.InPlacePass):
    """Make constants of weights that an exporter also listed as inputs.

    Up to IR version 3 every initializer had to be an input; later, an exporter that lists all of them does so out of habit. A
    model of IR version 4 or more that lists only some of them means defaults that a caller may override: those stay inputs.

    Attributes:
        fixed: Number of inputs removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        listed = [value for value in graph.inputs if value.is_initializer()]
        all_listed = len(listed) == len(graph.initializers) and len(listed) > 1
        if not listed or not (model.ir_version < 4 or all_listed):
            return ir.passes.PassResult(model, modified=False)
        outputs = set(graph.outputs)
        kept = [value for value in graph.inputs if not value.is_initializer() or value in outputs]
        self.fixed = len(graph.inputs) - len(kept) if model.ir_version >= 4 else 0
        graph.inputs[:] = kept
        model.ir_version = max(model.ir_version, 4)
        return ir.passes.PassResult(model, modified=True)


class InferTypesPass(ir.passes.InPlacePass):
    """Fill in element types that shape inference left open, from the operators' schemas.

    It knows ONNX Runtime's own operators, which ONNX's shape inference does not, and the bodies of control flow.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if all(output.type is not None for output in node.outputs if output.name):
                continue
            found = signature(node.domain, node.op_type, model.opset_imports.get(node.domain))
            if found is None:
                continue
            bound = {
                found.input_variable(i): value.type
                for i, value in enumerate(node.inputs)
                if value is not None and value.type is not None
            }
            for index, output in enumerate(node.outputs):
                variable = found.output_variable(index)
                if output.type is not None:
                    continue
                allowed = found.allowed.get(variable, frozenset())
                if variable in bound:
                    output.type = bound[variable]
                elif len(allowed) == 1 and (only := next(iter(allowed))).startswith("tensor("):
                    output.type = ir.TensorType(ir.DataType[only[7:-1].upper()])
                changed |= output.type is not None
        return ir.passes.PassResult(model, modified=changed)
