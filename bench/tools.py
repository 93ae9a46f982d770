"""Runs one tool on one model in a process of its own, and has the model that it wrote judged in another.

Nothing outside the standard library is imported: the measuring process stays small (see ``machine.py``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import models
from bench.machine import Usage, measure
from bench.peers.environments import Tool

ROOT = Path(__file__).resolve().parent.parent
RAISED = r"[\w.]*(Error|Exception|Fail\w*|InvalidArgument|InvalidGraph|NotImplemented)\b"
TEMPORARY = "halfconv-bench-"
Row = dict[str, object]


class Failed(Exception):
    """A tool did not convert; the message says why in one line."""


def reason(usage: Usage, stderr: str) -> str:
    """Say in one line why a command failed: its exception if it printed one, else its last words.

    Args:
        usage: How it ended.
        stderr: What it wrote to standard error.

    Returns:
        At most 240 characters.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(RAISED, line)]
    said = (raised or lines or [""])[-1]
    if usage.timed_out or usage.returncode < 0 or not said:
        return str(usage.failure)
    return re.sub(rf"\S*/{TEMPORARY}\w+/", "", said).replace(str(Path.home()), "~")[:240]


def measured(
    command: Sequence[str], folder: Path, timeout: float, fine: Sequence[int] = (0,), imports: Sequence[str] = ()
) -> tuple[Usage, str]:  # fmt: skip
    """Measure a command that must succeed.

    Args:
        command: The program and its arguments; this interpreter finds this clone's halfconv.
        folder: Where its output is kept meanwhile.
        timeout: Seconds after which it is killed.
        fine: Exit codes that are no failure.
        imports: Folders that this interpreter searches first.

    Returns:
        What it cost, and its standard output.

    Raises:
        Failed: It did not succeed.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    found = os.pathsep.join(filter(None, (*imports, str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": found} if command[0] == sys.executable else {}
    usage = measure(command, stdout=out, stderr=err, timeout=timeout, cwd=ROOT, env=env)
    if usage.timed_out or usage.returncode not in fine:
        raise Failed(reason(usage, err.read_text(errors="replace")))
    return usage, out.read_text(errors="replace")


def interpreters(tools: Sequence[Tool], here: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Build the environments of tools.

    Args:
        tools: The tools.
        here: Whether to use the current interpreter for all and build nothing.

    Returns:
        Tool -> its interpreter, and tool -> why it has none.
    """
    pythons: dict[str, str] = {}
    broken: dict[str, str] = {}
    for tool in tools:
        try:
            pythons[tool.who] = tool.python(here)
        except (OSError, subprocess.CalledProcessError) as error:
            broken[tool.who] = f"its environment cannot be built: {error}"[:240]
    return pythons, broken


def judge(case: models.Case, output: Path, timeout: float) -> Row:
    """Judge a converted model in a process of its own, which may crash.

    Args:
        case: The model that was converted, and its sample.
        output: The converted model.
        timeout: Seconds after which the process is killed.

    Returns:
        What ``judge.py`` found; ``loads`` or ``runs`` is False if the process died there.
    """
    out, err = output.parent.parent / "judge.txt", output.parent.parent / "judge.err"
    command = [sys.executable, str(ROOT / "bench" / "judge.py"), str(case.model), str(output)]
    usage = measure([*command, *([str(case.sample)] if case.sample else [])], stdout=out, stderr=err, timeout=timeout)
    row: Row = {}
    for line in out.read_text(encoding="utf-8").splitlines():
        row |= json.loads(re.sub(rf"\S*/{TEMPORARY}\w+/", "", line))
    for stage in ("checker", "loads", "runs"):
        if stage not in row:
            row[stage] = False
            row[f"{stage}_error"] = reason(usage, err.read_text(errors="replace"))
            row |= {later: False for later in ("loads", "runs") if later not in row}
            break
    return row


def model_bytes(model: Path) -> int:
    """The size of a model that has its folder to itself, external data included, side files left out."""
    return sum(path.stat().st_size for path in model.parent.iterdir() if path.suffix not in {".json", ".npz", ".npy"})
