"""Sessions of ONNX Runtime that live in a process of their own, see `halfconv.runtime.session_server`.

One such process serves all sessions of this one; it starts with the first, and anew after it died or was ended.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from halfconv.check import say_exit
from halfconv.errors import InputError
from halfconv.runtime import session_server

__all__ = ["Session", "Slot", "bounded"]


class Slot(NamedTuple):
    """An input or output: its name, and its type as ONNX Runtime writes it."""

    name: str
    type: str


class Bounds(NamedTuple):
    """What sessions may take.

    Attributes:
        seconds: In all.
        deadline: `time.monotonic` when they are over.
        memory: Bytes.
    """

    seconds: float
    deadline: float
    memory: int


_BOUNDS: ContextVar[Bounds | None] = ContextVar("bounds", default=None)


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Bound what all sessions take together while the block lasts.

    Args:
        seconds: When they are over, every session fails.
        memory: Bytes that the sessions may have beside each other.
    """
    token = _BOUNDS.set(Bounds(seconds, time.monotonic() + seconds, memory))
    try:
        yield
    finally:
        _BOUNDS.reset(token)


class _Worker:
    """The process."""

    def __init__(self) -> None:
        # By path, as halfconv.check starts its own.
        self._process = subprocess.Popen(
            [sys.executable, "-P", session_server.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._released: list[int] = []
        self.owner, self.problem = os.getpid(), ""
        atexit.register(self.end)

    def call(self, method: str, *arguments: Any) -> Any:
        """Have something done.

        Raises:
            InputError: It fails, or takes too long; the process may have ended.
        """
        with self._lock:
            bounds = _BOUNDS.get()
            left = None if bounds is None else bounds.deadline - time.monotonic()
            if self.problem:
                raise InputError(self.problem)
            if left is not None and left <= 0:
                raise InputError(_late(bounds))
            timer = None if left is None else threading.Timer(left, self._process.kill)
            try:
                if timer is not None:
                    timer.daemon = True
                    timer.start()
                done, answer = self._exchange(method, arguments, None if bounds is None else bounds.memory)
            except (EOFError, OSError, ValueError, LookupError, AttributeError):  # it is gone, or what it says is no message
                self.end()
                late = bounds is not None and time.monotonic() >= bounds.deadline
                self.problem = _late(bounds) if late else say_exit(self._process.returncode)
                raise InputError(self.problem) from None
            except BaseException:  # interrupted: what comes next would be the answer to another request
                self.end()
                self.problem = "the runtime's process was ended"
                raise
            finally:
                if timer is not None:
                    timer.cancel()
        if not done:
            raise InputError(str(answer))
        return answer

    def _exchange(self, method: str, arguments: Sequence[Any], memory: int | None) -> tuple[bool, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._released:
            gone, self._released = self._released, []
            self._exchange("close", gone, memory)
        session_server.send(self._process.stdin, (method, arguments, memory))  # type: ignore[arg-type]
        done, answer = session_server.receive(self._process.stdout)  # type: ignore[arg-type]
        return done, answer

    def release(self, number: int) -> None:
        """Close a session with the next request."""
        self._released.append(number)

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        if os.getpid() != self.owner:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process.wait()


_workers: list[_Worker] = []
_numbers = itertools.count()
_starting = threading.Lock()


def _worker() -> _Worker:
    with _starting:
        if not _workers or _workers[0].problem or _workers[0].owner != os.getpid():
            _workers[:] = [_Worker()]
        return _workers[0]


def _late(bounds: Bounds | None) -> str:
    return f"it takes more than {bounds.seconds:g} s" if bounds is not None else ""


class Session:
    """A session, with the methods of ONNX Runtime's own.

    Args:
        source: The model's file, or its bytes.
        level: A name of ONNX Runtime's optimisation levels.
        providers: Execution providers.
        settings: Entries of the session's configuration.

    Raises:
        InputError: It does not load, or ends its process.
    """

    def __init__(self, source: str | bytes, level: str, providers: Sequence[str], settings: Mapping[str, str]):
        self._worker, self._number = _worker(), next(_numbers)
        opened = self._worker.call("open", self._number, source, level, list(providers), dict(settings))
        self._inputs, self._outputs, self._providers = [Slot(*v) for v in opened[0]], [Slot(*v) for v in opened[1]], opened[2]
        self._finalizer = weakref.finalize(self, self._worker.release, self._number)

    def get_inputs(self) -> list[Slot]:
        """Return the inputs."""
        return self._inputs

    def get_outputs(self) -> list[Slot]:
        """Return the outputs."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Return the providers."""
        return list(self._providers)

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run it.

        Raises:
            InputError: It fails, takes too long, or ends its process.
        """
        values: list[Any] = self._worker.call("run", self._number, list(names), dict(feeds))
        return values

    def close(self) -> None:
        """Release it."""
        if self._finalizer.detach() and not self._worker.problem:
            with contextlib.suppress(InputError):
                self._worker.call("close", self._number)
