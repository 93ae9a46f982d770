"""Operators in another form: those without a kernel, and those of opsets that lack what the simulation is written with."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from halfconv.drift.builder import Names
from halfconv.drift.kernels import HALF_TYPES

__all__ = ["EXPANDED_ON_LOAD", "FIRST_OPSET", "ExpandFunctionsPass", "RaiseOpsetPass"]

#: Function operators of ONNX for which ONNX Runtime 1.31 has a half kernel on neither provider, so that it inlines them.
EXPANDED_ON_LOAD = frozenset({
    "AffineGrid", "CausalConvWithState", "CenterCropPad", "GroupNormalization", "LinearAttention", "Mish",
    "NegativeLogLikelihoodLoss", "SwiGLU", "Swish",
})  # fmt: skip
DOMAIN = "halfconv.definition"
#: The oldest opset that simulations are written in.
FIRST_OPSET = 9


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Bring a model of opset 7 or 8 to opset 9, the first with Where, Erf and today's Scan.

    Of the operators that both know, three changed in more than the types they take. A model stays as it is if it has a Scan of
    opset 8, or a BatchNormalization with statistics per element.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        opset = model.opset_imports.get("")
        nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain in ("", "ai.onnx")]
        if opset is None or opset >= FIRST_OPSET or any(map(_changed, nodes)):
            return ir.passes.PassResult(model, modified=False)
        names = Names(value.name for node in nodes for value in (*node.inputs, *node.outputs) if value is not None)
        for node in nodes:
            if node.op_type == "BatchNormalization":
                node.attributes.pop("spatial", None)
            if node.op_type == "Upsample" and "scales" in node.attributes:
                scales = ir.Tensor(np.asarray(node.attributes.pop("scales").as_floats(), np.float32))
                constant = ir.node("Constant", [], {"value": scales})
                constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(scales.dtype), ir.Shape(scales.shape)
                constant.outputs[0].name = names.value(f"{node.outputs[0].name}/scales")
                node.prepend(constant)
                node.resize_inputs(2)
                node.replace_input_with(1, constant.outputs[0])
        model.opset_imports[""] = FIRST_OPSET
        return ir.passes.PassResult(model, modified=True)


def _changed(node: ir.Node) -> bool:
    """Tell whether opset 9 has no form of a node of opset 7 or 8."""
    return node.op_type == "Scan" or (node.op_type == "BatchNormalization" and not node.attributes.get_int("spatial", 1))


class ExpandFunctionsPass(ir.passes.InPlacePass):
    """Make model functions of operators that ONNX Runtime will inline in half; inlining them is the caller's next step."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass on a model with inferred types."""
        opset = model.opset_imports.get("", 1) or 1
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type not in EXPANDED_ON_LOAD or node.domain not in ("", "ai.onnx"):
                continue
            if not any(value is not None and value.dtype in HALF_TYPES for value in (*node.inputs, *node.outputs)):
                continue
            body = _definition(node, opset)
            if body is None:
                continue
            function = ir.serde.deserialize_function(body)
            _fill_in(node, function, opset)
            name = f"{node.op_type}_{len(model.functions)}"
            function.domain, function.name = DOMAIN, name
            function.opset_imports[""] = opset  # a definition holds for later opsets too, and inlining wants one opset
            model.functions[function.identifier()] = function
            model.opset_imports.setdefault(DOMAIN, 1)
            node.domain, node.op_type = DOMAIN, name
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _fill_in(node: ir.Node, function: ir.Function, opset: int) -> None:
    """Write the defaults of attributes that a definition refers to: it gives none itself."""
    known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    for name in function.attributes:
        if name not in node.attributes and name in known and known[name].default_value.type:
            node.attributes[name] = ir.serde.deserialize_attribute(known[name].default_value)


def _definition(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if schema.has_context_dependent_function:  # type: ignore[attr-defined]  # missing in onnx's stubs
        types = []
        for value in node.inputs:
            if value is None or value.type is None:
                return None
            types.append(ir.serde.serialize_value(value).type.SerializeToString())
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]  # type: ignore[attr-defined]
        if not versions:
            return None
        proto = ir.serde.serialize_node(node)
        text = schema.get_context_dependent_function_with_opset_version(max(versions), proto.SerializeToString(), types)  # type: ignore[attr-defined]
    else:
        versions = [v for v in schema.function_opset_versions if v <= opset]  # type: ignore[attr-defined]
        if not versions:
            return None
        text = schema.get_function_with_opset_version(max(versions))  # type: ignore[attr-defined]
    function = onnx.FunctionProto()
    function.ParseFromString(text)
    return function
