"""Plan with data: measure ranges, try the plan in simulation, and repair it until the tolerance holds."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from halfconv.drift.compare import open_reference
from halfconv.drift.expansions import expansion_of
from halfconv.drift.gate import make_gate
from halfconv.drift.localise import glanced
from halfconv.drift.report import DriftReport
from halfconv.drift.task import Metric, accuracy, find_metrics, labels_of
from halfconv.errors import InputError, UsageError
from halfconv.graph.duplicate import duplicate
from halfconv.precision.attribution import contributions
from halfconv.precision.cost import LAUNCH_NS
from halfconv.precision.measured import range_decisions
from halfconv.precision.planner import Assignment, assign
from halfconv.precision.range_run import measure_ranges
from halfconv.precision.ranges import Ranges, load_ranges
from halfconv.precision.rules import Decision, Strength
from halfconv.repair import BUDGET, Search, repair
from halfconv.result import Repaired
from halfconv.samples import Samples, open_samples
from halfconv.synthetic import input_specs
from halfconv.trial import Trial, Trials

if TYPE_CHECKING:
    from halfconv.pipeline import Planned

__all__ = ["Tuned", "Tuning", "choose", "tune"]

#: Rules of the block list that samples do not clear: what they protect from shows with other inputs than the samples.
KEPT = frozenset({"quantised", "shape-arithmetic"})


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the user wants of planning with data.

    Attributes:
        samples: As `halfconv.samples.open_samples` takes them.
        tolerance: Bounds, as `halfconv.drift.gate.make_gate` takes them.
        tolerance_file: The same in TOML.
        metrics: User metrics, as `halfconv.drift.task.find_metrics` takes them.
        ranges: A file of ranges to use in place of measuring them.
        repair: Whether to search for values to force to FP32 where the tolerance does not hold.
        time_limit: Seconds after which the search ends with the best plan found; None for no limit.
    """

    samples: Any
    tolerance: Mapping[str, float] | Sequence[str] | None = None
    tolerance_file: str | os.PathLike[str] | None = None
    metrics: Sequence[str | Metric] | Mapping[str, Metric] = ()
    ranges: str | os.PathLike[str] | None = None
    repair: bool = True
    time_limit: float | None = None


@dataclass(slots=True)
class Tuned:
    """What planning with data found.

    Attributes:
        assignment: A precision for every group.
        drift: Drift of that candidate in simulation; its file names are still to be filled in.
        ranges: Ranges of the values.
        repair: What the search did; None if it was not needed.
        why: Why no candidate meets the tolerance; "" if one does.
    """

    assignment: Assignment
    drift: DriftReport
    ranges: Ranges
    repair: Repaired | None = None
    why: str = ""


def tune(planned: Planned, tuning: Tuning, on_stage: Callable[[str], None] | None = None) -> Tuned:
    """Plan with data.

    Args:
        planned: The loaded, prepared model, planned without data.
        tuning: What the user wants.
        on_stage: Told what is being done.

    Returns:
        The plan, and what it gives.

    Raises:
        InputError: Samples, ranges or the model cannot be used.
        UsageError: A tolerance or metric is wrong.
    """
    begun = time.monotonic()
    deadline = begun + tuning.time_limit if tuning.time_limit is not None else None
    said = on_stage or (lambda _: None)
    source, to, label = planned.source, planned.dtype, str(planned.source.path)
    samples = open_samples(tuning.samples, input_specs(source.model))
    if samples.once:
        raise UsageError("the samples can be read only once, and planning reads them again and again", "a list, or a function")
    wanted = find_metrics(tuning.metrics)
    automatic = not wanted and labels_of(samples.first().extras) is not None
    if automatic:
        wanted = {"accuracy": accuracy}
    names = [value.name or "" for value in source.model.graph.outputs]
    file = Path(tuning.tolerance_file) if tuning.tolerance_file is not None else None
    gate = make_gate(planned.plan.to, names, tuning.tolerance, file, tuple(wanted))
    said("ranges")
    ranges = _ranges(planned, samples, tuning)
    decided = None
    if planned.decided is not None:
        decided = [d for d in planned.decided if not _cleared(d, planned)]
        decided += range_decisions(planned.names, planned.groups, ranges.values, to)
    assignment = planned.assignment if decided is None else _assign(planned, decided)
    with open_reference(source, "simulate") as reference:
        trials = Trials(
            source, reference.run, samples, gate, wanted, to,
            asked=not automatic or gate.limit_of("accuracy") is not None,
            on_run=lambda run: said(f"simulation, run {run}"),
        )  # fmt: skip
        trial = trials.run(assignment.half)
        found, why = None, "" if decided is not None else "the plan was made for other weights or samples"
        if not trial.passed and tuning.repair and decided is not None:
            extra = 1 if tuning.ranges is None else 0
            assignment, trial, found, why = _repaired(planned, decided, ranges, trials, assignment, trial, deadline, extra, begun)
    drift = DriftReport(
        reference=label, candidate="", on="simulate", to=planned.plan.to, samples=trials.total, sample_kind=samples.kind,
        seed=samples.seed, outputs=trial.outputs, metrics=trial.metrics, tolerance=gate.resolved(), unmodelled=trial.unmodelled,
        seconds={"ranges and simulation": time.monotonic() - begun},
    )  # fmt: skip
    return Tuned(assignment, drift, ranges, found, why)


def choose(tried: Sequence[Tuned]) -> tuple[int, list[str]]:
    """Choose a format: one that meets its tolerance, with the fewest groups in FP32, the earlier of equals.

    Args:
        tried: What each format gave.

    Returns:
        Its place, and sentences that compare them; none if there is only one.
    """
    lost = [sum(not half for half in found.assignment.half) for found in tried]
    place = min(range(len(tried)), key=lambda index: (not tried[index].drift.passed, lost[index], index))
    if len(tried) == 1:
        return place, []
    said = []
    for found, count in zip(tried, lost, strict=True):
        worst = max((output.measures.rel_l2 or 0.0 for output in found.drift.outputs), default=0.0)
        verdict = "meets" if found.drift.passed else "does not meet"
        said.append(f"{found.drift.to} {verdict} its tolerance, rel_l2 {worst:.3g}, with {count} groups of values in FP32")
    return place, [f"{tried[place].drift.to} was chosen: " + "; ".join(said)]


def _ranges(planned: Planned, samples: Samples, tuning: Tuning) -> Ranges:
    if tuning.ranges is None:
        return measure_ranges(planned.source.model, samples, planned.dtype, str(planned.source.path))
    ranges = load_ranges(Path(tuning.ranges))
    if ranges.to != planned.plan.to:
        raise InputError(f"{tuning.ranges}: holds ranges for {ranges.to}", f"--save-ranges with --to {planned.plan.to}")
    if not any(name in ranges.values for name in planned.names.value.values()):
        raise InputError(f"{tuning.ranges}: holds no value of {planned.source.path}", "the ranges of this model")
    return ranges


def _cleared(decision: Decision, planned: Planned) -> bool:
    """Tell whether samples clear a decision of the default block list: ranges and simulation decide in its place."""
    return decision.strength == Strength.BLOCK_LIST and decision.rule not in KEPT and planned.rules.block_list == "default"


def _assign(planned: Planned, decided: Sequence[Decision]) -> Assignment:
    return assign(
        planned.source.model, planned.names, planned.groups, decided, planned.half_inputs, planned.half_outputs, LAUNCH_NS
    )  # fmt: skip


def _forced(planned: Planned, groups: Sequence[int]) -> Iterator[Decision]:
    """Yield what makes the values of groups FP32, strongest contributor first.

    A value is FP32 only if what reads it is, too: a Cast before the reader would round it all the same. Where a kernel loses digits
    inside, its own precision is what counts.
    """
    held = planned.groups
    opset = planned.source.model.opset_imports.get("")
    values: dict[int, list[ir.Value]] = defaultdict(list)
    for value, producer in held.produced.items():
        values[producer].append(value)
    for rank, group in enumerate(groups):
        made = values[group]
        node = next((maker for value in made if (maker := value.producer()) is not None), None) or held.nodes[group][0]
        why = f"number {rank + 1} of the values whose rounding drifts the outputs most"
        yield Decision(node, False, Strength.REPAIR, why, "repair", node, {"rank": rank + 1}, group)
        if expansion_of(node, planned.dtype, opset) is None:
            reading = {held.read[use.node, use.idx] for value in made for use in value.uses() if (use.node, use.idx) in held.read}
            for reader in sorted(reading - {group}):
                why = f"it reads '{planned.names.value[made[0]]}', number {rank + 1} of those that drift the outputs most"
                yield Decision(node, False, Strength.REPAIR, why, "repair", node, {"rank": rank + 1}, reader)


def _repaired(
    planned: Planned, decided: Sequence[Decision], ranges: Ranges, trials: Trials, assignment: Assignment, trial: Trial,
    deadline: float | None, measured: int, begun: float,
) -> tuple[Assignment, Trial, Repaired, str]:  # fmt: skip
    """Search for groups to force, and try the best candidate."""
    model, groups = planned.source.model, planned.groups
    fixed = {group for group, verdict in assignment.verdicts.items() if verdict.half or verdict.rule == "io"}
    drift = glanced(lambda: (duplicate(model), trials.simulation(assignment.half)), [trial.worst], str(planned.source.path))
    known = {value: ranges.values[name] for value, name in planned.names.value.items() if name in ranges.values}
    found = contributions(model, groups, assignment.half, drift, known, planned.weights, trials.badness(trial), planned.dtype)
    ranked = sorted(found.keys() & groups.nodes.keys() - fixed, key=lambda group: (-found[group], group))
    tried: dict[frozenset[int], tuple[Assignment, Trial]] = {}

    def test(forced: frozenset[int]) -> bool:
        candidate = _assign(planned, [*decided, *_forced(planned, [group for group in ranked if group in forced])])
        result = trials.attempt(candidate.half)
        if result is None or not result.passed:
            return False
        tried[forced] = candidate, result
        return True

    search = Search(test, BUDGET - trials.runs - measured - 1, deadline)
    end = repair(ranked, search)
    chosen = frozenset(end.forced)
    if chosen not in tried:  # all groups, for want of time, or because not even these pass
        last = _assign(planned, [*decided, *_forced(planned, end.forced)])
        tried[chosen] = last, trials.run(last.half)
    best, result = tried[chosen]
    runs = trials.runs + measured + 1
    names = {group: planned.names.value[value] for value, group in reversed(list(groups.produced.items()))}
    report = Repaired(
        tuple(names[group] for group in end.forced if group in names), runs, end.minimal, end.stopped, time.monotonic() - begun
    )
    return best, result, report, "" if result.passed else _why(planned, result)


def _why(planned: Planned, trial: Trial) -> str:
    """Say why not even the candidate with everything in FP32 passes."""
    if planned.half_inputs | planned.half_outputs:
        return "inputs or outputs in half alone drift more than that; keep them in FP32 with --keep-io"
    worst = max((o.measures.max_abs or 0.0) for o in trial.outputs) if trial.outputs else 0.0
    if worst:
        return "everything that may be FP32 is FP32, so the model itself may give other answers every time (random operators)"
    return "everything that may be FP32 is FP32"
