"""Loop over plan and simulation: force values to FP32 until the simulated drift meets the tolerance."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from halfconv.drift.expansions import expansion_of
from halfconv.drift.localise import glanced
from halfconv.graph.duplicate import duplicate
from halfconv.planning import Planned
from halfconv.precision.attribution import contributions
from halfconv.precision.planner import Assignment, assign
from halfconv.precision.ranges import Ranges
from halfconv.precision.rules import Decision, Strength
from halfconv.result import Repaired
from halfconv.search import BUDGET, Search, smallest
from halfconv.trial import Trial, Trials

__all__ = ["Fixed", "reassigned", "repair"]


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the loop ended with.

    Attributes:
        assignment: A precision for every group.
        trial: What it gives.
        report: What the search did.
        why: Why no candidate passes; "" if this one does.
    """

    assignment: Assignment
    trial: Trial
    report: Repaired
    why: str


def reassigned(planned: Planned, decided: Sequence[Decision], price: float) -> Assignment:
    """Assign precisions anew, for other decisions.

    Args:
        planned: The planned model.
        decided: What is to be FP32 or half, and why.
        price: What a group in FP32 costs of itself, in ns, see `halfconv.precision.planner.assign`.
    """
    return assign(
        planned.source.model, planned.names, planned.groups, decided, planned.half_inputs, planned.half_outputs, price
    )  # fmt: skip


def repair(
    planned: Planned, decided: Sequence[Decision], ranges: Ranges, trials: Trials, assignment: Assignment, trial: Trial, *,
    price: float, begun: float, deadline: float | None, spent: int,
) -> Fixed:  # fmt: skip
    """Search for the groups that must be FP32, and keep the best candidate.

    Args:
        planned: The planned model.
        decided: What decided it.
        ranges: Ranges of its values.
        trials: Runs candidates.
        assignment: What failed.
        trial: How.
        price: As for `reassigned`.
        begun: `time.monotonic` when planning with data began.
        deadline: `time.monotonic` at which the search ends; None for never.
        spent: Runs that were taken before.
    """
    model, groups = planned.source.model, planned.groups
    fixed = {group for group, verdict in assignment.verdicts.items() if verdict.half or verdict.rule == "io"}
    drift = glanced(lambda: (duplicate(model), trials.simulation(assignment.half)), [trial.worst], str(planned.source.path))
    spent += 1
    known = {value: ranges.values[name] for value, name in planned.names.value.items() if name in ranges.values}
    found = contributions(model, groups, assignment.half, drift, known, planned.weights, trials.badness(trial), planned.dtype)
    ranked = sorted(found.keys() & groups.nodes.keys() - fixed, key=lambda group: (-found[group], group))
    tried: dict[frozenset[int], tuple[Assignment, Trial]] = {}

    def test(forced: frozenset[int]) -> bool:
        candidate = reassigned(planned, [*decided, *_forced(planned, [group for group in ranked if group in forced])], price)
        about = f"run {trials.runs + spent + 1} of at most {BUDGET}: {len(forced)} of {len(ranked)} values forced to FP32"
        result = trials.attempt(candidate.half, about)
        if result is None or not result.passed:
            return False
        tried[forced] = candidate, result
        return True

    end = smallest(ranked, Search(test, BUDGET - trials.runs - spent, deadline))
    chosen = frozenset(end.forced)
    if chosen not in tried:  # all groups, for want of time, or because not even these pass
        last = reassigned(planned, [*decided, *_forced(planned, end.forced)], price)
        tried[chosen] = last, trials.run(last.half, "everything in FP32 that may be")
    best, result = tried[chosen]
    names = {group: planned.names.value[value] for value, group in reversed(list(groups.produced.items()))}
    report = Repaired(
        forced=tuple(names[group] for group in end.forced if group in names), runs=trials.runs + spent, minimal=end.minimal,
        stopped=end.stopped, seconds=time.monotonic() - begun,
    )  # fmt: skip
    return Fixed(best, result, report, "" if result.passed else _why(planned, result))


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


def _why(planned: Planned, trial: Trial) -> str:
    """Say why not even the candidate with everything in FP32 passes."""
    if planned.half_inputs | planned.half_outputs:
        return "inputs or outputs in half alone drift more than that; keep them in FP32 with --keep-io"
    worst = max((o.measures.max_abs or 0.0) for o in trial.outputs) if trial.outputs else 0.0
    if worst:
        return "everything that may be FP32 is FP32, so the model itself may give other answers every time (random operators)"
    return "everything that may be FP32 is FP32"
