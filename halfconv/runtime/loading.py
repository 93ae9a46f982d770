"""Load a model on the provider that was asked for, or say why not: ONNX Runtime's own fallbacks, which are silent, stay off."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, InputError
from .device import GATE, Stream
from .kernels import library, register
from .placement import Placement, assigned, measured
from .settings import CUDA, LEVELS, PROVIDERS, TENSORRT, digest
from .tensorrt import EngineOptions, engine_folder, engine_options, unspeakable

__all__ = ["Loaded", "Wishes", "load"]

#: ONNX Runtime's exceptions that mean: the model is at fault.
_BAD_MODEL = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoModel", "NoSuchFile", "ModelLoaded")
#: What its message says when a session cannot use CUDA graphs.
_NO_GRAPH = ("graph capture", "cuda graph", "cudagraph")
#: When it does not know an option of a provider.
_OPTION = "provider option"
#: When the device is at fault, not the model.
_DEVICE = ("cuda failure", "cuda error", "cudnn", "invalid device", "device_id")
#: And when nodes would run on the CPU although that was forbidden.
_ON_CPU = "fallback to CPU EP has been explicitly disabled"


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to load.

    Attributes:
        choices: Providers to try, best first: ``cuda``, ``cpu``.
        device: The GPU.
        memory: Bytes of its memory that the model may take; None for no limit.
        threads: Threads that compute on the CPU; None leaves it to ONNX Runtime.
        level: Optimisation level to begin with.
        options: ONNX Runtime's provider -> its options.
        graph: Whether CUDA graphs are wanted.
        strict: Whether no node may run on the CPU.
        engine: How TensorRT builds its engines.
        kernels: Whether halfconv's library of CUDA kernels is registered.
    """

    choices: tuple[str, ...]
    device: int = 0
    memory: int | None = None
    threads: int | None = None
    level: str = LEVELS[0]
    options: Mapping[str, Mapping[str, str]] | None = None
    graph: bool = False
    strict: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    kernels: bool = False


class Loaded:
    """A model that is loaded.

    Attributes:
        session: ONNX Runtime's session.
        provider: ``cpu``, ``cuda`` or ``tensorrt``: what it runs on.
        graph: Whether it can capture CUDA graphs.
        notes: What is not as wished.
        stream: The CUDA stream that it runs on, if that is one of our own.
    """

    def __init__(
        self, session: Any, provider: str, graph: bool, notes: list[str], folder: str | None, stream: Stream | None = None
    ):
        self.session = session
        self.provider = provider
        self.graph = graph
        self.stream = stream
        self.notes = notes
        self._folder = folder
        self._assigned = assigned(session)
        self._measured: Placement | None = None

    @property
    def placement(self) -> Placement:
        """Where its nodes run, as a run showed or, before the first one, as assigned."""
        return self._measured or self._assigned

    @property
    def recording(self) -> bool:
        """Whether the profile of the first run is still open."""
        return self._folder is not None

    def show(self) -> None:
        """End the profile, after the first run, and read the placement from it."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            self._measured = measured(self.session, Path(self.session.end_profiling()).read_bytes())
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Release ONNX Runtime's session."""
        self.show()
        with GATE.load() if self.provider != "cpu" else contextlib.nullcontext():
            self.session = self.stream = None


def load(source: str | bytes, wishes: Wishes) -> Loaded:
    """Load a model on the first provider that works.

    Args:
        source: Its path, or its bytes.
        wishes: How.

    Returns:
        The model; its notes say which better provider did not work, and why.

    Raises:
        InputError: The model cannot be read.
        EnvironmentProblem: No provider that was asked for works.
    """
    notes: list[str] = []
    for choice in wishes.choices[:-1]:
        try:
            loaded = _load(source, wishes, choice)
        except EnvironmentProblem as problem:
            notes.append(str(problem))
        else:
            loaded.notes[:0] = notes
            return loaded
    loaded = _load(source, wishes, wishes.choices[-1])
    loaded.notes[:0] = notes
    return loaded


def _load(source: str | bytes, wishes: Wishes, choice: str) -> Loaded:
    import onnxruntime

    names = PROVIDERS[choice]
    if choice != "cpu":
        if names[0] not in onnxruntime.get_available_providers():
            found = f"this ONNX Runtime ({onnxruntime.__version__}) has no {names[0]}"
            raise _unusable(choice, found, ask=len(wishes.choices) == 1)
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, which a session then tells better
                onnxruntime.preload_dlls()
    wishes = replace(wishes, graph=wishes.graph and choice == "cuda")
    notes: list[str] = []
    if choice == "tensorrt":
        wishes = _with_engine(source, wishes, onnxruntime.__version__, notes)
    if choice == "cuda":
        with GATE.load():
            problem = register(onnxruntime.SessionOptions())  # which tells whether it can be
        notes += [problem] if problem else []
        wishes = replace(wishes, kernels=library() is not None and not problem)
    folder = _folder(notes)
    stream = _stream(wishes) if wishes.graph else None
    try:
        session, graph = _create(onnxruntime, source, wishes, names, notes, folder, stream)
        if session.get_providers()[0] != names[0]:
            raise _unusable(choice, f"ONNX Runtime did not load {names[0]}, only {', '.join(session.get_providers())}")
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    session.disable_fallback()
    return Loaded(session, choice, graph, notes, folder, stream if graph else None)


def _unusable(choice: str, found: str, *, ask: bool = True) -> EnvironmentProblem:
    """Say why a provider cannot be used, as well as is known; asking the machine takes time, which a mere note is not worth."""
    from .providers import problems

    known = problems(choice) if ask else []
    if known:
        return EnvironmentProblem(f"{choice} cannot be used: {known[0].found}", known[0].advice)
    advice = "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime, or provider='cpu'"
    return EnvironmentProblem(f"{choice} cannot be used: {found}", advice)


def _with_engine(source: str | bytes, wishes: Wishes, version: str, notes: list[str]) -> Wishes:
    """Add what TensorRT is told about its engines; the profile's options give way to it."""
    engine = wishes.engine
    if names := unspeakable(engine.shapes):
        notes.append(f"TensorRT takes its shapes from the first inputs: {', '.join(names)} cannot be named in its options")
    folder = None
    if engine.cache is not None:
        folder = engine_folder(engine, digest(source if isinstance(source, bytes) else Path(source)), version)
        assert folder is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentProblem(f"TensorRT's cache {folder} cannot be made: {error.strerror}", "another folder") from None
    given = wishes.options or {}
    return replace(wishes, options={**given, TENSORRT: {**given.get(TENSORRT, {}), **engine_options(engine, folder)}})


def _folder(notes: list[str]) -> str | None:
    try:
        return tempfile.mkdtemp(prefix="halfconv-")
    except OSError as error:
        notes.append(f"placement is what was assigned, not measured: no temporary folder ({error.strerror})")
        return None


def _stream(wishes: Wishes) -> Stream | None:
    """Make a stream on which both copies and graphs run, one after the other; without one, ONNX Runtime makes its own."""
    try:
        with GATE.shared():
            return Stream(wishes.device)
    except (EnvironmentProblem, OSError, AttributeError):  # the session will tell what is wrong, if anything is
        return None


def _create(
    onnxruntime: Any,
    source: str | bytes,
    wishes: Wishes,
    names: tuple[str, ...],
    notes: list[str],
    folder: str | None,
    stream: Stream | None = None,
) -> tuple[Any, bool]:
    """Create a session; at a lower optimisation level, without CUDA graphs, or without kernels of ours, where it must be."""
    levels = LEVELS[LEVELS.index(wishes.level) :]
    graph, first = wishes.graph, None
    for level in levels:
        while True:
            try:
                with GATE.load() if names[0] != PROVIDERS["cpu"][0] else contextlib.nullcontext():
                    session = _session(onnxruntime, source, replace(wishes, level=level, graph=graph), names, folder, stream)
            except Exception as error:
                text = " ".join(str(error).split())
                if type(error).__name__ in ("NoSuchFile", "InvalidProtobuf"):
                    raise InputError(f"the model cannot be read: {text[:300]}", "another file") from None
                if graph and any(word in text.lower() for word in _NO_GRAPH):
                    graph = False
                    notes.append(f"no CUDA graphs: {text[:300]}")
                    continue
                if wishes.options and _OPTION in text.lower():
                    wishes = replace(wishes, options=None)
                    notes.append(f"the profile's provider options are left out, as this ONNX Runtime refuses them: {text[:300]}")
                    continue
                first = first or error
                break
            if level != wishes.level:
                notes.append(f"loaded at {level}: at {wishes.level} ONNX Runtime failed: {' '.join(str(first).split())[:300]}")
            return session, graph
    assert first is not None
    if wishes.kernels:  # a kernel beats what the file defines, which may be of another type
        notes.append(f"halfconv's CUDA kernels are not used: with them, {' '.join(str(first).split())[:300]}")
        return _create(onnxruntime, source, replace(wishes, kernels=False), names, notes, folder, stream)
    raise _failure(first, names)


def _failure(error: Exception, names: tuple[str, ...]) -> Exception:
    kind, text = type(error).__name__, " ".join(str(error).split())[:400]
    if _ON_CPU in text:
        return EnvironmentProblem(f"nodes of the model would run on the CPU: {text}", "another model, or strict=False")
    if "NOT_IMPLEMENTED" in text or kind == "NotImplemented":
        return EnvironmentProblem(
            f"{names[0]} has no kernel for a node of the model: {text}", "another provider, or a newer ONNX Runtime"
        )
    on_cpu = names[0] == PROVIDERS["cpu"][0]
    if not on_cpu and any(word in text.lower() for word in _DEVICE):
        return EnvironmentProblem(
            f"{names[0]} cannot use the device: {text}", "another device_id, provider='cpu', or halfconv doctor"
        )
    if kind in _BAD_MODEL or on_cpu:
        return InputError(f"ONNX Runtime cannot load the model: {text}", "halfconv inspect, which says what is wrong with it")
    from .providers import problems

    choice = next(choice for choice, known in PROVIDERS.items() if known[0] == names[0])
    if problems(choice):  # it is no matter of the model
        return _unusable(choice, text)
    return EnvironmentProblem(f"{names[0]} cannot load the model: {text}", "provider='cpu', or halfconv doctor")


def _session(
    onnxruntime: Any, source: str | bytes, wishes: Wishes, names: tuple[str, ...], folder: str | None, stream: Stream | None
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log as an error, it also raises
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, wishes.level)
    if wishes.threads is not None:
        options.intra_op_num_threads = wishes.threads
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/first-run"
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if wishes.strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wishes.kernels:
        register(options)
    if wishes.strict and len(names) > 1:  # ONNX Runtime refuses to be given the CPU that it must not fall back to
        names = tuple(name for name in names if name != PROVIDERS["cpu"][0])
    providers = [(name, _options(name, wishes, stream)) for name in names]
    return onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)


def _options(name: str, wishes: Wishes, stream: Stream | None) -> dict[str, str]:
    found = dict((wishes.options or {}).get(name, {}))
    if name in (CUDA, TENSORRT):
        found["device_id"] = str(wishes.device)
    if name == CUDA:
        if wishes.memory is not None:
            found["gpu_mem_limit"] = str(wishes.memory)
            found.setdefault("arena_extend_strategy", "kSameAsRequested")
        if wishes.graph:
            found["enable_cuda_graph"] = "1"
            if stream is not None:
                found["user_compute_stream"] = str(stream.address)
    return found
