"""Virtual environments with other packages of ONNX Runtime than the tests', built once, in the folder of the benchmark's.

They hold the runtime alone. Everything else comes from this environment, through a folder of links that leaves the runtime out.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import VENVS, build
from halfconv.locks import lock

ROOT = Path(__file__).parents[1]
#: What is not linked: the runtime, those who bring it, and what an editable installation leaves.
LEFT_OUT = ("onnxruntime", "ort_", "magika", "halfconv", "_")


def pins() -> dict[str, str]:
    """The requirements of constraints.txt by package."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return {line.partition("==")[0]: line for line in lines if "==" in line}


def with_runtimes(name: str, packages: Sequence[str], folder: Path) -> Path:
    """The interpreter of an environment with these packages, installed one after another without their dependencies."""
    files = [folder / f"{number}.nodeps.txt" for number in range(len(packages))]
    for path, package in zip(files, packages, strict=True):
        path.write_text(pins()[package] + "\n", "utf-8")
    VENVS.mkdir(parents=True, exist_ok=True)
    with (VENVS / f"{name}.lock").open("w") as file:  # tests in another process may want it, too
        lock(file, wait=True)
        return build(name, files)


def links(folder: Path) -> Path:
    """A folder with links to this environment's packages."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.lower().startswith(LEFT_OUT) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def run(python: Path, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run halfconv's command line there."""
    return execute(python, packages, "-m", "halfconv", *arguments)


def execute(python: Path, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python there."""
    known = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "LD_LIBRARY_PATH", "FORCE_COLOR")}
    known |= {"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT))), "COLUMNS": "200", "PYTHONUTF8": "1"}
    command = [str(python), *arguments]
    return subprocess.run(command, env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
