"""Buffers of a session's that the caller fills and reads itself: between the caller's code and the model nothing is copied."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import UsageError
from .binding import Bound
from .deadline import Ticket, Watchdog
from .engine import Engine

__all__ = ["Buffers"]


class Buffers:
    """Inputs and outputs of fixed shapes; `Session.bind` makes them. One thread at a time may use them.

    They stay with the model that was current when they were made, also after a swap.

    Attributes:
        inputs: Input -> OrtValue, to be written before a run: ``torch.from_dlpack(buffers.inputs["x"])[:] = x``.
        outputs: Output -> OrtValue, that each run writes.
    """

    def __init__(
        self, engine: Engine, bound: Bound, watchdog: Watchdog, done: Callable[[], None], dropped: deque[tuple[Engine, Bound]]
    ):
        self.inputs, self.outputs = bound.buffers
        self._engine, self._bound, self._watchdog, self._done, self._dropped = engine, bound, watchdog, done, dropped
        self._lock, self._closed = threading.Lock(), False

    @property
    def graph(self) -> bool:
        """Whether a run is the replay of a CUDA graph."""
        return self._bound.captured is not None

    def run(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Run the model on the inputs, and return the outputs: the same OrtValues each time.

        Args:
            timeout: Seconds after which the run is stopped; None for no limit.

        Raises:
            RunStopped: It took longer.
            EnvironmentProblem: ONNX Runtime failed.
            UsageError: The buffers, or the session, are closed.
        """
        self._engine.check_process()
        ticket = None if timeout is None else Ticket(timeout)
        with self._lock:
            if self._closed:
                raise UsageError("the buffers are closed", "bind() anew")
            number = None if ticket is None else self._watchdog.watch(ticket)
            try:
                self._engine.run_bound(self._bound, ticket)
            finally:
                if number is not None:
                    self._watchdog.forget(number)
        return self.outputs

    def close(self) -> None:
        """Free the buffers; arrays that share their memory must be gone. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.inputs, self.outputs = {}, {}
            self._engine.unbind(self._bound)
            self._done()

    def __del__(self) -> None:
        """Leave them to the session's next run: here, no lock may be taken."""
        if not self._closed:
            self._dropped.append((self._engine, self._bound))

    def __enter__(self) -> Buffers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
