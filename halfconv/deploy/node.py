"""The package ``node``: the model with onnxruntime-node, as an ES module."""

from __future__ import annotations

import shutil
from pathlib import Path

from halfconv.deploy.parts import Note, Options, Parts, place_model
from halfconv.deploy.recorded import write_samples
from halfconv.deploy.running import Verified, run_verification
from halfconv.deploy.templates import copy_files

__all__ = ["ONNXRUNTIME_NODE", "verify", "write"]

#: The release of onnxruntime-node that the tests ran with.
ONNXRUNTIME_NODE = "1.30.0"


def write(parts: Parts, folder: Path, options: Options) -> tuple[Note, ...]:
    """Write the package.

    Args:
        parts: What it is made from.
        folder: Where.
        options: What the user asks.

    Returns:
        Sentences for the report.
    """
    place_model(parts.half, parts.half_data, folder / "model", parts.model_name, parts.profile_file)
    write_samples(folder / "samples", parts.recording)
    copy_files("javascript", folder, parts)
    copy_files("node", folder, parts, {"onnxruntime_node": ONNXRUNTIME_NODE})
    return ()


def verify(folder: Path) -> Verified:
    """Run the package's ``verify.mjs``, if Node.js finds onnxruntime-node above the package."""
    if shutil.which("node") is None:
        return Verified(False, False, "Node.js is not here; there: npm install, then node verify.mjs")
    if not any((parent / "node_modules" / "onnxruntime-node").is_dir() for parent in folder.absolute().parents):
        return Verified(False, False, "onnxruntime-node is not installed here; in the package: npm install, then node verify.mjs")
    return run_verification(folder, ["node", "verify.mjs"])
