"""What is known of the library of CUDA kernels on this machine: `halfconv kernels info`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.runtime.installation import runtime_version
from halfconv.runtime.kernels import KERNELS_VERSION, VARIABLE, library

__all__ = ["KernelsReport", "kernels_report"]


@dataclass(frozen=True, slots=True)
class KernelsReport:
    """Where the library is.

    Attributes:
        library: The library that sessions on CUDA register; None if there is none.
        named: Whether the environment variable named it, or said that there is none.
        exists: Whether there is such a file.
        runtime: The installed ONNX Runtime package and its version; empty if there is none.
    """

    library: Path | None
    named: bool
    exists: bool
    runtime: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data (``kernels info --json`` and ``kernels build --json``)."""
        return {
            "schema_version": 1,
            "version": KERNELS_VERSION,
            "library": str(self.library) if self.library is not None else None,
            "named": self.named,
            "exists": self.exists,
            "runtime": self.runtime,
        }

    def sentence(self) -> str:
        """Say it in one line."""
        where = f", named by {VARIABLE}" if self.named else ""
        if self.library is None:
            return f"CUDA kernels: none{where}" + ("" if self.named else "; halfconv kernels build makes them")
        return f"CUDA kernels: {self.library}{where}" + ("" if self.exists else ": there is no such file")


def kernels_report() -> KernelsReport:
    """Look for the library, without loading it."""
    found, runtime = library(), " ".join(runtime_version()).strip()
    return KernelsReport(found, VARIABLE in os.environ, found is not None and found.is_file(), runtime)
