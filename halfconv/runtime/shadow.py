"""Shadow sampling: a share of live requests also runs through the FP32 model, in the background, and shows the live drift."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import UsageError
from .session import Session

__all__ = ["Drift", "Shadow"]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far an output is from the reference's.

    Attributes:
        output: Its name.
        rel_l2: sqrt(Σ(c−r)² / Σr²) over elements where the reference is finite; a zero reference counts as 1.
        max_abs: Largest difference.
        agreement: Share of equal elements of integers, truth values and texts; None for floats.
        not_finite: Elements that are not finite where the reference is.
        requests: How many requests it covers.
    """

    output: str
    rel_l2: float
    max_abs: float
    agreement: float | None
    not_finite: int
    requests: int

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return asdict(self)


class _Sums:
    """What drift is made of, added up over requests."""

    def __init__(self) -> None:
        self.square = self.total = self.most = 0.0
        self.equal = self.elements = self.not_finite = self.requests = 0
        self.exact = False

    def add(self, have: Any, want: Any) -> None:
        """Add an output of one request."""
        self.requests += 1
        have, want = np.asarray(have), np.asarray(want)
        if want.dtype.kind not in "fV" or have.dtype.kind not in "fV":  # V: BF16 of ml_dtypes
            self.exact = True
            self.equal += int(np.sum(have == want)) if have.shape == want.shape else 0
            self.elements += want.size
            return
        a, b = have.astype(np.float64), want.astype(np.float64)
        finite = np.isfinite(b)
        good = finite & np.isfinite(a)
        self.not_finite += int(finite.sum() - good.sum())
        far = np.abs(a[good] - b[good])
        self.square += float(np.sum(far**2))
        self.total += float(np.sum(b[good] ** 2))
        self.most = max(self.most, float(far.max(initial=0.0)))

    def drift(self, name: str) -> Drift:
        """Return the figures."""
        share = (self.equal / self.elements if self.elements else 1.0) if self.exact else None
        return Drift(name, (self.square / (self.total or 1.0)) ** 0.5, self.most, share, self.not_finite, self.requests)


class Shadow:
    """A session, and beside it a reference that a share of its requests also runs through.

    Args:
        session: What answers.
        reference: The FP32 model's session, with the same inputs and outputs.
        share: Share of requests that are compared, 0 to 1.
        on_drift: Called with the drift of each request that was compared, output by output; on the background's thread.
        waiting: How many requests may wait for the reference; further samples are dropped, and counted.
        seed: Of the choice of requests.

    Attributes:
        compared: Requests that were compared.
        dropped: Requests that were chosen while too many waited.
        failed: Requests that the reference, or `on_drift`, failed on; `error` is the last one's.
        error: What the last failure was; "" for none.

    Raises:
        UsageError: An option is wrong.
    """

    def __init__(
        self,
        session: Session,
        reference: Session,
        share: float = 0.01,
        on_drift: Callable[[tuple[Drift, ...]], object] | None = None,
        *,
        waiting: int = 8,
        seed: int | None = None,
    ):
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UsageError(f"share={share!r}", "a number from 0 to 1")
        self._session, self._reference, self._share, self._on_drift = session, reference, share, on_drift
        self._random = random.Random(seed)
        self._queue: queue.Queue[Any] = queue.Queue(waiting)
        self._sums: dict[str, _Sums] = {}
        self._lock = threading.Lock()
        self.compared = self.dropped = self.failed = 0
        self.error = ""
        self._thread = threading.Thread(target=self._work, name="halfconv-shadow", daemon=True)
        self._thread.start()

    @property
    def drift(self) -> tuple[Drift, ...]:
        """Live drift per output, over all requests that were compared."""
        with self._lock:
            return tuple(sums.drift(name) for name, sums in self._sums.items())

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
        """Run the session as `Session.run` does, and perhaps have the reference do the same later."""
        found = self._session.run(feeds, outputs, **options)
        if self._share and self._random.random() < self._share:
            if self._queue.full():
                with self._lock:
                    self.dropped += 1
            else:
                self._offer({name: _copy(value) for name, value in feeds.items()}, {n: _copy(v) for n, v in found.items()})
        return found

    def _offer(self, feeds: dict[str, Any], found: dict[str, Any]) -> None:
        try:
            self._queue.put_nowait((feeds, found))
        except queue.Full:
            with self._lock:
                self.dropped += 1

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._compare(*job)
            except Exception as error:
                with self._lock:
                    self.failed += 1
                    self.error = f"{type(error).__name__}: {error}"
            finally:
                self._queue.task_done()

    def _compare(self, feeds: dict[str, Any], found: dict[str, Any]) -> None:
        wanted = self._reference.run(feeds, list(found))
        drifts = []
        for name, have in found.items():
            one = _Sums()
            one.add(have, wanted[name])
            drifts.append(one.drift(name))
            with self._lock:
                self._sums.setdefault(name, _Sums()).add(have, wanted[name])
        with self._lock:
            self.compared += 1
        if self._on_drift is not None:
            self._on_drift(tuple(drifts))

    def wait(self) -> None:
        """Wait until all requests that were chosen are compared."""
        self._queue.join()

    def close(self) -> None:
        """Compare what waits, and end the thread; the sessions stay open."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _copy(value: Any) -> Any:
    """Copy an array into memory of numpy's, as the caller may use its own again."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch":
        value = value.detach().cpu()
        return np.array(value.float()) if str(value.dtype) == "torch.bfloat16" else np.array(value)
    if library == "cupy":
        return value.get()
    return np.array(value)
