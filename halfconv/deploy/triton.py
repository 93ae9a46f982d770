"""The package ``triton``: a model repository for NVIDIA Triton's ONNX Runtime backend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfconv.deploy.parts import Note, Options, Parts, Slot, place_model
from halfconv.deploy.recorded import Recorded, write_samples
from halfconv.deploy.running import Verified, run_python
from halfconv.deploy.templates import copy_files
from halfconv.deploy.triton_config import MAX_BATCH, QUEUE_DELAY, Batching, Settings, Tensor, Warmup, config_text
from halfconv.deploy.vendoring import vendor
from halfconv.drift.evaluate import evaluate_file
from halfconv.errors import InputError, UsageError
from halfconv.external import without_links
from halfconv.runtime.rows import differ
from halfconv.runtime.session_server import CPU, LEVELS
from halfconv.runtime_process import RuntimeProcess

__all__ = ["verify", "write"]

#: The folder that ``tritonserver --model-repository`` is given.
REPOSITORY = "model_repository"
#: What ``--set`` may set -> default, and the least that makes sense.
SETTINGS = {"instances": (1, 1), "max_batch": (MAX_BATCH, 0), "queue_delay": (QUEUE_DELAY, 0)}
#: Rows on which their independence is shown.
ROWS = 4


def write(parts: Parts, folder: Path, options: Options) -> tuple[Note, ...]:
    """Write the package.

    Args:
        parts: What it is made from.
        folder: Where.
        options: What the user asks.

    Returns:
        Sentences for the report.
    """
    place = folder / REPOSITORY / parts.name
    numbers = {name: _number(name, options.extra.get(name, str(default)), least) for name, (default, least) in SETTINGS.items()}
    if "max_batch" not in options.extra and (sizes := _sizes(parts)):
        numbers["max_batch"] = max(sizes)
    inputs, outputs, notes = _interface(parts)
    batching, why = _batching(parts, inputs, outputs, numbers)
    place_model(parts.half, parts.half_data, place / "1", "model.onnx")
    warmups = _write_warmups(parts.recorded[0], inputs, batching, place / "warmup")
    settings = Settings(parts.name, parts.target, parts.to, batching, numbers["instances"])
    (place / "config.pbtxt").write_text(config_text(settings, inputs, outputs, parts.profile, warmups), "utf-8")
    write_samples(folder / "samples", parts.recording)
    vendor(folder, runtime=True, more=("deploy/oip.py", "deploy/oip_client.py", "deploy/triton_check.py"))
    copy_files("triton", folder, parts, {"repository": REPOSITORY, "batching": batching, "why": why})
    notes.append(f"requests run together up to {batching.most} rows" if batching.most else f"no batching by Triton: {why}")
    if parts.profile is not None and parts.target != "tensorrt" and any(bucket.cuda_graph for bucket in parts.profile.buckets):
        notes.append("the profile's CUDA graphs are left out: Triton's buffers differ from request to request, a graph's do not")
    return tuple(notes)


def _interface(parts: Parts) -> tuple[list[Tensor], list[Tensor], list[Note]]:
    """Return the inputs and outputs as ONNX Runtime reports them: Triton's backend compares the configuration with that."""
    level = parts.profile.level if parts.profile is not None else LEVELS[0]
    shapes: dict[str, tuple[int, ...]] = {}
    notes: list[Note] = []
    try:
        with RuntimeProcess() as process, without_links(parts.half, parts.half_data) as file:
            session = process.open(file, level, CPU)
            for slot in (*session.get_inputs(), *session.get_outputs()):
                shapes[slot.name] = tuple(dim if isinstance(dim, int) else -1 for dim in slot.shape)
    except InputError as error:
        notes.append(f"the model does not load on the CPU, so config.pbtxt has the shapes that it declares: {error}")
    sides = [[_tensor(slot, shapes.get(slot.name)) for slot in side] for side in (parts.inputs, parts.outputs)]
    return sides[0], sides[1], notes


def _tensor(slot: Slot, reported: tuple[int, ...] | None) -> Tensor:
    declared = tuple(dim if isinstance(dim, int) else -1 for dim in slot.dims)
    return Tensor(slot.name, slot.dtype, declared if reported is None else reported)


def _number(name: str, value: str, least: int) -> int:
    """Read a setting.

    Raises:
        UsageError: It is no such number.
    """
    if not re.fullmatch("[0-9]{1,6}", value) or int(value) < least:
        raise UsageError(f"--set {name}={value}", f"a whole number from {least} on")
    return int(value)


def _batching(parts: Parts, inputs: list[Tensor], outputs: list[Tensor], numbers: Mapping[str, int]) -> tuple[Batching, str]:
    """Decide whether Triton may put requests together; if not, say why."""
    if not numbers["max_batch"]:
        return Batching(), "max_batch is 0"
    first = {slot.dims[0] if slot.dims else 1 for slot in parts.inputs}
    if len(first) != 1 or isinstance(next(iter(first)), int):
        return Batching(), "the inputs have no free first dimension in common"
    if any(not tensor.dims or tensor.dims[0] != -1 for tensor in (*inputs, *outputs)):
        return Batching(), "an output has no free first dimension"
    if why := _dependent(parts):
        return Batching(), why
    most = numbers["max_batch"]
    return Batching(most, tuple(size for size in _sizes(parts) if 1 < size <= most), numbers["queue_delay"]), ""


def _sizes(parts: Parts) -> list[int]:
    """Return the batch sizes that the profile was tuned for."""
    buckets = parts.profile.buckets if parts.profile is not None else ()
    return sorted({shape[0] for bucket in buckets for shape in bucket.inputs.values() if shape and shape[0] > 0})


def _dependent(parts: Parts) -> str:
    """Run rows alone and as one batch through the FP32 model; say how what they give differs, "" if it does not."""
    rows = _rows(parts.recorded)
    with evaluate_file(parts.reference, parts.reference_data) as evaluator:
        try:
            alone = [(row, evaluator.run(row, "one row")) for row in rows]
            for order in (alone, alone[::-1]):
                feeds = {name: np.concatenate([row[name] for row, _ in order]) for name in rows[0]}
                together = evaluator.run(feeds, f"{len(rows)} rows as one batch")
                if why := differ([outputs for _, outputs in order], together, [1] * len(rows)):
                    return why
        except InputError as error:
            return str(error)
    return ""


def _rows(recorded: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Return several different rows of one shape."""
    first = recorded[0].inputs
    shapes = {name: array.shape[1:] for name, array in first.items()}
    alike = [sample.inputs for sample in recorded if {name: array.shape[1:] for name, array in sample.inputs.items()} == shapes]
    rows = [
        {name: array[place : place + 1] for name, array in sample.items()}
        for sample in alike for place in range(min(map(len, sample.values())))
    ][:ROWS]  # fmt: skip
    if len(rows) == 1:  # equal rows would hide that they depend on each other
        rows.append({name: np.flip(array, -1) for name, array in rows[0].items()})
    return rows


def _write_warmups(sample: Recorded, inputs: list[Tensor], batching: Batching, folder: Path) -> list[Warmup]:
    """Write the first sample as Triton reads it: of a batch, one row, which it repeats."""
    arrays: Mapping[str, Any] = {name: array[:1] if batching.most else array for name, array in sample.inputs.items()}
    folder.mkdir(parents=True)
    files = []
    for number, tensor in enumerate(inputs):
        array = arrays[tensor.name]
        file = folder / f"input_{number}"
        file.write_bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        files.append((Tensor(tensor.name, tensor.dtype, array.shape[1:] if batching.most else array.shape), file.name))
    sizes = sorted({1, *batching.preferred})
    return [Warmup(f"recorded, {rows} row{'s' if rows > 1 else ''}", rows, tuple(files)) for rows in sizes]


def verify(folder: Path) -> Verified:
    """Check the configuration and run the model, without a server."""
    return run_python(folder)
