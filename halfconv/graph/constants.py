"""Compute integers once that no input decides: how much a Pad adds comes out of PyTorch's TorchScript exporter as seven nodes.

ONNX Runtime folds them when it loads a model, too late for what asks here how much is padded, or which shape a Reshape makes.
Floating point is left to it: there a result may depend on who computes it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir

from halfconv.graph.fuse import FusionPass
from halfconv.graph.lift import Fresh
from halfconv.graph.typegroups import is_weight

__all__ = ["FoldConstantsPass"]

#: Operators whose result has no more elements than their inputs have together, or than the product of two; ConstantOfShape's has as
#: many as it is asked for. ONNX's reference computes them exactly.
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
})  # fmt: skip
#: How many elements a node may read, and make. So many take no more memory than the node itself.
MOST = 64


class FoldConstantsPass(FusionPass):
    """Puts constants in the place of integers that are computed from constants."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        known: dict[ir.Value, np.ndarray] = {}
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            array = _computed(node, known, model.opset_imports.get("", 0))
            if array is not None:
                known[node.outputs[0]] = array
        if not known:
            return ir.passes.PassResult(model, modified=False)
        fresh = Fresh(model)
        for value, array in known.items():
            uses = [use for use in value.uses() if not any(output in known for output in use.node.outputs)]
            if not uses:
                continue
            constant = fresh.constant(array, f"{value.name}_known")
            for use in uses:
                use.node.replace_input_with(use.idx, constant)
            self.count += 1
        return ir.passes.PassResult(model, modified=bool(self.count))


def _computed(node: ir.Node, known: dict[ir.Value, np.ndarray], opset: int) -> np.ndarray | None:
    """Return a node's result if it is made of integers that are known, and is not one of the graph."""
    if node.op_type not in OPERATORS or node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    read: dict[str, np.ndarray] = {}
    count = 0
    for value in node.inputs:
        array = _known(value, known) if value is not None else np.array(0)
        count += MOST + 1 if array is None else array.size
        if array is None or count > MOST:
            return None
        if value is not None:
            read[value.name or ""] = array
    if node.op_type == "ConstantOfShape" and any(math.prod(array.reshape(-1).tolist()) > MOST for array in read.values()):
        return None
    return _run(node, read, opset) if read else None


def _known(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    if value in known:
        return known[value]
    tensor = value.const_value if is_weight(value) else None
    return tensor.numpy() if tensor is not None and tensor.dtype.is_integer() and tensor.size <= MOST else None


def _run(node: ir.Node, read: dict[str, np.ndarray], opset: int) -> np.ndarray | None:
    """Compute a node as ONNX's reference does; None if it cannot, or if these are no integers."""
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    function = onnx.helper.make_function(
        "halfconv", "node", list(read), list(proto.output), [proto], [onnx.helper.make_operatorsetid("", opset)]
    )
    try:
        (result,) = ReferenceEvaluator(function).run(None, read, attributes={})
    except Exception:  # whatever it raises: what is wrong with the node is said when the model is checked
        return None
    array = np.asarray(result)
    return array if array.dtype in (np.int64, np.int32) and array.size <= MOST else None
