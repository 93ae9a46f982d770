"""One loaded model, and how one request runs on it: on the CPU as it is, on a GPU through buffers and CUDA graphs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, HalfconvError, UsageError
from . import foreign
from .arrays import Feed, Spec, cast, chosen, finish, look, match, read_value, spec_of
from .binding import Bound, run_options
from .buckets import Buckets, Fit, Verdict, judge, pad, shapes_key
from .deadline import Ticket
from .device import GATE, Cuda, Device, Host
from .lane import Lane, turn
from .loading import Loaded, Wishes, load
from .settings import Profile

__all__ = ["Engine", "GraphState", "Request", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller of a session set.

    Attributes:
        wishes: How to load.
        buckets: Batch sizes that the caller asks for.
        graph: CUDA graphs: True for all shapes, False for none, None for the caller's buckets and what the profile says.
        cache: How many sets of shapes keep their buffers, and how many their graphs.
        output: The float type of outputs; None for the model's own.
    """

    wishes: Wishes
    buckets: Sequence[int] | None = None
    graph: bool | None = None
    cache: int = 16
    output: str | None = None


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


@dataclass(slots=True)
class Request:
    """One run, and what is found out about it on the way.

    Attributes:
        feeds: The caller's inputs.
        outputs: Names of outputs; None for all.
        to: Their container.
        ticket: By which it may be stopped.
        batch: First dimension of the first input.
        bucket: The batch size that it was padded to, or whose buffers it used; None for none.
        graph: Whether a CUDA graph ran it.
    """

    feeds: Mapping[str, Any]
    outputs: Sequence[str] | None = None
    to: str = "numpy"
    ticket: Ticket | None = None
    batch: int | None = None
    bucket: int | None = None
    graph: bool = False


class Engine:
    """One model on one provider.

    Args:
        source: Its path, or its bytes.
        profile: Its profile.
        settings: What the caller set.
        device: Makes the device that buffers lie on; for tests.

    Attributes:
        notes: What is not as one might expect, in sentences.
        inputs: Its inputs, those that are initialisers too included.
        outputs: Its outputs.

    Raises:
        InputError: The model cannot be read.
        EnvironmentProblem: The provider cannot be used.
        UsageError: The buckets do not fit the model.
    """

    def __init__(self, source: Path | bytes, profile: Profile, settings: Settings, device: Callable[[int], Device] | None = None):
        self._pid = os.getpid()
        self._source = str(source) if isinstance(source, Path) else source
        self._settings, self._profile = settings, profile
        self._loaded = load(self._source, settings.wishes)
        self.notes = [*profile.notes, *self._loaded.notes]
        self.inputs, self.outputs = _specs(self._loaded.session)
        on_device = self._loaded.provider != "cpu" or device is not None
        self.buckets = Buckets(self.inputs, profile.buckets if on_device else (), settings.buckets, settings.graph)
        self._verdicts: dict[Any, Verdict] = {}
        self._lock = threading.Lock()
        self._bounds: OrderedDict[Any, Bound] = OrderedDict()
        self._graphs = 0  # that were ever captured: their numbers
        self._why_none = self._no_graph()
        if on_device and self._loaded.graph and self._why_none:
            self._loaded.close()
            self._loaded = load(self._source, replace(settings.wishes, graph=False, choices=(self._loaded.provider,)))
        self._lane = Lane() if self._loaded.graph else None
        self._retired: Lane | None = None
        self._handed: set[str] = set()
        self._device = self._open_device(device) if on_device else None
        self._bits = any(spec.element == "bfloat16" for spec in (*self.inputs.values(), *self.outputs.values()))

    def _no_graph(self) -> str:
        """Say why no CUDA graph is possible or wanted; "" where one is."""
        if not self._loaded.graph:
            found = [note for note in self._loaded.notes if note.startswith("no CUDA graphs: ")]
            return found[0].removeprefix("no CUDA graphs: ") if found else "not asked for"
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            for name, spec in specs.items():
                if spec.on_host and (side == "output" or spec.needed):
                    self.notes.append(
                        f"no CUDA graphs: {side} {name!r} lies in the CPU's memory, which a graph would not read again"
                    )
                    return f"{side} {name!r} lies in the CPU's memory"
        return ""

    def _open_device(self, make: Callable[[int], Device] | None) -> Device | None:
        tensors = (*self.inputs.values(), *self.outputs.values())
        if any(spec.storage is None or spec.element == "string" for spec in tensors):
            self.notes.append("no I/O binding: the model has inputs or outputs that are no tensors of numbers")
            return None
        try:
            return (make or Cuda)(self._settings.wishes.device)
        except (EnvironmentProblem, OSError, AttributeError) as problem:
            self.notes.append(f"no I/O binding, ONNX Runtime copies by itself: {problem}")
            return None

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that loaded the model."""
        return os.getpid() != self._pid

    @property
    def loaded(self) -> Loaded:
        """The model as it is loaded now."""
        return self._loaded

    @property
    def graphs(self) -> tuple[GraphState, ...]:
        """What became of each set of shapes on a device."""
        with self._lock:
            return tuple(
                GraphState(
                    bound.shapes,
                    bound.captured is not None,
                    "" if bound.graph is not None else self._why_none or "not asked for",
                    bound.runs,
                )
                for bound in self._bounds.values()
            )

    def run(self, request: Request) -> dict[str, Any]:
        """Run a request.

        Returns:
            Output -> array.

        Raises:
            InputError: An input does not fit.
            RunStopped: It was stopped.
            EnvironmentProblem: ONNX Runtime failed.
        """
        match(request.feeds, self.inputs)
        names = chosen(request.outputs, self.outputs)
        feeds = {name: look(value, self.inputs[name]) for name, value in request.feeds.items()}
        shapes = {name: feed.shape for name, feed in feeds.items() if feed.spec.storage is not None}
        first = next(iter(shapes.values()), ())
        request.batch = first[0] if first else None
        fit = self.buckets.fit(shapes) if self.buckets and len(shapes) == len(feeds) else None
        cut: frozenset[str] = frozenset()
        if fit is not None and fit.rows != fit.size:
            verdict = self._verdict(fit, feeds)
            if verdict.why_not and fit.asked:
                raise UsageError(f"batches of {fit.rows} cannot be padded to {fit.size}: {verdict.why_not}", "buckets=None")
            fit, cut = (None, cut) if verdict.why_not else (fit, verdict.cut)
        request.bucket = None if fit is None else fit.size
        ticket = request.ticket
        try:
            if self._device is not None:
                found = self._on_device(request, feeds, fit or _exact(shapes, self._settings.graph), names, cut)
            else:
                found = self._on_host(request, feeds, fit, names, cut)
        except HalfconvError:
            raise
        except Exception as error:
            raise self._failure(error, ticket) from error
        if ticket is not None:
            ticket.check()
        if self._loaded.recording:
            self._record()
        return found

    def _failure(self, error: Exception, ticket: Ticket | None) -> HalfconvError:
        """Return halfconv's exception for one of ONNX Runtime's.

        Raises:
            RunStopped: It means that the run was stopped.
        """
        if ticket is not None:
            ticket.check()
        text = " ".join(str(error).split())[:400]
        return EnvironmentProblem(f"the run failed on {self._loaded.provider}: {text}", "the same inputs on provider='cpu'")

    def _record(self) -> None:
        with self._lock:
            self._loaded.show()

    # On the CPU, or where ONNX Runtime does the copies

    def _on_host(
        self, request: Request, feeds: dict[str, Feed], fit: Fit | None, names: list[str], cut: frozenset[str]
    ) -> dict[str, Any]:
        arrays = self._cast(feeds)
        if fit is not None and fit.rows != fit.size:
            arrays = {name: pad(array, fit.size) if name in fit.batched else array for name, array in arrays.items()}
        values = self._raw(arrays, names, request.ticket)
        rows = None if fit is None or fit.rows == fit.size else fit.rows
        wanted = self._settings.output
        found = {}
        for name, value in values.items():
            array = value[:rows] if rows is not None and name in cut else value
            spec = self.outputs[name]
            found[name] = (
                finish(array, spec, wanted) if request.to == "numpy" else foreign.from_host(array, spec, request.to, wanted)
            )
        return found

    def _cast(self, feeds: Mapping[str, Feed]) -> dict[str, Any]:
        arrays = {}
        for name, feed in feeds.items():
            if feed.spec.storage is None:
                arrays[name] = feed.given
            else:
                arrays[name] = cast(feed if feed.array is not None else look(foreign.to_host(feed.given, name), feed.spec))
        return arrays

    def _raw(self, arrays: Mapping[str, Any], names: list[str], ticket: Ticket | None) -> dict[str, Any]:
        """Run arrays of the model's own types, BF16 as bits, through ONNX Runtime's plain call."""
        options = run_options() if ticket is not None or self._loaded.graph else None
        if ticket is not None:
            ticket.attach(options)

        def call() -> dict[str, Any]:
            session = self._loaded.session
            if not self._bits:
                return dict(zip(names, session.run(names, arrays, options), strict=True))
            import onnxruntime

            make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = {
                name: make(array, self.inputs[name].code) if self.inputs[name].element == "bfloat16" else _value(array)
                for name, array in arrays.items()
            }
            return {n: read_value(v) for n, v in zip(names, session.run_with_ort_values(names, values, options), strict=True)}

        if self._loaded.provider == "cpu":
            return call()
        if self._lane is not None:
            return self._lane.call(lambda: _gated(call), ticket)
        return _gated(call)

    def _verdict(self, fit: Fit, feeds: dict[str, Feed]) -> Verdict:
        """Return whether a bucket may be padded; checked with its first request."""
        key = shapes_key(fit.shapes)
        with self._lock:
            known = self._verdicts.get(key)
        if known is not None:
            return known
        arrays = self._cast(feeds)
        names = list(self.outputs)
        alone = self._raw(arrays, names, None)
        filled = {fill: {n: pad(a, fit.size, fill) if n in fit.batched else a for n, a in arrays.items()} for fill in (None, 0)}
        padded = self._raw(filled[None], names, None)
        zeros = None
        with contextlib.suppress(Exception):  # a model need not take zeros
            zeros = self._raw(filled[0], names, None)
        verdict = judge(self.outputs, fit, alone, padded, zeros, self._profile.tolerance.get("rel_l2"))
        with self._lock:
            self._verdicts[key] = verdict
            if verdict.why_not:
                self.notes.append(f"batches are not padded to {fit.size}: {verdict.why_not}")
        return verdict

    # On a device

    def _on_device(
        self, request: Request, feeds: dict[str, Feed], fit: Fit, names: list[str], cut: frozenset[str]
    ) -> dict[str, Any]:
        for name, feed in feeds.items():
            if feed.array is None and feed.spec.on_host and self._loaded.provider != "cpu":
                feeds[name] = look(foreign.to_host(feed.given, name), feed.spec)
        rows = None if fit.rows == fit.size else fit.rows
        lane = self._lane
        if lane is not None:
            done, found = lane.call(lambda: self._through(request, feeds, fit, names, cut, rows), request.ticket)
            if done:
                return found
        while True:
            bound = self._bound(fit)
            with turn(bound.lock, request.ticket), GATE.shared():
                if bound.closed:  # as others' shapes may have taken its place meanwhile
                    continue
                found = self._bound_run(bound, request, feeds, names, cut, rows)
            if len(self._bounds) > self._settings.cache:
                self._trim()
            return found

    def _bound_run(
        self, bound: Bound, request: Request, feeds: dict[str, Feed], names: list[str], cut: frozenset[str], rows: int | None
    ) -> dict[str, Any]:
        """Run through buffers, without a graph."""
        self._drain(request.to)
        kept = bound.fill(feeds)
        values = bound.run(names, self._options(request.ticket))
        del kept
        return bound.read(values, rows, cut, request.to, self._settings.output)

    def _drain(self, to: str) -> None:
        """Wait for what other libraries do with outputs of runs before this one."""
        if to in ("torch", "cupy"):
            self._handed.add(to)
        if self._handed and self._loaded.provider != "cpu":
            foreign.drain(self._handed, self._settings.wishes.device)

    def _through(
        self, request: Request, feeds: dict[str, Feed], fit: Fit, names: list[str], cut: frozenset[str], rows: int | None
    ) -> tuple[bool, dict[str, Any]]:
        """Run on the lane, through a graph where there is one; False if graphs turn out to be impossible, and are now off."""
        if self._lane is None:  # a run before this one found that out
            return False, {}
        bound = self._bound(fit)
        with GATE.shared():
            if bound.graph is None or self._loaded.recording or (GATE.loading and not bound.ready):
                return True, self._bound_run(bound, request, feeds, names, cut, rows)
            self._drain(request.to)
            bound.fill(feeds)
            request.graph = True
            if bound.ready:
                values = bound.replay(names, self._options(request.ticket, bound.graph))
                return True, bound.read(values, rows, cut, request.to, self._settings.output)
            bound.learn()
        try:
            with GATE.exclusive():
                values = bound.replay(names)
        except Exception as error:
            request.graph = False
            self._without_graphs(" ".join(str(error).split())[:300])
            return False, {}
        with GATE.shared():
            return True, bound.read(values, rows, cut, request.to, self._settings.output)

    def _without_graphs(self, why: str) -> None:
        """Load the model again without CUDA graphs: a capture that failed leaves ONNX Runtime's session unusable."""
        with self._lock:
            bounds, self._bounds = list(self._bounds.values()), OrderedDict()
        for bound in bounds:
            with contextlib.suppress(Exception):
                bound.close()
        self._loaded.close()
        self._loaded = load(self._source, replace(self._settings.wishes, graph=False, choices=(self._loaded.provider,)))
        with self._lock:  # only now: whoever waits for the lane finds a model
            self._retired, self._lane, self._why_none = self._lane, None, why
            self.notes.append(f"no CUDA graphs: the capture failed: {why}")

    def _bound(self, fit: Fit) -> Bound:
        """Return the buffers of some shapes; made on first use, where the shapes used longest ago lose theirs."""
        key = shapes_key(fit.shapes)
        with self._lock:
            bound = self._bounds.get(key)
            if bound is not None:
                self._bounds.move_to_end(key)
                return bound
            graph = self._number() if fit.graph and not self._reads_host(fit.shapes) else None
            assert self._device is not None
            with GATE.shared():
                bound = Bound(self._loaded.session, self.inputs, self.outputs, self._device, fit.shapes, graph)
            self._bounds[key] = bound
        self._trim(key)
        return bound

    def _trim(self, kept: Any = None) -> None:
        """Free the buffers of shapes beyond the cache's size, those used longest ago first; those in use stay for now."""
        with self._lock:
            plain = [key for key, bound in self._bounds.items() if bound.graph is None]
            over = len(plain) - self._settings.cache
            free = [key for key in plain if key != kept and not self._bounds[key].lock.locked()]
            dropped = [self._bounds.pop(key) for key in free[: max(0, over)]]
        for bound in dropped:
            with bound.lock, GATE.shared():
                bound.close()

    def _number(self) -> int | None:
        """Return a number for one more CUDA graph; None if there can be none. ONNX Runtime never frees one, so they are counted."""
        most = self._settings.cache
        if self._lane is None or self._graphs > most:
            return None
        self._graphs += 1
        if self._graphs > most:
            self.notes.append(f"{most} CUDA graphs are captured (cache=); further shapes run without one")
            return None
        return self._graphs

    def _reads_host(self, names: Iterable[str]) -> bool:
        """Say whether an input that is given lies in the CPU's memory: a graph would go on with what it was at the capture."""
        return self._loaded.provider != "cpu" and any(self.inputs[name].on_host for name in names)

    # Buffers that the caller fills

    def bind(self, feeds: Mapping[str, Any]) -> Bound:
        """Bind buffers of the caller's own, and run once on what is given.

        Raises:
            InputError: The inputs do not fit.
            UsageError: The model has inputs or outputs that are no tensors of numbers.
        """
        match(feeds, self.inputs)
        looked = {name: look(value, self.inputs[name]) for name, value in feeds.items()}
        if any(spec.storage is None or spec.element == "string" for spec in (*self.inputs.values(), *self.outputs.values())):
            raise UsageError("the model has inputs or outputs that are no tensors of numbers", "run(), which takes them")
        with self._lock:
            wanted = self._settings.graph is not False and not self._reads_host(looked)
            graph = self._number() if wanted else None
        shapes = {name: feed.shape for name, feed in looked.items()}

        def begin() -> Bound:
            with GATE.shared():
                bound = Bound(self._loaded.session, self.inputs, self.outputs, self._device or Host(), shapes, graph)
                bound.fill(looked)
                bound.learn()
            self._replay(bound, None)
            return bound

        try:
            return begin() if self._lane is None else self._lane.call(begin, None)
        except HalfconvError:
            raise
        except Exception as error:
            raise self._failure(error, None) from error

    def run_bound(self, bound: Bound, ticket: Ticket | None) -> None:
        """Run on buffers that the caller filled.

        Raises:
            RunStopped: It was stopped.
            EnvironmentProblem: ONNX Runtime failed.
        """
        lane = self._lane
        try:
            if lane is not None:
                lane.call(lambda: self._replay(bound, ticket), ticket)
            else:
                with turn(bound.lock, ticket):
                    self._replay(bound, ticket)
        except HalfconvError:
            raise
        except Exception as error:
            raise self._failure(error, ticket) from error
        if ticket is not None:
            ticket.check()

    def _replay(self, bound: Bound, ticket: Ticket | None) -> None:
        if self._loaded.provider != "cpu":
            foreign.drain([name for name in ("torch", "cupy") if name in sys.modules], self._settings.wishes.device)
        with GATE.shared() if bound.ready else GATE.exclusive():
            bound.replay((), self._options(ticket, -1 if bound.graph is None else bound.graph))

    def unbind(self, bound: Bound) -> None:
        """Free buffers of the caller's own."""
        if self._lane is not None:
            self._lane.call(bound.close, None)
        else:
            with bound.lock:
                bound.close()

    def follow(self, other: Engine) -> None:
        """Take over from another engine: if many threads call that one, they will call this one."""
        if self._lane is not None and other._lane is not None:
            self._lane.threaded = other._lane.threaded

    @staticmethod
    def _options(ticket: Ticket | None, graph: int = -1) -> Any:
        if ticket is None:
            return None
        options = run_options(graph)
        ticket.attach(options)
        return options

    def close(self) -> None:
        """Release the model and all buffers."""
        with self._lock:
            bounds, self._bounds = list(self._bounds.values()), OrderedDict()

        def free() -> None:
            with GATE.shared():
                for bound in bounds:
                    bound.close()

        if self._lane is not None:
            self._lane.call(free, None)
            self._lane.close()
        else:
            free()
        if self._retired is not None:
            self._retired.close()
        self._loaded.close()
        if self._device is not None:
            self._device.close()

    def __del__(self) -> None:
        """In a process that `os.fork` made, keep ONNX Runtime's session: its end would wait for threads that were not copied."""
        loaded = getattr(self, "_loaded", None)
        if loaded is not None and self.forked:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded))


def _gated(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with GATE.shared():
        return call()


def _value(array: Any) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _exact(shapes: Mapping[str, tuple[int, ...]], graph: bool | None) -> Fit:
    """Return the bucket of a request that fits into none: its own shapes."""
    return Fit(shapes, 0, 0, frozenset(), graph is True, False)


def _specs(session: Any) -> tuple[dict[str, Spec], dict[str, Spec]]:
    def host(infos: Sequence[Any], count: int) -> list[bool]:
        return (
            [info.name.startswith("Cpu") or "pinned" in info.name.lower() for info in infos]
            if len(infos) == count
            else [True] * count
        )

    given, results = session.get_inputs(), session.get_outputs()
    places = (
        host(session.get_input_memory_infos(), len(given)) if hasattr(session, "get_input_memory_infos") else [False] * len(given)
    )
    ends = (
        host(session.get_output_memory_infos(), len(results))
        if hasattr(session, "get_output_memory_infos")
        else [False] * len(results)
    )
    inputs = {a.name: spec_of(a, needed=True, on_host=where) for a, where in zip(given, places, strict=True)}
    for argument in session.get_overridable_initializers():
        inputs.setdefault(argument.name, spec_of(argument, needed=False, on_host=True))
    return inputs, {a.name: spec_of(a, needed=True, on_host=where) for a, where in zip(results, ends, strict=True)}
