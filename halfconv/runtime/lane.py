"""One run at a time, and all CUDA graphs on one thread.

ONNX Runtime's CUDA provider keeps graphs, and its cuBLAS and cuDNN handles beside them, per thread, for as long as the session
lives: a server that starts a thread per request would capture each graph again in each thread, and its device memory would grow.
So a session with graphs runs on one thread only: on that of its caller as long as there is only one, which costs nothing, and on
a thread of its own from the moment on at which a second one comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .deadline import Ticket

__all__ = ["Lane", "Turn"]

T = TypeVar("T")


class Turn:
    """Holds a lock, for which a run waits no longer than its deadline: ``with Turn(lock, ticket):``.

    Args:
        lock: The lock.
        ticket: The run's; None if it waits as long as need be.
    """

    __slots__ = ("_lock", "_ticket")

    def __init__(self, lock: threading.Lock, ticket: Ticket | None):
        self._lock, self._ticket = lock, ticket

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            RunStopped: The deadline passed first.
        """
        ticket = self._ticket
        while not self._lock.acquire(timeout=-1 if ticket is None else ticket.left()):
            assert ticket is not None
            ticket.check()

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self._lock.release()


class Lane:
    """Runs functions one at a time, all on one thread.

    Attributes:
        threaded: Whether that is a thread of its own; may be set before the first call.
    """

    def __init__(self) -> None:
        self.threaded = False
        self._lock = threading.Lock()
        self._home: threading.Thread | None = None
        self._worker: ThreadPoolExecutor | None = None

    def call(self, function: Callable[[], T], ticket: Ticket | None) -> T:
        """Call a function in its turn.

        Args:
            function: What to call.
            ticket: The run's; None if it cannot be stopped.

        Raises:
            RunStopped: The deadline passed before its turn came.
        """
        here = threading.current_thread()
        if not self.threaded and self._home in (None, here):
            with Turn(self._lock, ticket):
                if not self.threaded and self._home in (None, here):
                    self._home = here
                    return function()
        with Turn(self._lock, ticket):
            if self._worker is None:
                self.threaded = True
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="halfconv-cuda")
            job = self._worker.submit(function)
        if ticket is not None and ticket.deadline is not None:
            try:
                return job.result(ticket.left())
            except TimeoutError:
                if job.cancel():
                    ticket.check()
        return job.result()  # it runs, and reads the caller's arrays: wait until it stops

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown()
