"""Small fleets: models, samples, modules whose functions misbehave, and the command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import tomli_w
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]

#: Functions that give samples, or do something worse. What they did is counted in files beside this module.
EVIL = '''
import os, signal, sys, tempfile, time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent
GOOD = [{"x": np.ones((2, 8), np.float32)}]

def count(name):
    with (HERE / f"{name}.calls").open("a") as file:
        file.write(f"{os.getpid()}\\n")

def crash():
    count("crash")
    os.kill(os.getpid(), signal.SIGSEGV)

def crash_once():
    first = not (HERE / "crash_once.calls").exists()
    count("crash_once")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return GOOD

def leave():
    count("leave")
    print("no more wishes", file=sys.stderr, flush=True)
    os._exit(3)

def hang():
    count("hang")
    time.sleep(600)

def wait():
    if not (HERE / "go").exists():
        Path(tempfile.gettempdir(), f"left-{len(list(HERE.glob('wait.calls'))) + 1}").touch()
    count("wait")
    while not (HERE / "go").exists():
        time.sleep(0.05)
    return GOOD

def memory():
    raise MemoryError

def shout():
    os.write(1, b"{\\"outcome\\": 1}\\n")
    return GOOD
'''


def save_model(path: Path, seed: int = 0, *, external: bool = False, scale: float = 0.2) -> Path:
    """Save x → MatMul → Relu → MatMul → y with random weights."""
    weights = np.random.default_rng(seed).normal(0, scale, (2, 8, 8)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "act"),
            helper.make_node("MatMul", ["r", "w1"], ["y"], "second"),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 8])],
        [info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights[0], "w0"), numpy_helper.from_array(weights[1], "w1")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def save_samples(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32))
    return path


def save_fleet(path: Path, *models: dict[str, Any], **options: Any) -> Path:
    """Save a fleet file; nothing is measured unless the options say so."""
    path.write_text(tomli_w.dumps({"bench": False, **options, "models": list(models)}), "utf-8")
    return path


def save_evil(folder: Path) -> None:
    (folder / "evil.py").write_text(EVIL, "utf-8")


def calls(folder: Path, name: str) -> int:
    """In how many processes a function of `EVIL` was called."""
    file = folder / f"{name}.calls"
    return len(set(file.read_text().split())) if file.exists() else 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start ``halfconv sweep`` in a process of its own, which Ctrl-C ends even where the tests run in a shell's background."""
    command = [sys.executable, "-m", "halfconv", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def workers(driver: int) -> list[psutil.Process]:
    """The processes of jobs that a driver has started."""
    found = []
    for process in psutil.Process(driver).children():
        try:
            if "halfconv.sweep.work" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def results(out: Path) -> dict[str, dict[str, Any]]:
    """What the files of outcomes hold, by file name."""
    return {file.name: json.loads(file.read_text("utf-8")) for file in sorted(out.rglob("*.result.json"))}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """What tells each file of outcomes from one that was written again."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.rglob("*.result.json")}


def unfinished(out: Path) -> Iterator[Path]:
    """Files that nobody finishes."""
    return (path for path in out.rglob("*") if path.name.endswith((".tmp", ".part")) or ".tmp." in path.name)
