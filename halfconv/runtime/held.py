"""A model that is held in memory, what the caller set for it, and how ONNX Runtime's failures are told."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, HalfconvError
from .arrays import Spec, spec_of
from .binding import run_options
from .deadline import Ticket
from .loading import Loaded, Wishes, load

__all__ = ["Held", "Request", "Settings", "options_of"]


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


class Held:
    """A loaded model.

    Args:
        source: Its path, or its bytes.
        notes: What was noted before it was loaded.
        settings: What the caller set.

    Attributes:
        settings: The same.
        loaded: The model as it is loaded now.
        notes: What is not as one might expect, in sentences.
        inputs: Its inputs, those that are initialisers too included.
        outputs: Its outputs.
        no_graph: Why it has no CUDA graphs; "" if it may have.

    Raises:
        InputError: The model cannot be read.
        EnvironmentProblem: The provider cannot be used.
    """

    def __init__(self, source: Path | bytes, notes: Sequence[str], settings: Settings):
        self._pid = os.getpid()
        self._source = str(source) if isinstance(source, Path) else source
        self.settings = settings
        self.loaded: Loaded = load(self._source, settings.wishes)
        self.notes = [*notes, *self.loaded.notes, *_elsewhere(self.loaded)]
        if self.provider == "cpu":
            given = (("memory_limit", settings.wishes.memory is not None), ("cuda_graph", settings.graph is True))
            self.notes += [f"{name} is a GPU's, and has no effect on the CPU" for name, there in given if there]
        self._stamp = self._stamped()
        self.inputs, self.outputs = _specs(self.loaded.session)
        self.no_graph = self._no_graph()
        if self.loaded.graph and self.no_graph:
            self.notes.append(f"no CUDA graphs: {self.no_graph}")
            self.without_graphs(self.no_graph)

    @property
    def provider(self) -> str:
        """``cpu``, ``cuda`` or ``tensorrt``."""
        return self.loaded.provider

    @property
    def tensors(self) -> bool:
        """Whether all inputs and outputs are tensors of numbers, which buffers can hold."""
        return all(
            spec.storage is not None and spec.element != "string" for spec in (*self.inputs.values(), *self.outputs.values())
        )

    @property
    def passes(self) -> str:
        """The name of an input that is an output, too; "" if there is none."""
        return next((name for name in self.inputs if name in self.outputs), "")

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that loaded the model."""
        return os.getpid() != self._pid

    def _no_graph(self) -> str:
        if not self.loaded.graph:
            found = [note for note in self.loaded.notes if note.startswith("no CUDA graphs: ")]
            return found[0].removeprefix("no CUDA graphs: ") if found else "not asked for"
        if self.passes:
            return f"output {self.passes!r} is an input, too, which ONNX Runtime does not copy"
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            for name, spec in specs.items():
                if self.provider != "cpu" and spec.on_host and (side == "output" or spec.needed):
                    return f"{side} {name!r} lies in the CPU's memory, which a graph would not read again"
        return ""

    def without_graphs(self, why: str) -> None:
        """Load the model again without CUDA graphs: a capture that failed leaves ONNX Runtime's session unusable.

        Raises:
            HalfconvError: It does not load again.
        """
        self.no_graph = why
        self.loaded.close()
        if self._stamped() != self._stamp:
            raise EnvironmentProblem(
                f"{self._source!r} changed since it was loaded, and must be loaded again", "swap() or a new Session"
            )
        self.loaded = load(self._source, replace(self.settings.wishes, graph=False, choices=(self.loaded.provider,)))

    def _stamped(self) -> tuple[int, ...]:
        """Return what shows that the model's file was replaced."""
        if isinstance(self._source, bytes):
            return ()
        found = Path(self._source).stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def failure(self, error: Exception, ticket: Ticket | None) -> HalfconvError:
        """Return halfconv's exception for one of ONNX Runtime's.

        Raises:
            RunStopped: It means that the run was stopped.
        """
        if ticket is not None:
            ticket.check()
        text = " ".join(str(error).split())[:400]
        advice = "the same inputs on provider='cpu'" if self.provider != "cpu" else "inputs of other shapes, or other values"
        return EnvironmentProblem(f"the run failed on {self.provider}: {text}", advice)

    def close(self) -> None:
        """Release the model."""
        self.loaded.close()

    def __del__(self) -> None:
        """In a process that `os.fork` made, keep ONNX Runtime's session: its end would wait for threads that were not copied."""
        loaded = getattr(self, "loaded", None)
        if loaded is not None and self.forked:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded))


def options_of(ticket: Ticket | None, graph: int | None = None) -> Any:
    """Return ``RunOptions`` for a run that may be stopped; None for one that may not.

    Raises:
        RunStopped: It was stopped before it began.
    """
    if ticket is None:
        return None
    options = run_options() if graph is None else run_options(graph)
    ticket.attach(options)
    return options


def _elsewhere(loaded: Loaded) -> list[str]:
    """Say which nodes run on the CPU although another provider runs the model."""
    placement = loaded.placement
    if loaded.provider == "cpu" or not placement.on_cpu:
        return []
    shown = ", ".join(f"{op} {count}" for op, count in sorted(placement.on_cpu.items()))
    return [f"{sum(placement.on_cpu.values())} of {sum(placement.nodes.values())} nodes run on the CPU: {shown}"]


def _specs(session: Any) -> tuple[dict[str, Spec], dict[str, Spec]]:
    given, results = session.get_inputs(), session.get_outputs()
    starts = _on_host(getattr(session, "get_input_memory_infos", None), len(given))
    ends = _on_host(getattr(session, "get_output_memory_infos", None), len(results))
    inputs = {a.name: spec_of(a, needed=True, on_host=where) for a, where in zip(given, starts, strict=True)}
    for argument in session.get_overridable_initializers():
        inputs.setdefault(argument.name, spec_of(argument, needed=False, on_host=True))
    return inputs, {a.name: spec_of(a, needed=True, on_host=where) for a, where in zip(results, ends, strict=True)}


def _on_host(infos: Callable[[], Sequence[Any]] | None, count: int) -> list[bool]:
    """Say which inputs or outputs lie in the CPU's memory; an ONNX Runtime that does not tell copies them where it needs them."""
    if infos is None:
        return [False] * count
    return [info.name.startswith("Cpu") or "pinned" in info.name.lower() for info in infos()]
