"""Load, prepare and plan a model: what `convert` rewrites and `inspect` reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import onnx_ir as ir

from halfconv.borders import half_borders
from halfconv.errors import UsageError
from halfconv.graph.names import Names
from halfconv.graph.prepare import Prepared, prepare
from halfconv.graph.structure import Structure
from halfconv.graph.typegroups import TypeGroups
from halfconv.model import SourceModel, load
from halfconv.plan_file import read_plan
from halfconv.precision.bounds import is_disproved, static_bounds
from halfconv.precision.constants import WeightStats, constant_ranges, weight_stats
from halfconv.precision.formats import FORMATS
from halfconv.precision.opset import decide, needs_raising, raise_for
from halfconv.precision.plan import PrecisionPlan
from halfconv.precision.planner import Assignment, assign, build_plan, keep_all
from halfconv.precision.replay import replay, settle
from halfconv.precision.rules import Decision, Rules, Strength, named
from halfconv.progress import Progress, StageClock
from halfconv.storage import METADATA_PREFIX

__all__ = ["Planned", "converted_before", "plan_model", "replanned"]

TARGETS = ("portable", "cuda", "tensorrt", "cpu", "coreml", "xnnpack", "qnn", "web")


@dataclass(slots=True)
class Planned:
    """A loaded and planned model: what `convert` rewrites and `inspect` reports.

    Attributes:
        source: The loaded model, prepared in place.
        prepared: What preparation did.
        names: Ids.
        groups: Type groups.
        weights: Weight -> figures.
        assignment: A precision for every group.
        plan: The plan.
        dtype: FLOAT16 or BFLOAT16.
        half_inputs: Names of model inputs that become half.
        half_outputs: Names of model outputs that become half.
        rules: The user's rules.
        decided: What rules and constants say about nodes; None where a plan was replayed, or the model was converted before.
        structure: Marks of the model's nodes and values.
        seconds: Seconds by stage.
    """

    source: SourceModel
    prepared: Prepared
    names: Names
    groups: TypeGroups
    weights: dict[ir.Value, WeightStats]
    assignment: Assignment
    plan: PrecisionPlan
    dtype: ir.DataType
    half_inputs: frozenset[str]
    half_outputs: frozenset[str]
    rules: Rules
    decided: list[Decision] | None
    structure: Structure
    seconds: dict[str, float] = field(default_factory=dict)


def plan_model(
    model: str | os.PathLike[str],
    *,
    to: str = "fp16",
    target: str = "portable",
    rules: Rules | None = None,
    half_io: bool | Iterable[str] = False,
    keep_io: Iterable[str] = (),
    fuse: bool = True,
    plan: str | os.PathLike[str] | PrecisionPlan | None = None,
    allow_links: str | os.PathLike[str] | None = None,
    raising: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Planned:
    """Load, prepare and plan a model; see `convert` for the arguments and errors; `raising` lets BF16 raise the opset."""
    rules, keep_io = rules or Rules(), frozenset(keep_io)
    rules.check()
    given = plan if plan is None or isinstance(plan, PrecisionPlan) else read_plan(plan)
    if given is not None:
        settings = settle(given, rules=rules, to=to, target=target, fuse=fuse)
        to, target, fuse = settings.to, settings.target, settings.fuse
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", "--to " + " or ".join(FORMATS))
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", "one of " + ", ".join(TARGETS))
    FORMATS[to].check_target(target)
    dtype, clock = FORMATS[to].dtype, StageClock(on_progress)
    with clock.stage("load"):
        source = load(model, allow_links)
    half_inputs, half_outputs = half_borders(source, half_io, keep_io)
    with clock.stage("prepare"):
        named_by = rules if given is None else _rules_of(given)
        source, prepared, without = _prepared(source, allow_links, fuse, target, dtype, named_by)
        untouched = converted_before(source.model, to) and not rules.to_dict() and not half_inputs | half_outputs
        decided: list[Decision] = []
        if given is not None:
            names = raise_for(
                source.model, given.structure_sha256, FORMATS[to], prepared, str(source.path), fuse=fuse, target=target,
                without=without,
            )  # fmt: skip
            raised = 0
        else:
            names, decided, raised = decide(
                source.model, rules, FORMATS[to], prepared, label=str(source.path), fuse=fuse, target=target, without=without,
                half_io=bool(half_inputs | half_outputs), raising=raising and not untouched,
            )  # fmt: skip
        groups = TypeGroups.of(source.model, names, dtype)
    with clock.stage("weights"):
        weights = weight_stats(names, groups, dtype)
    with clock.stage("plan"):
        structure = Structure.of(source.model, names)
        if given is not None:
            replayed = replay(
                given, source, names, groups, weights, structure, dtype, half_inputs | half_outputs, keep_io
            )  # fmt: skip
            assignment, options = replayed.assignment, replayed.options
            half_inputs, half_outputs = replayed.half_inputs, replayed.half_outputs
        else:
            if rules.block_list == "default":
                bounds = static_bounds(names.nodes(), weights)
                decided = [decision for decision in decided if not is_disproved(decision, bounds)]
            for match in constant_ranges(names, groups, weights, dtype):
                decided += [
                    Decision(node, False, Strength.MEASURED, match.why, "constant-range", match.culprit, match.figures)
                    for node in match.nodes
                ]
            assignment = assign(source.model, names, groups, decided, half_inputs, half_outputs)
            if untouched:
                assignment = keep_all(groups)  # converting twice changes nothing
            if raised and not needs_raising(names, groups, assignment.half, raised, dtype):
                return plan_model(model, to=to, target=target, rules=rules, half_io=half_io, keep_io=keep_io, fuse=fuse,
                                  allow_links=allow_links, raising=False, on_progress=on_progress)  # fmt: skip
            options = {**rules.to_dict(), **({} if fuse else {"fuse": False})}
            if half_inputs or half_outputs:
                options["half_io"] = sorted(half_inputs | half_outputs)
        made = build_plan(
            names, groups, assignment, source_sha256=source.sha256, structure=structure, to=to, target=target,
            options=options, dtype=dtype,
        )  # fmt: skip
    return Planned(
        source, prepared, names, groups, weights, assignment, made, dtype, half_inputs, half_outputs, rules,
        None if given is not None or untouched else decided, structure, clock.seconds,
    )  # fmt: skip


def _prepared(
    source: SourceModel, allow_links: str | os.PathLike[str] | None, fuse: bool, target: str, dtype: ir.DataType, rules: Rules
) -> tuple[SourceModel, Prepared, frozenset[str]]:  # fmt: skip
    """Prepare a model, without the target's fusions that would take up what the user named: block and allow rules beat them.

    Returns:
        The model, loaded again if need be; what was done; and the fusions left out.
    """
    without: dict[str, str] = {}
    kept = partial(named, rules=rules) if rules.to_dict() else None
    while True:
        label, left_out = str(source.path), frozenset(without)
        prepared = prepare(source.model, label=label, fuse=fuse, target=target, to=dtype, without=left_out, kept=kept)
        if not prepared.lost:
            prepared.notes += [f"{fusion} is not fused: {rule} names what it would take up" for fusion, rule in without.items()]
            return source, prepared, left_out
        without |= dict(sorted(prepared.lost))
        source = load(source.path, allow_links)


def _rules_of(plan: PrecisionPlan) -> Rules:
    """Return the rules that a plan was made with."""
    known = {field.name for field in fields(Rules)}
    said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plan.options.items() if k in known}
    return Rules(**said)


def replanned(planned: Planned, assignment: Assignment) -> PrecisionPlan:
    """Write the plan anew for another assignment."""
    old = planned.plan
    return build_plan(
        planned.names, planned.groups, assignment, source_sha256=old.source_sha256, structure=planned.structure, to=old.to,
        target=old.target, options=old.options, dtype=planned.dtype,
    )  # fmt: skip


def converted_before(model: ir.Model, to: str) -> bool:
    """Tell whether halfconv made a model, in this format."""
    return model.metadata_props.get(f"{METADATA_PREFIX}to") == to
