"""Measure models side by side: the same inputs, in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfconv.errors import EnvironmentProblem, InputError, UsageError
from halfconv.nvml import Gauge
from halfconv.progress import Progress
from halfconv.runtime.session_server import receive, send
from halfconv.runtime.tensorrt import EngineOptions

__all__ = ["BenchReport", "BenchRow", "Worker", "bench", "check_amounts", "drift_of", "machine_of", "warm_up"]

#: Seconds that a model runs before the next one has its turn.
TURN = 0.2
#: Warm-up ends when the medians of two turns differ by less than this share, or after so many turns.
STABLE, WARMUP_TURNS = 0.03, 12
#: A turn has at least so many runs.
LEAST = 3
#: A model counts as faster from this factor on.
FASTER = 1.05
#: Errors of a worker that are the user's to mend.
_KNOWN = {"InputError": InputError, "UsageError": UsageError, "EnvironmentProblem": EnvironmentProblem}


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model at one batch size.

    Attributes:
        model: Its file.
        provider: What it ran on: ``cpu``, ``cuda`` or ``tensorrt``.
        profile: ``beside`` if the profile beside the model was used, else ``default``.
        batch: Rows of a run; None where the inputs have no batch dimension.
        p50_ms: Median milliseconds of a run, from numpy arrays to numpy arrays.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        compute_p50_ms: Median with inputs and outputs that stay on the GPU; None on the CPU.
        throughput: Rows per second (runs, without a batch dimension).
        runs: How many runs were measured.
        first_ms: The first run.
        load_s: Seconds to load it.
        device_mb: Memory of the GPU that it takes; None if unknown.
        host_mb: Peak resident memory of its process.
        energy_mj: Millijoules of the GPU per run, by NVML's counter; None if unknown.
        rel_l2: Worst output's drift from the first model; None for that itself.
        placement: ``nodes``, ``on_provider``, ``on_cpu``, ``memcpy``, ``casts`` and ``graph``: whether a CUDA graph ran.
    """

    model: str
    provider: str
    profile: str
    batch: int | None
    p50_ms: float
    p90_ms: float
    p99_ms: float
    compute_p50_ms: float | None
    throughput: float
    runs: int
    first_ms: float
    load_s: float
    device_mb: float | None
    host_mb: float
    energy_mj: float | None
    rel_l2: float | None
    placement: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured.

    Attributes:
        machine: Facts: processor, cores, system, Python, ONNX Runtime, GPU.
        rows: In the order of batch sizes, then of models.
        verdicts: Each later model against the first, in sentences.
        notes: What is not as one might expect.
    """

    machine: Mapping[str, Any]
    rows: tuple[BenchRow, ...]
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"schema_version": 1, **asdict(self)}


class Worker:
    """A model's process; call it with a method of `halfconv.benchmark_worker.Worker` and its arguments.

    Args:
        path: The model, for messages.
    """

    def __init__(self, path: Path):
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "halfconv.benchmark_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Have something done.

        Raises:
            InputError: It fails, or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, [method, list(arguments)])
            kind, answer = receive(self._process.stdout)
        except (EOFError, OSError):
            self.end()
            raise InputError(f"{self.path}: its process ended ({self._process.returncode})", "halfconv inspect on it") from None
        if kind:
            found, _, advice = str(answer).partition("; try: ")
            raise _KNOWN.get(kind, InputError)(f"{self.path}: {found}", advice)
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()


def check_amounts(batches: Sequence[int], seconds: float) -> None:
    """Refuse what cannot be measured.

    Raises:
        UsageError: There is no batch size, one is below 1, or the time is none.
    """
    if not 0 < seconds < math.inf or any(batch < 1 for batch in batches) or not batches:
        raise UsageError(f"batches {list(batches)}, {seconds:g} seconds", "numbers from 1 on, and a time")


def bench(
    models: Sequence[str | os.PathLike[str]], *, batches: Sequence[int] = (1,), samples: Any = None, provider: str = "auto",
    device_id: int = 0, profile: bool = True, seconds: float = 2.0, threads: int | None = None, seed: int = 0,
    engine: EngineOptions | None = None, on_progress: Callable[[Progress], None] | None = None,
) -> BenchReport:  # fmt: skip
    """Measure models side by side.

    Args:
        models: Files; the first is what the others are compared with.
        batches: Batch sizes.
        samples: Real inputs, as `halfconv.samples.open_samples` takes them, of which the first is used; None makes one up.
        provider: As `halfconv.Session` takes it.
        device_id: The GPU.
        profile: Whether a model's profile is used, if there is one beside it.
        seconds: How long each model runs at each batch size, after warm-up.
        threads: Threads that compute on the CPU; None leaves it to ONNX Runtime.
        seed: Seed of made-up inputs.
        engine: As `halfconv.Session` takes it; without shapes, engines are for those of the inputs.
        on_progress: Told what is measured.

    Returns:
        The figures. Times are wall-clock from arrays in the CPU's memory to arrays there.

    Raises:
        InputError: A model or the samples cannot be used.
        UsageError: An option is wrong, or the models take different inputs.
        EnvironmentProblem: The provider cannot be used.
    """
    from halfconv.benchmark_inputs import engine_message, inputs_for

    paths = [Path(model) for model in models]
    if not paths:
        raise UsageError("there is no model to measure", "halfconv bench model.onnx model.fp16.onnx")
    check_amounts(batches, seconds)
    rows: list[BenchRow] = []
    notes: list[str] = []
    inputs = list(inputs_for(paths, batches, samples, seed)) if provider == "tensorrt" else None
    engines = engine_message(engine, [feeds for _, feeds, _ in inputs or ()])
    with ExitStack() as stack:
        workers: list[Worker] = []
        opened: list[dict[str, Any]] = []
        for path in paths:
            worker = Worker(path)
            stack.callback(worker.end)
            workers.append(worker)
            if on_progress is not None:
                on_progress(Progress("load", path.name, len(opened), len(paths)))
            opened.append(worker("open", str(path), provider, device_id, None if profile else False, threads, engines))
        gauge = Gauge(device_id) if opened[0]["provider"] != "cpu" else None
        for batch, feeds, note in inputs or inputs_for(paths, batches, samples, seed):
            notes += [note] if note else []
            begun = [worker("feed", feeds) for worker in workers]
            measured = _in_turns(workers, seconds, gauge, on_progress, batch)
            for place, worker in enumerate(workers):
                rows.append(_row(worker, opened[place], begun[place], measured[place], batch, begun[0]["outputs"], first=not place))
        verdicts = _verdicts(rows, workers, len(paths))
        said = [[*facts["notes"], *worker("state")["notes"]] for facts, worker in zip(opened, workers, strict=True)]
    notes += [gauge.why_not] if gauge is not None and gauge.why_not else []
    notes += _told(said, [path.name for path in paths])
    return BenchReport(machine_of(opened[0], device_id), tuple(rows), tuple(verdicts), tuple(notes))


def _told(said: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return what sessions note, with the model's name where it is not said of all."""
    found = []
    for note in dict.fromkeys(note for notes in said for note in notes if not note.startswith("no profile")):
        which = [name for name, notes in zip(names, said, strict=True) if note in notes]
        found.append(note if len(which) == len(names) else f"{', '.join(which)}: {note}")
    return found


@dataclass(slots=True)
class _Measured:
    runs: list[float]
    compute: list[float]
    joules: float | None


def warm_up(worker: Worker) -> None:
    """Run a model until two turns take about the same time."""
    known = statistics.median(worker("time", TURN / 2, LEAST))
    for _ in range(WARMUP_TURNS):
        median = statistics.median(worker("time", TURN / 2, LEAST))
        if abs(median - known) <= STABLE * known:
            return
        known = median


def _in_turns(
    workers: Sequence[Worker], seconds: float, gauge: Gauge | None, on_progress: Callable[[Progress], None] | None,
    batch: int | None,
) -> list[_Measured]:  # fmt: skip
    """Warm models up until they are stable, and then run them in turns, each time in another order."""
    for worker in workers:
        warm_up(worker)
    found = [_Measured([], [], None if gauge is None else 0.0) for _ in workers]
    turns = max(1, math.ceil(seconds / TURN))
    for turn in range(turns):
        if on_progress is not None:
            on_progress(Progress("measure", "" if batch is None else f"batch {batch}", turn, turns))
        for place in _rotated(len(workers), turn):
            before = gauge.joules() if gauge is not None else None
            found[place].runs += workers[place]("time", TURN, LEAST)
            after = gauge.joules() if gauge is not None else None
            joules = found[place].joules
            found[place].joules = joules + after - before if None not in (joules, before, after) else None  # type: ignore[operator]
        for place in _rotated(len(workers), turn):
            found[place].compute += workers[place]("compute", TURN, LEAST)
    return found


def _rotated(count: int, turn: int) -> Iterator[int]:
    return ((place + turn) % count for place in range(count))


def _row(
    worker: Worker, opened: Mapping[str, Any], begun: Mapping[str, Any], measured: _Measured, batch: int | None,
    reference: Mapping[str, Any], *, first: bool,
) -> BenchRow:  # fmt: skip
    p50, p90, p99 = (float(np.percentile(measured.runs, share)) for share in (50, 90, 99))
    state = worker("state")
    used = not any("no profile" in note or "is not followed" in note for note in opened["notes"])
    placement = {key: state[key] for key in ("nodes", "on_provider", "on_cpu", "memcpy", "casts", "graph")}
    return BenchRow(
        str(worker.path), opened["provider"], "beside" if used else "default", batch, p50, p90, p99,
        statistics.median(measured.compute) if measured.compute else None,
        (batch or 1) * 1e3 / statistics.fmean(measured.runs), len(measured.runs), begun["first_ms"], opened["seconds"],
        state["device_mb"], state["host_mb"],
        None if measured.joules is None else measured.joules * 1e3 / len(measured.runs),
        None if first else drift_of(begun["outputs"], reference), placement,
    )  # fmt: skip


def drift_of(outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Return the worst output's rel_l2; None if there are none in common, or what differs is not finite."""
    worst: float | None = None
    for name, wanted in reference.items():
        found = outputs.get(name)
        if not isinstance(found, np.ndarray) or found.shape != np.shape(wanted) or np.asarray(wanted).dtype.kind not in "fV":
            continue
        a, b = found.astype(np.float64), np.asarray(wanted).astype(np.float64)
        drift = float(np.linalg.norm(a - b)) / (float(np.linalg.norm(b)) or 1.0)
        if not math.isfinite(drift):
            return None
        worst = max(worst or 0.0, drift)
    return worst


def _verdicts(rows: Sequence[BenchRow], workers: Sequence[Worker], count: int) -> list[str]:
    """Say of each later model whether it is faster than the first, and if not, what takes its time."""
    said = []
    for start in range(0, len(rows), count):
        first = rows[start]
        for place in range(1, count):
            row = rows[start + place]
            factor = first.p50_ms / row.p50_ms
            name, other = Path(row.model).name, Path(first.model).name
            at = "" if row.batch is None else f" at batch {row.batch}"
            if factor >= FASTER:
                said.append(f"{name} is {factor:.2f} times as fast as {other}{at}")
                continue
            said.append(f"{name} is not faster than {other}{at} ({factor:.2f} times as fast)" + _reasons(row, workers[place]))
    return said


def _reasons(row: BenchRow, worker: Worker) -> str:
    shares, state = worker("shares"), worker("state")
    casts, held = shares.get("Cast", 0.0), row.placement
    found = []
    if row.provider == "cpu":
        found.append("the CPU provider has few half kernels, so half models are computed in FP32 between Casts there")
    elif held["on_cpu"]:
        most = ", ".join(f"{op} {n}" for op, n in sorted(state["cpu_ops"].items(), key=lambda entry: -entry[1])[:3])
        found.append(f"{held['on_cpu']} of {held['nodes']} nodes run on the CPU ({most}), with {held['memcpy'] or 0} copies")
    if casts >= 0.05:
        found.append(f"Casts take {casts:.0%} of the time")
    if row.provider == "cuda" and not held["graph"]:
        found.append("it runs without a CUDA graph")
    return ": " + "; ".join(found) if found else ""


def machine_of(opened: Mapping[str, Any], device: int) -> dict[str, Any]:
    """Return facts about where a model was measured.

    Args:
        opened: What its worker said when it loaded the model.
        device: The GPU.
    """
    return {
        "system": platform.platform(terse=True), "python": platform.python_version(), "cores": os.cpu_count(),
        "onnxruntime": opened["onnxruntime"], "card": Gauge(device).name or None if opened["provider"] != "cpu" else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
