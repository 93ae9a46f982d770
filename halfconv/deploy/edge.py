"""The package ``edge``: a folder for a Linux box, with runtime, model, example and HTTP service."""

from __future__ import annotations

from pathlib import Path

from halfconv.deploy.parts import Note, Options, Parts, place_model
from halfconv.deploy.recorded import write_samples
from halfconv.deploy.running import Verified, run_python
from halfconv.deploy.templates import copy_files
from halfconv.deploy.vendoring import vendor

__all__ = ["verify", "write"]


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
    vendor(folder, runtime=True)
    copy_files("edge", folder, parts)
    return ()


def verify(folder: Path) -> Verified:
    """Run the package's ``verify.py``."""
    return run_python(folder)
