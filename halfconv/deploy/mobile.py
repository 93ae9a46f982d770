"""The package ``mobile``: FP16 for phones, an FP32 twin in ORT format, and project skeletons for Android and iOS."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.filesize import decimal

from halfconv.deploy.ort_tools import call
from halfconv.deploy.parts import Note, Options, Parts, place_model
from halfconv.deploy.recorded import write_samples
from halfconv.deploy.running import Verified, run_python
from halfconv.deploy.templates import copy_files
from halfconv.deploy.usability import Usability
from halfconv.deploy.vendoring import vendor
from halfconv.errors import CheckFailed, InputError
from halfconv.profile import file_sha256

__all__ = ["check_twin", "verify", "write"]

#: Releases that the project skeletons ask for, and the oldest that will do for a newer model.
ANDROID, SWIFT = "1.27.0", "1.24.2"
#: Element types for which ONNX Runtime's bindings for Swift have a name.
SWIFT_TYPES = {
    "float32": "float", "int8": "int8", "uint8": "uInt8", "int32": "int32", "uint32": "uInt32", "int64": "int64",
    "uint64": "uInt64",
}  # fmt: skip
#: A flatbuffer cannot be larger, in bytes.
LARGEST = (1 << 31) - 1
_LISTS = ("partitions", "partitions_if_fixed", "unsupported", "caveats")


def write(parts: Parts, folder: Path, options: Options) -> tuple[Note, ...]:
    """Write the package.

    Args:
        parts: What it is made from.
        folder: Where.
        options: What the user asks.

    Returns:
        Sentences for the report.

    Raises:
        InputError: ONNX Runtime's converter cannot read the FP32 model.
        CheckFailed: The twin would hold half precision.
    """
    notes: list[Note] = []
    half = place_model(parts.half, parts.half_data, folder / "model", parts.model_name)
    twin = folder / "model" / f"{parts.name}.fp32.ort"
    reduced = folder / "reduced"
    reduced.mkdir()
    if parts.reference_bytes > LARGEST:
        raise InputError(
            f"{parts.reference}: {parts.reference_bytes:,} bytes, and a model in ORT format has at most 2 GB",
            "another package, such as edge",
        )
    with tempfile.TemporaryDirectory(prefix="halfconv-ort-") as work:
        copy = place_model(parts.reference, parts.reference_data, Path(work, "fp32"), f"{parts.name}.fp32.onnx")
        made = copy.with_suffix(".ort")
        asked = (("to_ort", (str(copy), "all", True)), ("read_ort", (str(made),)))
        looked = tuple(("find_usability", (str(path), name)) for path, name in ((half, half.name), (copy, twin.name)))
        try:
            converted, held, *usability = call(*asked, *looked)
        except InputError as error:
            raise InputError(f"{parts.reference}: ONNX Runtime's tools for phones fail: {error}", "another package") from None
        shutil.copyfile(made, twin)
        check_twin(twin, held)
        shutil.copyfile(converted["operators"], reduced / "fp32.required_operators_and_types.config")
        notes += _half_operators(parts, Path(work), made, reduced / "all.required_operators.config")
    found = [Usability(**{**entry, **{key: tuple(entry[key]) for key in _LISTS}}) for part in usability for entry in part]
    write_samples(folder / "samples", parts.recording)
    content = {"schema_version": 1, "fixed": dict(options.fixed), "usability": [asdict(entry) for entry in found]}
    (folder / "usability.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    vendor(folder, runtime=False)
    sizes = {"onnx": parts.reference_bytes, "half": parts.half_bytes, "ort": twin.stat().st_size}
    if unknown := sorted({slot.dtype for slot in (*parts.inputs, *parts.outputs)} - SWIFT_TYPES.keys()):
        notes.append(f"ONNX Runtime's bindings for Swift have no {', '.join(unknown)}: the iOS skeleton cannot run this model")
    more = {
        "twin": twin.name, "sizes": sizes, "decimal": decimal, "usability": found, "fixed": dict(options.fixed),
        "android_version": _newer(ANDROID, parts.min_ort), "swift_version": _newer(SWIFT, parts.min_ort),
        "version": "".join(file_sha256(file)[:8] for file in (half, twin)), "swift_types": SWIFT_TYPES,
        "files": sorted({half.name, twin.name, *parts.half_data}),
    }  # fmt: skip
    copy_files("mobile", folder, parts, more)
    free = sorted({dim for slot in parts.inputs for dim in slot.dims if isinstance(dim, str)})
    if free:
        notes.append(f"inputs have free dimensions ({', '.join(free)}), which NPUs do not take; --fix NAME=SIZE gives them a size")
    notes.append(
        f"sizes: FP32 {decimal(sizes['onnx'])}, {parts.to} {decimal(sizes['half'])}, FP32 in ORT format {decimal(sizes['ort'])}"
    )
    notes += [_sentence(entry) for entry in found if entry.model == half.name]
    notes.append("the Android and iOS projects were not built, and nothing was run on a device")
    return tuple(notes)


def verify(folder: Path) -> Verified:
    """Run the package's ``verify.py``: both models in ONNX Runtime for Python, on the CPU."""
    return run_python(folder)


def check_twin(path: Path, held: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse a twin that would not be FP32.

    Args:
        path: The file, for the message.
        held: What `halfconv.deploy.ort_format.read_ort` found.

    Raises:
        CheckFailed: It holds half precision.
    """
    half = sum(held[part].get(name, 0) for part in ("weights", "values") for name in ("FLOAT16", "BFLOAT16"))
    if half:
        raise CheckFailed(f"{path.name}: {half} weights and values are in half precision, which an FP32 twin must not hold")


def _half_operators(parts: Parts, work: Path, twin: Path, target: Path) -> tuple[Note, ...]:
    """List what both models need: the converted one as it is and as ONNX Runtime changes it on the CPU."""
    copies = [place_model(parts.half, parts.half_data, work / level, parts.model_name) for level in ("disable", "all")]
    made = [copies[0].with_suffix(".disable.ort"), copies[1].with_suffix(".ort")]
    tasks = [("to_ort", (str(copy), copy.parent.name, False)) for copy in copies]
    try:
        call(*tasks, ("required_operators", ([str(twin), *map(str, made)], str(target))))
    except InputError as error:
        call(("required_operators", ([str(twin)], str(target))))
        return (f"{target.name} lists the operators of the FP32 twin only: {error}",)
    return ()


def _newer(version: str, least: str) -> str:
    """Return the later release; the oldest that will do may have two numbers, or be a development version."""

    def key(text: str) -> tuple[int, ...]:
        return (*(int(part) for part in text.split(".")[:3] if part.isdecimal()), 0, 0)[:3]

    return version if key(version) >= key(least) else ".".join(map(str, key(least)))


def _sentence(entry: Usability) -> Note:
    if not entry.covered or entry.note:
        return f"{entry.provider}: {entry.note}"
    plural = "" if len(entry.partitions) == 1 else "s"
    words = f"{entry.provider}: {entry.supported} of {entry.nodes} nodes in {len(entry.partitions)} partition{plural}"
    if entry.supported_if_fixed != entry.supported:
        words += f"; with all dimensions fixed {entry.supported_if_fixed} in {len(entry.partitions_if_fixed)}"
    return f"{words}; worth trying: {entry.verdict} (by operators and shapes, types are not looked at)"
