"""One set of input shapes on a device: buffers that are used again, the binding of the model to them, and a CUDA graph."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import foreign
from .arrays import FLOATS, Feed, Spec, cast_into, finish, read_value
from .buckets import shapes_key
from .device import Device, Stream
from .layout import DIRECT, DIRECT_RESULT, aligned, places_of
from .lending import Lender
from .route import Move, Result, Route
from .torch_route import TorchRoute

__all__ = ["Bound", "run_options"]

#: The run option that names a CUDA graph, and the value that means none.
_GRAPH, _NO_GRAPH = "gpu_graph_id", -1
#: The one that lets a run return before the device has ended it.
_NO_WAIT = "disable_synchronize_execution_providers"


def run_options(graph: int = _NO_GRAPH, *, wait: bool = True) -> Any:
    """Return ``RunOptions`` for a graph's number; without one nothing is captured.

    Args:
        graph: The number.
        wait: Whether a run ends with the work on the device, or when that is on its way.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH, str(graph))
    if not wait:
        options.add_run_config_entry(_NO_WAIT, "1")
    return options


class _Read(NamedTuple):
    """How an output is read; no address: it is in the CPU's memory already."""

    address: int | None
    size: int
    shape: tuple[int, ...]
    storage: np.dtype[Any]


def _storage(spec: Spec) -> np.dtype[Any]:
    assert spec.storage is not None  # else the model would not be bound
    return spec.storage


def _as_wanted(feed: Feed, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return an input's array if it is large, and of a buffer's type, shape and order."""
    array = feed.array
    if array is None or array.nbytes < DIRECT or feed.element != feed.spec.element or feed.shape != buffer.shape:
        return None
    return array if array.dtype == buffer.dtype and array.flags.c_contiguous else None


class Bound:
    """A model bound to buffers of fixed shapes. Not for several threads at once: take `lock`, or a lane, first.

    Args:
        session: ONNX Runtime's session.
        inputs: The specs of the inputs that are given.
        outputs: The specs of all outputs.
        device: Where the buffers lie.
        shapes: Input -> dimensions.
        graph: The number of the CUDA graph; None for none.

    Attributes:
        lock: Held during a run.
        shapes: Input -> dimensions.
        key: The same, as a dictionary's key.
        captured: The thread that captured the graph; None as long as there is none.
        runs: How many runs it made.
        closed: Whether its buffers are gone.
    """

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, Spec],
        outputs: Mapping[str, Spec],
        device: Device,
        shapes: Mapping[str, tuple[int, ...]],
        graph: int | None = None,
    ):
        self.lock = threading.Lock()
        self.shapes, self.key = dict(shapes), shapes_key(shapes)
        self.graph = graph
        self.captured: int | None = None
        self.runs = 0
        self.closed = False
        self._session = session
        self._device = device
        self._outputs = outputs
        self._binding = session.io_binding()
        self._values: dict[str, Any] = {}
        self._addresses: dict[str, tuple[int, int, int]] = {}
        self._elsewhere: set[str] = set()  # inputs that are bound to other memory than their buffer
        self._fixed: dict[str, Any] = {}  # outputs of the graph, and whether they are bound
        self._reads: dict[str, _Read] = {}
        self._bound = False
        self._views: dict[str, Any] = {}  # of buffers, for other libraries
        self._loose = graph is not None and device.shared  # runs end on the device after they have ended here
        self._plain, self._graphed = run_options(), None if graph is None else run_options(graph, wait=not self._loose)
        self._specs = {name: inputs[name] for name in shapes}
        self._staged, self._stage = self._staging()
        self._results, self._results_at = device.buffer(0), 0
        self._seen: dict[str, tuple[int, ...]] = {}  # shapes of all outputs, in the last run that made all
        self._routes: weakref.WeakSet[Route | TorchRoute] = weakref.WeakSet()
        self._routed: tuple[dict[str, int], np.ndarray[Any, Any]] | None = None  # where outputs lie in pinned memory of routes
        self._lenders: dict[str, Lender] = {}  # of outputs that are not small

    def _staging(self) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        """Make the buffer that inputs are cast into, and its part for each of them."""
        places, end = places_of({name: (dims, _storage(self._specs[name])) for name, dims in self.shapes.items()})
        whole = self._device.buffer(end)
        return {name: place.view(whole) for name, place in places.items()}, whole

    def _make(self, name: str) -> Any:
        """Make the buffer of an input where the model reads it."""
        import onnxruntime

        spec = self._specs[name]
        if spec.on_host and self._device.name != "cpu":
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(self._staged[name], spec.code)
        return self._new(spec, self.shapes[name])

    def _new(self, spec: Spec, shape: Sequence[int]) -> Any:
        import onnxruntime

        where = ("cpu", 0) if spec.on_host else (self._device.name, self._device.index)
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), spec.code, *where)

    def fill(self, feeds: Mapping[str, Feed]) -> list[Any]:
        """Cast and copy a run's inputs to where the model reads them, and bind them.

        Args:
            feeds: The inputs, whose arrays are written; where a batch is smaller than the buffer, its last row fills the rest.

        Returns:
            What must live until the run has ended.

        Raises:
            InputError: An input cannot be cast or copied.
        """
        kept = []
        self._device.enter()
        for name, feed in feeds.items():
            if feed.array is None and self.graph is None:
                address = foreign.direct(feed, self.shapes[name], self._device.index)
                if address is not None:
                    kept.append(feed.given)
                    self._elsewhere.add(name)
                    self._binding.bind_input(name, self._device.name, self._device.index, feed.spec.code, list(feed.shape), address)
                    continue
            value = self._values.get(name)
            if value is None:
                value = self._values[name] = self._make(name)
                self._addresses[name] = value.data_ptr(), self._staged[name].ctypes.data, self._staged[name].nbytes
                self._elsewhere.add(name)
            if name in self._elsewhere:
                self._elsewhere.remove(name)
                self._binding.bind_ortvalue_input(name, value)
            if feed.array is None:
                foreign.put(feed.given, value, name, self._device.copy, self._views)
                continue
            staged = self._staged[name]
            to, address, size = self._addresses[name]
            direct = _as_wanted(feed, staged) if to != address else None
            if direct is not None:
                self._device.send(to, direct.ctypes.data, size)
                continue
            if feed.shape == staged.shape:
                cast_into(feed, staged)
            else:
                rows = feed.shape[0]
                cast_into(feed, staged[:rows])
                staged[rows:] = staged[rows - 1 : rows]
            if to != address and size:
                self._device.copy(to, address, size)
        if not self._loose:
            self._device.wait()
        return kept

    def run(self, names: Sequence[str], options: Any = None) -> dict[str, Any]:
        """Run the model on what `fill` bound, without a graph.

        Args:
            names: Outputs to compute.
            options: ``RunOptions`` of a run that may be stopped.

        Returns:
            Output -> OrtValue, in memory of this run's own.
        """
        self._binding.clear_binding_outputs()  # else ONNX Runtime writes into what the caller got last time
        self._bound = False
        for name in names:
            if self._outputs[name].on_host:
                self._binding.bind_output(name, "cpu")
            else:
                self._binding.bind_output(name, self._device.name, self._device.index)
        self._session.run_with_iobinding(self._binding, options or self._plain)
        self.runs += 1
        values = dict(zip(names, self._binding.get_outputs(), strict=True))
        if len(values) == len(self._outputs):
            self._seen = {name: tuple(value.shape()) for name, value in values.items()}
        return values

    @property
    def buffers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The OrtValues that the model reads, and those that `replay` writes."""
        return dict(self._values), dict(self._fixed)

    @property
    def ready(self) -> bool:
        """Whether a replay captures nothing: there is no graph, or this thread has captured it."""
        return self.graph is None or self.captured == threading.get_ident()

    def learn(self) -> None:
        """Run what `fill` bound without the graph, to see the outputs' shapes, and bind buffers of these shapes."""
        if not self._fixed:
            self.run(list(self._outputs))
            self._fix()

    def _fix(self) -> None:
        """Make buffers for outputs of the shapes that were seen last."""
        self._fixed = {name: self._new(self._outputs[name], shape) for name, shape in self._seen.items()}

    def replay(self, names: Sequence[str], options: Any = None) -> dict[str, Any]:
        """Run on what `fill` bound into fixed outputs, once `learn` made them: a graph, which a thread's first call captures.

        On a shared stream this returns before the run has ended: `read` and `wait` wait for it.

        Args:
            names: Outputs to return; a graph computes all.
            options: ``RunOptions`` of a run that may be stopped, for the same graph.

        Returns:
            Output -> OrtValue, in memory that the next run overwrites.

        Raises:
            Exception: ONNX Runtime's, when an operator cannot be captured.
        """
        self.launch(options)
        self.captured = None if self.graph is None else threading.get_ident()
        return {name: self._fixed[name] for name in names}

    def launch(self, options: Any = None) -> None:
        """Run as `replay` does, for routes."""
        if not self._bound:
            for name, value in self._fixed.items():
                self._binding.bind_ortvalue_output(name, value)
            self._bound = True
        self._session.run_with_iobinding(self._binding, options or self._graphed or self._plain)
        self.runs += 1

    def wait(self) -> None:
        """Wait for a run that began."""
        if self._loose:
            self._device.wait()

    @property
    def settled(self) -> bool:
        """Whether buffers of its own are bound to all inputs."""
        return not self.closed and not self._elsewhere

    def route(self, feeds: Mapping[str, Feed], names: Sequence[str], wanted: str | None) -> Route | None:
        """Return the way of requests like one that just ran; None if they have to take the long one.

        Args:
            feeds: Its inputs, arrays of the buffers' shapes in the CPU's memory.
            names: Outputs to return.
            wanted: The float type of outputs.
        """
        if set(feeds) != set(self._addresses) or not self.settled:
            return None
        if any(spec.on_host for spec in self._outputs.values()) and self._device.name != "cpu":
            return None
        if self.graph is None and (set(names) != set(self._outputs) or set(self._seen) != set(names)):
            return None
        moves = [Move(feed.spec, feed.element, self._staged[name], *self._addresses[name]) for name, feed in feeds.items()]
        if any(feed.shape != self.shapes[name] or not self._addresses[name][2] for name, feed in feeds.items()):
            return None
        if not self._fixed:
            self._fix()
        reads = {name: self._reading(name, self._fixed[name], None) for name in self._outputs}
        if not all(read.size for read in reads.values()):
            return None
        staged = {name: self._is_staged(name, read, wanted, DIRECT_RESULT) for name, read in reads.items()}
        if self._routed is None:
            places, end = places_of({name: (read.shape, read.storage) for name, read in reads.items() if staged[name]})
            self._routed = {name: place.begin for name, place in places.items()}, self._device.buffer(end)
            large = {name: read for name, read in reads.items() if read.size >= DIRECT}
            self._lenders = {name: Lender(read.shape, read.storage) for name, read in large.items()}
        begins, buffer = self._routed
        results = [
            Result(name, self._outputs[name], reads[name].address or 0, *reads[name][1:], begins.get(name)) for name in names
        ]
        route = Route(self, self._device, moves, results, buffer, self._lenders, wanted)
        self._routes.add(route)
        return route

    def torch_route(self, stream: Stream, names: Sequence[str], wanted: str | None) -> TorchRoute | None:
        """Return the way of requests of torch tensors like one that just ran; None if they have to take the long one.

        Args:
            stream: The stream that the graph runs on.
            names: Outputs to return.
            wanted: The float type of outputs.
        """
        specs = (*self._specs.values(), *self._outputs.values())
        if set(self._values) != set(self._specs) or not self.settled or not self._loose:
            return None
        if any(spec.on_host for spec in specs) and self._device.name != "cpu":
            return None
        outputs = {name: self._fixed[name] for name in names}
        route = TorchRoute(self, stream, self._device.index, self._values, outputs, self._outputs, wanted)
        self._routes.add(route)
        return route

    def _is_staged(self, name: str, read: _Read, wanted: str | None, direct: int) -> bool:
        """Say whether an output comes through pinned memory: it is smaller than a number of bytes, or is cast on its way."""
        element = self._outputs[name].element
        return read.address is not None and (read.size < direct or (element in FLOATS and wanted not in (None, element)))

    def read(self, values: Mapping[str, Any], rows: int | None, cut: frozenset[str], to: str, wanted: str | None) -> dict[str, Any]:
        """Return a run's outputs as the caller wants them.

        Args:
            values: Output -> OrtValue.
            rows: The batch size that the caller gave, where it was padded; else None.
            cut: Outputs whose first dimension is the batch.
            to: Their container.
            wanted: A float's name; None for the model's own type.
        """
        if to != "numpy":
            self.wait()
            fresh = not any(value is self._fixed.get(name) for name, value in values.items())
            return {
                name: foreign.from_host(self._trim(read_value(value), name, rows, cut), self._outputs[name], to, wanted)
                if value.device_name() == "cpu" and self._device.name != "cpu"
                else foreign.from_device(value, self._outputs[name], to, rows if name in cut else None, wanted, fresh)
                for name, value in values.items()
            }
        fixed = rows is None and all(value is self._fixed.get(name) for name, value in values.items())
        reads = {}
        for name, value in values.items():
            if not fixed:
                reads[name] = self._reading(name, value, rows if name in cut else None)
                continue
            if name not in self._reads:  # what most runs ask for is found out once
                self._reads[name] = self._reading(name, value, None)
            reads[name] = self._reads[name]
        staged = {name for name, read in reads.items() if self._is_staged(name, read, wanted, DIRECT)}
        self._reserve_results(sum(aligned(reads[name].size) for name in staged))
        found, end = {}, 0
        for name, (address, size, shape, storage) in reads.items():
            if address is None:
                found[name] = self._trim(read_value(values[name]), name, rows, cut)
            elif name not in staged:
                found[name] = np.empty(shape, storage)
            else:
                found[name] = self._results[end : end + size].view(storage).reshape(shape)
                if size:
                    self._device.copy(self._results_at + end, address, size)
                end += aligned(size)
        self._device.wait()
        for name in found.keys() - staged:
            address, size, *_ = reads[name]
            if address is not None:
                self._device.fetch(found[name].ctypes.data, address, size)
        for name, array in found.items():
            ended = finish(array, self._outputs[name], wanted)
            found[name] = self._own(ended, array) if name in staged else ended
        return found

    def _reading(self, name: str, value: Any, rows: int | None) -> _Read:
        """Find out how an output is read: all of it, or so many rows."""
        spec = self._outputs[name]
        shape = tuple(value.shape()) if rows is None else (rows, *value.shape()[1:])
        storage = _storage(spec)
        host = spec.on_host and self._device.name != "cpu"
        return _Read(None if host else value.data_ptr(), math.prod(shape) * storage.itemsize, shape, storage)

    def _reserve_results(self, size: int) -> None:
        """Have a buffer of some size for outputs."""
        if size > self._results.nbytes:
            self._device.release(self._results)
            self._results = self._device.buffer(size)
            self._results_at = self._results.ctypes.data

    def _own(self, array: Any, view: Any) -> Any:
        """Return an array in memory of its own, as the next run overwrites the buffer."""
        return np.array(array) if array is view or array.base is not None else array

    @staticmethod
    def _trim(array: Any, name: str, rows: int | None, cut: frozenset[str]) -> Any:
        return array[:rows] if rows is not None and name in cut else array

    def detach(self) -> None:
        """Let go of ONNX Runtime's session, and of all that it made; no CUDA call is made."""
        self.closed, self.captured = True, None
        self._values, self._fixed, self._views, self._reads = {}, {}, {}, {}
        for route in self._routes:
            route.forget()
        self._lenders = {}
        self._binding = self._session = None

    def close(self) -> None:
        """Free the buffers; ONNX Runtime's graph, if it can."""
        if self.graph is not None and self.captured is not None and hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(self.graph)
        self.detach()
        self._staged = {}
        self._device.release(self._stage)
        self._device.release(self._results)
        if self._routed is not None:
            self._device.release(self._routed[1])
        self._routed = None
        self._stage = self._results = np.empty(0, np.uint8)
