"""How a request runs on a device: through buffers, and through a CUDA graph where there is one."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import HalfconvError, UsageError
from . import foreign
from .arrays import Feed, look
from .binding import Bound
from .buckets import Fit, shapes_key
from .deadline import Ticket
from .device import GATE, Device
from .held import Held, Request, options_of
from .lane import Lane, Turn
from .route import Route
from .torch_route import TorchRoute

__all__ = ["GraphState", "OnDevice"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GraphState:
    """What became of one set of input shapes on a device.

    Attributes:
        inputs: Input -> dimensions.
        captured: Whether its CUDA graph is captured.
        reason: Why there is none; "" if there is one, or it has not run yet.
        runs: How many runs used its buffers.
    """

    inputs: Mapping[str, tuple[int, ...]]
    captured: bool
    reason: str
    runs: int


class OnDevice:
    """Runs of one model on one device.

    Args:
        held: The model.
        device: Where its buffers lie; closed with this.
    """

    def __init__(self, held: Held, device: Device):
        self._held, self._device = held, device
        self._lock = threading.Lock()
        self._bounds: OrderedDict[Any, Bound] = OrderedDict()
        self._graphs = 0  # that were ever captured: their numbers
        self._lane = Lane() if held.loaded.graph else None
        self._retired: Lane | None = None
        if held.loaded.stream is not None:
            device.share(held.loaded.stream)
        self._handed: set[str] = set()  # libraries that got outputs where they are
        self._unawaited = False  # whether runs may go on after they have returned
        self._lent: weakref.WeakSet[Bound] = weakref.WeakSet()  # buffers that callers fill

    @property
    def graphs(self) -> tuple[GraphState, ...]:
        """What became of each set of shapes."""
        with self._lock:
            why = self._held.no_graph or "not asked for"
            return tuple(
                GraphState(bound.shapes, bound.captured is not None, why if bound.graph is None else "", bound.runs)
                for bound in self._bounds.values()
            )

    def follow(self, other: OnDevice) -> None:
        """Take over from another: if many threads call that one, they will call this one."""
        if self._lane is not None and other._lane is not None:
            self._lane.threaded = other._lane.threaded

    def call(self, function: Callable[[], T], ticket: Ticket | None) -> T:
        """Call ONNX Runtime otherwise than by this, in its turn.

        Raises:
            RunStopped: The deadline passed before its turn came.
        """

        def gated() -> T:
            with GATE.shared():
                return function()

        return gated() if self._lane is None else self._lane.call(gated, ticket)

    def run(self, request: Request, feeds: dict[str, Feed], fit: Fit, names: list[str], cut: frozenset[str]) -> dict[str, Any]:
        """Run a request.

        Args:
            request: The request.
            feeds: Its inputs.
            fit: The shapes whose buffers it uses.
            names: Outputs to return.
            cut: Outputs whose first dimension is the batch.

        Returns:
            Output -> array.

        Raises:
            InputError: An input cannot be cast or copied.
            RunStopped: It was stopped.
            Exception: ONNX Runtime's.
        """
        self._await(feeds)
        for name, feed in feeds.items():
            if feed.array is None and feed.spec.on_host and self._held.provider != "cpu":
                feeds[name] = look(foreign.to_host(feed.given, name), feed.spec)
        rows = None if fit.rows == fit.size else fit.rows
        lane = self._lane
        if lane is not None:
            done, found = lane.call(lambda: self._through(request, feeds, fit, names, cut, rows), request.ticket)
            if done:
                return found
        while True:
            bound = self._bound(fit)
            with Turn(bound.lock, request.ticket), GATE.shared():
                if bound.closed:  # as others' shapes may have taken its place meanwhile
                    continue
                found = self._plain(bound, request, feeds, names, cut, rows)
            if len(self._bounds) > self._held.settings.cache:
                self._trim()
            return found

    @staticmethod
    def _await(feeds: Mapping[str, Feed]) -> None:
        """Wait until inputs elsewhere are written: they are made on this thread's stream, and another may run the model."""
        given = [feed.given for feed in feeds.values() if feed.array is None]
        if given:
            with GATE.shared():
                for value in given:
                    foreign.wait(value)

    def _routable(self, fit: Fit) -> Bound | None:
        """Return the buffers of requests that may have a route; None if a batch was padded, or each run has to be looked at."""
        with self._lock:
            bound = self._bounds.get(shapes_key(fit.shapes))
        return None if fit.rows != fit.size or self._held.passes else bound

    def route(self, fit: Fit, feeds: Mapping[str, Feed], names: Sequence[str]) -> Route | None:
        """Return the way of requests like one that just ran; None if there is none."""
        bound = self._routable(fit)
        if bound is None or (self._lane is not None) != (bound.captured is not None):
            return None
        with bound.lock, GATE.shared():
            return bound.route(feeds, names, self._held.settings.output)

    @property
    def index(self) -> int:
        """Which device it is."""
        return self._device.index

    def torch_route(self, fit: Fit, names: Sequence[str]) -> TorchRoute | None:
        """Return the way of requests of torch tensors like one that just ran; None if there is none: only graphs have one."""
        bound, stream = self._routable(fit), self._held.loaded.stream
        if bound is None or bound.captured is None or stream is None:
            return None
        with bound.lock, GATE.shared():
            route = bound.torch_route(stream, names, self._held.settings.output)
        self._unawaited |= route is not None
        return route

    def along(self, route: Route | TorchRoute, run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run a request by its route; None if that cannot be now."""
        if self._held.loaded.recording:
            return None
        if self._lane is None:
            with self._lock:
                if route.bound.key in self._bounds:
                    self._bounds.move_to_end(route.bound.key)
        return self._in_turn(route.bound, lambda: self._along(route, run), None)

    def _in_turn(self, bound: Bound, function: Callable[[], T], ticket: Ticket | None) -> T:
        """Call what runs on buffers when it is their turn, or the lane's: at once if nobody else is there.

        Raises:
            RunStopped: The deadline passed before its turn came.
        """
        lane = self._lane
        if lane is None:
            with Turn(bound.lock, ticket):
                return function()
        if not lane.enter():
            return lane.call(function, ticket)
        try:
            return function()
        finally:
            lane.leave()

    def _along(self, route: Route | TorchRoute, run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        if not route.ready:
            return None
        with GATE:
            if self._handed and isinstance(route, Route):  # the other follows torch's stream, and takes no memory
                self._drain("numpy")
            try:
                return run()
            except BaseException:
                self._settle()
                raise

    def _settle(self) -> None:
        """Wait for copies that may be under way although their run failed: their memory may be freed next."""
        with contextlib.suppress(HalfconvError):
            self._device.wait()

    def _plain(
        self, bound: Bound, request: Request, feeds: dict[str, Feed], names: list[str], cut: frozenset[str], rows: int | None
    ) -> dict[str, Any]:
        """Run through buffers, without a graph."""
        self._drain(request.to)
        try:
            kept = bound.fill(feeds)
            values = bound.run(names, options_of(request.ticket))
            del kept
            return bound.read(values, rows, cut, request.to, self._held.settings.output)
        except BaseException:
            self._settle()
            raise

    def _drain(self, to: str) -> None:
        """Wait for what other libraries do with outputs of runs before this one, and for runs that nobody waited for."""
        if self._unawaited:
            self._device.wait()
        if to in ("torch", "cupy"):
            self._handed.add(to)
        if self._handed and self._held.provider != "cpu":
            foreign.drain(tuple(self._handed), self._device.index)

    def _through(
        self, request: Request, feeds: dict[str, Feed], fit: Fit, names: list[str], cut: frozenset[str], rows: int | None
    ) -> tuple[bool, dict[str, Any]]:
        """Run on the lane, through a graph where there is one; False if graphs turn out to be impossible, and are now off."""
        if self._lane is None:  # a run before this one found that out
            return False, {}
        bound = self._bound(fit)
        with GATE.shared():
            if bound.graph is None or self._held.loaded.recording or (GATE.loading and not bound.ready):
                return True, self._plain(bound, request, feeds, names, cut, rows)
            self._drain(request.to)
            request.graph = True
            try:
                bound.fill(feeds)
                if bound.ready:
                    values = bound.replay(names, options_of(request.ticket, bound.graph))
                    return True, bound.read(values, rows, cut, request.to, self._held.settings.output)
                bound.learn()
            except BaseException:
                self._settle()
                raise
        why, values = self._capture(bound, names)
        if why:
            request.graph = False
            self._give_up(why)
            return False, {}
        with GATE.shared():
            return True, bound.read(values, rows, cut, request.to, self._held.settings.output)

    @staticmethod
    def _capture(bound: Bound, names: Iterable[str]) -> tuple[str, dict[str, Any]]:
        """Capture a graph; returns why not, or its first outputs. The exception, which would hold the session, is gone then."""
        try:
            with GATE.exclusive():
                values = bound.replay(list(names))
                bound.wait()
                return "", values
        except Exception as error:
            return " ".join(str(error).split())[:300] or type(error).__name__, {}

    def _give_up(self, why: str, *more: Bound) -> None:
        """Go on without CUDA graphs.

        The stream of a capture that failed goes on capturing, and forbids other calls, until ONNX Runtime's session is gone: so
        first everything lets go of it.
        """
        with self._lock:
            bounds, self._bounds = [*self._bounds.values(), *self._lent, *more], OrderedDict()
            self._lent.clear()
        for bound in bounds:
            bound.detach()
        self._held.without_graphs(why)
        with GATE.shared():
            self._device.part()
        for bound in bounds:
            bound.close()
        with self._lock:  # only now: whoever waits for the lane finds a model
            self._retired, self._lane = self._lane, None
            self._held.notes.append(f"no CUDA graphs: the capture failed: {why}")

    def _bound(self, fit: Fit) -> Bound:
        """Return the buffers of some shapes; made on first use, where the shapes used longest ago lose theirs."""
        key = shapes_key(fit.shapes)
        with self._lock:
            bound = self._bounds.get(key)
            if bound is not None:
                self._bounds.move_to_end(key)
                return bound
            graph = self._number() if fit.graph and not self._reads_host(fit.shapes) else None
            with GATE.shared():
                bound = Bound(self._held.loaded.session, self._held.inputs, self._held.outputs, self._device, fit.shapes, graph)
            self._bounds[key] = bound
        self._trim(key)
        return bound

    def _trim(self, kept: Any = None) -> None:
        """Free the buffers of shapes beyond the cache's size, those used longest ago first; those in use stay for now."""
        with self._lock:
            plain = [key for key, bound in self._bounds.items() if bound.graph is None]
            over = len(plain) - self._held.settings.cache
            free = [key for key in plain if key != kept and not self._bounds[key].lock.locked()]
            dropped = [self._bounds.pop(key) for key in free[: max(0, over)]]
        for bound in dropped:
            with bound.lock, GATE.shared():
                bound.close()

    def _number(self) -> int | None:
        """Return a number for one more CUDA graph; None if there can be none. ONNX Runtime never frees one, so they are counted."""
        most = self._held.settings.cache
        if self._lane is None or self._graphs > most:
            return None
        self._graphs += 1
        if self._graphs > most:
            self._held.notes.append(f"{most} CUDA graphs are captured (cache=); further shapes run without one")
            return None
        return self._graphs

    def _reads_host(self, names: Iterable[str]) -> bool:
        """Say whether an input that is given lies in the CPU's memory: a graph would go on with what it was at the capture."""
        return self._held.provider != "cpu" and any(self._held.inputs[name].on_host for name in names)

    # Buffers that the caller fills

    def bind(self, looked: Mapping[str, Feed]) -> Bound:
        """Bind buffers of the caller's own, and run once on what is given.

        Raises:
            InputError: The inputs cannot be cast.
            EnvironmentProblem: ONNX Runtime failed.
        """
        self._await(looked)
        with self._lock:
            wanted = self._held.settings.graph is not False and not self._reads_host(looked)
            graph = self._number() if wanted else None
        shapes = {name: feed.shape for name, feed in looked.items()}

        def begin(graph: int | None) -> Bound:
            with GATE.shared():
                bound = Bound(self._held.loaded.session, self._held.inputs, self._held.outputs, self._device, shapes, graph)
                try:
                    bound.fill(looked)
                    bound.learn()
                except BaseException:
                    self._settle()
                    raise
            if graph is None:
                self._replay(bound, None)
                return bound
            why, _ = self._capture(bound, ())
            if why:
                self._give_up(why, bound)
                return begin(None)
            return bound

        try:
            bound = begin(graph) if self._lane is None else self._lane.call(lambda: begin(graph), None)
            self._lent.add(bound)
            return bound
        except HalfconvError:
            raise
        except Exception as error:
            raise self._held.failure(error, None) from error

    def run_bound(self, bound: Bound, ticket: Ticket | None) -> None:
        """Run on buffers that the caller filled.

        Raises:
            RunStopped: It was stopped.
            EnvironmentProblem: ONNX Runtime failed.
        """
        try:
            if self._held.provider != "cpu":  # what the caller has written, on this thread's stream: another may run the model
                with GATE.shared():
                    foreign.drain([name for name in ("torch", "cupy") if name in sys.modules], self._held.settings.wishes.device)
            self._in_turn(bound, lambda: self._replay(bound, ticket), ticket)
        except HalfconvError:
            raise
        except Exception as error:
            raise self._held.failure(error, ticket) from error
        if ticket is not None:
            ticket.check()

    def _replay(self, bound: Bound, ticket: Ticket | None) -> None:
        if bound.closed:
            raise UsageError(f"these buffers ended with the CUDA graphs: {self._held.no_graph}", "bind() anew")
        with GATE.shared() if bound.ready else GATE.exclusive():
            bound.replay((), options_of(ticket, bound.graph))
            bound.wait()

    def unbind(self, bound: Bound) -> None:
        """Free buffers of the caller's own."""
        with bound.lock:
            self.call(bound.close, None)

    def close(self) -> None:
        """Free all buffers."""
        with self._lock:
            bounds, self._bounds = list(self._bounds.values()), OrderedDict()

        def free() -> None:
            for bound in bounds:
                bound.close()

        self.call(free, None)
        for lane in (self._lane, self._retired):
            if lane is not None:
                lane.close()

    def release(self) -> None:
        """Free the device, after the model."""
        with GATE.shared():
            self._device.close()
