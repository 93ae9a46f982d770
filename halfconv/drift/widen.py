"""Turn a half-precision graph into an FP32 one in which every half value is rounded where it arises."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder
from halfconv.drift.expansions import Expansion, expansion_of
from halfconv.drift.kernels import HALF_TYPES, is_exact
from halfconv.graph.schema import DTYPE_ATTRIBUTES

__all__ = ["WidenPass"]


def _wide(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """Return a type with FP32 in place of half."""
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_wide(kind.elem_type))
    return type(kind)(ir.DataType.FLOAT)  # type: ignore[call-arg]  # a tensor or sparse tensor


def _wide_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a half tensor in FP32, made when it is written."""
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(np.float32)),
        dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=False,
    )  # fmt: skip


class WidenPass(ir.passes.InPlacePass):
    """Give every half value the type FP32, and round it by Cast(half) → Cast(FP32) right behind the node that makes it.

    A model input that was half becomes an FP32 input whose value is rounded. Kernels that compute in half step by step are
    written out (`halfconv.drift.expansions`). Values keep their names: the rounded value has the half value's. Requires a model
    without functions whose types are inferred (`halfconv.graph.prepare`).

    Args:
        inside: Values that never leave a fused kernel: they are not rounded.

    Attributes:
        half: Name of each value of the main graph that was half -> its format.
    """

    def __init__(self, inside: Collection[ir.Value] = ()):
        super().__init__()
        self.inside = frozenset(inside)
        self.half: dict[str, ir.DataType] = {}
        self._half: dict[ir.Value, ir.DataType] = {}

    def requires(self, model: ir.Model) -> None:
        """Refuse a model with functions."""
        if model.functions:
            raise ir.passes.PreconditionError("the model has functions; inline them first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        opset = model.opset_imports.get("", 13)
        for graph in model.graphs():
            for value in _values(graph):
                if value.type is not None and value.dtype in HALF_TYPES:
                    self._half[value] = value.dtype
                    if graph is model.graph and value.name:
                        self.half[value.name] = value.dtype
        for value in self._half:
            assert value.type is not None
            value.type = _wide(value.type)
            if value.const_value is not None and value.is_initializer():
                value.const_value = _wide_tensor(value.const_value)
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        expansions = [(node, row) for node in nodes if (row := self._expansion(node, model)) is not None]
        for node in nodes:
            _widen_attributes(node)
        for value in list(model.graph.inputs):
            if value in self._half and isinstance(value.type, ir.TensorType):
                self._round_input(value, model.graph)
        for number, (node, row) in enumerate(expansions):
            self._expand(node, row, number, opset)
        written = {node for node, _ in expansions}
        for node in nodes:
            if node not in written and not is_exact(node):
                self._round_outputs(node)
        return ir.passes.PassResult(model, modified=bool(self._half))

    def _expansion(self, node: ir.Node, model: ir.Model) -> Expansion | None:
        to = next((self._half[output] for output in node.outputs if output in self._half), None)
        if to is None or any(output in self.inside for output in node.outputs):
            return None
        return expansion_of(node, to, model.opset_imports.get(node.domain))

    def _expand(self, node: ir.Node, row: Expansion, number: int, opset: int) -> None:
        graph = node.graph
        assert graph is not None
        builder = Builder(self._half[next(o for o in node.outputs if o in self._half)], f"{node.op_type}/{number}", opset)
        results = row.write(builder, node)
        node.prepend(builder.nodes)
        for output, result in zip(node.outputs, results, strict=False):
            if not output.name:
                continue
            name = output.name
            output.replace_all_uses_with(result, replace_graph_outputs=True)
            output.name, result.name, result.shape = f"{name}/replaced", name, output.shape
        graph.remove(node, safe=True)

    def _round_outputs(self, node: ir.Node) -> None:
        for output in node.outputs:
            if output in self._half and output.name and isinstance(output.type, ir.TensorType) and output not in self.inside:
                self._round(output, node)

    def _pair(self, value: ir.Value) -> tuple[ir.Node, ir.Node]:
        to = self._half[value]
        down = ir.node("Cast", [value], {"to": to.value})
        down.outputs[0].type, down.outputs[0].shape = ir.TensorType(to), value.shape
        up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT.value})
        up.outputs[0].type, up.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        down.outputs[0].name, up.outputs[0].name = f"{value.name}/half", f"{value.name}/rounded"
        return down, up

    def _round_input(self, value: ir.Value, graph: ir.Graph) -> None:
        uses, is_output = list(value.uses()), value.is_graph_output()
        if not uses and not is_output:
            return
        down, up = self._pair(value)
        for use in uses:
            use.node.replace_input_with(use.idx, up.outputs[0])
        if is_output:
            # The rounded value takes a name of its own: an output that is an input has no node between to round it.
            return
        if len(graph):
            graph.insert_before(graph[0], (down, up))
        else:
            graph.extend((down, up))

    def _round(self, value: ir.Value, node: ir.Node) -> None:
        down, up = self._pair(value)
        value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
        down.replace_input_with(0, value)
        name = value.name
        value.name, up.outputs[0].name = f"{name}/unrounded", name
        node.append((down, up))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from node.outputs


def _widen_attributes(node: ir.Node) -> None:
    """Replace half tensors and half element types in a node's attributes."""
    named = DTYPE_ATTRIBUTES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF_TYPES:
            wide = ir.Tensor(attribute.as_tensor().numpy().astype(np.float32), name=attribute.as_tensor().name)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
        elif attribute.type == ir.AttributeType.INT and attribute.name == named and attribute.as_int() in _HALF_CODES:
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT.value)


_HALF_CODES = frozenset(kind.value for kind in HALF_TYPES)
