"""Validate a candidate model against its reference: run both on samples, measure drift, judge it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.check import CUDA, require_runtime
from halfconv.drift.baseline import grown
from halfconv.drift.baseline import load as load_baseline
from halfconv.drift.evaluate import Evaluator, check_valid, evaluate_file, evaluate_simulation
from halfconv.drift.gate import Gate, make_gate
from halfconv.drift.localise import first_bad, localise
from halfconv.drift.origins import Origins, origins
from halfconv.drift.paired import Paired, run_paired
from halfconv.drift.report import SYNTHETIC, DriftReport, LayerDrift
from halfconv.drift.simulate import FORMATS, Simulation, simulate
from halfconv.drift.task import Metric, MetricMeans, accuracy, find_metrics, labels_of
from halfconv.drift.waivers import notes as waiver_notes
from halfconv.errors import InputError, UsageError
from halfconv.graph.prepare import prepare
from halfconv.kernels.operators import altered
from halfconv.model import SourceModel, load
from halfconv.progress import Progress, StageClock
from halfconv.runtime.session_server import CPU
from halfconv.runtime_process import RuntimeProcess
from halfconv.samples import Sample, open_samples
from halfconv.synthetic import fitting_samples, input_specs

__all__ = ["open_reference", "validate"]

WAYS = ("simulate", "cpu", "cuda")
CPU_HIDES = (
    "the CPU provider computes most half operators in FP32 and drops their roundings: what passes here can fail on a GPU; "
    "--on simulate shows it"
)
OTHERWISE = (
    "the candidate defines com.halfconv.{} otherwise than halfconv does: where halfconv's CUDA kernels are registered, a kernel "
    "computes something else"
)
ONCE = "the values inside are compared on one sample only, the worst: these samples can be read only once"


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
    allow_links: str | os.PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
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
        allow_links: A folder; data files that are links are read if their real path lies below it.
        on_progress: Called as each stage begins, and as it goes on.

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
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", "--seed 0")
    require_runtime()
    known = load_baseline(Path(baseline)) if baseline is not None else None
    wanted = find_metrics(metrics)
    paths, clock = (Path(reference), Path(candidate)), StageClock(on_progress)
    with clock.stage("load"):
        source, half = load(paths[0], allow_links), load(paths[1], allow_links)
        _check_interfaces(source.model, half.model, paths)
        to, warnings = _format(source.model, half.model, paths)
        warnings += [OTHERWISE.format(name) for name in altered(half.model)]
        scopes, made = origins(source.model), origins(half.model)
        specs = input_specs(source.model)
        given = open_samples(samples, specs) if samples is not None else None
        automatic = not wanted and given is not None and labels_of(given.first().extras) is not None
    names = [value.name or "" for value in source.model.graph.outputs]
    if automatic:
        wanted = {"accuracy": accuracy}
    bounds_file = Path(tolerance_file) if tolerance_file is not None else None
    gate = make_gate(to or "fp16", names, tolerance, bounds_file, tuple(wanted))
    with ExitStack() as stack:
        with clock.stage("simulate" if on == "simulate" else "open"):
            simulation = simulate(half) if to and on == "simulate" else None
            ours = stack.enter_context(open_reference(source, on))
            theirs = stack.enter_context(_candidate(half, simulation, on))
            warnings += [f"halfconv's CUDA kernels are not used: {theirs.problem}"] if theirs.problem else []
        with clock.stage("run"):
            used = given if given is not None else fitting_samples(source.model, count, seed, ours.run)
            # Accuracy that nobody asked for is given up where the labels fit no output.
            means = MetricMeans(wanted, asked=not automatic or gate.limit_of("accuracy") is not None)
            found = _run(used, ours, theirs, names, to or "fp16", means)
        outputs = tuple(gate.judge(found.accumulators[name].result(name)) for name in names)
        if simulation is not None and simulation.fused and all(output.passed for output in outputs):
            with clock.stage("as written"):
                warnings += _as_written(half, simulation, found.worst, ours, gate, to)
    judged = gate.judge_metrics(means.result(gate.limit_of))
    waivers = gate.waiver_uses(outputs, judged)
    warnings += waiver_notes(waivers)
    warnings += [SYNTHETIC] * (used.kind == "synthetic") + [CPU_HIDES] * (on == "cpu")
    report = DriftReport(
        reference=str(paths[0]), candidate=str(paths[1]), on=on, to=to or "fp16", samples=found.total, sample_kind=used.kind,
        seed=used.seed, outputs=outputs, metrics=judged, tolerance=gate.resolved(), waivers=waivers,
        unmodelled=simulation.unmodelled if simulation is not None else (),
    )  # fmt: skip
    failed = not report.passed and on != "cpu"
    if layers or failed:
        whole = layers and not used.once
        with clock.stage("locate"):
            inside, note = _locate((source, half), used if whole else [found.worst], made, scopes, everything=layers)
        warnings += [*note, *([ONCE] if layers and used.once else [])]
        report = replace(
            report, layers=inside if layers else None, first_bad="" if report.passed else first_bad(inside, _limit(gate))
        )
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


def _holds(model: ir.Model) -> str:
    """Return the half format that a model holds most of; "" if it holds none."""
    counts = dict.fromkeys(FORMATS, 0)
    nodes = [node for graph in model.graphs() for node in graph] + [node for f in model.functions.values() for node in f]
    values = [value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())]
    kinds = [value.dtype for value in (*values, *(output for node in nodes for output in node.outputs))]
    for attribute in (a for node in nodes for a in node.attributes.values()):  # files need not say what type a value has
        if attribute.type == ir.AttributeType.INT and attribute.name in ("to", "dtype") and not attribute.is_ref():
            kinds += [kind for kind in counts if kind.value == attribute.as_int()]
        elif attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            kinds.append(attribute.as_tensor().dtype)
    for kind in kinds:
        if kind in counts:
            counts[kind] += 1
    most = max(counts, key=lambda kind: counts[kind])
    return FORMATS[most] if counts[most] else ""


def _format(reference: ir.Model, candidate: ir.Model, paths: tuple[Path, Path]) -> tuple[str, list[str]]:
    """Return the candidate's half format ("" if it has none), and warnings.

    Raises:
        UsageError: Only the reference keeps weights, inputs or outputs in half precision.
    """
    ours, theirs = _holds(reference), _holds(candidate)
    stored = (*reference.graph.inputs, *reference.graph.outputs, *(v for g in reference.graphs() for v in g.initializers.values()))
    if ours and not theirs and any(value.dtype in FORMATS for value in stored):
        raise UsageError(
            f"{paths[0]} holds half-precision values and {paths[1]} none: they are the wrong way round",
            f"halfconv validate {paths[1]} {paths[0]}",
        )
    if ours:
        return theirs, ["the reference holds half-precision values, too: drift is measured from what it gives"]
    return theirs, [] if theirs else ["the candidate holds no half-precision value: it is compared as it is"]


def open_reference(source: SourceModel, on: str, process: RuntimeProcess | None = None) -> Evaluator:
    """Open a reference: the file; where it holds half-precision values itself, its simulation if the candidate is simulated.

    Args:
        source: The loaded model.
        on: How the candidate is evaluated.
        process: Where it runs; None for a process of its own.

    Raises:
        InputError: It cannot be run.
    """
    path = source.path
    if on == "simulate" and _holds(source.model):  # it is loaded anew, because a simulation uses a model up
        return evaluate_simulation(simulate(load(path, source.root)), str(path), process)
    return evaluate_file(path, source.locations, process=process)


def _candidate(source: SourceModel, simulation: Simulation | None, on: str) -> Evaluator:
    path = source.path
    if simulation is not None:
        check_valid(path, source.locations)
        return evaluate_simulation(simulation, str(path))
    return evaluate_file(path, source.locations, provider=CUDA if on == "cuda" else CPU)


def _run(
    samples: Iterable[Sample], ours: Evaluator, theirs: Evaluator, names: Sequence[str], to: str, means: MetricMeans
) -> Paired:
    found = run_paired(
        samples, lambda _, sample: ours.run(sample.feeds, sample.name, names),
        lambda _, sample: theirs.run(sample.feeds, sample.name, names), names, to, means,
    )  # fmt: skip
    assert found is not None
    return found


def _as_written(model: SourceModel, simulation: Simulation, sample: Sample, ours: Evaluator, gate: Gate, to: str) -> list[str]:
    """Warn where only ONNX Runtime's fusions keep a sample's drift small: other runtimes may not have them."""
    names, path = ours.outputs, model.path
    with evaluate_simulation(simulate(load(path, model.root), as_written=True), str(path)) as theirs:
        accumulators = _run([sample], ours, theirs, names, to, MetricMeans({})).accumulators
    broken = [failure for name in names for failure in gate.judge(accumulators[name].result(name)).failures]
    if not broken:
        return []
    made = ", ".join(sorted(simulation.fused))
    return [f"this holds only where ONNX Runtime's optimiser is on ({made}): as written, {broken[0]}"]


def _limit(gate: Gate) -> float:
    return float(gate.bounds.get("rel_l2", 1e-2))


def _locate(
    pair: tuple[SourceModel, SourceModel], samples: Iterable[Sample], made: Origins, scopes: Origins, *, everything: bool
) -> tuple[tuple[LayerDrift, ...], list[str]]:
    """Compare the values inside; both models are loaded anew, because comparing uses them up."""

    def models() -> tuple[ir.Model, Simulation]:
        source, half = (load(model.path, model.root) for model in pair)
        prepare(source.model, label=str(source.path), fuse=False)
        return source.model, simulate(half)

    try:
        found = localise(models, samples, made, scopes, str(pair[1].path), everything=everything)
    except InputError as error:
        return (), [f"the values inside could not be compared: {str(error).partition('; try:')[0]}"]
    if not found:
        return (), ["the values inside could not be compared: the two models have no opset or no values in common"]
    return found, []
