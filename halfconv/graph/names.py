"""Identity of values and nodes, as the shared contract defines it.

A value's id is its name in the main graph, and ``OUTER_NODE_ID.attribute/NAME`` inside a subgraph. A node's id is its name
if that is unique in its graph, else ``OpType#k`` (the k-th node of that graph, counted from 0 in topological order); inside a
subgraph it has the same prefix as a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["Names", "Scope", "key_of", "places", "subgraphs", "values_of"]


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield each graph that a node's attributes hold, with the attribute's name (``name[i]`` in a list of graphs)."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{attribute.name}[{index}]", graph


def values_of(graph: ir.Graph) -> list[ir.Value]:
    """Return what a graph defines: inputs, other initializers and node outputs, subgraphs' values not among them."""
    outputs = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *(v for v in graph.initializers.values() if not v.is_graph_input()), *outputs]


def key_of(node: ir.Node) -> str:
    """Return what a node goes by where nodes may come and go before it: its name, or else its first output's."""
    return node.name or next((output.name for output in node.outputs if output.name), "")


def places(graph: ir.Graph, prefix: str = "") -> Iterator[tuple[str, ir.Value]]:
    """Yield every value that a graph defines, in all scopes, with its place: like its id, but by `key_of` the outer nodes.

    Args:
        graph: The graph.
        prefix: What places begin with.
    """
    for value in values_of(graph):
        if value.name:
            yield prefix + value.name, value
    for node in graph:
        for attribute, inner in subgraphs(node):
            yield from places(inner, f"{prefix}{key_of(node)}.{attribute}/")


@dataclass(frozen=True, slots=True)
class Scope:
    """A graph of the model, with its place.

    Attributes:
        graph: The graph.
        prefix: What ids of its values and nodes begin with; empty for the main graph.
        owner: The node that holds the graph; None for the main graph.
    """

    graph: ir.Graph
    prefix: str
    owner: ir.Node | None


@dataclass(slots=True)
class Names:
    """Ids of all nodes and values of a model, in all scopes.

    The ids are those of the moment of construction: build it after preparation and before rewriting.

    Attributes:
        scopes: All graphs, outer ones first.
        node: Node -> id.
        value: Value -> id, for graph inputs, initializers and node outputs.
    """

    scopes: list[Scope] = field(default_factory=list)
    node: dict[ir.Node, str] = field(default_factory=dict)
    value: dict[ir.Value, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """Collect the ids of a model."""
        names = cls()
        names._walk(Scope(model.graph, "", None))
        return names

    def _walk(self, scope: Scope) -> None:
        self.scopes.append(scope)
        graph, prefix = scope.graph, scope.prefix
        counts = Counter(node.name for node in graph if node.name)
        for value in (*graph.inputs, *graph.initializers.values()):
            self.value[value] = prefix + (value.name or "")
        for index, node in enumerate(graph):
            unique = node.name and counts[node.name] == 1
            self.node[node] = prefix + (node.name if unique and node.name else f"{node.op_type}#{index}")
            for output in node.outputs:
                if output.name:
                    self.value[output] = prefix + output.name
        for node in graph:
            for attribute, inner in subgraphs(node):
                self._walk(Scope(inner, f"{self.node[node]}.{attribute}/", node))

    def nodes(self) -> Iterator[ir.Node]:
        """Yield every node of every scope, outer scopes first."""
        for scope in self.scopes:
            yield from scope.graph
