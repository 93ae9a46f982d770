"""The run profile beside a converted model: how to load it fast on its target."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from halfconv.check import CheckResult
from halfconv.storage import atomic_text

__all__ = ["file_sha256", "profile_path", "write_profile"]

#: Target -> providers, best first; options stay the providers' own until `bench --tune` measures better ones.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "portable": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
    "xnnpack": ("XnnpackExecutionProvider", "CPUExecutionProvider"),
    "qnn": ("QNNExecutionProvider", "CPUExecutionProvider"),
    "web": ("WebGpuExecutionProvider", "CPUExecutionProvider"),
}


def profile_path(model: Path) -> Path:
    """Return where a model's profile lies."""
    return model.with_name(model.name + ".profile.json")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_profile(model: Path, target: str, checked: CheckResult | None) -> Path:
    """Write the profile of a model that was just converted.

    Args:
        model: The file, under its temporary name; the profile moves to its place with it.
        target: Where it will run.
        checked: The result of its checks; None if they were left out.

    Returns:
        The profile's path.
    """
    content: dict[str, Any] = {
        "schema_version": 1,
        "model_sha256": file_sha256(model),
        "target": target,
        "graph_optimization": (checked.level if checked and checked.level else "ORT_ENABLE_ALL"),
        "providers": [{"name": name, "options": {}} for name in PROVIDERS[target]],
        "buckets": [],
        "measured": [],
        "tolerance": None,
        "ort_version": checked.ort_version if checked and checked.ort_version else None,
    }
    path = profile_path(model)
    atomic_text(path, json.dumps(content, indent=2) + "\n")
    return path
