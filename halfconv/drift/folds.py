"""What ONNX Runtime folds into a convolution's weights when it loads a half-precision model, in half, step by step.

Its ConvBN-, ConvMul- and ConvAddFusion multiply and add weights in half: every step rounds every weight anew, which can cost more
than the operator that vanishes (PP-OCR's direction classifier: 3.3e-4 on an H100 where the graph as written gives 0.8e-4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import rounded
from halfconv.drift.kernels import HALF_TYPES
from halfconv.graph.typegroups import is_weight

__all__ = ["FoldPass", "RemoveIdentityPass"]

Array = np.ndarray[Any, np.dtype[np.float32]]


class FoldPass(ir.passes.InPlacePass):
    """Fold BatchNormalization, Mul and Add behind a convolution into its weights; behind a transposed one only the first."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        for conv in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if conv.op_type in ("Conv", "ConvTranspose") and conv.domain in ("", "ai.onnx"):
                while self._fold(conv):
                    changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _fold(self, conv: ir.Node) -> bool:
        output = conv.outputs[0]
        uses = list(output.uses())
        weight = _constant(conv.inputs[1])
        bias = _constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
        biased = len(conv.inputs) > 2 and conv.inputs[2] is not None
        if len(uses) != 1 or output.is_graph_output() or weight is None or (biased and bias is None):
            return False
        node = uses[0].node
        if node.graph is not conv.graph or node.domain not in ("", "ai.onnx"):
            return False
        assert output.dtype is not None and conv.inputs[1] is not None
        if output.dtype not in HALF_TYPES:
            return False
        with np.errstate(all="ignore"):  # a variance of zero, an overflow: infinities, as on the GPU
            found = _folded(node, conv, weight, bias, output.dtype)
        if found is None:
            return False
        new_weight, new_bias = found
        self._set(conv, 1, new_weight, output.dtype)
        if new_bias is not None:
            self._set(conv, 2, new_bias, output.dtype)
        last = node.outputs[0]
        name, graph = last.name, node.graph
        output.shape = last.shape
        last.replace_all_uses_with(output, replace_graph_outputs=True)
        last.name = f"{name}/folded"
        output.name = name
        assert graph is not None
        graph.remove(node, safe=True)
        return True

    @staticmethod
    def _set(conv: ir.Node, slot: int, array: Array, dtype: ir.DataType) -> None:
        graph = conv.graph
        assert graph is not None
        while len(conv.inputs) <= slot:
            conv.resize_inputs(slot + 1)
        taken = {*graph.initializers, *(value.name for node in graph for value in node.outputs)}
        stem, number = f"{conv.outputs[0].name}/folded_{slot}", 0
        while f"{stem}_{number}" in taken:
            number += 1
        tensor = ir.Tensor(array.astype(dtype.numpy()), name=f"{stem}_{number}")
        value = ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
        graph.register_initializer(value)
        conv.replace_input_with(slot, value)


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or not is_weight(value) or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float32) if value.dtype in HALF_TYPES else None


def _folded(
    node: ir.Node, conv: ir.Node, weight: Array, bias: Array | None, to: ir.DataType
) -> tuple[Array, Array | None] | None:
    """Return new weights and bias, or None if ONNX Runtime leaves the node alone."""
    output = conv.outputs[0]

    def h(array: Any) -> Array:
        return rounded(array, to)

    turned = conv.op_type == "ConvTranspose"
    groups = conv.attributes.get_int("group", 1) if turned else 1
    channels = weight.shape[1] * groups if turned else weight.shape[0]
    column = (-1,) + (1,) * (weight.ndim - 1)
    if node.op_type == "BatchNormalization" and node.inputs[0] is output:
        parts = [_constant(value) for value in node.inputs[1:5]]
        if any(part is None or part.shape != (channels,) for part in parts) or any(o.uses() for o in node.outputs[1:]):
            return None
        scale, shift, mean, variance = (part for part in parts if part is not None)
        factor = h(scale / h(np.sqrt(h(variance + np.float32(node.attributes.get_float("epsilon", 1e-5))))))
        moved = h(h(h(bias - mean) * factor) + shift) if bias is not None else h(shift - h(mean * factor))
        if turned:  # weights are [in, out of its group, …]
            rows = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
            return h(weight * rows.reshape(rows.shape + (1,) * (weight.ndim - 2))), moved
        return h(weight * factor.reshape(column)), moved
    if turned or node.op_type not in ("Mul", "Add") or len(node.inputs) != 2:
        return None
    if node.inputs[0] is not output:  # ONNX Runtime leaves alone what has the convolution on its right
        return None
    other = _constant(node.inputs[1])
    if other is None or not (_per_channel(other, channels, weight.ndim) or (node.op_type == "Mul" and other.ndim == 0)):
        return None
    vector = np.broadcast_to(other.reshape(-1), (channels,)).astype(np.float32)
    if node.op_type == "Mul":
        return h(weight * vector.reshape(column)), None if bias is None else h(bias * vector)
    return weight, h(bias + vector) if bias is not None else vector


def _per_channel(array: Array, channels: int, rank: int) -> bool:
    """Tell whether an array has one number for each channel, as [C, 1, …] or [1, C, 1, …]."""
    if array.ndim == rank and array.shape[0] == 1:
        array = array[0]
    return array.ndim == rank - 1 and array.shape[0] == channels and array.size == channels


class RemoveIdentityPass(ir.passes.InPlacePass):
    """Remove Identity nodes, as ONNX Runtime does on load; one that makes a result of a graph stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            value = node.inputs[0] if node.op_type == "Identity" and node.domain in ("", "ai.onnx") and node.inputs else None
            if value is None or node.graph is None or node.outputs[0].is_graph_output():
                continue
            node.outputs[0].replace_all_uses_with(value)
            node.graph.remove(node, safe=True)
            changed = True
        return ir.passes.PassResult(model, modified=changed)
