"""What one job does: convert, validate, measure. It runs in a process of its own, ``python -m halfconv.sweep.work``.

The process reads a task, one line of JSON, from its standard input, and writes a line for each stage that it begins and one for
the outcome. When its standard input ends, whoever asked is gone, and it ends with all that it has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv import __version__
from halfconv.errors import EnvironmentProblem, HalfconvError, InputError
from halfconv.imports import names_function
from halfconv.locks import lock
from halfconv.progress import Progress, StageClock
from halfconv.sweep.outcome import DRIFTED, FAILED, PASSED, conversion_of, drift_of, finite, outcome, speed_of

if TYPE_CHECKING:
    from halfconv.benchmark import BenchReport
    from halfconv.drift.report import DriftReport
    from halfconv.result import ConvertResult

__all__ = ["START", "WAIT", "work"]

#: The stage in which a worker has said nothing yet.
START = "start"
#: The stage in which a job waits until the machine is quiet; nobody loses patience then.
WAIT = "wait"


def work(task: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Do a job.

    Measuring waits until no other job of this machine converts or validates, and keeps them waiting meanwhile.

    Args:
        task: What `halfconv.sweep.job.Job.task` returns, and ``lock``, the file by which jobs of a machine wait for each other.
        say: Told each stage as it begins.

    Returns:
        The outcome; whatever goes wrong is part of it.
    """
    stage = START
    done: dict[str, Any] = {}

    def began(now: Progress) -> None:
        nonlocal stage
        stage = now.stage
        say(stage)

    clock = StageClock(began)
    try:
        _check_version(task)
        _find_functions(task)
        with clock.stage(WAIT), contextlib.ExitStack() as begun:
            begun.enter_context(_machine(task["lock"], alone=False))
            busy = begun.pop_all()
        with busy:
            with clock.stage("convert"):
                converted = _convert(task)
                done["conversion"], done["notes"] = conversion_of(converted), list(converted.warnings)
            with clock.stage("validate"):
                report = _validate(task)
                done["drift"] = drift_of(report)
        done["notes"] += [warning for warning in report.warnings if warning not in converted.warnings]
        if task["options"]["bench"] and (why_not := _cannot_measure(task, converted)):
            done["notes"].append(f"not measured: {why_not}")
        elif task["options"]["bench"]:
            with clock.stage(WAIT), contextlib.ExitStack() as begun:
                begun.enter_context(_machine(task["lock"], alone=True))
                quiet = begun.pop_all()
            with quiet, clock.stage("bench"):
                done["speed"] = speed_of(_bench(task))
        return outcome(task, PASSED if report.passed else DRIFTED, seconds=clock.seconds, **done)
    except HalfconvError as error:
        kind, message = type(error).__name__, str(error)
    except MemoryError:
        kind, message = "MemoryError", "memory ran out; try: fewer jobs at once, --jobs 1 --retry-failed"
    except Exception as error:
        kind, message = type(error).__name__, " ".join(f"internal error: {type(error).__name__}: {error}".split())
    return outcome(task, FAILED, stage=stage, kind=kind, message=message, seconds=clock.seconds, **done)


def _check_version(task: Mapping[str, Any]) -> None:
    if task["halfconv"] != __version__:
        raise EnvironmentProblem(
            f"the sweep was started by halfconv {task['halfconv']}, and this worker has {__version__}", "one version everywhere"
        )


def _find_functions(task: Mapping[str, Any]) -> None:
    """Let modules beside the fleet file be found, where it names functions."""
    options = task["options"]
    if any(names_function(text) for text in (options["samples"] or "", *options["metric"])) and task["folder"] not in sys.path:
        sys.path.append(task["folder"])


def _convert(task: Mapping[str, Any]) -> ConvertResult:
    from halfconv.pipeline import convert

    options, output = task["options"], Path(task["output"])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"cannot make the folder {output.parent}: {error.strerror or error}", "another --out") from None
    result = convert(
        task["model"], output, to=task["to"], target=task["target"], half_io=options["half_io"],
        block_ops=options["block_op"], block_nodes=options["block_node"], block_scopes=options["block_scope"],
        block_patterns=options["block_pattern"], allow_ops=options["allow_op"], allow_nodes=options["allow_node"],
        block_list=options["block_list"], fuse=options["fuse"], external_data=options["external_data"],
        allow_links=options["allow_links"], samples=options["samples"], tolerance=options["tolerance"] or None,
        tolerance_file=options["tolerance_file"], metrics=options["metric"], repair=options["repair"],
        time_limit=options["time_limit"], seed=options["seed"],
    )  # fmt: skip
    if result.plan is not None and result.plan.source_sha256 != task["sha256"]:
        raise InputError(f"{task['model']}: changed since the sweep began", "let nothing write it, and sweep again")
    return result


def _validate(task: Mapping[str, Any]) -> DriftReport:
    from halfconv.drift.compare import validate

    options = task["options"]
    return validate(
        task["model"], task["output"], samples=options["samples"], tolerance=options["tolerance"] or None,
        tolerance_file=options["tolerance_file"], on=options["on"], metrics=options["metric"], seed=options["seed"],
        allow_links=options["allow_links"],
    )  # fmt: skip


def _bench(task: Mapping[str, Any]) -> BenchReport:
    from halfconv.benchmark import bench

    options = task["options"]
    return bench(
        [task["model"], task["output"]], batches=options["batch"], samples=options["samples"], provider=options["provider"],
        seconds=options["seconds"], seed=options["seed"],
    )  # fmt: skip


def _cannot_measure(task: Mapping[str, Any], converted: ConvertResult) -> str:
    """Say why a model that is right cannot be run here; "" if it can."""
    if converted.check is not None and converted.check.loaded is None:
        return "no session was tried, either"
    return "ONNX Runtime follows no links to weights" if task["options"]["allow_links"] is not None else ""


@contextlib.contextmanager
def _machine(file: str, *, alone: bool) -> Iterator[None]:
    """Keep a machine busy, or have it alone, among the jobs of one user; where it has no locks, nobody waits.

    Args:
        file: What is locked.
        alone: Whether all others wait; else only those wait that want to be alone.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(file, flags, 0o600)
    except OSError:
        yield
        return
    try:
        lock(descriptor, wait=True, shared=not alone)
        yield
    finally:
        os.close(descriptor)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the runtime prints is no answer
    task = json.loads(sys.stdin.buffer.readline())

    def tell(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(finite(message), allow_nan=False) + "\n")
        answers.flush()

    threading.Thread(target=_end_with_parent, args=(task["scratch"],), daemon=True).start()
    tell({"outcome": work(task, lambda stage: tell({"stage": stage}))})


def _end_with_parent(scratch: str) -> None:
    """Wait until standard input ends, and end this process with all that it has started and its temporary files."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    shutil.rmtree(scratch, ignore_errors=True)
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    _serve()
