"""A process of its own for ONNX Runtime's tools for phones: a model can end it, and the tools set up logging and print.

    python -m halfconv.deploy.ort_tools FILE

The file holds ``[[task, [argument, …]], …]``; in its place come the results, ``{"results": […]}``, or ``{"error": words}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import halfconv
from halfconv.deploy.ort_format import read_ort, required_operators, to_ort
from halfconv.deploy.usability import find_usability
from halfconv.errors import InputError
from halfconv.runtime_process import say_exit

__all__ = ["call"]

#: Seconds that the tasks of a call may take.
TIMEOUT = 600
TASKS: Mapping[str, Callable[..., Any]] = {
    "to_ort": to_ort,
    "read_ort": read_ort,
    "required_operators": required_operators,
    "find_usability": find_usability,
}


def call(*tasks: tuple[str, Sequence[Any]]) -> list[Any]:
    """Have tasks done, one after the other.

    Args:
        tasks: Name and arguments; both are sent as JSON.

    Returns:
        Their results.

    Raises:
        InputError: One fails, or ends the process.
    """
    root = str(Path(halfconv.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *([known] if known else [])])}
    with tempfile.TemporaryDirectory(prefix="halfconv-ort-tools-") as folder:
        file = Path(folder, "tasks.json")
        file.write_text(json.dumps(tasks), "utf-8")
        command = [sys.executable, "-P", "-m", "halfconv.deploy.ort_tools", str(file)]
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, timeout=TIMEOUT, env=environment, cwd=folder, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"ONNX Runtime's tools took more than {TIMEOUT} s") from None
        if done.returncode:
            raise InputError(say_exit(done.returncode))
        answer = json.loads(file.read_text("utf-8"))
    if "error" in answer:
        raise InputError(answer["error"])
    results: list[Any] = answer["results"]
    return results


def main(file: Path) -> None:
    """Do the tasks of a file."""
    answer: dict[str, Any] = {"results": []}
    try:
        for name, arguments in json.loads(file.read_text("utf-8")):
            answer["results"].append(TASKS[name](*arguments))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    file.write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
