"""Many callers, one model: a bounded queue, a few workers, and requests that wait together run together where that is right."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import EnvironmentProblem, HalfconvError, PoolFull, RunStopped, UsageError
from .arrays import Spec
from .deadline import check_timeout
from .rows import batched, differ

__all__ = ["Pool", "PoolStats"]

Outputs = dict[str, Any]


class Runner(Protocol):
    """What a pool needs of a session."""

    @property
    def input_specs(self) -> Mapping[str, Spec]:
        """Name -> type and shape of each input that a run must give."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, timeout: float | None = None) -> Outputs:
        """Run one request."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has done.

    Attributes:
        requests: Requests that were accepted.
        refused: Requests for which the queue had no room.
        runs: Runs of the model, those of the check of independence left out.
        rows: Rows that they computed; 0 where requests are not counted in rows.
        waiting: Requests in the queue now.
        batching: Whether requests are put together.
        why_not: Why they are not; "" if they are, or may be.
    """

    requests: int
    refused: int
    runs: int
    rows: int
    waiting: int
    batching: bool
    why_not: str


@dataclass(eq=False, slots=True)
class _Request:
    feeds: Mapping[str, Any]
    outputs: tuple[str, ...] | None
    deadline: float | None
    key: Hashable  # None where it goes alone
    rows: int
    arrived: float = field(default_factory=time.monotonic)
    future: Future[Outputs] = field(default_factory=Future)


class Pool:
    """Runs requests of many callers.

    Args:
        session: A session, or several of one model, as on several devices. They stay open when the pool is closed.
        workers: Requests that run at the same time; default one for each session.
        queue: Requests that may wait.
        max_batch: Rows that may run together; 1 runs each request alone.
        max_delay: Seconds that a request may wait for others to come.
        sample: Inputs of at least two rows, on which the rows are shown to be independent; None takes the first requests that come
            together, each of which runs alone, too.

    Raises:
        UsageError: A number is too small, or the inputs have no common batch dimension.

    Example:
        ``with Pool(Session("model.onnx"), max_batch=32) as pool: outputs = pool.run({"input": array})``
    """

    def __init__(
        self, session: Runner | Sequence[Runner], *, workers: int | None = None, queue: int = 256, max_batch: int = 1,
        max_delay: float = 0.002, sample: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self._sessions = list(session) if isinstance(session, Sequence) else [session]
        count = len(self._sessions) if workers is None else workers
        numbers = {"sessions": len(self._sessions), "workers": count, "queue": queue, "max_batch": max_batch}
        for name, number in numbers.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UsageError(f"{name}={number!r}", "a whole number from 1 on")
        if not isinstance(max_delay, (int, float)) or not max_delay >= 0:
            raise UsageError(f"max_delay={max_delay!r}", "seconds, at least 0")
        self._room, self._most, self._delay, self._pid = queue, max_batch, max_delay, os.getpid()
        self._batched = batched(self._sessions[0].input_specs) if max_batch > 1 else frozenset()
        if max_batch > 1 and not self._batched:
            found = ", ".join(f"{name}: {list(spec.shape)}" for name, spec in self._sessions[0].input_specs.items())
            raise UsageError(f"max_batch={max_batch}: the inputs have no common batch dimension ({found})", "max_batch=1")
        self._lock = threading.Lock()
        self._work, self._space = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: deque[_Request] = deque()
        self._counts = {"requests": 0, "refused": 0, "runs": 0, "rows": 0}
        self._shown, self._why_not, self._closed = False, "", False
        if max_batch > 1 and sample is not None:
            self._show(self._sessions[0], _split(self._sessions[0], sample, self._batched))
        serving = [self._sessions[k % len(self._sessions)] for k in range(count)]
        self._threads = [threading.Thread(target=self._serve, args=(one,), name="halfconv-pool", daemon=True) for one in serving]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> PoolStats:
        """What was done so far."""
        with self._lock:
            batching = self._most > 1 and self._shown and not self._why_not
            return PoolStats(**self._counts, waiting=len(self._waiting), batching=batching, why_not=self._why_not)

    def submit(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, timeout: float | None = None, block: bool = True
    ) -> Future[Outputs]:  # fmt: skip
        """Queue a request.

        Args:
            feeds: As `Session.run` takes them.
            outputs: Names of outputs; None for all.
            timeout: Seconds that it may take from now on, the wait included.
            block: Whether to wait for room in the queue.

        Returns:
            What will hold the outputs, or the error. To cancel it takes it out of the queue.

        Raises:
            PoolFull: The queue has no room, in time.
            UsageError: The pool is closed.
            EnvironmentProblem: This process is a fork of the one that made the pool.
        """
        check_timeout(timeout)
        if os.getpid() != self._pid:
            found = f"this pool was made in process {self._pid}, and this is a fork of it, which has none of its threads"
            raise EnvironmentProblem(found, "make a pool in each process, after the fork")
        deadline = None if timeout is None else time.monotonic() + timeout
        names = None if outputs is None else tuple(outputs)
        key, rows = self._key(feeds, names)
        request = _Request(feeds, names, deadline, key, rows)
        with self._lock:
            while len(self._waiting) >= self._room and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if not block or (left is not None and left <= 0) or not self._space.wait(left):
                    self._counts["refused"] += 1
                    raise PoolFull(f"{self._room} requests wait already", "later, a longer queue, or more workers")
            if self._closed:
                raise UsageError("the pool is closed", "a new Pool")
            self._waiting.append(request)
            self._counts["requests"] += 1
            self._work.notify_all()
        return request.future

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, timeout: float | None = None) -> Outputs:
        """Run a request, and wait for it.

        Raises:
            PoolFull: The queue has no room, in time.
            RunStopped: It took longer than `timeout`.
            InputError: An input does not fit.
        """
        future = self.submit(feeds, outputs, timeout=timeout)
        try:
            return future.result(timeout)
        except TimeoutError:  # it runs with requests that have more time
            future.cancel()
            raise RunStopped(f"the run was stopped: it took more than {timeout:g} s", "a longer timeout") from None

    async def arun(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, timeout: float | None = None
    ) -> Outputs:  # fmt: skip
        """Run a request without blocking the event loop; see `run`."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(1e-6, end - time.monotonic())
            try:
                future = self.submit(feeds, outputs, timeout=left, block=False)
            except PoolFull:
                if end is not None and time.monotonic() >= end:
                    raise
                await asyncio.sleep(0.001)
            else:
                return await asyncio.wrap_future(future)

    def close(self, *, wait: bool = True) -> None:
        """End the workers.

        Args:
            wait: Whether what waits is run first; if not, it is stopped.
        """
        with self._lock:
            self._closed = True
            dropped = [] if wait else list(self._waiting)
            if dropped:
                self._waiting.clear()
            self._work.notify_all()
            self._space.notify_all()
        for request in dropped:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(RunStopped("the pool was closed", "a new Pool"))
        if os.getpid() == self._pid:
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, feeds: Mapping[str, Any], outputs: tuple[str, ...] | None) -> tuple[Hashable, int]:
        """Return what requests that may run together have in common, and the rows of this one."""
        arrays = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray) and value.ndim}
        if not self._batched or set(arrays) != set(feeds) or set(feeds) != self._batched:
            return None, 0
        rows = {len(array) for array in arrays.values()}
        count = next(iter(rows))
        if len(rows) > 1 or not 0 < count < self._most:
            return None, count
        return (outputs, *((name, array.dtype.str, array.shape[1:]) for name, array in sorted(arrays.items()))), count

    def _serve(self, session: Runner) -> None:
        while taken := self._take():
            ready = [request for request in taken if self._begin(request)]
            if len(ready) > 1 and not self._shown:
                outputs = [self._alone(session, request) for request in ready]
                done = [(request.feeds, found) for request, found in zip(ready, outputs, strict=True) if found is not None]
                if len(done) > 1:
                    self._show(session, done)
            elif len(ready) > 1 and not self._why_not:
                self._together(session, ready)
            else:
                for request in ready:
                    self._alone(session, request)

    @staticmethod
    def _begin(request: _Request) -> bool:
        """Tell whether a request is still wanted, and in time."""
        if not request.future.set_running_or_notify_cancel():
            return False
        if request.deadline is not None and time.monotonic() >= request.deadline:
            request.future.set_exception(RunStopped("the run was stopped: its time was over in the queue", "a longer timeout"))
            return False
        return True

    def _take(self) -> list[_Request]:
        """Wait for a request, and for others that may run with it; none when the pool is closed and nothing is left."""
        with self._lock:
            while not self._waiting:
                if self._closed:
                    return []
                self._work.wait()
            first = self._waiting.popleft()
            found, rows = [first], first.rows
            while first.key is not None and not self._why_not:
                for other in [request for request in self._waiting if request.key == first.key]:
                    if rows + other.rows <= self._most:
                        self._waiting.remove(other)
                        found.append(other)
                        rows += other.rows
                left = first.arrived + self._delay - time.monotonic()
                if rows >= self._most or left <= 0 or self._closed:
                    break
                self._work.wait(left)
            self._space.notify_all()
            return found

    def _count(self, rows: int) -> None:
        with self._lock:
            self._counts["runs"] += 1
            self._counts["rows"] += rows

    def _alone(self, session: Runner, request: _Request) -> Outputs | None:
        """Run one request; None if it fails."""
        self._count(request.rows)
        try:
            outputs = session.run(request.feeds, request.outputs, timeout=_left([request]))
        except BaseException as error:
            request.future.set_exception(error)
            return None
        request.future.set_result(outputs)
        return outputs

    def _together(self, session: Runner, requests: Sequence[_Request]) -> None:
        """Run requests as one batch; one by one if that fails, so that a bad one does not fail the others."""
        self._count(sum(request.rows for request in requests))
        feeds = {name: np.concatenate([request.feeds[name] for request in requests]) for name in requests[0].feeds}
        try:
            whole = session.run(feeds, requests[0].outputs, timeout=_left(requests))
        except Exception:
            for request in requests:
                self._alone(session, request)
            return
        start = 0
        for request in requests:
            request.future.set_result({name: value[start : start + request.rows].copy() for name, value in whole.items()})
            start += request.rows

    def _show(self, session: Runner, alone: Sequence[tuple[Mapping[str, Any], Outputs]]) -> None:
        """Compare what requests give alone and together, in both orders: one may be that which the model itself makes."""
        why_not = ""
        for order in (alone, alone[::-1]):
            feeds = {name: np.concatenate([given[name] for given, _ in order]) for name in order[0][0]}
            rows = [len(next(iter(given.values()))) for given, _ in order]
            try:
                together = session.run(feeds, tuple(order[0][1]))
            except HalfconvError as error:
                why_not = str(error)
            else:
                why_not = why_not or differ([outputs for _, outputs in order], together, rows)
        with self._lock:
            self._shown, self._why_not = True, why_not


def _left(requests: Sequence[_Request]) -> float | None:
    """Return the seconds that the most patient request has left; None if one has no limit."""
    deadlines = [request.deadline for request in requests]
    known = [deadline for deadline in deadlines if deadline is not None]
    return max(1e-6, max(known) - time.monotonic()) if len(known) == len(deadlines) else None


def _split(session: Runner, sample: Mapping[str, Any], batched: frozenset[str]) -> list[tuple[Mapping[str, Any], Outputs]]:
    """Run the rows of a sample one by one.

    Raises:
        UsageError: It does not have two rows.
    """
    arrays = {name: np.asarray(value) for name, value in sample.items()}
    rows = {len(array) if array.ndim else 0 for array in arrays.values()}
    if set(arrays) != batched or len(rows) != 1 or next(iter(rows)) < 2:
        found = ", ".join(f"{name}: {list(array.shape)}" for name, array in arrays.items())
        raise UsageError(f"the sample has not two rows of each of {', '.join(sorted(batched))} ({found})", "a batch of two samples")
    alone = [{name: array[k : k + 1] for name, array in arrays.items()} for k in range(next(iter(rows)))]
    return [(feeds, session.run(feeds)) for feeds in alone]
