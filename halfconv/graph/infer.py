"""Infer the types and shapes of values: from ONNX's inference, and what it leaves open from the operators' schemas."""

from __future__ import annotations

import contextlib

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.graph.names import subgraphs
from halfconv.graph.schema import signature
from halfconv.quiet import quiet

__all__ = ["InferTypesPass", "infer"]


def infer(model: ir.Model) -> None:
    """Infer types and shapes in place, as far as they can be."""
    # The pass reports a failure by a logged traceback; a model that it cannot infer is planned with the types it declares.
    # onnx-ir cannot hold maps, which inference finds behind ZipMap: such a model keeps the shapes it declares.
    with quiet(common.shape_inference.__name__), contextlib.suppress(ir.serde.SerdeError):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    InferTypesPass()(model)


class InferTypesPass(ir.passes.InPlacePass):
    """Complete the types of values from the operators' schemas.

    Shape inference leaves types open behind ONNX Runtime's own operators, and onnx-ir merges its result by element type, which
    makes a tensor of every sequence and optional.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
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
                inferred = self._type(
                    node, index, output, bound.get(variable), found.allowed.get(variable.partition("@")[0], frozenset())
                )
                if inferred is not None and inferred != output.type:
                    output.type = inferred
                    changed = True
        return ir.passes.PassResult(model, modified=changed)

    @staticmethod
    def _type(
        node: ir.Node, index: int, output: ir.Value, bound: ir.TypeProtocol | None, allowed: frozenset[str]
    ) -> ir.TypeProtocol | None:
        known = output.type
        if node.op_type == "Optional" and node.inputs and node.inputs[0] is not None and node.inputs[0].type is not None:
            return ir.OptionalType(node.inputs[0].type)
        if isinstance(known, ir.TensorType) and allowed and not any(kind.startswith("tensor(") for kind in allowed):
            container = ir.SequenceType if all(kind.startswith("seq(") for kind in allowed) else ir.OptionalType
            return bound if isinstance(bound, container) else container(known)
        if node.op_type in ("Loop", "Scan", "If") and not node.domain:
            return _from_body(node, index) or known
        if node.op_type == "OptionalGetElement" and node.inputs[0] is not None:
            held = node.inputs[0].type
            return held.elem_type if isinstance(held, ir.OptionalType) else held
        if known is not None:
            return bound if isinstance(bound, (ir.SequenceType, ir.OptionalType)) else known
        if bound is not None:
            return bound
        if len(allowed) == 1 and (only := next(iter(allowed))).startswith("tensor("):
            return ir.TensorType(ir.DataType[only[7:-1].upper()])
        return None


def _from_body(node: ir.Node, index: int) -> ir.TypeProtocol | None:
    """Return the type of a control-flow node's output if its body returns a sequence or optional there."""
    shift = 1 if node.op_type == "Loop" else 0
    for _, body in subgraphs(node):
        if index + shift < len(body.outputs):
            kind = body.outputs[index + shift].type
            if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
                return kind
    return None
