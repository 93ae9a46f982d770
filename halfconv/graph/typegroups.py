"""Which floating-point slots of a graph must hold the same type.

A *slot* is an input or output of a node, an input of a graph, or a result that a graph returns. Slots that share a type
variable of one node's schema, or that are two ends of a control-flow edge (the results of both branches of an ``If``, the
carried values of a ``Loop``), form a *group*; a plan gives each group one type. A value has the type of the group that produces
it; a reader in a group of the other type needs a Cast. Weights have no group: they are stored in whatever type is read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from halfconv.graph.kernels import combining, support
from halfconv.graph.names import Names, subgraphs
from halfconv.graph.schema import Signature, signature

__all__ = ["Forced", "TypeGroups", "is_float", "is_weight", "past_casts"]

Key = Hashable


def is_float(value: ir.Value | None) -> bool:
    """Tell whether a value is an FP32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def is_weight(value: ir.Value) -> bool:
    """Tell whether a value is a constant of the model (an initializer that no caller can override)."""
    return value.is_initializer() and not value.is_graph_input()


def past_casts(value: ir.Value | None) -> ir.Value | None:
    """Return what a chain of Casts was given: the value itself if no Cast makes it."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Cast" or node.domain not in ("", "ai.onnx"):
            break
        value = node.inputs[0]
    return value


@dataclass(frozen=True, slots=True)
class Forced:
    """Why a group cannot be half.

    Attributes:
        reason: In words, with the culprit.
        rule: The row that decided: ``schema``, ``kernel``, ``unknown-type``, ``sequence`` or ``unknown-op``.
        node: Id of the culprit.
        op: Its operator.
    """

    reason: str
    rule: str
    node: str
    op: str


@dataclass(slots=True)
class TypeGroups:
    """The groups of a model, by number.

    Attributes:
        produced: Value (graph input or node output, FP32) -> group.
        read: (node, input index) -> group, for inputs that are FP32, weights included.
        returned: (graph, result index) -> group, for results that are FP32, of all scopes.
        nodes: Group -> nodes with a slot in it.
        forced: Group -> why it must be FP32.
        passthrough: Model inputs that are also directly model outputs: both have one type.
    """

    produced: dict[ir.Value, int] = field(default_factory=dict)
    read: dict[tuple[ir.Node, int], int] = field(default_factory=dict)
    returned: dict[tuple[ir.Graph, int], int] = field(default_factory=dict)
    nodes: dict[int, list[ir.Node]] = field(default_factory=dict)
    forced: dict[int, Forced] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, names: Names, to: ir.DataType) -> TypeGroups:
        """Collect the groups of a model whose types are inferred.

        Args:
            model: The prepared model.
            names: Ids of its nodes and values.
            to: FLOAT16 or BFLOAT16.
        """
        builder = _Builder(model, names, to)
        builder.build()
        return builder.finish()

    def of_node(self, node: ir.Node) -> set[int]:
        """Return all groups that a node has a slot in."""
        found = {self.read[node, i] for i in range(len(node.inputs)) if (node, i) in self.read}
        return found | {self.produced[o] for o in node.outputs if o in self.produced}


class _Builder:
    """Union-find over slot keys, then numbering."""

    def __init__(self, model: ir.Model, names: Names, to: ir.DataType):
        self.model, self.names, self.to = model, names, to
        self.parent: dict[Key, Key] = {}
        self.read: dict[tuple[ir.Node, int], Key] = {}
        self.produced: dict[ir.Value, Key] = {}
        self.returned: dict[tuple[ir.Graph, int], Key] = {}
        self.forced: dict[Key, Forced] = {}
        self.owners: dict[Key, list[ir.Node]] = {}

    def find(self, key: Key) -> Key:
        parent = self.parent
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def union(self, first: Key, second: Key) -> None:
        self.parent[self.find(second)] = self.find(first)

    def force(self, key: Key, reason: str, rule: str, node: ir.Node) -> None:
        self.find(key)
        self.forced.setdefault(key, Forced(reason, rule, self.names.node[node], node.op_type))

    def build(self) -> None:
        for scope in self.names.scopes:
            for value in scope.graph.inputs:
                if is_float(value):
                    self.produced[value] = ("input", value)
            for index, value in enumerate(scope.graph.outputs):
                if is_float(value):
                    self.returned[scope.graph, index] = ("result", scope.graph, index)
        for node in self.names.nodes():
            self._node(node)
        for node in self.names.nodes():
            self._control_flow(node)
        for node in self.names.nodes():
            if node.op_type in ("Cast", "CastLike") and (node, 0) in self.read and node.outputs[0] in self.produced:
                self.union(self.read[node, 0], self.produced[node.outputs[0]])  # FP32 to FP32: it changes nothing
        for index, value in enumerate(self.model.graph.outputs):
            if value.is_graph_input() and is_float(value):
                self.union(("input", value), ("result", self.model.graph, index))

    def _node(self, node: ir.Node) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        found = signature(domain, node.op_type, self.model.opset_imports.get(domain))
        slots = list(self._slots(node, found))
        variables = frozenset(variable for variable, value in slots if is_float(value))
        for (variable, value), (side, index) in zip(slots, _positions(node), strict=True):
            if not is_float(value):
                continue
            key = (node, variable)
            self.find(key)
            self.owners.setdefault(key, []).append(node)
            if side == "in":
                self.read[node, index] = key
            else:
                self.produced[node.outputs[index]] = key
        if variables:
            self._limits(node, found, slots, variables)

    def _slots(self, node: ir.Node, found: Signature | None) -> Iterator[tuple[str, ir.Value | None]]:
        for side, index in _positions(node):
            value = node.inputs[index] if side == "in" else node.outputs[index]
            if side == "out" and not node.outputs[index].name:
                value = None  # an optional output that is left out
            if found is None:
                yield "?", value
            else:
                variable = found.input_variable(index) if side == "in" else found.output_variable(index)
                yield variable, value

    def _limits(
        self,
        node: ir.Node,
        found: Signature | None,
        slots: list[tuple[str, ir.Value | None]],
        variables: frozenset[str],
    ) -> None:
        """Force what the schema, the kernels or unknown types forbid."""
        label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type

        def force_all(reason: str, rule: str) -> None:
            for variable in variables:
                self.force((node, variable), reason, rule, node)

        if found is None:
            force_all(f"no schema is known for {label}", "unknown-op")
            return
        for _, value in slots:
            if value is None or not value.name:
                continue
            if value.type is None or value.dtype in (None, ir.DataType.UNDEFINED):
                force_all(f"the type of '{value.name}' is unknown", "unknown-type")
                return
            if not isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT:
                force_all(f"'{value.name}' is a sequence or optional, which no Cast can convert", "sequence")
                return
        barred = {v for v in variables if not found.may_hold(v, self.to)}
        if node.op_type in ("LayerNormalization", "GroupNormalization"):
            barred |= variables & {"U"} if node.op_type == "LayerNormalization" else set()  # stash_type fixes it to FP32
        if "value_float" in node.attributes or "value_floats" in node.attributes:
            barred |= variables
        for variable in barred:
            where = variable.partition("@")[0]
            self.force((node, variable), f"{label}-{found.since} does not allow {self.to.name} for {where}", "schema", node)
        free = variables - barred
        if not free or node.op_type in ("If", "Loop", "Scan"):
            return
        if fixed := combining(node):
            force_all(fixed, "kernel")
            return
        able = support(node.domain, node.op_type, found, variables, self.to)
        if able.missing:
            force_all(able.missing, "kernel")
            return
        for variable in free - able.half:
            self.force((node, variable), f"no {self.to.name} kernel for {variable} of {label}", "kernel", node)
        if not able.mixed:
            first, *rest = sorted(variables)
            for other in rest:
                self.union((node, first), (node, other))

    def _control_flow(self, node: ir.Node) -> None:
        """Tie the slots of a node to those of its subgraphs."""
        graphs = list(subgraphs(node))
        if not graphs:
            return
        if node.op_type == "If" and not node.domain:
            for _, graph in graphs:
                for index, output in enumerate(node.outputs):
                    self._tie(node, [("out", output)], [("result", graph, index)], [])
            return
        body = graphs[0][1]
        if node.op_type == "Loop" and not node.domain:
            carried = len(node.inputs) - 2
            for i in range(carried):
                self._tie(node, [("in", i + 2), ("out", node.outputs[i])], [("result", body, i + 1)], [body.inputs[i + 2]])
            for k in range(carried, len(node.outputs)):
                self._tie(node, [("out", node.outputs[k])], [("result", body, k + 1)], [])
            return
        if node.op_type == "Scan" and not node.domain:
            first = 1 if (self.model.opset_imports.get("", 1) or 1) < 9 else 0
            states = len(node.inputs) - first - node.attributes.get_int("num_scan_inputs", 1)
            for i in range(len(node.inputs) - first):
                ends: list[tuple[str, object]] = [("in", i + first)]
                if i < states:
                    ends.append(("out", node.outputs[i]))
                results = [("result", body, i)] if i < states else []
                self._tie(node, ends, results, [body.inputs[i]])
            for k in range(states, len(node.outputs)):
                self._tie(node, [("out", node.outputs[k])], [("result", body, k)], [])
            return
        for _, graph in graphs:  # another operator with a body (SequenceMap): its border stays FP32
            for value in graph.inputs:
                if value in self.produced:
                    self.force(self.produced[value], f"it enters the body of {node.op_type}", "sequence", node)
            for index in range(len(graph.outputs)):
                if (graph, index) in self.returned:
                    self.force(("result", graph, index), f"it leaves the body of {node.op_type}", "sequence", node)

    def _tie(
        self,
        node: ir.Node,
        ends: list[tuple[str, object]],
        results: list[tuple[str, ir.Graph, int]],
        inputs: list[ir.Value],
    ) -> None:
        keys: list[Key] = []
        unknown = ""
        for side, end in ends:
            if side == "in":
                assert isinstance(end, int)
                keys.append(self.read.get((node, end)))
                value = node.inputs[end]
            else:
                assert isinstance(end, ir.Value)
                keys.append(self.produced.get(end))
                value = end
            if value is not None and value.dtype is None:
                unknown = value.name or ""
        keys += [self.returned.get((graph, index)) for _, graph, index in results]
        keys += [self.produced.get(value) for value in inputs]
        present = [key for key in keys if key is not None]
        for key in present[1:]:
            self.union(present[0], key)
        if present and (len(present) < len(keys) or unknown):
            reason = f"one end of a value that passes through {node.op_type} has no known type"
            self.force(present[0], reason, "unknown-type", node)

    def finish(self) -> TypeGroups:
        numbers: dict[Key, int] = {}

        def number(key: Key) -> int:
            return numbers.setdefault(self.find(key), len(numbers))

        groups = TypeGroups()
        groups.produced = {value: number(key) for value, key in self.produced.items()}
        groups.read = {slot: number(key) for slot, key in self.read.items()}
        groups.returned = {slot: number(key) for slot, key in self.returned.items()}
        for key, nodes in self.owners.items():
            groups.nodes.setdefault(number(key), []).extend(nodes)
        for group, owners in groups.nodes.items():
            groups.nodes[group] = list(dict.fromkeys(owners))
        for key, why in self.forced.items():
            groups.forced.setdefault(number(key), why)
        return groups


def _positions(node: ir.Node) -> Iterator[tuple[str, int]]:
    for index in range(len(node.inputs)):
        yield "in", index
    for index in range(len(node.outputs)):
        yield "out", index
