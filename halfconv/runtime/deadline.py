"""Deadlines and cancelling: a run that is late or no longer wanted is told to stop, and says so.

ONNX Runtime looks at a run's ``terminate`` flag between nodes; a CUDA graph is one step and cannot be stopped once it began.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import Any

from ..errors import RunStopped, UsageError

__all__ = ["Ticket", "Watchdog", "check_timeout"]

#: Seconds without work after which the watchdog's thread ends; the next deadline starts another.
_IDLE = 5.0


def check_timeout(seconds: Any) -> None:
    """Refuse what is no time limit.

    Raises:
        UsageError: It is neither None nor a positive number.
    """
    if seconds is not None and (not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0):
        raise UsageError(f"timeout={seconds!r}", "seconds greater than 0, or None for no limit")


class Ticket:
    """One run that may be stopped.

    Args:
        seconds: Seconds from now until its deadline; None for none.

    Raises:
        UsageError: The number of seconds is no positive number.
    """

    __slots__ = ("_lock", "_options", "deadline", "seconds", "stopped")

    def __init__(self, seconds: float | None = None):
        check_timeout(seconds)
        self.seconds = seconds
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.stopped = ""
        self._options: Any = None
        self._lock = threading.Lock()

    def attach(self, options: Any) -> None:
        """Name the ``RunOptions`` of the run that begins.

        Raises:
            RunStopped: It was stopped before it began.
        """
        with self._lock:
            self._options = options
            if self.stopped:
                options.terminate = True
        self.check()

    def stop(self, why: str) -> None:
        """Stop the run; the first reason counts."""
        with self._lock:
            self.stopped = self.stopped or why
            if self._options is not None:
                self._options.terminate = True

    def left(self) -> float:
        """Return the seconds left, at least 0, or −1 for no limit, as locks want it."""
        return -1.0 if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise if the run was stopped or is late.

        Raises:
            RunStopped: So it is.
        """
        if not self.stopped and self.deadline is not None and time.monotonic() >= self.deadline:
            self.stopped = self.late
        if self.stopped:
            raise RunStopped(f"the run was stopped: {self.stopped}", "a longer timeout" if self.stopped == self.late else "")

    @property
    def late(self) -> str:
        """What is said of a run that is late."""
        return f"it took more than {self.seconds:g} s" if self.seconds is not None else "it is late"


class Watchdog:
    """Stops the tickets whose deadline is over, from one thread that lives while there are any."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._due: list[tuple[float, int, Ticket]] = []
        self._done: set[int] = set()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, ticket: Ticket) -> int:
        """Watch a ticket that has a deadline; returns the number by which to forget it."""
        assert ticket.deadline is not None
        with self._wake:
            number = next(self._numbers)
            heapq.heappush(self._due, (ticket.deadline, number, ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="halfconv-deadlines", daemon=True)
                self._thread.start()
            elif self._due[0][1] == number:
                self._wake.notify()
        return number

    def forget(self, number: int) -> None:
        """Forget a ticket: its run has ended."""
        with self._wake:
            self._done.add(number)
            while self._due and self._due[0][1] in self._done:
                self._done.remove(heapq.heappop(self._due)[1])
            if len(self._done) > 1000:  # most of those behind a long deadline have ended
                self._due = [entry for entry in self._due if entry[1] not in self._done]
                heapq.heapify(self._due)
                self._done.clear()

    def close(self) -> None:
        """End the thread."""
        with self._wake:
            self._closed = True
            self._due.clear()
            self._wake.notify()

    def _run(self) -> None:
        with self._wake:
            while True:
                if not self._due:
                    if self._closed or (not self._wake.wait(_IDLE) and not self._due):
                        self._thread = None
                        return
                    continue
                deadline, number, ticket = self._due[0]
                left = deadline - time.monotonic()
                if left > 0:
                    self._wake.wait(left)
                    continue
                heapq.heappop(self._due)
                if number in self._done:
                    self._done.remove(number)
                else:
                    ticket.stop(ticket.late)
