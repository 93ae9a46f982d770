"""One model under measurement, in a process of its own: ``python -m halfconv.benchmark_worker``, requests on standard input.

`halfconv.benchmark` asks several of them in turns. Messages are those of `halfconv.runtime.session_server`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from halfconv.errors import HalfconvError, ProfileWarning
from halfconv.nvml import Gauge
from halfconv.runtime.kernels import register
from halfconv.runtime.session import Session
from halfconv.runtime.session_server import receive, send
from halfconv.runtime.tensorrt import EngineOptions

__all__ = ["Worker", "serve"]

MB = 1e6
#: Runs of which the profiler sees where the time goes.
PROFILED = 5


class Worker:
    """A model, and what is measured of it."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._feeds: dict[str, Any] = {}
        self._held: dict[str, Any] = {}
        self._free = 0

    def open(
        self, path: str, provider: str, device: int, profile: str | bool | None, threads: int | None,
        engine: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Load the model.

        Args:
            path: Its file.
            provider: As `Session` takes it.
            device: The GPU.
            profile: As `Session` takes it.
            threads: As `Session` takes it.
            engine: The fields of `EngineOptions`.

        Returns:
            Seconds that it took, the provider, notes, and the versions of what runs it.
        """
        import onnxruntime

        self._path, self._free = path, Gauge(device).free() if provider != "cpu" else 0
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ProfileWarning)
            self._session = Session(
                path, provider=provider, device_id=device, profile=profile, threads=threads, engine=EngineOptions(**(engine or {})),
            )  # fmt: skip
        session = self._session
        self._device = device
        return {
            "seconds": time.perf_counter() - begun, "provider": session.provider,
            "notes": [*(str(w.message) for w in said), *session.notes], "onnxruntime": onnxruntime.__version__,
        }  # fmt: skip

    def feed(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Take the inputs that all following runs have, and run once.

        Returns:
            The outputs, and milliseconds of that run.
        """
        self._feeds, self._held = feeds, {}
        begun = time.perf_counter()
        outputs = self._ready().run(feeds)
        first = (time.perf_counter() - begun) * 1e3
        if self._ready().provider == "cuda":
            self._held = _on_device(feeds, self._device)
        return {"outputs": outputs, "first_ms": first}

    def time(self, seconds: float, least: int) -> list[float]:
        """Run for some seconds from arrays to arrays.

        Returns:
            Milliseconds of each run, at least `least` of them.
        """
        return _timed(lambda: self._ready().run(self._feeds), seconds, least)

    def compute(self, seconds: float, least: int) -> list[float]:
        """Run for some seconds with inputs and outputs that stay on the GPU; nothing where that cannot be.

        Returns:
            Milliseconds of each run.
        """
        if not self._held:
            return []
        session = self._ready()
        to = "torch" if "torch" in sys.modules else "ort"
        try:
            session.run(self._held, to=to)
        except HalfconvError:
            return []
        return _timed(lambda: session.run(self._held, to=to), seconds, least)

    def state(self) -> dict[str, Any]:
        """Return what the model takes and where its nodes run: after runs."""
        session = self._ready()
        placement = session.placement
        name = placement.providers[0] if placement.providers else ""
        nodes = dict(placement.nodes)
        free = Gauge(self._device).free() if session.provider != "cpu" else 0
        return {
            "host_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
            "device_mb": (self._free - free) / MB if free else None,
            "nodes": sum(nodes.values()), "on_provider": nodes.get(name, 0), "on_cpu": nodes.get("CPUExecutionProvider", 0),
            "cpu_ops": dict(placement.on_cpu), "memcpy": placement.memcpy, "casts": placement.casts,
            "graph": any(state.captured for state in session.graphs), "notes": list(session.notes),
        }  # fmt: skip

    def shares(self) -> dict[str, float]:
        """Return operator -> its share of the time of a few runs, as ONNX Runtime's profiler on the CPU sees it.

        On a GPU that is the time to launch kernels, not that of the kernels.
        """
        import onnxruntime

        session = self._ready()
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.enable_profiling = 4, True
        if session.provider == "cuda":
            register(options)  # what it says, the session has said
        with tempfile.TemporaryDirectory(prefix="halfconv-") as folder:
            options.profile_file_prefix = f"{folder}/runs"
            plain = onnxruntime.InferenceSession(self._path, options, providers=list(session.placement.providers))
            for _ in range(PROFILED):
                plain.run(None, {name: _cast(plain, name, array) for name, array in self._feeds.items()})
            events = json.loads(Path(plain.end_profiling()).read_text("utf-8"))
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time"):
                spent[event["args"].get("op_name", "")] += event.get("dur", 0)
        total = sum(spent.values())
        return {op: micros / total for op, micros in spent.most_common()} if total else {}

    def close(self) -> None:
        """Release the model."""
        self._held = {}
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ready(self) -> Session:
        assert self._session is not None
        return self._session


def _timed(call: Any, seconds: float, least: int) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        found.append((time.perf_counter() - begun) * 1e3)
    return found


def _cast(session: Any, name: str, array: Any) -> Any:
    """Return an array of the float type that an input has."""
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
    kind = next(value.type for value in session.get_inputs() if value.name == name)
    return array.astype(kinds[kind], copy=False) if kind in kinds else array


def _on_device(feeds: Mapping[str, Any], device: int) -> dict[str, Any]:
    """Return the inputs on the GPU, as torch tensors if torch is installed, else as ONNX Runtime's values."""
    with contextlib.suppress(Exception):
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(array)).to(f"cuda:{device}") for name, array in feeds.items()}
    import onnxruntime

    make = onnxruntime.OrtValue.ortvalue_from_numpy
    with contextlib.suppress(Exception):
        return {name: make(np.ascontiguousarray(array), "cuda", device) for name, array in feeds.items()}
    return {}


def serve() -> None:
    """Answer requests until the other side is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the runtime prints is no answer
    worker = Worker()
    while True:
        try:
            method, arguments = receive(sys.stdin.buffer)
        except EOFError:
            return
        answer: list[Any]
        try:
            answer = ["", getattr(worker, method)(*arguments)]
        except Exception as error:
            answer = [type(error).__name__, str(error)]
        send(answers, answer)


if __name__ == "__main__":
    serve()
