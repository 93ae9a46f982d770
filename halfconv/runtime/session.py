"""`Session`: run a model correctly, fast and provably on the right provider.

``session = halfconv.Session("model.fp16.onnx")``, ``outputs = session.run({"input": array})``; `Session.provider`,
`Session.placement` and `Session.notes` say what runs where.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError, UsageError
from . import foreign
from .arrays import Spec, float_type
from .binding import Bound
from .buffers import Buffers
from .deadline import Ticket, Watchdog
from .device import GATE
from .engine import Engine
from .held import Request, Settings
from .hooks import Hook, RunRecord, hooks_of, tell
from .loading import Wishes
from .on_device import GraphState
from .placement import Placement
from .settings import PROVIDERS, Profile, find_profile
from .surface import check_surface, known_shapes, made_up
from .tensorrt import EngineOptions

__all__ = ["RunFuture", "Session"]

_SHORT = {names[0]: short for short, names in PROVIDERS.items()}


class RunFuture(Future[dict[str, Any]]):
    """The result of `Session.run_async`; cancelling it also stops a run that has begun."""

    def __init__(self, ticket: Ticket):
        super().__init__()
        self._ticket = ticket

    def cancel(self) -> bool:
        """Cancel the run.

        Returns:
            True if it had not begun. Else it is told to stop, and then raises `RunStopped`.
        """
        if super().cancel():
            return True
        if not self.done():
            self._ticket.stop("it was cancelled")
        return False


class Session:
    """A model, ready to run. Many threads may share it; after `os.fork`, a child needs its own.

    Args:
        model: Path of an ONNX file, or its bytes.
        provider: ``cpu``, ``cuda``, ``tensorrt``, or ``auto`` for the best that works; `provider` and `notes` say which and why.
        device_id: The GPU.
        memory_limit: Bytes of its memory that ONNX Runtime may take for this model.
        profile: Path of a run profile; None for the one beside the model, False for none.
        output: Float type of outputs: ``same as model``, ``float32``, or another float's name or numpy type.
        threads: Threads that compute on the CPU; None leaves it to ONNX Runtime.
        buckets: Batch sizes to pad batches to. Only for models whose rows do not depend on each other: the first padded batch of
            each size is checked. None pads to the profile's buckets, if a check finds that right.
        cuda_graph: True for CUDA graphs of all shapes, False for none; None for `buckets`, and as the profile says.
        cache: How many sets of shapes keep buffers on the GPU; also the most CUDA graphs.
        strict: Refuse to run any node on the CPU: a model of which some would, and ``auto`` where no other provider works.
        engine: How TensorRT builds its engines, and where it keeps them.
        workers: Threads that `run_async` and `arun` run on.
        on_run: Called with a `RunRecord` after each run; one callable or several.

    Raises:
        InputError: The model, or a profile that was named, cannot be used.
        EnvironmentProblem: The provider that was asked for cannot be used; the message says why, and what to do.
        UsageError: An option is wrong.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        provider: str = "auto",
        device_id: int = 0,
        memory_limit: int | None = None,
        profile: str | Path | bool | None = None,
        output: Any = "same as model",
        threads: int | None = None,
        buckets: Sequence[int] | None = None,
        cuda_graph: bool | None = None,
        cache: int = 16,
        strict: bool = False,
        engine: EngineOptions | None = None,
        workers: int = 4,
        on_run: Hook | Sequence[Hook] | None = None,
    ):
        if provider != "auto" and provider not in PROVIDERS:
            raise UsageError(f"provider={provider!r}", ", ".join(map(repr, ("auto", *PROVIDERS))))
        for name, number, least in (
            ("device_id", device_id, 0), ("memory_limit", memory_limit, 1), ("threads", threads, 1), ("cache", cache, 1),
            ("workers", workers, 1),
        ):  # fmt: skip
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
                raise UsageError(f"{name}={number!r}", f"a whole number from {least} on")
        for name, choice in (("strict", strict), ("cuda_graph", cuda_graph)):
            if not isinstance(choice, bool) and (name == "strict" or choice is not None):
                raise UsageError(f"{name}={choice!r}", "True or False" if name == "strict" else "True, False or None")
        if strict and provider == "cpu":
            raise UsageError("strict=True with provider='cpu': all nodes would run on the CPU", "strict=False, or provider='cuda'")
        self._pid = os.getpid()
        self._provider = provider
        self._hooks = hooks_of(on_run)
        self._workers = workers
        self._settings = Settings(
            Wishes((), device_id, memory_limit, threads, strict=strict, engine=engine or EngineOptions()),
            buckets,
            cuda_graph,
            cache,
            float_type(output),
        )
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._users: dict[Engine, int] = {}
        self._watchdog = Watchdog()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._buffers: weakref.WeakSet[Buffers] = weakref.WeakSet()
        self._dropped: deque[tuple[Engine, Bound]] = deque()
        self._engine = self._load(model, profile)
        self._users[self._engine] = 0

    def _load(self, model: str | Path | bytes, profile: str | Path | bool | None) -> Engine:
        """Load a model by the session's settings."""
        source: Path | bytes
        if isinstance(model, (bytes, bytearray, memoryview)):
            source = bytes(model)
        else:
            try:
                source = Path(os.path.abspath(model))  # noqa: PTH100  # links are kept: a profile lies beside them
            except TypeError:
                raise InputError(f"the model is a {type(model).__name__}", "a path, or the file's bytes") from None
            if not source.is_file():
                raise InputError(f"there is no model {source}", "another path")
        found = self._told(find_profile(source, profile))
        settings = replace(self._settings, wishes=self._wishes(found))
        return Engine(source, found, settings)

    def _told(self, profile: Profile) -> Profile:
        """Add a note where the profile keeps ``auto`` from a GPU that may be there."""
        import onnxruntime

        passed = self._provider == "auto" and self._wishes(profile).choices == ("cpu",)
        if not passed or PROVIDERS["cuda"][0] not in onnxruntime.get_available_providers():
            return profile
        note = "cuda was not tried: the profile does not name it; try: provider='cuda', or profile=False"
        return replace(profile, notes=(*profile.notes, note))

    def _wishes(self, profile: Profile) -> Wishes:
        known = tuple(_SHORT[name] for name in profile.providers if name in _SHORT)
        choices = (self._provider,) if self._provider != "auto" else known or ("cuda", "cpu")
        if self._settings.wishes.strict:  # then the CPU is no choice
            choices = tuple(choice for choice in choices if choice != "cpu") or ("cuda",)
        wanted = self._settings.graph
        graph = wanted if wanted is not None else bool(self._settings.buckets or any(b.cuda_graph for b in profile.buckets))
        wishes = replace(self._settings.wishes, choices=choices, level=profile.level, options=profile.options, graph=graph)
        if profile.buckets and not wishes.engine.shapes:
            wishes = replace(wishes, engine=replace(wishes.engine, shapes=[bucket.inputs for bucket in profile.buckets]))
        return wishes

    # What it is

    @property
    def provider(self) -> str:
        """What the model runs on: ``cpu``, ``cuda`` or ``tensorrt``."""
        return self._engine.loaded.provider

    @property
    def placement(self) -> Placement:
        """Which provider runs which nodes; complete after the first run."""
        return self._engine.loaded.placement

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as one might expect, and why: in sentences."""
        return tuple(self._engine.notes)

    @property
    def graphs(self) -> tuple[GraphState, ...]:
        """The sets of shapes that have buffers on the GPU, and which of them a CUDA graph; why not, else."""
        return self._engine.graphs

    @property
    def inputs(self) -> dict[str, str]:
        """Input -> type and shape: ``float16[batch, 3, 224, 224]``."""
        return {name: str(spec) for name, spec in self._engine.inputs.items() if spec.needed}

    @property
    def outputs(self) -> dict[str, str]:
        """Output -> type and shape."""
        return {name: str(spec) for name, spec in self._engine.outputs.items()}

    @property
    def input_specs(self) -> dict[str, Spec]:
        """Input -> its specification, of those that a run must give."""
        return {name: spec for name, spec in self._engine.inputs.items() if spec.needed}

    @property
    def output_specs(self) -> dict[str, Spec]:
        """Output -> its specification."""
        return dict(self._engine.outputs)

    # Running

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, to: str = "numpy", timeout: float | None = None
    ) -> dict[str, Any]:
        """Run the model.

        Args:
            feeds: Input -> array: numpy of any float type, torch or CuPy, on the CPU or the GPU, or anything with DLPack.
            outputs: Outputs to compute; None for all.
            to: Container of the outputs: ``numpy``, or ``torch``, ``cupy``, ``ort`` where the model's memory is.
            timeout: Seconds after which the run is stopped; None for no limit.

        Returns:
            Output -> array.

        Raises:
            InputError: A name, type or shape is wrong.
            RunStopped: The run took longer than the timeout.
            EnvironmentProblem: ONNX Runtime failed, or this process is a child of the one that made the session.
            UsageError: The session is closed, or an option is wrong.
        """
        engine = self._take()
        try:
            if timeout is None and to in ("numpy", "torch") and not self._hooks:
                found = engine.again(feeds, outputs) if to == "numpy" else engine.again_torch(feeds, outputs)
                if found is not None:
                    return found
            ticket = None if timeout is None else Ticket(timeout)
            return self._run(engine, Request(feeds, outputs, foreign.checked(to), ticket))
        finally:
            self._give_back(engine)

    def run_async(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, to: str = "numpy", timeout: float | None = None
    ) -> RunFuture:
        """Run the model on a thread of the session's; the arrays must not change until the result is there.

        Args:
            feeds: As for `run`.
            outputs: As for `run`.
            to: As for `run`.
            timeout: Seconds from now, waiting included.

        Returns:
            The result to come; what goes wrong in the run is raised by its ``result()``.

        Raises:
            UsageError: The session is closed, or an option is wrong.
        """
        request = Request(feeds, outputs, foreign.checked(to), Ticket(timeout))
        assert request.ticket is not None
        with GATE.shared():  # what is made on this thread's stream: the other knows only its own
            for value in feeds.values() if isinstance(feeds, Mapping) else ():
                foreign.wait(value)
        future = RunFuture(request.ticket)
        engine = self._take()

        def work() -> None:
            try:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(self._run(engine, request))
                except BaseException as error:
                    future.set_exception(error)
            finally:
                self._give_back(engine)

        try:
            with self._lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="halfconv-run")
                self._executor.submit(work)
        except BaseException:
            self._give_back(engine)
            raise
        return future

    async def arun(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, to: str = "numpy", timeout: float | None = None
    ) -> dict[str, Any]:
        """Run the model from a coroutine; cancelling the task stops the run. See `run`."""
        return await asyncio.wrap_future(self.run_async(feeds, outputs, to=to, timeout=timeout))

    def _run(self, engine: Engine, request: Request) -> dict[str, Any]:
        """Run a request, watch its deadline, and tell the hooks."""
        begun, error = time.perf_counter(), None
        ticket = request.ticket
        number = self._watchdog.watch(ticket) if ticket is not None and ticket.deadline is not None else None
        try:
            if ticket is not None:
                ticket.check()
            return engine.run(request)
        except BaseException as problem:
            error = type(problem).__name__
            raise
        finally:
            if number is not None:
                self._watchdog.forget(number)
            if self._hooks:
                seconds, provider = time.perf_counter() - begun, engine.loaded.provider
                tell(self._hooks, RunRecord(seconds, request.batch, request.bucket, provider, request.graph, error), engine.notes)

    def warmup(self, shapes: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run the model once for each set of shapes, so that buffers, graphs and the placement are there before the first request.

        While a graph is captured, CUDA forbids the whole process to allocate device memory: torch, too. Sessions wait for each
        other; other libraries cannot, so warm up before they work, or when they rest.

        Args:
            shapes: Input -> dimensions, or an array to use; or several of these. None for the buckets, or the model's own fixed
                shapes.

        Raises:
            UsageError: No shapes are given, and none are known.
        """
        with self._lease() as engine:
            given = [shapes] if isinstance(shapes, Mapping) else known_shapes(engine) if shapes is None else shapes
            if not isinstance(given, Sequence) or not all(isinstance(entry, Mapping) for entry in given):
                raise UsageError(f"shapes={shapes!r}", "warmup({input: shape, …}), or a list of these")
            for entry in given:
                feeds = {name: made_up(engine.inputs.get(name), value) for name, value in entry.items()}
                for _ in range(2):  # the first run shows the placement, the second captures the graph
                    engine.run(Request(feeds))

    def bind(self, shapes: Mapping[str, Any]) -> Buffers:
        """Make buffers that the caller fills and reads itself, with DLPack: nothing is copied, and on CUDA a graph is replayed.

        Args:
            shapes: Input -> dimensions, or an array to begin with.

        Returns:
            The buffers, on the model's device; close them when they are no longer used.

        Raises:
            InputError: The shapes do not fit.
            UsageError: The session is closed, or the model has inputs or outputs that are no tensors of numbers.
        """
        engine = self._take()
        try:
            bound = engine.bind({name: made_up(engine.inputs.get(name), value) for name, value in shapes.items()})
        except BaseException:
            self._give_back(engine)
            raise
        buffers = Buffers(engine, bound, self._watchdog, lambda: self._give_back(engine), self._dropped)
        with self._lock:
            self._buffers.add(buffers)
        return buffers

    # Lifetime

    def _take(self) -> Engine:
        """Return the model that is current, which is not released before it is given back."""
        if os.getpid() != self._pid:
            self._engine.check_process()
        if self._dropped:
            self._sweep()
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed", "a new Session")
            self._users[self._engine] += 1
            return self._engine

    @contextmanager
    def _lease(self) -> Iterator[Engine]:
        """Take the model, and give it back."""
        engine = self._take()
        try:
            yield engine
        finally:
            self._give_back(engine)

    def _give_back(self, engine: Engine) -> None:
        with self._lock:
            self._users[engine] -= 1
            last = not self._users[engine] and (self._closed or engine is not self._engine)
            if last:
                del self._users[engine]
        if last:
            engine.close()
            with self._lock:
                self._idle.notify_all()

    def _sweep(self) -> None:
        """Free buffers that were dropped without being closed."""
        while self._dropped:
            try:
                engine, bound = self._dropped.popleft()
            except IndexError:  # another thread was faster
                return
            engine.unbind(bound)
            self._give_back(engine)

    def swap(
        self, model: str | Path | bytes, *, profile: str | Path | bool | None = None, warmup: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the model without dropping a request: runs that began end on the old one, all others go to the new one.

        Args:
            model: Path or bytes of a model with the same inputs and outputs.
            profile: As in the constructor.
            warmup: Shapes to run it with first; None for those that are in use.

        Raises:
            InputError: It cannot be used, or has other inputs or outputs; the old model stays.
            EnvironmentProblem: The provider cannot be used for it; the old model stays.
        """
        with self._lease() as old:
            new = self._load(model, profile)
            try:
                check_surface(old, new)
                new.follow(old)
                states = [dict(state.inputs) for state in old.graphs] if warmup is None else [dict(warmup)]
                for shapes in states:
                    feeds = {name: made_up(new.inputs.get(name), value) for name, value in shapes.items()}
                    for _ in range(2):
                        new.run(Request(feeds))
            except BaseException:
                new.close()
                raise
            with self._lock:
                closed = self._closed
                if not closed:
                    self._engine, self._users[new] = new, 0
            if closed:
                new.close()
                raise UsageError("the session is closed", "a new Session")

    def close(self) -> None:
        """Let the runs that were accepted end, then release the model; further runs raise. May be called again."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closed = not self._closed, True
            buffers = list(self._buffers)
            unused = first and not self._users[self._engine]
            if unused:
                del self._users[self._engine]
        if unused:
            self._engine.close()
        for bound in buffers:
            bound.close()
        self._sweep()
        with self._lock:
            while self._users:
                self._idle.wait()
        if self._executor is not None:
            self._executor.shutdown()
        self._watchdog.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<halfconv.Session on {self.provider}{', closed' if self._closed else ''}>"
