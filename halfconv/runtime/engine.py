"""One loaded model, and how one request runs on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentProblem, HalfconvError, UsageError
from . import foreign, torch_route
from .arrays import Feed, Spec, cast, chosen, finish, look, match, read_value
from .binding import Bound, run_options
from .buckets import Buckets, Fit, Verdict, judge, pad, shapes_key
from .deadline import Ticket
from .device import GATE, Cuda, Device, Host
from .held import Held, Request, Settings, options_of
from .loading import Loaded
from .on_device import GraphState, OnDevice
from .route import Route, signature
from .settings import Profile
from .torch_route import TorchRoute

__all__ = ["Engine"]


#: Signatures of requests whose way is remembered.
MOST_WAYS = 256
#: How often a route is looked for: not with the first request of a signature, as others may never come again.
MOST_LOOKS = 4


@dataclass(slots=True)
class _Way:
    """How requests of one signature run: outputs, bucket or own shapes, what is cut, and what their inputs are.

    The route is known once one of them has run.
    """

    names: list[str]
    fit: Fit | None
    exact: Fit
    cut: frozenset[str]
    batch: int | None
    specs: Mapping[str, Spec]
    elements: Mapping[str, str]
    route: Route | None = None
    looks: int = 0


def _is_plain(array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype.kind in "fiub"


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
        buckets: The shapes that were prepared.

    Raises:
        InputError: The model cannot be read.
        EnvironmentProblem: The provider cannot be used.
        UsageError: The buckets do not fit the model.
    """

    def __init__(self, source: Path | bytes, profile: Profile, settings: Settings, device: Callable[[int], Device] | None = None):
        self._held = Held(source, profile.notes, settings)
        self.notes, self.inputs, self.outputs = self._held.notes, self._held.inputs, self._held.outputs
        on_device = self._held.provider != "cpu" or device is not None
        try:
            self.buckets = Buckets(self.inputs, profile.buckets if on_device else (), settings.buckets, settings.graph)
            self._allowed = profile.tolerance.get("rel_l2")
            self._ways: dict[Any, _Way] = {}
            self._torch_ways: dict[Any, TorchRoute] = {}
            self._verdicts: dict[Any, Verdict] = {}
            self._lock = threading.Lock()
            self._device = self._open(device or Cuda) if on_device else None
            self._binder: OnDevice | None = None  # the device, or the CPU's memory
        except BaseException:
            self._held.close()
            raise
        self._bits = any(spec.element == "bfloat16" for spec in (*self.inputs.values(), *self.outputs.values()))

    def _open(self, make: Callable[[int], Device]) -> OnDevice | None:
        """Return what runs through buffers; None, with a note, where that cannot be."""
        why = "" if self._held.tensors else "the model has inputs or outputs that are no tensors of numbers"
        if not why:
            try:
                with GATE.shared():
                    made = make(self._held.settings.wishes.device)
                return OnDevice(self._held, made)
            except (EnvironmentProblem, OSError, AttributeError) as problem:
                why = str(problem)
        self.notes.append(f"no I/O binding, ONNX Runtime copies by itself: {why}")
        if self._held.loaded.graph:  # which needs a binding
            self._held.without_graphs("no I/O binding")
        return None

    @property
    def loaded(self) -> Loaded:
        """The model as it is loaded now."""
        return self._held.loaded

    def check_process(self) -> None:
        """Refuse to work in a child that `os.fork` made.

        Raises:
            EnvironmentProblem: This is one.
        """
        if self._held.forked:
            raise EnvironmentProblem(
                "this session was made in another process, of which this one is a fork, without its threads",
                "make a session in each process, after the fork",
            )

    @property
    def graphs(self) -> tuple[GraphState, ...]:
        """What became of each set of shapes on a device."""
        return () if self._device is None else self._device.graphs

    def follow(self, other: Engine) -> None:
        """Take over from another engine."""
        if self._device is not None and other._device is not None:
            self._device.follow(other._device)

    def again(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None) -> dict[str, Any] | None:
        """Run a request for numpy arrays without a time limit, if one like it has found a route.

        Returns:
            Output -> array; None if the request must be made by `run`.

        Raises:
            InputError: A finite number is too large for the model's type.
            EnvironmentProblem: ONNX Runtime failed.
        """
        device = self._device
        way = None if device is None else self._ways.get(signature(feeds, outputs, _is_plain))
        route = None if way is None else way.route
        if device is None or way is None or route is None:
            return None
        try:
            return device.along(route, lambda: route.run(feeds))
        except HalfconvError:
            raise
        except Exception as error:
            if route.bound.graph is not None:
                raise self._held.failure(error, None) from error
            way.route = None  # outputs may have other shapes than before: `run` finds out
            return None

    def again_torch(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None) -> dict[str, Any] | None:
        """Run a request for torch tensors as `again` does: results are there for what follows on the current stream.

        Returns:
            Output -> tensor; None if the request must be made by `run`.

        Raises:
            EnvironmentProblem: ONNX Runtime failed.
        """
        device = self._device
        if device is None or not self._torch_ways:
            return None
        route = self._torch_ways.get(torch_route.signature(feeds, outputs, device.index))
        if route is None:
            return None
        current = route.current()
        try:
            return device.along(route, lambda: route.run(feeds, current))
        except HalfconvError:
            raise
        except Exception as error:
            raise self._held.failure(error, None) from error

    def run(self, request: Request) -> dict[str, Any]:
        """Run a request.

        Returns:
            Output -> array.

        Raises:
            InputError: An input does not fit.
            RunStopped: It was stopped.
            EnvironmentProblem: ONNX Runtime failed.
            UsageError: The batch is to be padded, and its rows depend on each other.
        """
        ticket = request.ticket
        try:
            key = signature(request.feeds, request.outputs, _is_plain)
            way = None if key is None else self._ways.get(key)
            if way is None:
                feeds, way = self._find_way(request)
                if key is not None and all(feed.array is request.feeds[name] for name, feed in feeds.items()):
                    if len(self._ways) >= MOST_WAYS:
                        self._ways.clear()
                    self._ways[key] = way
            else:
                feeds = {n: Feed(way.specs[n], array, way.elements[n], array.shape) for n, array in request.feeds.items()}
            request.batch, request.bucket = way.batch, None if way.fit is None else way.fit.size
            if self._device is not None:
                found = self._device.run(request, feeds, way.fit or way.exact, way.names, way.cut)
                if key in self._ways and ticket is None and request.to == "numpy" and not self.loaded.recording:
                    self._look_for_route(self._device, way, feeds)
                if request.to == "torch" and ticket is None and not self.loaded.recording:
                    self._look_for_torch_route(self._device, request, way)
            else:
                found = self._on_host(request, feeds, way.fit, way.names, way.cut)
        except HalfconvError:
            raise
        except Exception as error:
            raise self._held.failure(error, ticket) from error
        if ticket is not None:
            ticket.check()
        if self.loaded.recording:
            with self._lock:
                self.loaded.show()
        return found

    def _find_way(self, request: Request) -> tuple[dict[str, Feed], _Way]:
        """Look at a request, and find out how to run it."""
        feeds = self._look(request.feeds)
        names = chosen(request.outputs, self.outputs)
        shapes = {name: feed.shape for name, feed in feeds.items() if feed.spec.storage is not None}
        first = next(iter(shapes.values()), ())
        fit, cut = self._fit(feeds, shapes, request.ticket)
        exact = Fit(shapes, 0, 0, frozenset(), self._held.settings.graph is True, False)
        specs, elements = ({n: getattr(feed, part) for n, feed in feeds.items()} for part in ("spec", "element"))
        return feeds, _Way(names, fit, exact, cut, first[0] if first else None, specs, elements)

    @staticmethod
    def _look_for_route(device: OnDevice, way: _Way, feeds: Mapping[str, Feed]) -> None:
        """Find a route for the next requests like one that just ran."""
        route = way.route  # which other threads may drop
        if route is not None and route.bound.closed:  # others' shapes took its place
            way.route, way.looks = None, 0
        if way.route is None and way.looks < MOST_LOOKS:
            way.looks += 1
            if way.looks > 1:
                with contextlib.suppress(Exception):  # no memory for it, say: this request has its answer
                    way.route = device.route(way.fit or way.exact, feeds, way.names)

    def _look_for_torch_route(self, device: OnDevice, request: Request, way: _Way) -> None:
        """Find a route for the next requests of tensors like those that just ran."""
        key = torch_route.signature(request.feeds, request.outputs, device.index)
        known = self._torch_ways.get(key)
        if key is None or (known is not None and not known.bound.closed):  # as where hooks send each request the long way
            return
        with contextlib.suppress(Exception):  # this request has its answer
            route = device.torch_route(way.fit or way.exact, way.names)
            if route is not None:
                if len(self._torch_ways) >= MOST_WAYS:
                    self._torch_ways.clear()
                self._torch_ways[key] = route

    def _look(self, feeds: Mapping[str, Any]) -> dict[str, Feed]:
        match(feeds, self.inputs)
        return {name: look(value, self.inputs[name]) for name, value in feeds.items()}

    def _fit(
        self, feeds: dict[str, Feed], shapes: Mapping[str, Any], ticket: Ticket | None
    ) -> tuple[Fit | None, frozenset[str]]:  # fmt: skip
        """Return the request's bucket, and which outputs are to be cut to its batch size; no bucket where that is not right."""
        fit = self.buckets.fit(shapes) if self.buckets and len(shapes) == len(feeds) else None
        cut: frozenset[str] = frozenset()
        if fit is not None and fit.rows != fit.size:
            verdict = self._verdict(fit, feeds, ticket)
            if verdict.why_not and fit.asked:
                raise UsageError(f"batches of {fit.rows} cannot be padded to {fit.size}: {verdict.why_not}", "buckets=None")
            fit, cut = (None, cut) if verdict.why_not else (fit, verdict.cut)
        return fit, cut

    # Through ONNX Runtime's plain call

    def _on_host(
        self, request: Request, feeds: dict[str, Feed], fit: Fit | None, names: list[str], cut: frozenset[str]
    ) -> dict[str, Any]:
        arrays = self._cast(feeds)
        if fit is not None and fit.rows != fit.size:
            arrays = {name: pad(array, fit.size) if name in fit.batched else array for name, array in arrays.items()}
        values = self._raw(arrays, names, request.ticket)
        rows = None if fit is None or fit.rows == fit.size else fit.rows
        wanted = self._held.settings.output
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
        options = options_of(ticket) or (run_options() if self.loaded.graph else None)

        def call() -> dict[str, Any]:
            session = self.loaded.session
            if not self._bits:
                return dict(zip(names, session.run(names, arrays, options), strict=True))
            import onnxruntime

            make, bits = onnxruntime.OrtValue.ortvalue_from_numpy, onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = {}
            for name, array in arrays.items():
                spec = self.inputs[name]
                values[name] = bits(array, spec.code) if spec.element == "bfloat16" else make(array)
            return {n: read_value(v) for n, v in zip(names, session.run_with_ort_values(names, values, options), strict=True)}

        if self._held.provider == "cpu":
            return call()
        if self._device is not None:
            return self._device.call(call, ticket)
        with GATE.shared():
            return call()

    def _verdict(self, fit: Fit, feeds: dict[str, Feed], ticket: Ticket | None) -> Verdict:
        """Return whether a bucket may be padded; checked with its first request."""
        key = shapes_key(fit.shapes)
        with self._lock:
            known = self._verdicts.get(key)
        if known is not None:
            return known
        arrays = self._cast(feeds)
        names = list(self.outputs)
        alone = self._raw(arrays, names, ticket)
        filled = {fill: {n: pad(a, fit.size, fill) if n in fit.batched else a for n, a in arrays.items()} for fill in (None, 0)}
        padded = self._raw(filled[None], names, ticket)
        zeros = None
        with contextlib.suppress(Exception):  # a model need not take zeros
            zeros = self._raw(filled[0], names, ticket)
        if ticket is not None:
            ticket.check()
        verdict = judge(self.outputs, fit, alone, padded, zeros, self._allowed)
        with self._lock:
            self._verdicts[key] = verdict
            if verdict.why_not:
                self.notes.append(f"batches are not padded to {fit.size}: {verdict.why_not}")
        return verdict

    # Buffers that the caller fills

    def bind(self, feeds: Mapping[str, Any]) -> Bound:
        """Bind buffers of the caller's own, and run once on what is given.

        Raises:
            InputError: The inputs do not fit.
            UsageError: The model has inputs or outputs that are no tensors of numbers.
        """
        looked = self._look(feeds)
        if self._held.passes:
            raise UsageError(
                f"output {self._held.passes!r} is an input, too, which ONNX Runtime does not copy", "run(), which returns it"
            )
        if not self._held.tensors:
            raise UsageError("the model has inputs or outputs that are no tensors of numbers", "run(), which takes them")
        with self._lock:
            self._binder = self._binder or self._device or OnDevice(self._held, Host())
        return self._binder.bind(looked)

    def run_bound(self, bound: Bound, ticket: Ticket | None) -> None:
        """Run on buffers that the caller filled.

        Raises:
            RunStopped: It was stopped.
            EnvironmentProblem: ONNX Runtime failed.
        """
        assert self._binder is not None
        self._binder.run_bound(bound, ticket)

    def unbind(self, bound: Bound) -> None:
        """Free buffers of the caller's own."""
        assert self._binder is not None
        self._binder.unbind(bound)

    def close(self) -> None:
        """Release the model and all buffers."""
        if self._device is not None:
            self._device.close()
        self._held.close()
        if self._device is not None:
            self._device.release()
