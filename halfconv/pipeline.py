"""Run the stages: load, prepare, plan, rewrite, check."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from halfconv import __version__
from halfconv.borders import promise
from halfconv.check import CheckResult, check_file, require_runtime
from halfconv.errors import CheckFailed, UsageError
from halfconv.kernels.stage import place as place_kernels
from halfconv.model import SourceModel, check_unchanged
from halfconv.model_writer import EXTERNAL_DATA, INLINE_LIMIT, written_model
from halfconv.planning import Planned, converted_before, plan_model, replanned
from halfconv.precision.formats import FORMATS
from halfconv.precision.plan import PrecisionPlan
from halfconv.precision.rewrite import RewritePass
from halfconv.precision.rules import Rules
from halfconv.precision.surroundings import with_ranges
from halfconv.profile import write_profile
from halfconv.progress import Progress, StageClock
from halfconv.result import ChangedConstant, ConvertResult, FailedConvert, FloatValue
from halfconv.run_paths import check_run_paths
from halfconv.storage import METADATA_PREFIX, atomic_text, check_output_path
from halfconv.weight_files import DATA_FORMATS

if TYPE_CHECKING:
    from halfconv.drift.task import Metric

__all__ = ["convert"]

#: Stands for the better of all formats, on the samples.
AUTO = "auto"
#: The newest IR version that ONNX Runtime 1.18 reads.
IR_VERSION = 10


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    to: str = "fp16",
    target: str = "portable",
    half_io: bool | Iterable[str] = False,
    keep_io: Iterable[str] = (),
    block_ops: Iterable[str] = (),
    block_nodes: Iterable[str] = (),
    block_scopes: Iterable[str] = (),
    block_patterns: Iterable[str] = (),
    allow_ops: Iterable[str] = (),
    allow_nodes: Iterable[str] = (),
    block_list: str = "default",
    fuse: bool = True,
    check: bool = True,
    external_data: str = "auto",
    shard_size: int | None = None,
    data_format: str = "onnx",
    allow_links: str | os.PathLike[str] | None = None,
    plan: str | os.PathLike[str] | PrecisionPlan | None = None,
    save_plan: str | os.PathLike[str] | None = None,
    samples: Any = None,
    tolerance: Mapping[str, float] | Sequence[str] | None = None,
    tolerance_file: str | os.PathLike[str] | None = None,
    metrics: Sequence[str | Metric] | Mapping[str, Metric] = (),
    ranges: str | os.PathLike[str] | None = None,
    save_ranges: str | os.PathLike[str] | None = None,
    repair: bool = True,
    time_limit: float | None = None,
    force_failed: str | os.PathLike[str] | None = None,
    seed: int = 0,
    kernels: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ConvertResult:
    """Convert an FP32 model to half precision.

    Args:
        model: An ``.onnx`` file; never touched.
        output: Where to write; default ``MODEL.fp16.onnx`` or ``MODEL.bf16.onnx`` beside the model.
        to: ``fp16``, or ``bf16``, for which the opset is raised to 22 where operators need it.
        target: The kind of hardware that the model is made for; decides which operators have half kernels.
        half_io: True to make all FP32 inputs and outputs half, or the names of those that become half.
        keep_io: Names of inputs and outputs that stay FP32 although ``half_io`` is True.
        block_ops: Operators that stay FP32.
        block_nodes: Regular expressions; nodes whose whole id matches stay FP32.
        block_scopes: Prefixes of node names or exporter scopes that stay FP32.
        block_patterns: Names of patterns that stay FP32, see `halfconv.precision.patterns.PATTERNS`.
        allow_ops: Operators that become half although the block list or a measurement says no.
        allow_nodes: Regular expressions of node ids, likewise.
        block_list: ``default``, ``none`` or ``onnxconverter-common``.
        fuse: Whether groups of operators become one, as the target has them, see `halfconv.graph.fusions`.
        check: Whether to simulate the result, and to check the written file (ONNX's checker, interface, a session in a child
            process).
        external_data: ``auto`` (weights beside the model where the input's are, and beyond 2 GB), ``always`` or ``never``.
        shard_size: Most bytes of a file of weights, unless one weight has more; the weights then lie beside the model.
        data_format: What files of weights are: ``onnx``, or ``safetensors``, which other programs read, too; the weights then lie
            beside the model.
        allow_links: A folder; the model's data files may be links if their real path lies below it, as in the cache of a model hub.
        plan: A saved plan to replay on the same model, or on one of the same structure; rules beside it must be those it was made
            with.
        save_plan: Where to write the plan as JSON.
        samples: Real inputs, see `halfconv.samples.open_samples`. With them, measured ranges and simulation decide in place of the
            default block list, and values are forced to FP32 until the tolerance holds. Without, a few are made up, and values are
            forced only where the result would hold new NaN or infinities, or zeros throughout.
        tolerance: Bounds of drift, see `halfconv.drift.gate.make_gate`; default rel_l2 ≤ 1e-2 with samples.
        tolerance_file: The same in TOML.
        metrics: As in `halfconv.validate`.
        ranges: A file of ranges to use in place of measuring them.
        save_ranges: Where to write the ranges as JSON.
        repair: Whether to force values to FP32 where the tolerance does not hold; if not, that is an error.
        time_limit: Seconds after which the search for these ends with the best plan found so far.
        force_failed: Where to write a model that does not meet the tolerance, for study.
        seed: Seed of samples that are made up.
        kernels: Whether operators of halfconv's own are put in, for which its CUDA library has kernels; without the library their
            definitions in the file are run. For FP16 on CUDA only.
        on_progress: Called as each stage begins, and as it goes on.

    Returns:
        What was done.

    Raises:
        InputError: The model cannot be used, or BF16 needs an opset to which it cannot be raised.
        UsageError: An option is wrong or matches nothing.
        EnvironmentProblem: No runtime is installed, or the disk refuses the output.
        CheckFailed: The result did not pass its checks, or no plan meets the tolerance; nothing is left on disk.
    """
    source_path = Path(model)
    if not source_path.name:
        raise UsageError(f"{str(model)!r} names no model file", "the path of an .onnx file")
    if external_data not in EXTERNAL_DATA:
        raise UsageError(f"unknown --external-data {external_data!r}", "one of " + ", ".join(EXTERNAL_DATA))
    if shard_size is not None and (shard_size < 1 or external_data == "never"):
        raise UsageError(f"--shard-size {shard_size} needs files of weights", "--shard-size 4GB, without --external-data never")
    if data_format not in DATA_FORMATS:
        raise UsageError(f"unknown --data-format {data_format!r}", "one of " + ", ".join(DATA_FORMATS))
    if data_format != DATA_FORMATS[0] and external_data == "never":
        raise UsageError(f"--data-format {data_format} needs files of weights", "without --external-data never")
    if output is not None:
        check_output_path(source_path, Path(output))
    measured = {"--tolerance": tolerance, "--tolerance-file": tolerance_file, "--ranges": ranges, "--save-ranges": save_ranges}
    simulated = {"--samples": samples is not None, **measured, "--time-limit": time_limit, "--force-failed": force_failed}
    real = {"--metric": metrics, "--to auto": to == AUTO}
    for lacks, options, what, advice in (
        (samples is None, real, "samples to measure on", "--samples PATH with real inputs"),
        (not check, simulated, "the simulation, which --no-check leaves out", "without --no-check"),
    ):
        if lacks and (named := [option for option, value in options.items() if value]):
            raise UsageError(f"{named[0]} needs {what}", advice)
    if check:
        require_runtime()
    rules = Rules(
        block_ops=tuple(block_ops),
        block_nodes=tuple(block_nodes),
        block_scopes=tuple(block_scopes),
        block_patterns=tuple(block_patterns),
        allow_ops=tuple(allow_ops),
        allow_nodes=tuple(allow_nodes),
        block_list=block_list,
    )
    # Options that are iterators can be read once, and --to auto plans twice.
    half_io, keep_io = half_io if isinstance(half_io, bool) else frozenset(half_io), frozenset(keep_io)
    if kernels and plan is None:
        _check_kernels(to, target)
    plans = [
        plan_model(
            source_path, to=name, target=target, rules=rules, half_io=half_io, keep_io=keep_io, fuse=fuse, plan=plan,
            allow_links=allow_links,
            on_progress=on_progress,
        )
        for name in _formats(to, target)
    ]  # fmt: skip
    if kernels:
        _check_kernels(plans[0].plan.to, plans[0].plan.target)
    names = [source_path.with_name(f"{source_path.stem}.{known.plan.to}.onnx") for known in plans]
    targets = [Path(output)] * len(plans) if output is not None else names
    given = {"--plan": plan, "--samples": samples, "--tolerance-file": tolerance_file, "--ranges": ranges}
    sides = {"--save-plan": save_plan, "--save-ranges": save_ranges}
    for path in {*targets, *([Path(force_failed)] if force_failed is not None else [])}:
        check_run_paths(source_path, path, plans[0].source.data_files, given, sides)
    clock = StageClock(on_progress)
    tuned, failed, chosen = None, "", 0
    notes: list[str] = []
    if check:
        from halfconv.tuning import Tuning, tune

        asked = samples is not None or any(measured.values())
        with clock.stage("tune"):
            tuning = Tuning(
                samples, tolerance, tolerance_file, metrics, ranges, repair, time_limit, seed, asked,
                finish=place_kernels if kernels else None,
            )  # fmt: skip
            chosen, tuned, notes = tune(plans, tuning, on_progress)
    if tuned is not None and tuned.assignment is not plans[chosen].assignment:
        plans[chosen].assignment = tuned.assignment
        plans[chosen].plan = replanned(plans[chosen], tuned.assignment)
    if tuned is not None:
        plans[chosen].plan = with_ranges(plans[chosen].plan, tuned.ranges)
    planned, target_path = plans[chosen], targets[chosen]
    to, target = planned.plan.to, planned.plan.target
    clock.seconds = planned.seconds | clock.seconds
    if tuned is not None:
        if save_ranges is not None:
            atomic_text(Path(save_ranges), tuned.ranges.to_json())
        failed = tuned.failure
        if failed and force_failed is None:
            raise CheckFailed(
                f"{source_path}: {failed}", "more samples, a wider --tolerance, or --force-failed OUT to study it",
                FailedConvert(failed, tuned.drift, planned.plan, None),
            )  # fmt: skip
        if failed and force_failed is not None:
            target_path = Path(force_failed)
    ir_model, source = planned.source.model, planned.source
    warnings = [*notes, *planned.prepared.notes, *planned.assignment.overruled, *_remarks(planned, to)]
    converted = converted_before(ir_model, to)
    with clock.stage("rewrite"):
        rewrite = RewritePass(planned.groups, planned.assignment.half, planned.names, planned.dtype)
        rewrite(ir_model)
        placed = place_kernels(ir_model) if kernels else None
        if not converted:
            _stamp(ir_model, planned)
        if ir_model.ir_version > IR_VERSION and ir_model.opset_imports.get("", 0) < 23:
            ir_model.ir_version = IR_VERSION
    promised = promise(source, ir_model, planned.half_inputs, planned.half_outputs, planned.dtype)
    types = {value.name: value.type for side in promised for value in side if value.HasField("type")} | source.opaque_types
    checked: CheckResult | None = None
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(ir_model.graph))
    with (
        clock.stage("write"),
        written_model(
            ir_model, target_path, types=types, annotated=source.annotated | (placed.results if placed else set()),
            shard_size=shard_size, data_format=data_format, clock=clock,
            external=_is_external(external_data, shard_size, data_format, source),
            unchanged=lambda: check_unchanged(source),
        ) as written,
    ):  # fmt: skip
        if check:
            with clock.stage("check"):
                checked = check_file(written, promised, ir_model, target, source)
        # Before the model takes its place, so that a full disk leaves neither.
        write_profile(written, target, checked)
        if save_plan is not None:
            atomic_text(Path(save_plan), planned.plan.to_json())
    clock.seconds["write"] -= clock.seconds.get("check", 0.0) + clock.seconds.get("sync", 0.0)
    stats = rewrite.stats
    if failed:
        study = FailedConvert(failed, tuned.drift, planned.plan, target_path) if tuned else None
        raise CheckFailed(f"{source_path}: {failed}", f"a look at {target_path}, which holds the model that failed", study)
    return ConvertResult(
        output=target_path,
        to=to,
        target=target,
        opset=ir_model.opset_imports.get("", 0),
        nodes=nodes,
        values={"half": planned.plan.half, "float": planned.plan.float},
        weights={"half": len(stats.half_weights), "float": len(stats.float_weights), "both": len(stats.both_weights)},
        casts=stats.casts,
        bytes_before=source.bytes,
        bytes_after=_size(target_path, ir_model),
        seconds=clock.seconds,
        fp32=tuple(FloatValue.of(value) for value in planned.plan.fp32()),
        constants=_changed(planned, stats.half_weights, stats.both_weights),
        fusions=planned.prepared.fusions,
        kernels=placed,
        check=checked,
        plan=planned.plan,
        drift=replace(tuned.drift, candidate=str(target_path)) if tuned else None,
        repair=tuned.repair if tuned else None,
        warnings=tuple(warnings + list(checked.notes if checked else ())),
    )


def _is_external(wanted: str, shard_size: int | None, data_format: str, source: SourceModel) -> bool:
    """Tell whether the weights go into files beside the model."""
    if wanted != "auto":
        return wanted == "always"
    return shard_size is not None or data_format != DATA_FORMATS[0] or bool(source.data_files) or source.bytes > 2 * INLINE_LIMIT


def _check_kernels(to: str, target: str) -> None:
    """Refuse operators of our own where there are no kernels for them."""
    if (to, target) != ("fp16", "cuda"):
        raise UsageError(f"--kernels are for FP16 on CUDA, not for {to} on {target}", "--kernels --target cuda --to fp16")


def _formats(to: str, target: str) -> list[str]:
    """Return the formats to try."""
    return [to] if to != AUTO else [name for name, known in FORMATS.items() if not known.targets or target in known.targets]


def _remarks(planned: Planned, to: str) -> Iterator[str]:
    """Say plainly what kind of model it was, where that is not the plain case."""
    model, plan = planned.source.model, planned.plan
    by = model.metadata_props.get(f"{METADATA_PREFIX}version")
    if by and converted_before(model, to):
        yield f"already converted to {to} by halfconv {by}"
    kinds = {o.dtype for node in planned.names.nodes() for o in node.outputs if o.name}
    held = {v.dtype for g in model.graphs() for v in g.initializers.values()}
    present = kinds | held
    if ir.DataType.FLOAT16 in present or ir.DataType.BFLOAT16 in present:
        whole = ir.DataType.FLOAT not in held
        yield f"the model already holds half-precision {'weights only' if whole and not plan.half else 'values'}"
    if ir.DataType.DOUBLE in present:
        yield "the model holds float64 values, which stay float64"
    if not plan.half:
        yield "nothing was converted: " + (
            "every FP32 value has a reason to stay FP32" if plan.values else "the model has no FP32 values"
        )


def _stamp(model: ir.Model, planned: Planned) -> None:
    model.metadata_props[f"{METADATA_PREFIX}version"] = __version__
    model.metadata_props[f"{METADATA_PREFIX}to"] = planned.plan.to
    model.metadata_props[f"{METADATA_PREFIX}plan"] = planned.plan.fingerprint()
    model.metadata_props[f"{METADATA_PREFIX}source_sha256"] = planned.source.sha256


def _changed(planned: Planned, half: list[str], both: list[str]) -> tuple[ChangedConstant, ...]:
    held = dict.fromkeys(both, "both") | dict.fromkeys(half, "half")
    found = []
    for value, known in planned.weights.items():
        stats = known.stats
        if not (stats.saturated or stats.flushed):
            continue
        produced = planned.groups.produced.get(value)
        kept = held.get(value.name or "") if produced is None else ("half" if planned.assignment.half[produced] else None)
        if kept:
            found.append(ChangedConstant(known.id, stats.size, stats.absmax, stats.saturated, stats.flushed, kept))
    return tuple(found)


def _size(path: Path, model: ir.Model) -> int:
    data = {
        Path(tensor.path)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor) and Path(tensor.path).parent == path.absolute().parent
    }
    return path.stat().st_size + sum(file.stat().st_size for file in data if file.exists())
