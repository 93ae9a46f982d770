"""Try a precision for every group: rewrite a copy of the prepared model, simulate it, and measure its drift on samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from halfconv.drift.evaluate import evaluate_simulation
from halfconv.drift.gate import HIGHER_IS_BETTER, Gate
from halfconv.drift.paired import run_paired
from halfconv.drift.report import MetricDrift, OutputDrift
from halfconv.drift.simulate import FORMATS, Simulation, simulate
from halfconv.drift.task import Metric, MetricMeans
from halfconv.graph.duplicate import duplicate
from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups
from halfconv.model import SourceModel
from halfconv.precision.rewrite import RewritePass
from halfconv.progress import Progress
from halfconv.runtime_process import RuntimeProcess
from halfconv.samples import Sample, Samples

__all__ = ["Finish", "Trial", "Trials", "candidate"]

#: Does to a rewritten model what comes before it is written.
Finish = Callable[[ir.Model], object]

#: Samples and the reference's answers are kept between trials up to this size.
KEPT_BYTES = 256 << 20

Run = Callable[[Mapping[str, Any], str, Sequence[str]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one precision plan gave.

    Attributes:
        outputs: Drift per output, judged.
        metrics: User metrics.
        worst: The sample that did most harm.
        unmodelled: A sentence for each operator that the simulation does not model.
    """

    outputs: tuple[OutputDrift, ...]
    metrics: tuple[MetricDrift, ...]
    worst: Sample
    unmodelled: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return all(output.passed for output in self.outputs) and all(metric.passed for metric in self.metrics)


def candidate(source: SourceModel, half: Sequence[bool], to: ir.DataType) -> SourceModel:
    """Rewrite a copy of a prepared model.

    Args:
        source: The loaded model, prepared; it stays as it is.
        half: For each of its type groups, whether it is half.
        to: FLOAT16 or BFLOAT16.
    """
    copy = duplicate(source.model)
    names = Names.of(copy)
    RewritePass(TypeGroups.of(copy, names, to), list(half), names, to)(copy)
    return dataclasses.replace(source, model=copy)


class Trials:
    """Runs candidates on samples beside their reference, and counts the runs.

    Args:
        source: The loaded model, prepared.
        reference: Runs the FP32 model.
        samples: Samples.
        gate: The bounds.
        metrics: User metrics.
        asked: Whether the metrics were asked for; if not, one that fits no output is given up.
        to: FLOAT16 or BFLOAT16.
        on_progress: Called before each sample of a run.
        process: Where they run; None for a process of each one's own.
        finish: What is done to a candidate before it is measured.

    Attributes:
        runs: Number of runs so far.
        samples: The samples.
        total: Number of samples, after the first run.
    """

    def __init__(
        self, source: SourceModel, reference: Run, samples: Samples, gate: Gate, metrics: Mapping[str, Metric], to: ir.DataType, *,
        asked: bool = True, on_progress: Callable[[Progress], None] | None = None, process: RuntimeProcess | None = None,
        finish: Finish | None = None,
    ):  # fmt: skip
        self.source, self.gate, self.to, self.samples, self._finish = source, gate, to, samples, finish
        self.names = [value.name or "" for value in source.model.graph.outputs]
        self.runs, self.total = 0, 0
        self._reference, self._metrics, self._asked, self._on_progress = reference, metrics, asked, on_progress
        self._process = process
        self._kept: list[tuple[Sample, dict[str, Any]]] = []
        self._room = KEPT_BYTES
        self._most: dict[str, float] = {}  # output -> squared error that rel_l2 allows over all samples

    def simulation(self, half: Sequence[bool]) -> Simulation:
        """Simulate a candidate as it was rewritten, value by value of the prepared model; the result may be used up."""
        return simulate(candidate(self.source, half, self.to))

    def run(self, half: Sequence[bool], about: str = "") -> Trial:
        """Measure a candidate on all samples; `about` says in words which one, for who watches.

        Raises:
            InputError: It, or the reference, cannot be run.
        """
        trial = self._run(half, about, early=False)
        assert trial is not None
        return trial

    def attempt(self, half: Sequence[bool], about: str = "") -> Trial | None:
        """Measure a candidate as `run` does, but give up where the samples so far already add up to more than rel_l2 allows in all.

        Returns:
            What it gave on all samples; None if it fails and that was seen before the last.

        Raises:
            InputError: It, or the reference, cannot be run.
        """
        return self._run(half, about, early=True)

    def _run(self, half: Sequence[bool], about: str, *, early: bool) -> Trial | None:
        self.runs += 1
        rewritten = candidate(self.source, half, self.to)
        if self._finish is not None:
            self._finish(rewritten.model)
        simulation = simulate(rewritten)
        means = MetricMeans(self._metrics, asked=self._asked)
        with evaluate_simulation(simulation, str(self.source.path), self._process) as run:

            def theirs(number: int, sample: Sample) -> dict[str, Any]:
                if self._on_progress is not None:
                    self._on_progress(Progress("simulation", about, number, self.total))
                return run.run(sample.feeds, sample.name, self.names)

            found = run_paired(
                self._all(), self._answer, theirs, self.names, FORMATS[self.to], means, *([self._is_hopeless] if early else [])
            )  # fmt: skip
        if found is None:
            return None
        if not self.total and len(self._kept) == found.total:  # those that drift most first: a failure then shows soonest
            self._kept = [self._kept[at] for at in sorted(range(found.total), key=lambda at: found.harms[at], reverse=True)]
        self.total = found.total
        outputs = tuple(self.gate.judge(found.accumulators[name].result(name)) for name in self.names)
        for name, accumulator in found.accumulators.items():
            limit, energy = self.gate.bounds_of(name).get("rel_l2"), accumulator.energy()
            if limit is not None and 0 < energy < math.inf:
                self._most[name] = limit**2 * energy * (1 + 1e-9)
        return Trial(outputs, self.gate.judge_metrics(means.result(self.gate.limit_of)), found.worst, simulation.unmodelled)

    def badness(self, trial: Trial) -> dict[str, float]:
        """Return for each output how far it is beyond its bounds: the largest ratio of a measure to its bound."""
        found = {}
        for output in trial.outputs:
            m = output.measures
            broken = float(m.new_nan + m.new_inf > 0) * 1e6
            ratios = [broken]
            for metric, bound in self.gate.bounds_of(output.name).items():
                value = getattr(m, metric)
                if value is None or metric in ("new_nan", "new_inf", "mismatched") or not bound:
                    continue
                ratios.append((1 - value) / max(1 - bound, 1e-9) if metric in HIGHER_IS_BETTER else value / bound)
            found[output.name] = max(ratios)
        return found

    def _is_hopeless(self, errors: Mapping[str, float]) -> bool:
        return any(error > self._most.get(name, math.inf) for name, error in errors.items())

    def _all(self) -> Iterable[Sample]:
        return [sample for sample, _ in self._kept] if len(self._kept) == self.total > 0 else self.samples

    def _answer(self, number: int, sample: Sample) -> dict[str, Any]:
        """Return the reference's outputs, kept from the first run where there is room."""
        if number < len(self._kept):
            return self._kept[number][1]
        found = self._reference(sample.feeds, sample.name, self.names)
        held = (*found.values(), *sample.feeds.values(), *sample.extras.values())
        size = sum(getattr(value, "nbytes", 1 << 20) for value in held)
        if number == len(self._kept) and size <= self._room:
            self._room -= size
            self._kept.append((sample, found))
        return found
