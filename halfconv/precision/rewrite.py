"""Give every value the type that the plan says: retype, cast once per (value, type), store weights as they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.schema import DTYPE_ATTRIBUTES
from halfconv.graph.typegroups import TypeGroups, is_float, is_weight
from halfconv.precision.weights import HalfTensor

__all__ = ["RewritePass", "RewriteStats", "cast_ids"]

#: Opset for the Casts of a model that imports none of ONNX's own operators.
CAST_OPSET = 13
#: Metadata of the Casts that rewriting adds: the id of the value they serve.
ADDED = "halfconv.cast"
#: Endings of the names of values that rewriting adds.
SUFFIX = {ir.DataType.FLOAT: "_fp32", ir.DataType.FLOAT16: "_fp16", ir.DataType.BFLOAT16: "_bf16"}


@dataclass(slots=True)
class RewriteStats:
    """What rewriting did.

    Attributes:
        casts: Cast nodes added.
        dropped_casts: The model's own Casts that became empty and were removed.
        half_weights: Weights stored in half only.
        float_weights: FP32 weights that stay FP32 only.
        both_weights: Weights stored in both.
    """

    casts: int = 0
    dropped_casts: int = 0
    half_weights: list[str] = field(default_factory=list)
    float_weights: list[str] = field(default_factory=list)
    both_weights: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Read:
    """One place that reads a value: a node's input, or a result of a graph."""

    node: ir.Node | None
    graph: ir.Graph | None
    index: int
    half: bool


def _reads(groups: TypeGroups, half: Sequence[bool]) -> Iterator[tuple[ir.Value, _Read]]:
    for (node, index), group in groups.read.items():
        value = node.inputs[index]
        assert value is not None
        yield value, _Read(node, None, index, half[group])
    for (graph, index), group in groups.returned.items():
        yield graph.outputs[index], _Read(None, graph, index, half[group])


def cast_ids(groups: TypeGroups, half: Sequence[bool], names: Names, to: str) -> tuple[tuple[str, str], ...]:
    """Return the (value id, type) pairs that need a Cast under an assignment, sorted."""
    found = set()
    for value, read in _reads(groups, half):
        if not is_weight(value) and read.half != half[groups.produced[value]]:
            found.add((names.value[value], to if read.half else "float"))
    return tuple(sorted(found))


class RewritePass(ir.passes.InPlacePass):
    """Apply an assignment of precisions to a model.

    Attributes:
        stats: What was done; filled by the call.
    """

    def __init__(self, groups: TypeGroups, half: Sequence[bool], names: Names, to: ir.DataType):
        super().__init__()
        self.groups, self.half, self.to = groups, half, to
        self.stats = RewriteStats()
        self._taken = {value.name for value in names.value} | {node.name for node in names.node}
        self._nodes = list(names.node)

    def requires(self, model: ir.Model) -> None:
        """Refuse a model with functions: their bodies would not be converted."""
        if model.functions:
            raise ir.passes.PreconditionError("inline the model's functions first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        reads: dict[ir.Value, list[_Read]] = defaultdict(list)
        for value, read in _reads(self.groups, self.half):
            reads[value].append(read)
        attributes = self._retype()
        for value, places in reads.items():
            if is_weight(value):
                self._store(value, places, model.graph)
            else:
                self._cast(value, places, model.graph)
        if self.stats.casts:
            model.opset_imports.setdefault("", CAST_OPSET)
        self._drop_casts(model.graph)
        self._name_nodes(model)
        changed = attributes or any(self.half) or bool(self.stats.casts or self.stats.dropped_casts)
        return ir.passes.PassResult(model, modified=changed)

    # --- types ------------------------------------------------------------------------------------------------------

    def _retype(self) -> bool:
        """Set the type of every produced value, and the attributes that carry it."""
        changed = False
        for value, group in self.groups.produced.items():
            if self.half[group]:
                value.dtype = self.to
                if value.is_initializer() and value.const_value is not None:  # the default of an input that callers may override
                    value.const_value = HalfTensor(value.const_value, self.to, value.name or "")
                changed = True
        for node in self._nodes:
            outputs = [o for o in node.outputs if o in self.groups.produced]
            if outputs and not node.domain:
                changed |= self._set_type_attribute(node, self.half[self.groups.produced[outputs[0]]])
        return changed

    def _set_type_attribute(self, node: ir.Node, half: bool) -> bool:
        name = DTYPE_ATTRIBUTES.get(node.op_type)
        if node.op_type == "Constant" and "value" in node.attributes:
            name = "value"
        if name is None or (node.op_type == "DequantizeLinear" and name not in node.attributes):
            return False
        dtype = self.to if half else ir.DataType.FLOAT
        if name == "value":
            if not half:
                return False
            given = node.attributes.get("value")
            tensor = given.as_tensor() if given is not None else ir.tensor([0.0], ir.DataType.FLOAT)
            node.attributes.add(ir.AttrTensor("value", HalfTensor(tensor, self.to, tensor.name or "")))
            return True
        given = node.attributes.get(name)
        # An absent attribute means FLOAT, or the type of the first input, which may have changed: write it out.
        if (given.as_int() if given is not None else ir.DataType.FLOAT.value) == dtype.value and not (
            given is None and node.op_type.endswith("Like")
        ):
            return False
        node.attributes.add(ir.AttrInt64(name, dtype.value))
        return True

    # --- values -----------------------------------------------------------------------------------------------------

    def _cast(self, value: ir.Value, places: list[_Read], main: ir.Graph) -> None:
        """Serve the readers in the other precision by one Cast, right behind the value's producer."""
        held = self.half[self.groups.produced[value]]
        others = [read for read in places if read.half != held]
        if not others:
            return
        dtype = ir.DataType.FLOAT if held else self.to
        original = value.name or "value"
        swap = any(read.graph is main for read in others)
        if swap:  # the main graph's output keeps its name; what computes it takes another
            value.name = self._unique(original + SUFFIX[self.to if held else ir.DataType.FLOAT])
        name = original if swap else self._unique(original + SUFFIX[dtype])
        node = ir.node(
            "Cast",
            [value],
            {"to": dtype.value},
            name=self._unique(f"Cast_{original}{SUFFIX[dtype]}"),
            outputs=[ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)],
        )
        node.metadata_props[ADDED] = original
        self._place(node, value)
        if swap:
            node.outputs[0].doc_string = value.doc_string
            node.outputs[0].metadata_props.update(value.metadata_props)
        self.stats.casts += 1
        self._redirect(others, node.outputs[0])

    @staticmethod
    def _place(node: ir.Node, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None:
            producer.append(node)
            return
        graph = value.graph
        assert graph is not None
        if len(graph):
            graph[0].prepend(node)
        else:
            graph.append(node)

    @staticmethod
    def _redirect(places: list[_Read], value: ir.Value) -> None:
        for read in places:
            if read.node is not None:
                read.node.replace_input_with(read.index, value)
            elif read.graph is not None:
                read.graph.outputs[read.index] = value

    def _store(self, value: ir.Value, places: list[_Read], main: ir.Graph) -> None:
        """Store a weight once per precision that is read."""
        tensor, name = value.const_value, value.name or ""
        assert tensor is not None
        in_half = [read for read in places if read.half]
        in_float = [read for read in places if not read.half]
        if not in_half:
            self.stats.float_weights.append(name)
            return
        if not in_float:
            value.dtype = self.to
            value.const_value = HalfTensor(tensor, self.to, name)
            self.stats.half_weights.append(name)
            return
        self.stats.both_weights.append(name)
        # A model output must keep its name; otherwise the FP32 copy keeps it.
        half_keeps = any(read.graph is main for read in in_half)
        dtype, moved = (ir.DataType.FLOAT, in_float) if half_keeps else (self.to, in_half)
        new = self._unique(name + SUFFIX[dtype])
        copied = tensor if half_keeps else HalfTensor(tensor, self.to, new)
        copy = ir.Value(name=new, type=ir.TensorType(dtype), shape=value.shape, const_value=copied)
        graph = value.graph
        assert graph is not None
        if half_keeps:
            value.dtype = self.to
            value.const_value = HalfTensor(tensor, self.to, name)
            copy.const_value = ir.LazyTensor(
                lambda: ir.Tensor(tensor.numpy(), name=new), dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=new
            )
        graph.register_initializer(copy)
        self._redirect(moved, copy)

    def _name_nodes(self, model: ir.Model) -> None:
        """Give nodes that share a name names of their own: ONNX Runtime refuses the model otherwise."""
        for graph in model.graphs():
            seen: set[str] = set()
            for node in graph:
                if node.name and node.name in seen:
                    node.name = self._unique(f"{node.name}_2")
                seen.add(node.name or "")

    def _drop_casts(self, main: ir.Graph) -> None:
        """Remove the model's own Casts that now change nothing."""
        for node in self._nodes:
            if node.op_type != "Cast" or node.domain or node.graph is None:
                continue
            value, output = node.inputs[0], node.outputs[0]
            if value is None or value.dtype is None or value.dtype != output.dtype or output.is_graph_output():
                continue
            if not (is_float(value) or value.dtype == self.to):
                continue
            output.replace_all_uses_with(value)
            node.graph.remove(node, safe=True)
            self.stats.dropped_casts += 1
        for node in self._nodes:
            if node.op_type == "Cast" and not node.domain and node.graph is not None:
                self._share(node)

    def _share(self, node: ir.Node) -> None:
        """Let the readers of the model's own Cast read an added one that does the same."""
        value, output = node.inputs[0], node.outputs[0]
        if value is None or output.is_graph_output():
            return
        for use in value.uses():
            twin = use.node
            if twin is not node and ADDED in twin.metadata_props and twin.outputs[0].dtype == output.dtype:
                output.replace_all_uses_with(twin.outputs[0])
                assert node.graph is not None
                node.graph.remove(node, safe=True)
                self.stats.dropped_casts += 1
                return

    def _unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name
