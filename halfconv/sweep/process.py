"""Run a job in a process of its own: a crash, too little memory or a model that never ends is that job's outcome."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from halfconv.sweep.outcome import ENVIRONMENT, FAILED, outcome
from halfconv.sweep.work import START, WAIT

__all__ = ["Runner"]

#: A job whose process ended is begun so often; one that takes too long is not begun again.
ATTEMPTS = 2
#: The file whose lock says that a job of this user is measuring on this machine, or that none must.
_LOCK = f"halfconv-sweep-{getattr(os, 'getuid', lambda: 0)()}.lock"
#: Characters of what a process wrote last that its outcome tells.
_TOLD = 200


class Runner:
    """Runs jobs, one at a time; `stop` may be called from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """Run a job to its end.

        Args:
            task: What `halfconv.sweep.job.Job.task` returns.

        Returns:
            The outcome; None if `stop` was called.
        """
        stage, ended, last = START, "", ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found, stage, ended, last = self._attempt(task)
            except OSError as error:
                words = f"its process cannot be started: {error.strerror or error}"
                advice = f"; try: free memory, or space in {tempfile.gettempdir()}"
                return outcome(task, FAILED, stage=START, kind=ENVIRONMENT, message=words + advice, attempts=attempt)
            if self._stopped:
                return None
            if found is not None:
                return {**found, "attempts": attempt}
            if ended == "TimeOut":
                words = f"took more than {task['options']['timeout']:g} s in stage {stage}; "
                words += "try: a larger timeout in the fleet file, and --retry-failed"
                return outcome(task, FAILED, stage=stage, kind="TimeOut", message=words, attempts=attempt)
        advice = "; try: fewer jobs at once, --jobs 1 --retry-failed, if memory ran out" if ended == "SIGKILL" else ""
        words = f"its process ended {ATTEMPTS} times, the last time in stage {stage} ({ended}){last}{advice}"
        return outcome(task, FAILED, stage=stage, kind="ProcessEnded", message=words, attempts=ATTEMPTS)

    def stop(self) -> None:
        """End the process that runs, with all that it has started; none is started any more."""
        self._stopped = True
        self._kill(threading.Event())

    def _attempt(self, task: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str, str, str]:
        """Return the outcome, or None; the last stage; how the process ended without one; and what it said last."""
        stage, late = START, threading.Event()
        # What a process that is ended leaves of its temporary files goes with the folder.
        folder = tempfile.TemporaryDirectory(prefix="halfconv-job-", ignore_cleanup_errors=True)
        with folder as scratch, tempfile.TemporaryFile() as errors:
            place = {"scratch": scratch, "lock": str(Path(tempfile.gettempdir()) / _LOCK)}
            with self._lock:
                if self._stopped:
                    return None, stage, "", ""
                self._process = process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "halfconv.sweep.work"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                    env={**os.environ, "TMPDIR": scratch},
                )  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            patience = _Patience(lambda: self._kill(late), task["options"]["timeout"])
            found: dict[str, Any] | None = None
            try:
                patience.begin()
                with contextlib.suppress(OSError):  # it is gone already
                    process.stdin.write(json.dumps({**task, **place}).encode() + b"\n")
                    process.stdin.flush()
                for line in process.stdout:
                    message = _read(line)
                    if "outcome" in message:
                        found = message["outcome"]
                        break
                    stage = message.get("stage", stage)
                    patience.begin(forever=stage == WAIT)
            finally:
                patience.end()
                code = self._end(process)
            return found, stage, "TimeOut" if late.is_set() else _say(code), _last(errors)

    def _kill(self, why: threading.Event) -> None:
        """End the process that runs, if one does, and all processes of its group."""
        with self._lock:  # until it has been waited for, no other process has its number
            if self._process is None:
                return
            why.set()
            with contextlib.suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:  # pragma: no cover  # Windows
                    self._process.kill()

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """End it, and return its exit code; that of a process which is ending already stays what it is."""
        self._kill(threading.Event())
        with self._lock:
            self._process = None
            code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return code


class _Patience:
    """Ends what takes too long in a stage.

    Args:
        lose: Ends it.
        seconds: For each stage.
    """

    def __init__(self, lose: Callable[[], None], seconds: float):
        self._lose, self._seconds = lose, seconds
        self._timer: threading.Timer | None = None

    def begin(self, *, forever: bool = False) -> None:
        """Begin a stage."""
        self.end()
        if not forever:
            self._timer = threading.Timer(self._seconds, self._lose)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        """End the stage."""
        if self._timer is not None:
            self._timer.cancel()


def _read(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}


def _say(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"signal {-code}"


def _last(errors: IO[bytes]) -> str:
    """Return what a process wrote last to standard error, as the end of a sentence."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f": {lines[-1][:_TOLD]}" if lines else ""
