"""A process of its own for ONNX Runtime's sessions, see `halfconv.runtime.session_server`.

A model may end the process that runs it, run for ever, or ask for all memory. There, it harms nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from halfconv.errors import InputError
from halfconv.runtime import session_server

__all__ = ["RuntimeProcess", "Session", "Slot"]


class Slot(NamedTuple):
    """An input or output: its name, its type as ONNX Runtime writes it, and its dimensions: numbers, names or None."""

    name: str
    type: str
    shape: Sequence[int | str | None] = ()


class RuntimeProcess:
    """The process, which starts at once, and again for the next session after a model ended it.

    Args:
        seconds: From now on; when they are over, whatever runs in it fails. None for no limit.
        memory: Bytes that it may have of its own; None for no limit. CUDA needs that.
    """

    def __init__(self, seconds: float | None = None, memory: int | None = None):
        self._seconds, self._memory = seconds, memory
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._child = _Child()

    def open(
        self, source: Path | bytes, level: str, provider: str, *, mapped: bool = False, threads: int = 0,
        library: Path | None = None,
    ) -> Session:  # fmt: skip
        """Open a session.

        Args:
            source: The model's file, or its bytes.
            level: A name of ONNX Runtime's optimisation levels.
            provider: Execution provider; CPU is always the fallback.
            mapped: Whether weights in external files stay there, mapped into memory: what would copy them is left out.
            threads: How many compute; 0 leaves it to the runtime.
            library: Kernels of operators of a library; None for none. One that cannot be registered is left out.

        Raises:
            InputError: It does not load, or ends the process.
        """
        if self._child.problem and self._left() != 0:
            self._child = _Child()
        where: str | bytes = source if isinstance(source, bytes) else os.path.abspath(source)  # noqa: PTH100  # links are kept
        kernels = str(library) if library is not None else ""
        number, *found = self.call(self._child, "open", where, level, provider, mapped, threads, kernels)
        return Session(self, self._child, number, found)

    def kernels(self, provider: str) -> list[tuple[str, str, frozenset[str]]]:
        """Ask ONNX Runtime for an execution provider's kernels.

        Returns:
            Domain, operator and names of the types that it takes, for each.

        Raises:
            InputError: It does not tell; the GPU package's ends the process where TensorRT is missing.
        """
        return [(domain, op_type, frozenset(kinds)) for domain, op_type, kinds in self.call(self._child, "kernels", provider)]

    def call(self, child: _Child, method: str, *arguments: Any) -> Any:
        """Have something done; sessions do.

        Raises:
            InputError: It fails or takes too long; the process may have ended.
        """
        if child.problem:
            raise InputError(child.problem)
        left = self._left()
        late = f"it takes more than {self._seconds:g} s" if self._seconds is not None else ""
        if left == 0:
            raise InputError(late)
        timer = None if left is None else threading.Timer(left, child.process.kill)
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            session_server.send(child.requests, [method, list(arguments), self._memory])
            done, answer = session_server.receive(child.answers)
        except (EOFError, OSError, ValueError, LookupError, AttributeError):  # it is gone, or what it says is no message
            code = child.end()
            child.problem = late if self._left() == 0 else say_exit(code)
            raise InputError(child.problem) from None
        except BaseException:  # interrupted: what comes next would be the answer to another request
            child.end()
            child.problem = "the runtime's process was ended"
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not done:
            raise InputError(str(answer))
        return answer

    def _left(self) -> float | None:
        """Return the seconds left, at least 0; None for no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def close(self) -> None:
        """End the process, and all sessions in it."""
        self._child.end()
        self._child.problem = "the runtime's process was ended"

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """One run of the process.

    Attributes:
        problem: How it ended; "" if it goes on.
    """

    def __init__(self) -> None:
        # By path, and without the script's folder on the import path: it need not find halfconv, and nothing shadows a package.
        command = [sys.executable, "-P", session_server.__file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.problem = ""

    @property
    def requests(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> int:
        """End it, and return its exit code; that of a process which is ending already stays what it is."""
        self.process.kill()
        for stream in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                stream.close()
        return self.process.wait()


class Session:
    """A session, with the methods of ONNX Runtime's own that are needed.

    Attributes:
        version: ONNX Runtime's.
        problem: Why a library of kernels is not used; "" if it is, or there is none.
    """

    def __init__(self, owner: RuntimeProcess, child: _Child, number: int, found: Sequence[Any]):
        self._owner, self._child, self._number = owner, child, number
        inputs, outputs, self._providers, self.version, self.problem = found
        self._inputs, self._outputs = [Slot(*slot) for slot in inputs], [Slot(*slot) for slot in outputs]

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

        Args:
            names: Outputs.
            feeds: Input -> array, or list of arrays for a sequence.

        Raises:
            InputError: It fails, takes too long, or ends its process.
        """
        values: list[Any] = self._owner.call(self._child, "run", self._number, list(names), dict(feeds))
        return values

    def close(self) -> None:
        """Release it."""
        with contextlib.suppress(InputError):
            self._owner.call(self._child, "close", self._number)


def say_exit(code: int) -> str:
    """Say how a process of the runtime ended."""
    name = ""
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name if code < 0 else ""
    return f"the runtime ended its process ({name or f'exit code {code}'})"
