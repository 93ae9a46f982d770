"""Build a package in a folder beside its place, prove it there, and put it in place by rename."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv import __version__
from halfconv.deploy.kinds import Kind, find_kind
from halfconv.deploy.making import Wishes, make_parts
from halfconv.deploy.manifest import is_package, write_manifest
from halfconv.deploy.parts import Parts, Slot
from halfconv.deploy.running import Verified
from halfconv.deploy.templates import require_templates
from halfconv.errors import CheckFailed, EnvironmentProblem, UsageError
from halfconv.locks import held_folder, is_held, locked_folder
from halfconv.progress import Progress, StageClock
from halfconv.storage import disk_problem

if TYPE_CHECKING:
    from halfconv.precision.rules import Rules

__all__ = ["Deployment", "deploy"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was packed.

    Attributes:
        output: The folder.
        kind: What kind of package it is.
        name: The model's name in it.
        to: ``fp16`` or ``bf16``.
        target: What the model was converted for.
        min_ort: The oldest ONNX Runtime that runs it.
        inputs: The model's inputs.
        outputs: Its outputs.
        files: Number of files, without the manifest.
        bytes: Their bytes.
        reference_bytes: Bytes of the FP32 model.
        half_bytes: Bytes of the converted model.
        recorded: Number of recorded samples.
        sample_kind: ``given`` or ``synthetic``.
        tolerance: ``METRIC`` or ``METRIC@OUTPUT`` -> bound.
        verified: What the package's own verification said.
        notes: Sentences of the kind's.
        warnings: Sentences of the conversion's.
        seconds: Stage -> seconds.
    """

    output: Path
    kind: str
    name: str
    to: str
    target: str
    min_ort: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    files: int
    bytes: int
    reference_bytes: int
    half_bytes: int
    recorded: int
    sample_kind: str
    tolerance: Mapping[str, float]
    verified: Verified
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        content = asdict(self) | {
            "output": str(self.output), "inputs": _described(self.inputs), "outputs": _described(self.outputs),
            "tolerance": dict(self.tolerance), "notes": list(self.notes), "warnings": list(self.warnings),
            "seconds": dict(self.seconds),
        }  # fmt: skip
        return {"schema_version": 1, **content}


def deploy(
    model: str | os.PathLike[str],
    package: str,
    output: str | os.PathLike[str],
    *,
    half: str | os.PathLike[str] | None = None,
    samples: Any = None,
    tolerance: Sequence[str] = (),
    tolerance_file: str | os.PathLike[str] | None = None,
    to: str = "fp16",
    target: str | None = None,
    rules: Rules | None = None,
    fix: Sequence[str] = (),
    record: int = 4,
    chunk_bytes: int | None = None,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    allow_links: str | os.PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Deployment:
    """Make a package of a model: converted, with samples and what proves it.

    Args:
        model: The FP32 model.
        package: The kind of package, see `halfconv.deploy.kinds.KINDS`.
        output: The folder; a package of halfconv that lies there is replaced, and nothing else.
        half: A model that halfconv converted from `model`, in place of a conversion.
        samples: Real inputs, see `halfconv.samples.open_samples`; None makes some up.
        tolerance: Bounds of drift, see `halfconv.drift.gate.make_gate`.
        tolerance_file: The same in TOML.
        to: ``fp16`` or ``bf16``.
        target: What the model is converted for; None for the kind's own.
        rules: What stays FP32.
        fix: ``NAME=SIZE`` or ``INPUT:AXIS=SIZE``: free dimensions that get a size.
        record: How many samples are recorded.
        settings: Setting of the kind -> value, see `halfconv.deploy.kinds.Kind`.
        chunk_bytes: Largest file of a model, in kinds that cut them; None for the kind's own.
        seed: Of what is made up.
        allow_links: A folder below which links to files of weights may end.
        on_progress: Told what is being done.

    Returns:
        What was packed.

    Raises:
        UsageError: An option is wrong, or the folder holds something else.
        InputError: A file cannot be used.
        EnvironmentProblem: A package is missing, or the disk refuses the output.
        CheckFailed: The conversion failed, or the package's verification did; nothing is left.
    """
    kind, place, source = find_kind(package), Path(output), Path(model)
    require_templates()
    if record < 1:
        raise UsageError(f"{record} recorded samples prove nothing", "--record 4")
    if to not in kind.formats:
        raise UsageError(f"--to {to}: the runtime of the package '{kind.name}' does not compute it", f"--to {kind.formats[0]}")
    if chunk_bytes is not None and not kind.chunks:
        raise UsageError(f"the package '{kind.name}' cuts no model into files", "no --chunk-size, or --package web")
    if unknown := sorted((settings or {}).keys() - set(kind.settings)):
        words = ", ".join(kind.settings)
        raise UsageError(f"the package '{kind.name}' has no setting '{unknown[0]}'", f"--set {words}" if words else "no --set")
    _check_place(place, source)
    clock = StageClock(on_progress)
    wishes = Wishes(
        target=target or kind.target, to=to, half=None if half is None else Path(half), samples=samples, tolerance=tolerance,
        tolerance_file=None if tolerance_file is None else Path(tolerance_file), rules=rules, fix=fix, record=record, seed=seed,
        allow_links=None if allow_links is None else Path(allow_links), formats=kind.formats,
    )  # fmt: skip
    with _built(place) as (built, work):
        made = make_parts(source, wishes, work, clock, on_progress)
        options = replace(made.options, chunk_bytes=chunk_bytes, extra=dict(settings or {}))
        parts = made.parts
        try:
            with clock.stage("write"):
                notes = kind.write(parts, built, options)
                manifest = write_manifest(built, _content(kind, parts, options.fixed, notes))
        except OSError as error:
            raise disk_problem(error, place.absolute().parent) from None
        with clock.stage("verify"):
            verified = kind.verify(built) if kind.verify is not None else Verified(False, False, "it has no verification here")
        if verified.ran and not verified.passed:
            raise CheckFailed(
                f"{place}: the package does not prove itself: {verified.words}", "a wider --tolerance, or more in FP32 (--block-op)"
            )
    files = manifest["files"]
    return Deployment(
        output=place, kind=kind.name, name=parts.name, to=parts.to, target=parts.target, min_ort=parts.min_ort,
        inputs=parts.inputs, outputs=parts.outputs, files=len(files), bytes=sum(file["bytes"] for file in files),
        reference_bytes=manifest["sizes"]["reference"], half_bytes=manifest["sizes"]["half"], recorded=len(parts.recorded),
        sample_kind=parts.sample_kind, tolerance=parts.tolerance, verified=verified, notes=notes, warnings=made.warnings,
        seconds=clock.seconds,
    )  # fmt: skip


def _content(kind: Kind, parts: Parts, fixed: Mapping[str, int], notes: Sequence[str]) -> dict[str, Any]:
    """Return what the manifest says beside the files."""
    profile = parts.profile
    return {
        "halfconv": __version__,
        "kind": kind.name,
        "name": parts.name,
        "model": parts.model_name,
        "to": parts.to,
        "target": parts.target,
        "source_sha256": parts.source_sha256,
        "min_ort": parts.min_ort,
        "opsets": dict(parts.opsets),
        "inputs": _described(parts.inputs),
        "outputs": _described(parts.outputs),
        "fixed": dict(fixed),
        "profile": None if profile is None else {
            "graph_optimization": profile.level,
            "providers": list(profile.providers),
            "buckets": [{"inputs": {n: list(s) for n, s in b.inputs.items()}, "cuda_graph": b.cuda_graph} for b in profile.buckets],
        },
        "sizes": {"reference": parts.reference_bytes, "half": parts.half_bytes},
        "samples": {"count": len(parts.recorded), "kind": parts.sample_kind},
        "tolerance": parts.tolerance,
        "notes": list(notes),
    }  # fmt: skip


def _described(slots: Sequence[Slot]) -> list[dict[str, Any]]:
    return [{"name": slot.name, "dtype": slot.dtype, "dims": list(slot.dims)} for slot in slots]


def _check_place(place: Path, source: Path) -> None:
    """Refuse a folder that cannot be made, or that holds something else than a package."""
    folder = place.absolute().parent
    _check_replaceable(place)
    if source.exists() and source.resolve().is_relative_to(place.resolve()):
        raise UsageError(f"{source} lies in the package {place}, which would be replaced", "another -o")
    if not folder.is_dir():
        raise EnvironmentProblem(f"output folder {folder} does not exist", f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"no permission to write in {folder}", "another -o, or chmod")


def _check_replaceable(place: Path) -> None:
    """Refuse a place that holds something else than a package."""
    if not place.name or place.is_symlink() or (place.exists() and not place.is_dir()):
        raise UsageError(f"output {place} is no folder", "-o with the name of a new one")
    if place.is_dir() and any(place.iterdir()) and not is_package(place):
        raise UsageError(f"output {place} holds something that is no package of halfconv", "-o with the name of a new folder")


@contextlib.contextmanager
def _built(place: Path) -> Iterator[tuple[Path, Path]]:
    """Give two folders beside `place`, for the package and for work; the first gets its name when the block ends well.

    Else both go, and the second always: it is here since the folder for temporary files may be in memory. What a killed run left
    of the same package is removed, and a package that it was about to replace is put back.
    """
    parent, token = place.absolute().parent, secrets.token_hex(4)
    temporary, old = parent / f".{place.name}.{token}.tmp", parent / f".{place.name}.{token}.old.tmp"
    package, work = temporary / "package", temporary / "work"
    try:
        with contextlib.ExitStack() as held:
            with locked_folder(parent):
                _clean(parent, place)
                temporary.mkdir()
                held.enter_context(held_folder(temporary))
            package.mkdir()
            work.mkdir()
            yield package, work
            with locked_folder(parent):
                _replace(package, place, old)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise disk_problem(error, parent) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(package: Path, place: Path, old: Path) -> None:
    """Give a package its name; the one that has it goes to `old`, or stays if that fails.

    The place is looked at again: since the run began, somebody may have put something there.
    """
    _check_replaceable(place)
    if place.is_dir():
        place.rename(old)
    try:
        package.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise


def _clean(parent: Path, place: Path) -> None:
    """Remove what runs left that are gone, and put back what one was about to replace."""
    leftover = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}(\.old)?\.tmp")
    for entry in list(parent.iterdir()):
        found = leftover.fullmatch(entry.name)
        if found is None or not entry.is_dir() or entry.is_symlink():
            continue
        if found[1] and not place.exists():
            entry.rename(place)
        elif not is_held(entry):
            shutil.rmtree(entry, ignore_errors=True)
