"""The package ``web``: onnxruntime-web, with a loader that takes what the browser can run, and a page that verifies the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfconv.deploy.chunks import Chunked, place_chunked
from halfconv.deploy.parts import Note, Options, Parts
from halfconv.deploy.recorded import write_samples
from halfconv.deploy.running import Verified
from halfconv.deploy.templates import copy_files
from halfconv.runtime.settings import LEVELS

__all__ = ["RUNTIME", "verify", "write"]

#: The release of onnxruntime-web that the package names, and that the tests ran with.
RUNTIME = "1.30.0"
#: Bytes of a file from which weights go into several: a browser hashes and holds each as a whole, and hosts of pages have limits.
CHUNK = 64 * 10**6
#: Bytes of the largest file, whatever the user asks: protobuf writes no model of 2 GiB, and browsers hold no array of it.
MOST = 2 * 10**9
#: Bytes of a model above which it hardly fits WebAssembly's memory of 4 GiB, in which it is held twice while it is loaded.
LARGE = 1_500_000_000


def write(parts: Parts, folder: Path, options: Options) -> tuple[Note, ...]:
    """Write the package.

    Args:
        parts: What it is made from.
        folder: Where.
        options: What the user asks; `chunk_bytes` bounds the files.

    Returns:
        Sentences for the report.
    """
    most = min(options.chunk_bytes or CHUNK, MOST)
    half = place_chunked(parts.half, parts.half_data, folder / "models", f"{parts.name}.fp16", most)
    full = place_chunked(parts.reference, parts.reference_data, folder / "models", f"{parts.name}.fp32", most)
    write_samples(folder / "samples", parts.recording)
    content = {
        "schema_version": 1, "runtime": RUNTIME, "min_ort": parts.min_ort,
        "inputs": [{"name": slot.name, "dtype": slot.dtype} for slot in parts.inputs],
        "outputs": [slot.name for slot in parts.outputs],
        "models": {
            "half": _entry(half, folder, parts.profile.level if parts.profile is not None else LEVELS[0]),
            "fp32": _entry(full, folder, LEVELS[0]),
        },
    }  # fmt: skip
    (folder / "web.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    copy_files("javascript", folder, parts)
    copy_files("web", folder, parts, {"runtime": RUNTIME, "sizes": {"half": parts.half_bytes, "fp32": parts.reference_bytes}})
    return tuple(_notes(parts, half, full, most))


def _entry(placed: Chunked, folder: Path, level: str) -> dict[str, Any]:
    """Describe a model as the loader reads it."""
    data = [{"path": path.name, "file": path.relative_to(folder).as_posix()} for path in placed.data]
    return {"file": placed.file.relative_to(folder).as_posix(), "data": data, "level": level}


def _notes(parts: Parts, half: Chunked, full: Chunked, most: int) -> list[Note]:
    notes = []
    if (largest := max(half.largest, full.largest)) > most:
        notes.append(f"a file has {largest:,} bytes, more than {most:,}: a tensor, or the graph itself, is that large")
    if parts.reference_bytes > LARGE:
        notes.append(f"the FP32 model has {parts.reference_bytes:,} bytes, which WebAssembly's memory of 4 GiB may not hold")
    return notes


def verify(folder: Path) -> Verified:
    """Say how a person verifies it: in the browser that it is for."""
    words = "a browser does: npm install --ignore-scripts && npm start in the package, and open the address that it prints"
    return Verified(False, False, words)
