"""Replay a plan: give a model the types that a saved plan says, wherever that is possible.

A plan fits a model of the same structure. Its values are found by their ids, and by their marks in the structure where an
export has named them anew. Nothing beats what is impossible: a value that cannot be half stays FP32, and a note says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from halfconv.errors import InputError, UsageError
from halfconv.graph.names import Names
from halfconv.graph.structure import Structure
from halfconv.graph.typegroups import TypeGroups
from halfconv.model import SourceModel
from halfconv.precision.constants import WeightStats, constant_ranges
from halfconv.precision.plan import PlannedValue, PrecisionPlan, counterparts
from halfconv.precision.planner import Assignment, Verdict, count_groups, fixed_verdicts
from halfconv.precision.rules import Rules, Strength
from halfconv.report.text import visible

__all__ = ["Replay", "Settings", "replay", "settle"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a plan was made with and a replay must repeat before it looks at the model.

    Attributes:
        to: The half-precision format.
        target: The kind of hardware.
        fuse: Whether groups of operators become one.
    """

    to: str
    target: str
    fuse: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """A plan, carried over to a model.

    Attributes:
        assignment: A precision for every group.
        half_inputs: Names of model inputs that become half.
        half_outputs: Names of model outputs that become half.
        options: The plan's options, with the model's own names of inputs and outputs.
    """

    assignment: Assignment
    half_inputs: frozenset[str]
    half_outputs: frozenset[str]
    options: dict[str, Any]


def settle(plan: PrecisionPlan, *, rules: Rules, to: str, target: str, fuse: bool) -> Settings:
    """Refuse options that would decide what the plan has decided otherwise.

    Options that say what the plan says, or that have their default, change nothing and pass.

    Args:
        plan: The plan.
        rules: The user's rules.
        to: The half-precision format that was asked for.
        target: The target that was asked for.
        fuse: Whether fusing was asked for.

    Raises:
        UsageError: An option contradicts the plan.
    """
    made_with = plan.options
    fuses = bool(made_with.get("fuse", True))
    for option, given, default, planned in (
        ("--to", to, "fp16", plan.to),
        ("--target", target, "portable", plan.target),
        ("--no-fuse", fuse, True, fuses),
    ):
        if given not in (default, planned):
            raise _contradiction(option, given if isinstance(given, str) else "")
    for key, wanted in rules.to_dict().items():
        if wanted != made_with.get(key):
            name = "--" + key.removesuffix("s").replace("_", "-")
            raise _contradiction(name, wanted if isinstance(wanted, str) else ", ".join(wanted))
    return Settings(plan.to, plan.target, fuses)


def _contradiction(option: str, value: str) -> UsageError:
    return UsageError(
        f"{' '.join(filter(None, (option, value)))} contradicts the plan, which was made without it and decides every type",
        f"leave out --plan or {option}; convert {option} … --save-plan makes a new plan",
    )


def replay(
    plan: PrecisionPlan,
    source: SourceModel,
    names: Names,
    groups: TypeGroups,
    weights: dict[ir.Value, WeightStats],
    structure: Structure,
    dtype: ir.DataType,
    half_io: frozenset[str] = frozenset(),
    keep_io: frozenset[str] = frozenset(),
) -> Replay:
    """Carry a plan over to a model.

    Args:
        plan: The plan.
        source: The model, prepared.
        names: Ids of its nodes and values.
        groups: Its type groups.
        weights: Figures of its weights.
        structure: Marks of its nodes and values.
        dtype: The half-precision type.
        half_io: Inputs and outputs that the user wants in half; none leaves it to the plan.
        keep_io: Inputs and outputs that the user wants in FP32.

    Raises:
        InputError: The plan is for another structure, or says nothing of some value.
        UsageError: The plan makes other inputs and outputs half than the user wants.
    """
    label = str(source.path)
    if plan.structure_sha256 != structure.sha256:
        raise InputError(
            f"{label}: the plan was made for a model of another structure (other operators, edges or attributes), or by another "
            "version of halfconv, which prepares models otherwise",
            "halfconv convert without --plan, and --save-plan for a new plan",
        )
    ids = counterparts(plan.value_marks, {names.value[value]: structure.value[value] for value in groups.produced})
    missing = [names.value[value] for value in groups.produced if names.value[value] not in ids]
    if missing or len(ids) < len(plan.values):
        what = f"says nothing of value '{visible(missing[0])}'" if missing else "has values that the model has not"
        raise InputError(f"{label}: the plan {what}", "halfconv convert without --plan, and --save-plan for a new plan")
    node_ids = counterparts(plan.node_marks, {id_: structure.node[node] for node, id_ in names.node.items()})
    carried = _Carried(plan, names, groups, ids, {old: new for new, old in node_ids.items()})
    half_inputs, half_outputs, options = carried.borders(source.model)
    if half_io and half_io != half_inputs | half_outputs:
        raise _contradiction("--half-io", ", ".join(sorted(half_io)))
    if kept := keep_io & (half_inputs | half_outputs):
        raise _contradiction("--keep-io", ", ".join(sorted(kept)))
    assignment = carried.assign(fixed_verdicts(source.model, groups, half_inputs, half_outputs))
    if plan.source_sha256 != source.sha256:
        by_id = sum(new == old for new, old in ids.items())
        assignment.overruled.insert(
            0,
            f"the plan was made from another file of the same structure; "
            f"{by_id:,} of {len(ids):,} values found by name, {len(ids) - by_id:,} by structure",
        )
    assignment.overruled += _out_of_range(names, groups, weights, assignment.half, dtype)
    return Replay(assignment, half_inputs, half_outputs, options)


class _Carried:
    """A plan's words, by the ids of the model at hand."""

    def __init__(self, plan: PrecisionPlan, names: Names, groups: TypeGroups, ids: Mapping[str, str], nodes: Mapping[str, str]):
        self.plan, self.names, self.groups, self.ids, self.nodes = plan, names, groups, ids, nodes
        self.entries = {value.id: value for value in plan.values}
        self.notes: dict[str, None] = {}

    def borders(self, model: ir.Model) -> tuple[frozenset[str], frozenset[str], dict[str, Any]]:
        """Return the names of inputs and outputs that become half, and the plan's options in the model's names."""
        now = {old: new for new, old in self.ids.items()}
        wanted = {now.get(name, name) for name in self.plan.options.get("half_io", ())}
        sides = []
        for side in (model.graph.inputs, model.graph.outputs):
            floats = {value.name or "" for value in side if value.dtype == ir.DataType.FLOAT}
            sides.append(frozenset(floats & wanted))
        for name in sorted(wanted - sides[0] - sides[1]):
            self.notes[f"the plan makes '{name}' half, but the model has no FP32 input or output of that name"] = None
        options = dict(self.plan.options)
        options.pop("half_io", None)
        if sides[0] | sides[1]:
            options["half_io"] = sorted(sides[0] | sides[1])
        return sides[0], sides[1], options

    def assign(self, fixed: Mapping[int, Verdict]) -> Assignment:
        """Give every group the type that the plan says."""
        said: dict[int, list[tuple[str, PlannedValue]]] = defaultdict(list)
        for value, group in self.groups.produced.items():
            id_ = self.names.value[value]
            said[group].append((id_, self.entries[self.ids[id_]]))
        read = self._read()
        half = [False] * count_groups(self.groups)
        verdicts = dict(fixed)
        for group in range(len(half)):
            if group in said:
                half[group] = self._decide(group, said[group], verdicts)
            elif group in fixed:
                half[group] = fixed[group].half
            elif group in read:
                half[group] = read[group]
        for group in set(range(len(half))) - set(said) - set(fixed) - set(read):
            half[group] = self._as_read(group, half)
        return Assignment(half, verdicts, list(self.notes))

    def _decide(self, group: int, entries: list[tuple[str, PlannedValue]], verdicts: dict[int, Verdict]) -> bool:
        """Decide a group that holds values; they have one type, whatever the plan says of each."""
        kept = [(id_, entry) for id_, entry in entries if entry.dtype == "float"]
        known = verdicts.get(group)
        if known is not None:
            for id_, entry in entries:
                if (entry.dtype != "float") != known.half:
                    type_, fact = ("half", "stays FP32") if not known.half else ("FP32", "becomes half")
                    self.notes[f"the plan says {type_} for '{id_}', which {fact}: {known.reason}"] = None
            return known.half
        if not kept:
            verdicts[group] = Verdict(True, Strength.USER_ALLOW, "the plan says so", "plan", "", "")
            return True
        first, why = kept[0]
        for id_, entry in entries:
            if entry.dtype != "float":
                self.notes[f"the plan says half for '{id_}', which stays FP32: it must have one type with '{first}'"] = None
        node = self.nodes.get(why.node, why.node)
        verdicts[group] = Verdict(False, Strength.USER_BLOCK, why.reason, why.rule, node, why.op, why.figures)
        return False

    def _read(self) -> dict[int, bool]:
        """Return what the plan says of groups that hold no value."""
        nodes = {id_: node for node, id_ in self.names.node.items()}
        found: dict[int, bool] = {}
        for read in self.plan.reads:
            group = self.groups.read.get((nodes[self.nodes[read.node]], read.input)) if read.node in self.nodes else None
            if group is not None:
                found[group] = found.get(group, True) and read.dtype != "float"
        return found

    def _as_read(self, group: int, half: list[bool]) -> bool:
        """Decide a group that the plan says nothing of: half if all that it is given is half."""
        given = [node.inputs[index] for (node, index), number in self.groups.read.items() if number == group]
        given += [graph.outputs[index] for (graph, index), number in self.groups.returned.items() if number == group]
        makers = [self.groups.produced[value] for value in given if value in self.groups.produced]
        return bool(makers) and all(half[maker] for maker in makers)


def _out_of_range(
    names: Names, groups: TypeGroups, weights: dict[ir.Value, WeightStats], half: list[bool], dtype: ir.DataType
) -> Iterator[str]:
    """Say where the plan holds in half what this model's weights speak against; another model's may have done so less."""
    for match in constant_ranges(names, groups, weights, dtype):
        for node in match.nodes:
            if any(half[group] for group in groups.of_node(node)):
                yield f"the plan says half for node '{names.node[node]}', although {match.why}"
                break
