"""Search the session options that make a model fast on this machine, and write them into its run profile.

Options are tried one after another, each on top of those that have helped so far: few of them work against each other, and every
trial loads the model anew. What changes an answer beyond the tolerance is not kept, however fast.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from halfconv.benchmark import LEAST, TURN, Worker, check_amounts, drift_of, machine_of, warm_up
from halfconv.benchmark_inputs import engine_message, inputs_for
from halfconv.errors import HalfconvError, InputError
from halfconv.profile import file_sha256, profile_path
from halfconv.progress import Progress
from halfconv.runtime.settings import CUDA, PROVIDERS, read_profile
from halfconv.runtime.tensorrt import EngineOptions
from halfconv.storage import atomic_text

__all__ = ["ProfileSearch", "Trial", "search_profile"]

#: An option is kept if it makes runs so much faster, as a geometric mean over the batch sizes.
GAIN = 0.02
#: Drift from the default options that is allowed where the profile does not say.
TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class _Setting:
    level: str = "ORT_ENABLE_ALL"
    options: Mapping[str, str] = field(default_factory=dict)
    graph: bool = False


class _Change(NamedTuple):
    """What is tried: in words, and options of the provider, a level, a CUDA graph."""

    what: str
    options: Mapping[str, str] = {}
    level: str = ""
    graph: bool = False

    def of(self, best: _Setting) -> _Setting:
        return _Setting(self.level or best.level, {**best.options, **self.options}, self.graph or best.graph)


#: Tried on CUDA, in this order.
ON_CUDA = (
    _Change("CUDA graph", graph=True),
    _Change("channels last", {"prefer_nhwc": "1"}),
    _Change("exhaustive cuDNN search", {"cudnn_conv_algo_search": "EXHAUSTIVE", "cudnn_conv_use_max_workspace": "1"}),
    _Change("heuristic cuDNN search", {"cudnn_conv_algo_search": "HEURISTIC"}),
    _Change("convolution with bias", {"fuse_conv_bias": "1"}),
    _Change("no TF32", {"use_tf32": "0"}),
    _Change("flash attention", {"sdpa_kernel": "1"}),
    _Change("memory-efficient attention", {"sdpa_kernel": "2"}),
    _Change("cuDNN attention", {"sdpa_kernel": "8"}),
)
#: Tried everywhere: a lower level is sometimes faster, where a fusion has no fast kernel.
ANYWHERE = tuple(_Change(f"level {level}", level=level) for level in ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC"))


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of options.

    Attributes:
        what: In words.
        p50_ms: Median milliseconds for each batch size; empty if it does not work.
        rel_l2: Drift from the default options.
        kept: Whether it is part of the profile.
        why_not: Why not, in words.
    """

    what: str
    p50_ms: tuple[float, ...]
    rel_l2: float | None
    kept: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class ProfileSearch:
    """What was found.

    Attributes:
        profile: The file that was written.
        batches: Batch sizes; None where the inputs have no batch dimension.
        trials: What was tried; the first is the default.
    """

    profile: str
    batches: tuple[int | None, ...]
    trials: tuple[Trial, ...]


def search_profile(
    model: str | os.PathLike[str], *, batches: Sequence[int] = (1,), samples: Any = None, provider: str = "auto",
    device_id: int = 0, seconds: float = 1.0, seed: int = 0, engine: EngineOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProfileSearch:  # fmt: skip
    """Find the fastest options for a model on this machine, and write its profile.

    TensorRT searches by itself when it builds an engine: its profile has the shapes that engines are for, and nothing is tried.

    Args:
        model: Its file; the profile beside it is replaced.
        batches: Batch sizes, each of which becomes a bucket of the profile.
        samples: Real inputs, of which the first is used; None makes one up.
        provider: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
        device_id: The GPU.
        seconds: How long each set of options runs at each batch size.
        seed: Seed of made-up inputs.
        engine: As `halfconv.Session` takes it.
        on_progress: Told what is tried.

    Raises:
        InputError: The model or the samples cannot be used.
        UsageError: An option is wrong.
        EnvironmentProblem: The provider cannot be used.
    """
    check_amounts(batches, seconds)
    path = Path(model)
    feeds = [(batch, arrays) for batch, arrays, _ in inputs_for([path], batches, samples, seed)]
    known = _known(path)
    tolerance = (known.get("tolerance") or {}).get("rel_l2", TOLERANCE)
    told = engine_message(engine, [arrays for _, arrays in feeds] if provider == "tensorrt" else [])
    search = _Search(path, feeds, provider, device_id, seconds, tolerance, known, told)
    with search:
        best, trials = _Setting(), [search.first()]
        changes = () if provider == "tensorrt" else (*(ON_CUDA if search.on_cuda else ()), *ANYWHERE)
        for number, change in enumerate(changes):
            if on_progress is not None:
                on_progress(Progress("tune", change.what, number, len(changes)))
            wished = change.of(best)
            trials.append(search.attempt(change.what, wished))
            if trials[-1].kept:
                best = wished
    atomic_text(profile_path(path), json.dumps(search.profile(best), indent=2) + "\n")
    return ProfileSearch(str(profile_path(path)), tuple(batch for batch, _ in feeds), tuple(trials))


class _Search:
    """Tries settings on one model, each in turns with the best so far: a machine is not equally fast all the time."""

    def __init__(
        self, path: Path, feeds: Sequence[tuple[int | None, dict[str, Any]]], provider: str, device: int, seconds: float,
        tolerance: float, known: Mapping[str, Any], engine: Mapping[str, Any],
    ):  # fmt: skip
        self._path, self._feeds, self._provider, self._device = path, feeds, provider, device
        self._seconds, self._tolerance, self._known = seconds, tolerance, known
        self._anywhere = provider == "auto" and known.get("target") != "cpu"
        self._sha256, self._engine = file_sha256(path), engine
        self._reference: list[Mapping[str, Any]] = []
        self._fastest: tuple[float, ...] = ()
        self._opened: Mapping[str, Any] = {}
        self._best: Worker | None = None

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *_: object) -> None:
        if self._best is not None:
            self._best.end()

    @property
    def on_cuda(self) -> bool:
        """Whether the model runs on CUDA; after `first`."""
        return bool(self._provider == "cuda")

    def first(self) -> Trial:
        """Measure the default options; everything else is compared with them."""
        self._best = self._open(_Setting())
        self._provider = self._opened["provider"]
        times = []
        for _, arrays in self._feeds:
            self._reference.append(self._best("feed", arrays)["outputs"])
            times.append(_in_turns([self._best], self._seconds)[0])
        self._fastest = tuple(times)
        return Trial("default", self._fastest, None, True, "")

    def attempt(self, what: str, setting: _Setting) -> Trial:
        """Measure a setting, and keep it if it is faster and as right."""
        assert self._best is not None
        worker: Worker | None = None
        try:
            worker = self._open(setting)
            times, drifts, factors = self._compare(worker)
            if setting.graph and not worker("state")["graph"]:
                raise InputError("no CUDA graph was captured")
        except HalfconvError as error:
            if worker is not None:
                worker.end()
            return Trial(what, (), None, False, f"it does not work: {str(error).partition('; try:')[0]}")
        why_not, drift = "", None
        if any(one is None for one in drifts):
            why_not = "its outputs are not finite"
        else:
            drift = max(one or 0.0 for one in drifts)
            if drift > self._tolerance:
                why_not = f"it drifts by {drift:.2g} from the default"
            elif statistics.geometric_mean(factors) < 1 + GAIN:
                why_not = "it is not faster"
        if why_not:
            worker.end()
        else:
            self._best.end()
            self._best, self._fastest = worker, times
        return Trial(what, times, drift, not why_not, why_not)

    def _open(self, setting: _Setting) -> Worker:
        with tempfile.TemporaryDirectory(prefix="halfconv-") as folder:
            file = Path(folder) / "profile.json"
            file.write_text(json.dumps(self.profile(setting)), "utf-8")
            worker = Worker(self._path)
            try:
                self._opened = worker("open", str(self._path), self._provider, self._device, str(file), None, self._engine)
            except BaseException:
                worker.end()
                raise
        return worker

    def _compare(self, worker: Worker) -> tuple[tuple[float, ...], list[float | None], list[float]]:
        """Return a setting's times and drifts, and how many times as fast as the best it is, for each batch size."""
        assert self._best is not None
        times, drifts, factors = [], [], []
        for (_, arrays), wanted in zip(self._feeds, self._reference, strict=True):
            drifts.append(drift_of(worker("feed", arrays)["outputs"], wanted))
            self._best("feed", arrays)
            best, new = _in_turns([self._best, worker], self._seconds)
            times.append(new)
            factors.append(best / new)
        return tuple(times), drifts, factors

    def profile(self, setting: _Setting) -> dict[str, Any]:
        """Return the profile's content: what was tuned on the CPU, unasked, may run elsewhere on a GPU, as measured there."""
        names = PROVIDERS["cuda" if self._provider == "auto" or self._anywhere else self._provider]
        given = {entry["name"]: entry["options"] for entry in self._known.get("providers", ())}
        if self._provider != "cpu":
            given[CUDA] = dict(setting.options)
        card = machine_of(self._opened, self._device)["card"] if self._opened else None
        shapes = [{name: list(array.shape) for name, array in arrays.items()} for _, arrays in self._feeds]
        measured = [{"card": card, "bucket": k, "p50_ms": ms} for k, ms in enumerate(self._fastest)] if card else []
        return {
            "schema_version": 1, "model_sha256": self._sha256, "target": self._known.get("target", "portable"),
            "graph_optimization": setting.level,
            "providers": [{"name": name, "options": given.get(name, {}) if name == CUDA else {}} for name in names],
            "buckets": [{"inputs": shape, "cuda_graph": setting.graph} for shape in shapes],
            "measured": measured, "tolerance": self._known.get("tolerance"),
            "ort_version": self._opened.get("onnxruntime", self._known.get("ort_version")),
        }  # fmt: skip


def _in_turns(workers: Sequence[Worker], seconds: float) -> list[float]:
    """Return the median milliseconds of runs, of each worker, once it is warm."""
    for worker in workers:
        warm_up(worker)
    times: list[list[float]] = [[] for _ in workers]
    for _ in range(max(3, math.ceil(seconds / TURN))):
        for found, worker in zip(times, workers, strict=True):
            found += worker("time", TURN, LEAST)
    return [statistics.median(found) for found in times]


def _known(path: Path) -> dict[str, Any]:
    """Return the profile beside a model, if it is one, and the model's."""
    try:
        content: dict[str, Any] = json.loads(profile_path(path).read_text("utf-8"))
        read_profile(content)
    except (OSError, ValueError):
        return {}
    return content if content["model_sha256"] == file_sha256(path) else {}
