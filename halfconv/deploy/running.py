"""Run a package's own verification, in its own runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfconv.check import CUDA
from halfconv.deploy.manifest import read_manifest

__all__ = ["Verified", "run_python", "run_verification"]

#: Seconds that a verification may take.
TIMEOUT = 600


@dataclass(frozen=True, slots=True)
class Verified:
    """What a package's verification said.

    Attributes:
        ran: Whether its runtime is here, so that it ran.
        passed: Whether the recorded outputs were met; False if it did not run.
        words: What it said, or why it did not run.
    """

    ran: bool
    passed: bool
    words: str


def run_verification(folder: Path, command: Sequence[str]) -> Verified:
    """Run a command in a package, without this process's Python path.

    Args:
        folder: The package.
        command: What to run there; exit code 0 says passed.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            list(command), cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=TIMEOUT,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verified(True, False, f"{command[0]} took more than {TIMEOUT} s")
    said = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip()
    return Verified(True, done.returncode == 0, said[-4000:])


def run_python(folder: Path) -> Verified:
    """Run a package's ``verify.py`` with this Python; it sees no halfconv but its own.

    A BF16 model needs a GPU, as ONNX Runtime's CPU provider loads none.
    """
    import onnxruntime

    if read_manifest(folder)["to"] == "bf16" and CUDA not in onnxruntime.get_available_providers():
        return Verified(False, False, "BF16 needs a CUDA GPU, which is not here; there: python verify.py")
    return run_verification(folder, [sys.executable, "-I", "-B", "verify.py"])
