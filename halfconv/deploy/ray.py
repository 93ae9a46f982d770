"""The package ``ray``: a Ray Serve application that speaks the Open Inference Protocol, and a client that tries again."""

from __future__ import annotations

from pathlib import Path

from halfconv.deploy.parts import Note, Options, Parts, place_model
from halfconv.deploy.recorded import write_samples
from halfconv.deploy.running import Verified, run_python
from halfconv.deploy.templates import copy_files
from halfconv.deploy.vendoring import vendor

__all__ = ["RUNTIME", "verify", "write"]

#: The release of Ray that the tests ran with.
RUNTIME = "2.60.0"


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
    vendor(folder, runtime=True, more=("deploy/oip.py", "deploy/oip_client.py", "deploy/oip_server.py"))
    copy_files("ray", folder, parts, {"ray": RUNTIME})
    return ()


def verify(folder: Path) -> Verified:
    """Run the model as a replica does, without Ray: to start a cluster is the user's decision."""
    return run_python(folder)
