"""Plan with data: measure ranges, try the plan in simulation, and repair it until the tolerance holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.check import BIG_BYTES
from halfconv.drift.compare import open_reference
from halfconv.drift.evaluate import Evaluator
from halfconv.drift.gate import HARD, Gate, make_gate
from halfconv.drift.report import SYNTHETIC, DriftReport
from halfconv.drift.task import Metric, accuracy, find_metrics, labels_of
from halfconv.errors import InputError, UsageError
from halfconv.planning import Planned
from halfconv.precision.cost import LAUNCH_NS
from halfconv.precision.measured import range_decisions
from halfconv.precision.planner import Assignment
from halfconv.precision.range_run import measure_ranges
from halfconv.precision.ranges import Ranges, load_ranges
from halfconv.precision.rules import Decision, Strength
from halfconv.progress import Progress
from halfconv.repair import reassigned, repair
from halfconv.result import Repaired
from halfconv.runtime_process import RuntimeProcess
from halfconv.samples import Samples, open_samples
from halfconv.synthetic import fitting_samples, input_specs
from halfconv.trial import Finish, Trials

__all__ = ["Tuned", "Tuning", "tune"]

#: Rules of the block list that samples do not clear: what they protect from shows with other inputs than the samples.
KEPT = frozenset({"quantised", "shape-arithmetic"})
#: Seconds and bytes that runs may take which nobody asked for; a larger model gets 8 times its size.
UNASKED_SECONDS, UNASKED_BYTES = 120, 4 << 30
#: Nodes up to which a model is run without being asked: to instrument and load 8,000 takes a minute.
UNASKED_NODES = 20_000
#: Samples that are made up where none are given.
SYNTHETIC_COUNT = 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the user wants of planning with data.

    Attributes:
        samples: As `halfconv.samples.open_samples` takes them; None makes them up.
        tolerance: Bounds, as `halfconv.drift.gate.make_gate` takes them.
        tolerance_file: The same in TOML.
        metrics: User metrics, as `halfconv.drift.task.find_metrics` takes them.
        ranges: A file of ranges to use in place of measuring them.
        repair: Whether to search for values to force to FP32 where the tolerance does not hold.
        time_limit: Seconds after which the search ends with the best plan found; None for no limit.
        seed: Seed of samples that are made up.
        asked: Whether the user asked for something that needs a run; if not, a model that cannot be run is left as planned.
        finish: What is done to a rewritten model before it is written, and so before it is measured.
    """

    samples: Any = None
    tolerance: Mapping[str, float] | Sequence[str] | None = None
    tolerance_file: str | os.PathLike[str] | None = None
    metrics: Sequence[str | Metric] | Mapping[str, Metric] = ()
    ranges: str | os.PathLike[str] | None = None
    repair: bool = True
    time_limit: float | None = None
    seed: int = 0
    asked: bool = False
    finish: Finish | None = None


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

    @property
    def failure(self) -> str:
        """What breaks the tolerance, in one line, an expired waiver included; "" if nothing does."""
        broken = [f"{o.name}: {o.failures[0]}" for o in self.drift.outputs if not o.passed]
        broken += [f"{m.name} drops by {m.drop:.4g}" for m in self.drift.metrics if not m.passed]
        expired = [waiver.sentence() for waiver in self.drift.waivers if waiver.expired]
        if not broken:
            return expired[0] if expired else ""
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        on = " on synthetic samples" if self.drift.sample_kind == "synthetic" else ""
        return f"the tolerance is not met{on}: {broken[0]}{more}" + (f"; {self.why}" if self.why else "")


def tune(
    plans: Sequence[Planned], tuning: Tuning, on_progress: Callable[[Progress], None] | None = None
) -> tuple[int, Tuned | None, list[str]]:
    """Plan with data, in each format, and choose one.

    Args:
        plans: The loaded, prepared model, planned without data for each format.
        tuning: What the user wants.
        on_progress: Told what is being done.

    Returns:
        The place of the format chosen; its plan and what that gives, None where no samples are given and none can be made up that
        the model takes; and sentences for the report.

    Raises:
        InputError: Samples, ranges or the model cannot be used.
        UsageError: A tolerance or metric is wrong.
    """
    if tuning.samples is None and not tuning.asked:
        (planned,) = plans
        if not any(planned.assignment.half):
            return 0, None, []
        if (size := planned.source.bytes) > BIG_BYTES:
            return 0, None, [f"not simulated: the model has {size / 1e9:.1f} GB; --samples does it all the same"]
        if (nodes := len(planned.names.node)) > UNASKED_NODES:
            return 0, None, [f"not simulated: the model has {nodes:,} nodes; --samples does it all the same"]
        try:
            with RuntimeProcess(UNASKED_SECONDS, max(UNASKED_BYTES, 8 * size)) as process:
                return 0, _tuned(planned, tuning, on_progress, process), []
        except InputError as error:
            return 0, None, [f"not simulated, so overflow would not be seen: {str(error).partition('; try:')[0]}"]
    with RuntimeProcess() as process:
        tried = [_tuned(known, tuning, on_progress, process) for known in plans]
    place, notes = _choose(tried)
    return place, tried[place], notes


def _tuned(
    planned: Planned, tuning: Tuning, on_progress: Callable[[Progress], None] | None, process: RuntimeProcess
) -> Tuned:  # fmt: skip
    """Plan with data, in one format."""
    begun = time.monotonic()
    deadline = begun + tuning.time_limit if tuning.time_limit is not None else None
    source, given = planned.source, tuning.samples is not None
    wanted = find_metrics(tuning.metrics)
    with open_reference(source, "simulate", process) as reference:
        samples = _samples(planned, tuning, reference)
        automatic = given and not wanted and labels_of(samples.first().extras) is not None
        if automatic:
            wanted = {"accuracy": accuracy}
        names = [value.name or "" for value in source.model.graph.outputs]
        file = Path(tuning.tolerance_file) if tuning.tolerance_file is not None else None
        gate = make_gate(planned.plan.to, names, tuning.tolerance, file, tuple(wanted), defaults=None if given else HARD)
        ranges, spent = _ranges(planned, samples, tuning, on_progress, process)
        decided, assignment = _decided(planned, ranges, given)
        # On random data only what is never a matter of tolerance is worth a repair.
        trials = Trials(
            source, reference.run, samples, gate if given else Gate(HARD), wanted, planned.dtype,
            asked=not automatic or gate.limit_of("accuracy") is not None, on_progress=on_progress, process=process,
            finish=tuning.finish,
        )  # fmt: skip
        trial = trials.run(assignment.half)
        found, why = None, "" if decided is not None else "the plan was made for other weights or samples"
        if not trial.passed and tuning.repair and decided is not None:
            fixed = repair(
                planned, decided, ranges, trials, assignment, trial, price=LAUNCH_NS if given else 0, begun=begun,
                deadline=deadline, spent=spent,
            )  # fmt: skip
            assignment, trial, found, why = fixed.assignment, fixed.trial, fixed.report, fixed.why
    outputs = tuple(gate.judge(output) for output in trial.outputs)
    drift = DriftReport(
        reference=str(source.path), candidate="", on="simulate", to=planned.plan.to, samples=trials.total,
        sample_kind=samples.kind, seed=samples.seed, outputs=outputs, metrics=trial.metrics,
        tolerance=gate.resolved(), waivers=gate.waiver_uses(outputs, trial.metrics), unmodelled=trial.unmodelled,
        warnings=() if given else (SYNTHETIC,), seconds={"ranges and simulation": time.monotonic() - begun},
    )  # fmt: skip
    return Tuned(assignment, drift, ranges, found, why)


def _choose(tried: Sequence[Tuned]) -> tuple[int, list[str]]:
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


def _samples(planned: Planned, tuning: Tuning, reference: Evaluator) -> Samples:
    model = planned.source.model
    if tuning.samples is None:
        return fitting_samples(model, SYNTHETIC_COUNT, tuning.seed, reference.run)
    samples = open_samples(tuning.samples, input_specs(model))
    if samples.once:
        raise UsageError("the samples can be read only once, and planning reads them again and again", "a list, or a function")
    return samples


def _ranges(
    planned: Planned, samples: Samples, tuning: Tuning, on_progress: Callable[[Progress], None] | None, process: RuntimeProcess
) -> tuple[Ranges, int]:  # fmt: skip
    """Return the ranges, and how many runs they took."""
    if tuning.ranges is None:
        return measure_ranges(planned.source.model, samples, planned.dtype, str(planned.source.path), on_progress, process)
    ranges = load_ranges(Path(tuning.ranges))
    if ranges.to != planned.plan.to:
        raise InputError(f"{tuning.ranges}: holds ranges for {ranges.to}", f"--save-ranges with --to {planned.plan.to}")
    if not any(name in ranges.values for name in planned.names.value.values()):
        raise InputError(f"{tuning.ranges}: holds no value of {planned.source.path}", "the ranges of this model")
    return ranges, 0


def _decided(planned: Planned, ranges: Ranges, given: bool) -> tuple[list[Decision] | None, Assignment]:
    """Return what rules and ranges decide, None where a plan is replayed, and the precisions that follow."""
    if planned.decided is None:
        return None, planned.assignment
    measured = list(range_decisions(planned.names, planned.groups, ranges.values, planned.dtype))
    if given:
        decided = [decision for decision in planned.decided if not _cleared(decision, planned)] + measured
        return decided, reassigned(planned, decided, LAUNCH_NS)
    decided = [*planned.decided, *measured]
    return decided, reassigned(planned, decided, 0) if measured else planned.assignment


def _cleared(decision: Decision, planned: Planned) -> bool:
    """Tell whether samples clear a decision of the default block list: ranges and simulation decide in its place."""
    return decision.strength == Strength.BLOCK_LIST and decision.rule not in KEPT and planned.rules.block_list == "default"
