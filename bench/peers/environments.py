"""The tools of the benchmark: how each is run, and the virtual environment that it runs in.

A peer ``NAME`` has ``NAME.txt``, its pinned requirements, and may have ``NAME.nodeps.txt``, which is installed after
them without dependencies. Its environment is ``~/.cache/halfconv-bench/venvs/NAME``, built on first use and again
whenever these files or the Python version change. halfconv runs in the interpreter that runs the benchmark.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VENVS = Path.home() / ".cache" / "halfconv-bench" / "venvs"
HALFCONV = "halfconv"
PACKAGES = (
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxconverter-common",
    "nvidia-modelopt",
    "olive-ai",
    "numpy",
    "protobuf",
    "torch",
    "timm",
    "transformers",
)
_VERSIONS = """
import importlib.metadata as m, json, sys
print(json.dumps({p: v for p in sys.argv[1:] for v in [next((d.version for d in m.distributions(name=p)), None)] if v}))
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """One converter.

    Attributes:
        who: Its name in benchmark files.
        script: The script in this folder that times its call.
    """

    who: str
    script: str

    def requirements(self) -> list[Path]:
        """Its requirement files, in the order of installation; none for halfconv."""
        return [path for path in (HERE / f"{self.who}.txt", HERE / f"{self.who}.nodeps.txt") if path.is_file()]

    def python(self, here: bool) -> str:
        """The interpreter to run it with, its environment built if need be.

        Args:
            here: Whether to use the current interpreter and build nothing.

        Returns:
            The interpreter's path.

        Raises:
            subprocess.CalledProcessError: The environment cannot be built.
        """
        files = self.requirements()
        return sys.executable if here or not files else str(build(self.who, files))

    def call(self, python: str, source: Path, output: Path, report: Path, *more: str) -> list[str]:
        """The command that converts in process and writes its ``call_seconds`` to ``report``."""
        return [python, str(HERE / self.script), str(source), str(output), str(report), *more]


TOOLS = {
    tool.who: tool
    for tool in (
        Tool(HALFCONV, "run_halfconv.py"),
        Tool("onnxconverter-common", "run_onnxconverter_common.py"),
        Tool("ort-float16", "run_ort_float16.py"),
        Tool("modelopt", "run_modelopt.py"),
    )
}

#: Those that are only compared on large models.
LARGE = {tool.who: tool for tool in (Tool("olive", "run_olive.py"),)}

#: Those that are only compared on a GPU.
FUSED = {tool.who: tool for tool in (Tool("ort-optimizer", "run_ort_optimizer.py"),)}

#: Those that take samples.
SAMPLED = {
    tool.who: tool
    for tool in (
        Tool(HALFCONV, "sampled_halfconv.py"),
        Tool("onnxconverter-common", "sampled_onnxconverter_common.py"),
        Tool("onnxconverter-common+simulation", "sampled_onnxconverter_common_simulated.py"),
        Tool("modelopt", "sampled_modelopt.py"),
    )
}


def versions(who: str, python: str) -> dict[str, str]:
    """Find what a tool is and runs on.

    Args:
        who: The tool's name; of halfconv, its own version and commit are added.
        python: Its interpreter.

    Returns:
        Version by package, those absent left out.
    """
    done = subprocess.run([python, "-c", _VERSIONS, *PACKAGES], capture_output=True, text=True, check=True)
    result = dict(json.loads(done.stdout))
    if who == HALFCONV:
        source = (ROOT / "halfconv" / "__init__.py").read_text(encoding="utf-8")
        if found := re.search(r'^__version__ = "(.*)"', source, re.MULTILINE):
            result["halfconv"] = found[1]
        with contextlib.suppress(OSError):  # a machine may have no git
            git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
            if git.returncode == 0:
                result["commit"] = git.stdout.strip()
    return result


def build(name: str, files: list[Path]) -> Path:
    """Build a virtual environment unless it is there and up to date.

    Args:
        name: Its folder's name.
        files: Requirement files, installed one after another; those named ``*.nodeps.txt`` without dependencies.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: It cannot be built.
    """
    folder = VENVS / name
    python, stamp = folder / "bin" / "python", folder / "halfconv-bench.sha256"
    wanted = hashlib.sha256(sys.version.encode() + b"".join(path.read_bytes() for path in files)).hexdigest()
    if python.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"building the environment of {name} in {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for path in files:
        alone = ["--no-deps"] if path.name.endswith(".nodeps.txt") else []
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *alone, "-r", str(path)], check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return python
