"""Compare values inside branches and bodies: a node that runs the bodies of both models side by side, and measures.

Both models keep their own If, Loop, Scan or SequenceMap, on whose results the rest of each depends. The node made here runs
beside them; it stops where either model stops, and a branch is compared where both models take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from halfconv.drift.builder import Builder
from halfconv.drift.surface import BODIES, lead_out, stacked
from halfconv.graph.names import key_of

__all__ = ["CANDIDATE", "Pair", "Table", "inside", "pairs_of", "partners"]

#: What the names of the candidate's values and nodes begin with in the joined graph.
CANDIDATE = "candidate:"
#: Writes the measures of a pair of values: a vector.
Write = Callable[[Builder, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two values of one name, and their places in reference and candidate (`halfconv.graph.names.places`)."""

    ours: ir.Value
    theirs: ir.Value
    place: str
    their_place: str


@dataclass(slots=True)
class Table:
    """What is measured inside one node.

    Attributes:
        nodes: Nodes for the graph that holds both nodes.
        value: The table.
        rows: The pair of each row, in topological order, those inside a node before those that it gives.
    """

    nodes: list[ir.Node]
    value: ir.Value
    rows: list[Pair] = field(default_factory=list)


def _bare(name: str | None) -> str:
    return (name or "").removeprefix(CANDIDATE)


def pairs_of(ours: Iterable[ir.Value], theirs: Iterable[ir.Value], places: tuple[str, str] = ("", "")) -> list[Pair]:
    """Pair FP32 tensors of one name that can have one shape, in the candidate's order.

    Args:
        ours: Values of one graph of the reference.
        theirs: Values of the same graph of the candidate.
        places: What the places of both begin with.
    """
    known = {value.name: value for value in ours if value.name and _is_plain(value)}
    found = []
    for value in theirs:
        mine = known.get(_bare(value.name))
        if mine is not None and _comparable(mine, value):
            found.append(Pair(mine, value, f"{places[0]}{mine.name}", f"{places[1]}{mine.name}"))
    return found


def _is_plain(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def _comparable(ours: ir.Value, theirs: ir.Value) -> bool:
    """Tell whether two values can have one shape."""
    if not _is_plain(theirs):
        return False
    if ours.shape is None or theirs.shape is None:
        return True
    pairs = list(zip(ours.shape, theirs.shape, strict=False))
    return ours.shape.rank() == theirs.shape.rank() and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def partners(ours: Iterable[ir.Node], theirs: Iterable[ir.Node]) -> list[tuple[ir.Node, ir.Node]]:
    """Pair nodes with bodies: by their names, or else an output's name, or else, where as many are left of each, their order."""
    left = [[node for node in nodes if node.op_type in BODIES and node.domain in ("", "ai.onnx")] for nodes in (ours, theirs)]
    found = []
    for by_outputs in (False, True):
        known = {name: node for node in reversed(left[0]) for name in _names(node, by_outputs) if name}
        for node in list(left[1]):
            mine = next((known[name] for name in map(_bare, _names(node, by_outputs)) if name in known), None)
            if mine in left[0] and mine is not None and mine.op_type == node.op_type:
                found.append((mine, node))
                left[0].remove(mine)
                left[1].remove(node)
    for op in BODIES:
        rest = [[node for node in nodes if node.op_type == op] for nodes in left]
        if len(rest[0]) == len(rest[1]):
            found += zip(*rest, strict=True)
    return [(mine, its) for mine, its in found if len(mine.inputs) == len(its.inputs)]


def _names(node: ir.Node, by_outputs: bool) -> list[str | None]:
    return [output.name for output in node.outputs] if by_outputs else [node.name]


def inside(
    ours: ir.Node, theirs: ir.Node, wanted: Callable[[Pair], bool], write: Write, summed: Sequence[bool], opset: int,
    places: tuple[str, str] = ("", ""),
) -> Table | None:  # fmt: skip
    """Write a node that measures what is inside two nodes, and inside the nodes inside them.

    Args:
        ours: The reference's node.
        theirs: The candidate's, in the same graph.
        wanted: Tells which pairs are measured.
        write: Writes the measures of a pair.
        summed: For each measure whether it is added up over iterations; if not, the largest is kept.
        opset: The graph's opset, 13 or later.
        places: What the places of both nodes begin with.

    Returns:
        None if nothing in it is wanted, or the two bodies do not take the same.
    """
    tables = []
    for attribute in BODIES[ours.op_type]:
        bodies = [node.attributes[attribute].as_graph().clone(allow_outer_scope_values=True) for node in (ours, theirs)]
        if len(bodies[0].inputs) != len(bodies[1].inputs):
            return None
        below = (f"{places[0]}{key_of(ours)}.{attribute}/", f"{places[1]}{_bare(key_of(theirs))}.{attribute}/")
        found = _body(bodies, wanted, write, summed, opset, below)
        if found is None:
            continue
        nodes, table = found
        b = Builder(ir.DataType.FLOAT16, f"measures of:{below[0]}", opset)
        node = _MAKERS[ours.op_type](b, attribute, ours, theirs, bodies, [*nodes, *table.nodes])
        value = lead_out(node, {"then_branch" if ours.op_type == "If" else "body": (len(table.rows), table.value)}, summed, b)
        tables.append(Table(b.nodes, value, table.rows))
    if len(tables) < 2:
        return tables[0] if tables else None
    b = Builder(ir.DataType.FLOAT16, f"measures of:{places[0]}{key_of(ours)}", opset)
    dtype = tables[0].value.dtype
    assert dtype is not None
    value = b.typed(dtype, "Concat", *(table.value for table in tables), axis=0)
    return Table([*(n for table in tables for n in table.nodes), *b.nodes], value, [row for table in tables for row in table.rows])


def _body(
    bodies: Sequence[ir.Graph], wanted: Callable[[Pair], bool], write: Write, summed: Sequence[bool], opset: int,
    places: tuple[str, str],
) -> tuple[list[ir.Node], Table] | None:  # fmt: skip
    """Return the nodes of both bodies, and what measures them."""
    mine, its = (list(body) for body in bodies)
    given, theirs = ([*body.inputs, *(o for node in body for o in node.outputs)] for body in bodies)
    found = pairs_of(given, theirs, places)
    pairs = {pair.ours: pair for pair in found if wanted(pair)}
    match = dict(partners(mine, its))
    measured: list[ir.Node] = []
    rows: list[Pair] = []
    parts: list[ir.Value | list[ir.Value]] = []
    b = Builder(ir.DataType.FLOAT16, f"measures in:{places[0]}", opset)
    for node in (None, *mine):
        deeper = inside(node, match[node], wanted, write, summed, opset, places) if node in match else None
        if deeper is not None:
            measured += deeper.nodes
            rows += deeper.rows
            parts.append(deeper.value)
        here = [pairs[value] for value in (node.outputs if node else bodies[0].inputs) if value in pairs]
        rows += here
        parts.append([write(b, pair.ours, pair.theirs) for pair in here])
    if not rows:
        return None
    table = stacked(b, parts)
    return [*mine, *its], Table([*measured, *b.nodes], table, rows)


def _graph(
    name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], bodies: Sequence[ir.Graph], nodes: Sequence[ir.Node]
) -> ir.Graph:
    """Put the nodes and weights of both bodies into one graph."""
    weights = [value for body in bodies for value in body.initializers.values() if not value.is_graph_input()]
    for body in bodies:
        body.inputs.clear()
        body.outputs.clear()
        body.initializers.clear()
        body.remove(list(body))
    return ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, name=name)


def _and(b: Builder, ours: ir.Value | None, theirs: ir.Value | None) -> ir.Value | None:
    """Both conditions, where one that is left out holds."""
    if ours is None or theirs is None:
        return ours or theirs
    return b.test("And", ours, theirs)


def _if(
    b: Builder, attribute: str, ours: ir.Node, theirs: ir.Node, bodies: Sequence[ir.Graph], nodes: Sequence[ir.Node]
) -> ir.Node:
    """One If for each branch: its then_branch is that branch of both models, its else_branch is empty."""
    conditions = [value for value in (ours.inputs[0], theirs.inputs[0]) if value is not None]
    taken = b.test("And", *conditions) if attribute == "then_branch" else b.test("Not", b.test("Or", *conditions))
    branches = {"then_branch": _graph("both", [], [], bodies, nodes), "else_branch": ir.Graph([], [], nodes=[], name="none")}
    return b.node("If", [taken], branches, 0)


def _loop(
    b: Builder, attribute: str, ours: ir.Node, theirs: ir.Node, bodies: Sequence[ir.Graph], nodes: Sequence[ir.Node]
) -> ir.Node:
    mine, its = bodies
    trips = [value for value in (ours.inputs[0], theirs.inputs[0]) if value is not None]
    most = b.typed(ir.DataType.INT64, "Min", *trips) if len(trips) == 2 else next(iter(trips), None)
    condition = _and(b, ours.inputs[1], theirs.inputs[1])
    for theirs_too, shared in zip(its.inputs[:2], mine.inputs[:2], strict=True):
        theirs_too.replace_all_uses_with(shared, replace_graph_outputs=True)
    carried = len(mine.inputs) - 2
    inner = Builder(b.to, f"{b.stem}both", b.opset)
    goes_on = _and(inner, mine.outputs[0], its.outputs[0])
    assert goes_on is not None
    outputs = [goes_on, *mine.outputs[1 : 1 + carried], *its.outputs[1 : 1 + carried]]
    both = _graph("both", [*mine.inputs, *its.inputs[2:]], outputs, bodies, [*nodes, *inner.nodes])
    return b.node("Loop", [most, condition, *ours.inputs[2:], *theirs.inputs[2:]], {"body": both}, 2 * carried)


def _scan(
    b: Builder, attribute: str, ours: ir.Node, theirs: ir.Node, bodies: Sequence[ir.Graph], nodes: Sequence[ir.Node]
) -> ir.Node:
    mine, its = bodies
    scanned = ours.attributes.get_int("num_scan_inputs", 0)
    states = len(ours.inputs) - scanned
    attributes: dict[str, int | list[int] | ir.Graph] = {"num_scan_inputs": 2 * scanned}
    for name in ("scan_input_axes", "scan_input_directions"):
        attributes[name] = [entry for node in (ours, theirs) for entry in node.attributes.get_ints(name, [0] * scanned)]
    inputs = [*mine.inputs[:states], *its.inputs[:states], *mine.inputs[states:], *its.inputs[states:]]
    outputs = [*mine.outputs[:states], *its.outputs[:states]]
    attributes["body"] = _graph("both", inputs, outputs, bodies, nodes)
    given = [*ours.inputs[:states], *theirs.inputs[:states], *ours.inputs[states:], *theirs.inputs[states:]]
    return b.node("Scan", given, attributes, 2 * states)


def _sequence_map(
    b: Builder, attribute: str, ours: ir.Node, theirs: ir.Node, bodies: Sequence[ir.Graph], nodes: Sequence[ir.Node]
) -> ir.Node:
    mine, its = bodies
    both = _graph("both", [*mine.inputs, *its.inputs], [], bodies, nodes)
    return b.node("SequenceMap", [*ours.inputs, *theirs.inputs], {"body": both}, 0)


_MAKERS = {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}
