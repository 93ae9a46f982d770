"""A process of ONNX Runtime that lasts over many conversions.

Each conversion starts two or three, which takes several times longer than all that a small model asks of them. Here, one that is
closed is kept for who needs the next: it is the same program with the same messages and limits, and one that a model ended is
replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from halfconv import runtime_process
from halfconv.errors import InputError
from halfconv.runtime_process import RuntimeProcess, Session


class _Gone:
    """What a `RuntimeProcess` has in place of a process that was kept."""

    problem = "the runtime's process was ended"

    def end(self) -> int:
        return 0


@contextlib.contextmanager
def lasting_runtime() -> Iterator[None]:
    """Keep processes while this lasts; their sessions end where they would have ended with them."""
    start, open_session, end = runtime_process._Child, RuntimeProcess.open, RuntimeProcess.close
    idle: list[runtime_process._Child] = []
    opened: dict[RuntimeProcess, list[Session]] = {}

    def open_and_note(self: RuntimeProcess, *arguments: Any, **options: Any) -> Session:
        session = open_session(self, *arguments, **options)
        opened.setdefault(self, []).append(session)
        return session

    def keep(self: RuntimeProcess) -> None:
        child: Any = self._child
        with contextlib.suppress(InputError):
            for session in opened.pop(self, ()):
                if session._child is child:
                    self.call(child, "close", session._number)
        if child.problem or child.process.poll() is not None:
            end(self)
        else:
            idle.append(child)
            self._child = _Gone()

    with (
        mock.patch.object(runtime_process, "_Child", lambda: idle.pop() if idle else start()),
        mock.patch.object(RuntimeProcess, "open", open_and_note),
        mock.patch.object(RuntimeProcess, "close", keep),
    ):
        try:
            yield
        finally:
            for child in idle:
                child.end()
