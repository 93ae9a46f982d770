"""A user's model → `Parts`: converted, with recorded samples, and checked to belong together."""

from __future__ import annotations

import json
import math
import re
import warnings as warnings_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.check import require_runtime, runtime_package
from halfconv.deploy.fixing import fixed_copy, parse_fixed
from halfconv.deploy.manifest import TOOLS
from halfconv.deploy.oldest_runtime import oldest_runtime
from halfconv.deploy.parts import Options, Parts, Slot
from halfconv.deploy.recorded import DTYPES, Recorded
from halfconv.drift.evaluate import evaluate_file
from halfconv.drift.gate import make_gate
from halfconv.errors import CheckFailed, InputError, ProfileWarning, UsageError
from halfconv.model import SourceModel, load
from halfconv.planning import converted_before
from halfconv.precision.rules import Rules
from halfconv.profile import file_sha256, profile_path
from halfconv.progress import Progress, StageClock
from halfconv.runtime.settings import Profile, find_profile
from halfconv.samples import open_samples
from halfconv.storage import METADATA_PREFIX
from halfconv.synthetic import fitting_samples, input_specs

__all__ = ["Made", "Wishes", "make_parts"]

#: Half types of the converted model by the metadata's word.
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks of the model in a package; see `halfconv.deploy.packaging.deploy`."""

    target: str
    to: str = "fp16"
    half: Path | None = None
    samples: Any = None
    tolerance: Sequence[str] = ()
    tolerance_file: Path | None = None
    rules: Rules | None = None
    fix: Sequence[str] = ()
    record: int = 4
    seed: int = 0
    allow_links: Path | None = None
    formats: tuple[str, ...] = ("fp16",)


@dataclass(frozen=True, slots=True)
class Made:
    """What `make_parts` gives.

    Attributes:
        parts: The parts.
        options: What kinds are told, the fixed dimensions among it.
        warnings: Sentences for the report.
    """

    parts: Parts
    options: Options
    warnings: tuple[str, ...]


def make_parts(
    model: Path, wishes: Wishes, folder: Path, clock: StageClock, on_progress: Callable[[Progress], None] | None = None
) -> Made:  # fmt: skip
    """Convert a model, or check that a converted one belongs to it, and record samples.

    Args:
        model: The FP32 model.
        wishes: What the user asks.
        folder: For temporary files, which must stay until the package is written.
        clock: Collects times.
        on_progress: Told what is being done.

    Raises:
        UsageError: An option is wrong, or MODEL is a converted model.
        InputError: A model or a sample cannot be used.
        CheckFailed: The conversion does not meet the tolerance.
    """
    require_runtime()
    with clock.stage("load"):
        source = load(model, wishes.allow_links)
        _refuse_converted(source)
        inputs, outputs = _slots(source.model.graph.inputs, source), _slots(source.model.graph.outputs, source)
        fixed = parse_fixed(wishes.fix, inputs)
        # What is wrong with it, is said before the conversion.
        make_gate(wishes.to, [slot.name for slot in outputs], list(wishes.tolerance), wishes.tolerance_file)
    warnings: list[str] = []
    with clock.stage("convert"):
        half = wishes.half if wishes.half is not None else _convert(model, wishes, folder, warnings, on_progress)
        converted = load(half, wishes.allow_links)
        _check_pair(source, converted, half, given=wishes.half is not None)
    to = converted.model.metadata_props.get(f"{METADATA_PREFIX}to", wishes.to)
    if to not in wishes.formats:
        raise UsageError(f"{half} is a {to} model, which this package's runtime does not compute", "--to " + wishes.formats[0])
    gate = make_gate(to, [slot.name for slot in outputs], list(wishes.tolerance), wishes.tolerance_file)
    if endless := [key for key, bound in gate.resolved().items() if math.isinf(bound)]:  # JSON has no such number
        raise UsageError(f"the bound of {endless[0]} is infinite, which cannot be recorded", f"--tolerance {endless[0]}=1e30")
    opsets, least = dict(converted.model.opset_imports), oldest_runtime(converted.model, _newest())
    reference = model
    half_data, reference_data = dict(converted.locations), dict(source.locations)
    if fixed:
        with clock.stage("fix"):
            reference, half, half_data, reference_data = _fix(model, half, source, converted, folder, fixed)
            graph = load(reference).model.graph
            inputs, outputs = _slots(graph.inputs, source), _slots(graph.outputs, source)
    with clock.stage("record"):
        recorded, kind = _record(source, reference, reference_data, inputs, wishes)
        if kind == "synthetic":
            warnings.append("the recorded samples are synthetic: they prove that the package computes, not that it is accurate; "
                            "give --samples")  # fmt: skip
    profile = _profile(half)
    if profile is None:
        warnings.append(f"{half.name} has no run profile of its own, so the package runs with defaults")
    parts = Parts(
        name=safe_name(model.stem), half=half, half_data=half_data, reference=reference, reference_data=reference_data,
        source_sha256=source.sha256, profile=profile,
        profile_file=profile_path(half) if profile is not None else None, inputs=inputs, outputs=outputs,
        recorded=recorded, sample_kind=kind, tolerance=gate.resolved(), to=to, target=wishes.target, min_ort=least, opsets=opsets,
    )  # fmt: skip
    return Made(parts, Options(fixed=fixed), tuple(warnings))


def safe_name(stem: str) -> str:
    """Return a file's stem that every file system, shell and URL takes as it is."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-")[:80] or "model"
    return f"{name}_model" if name in TOOLS else name  # a folder of such a name counts as none of the package


def _profile(half: Path) -> Profile | None:
    """Return a model's run profile; None without one of its own."""
    with warnings_module.catch_warnings():
        warnings_module.simplefilter("ignore", ProfileWarning)
        profile = find_profile(half, None)
    return profile if profile.sha256 else None


def _newest() -> str:
    import importlib.metadata

    return importlib.metadata.version(runtime_package())


def _refuse_converted(source: SourceModel) -> None:
    path, held = source.path, {value.dtype for graph in source.model.graphs() for value in graph.initializers.values()}
    if any(converted_before(source.model, to) for to in ("fp16", "bf16")):
        raise UsageError(f"{path} was already converted by halfconv", f"halfconv deploy FP32_MODEL --half {path}")
    if held & set(_HALF):
        raise UsageError(f"{path} holds half-precision weights", f"the FP32 model that it was made from, with --half {path}")


def _convert(
    model: Path, wishes: Wishes, folder: Path, warnings: list[str], on_progress: Callable[[Progress], None] | None
) -> Path:  # fmt: skip
    from halfconv.pipeline import convert

    rules = wishes.rules or Rules()
    result = convert(
        model, folder / f"{safe_name(model.stem)}.{wishes.to}.onnx", to=wishes.to, target=wishes.target,
        samples=wishes.samples, tolerance=list(wishes.tolerance) or None, tolerance_file=wishes.tolerance_file,
        block_ops=rules.block_ops, block_nodes=rules.block_nodes, block_scopes=rules.block_scopes,
        block_patterns=rules.block_patterns, allow_ops=rules.allow_ops, allow_nodes=rules.allow_nodes,
        block_list=rules.block_list, allow_links=wishes.allow_links, seed=wishes.seed, on_progress=on_progress,
    )  # fmt: skip
    warnings += [warning for warning in result.warnings if warning not in warnings]
    return result.output


def _check_pair(source: SourceModel, converted: SourceModel, half: Path, *, given: bool) -> None:
    """Refuse a converted model of another source, or with other inputs and outputs."""
    if given:
        sha256 = converted.model.metadata_props.get(f"{METADATA_PREFIX}source_sha256")
        if sha256 is None:
            raise InputError(f"{half}: does not say what it was converted from", "a model that halfconv converted, without --half")
        if sha256 != source.sha256:
            raise InputError(
                f"{half}: was converted from another file than {source.path} (SHA-256 {sha256[:12]}…, not {source.sha256[:12]}…)",
                "the FP32 model that it was made from",
            )
    for side in ("inputs", "outputs"):
        ours, theirs = (
            {slot.name: slot.dtype for slot in _slots(getattr(known.model.graph, side), known)} for known in (source, converted)
        )
        if ours != theirs:
            error = InputError if given else CheckFailed
            changed = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
            raise error(
                f"{half}: '{changed}' is {theirs.get(changed)} there and {ours.get(changed)} in {source.path}",
                "a model converted without --half-io",
            )


def _slots(values: Sequence[ir.Value], source: SourceModel) -> tuple[Slot, ...]:
    slots = []
    for value in values:
        if value.name in source.model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType):
            raise InputError(
                f"{source.path}: '{value.name}' is a sequence, a map or optional, which packages do not hold",
                "an export with tensors only",
            )
        dtype = value.type.dtype
        word = "string" if dtype == ir.DataType.STRING else dtype.numpy().name
        if word not in DTYPES:
            raise InputError(f"{source.path}: '{value.name}' is of type {word}, which packages do not hold", "an export without it")
        if value.shape is None:
            raise InputError(f"{source.path}: '{value.name}' has no known rank", "an export that declares its shape")
        dims = tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape)
        slots.append(Slot(value.name or "", word, dims))
    return tuple(slots)


def _fix(
    model: Path, half: Path, source: SourceModel, converted: SourceModel, folder: Path, fixed: Mapping[str, int]
) -> tuple[Path, Path, dict[str, Path], dict[str, Path]]:  # fmt: skip
    """Fix dimensions in copies of both models; the profile follows the copy."""
    places = folder / "fixed-reference", folder / "fixed-half"
    reference = fixed_copy(model, source.locations, places[0], fixed)
    copy = fixed_copy(half, converted.locations, places[1], fixed)
    if _profile(half) is not None:
        content = json.loads(profile_path(half).read_text("utf-8"))
        content |= {"model_sha256": file_sha256(copy), "buckets": [], "measured": []}
        profile_path(copy).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return (
        reference, copy, {location: places[1] / location for location in converted.locations},
        {location: places[0] / location for location in source.locations},
    )  # fmt: skip


def _record(
    source: SourceModel, reference: Path, data: Mapping[str, Path], inputs: Sequence[Slot], wishes: Wishes
) -> tuple[tuple[Recorded, ...], str]:  # fmt: skip
    """Run the FP32 model on the first samples."""
    sizes = {slot.name: slot.dims for slot in inputs}
    specs = [replace(spec, shape=tuple(sizes[spec.name])) for spec in input_specs(source.model)]
    found = []
    with evaluate_file(reference, data) as evaluator:
        used = open_samples(wishes.samples, specs) if wishes.samples is not None else (
            fitting_samples(load(reference, wishes.allow_links).model, wishes.record, wishes.seed, evaluator.run)
        )
        for sample in used:
            outputs = evaluator.run(sample.feeds, sample.name)
            found.append(Recorded(sample.name, dict(sample.feeds), outputs))
            if len(found) == wishes.record:
                break
    return tuple(found), used.kind

