"""A model's structure without its names: what is the same after retraining, and after an export that names everything anew.

Every value and node gets a *mark*: a hash of all that computes it and all that is computed from it, by operators, attributes
and positions, without names, weights' numbers or the order in which a file lists its nodes. Marks tell apart all that is read, as
a path of numbered inputs leads to it from a numbered output of the model; twins that nothing reads are numbered.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from halfconv.graph.names import Names, subgraphs
from halfconv.graph.typegroups import is_weight

__all__ = ["Structure"]

Item = TypeVar("Item", bound=Hashable)

#: Attributes that are structure; tensors are weights, and graphs are walked.
PLAIN = frozenset({"FLOAT", "FLOATS", "INT", "INTS", "STRING", "STRINGS"})
#: Passes over the graph, each forward and backward: the second tells apart what differs only by its neighbours' neighbours.
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Structure:
    """Marks of a prepared model's values and nodes.

    Attributes:
        sha256: Hash of the whole: equal for two models that differ in names and weights only.
        value: Graph input or node output -> mark, unique in the model.
        node: Node -> mark, unique in the model.
    """

    sha256: str
    value: Mapping[ir.Value, str]
    node: Mapping[ir.Node, str]

    @classmethod
    def of(cls, model: ir.Model, names: Names) -> Structure:
        """Collect the marks of a model.

        Args:
            model: The prepared model, sorted.
            names: Ids of its nodes and values, for the scopes.
        """
        nodes = list(names.nodes())
        values = [value for scope in names.scopes for value in scope.graph.inputs]
        values += [output for node in nodes for output in node.outputs]
        colours = _Colours(model)
        for _ in range(ROUNDS):
            colours.refine()
        opsets = sorted((domain or "ai.onnx", version) for domain, version in model.opset_imports.items())
        borders = [[colours.value.get(value, "") for value in side] for side in (model.graph.inputs, model.graph.outputs)]
        whole = json.dumps([opsets, borders, sorted(colours.node[node] for node in nodes)])
        return cls(
            hashlib.sha256(whole.encode()).hexdigest(),
            _numbered(values, colours.value),
            _numbered(nodes, colours.node),
        )


def _numbered(items: Iterable[Item], colours: Mapping[Item, str]) -> dict[Item, str]:
    """Make colours unique: the second of the same colour gets ``.1``, and so on."""
    seen: Counter[str] = Counter()
    marks = {}
    for item in items:
        colour = colours[item]
        marks[item] = f"{colour}.{seen[colour]}" if seen[colour] else colour
        seen[colour] += 1
    return marks


def _digest(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=8).hexdigest()


class _Colours:
    """Colour refinement: what a value or node is by all that is before and behind it.

    Attributes:
        value: Value -> colour.
        node: Node -> colour.
    """

    def __init__(self, model: ir.Model):
        self.graph = model.graph
        self.value: dict[ir.Value, str] = {}
        self.node: dict[ir.Node, str] = {}
        self._up: dict[ir.Value, str] = {}
        self._uses: dict[ir.Value, list[str]] = {}
        self._heads: dict[ir.Node, str] = {}

    def refine(self) -> None:
        """Pass over the graph forward and backward, from the colours of the pass before."""
        self._up, self._uses, self._heads = {}, defaultdict(list), {}
        self._forward(self.graph, "main")
        for index, value in enumerate(self.graph.outputs):
            self._uses[value].append(_digest("output", index))
        nodes: dict[ir.Node, str] = {}
        self._backward(self.graph, nodes)
        self.node = nodes
        self.value = {value: _digest(up, sorted(self._uses[value])) for value, up in self._up.items()}

    def _forward(self, graph: ir.Graph, holder: str) -> None:
        """Hash what computes each value."""
        for index, value in enumerate(graph.inputs):
            self._up[value] = _digest("input", holder, index, value.dtype and value.dtype.name, self.value.get(value))
        for value in graph.initializers.values():
            if is_weight(value):
                rank = None if value.const_value is None else len(value.const_value.shape)
                self._up[value] = _digest("weight", value.dtype and value.dtype.name, rank, self.value.get(value))
        for node in graph:
            plain = [
                (name, list(attribute.value) if attribute.type.name.endswith("S") else attribute.value)
                for name, attribute in sorted(node.attributes.items())
                if attribute.type.name in PLAIN
            ]  # fmt: skip
            reads = [None if value is None else self._up.get(value, "") for value in node.inputs]
            present = [bool(output.name) for output in node.outputs]
            head = _digest(node.domain or "ai.onnx", node.op_type, plain, reads, present, self.node.get(node))
            results = []
            for attribute_name, body in subgraphs(node):
                self._forward(body, _digest(head, attribute_name))
                results.append((attribute_name, [self._up.get(value, "") for value in body.outputs]))
            self._heads[node] = head = _digest(head, sorted(results))
            for index, output in enumerate(node.outputs):
                self._up[output] = _digest(head, index)

    def _backward(self, graph: ir.Graph, nodes: dict[ir.Node, str]) -> None:
        """Hash what is computed from each value; all that reads a value comes behind it, also inside bodies."""
        for node in reversed(list(graph)):
            nodes[node] = colour = _digest(self._heads[node], [sorted(self._uses[output]) for output in node.outputs])
            for attribute_name, body in subgraphs(node):
                for index, value in enumerate(body.outputs):
                    self._uses[value].append(_digest("result", attribute_name, index, colour))
                self._backward(body, nodes)
            for index, read in enumerate(node.inputs):
                if read is not None:
                    self._uses[read].append(_digest("read", index, colour))
