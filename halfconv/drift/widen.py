"""Turn a half-precision graph into an FP32 one in which every half value is rounded where it arises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder, Names, rounded
from halfconv.drift.expansions import Expansion, expansion_of
from halfconv.drift.functions import FIRST_OPSET
from halfconv.drift.kernels import HALF_TYPES, is_exact
from halfconv.graph.blocks import BlockTensor
from halfconv.graph.names import places, values_of
from halfconv.graph.schema import DTYPE_ATTRIBUTES

__all__ = ["WidenPass"]

#: The opset that nodes get in a model that imports none of ONNX's own.
DEFAULT_OPSET = 13
#: Operators that take tensors out of a sequence or an optional.
TAKES_OUT = frozenset({"ConcatFromSequence", "OptionalGetElement", "SequenceAt"})
#: Operator -> attribute that names the type in which it computes.
COMPUTED_IN = {"Attention": "softmax_precision", "QuantizeLinear": "precision"}
#: Operator -> attributes that become elements of the result, or are compared with elements.
NUMBERS = {"Clip": ("min", "max"), "Pad": ("value",), "Resize": ("extrapolation_value",), "ThresholdedRelu": ("alpha",)}


def _wide(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """Return a type with FP32 in place of half."""
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_wide(kind.elem_type))
    return type(kind)(ir.DataType.FLOAT)  # type: ignore[call-arg]  # a tensor or sparse tensor


class _WideTensor(BlockTensor):
    """A half tensor in FP32."""

    __slots__ = ()

    def compute(self, block: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Widen a block."""
        return _floats(block)


def _floats(half: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return half.astype(np.float32)


class WidenPass(ir.passes.InPlacePass):
    """Give every half value the type FP32, and round it by Cast(half) → Cast(FP32) right behind the node that makes it.

    A model input that was half becomes an FP32 input whose value is rounded. Kernels that compute in half step by step are
    written out (`halfconv.drift.expansions`). Values keep their names: the rounded value has the half value's. Requires a model
    without functions whose types are inferred (`halfconv.graph.prepare`).

    Args:
        inside: Values that never leave a fused kernel: they are not rounded.

    Attributes:
        half: Place of each value that was half (`halfconv.graph.names.places`) -> its format.
    """

    def __init__(self, inside: Collection[ir.Value] = ()):
        super().__init__()
        self.inside = frozenset(inside)
        self.half: dict[str, ir.DataType] = {}
        self._half: dict[ir.Value, ir.DataType] = {}
        self._names = Names(())

    def requires(self, model: ir.Model) -> None:
        """Refuse a model with functions."""
        if model.functions:
            raise ir.passes.PreconditionError("the model has functions; inline them first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self._names = Names(value.name for graph in model.graphs() for value in values_of(graph))
        for graph in model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None and value.const_value.dtype in HALF_TYPES:
                    value.type = ir.TensorType(value.const_value.dtype)  # whatever an output of that name is said to be
            for value in values_of(graph):
                if value.type is not None and value.dtype in HALF_TYPES:
                    self._half[value] = value.dtype
        if not self._half:
            return ir.passes.PassResult(model, modified=False)
        self.half = {place: self._half[value] for place, value in places(model.graph) if value in self._half}
        opset = model.opset_imports.setdefault("", DEFAULT_OPSET)
        for value in self._half:
            assert value.type is not None
            value.type = _wide(value.type)
            if value.const_value is not None and value.is_initializer():
                value.const_value = _WideTensor(value.const_value, ir.DataType.FLOAT, value.const_value.name or "")
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        expansions = [(node, row) for node in nodes if (row := self._expansion(node, model)) is not None]
        for node in nodes:
            _round_attributes(node, self._half)
            _widen_attributes(node)
        casts = [node for node in nodes if node.op_type == "BitCast"]
        bits = {node: self._half.get(value) for node in casts for value in node.inputs if value is not None}
        contained = False
        for value in list(model.graph.inputs):
            if value in self._half and isinstance(value.type, ir.TensorType):
                self._round_input(value, model.graph)
            elif value in self._half:
                contained = True
        for number, (node, row) in enumerate(expansions):
            self._expand(node, row, number, opset)
        written = {node for node, _ in expansions}
        for node, read in bits.items():
            self._keep_bits(node, read)
        written.update(bits)
        for node in nodes:
            if node not in written and (not is_exact(node) or (contained and node.op_type in TAKES_OUT)):
                self._round_outputs(node)
            if contained and node.op_type == "SequenceMap":
                self._round_elements(node)
        return ir.passes.PassResult(model, modified=True)

    def _expansion(self, node: ir.Node, model: ir.Model) -> Expansion | None:
        to = next((self._half[output] for output in node.outputs if output in self._half), None)
        if to is None or any(output in self.inside for output in node.outputs):
            return None
        if model.opset_imports.get("", FIRST_OPSET) < FIRST_OPSET:
            return None
        return expansion_of(node, to, model.opset_imports.get(node.domain))

    def _expand(self, node: ir.Node, row: Expansion, number: int, opset: int) -> None:
        graph = node.graph
        assert graph is not None
        to = self._half[next(o for o in node.outputs if o in self._half)]
        builder = Builder(to, self._names.stem(f"{node.op_type}/{number}"), opset)
        results = row.write(builder, node)
        for index, result in enumerate(results):
            # Each result needs a value of its own, which takes the name of what it replaces: the sum of one value is none.
            if result.producer() not in builder.nodes or result in results[:index]:
                results[index] = builder.wide("Identity", result)
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
        """Return the two Casts that round a value."""
        to = self._half[value]
        down = ir.node("Cast", [value], {"to": to.value})
        down.outputs[0].type, down.outputs[0].shape = ir.TensorType(to), value.shape
        up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT.value})
        up.outputs[0].type, up.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        down.outputs[0].name = self._names.value(f"{value.name}/half")
        up.outputs[0].name = self._names.value(f"{value.name}/rounded")
        return down, up

    def _round_input(self, value: ir.Value, graph: ir.Graph) -> None:
        uses = list(value.uses())
        if not uses:
            return
        down, up = self._pair(value)
        # A result that is an input stays as it is given: it has no name that its rounded form could take.
        for use in uses:
            use.node.replace_input_with(use.idx, up.outputs[0])
        if len(graph):
            graph.insert_before(graph[0], (down, up))
        else:
            graph.extend((down, up))

    def _keep_bits(self, node: ir.Node, read: ir.DataType | None) -> None:
        """Let a BitCast go on reading or making the bits of a half number."""
        given, made = node.inputs[0], node.outputs[0]
        if given is not None and read is not None:
            half = ir.node("Cast", [given], {"to": read.value}).outputs[0]
            half.type, half.shape, half.name = ir.TensorType(read), given.shape, self._names.value(f"{given.name}/bits")
            node.prepend(half.producer() or ())
            node.replace_input_with(0, half)
        if made in self._half:
            node.attributes["to"] = ir.AttrInt64("to", self._half[made].value)
            wide = ir.node("Cast", [made], {"to": ir.DataType.FLOAT.value}).outputs[0]
            wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), made.shape
            made.replace_all_uses_with(wide, replace_graph_outputs=True)
            name, cast = made.name, wide.producer()
            assert cast is not None
            cast.replace_input_with(0, made)
            made.name, wide.name, made.type = self._names.value(f"{name}/half"), name, ir.TensorType(self._half[made])
            node.append(cast)

    def _round_elements(self, node: ir.Node) -> None:
        """Round what the body of a SequenceMap takes out of sequences."""
        body = node.attributes["body"].as_graph()
        for value in body.inputs:
            if value in self._half and isinstance(value.type, ir.TensorType):
                self._round_input(value, body)

    def _round(self, value: ir.Value, node: ir.Node) -> None:
        down, up = self._pair(value)
        value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
        down.replace_input_with(0, value)
        name = value.name
        value.name, up.outputs[0].name = self._names.value(f"{name}/unrounded"), name
        node.append((down, up))


def _widen_attributes(node: ir.Node) -> None:
    """Replace half tensors and half element types in a node's attributes."""
    standard = node.domain in ("", "ai.onnx")
    named = {DTYPE_ATTRIBUTES.get(node.op_type), COMPUTED_IN.get(node.op_type)} if standard else set()
    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF_TYPES:
            wide = ir.Tensor(_floats(attribute.as_tensor().numpy()), name=attribute.as_tensor().name)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
        elif attribute.type == ir.AttributeType.TYPE_PROTO and attribute.value.type.dtype in HALF_TYPES:
            wide_type = ir.TypeAndShape(_wide(attribute.value.type), attribute.value.shape)
            node.attributes[attribute.name] = ir.AttrTypeProto(attribute.name, wide_type)
        elif attribute.type == ir.AttributeType.INT and attribute.name in named and attribute.as_int() in _HALF_CODES:
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT.value)


def _round_attributes(node: ir.Node, half: Mapping[ir.Value, ir.DataType]) -> None:
    """Round the numbers that an exact operator has as attributes, where a half kernel holds them in half."""
    to = half.get(node.outputs[0]) if node.outputs else None
    if to is None or node.domain not in ("", "ai.onnx"):
        return
    for name in NUMBERS.get(node.op_type, ()):
        if name in node.attributes:
            node.attributes[name] = ir.AttrFloat32(name, float(rounded(node.attributes[name].as_float(), to)))


_HALF_CODES = frozenset(kind.value for kind in HALF_TYPES)
