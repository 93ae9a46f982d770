"""Validate a candidate model against its reference: run both on samples, measure drift, judge it."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.check import CPU, CUDA, require_runtime
from halfconv.drift.baseline import grown
from halfconv.drift.baseline import load as load_baseline
from halfconv.drift.evaluate import Evaluator, evaluate_file, evaluate_simulation
from halfconv.drift.gate import Gate, make_gate
from halfconv.drift.localise import first_bad, localise
from halfconv.drift.metrics import Accumulator
from halfconv.drift.origins import Origins, origins
from halfconv.drift.report import DriftReport, LayerDrift
from halfconv.drift.simulate import FORMATS, Simulation, simulate
from halfconv.drift.task import Metric, MetricMeans, accuracy, find_metrics, labels_of
from halfconv.errors import InputError, UsageError
from halfconv.graph.prepare import prepare
from halfconv.model import load
from halfconv.samples import Samples, open_samples
from halfconv.synthetic import LENGTHS, input_specs, synthetic_samples

__all__ = ["validate"]

WAYS = ("simulate", "cpu", "cuda")
#: Samples on which a failure is localised where no value is asked for.
FEW = 2
CPU_HIDES = (
    "the CPU provider computes most half operators in FP32 and drops their roundings: what passes here can fail on a GPU; "
    "--on simulate shows it"
)
SYNTHETIC = "the samples are synthetic: random data hides overflow and says little about accuracy; give --samples"


class _Clock:
    def __init__(self, listener: Callable[[str], None] | None):
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.listener:
            self.listener(name)
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def validate(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    *,
    samples: Any = None,
    count: int = 4,
    tolerance: Mapping[str, float] | Sequence[str] | None = None,
    tolerance_file: str | os.PathLike[str] | None = None,
    on: str = "simulate",
    layers: bool = False,
    metrics: Sequence[str | Metric] | Mapping[str, Metric] = (),
    seed: int = 0,
    baseline: str | os.PathLike[str] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> DriftReport:
    """Compare a half-precision model with its FP32 reference.

    Args:
        reference: The FP32 model.
        candidate: The model in FP16 or BF16, whole or mixed, made by halfconv or by anything else.
        samples: A path, function or iterable, see `halfconv.samples.open_samples`; None makes synthetic ones.
        count: Number of synthetic samples.
        tolerance: Bounds as ``{"rel_l2": 1e-2, "rel_l2@logits": 1e-3}``, or texts ``METRIC=VALUE[@OUTPUT]``.
        tolerance_file: The same in TOML, see `halfconv.drift.gate`.
        on: ``simulate`` (a GPU's rounding, on the CPU), ``cpu`` or ``cuda`` (ONNX Runtime's provider).
        layers: Whether to compare every value inside, too (always in simulation).
        metrics: ``module:function``, ``accuracy``, or functions ``f(outputs, extras) -> float``. Accuracy is reported without being
            asked for where samples hold labels.
        seed: Seed of synthetic samples.
        baseline: A committed baseline to compare with.
        on_stage: Called with the name of each stage as it begins.

    Returns:
        The report; `DriftReport.passed` is the verdict.

    Raises:
        InputError: A model, sample or other file cannot be used.
        UsageError: An option is wrong, or the two models do not have the same inputs and outputs.
        EnvironmentProblem: No runtime is installed, or CUDA cannot be used.
    """
    if on not in WAYS:
        raise UsageError(f"unknown --on {on!r}", "one of " + ", ".join(WAYS))
    if count < 1:
        raise UsageError(f"{count} samples were asked for", "--count 4")
    require_runtime()
    known = load_baseline(Path(baseline)) if baseline is not None else None
    wanted = find_metrics(metrics)
    paths, clock = (Path(reference), Path(candidate)), _Clock(on_stage)
    with clock.stage("load"):
        source, half = load(paths[0]), load(paths[1])
        _check_interfaces(source.model, half.model, paths)
        to, warnings = _format(half.model)
        scopes, made = origins(source.model), origins(half.model)
        specs = input_specs(source.model)
        given = open_samples(samples, specs) if samples is not None else None
    names = [value.name or "" for value in source.model.graph.outputs]
    automatic = not wanted and given is not None and labels_of(next(iter(given)).extras) is not None
    if automatic:
        wanted = {"accuracy": accuracy}
    bounds_file = Path(tolerance_file) if tolerance_file is not None else None
    gate = make_gate(to, names, tolerance, bounds_file, tuple(wanted))
    with ExitStack() as stack:
        with clock.stage("simulate" if on == "simulate" else "open"):
            simulation = simulate(half) if on == "simulate" or layers else None
            ours = stack.enter_context(evaluate_file(paths[0]))
            theirs = stack.enter_context(_candidate(paths[1], simulation, on))
        with clock.stage("run"):
            used = given if given is not None else _synthetic(source.model, count, seed, ours)
            means = MetricMeans(wanted)
            try:
                total, accumulators = _run(used, ours, theirs, names, to, means)
            except InputError:
                if not automatic:
                    raise
                means = MetricMeans({})  # labels that fit no output are no reason to fail
                total, accumulators = _run(used, ours, theirs, names, to, means)
    warnings += [SYNTHETIC] * (used.kind == "synthetic") + [CPU_HIDES] * (on == "cpu")
    outputs = tuple(gate.judge(accumulators[name].result(name)) for name in names)
    report = DriftReport(
        reference=str(paths[0]), candidate=str(paths[1]), on=on, to=to, samples=total, sample_kind=used.kind, seed=used.seed,
        outputs=outputs, metrics=means.result(gate.limit_of), tolerance=gate.resolved(),
        unmodelled=simulation.unmodelled if simulation is not None and on == "simulate" else (),
    )  # fmt: skip
    failed = not report.passed and on != "cpu"
    if layers or failed:
        with clock.stage("locate"):
            found, note = _locate(paths, used if layers else _first(used), made, scopes)
        warnings += note
        report = replace(report, layers=found if layers else None, first_bad=first_bad(found, _limit(gate) if failed else math.inf))
    if known is not None:
        report = replace(report, baseline=grown(report, known))
    return replace(report, warnings=tuple(warnings), seconds=clock.seconds)


def _check_interfaces(reference: ir.Model, candidate: ir.Model, paths: tuple[Path, Path]) -> None:
    for side in ("inputs", "outputs"):
        ours, theirs = (
            [v.name or "" for v in getattr(m.graph, side) if v.name not in m.graph.initializers] for m in (reference, candidate)
        )
        if set(ours) != set(theirs):
            raise UsageError(
                f"{paths[1]} is no conversion of {paths[0]}: its {side} are {', '.join(theirs)}, not {', '.join(ours)}",
                "the model that it was converted from as REFERENCE",
            )


def _format(model: ir.Model) -> tuple[str, list[str]]:
    """Return the half format that a model holds most of, and warnings."""
    counts = dict.fromkeys(FORMATS, 0)
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)):
            if value.dtype in counts:
                counts[value.dtype] += 1
    most = max(counts, key=lambda kind: counts[kind])
    if not counts[most]:
        return "fp16", ["the candidate holds no half-precision value: it is compared as it is"]
    return FORMATS[most], []


def _candidate(path: Path, simulation: Simulation | None, on: str) -> Evaluator:
    if on == "simulate":
        assert simulation is not None
        return evaluate_simulation(simulation, str(path))
    return evaluate_file(path, provider=CPU if on == "cpu" else CUDA, isolated=True)


def _synthetic(model: ir.Model, count: int, seed: int, ours: Evaluator) -> Samples:
    """Make samples up, of the first length that the reference accepts."""
    problem: InputError | None = None
    for length in LENGTHS:
        made = synthetic_samples(model, count, seed, length=length)
        try:
            first = next(iter(made))
            ours.run(first.feeds, first.name)
        except InputError as error:
            problem = error
            continue
        return made
    raise InputError(f"no synthetic sample fits: {problem}".partition("; try:")[0], "--samples with real inputs")


def _run(
    samples: Samples, ours: Evaluator, theirs: Evaluator, names: Sequence[str], to: str, means: MetricMeans
) -> tuple[int, dict[str, Accumulator]]:
    accumulators = {name: Accumulator(to) for name in names}
    total = 0
    for sample in samples:
        values = ours.run(sample.feeds, sample.name, names), theirs.run(sample.feeds, sample.name, names)
        for name, accumulator in accumulators.items():
            accumulator.update(values[0][name], values[1][name], sample.name)
        means.update(values, sample.extras, sample.name)
        total += 1
    return total, accumulators


def _first(samples: Samples) -> Samples:
    return Samples(lambda: itertools.islice(iter(samples), FEW), kind=samples.kind, seed=samples.seed)


def _limit(gate: Gate) -> float:
    return float(gate.bounds.get("rel_l2", 1e-2))


def _locate(
    paths: tuple[Path, Path], samples: Samples, made: Origins, scopes: Origins
) -> tuple[tuple[LayerDrift, ...], list[str]]:
    """Compare the values inside; both models are loaded anew, because comparing uses them up."""

    def models() -> tuple[ir.Model, Simulation]:
        source = load(paths[0])
        prepare(source.model, label=str(paths[0]), fuse=False)
        return source.model, simulate(load(paths[1]))

    try:
        found = localise(models, samples, made, scopes, str(paths[1]))
    except InputError as error:
        return (), [f"the values inside could not be compared: {str(error).partition('; try:')[0]}"]
    if not found:
        return (), ["the values inside could not be compared: the two models have no opset or no values in common"]
    return found, []
