"""Turn decisions about nodes into a type for every group, and into a plan that says why."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.structure import Structure
from halfconv.graph.typegroups import Forced, TypeGroups, is_weight
from halfconv.precision.cost import EXACT_OPS, cast_time, float_time
from halfconv.precision.mincut import CastCost, minimum_cut
from halfconv.precision.plan import PlannedRead, PlannedValue, PrecisionPlan
from halfconv.precision.rewrite import cast_ids
from halfconv.precision.rules import Decision, Strength
from halfconv.precision.surroundings import edges_of, places_of

__all__ = ["Assignment", "Verdict", "assign", "build_plan", "count_groups", "fixed_verdicts", "keep_all"]

#: A model that reads weights of more elements is worth converting even if it only moves them.
WORTH_STORING = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What decided one group.

    Attributes:
        half: Whether the group is half.
        strength: Who decided.
        reason: Why, in words.
        rule: The row.
        node: Id of the culprit.
        op: Its operator.
        figures: Numbers that the reason rests on.
    """

    half: bool
    strength: int
    reason: str
    rule: str
    node: str
    op: str
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(slots=True)
class Assignment:
    """A precision for every group.

    Attributes:
        half: For each group, whether it is half.
        verdicts: Group -> what decided it; groups that nobody but the min-cut decided are absent.
        overruled: Decisions that a stronger one beat, where a person asked for it: an allow rule, or a plan file.
    """

    half: list[bool]
    verdicts: dict[int, Verdict]
    overruled: list[str]


def assign(
    model: ir.Model,
    names: Names,
    groups: TypeGroups,
    decided: Iterable[Decision],
    half_inputs: frozenset[str],
    half_outputs: frozenset[str],
    float_price: float = 0.0,
) -> Assignment:
    """Give every group a precision.

    Args:
        model: The prepared model.
        names: Ids of its nodes and values.
        groups: Its type groups.
        decided: What rules say about nodes.
        half_inputs: Names of model inputs that become half.
        half_outputs: Names of model outputs that become half.
        float_price: What an operator in FP32 costs beside its time, in ns: 0 where half has not proven itself.
    """
    verdicts = fixed_verdicts(model, groups, half_inputs, half_outputs)
    overruled: dict[str, None] = {}
    for decision in decided:
        if decision.inputs and decision.inputs <= half_inputs:
            continue
        culprit = names.node[decision.culprit]
        verdict = Verdict(
            decision.half, decision.strength, decision.reason, decision.rule, culprit, decision.culprit.op_type,
            decision.figures,
        )  # fmt: skip
        for group in groups.of_node(decision.node) if decision.group is None else (decision.group,):
            known = verdicts.get(group)
            if known is None or verdict.strength < known.strength:
                loser, winner = known, verdict
                verdicts[group] = verdict
            else:
                loser, winner = verdict, known
            if loser and winner.strength == Strength.USER_ALLOW and not loser.half:
                overruled[f"{winner.reason} beats: {loser.reason} (node '{names.node[decision.node]}')"] = None
    half = _cut(groups, verdicts, float_price)
    return Assignment(half, verdicts, list(overruled))


def keep_all(groups: TypeGroups) -> Assignment:
    """Leave every FP32 value of a model as it is: it was converted before."""
    count = count_groups(groups)
    why = "the model was converted before, and this value was left in FP32"
    return Assignment([False] * count, {g: Verdict(False, Strength.BLOCK_LIST, why, "converted", "", "") for g in range(count)}, [])


def count_groups(groups: TypeGroups) -> int:
    """Return the number of groups."""
    return 1 + max([*groups.produced.values(), *groups.read.values(), *groups.returned.values()], default=-1)


def fixed_verdicts(
    model: ir.Model, groups: TypeGroups, half_inputs: frozenset[str], half_outputs: frozenset[str]
) -> dict[int, Verdict]:
    """Return what nothing beats: groups that cannot be half, and the model's inputs and outputs."""
    verdicts = {group: _forced(why) for group, why in groups.forced.items()}
    return verdicts | _borders(model, groups, half_inputs, half_outputs)


def _forced(why: Forced) -> Verdict:
    return Verdict(False, Strength.IMPOSSIBLE, why.reason, why.rule, why.node, why.op)


def _borders(model: ir.Model, groups: TypeGroups, half_inputs: frozenset[str], half_outputs: frozenset[str]) -> dict[int, Verdict]:
    """Fix the types of the model's inputs and outputs."""
    found = {}
    sides = [("input", value, groups.produced.get(value), half_inputs) for value in model.graph.inputs]
    for index, value in enumerate(model.graph.outputs):
        sides.append(("output", value, groups.returned.get((model.graph, index)), half_outputs))
    for side, value, group, wanted in sides:
        if group is not None and group not in groups.forced:
            half = value.name in wanted
            reason = f"model {side} keeps its type" if not half else f"model {side} is to be half"
            found[group] = Verdict(half, 0, reason, "io", value.name or "", side.capitalize())
    return found


def _cut(groups: TypeGroups, verdicts: Mapping[int, Verdict], float_price: float) -> list[bool]:
    """Decide the free groups: least time on the target."""
    count = count_groups(groups)
    as_half, as_float = [0.0] * count, [0.0] * count
    for group, nodes in groups.nodes.items():
        for node in nodes:
            slots = [v for v in (*node.inputs, *node.outputs) if v is not None and not is_weight(v)]
            as_float[group] += float_time(node, slots) + float_price
    border = {group for group, verdict in verdicts.items() if verdict.rule == "io"}
    for group, verdict in verdicts.items():
        if verdict.half:
            as_half[group], as_float[group] = 0.0, math.inf
        else:
            as_half[group], as_float[group] = math.inf, 0.0
    readers: dict[ir.Value, set[int]] = defaultdict(set)
    results: dict[ir.Value, set[int]] = defaultdict(set)
    for (node, index), group in groups.read.items():
        value = node.inputs[index]
        if value in groups.produced:
            assert value is not None
            readers[value].add(group)
    for (graph, index), group in groups.returned.items():
        value = graph.outputs[index]
        if value in groups.produced:
            (results if group in border else readers)[value].add(group)
    casts = []
    for value, reading in readers.items():
        producer = groups.produced[value]
        if producer not in border and reading != {producer}:  # a Cast at the model's border is nobody's choice
            casts.append(CastCost(producer, tuple(sorted(reading)), cast_time(value), cast_time(value)))
    half = minimum_cut(as_half, as_float, casts)
    for value, reading in results.items():
        readers[value] |= reading
    _leave_movers(groups, verdicts, half, readers)
    _leave_copies(groups, verdicts, half, readers, border)
    return half


def _leave_movers(
    groups: TypeGroups, verdicts: Mapping[int, Verdict], half: list[bool], readers: Mapping[ir.Value, set[int]]
) -> None:
    """Leave in FP32 what only moves numbers between FP32 neighbours: half would add Casts and gain nothing."""
    parent = list(range(len(half)))

    def find(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for value, reading in readers.items():
        producer = groups.produced[value]
        for reader in reading:
            if half[producer] and half[reader]:
                parent[find(reader)] = find(producer)
    useful = set()
    for group in range(len(half)):
        if half[group] and (group in verdicts or _is_useful(groups, group)):
            useful.add(find(group))
    for group in range(len(half)):
        if half[group] and find(group) not in useful:
            half[group] = False


def _leave_copies(
    groups: TypeGroups,
    verdicts: Mapping[int, Verdict],
    half: list[bool],
    readers: Mapping[ir.Value, set[int]],
    border: set[int],
) -> None:
    """Leave in FP32 what stands at the model's border, where that needs no more Casts.

    Numbers that are only moved arrive exact; and an input that is standardised, or goes straight into a Softmax, keeps the digits
    that the first subtraction leaves over.
    """
    touching: dict[int, list[ir.Value]] = defaultdict(list)
    for value, reading in readers.items():
        for group in {groups.produced[value], *reading}:
            touching[group].append(value)

    def casts(values: Iterable[ir.Value]) -> int:
        return sum(any(half[r] != half[groups.produced[v]] for r in readers[v]) for v in values)

    exact = set(border)
    for group, values in touching.items():  # in the order of the graph, so that x − mean goes before its division
        if not half[group] or group in verdicts:
            continue
        moves = not _is_useful(groups, group) and any(groups.produced[v] in border or readers[v] & border for v in values)
        first = _is_first(groups, group, exact)
        if not (moves or first):
            continue
        before = casts(values)
        half[group] = False
        if casts(values) > before - (0 if first else 1):
            half[group] = True
        else:
            exact.add(group)


def _is_first(groups: TypeGroups, group: int, exact: set[int]) -> bool:
    """Tell whether a group is one node that works on FP32 inputs of the model and constants only."""
    nodes = groups.nodes.get(group, ())
    if len(nodes) != 1 or nodes[0].domain:
        return False
    node = nodes[0]
    reads = [value for value in node.inputs if value in groups.produced]
    if not reads or any(groups.produced[value] not in exact for value in reads if value is not None):
        return False
    if node.op_type in ("LogSoftmax", "Softmax"):
        return True
    weights = [value for value in node.inputs if value is not None and is_weight(value)]
    return node.op_type in ("Add", "Div", "Mul", "Sub") and len(reads) == 1 and bool(weights)


def _is_useful(groups: TypeGroups, group: int) -> bool:
    for node in groups.nodes.get(group, ()):
        if node.domain or node.op_type not in EXACT_OPS:
            return True
        weights = [v for i, v in enumerate(node.inputs) if v is not None and (node, i) in groups.read and is_weight(v)]
        if any(v.const_value is not None and v.const_value.size > WORTH_STORING for v in weights):
            return True
    return False


def build_plan(
    names: Names,
    groups: TypeGroups,
    assignment: Assignment,
    *,
    source_sha256: str,
    structure: Structure,
    to: str,
    target: str,
    options: Mapping[str, Any],
    dtype: ir.DataType,
) -> PrecisionPlan:
    """Write an assignment down as a plan."""
    half_name = dtype.name.lower()
    values = []
    for value, group in groups.produced.items():
        if assignment.half[group]:
            values.append(PlannedValue(names.value[value], half_name))
            continue
        verdict = assignment.verdicts.get(group)
        if verdict is None:
            owners = groups.nodes.get(group)
            node, op = (names.node[owners[0]], owners[0].op_type) if owners else ("", "")
            verdict = Verdict(
                False, Strength.MIN_CUT, "half would only add Casts, or round what arrives in FP32", "min-cut", node, op
            )
        values.append(
            PlannedValue(
                names.value[value],
                "float",
                verdict.reason,
                verdict.rule,
                verdict.node,
                verdict.op,
                dict(verdict.figures),
            )
        )
    reads = _reads(names, groups, assignment, half_name)
    named = {value.node for value in values} | {read.node for read in reads}
    return PrecisionPlan(
        source_sha256=source_sha256,
        structure_sha256=structure.sha256,
        to=to,
        target=target,
        options=dict(options),
        values=tuple(sorted(values, key=lambda value: value.id)),
        casts=cast_ids(groups, assignment.half, names, half_name),
        reads=reads,
        value_marks={names.value[value]: structure.value[value] for value in groups.produced},
        node_marks={id_: structure.node[node] for node, id_ in names.node.items() if id_ in named},
        places=places_of(names, groups),
        edges=edges_of(names, groups, assignment.half, half_name),
    )


def _reads(names: Names, groups: TypeGroups, assignment: Assignment, half_name: str) -> tuple[PlannedRead, ...]:
    """Return the reads whose groups hold no value, and are free: what a plan's values and Casts do not tell."""
    told = set(groups.produced.values()) | set(groups.forced)
    found = [
        PlannedRead(names.node[node], index, half_name if assignment.half[group] else "float")
        for (node, index), group in groups.read.items()
        if group not in told
    ]
    return tuple(sorted(found, key=lambda read: (read.node, read.input)))
