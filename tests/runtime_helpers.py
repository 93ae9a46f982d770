"""What the tests need of a runtime: sessions in child processes, and comparison of what they give.

ONNX Runtime 1.32 can die at ORT_ENABLE_ALL on valid FP16 models, so no test opens a session in its own process.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

LEVELS = ("ALL", "EXTENDED", "BASIC", "DISABLE_ALL")
Feeds = dict[str, Any]

# --- work in child processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """What a child process could not do: an exception's type and text, or the death of the process."""

    kind: str
    message: str

    @property
    def crashed(self) -> bool:
        return self.kind == "crash"


def _serve(connection: Any, function: Callable[[Any], Any]) -> None:
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = function(item)
        except Exception as error:
            answer = Failure(type(error).__name__, str(error))
        connection.send(answer)


class _Child:
    """One child process that answers one item at a time, and is replaced when it dies."""

    def __init__(self, function: Callable[[Any], Any], timeout: float):
        self.function, self.timeout = function, timeout
        self.process: Any = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, item: Any) -> Any:
        if self.process is None:
            self._start()
        try:
            self.connection.send(item)
            if not self.connection.poll(self.timeout):
                self.process.kill()
                self.close()
                return Failure("crash", f"no answer in {self.timeout:.0f} s")
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.close()
            return Failure("crash", f"the process died (exit code {code})")

    def close(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.join()
            self.process = None


_lasting: dict[Callable[[Any], Any], _Child] = {}


def isolate(function: Callable[[Any], Any], items: Sequence[Any], *, workers: int = 2, timeout: float = 300) -> list[Any]:
    """Call a module-level function on each item in child processes; a failure becomes a `Failure`, never an exception.

    Many items share one child, which keeps small models fast; when a child dies, its item is the culprit and the next
    child goes on with the rest. A single worker is kept for the next call.
    """
    if workers == 1:
        child = _lasting.setdefault(function, _Child(function, timeout))
        return [child.ask(item) for item in items]
    answers: list[Any] = [None] * len(items)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(items)):
        todo.put(index)

    def work() -> None:
        child = _Child(function, timeout)
        try:
            while True:
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                answers[index] = child.ask(items[index])
        finally:
            child.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, min(workers, len(items))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# --- ONNX Runtime sessions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One model, from a file or from bytes, and the inputs to run it on.

    With `fit`, floating-point feeds are cast to the type that the model's inputs have, so that one sample serves the
    original and a model with half inputs.
    """

    model: str | bytes
    feeds: Sequence[Feeds] = ()
    fit: bool = False
    level: str = LEVELS[0]


@dataclass(frozen=True)
class Outcome:
    """What a model gave: outputs per feed, or the failure; and the optimisation level that worked."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    level: str = ""
    failure: Failure | None = None
    stumbled: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        return self.failure is None


def job(model: onnx.ModelProto | Path | str | bytes, feeds: Sequence[Feeds] = (), *, fit: bool = False) -> Job:
    """Make a job of a model in any form."""
    if isinstance(model, onnx.ModelProto):
        return Job(model.SerializeToString(), feeds, fit)
    return Job(model if isinstance(model, bytes) else str(model), feeds, fit)


_NUMPY = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}


def _fit(value: Any, kind: str) -> Any:
    if kind.startswith("seq(") and isinstance(value, list):
        return [_fit(item, kind[4:-1]) for item in value]
    if kind in _NUMPY and isinstance(value, np.ndarray) and value.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return value.astype(_NUMPY[kind])
    return value


def _run_in_child(item: Job) -> Outcome:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    name = item.level if item.level.startswith("DISABLE") else f"ENABLE_{item.level}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}")
    try:
        session = onnxruntime.InferenceSession(item.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return Outcome(failure=Failure("load", f"{type(error).__name__}: {error}"))
    names = [output.name for output in session.get_outputs()]
    outputs = []
    for feeds in item.feeds:
        if item.fit:
            inputs = (*session.get_inputs(), *session.get_overridable_initializers())
            kinds = {entry.name: entry.type for entry in inputs}
            feeds = {name: _fit(value, kinds[name]) for name, value in feeds.items()}
        try:
            outputs.append(dict(zip(names, session.run(names, feeds), strict=True)))
        except Exception as error:
            return Outcome(failure=Failure("run", f"{type(error).__name__}: {error}"))
    return Outcome(outputs, item.level)


def run_all(jobs: Sequence[Job], *, workers: int = 2) -> list[Outcome]:
    """Run every job in child processes, at the highest optimisation level at which ORT neither throws nor dies."""
    outcomes = [Outcome(failure=Failure("none", "not run"))] * len(jobs)
    pending = list(range(len(jobs)))
    stumbled: dict[int, tuple[str, ...]] = {index: () for index in pending}
    for level in LEVELS:
        answers = isolate(_run_in_child, [Job(jobs[i].model, jobs[i].feeds, jobs[i].fit, level) for i in pending], workers=workers)
        again = []
        for index, answer in zip(pending, answers, strict=True):
            outcome = Outcome(failure=answer) if isinstance(answer, Failure) else answer
            if outcome.failure is not None and outcome.failure.kind != "run":
                stumbled[index] += (f"{level}: {outcome.failure.message}",)
                again.append(index)
            outcomes[index] = Outcome(outcome.outputs, outcome.level, outcome.failure, stumbled[index])
        pending = again
        if not pending:
            break
    return outcomes


def run(model: onnx.ModelProto | Path | str | bytes, feeds: Sequence[Feeds] = (), *, fit: bool = False) -> Outcome:
    """Run one model; see `run_all`."""
    return run_all([job(model, feeds, fit=fit)], workers=1)[0]


def full_check(path: Path | str) -> None:
    """Raise what onnx's full checker raises on the written file."""
    onnx.checker.check_model(os.fspath(path), full_check=True)


# --- comparison ----------------------------------------------------------------------------------------------------


def difference(got: Any, want: Any, *, rtol: float, atol: float) -> str:
    """Say what differs, or the empty string. Only floating-point numbers may differ, within the tolerances."""
    if isinstance(want, list) or isinstance(got, list):
        if not (isinstance(want, list) and isinstance(got, list)) or len(got) != len(want):
            return f"sequence: got {type(got).__name__}, want {type(want).__name__} of the same length"
        found = (difference(g, w, rtol=rtol, atol=atol) for g, w in zip(got, want, strict=True))
        return next((text for text in found if text), "")
    if isinstance(want, dict) and isinstance(got, dict):
        if got.keys() != want.keys():
            return "map: keys differ"
        return difference(list(got.values()), list(want.values()), rtol=rtol, atol=atol)
    if want is None or got is None:
        return "" if want is None and got is None else f"got {got!r}, want {want!r}"
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return f"shape: got {got.shape}, want {want.shape}"
    if want.dtype.kind not in "fcV":
        return "" if (got == want).all() else f"{int((got != want).sum())} of {want.size} elements differ"
    if want.dtype.kind == "c":
        got, want = got.view(got.real.dtype), want.view(want.real.dtype)
    got, want = got.astype(np.float64), want.astype(np.float64)
    if np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(got - want), initial=0.0)
    return f"largest difference {largest:.4g}, want up to {np.nanmax(np.abs(want), initial=0.0):.4g}"


def rel_l2(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 distance over the elements where the reference is finite; infinite if those are not."""
    finite = np.isfinite(want)
    g, w = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not np.isfinite(g).all():
        return float("inf")
    norm = float(np.sqrt((w**2).sum()))
    distance = float(np.sqrt(((g - w) ** 2).sum()))
    return distance / norm if norm else distance
