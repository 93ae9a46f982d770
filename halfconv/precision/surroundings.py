"""Where the values of a plan stand in the graph: what makes them, what reads them, what changes its type with them.

A plan carries this so that a person can ask it questions without the model: `halfconv.explanation` and the HTML report do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups, is_weight
from halfconv.precision.plan import PlannedEdge, PlannedPlace, PrecisionPlan
from halfconv.precision.ranges import Ranges

__all__ = ["edges_of", "places_of", "scope_of", "with_ranges"]

#: Where exporters say what module a node came from.
SCOPES = ("pkg.torch.onnx.name_scopes", "namespace")


def scope_of(metadata: Mapping[str, str]) -> str:
    """Return the innermost module path that an exporter names in a node's metadata; "" if it names none."""
    scope = next((metadata[name] for name in SCOPES if metadata.get(name)), "")
    if not scope.startswith("["):
        return scope
    parts = [part.strip(" '\"[]") for part in scope.split(",")]
    return next((part for part in reversed(parts[:-1] or parts) if part), "")


def places_of(names: Names, groups: TypeGroups) -> tuple[PlannedPlace, ...]:
    """Say where each planned value and each FP32 weight that is read stands, in topological order; inputs and weights come first.

    Args:
        names: Ids of nodes and values.
        groups: Type groups.
    """
    weights = dict.fromkeys(value for (node, i), _ in groups.read.items() if (value := node.inputs[i]) and is_weight(value))
    found = [PlannedPlace(names.value[value], "", "Weight", "", _shape(value), None) for value in weights]
    inputs = [value for value in groups.produced if value.producer() is None]
    found += [PlannedPlace(names.value[value], "", "Input", "", _shape(value), groups.produced[value]) for value in inputs]
    for node in names.nodes():
        scope = scope_of(node.metadata_props)
        found += [
            PlannedPlace(names.value[output], names.node[node], node.op_type, scope, _shape(output), groups.produced[output])
            for output in node.outputs
            if output in groups.produced
        ]
    return tuple(found)


def edges_of(names: Names, groups: TypeGroups, half: Sequence[bool], to: str) -> tuple[PlannedEdge, ...]:
    """Say what reads each value and weight, and in which type, in topological order of the readers.

    Args:
        names: Ids of nodes and values.
        groups: Type groups.
        half: For each group, whether it is half.
        to: ``float16`` or ``bfloat16``.
    """
    order = {node: number for number, node in enumerate(names.node)}
    found = [
        PlannedEdge(names.value[value], names.node[node], node.op_type, group, to if half[group] else "float")
        for (node, index), group in sorted(groups.read.items(), key=lambda entry: (order[entry[0][0]], entry[0][1]))
        if (value := node.inputs[index]) is not None
    ]
    owners = {scope.graph: scope.owner for scope in names.scopes}
    for (graph, index), group in groups.returned.items():
        value, owner = graph.outputs[index], owners[graph]
        reader, op = (value.name or "", "Output") if owner is None else (names.node[owner], owner.op_type)
        found.append(PlannedEdge(names.value[value], reader, op, group, to if half[group] else "float"))
    return tuple(found)


def with_ranges(plan: PrecisionPlan, ranges: Ranges) -> PrecisionPlan:
    """Return a plan that knows what its values held."""
    known = {name: asdict(entry) for name, entry in ranges.values.items()}
    return replace(plan, places=tuple(replace(place, range=known.get(place.value)) for place in plan.places))


def _shape(value: ir.Value) -> tuple[int | str, ...] | None:
    if value.shape is None:
        return None
    dims: list[Any] = [dim if isinstance(dim, int) else dim.value or "?" for dim in value.shape]
    return tuple(dims)
