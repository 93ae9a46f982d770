"""Run a model on samples: a file on one of ONNX Runtime's providers, or the simulation of a half-precision model on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.check import LARGE_BYTES, load_in_child
from halfconv.drift.simulate import Simulation
from halfconv.errors import EnvironmentProblem, InputError
from halfconv.external import bytes_of, without_links
from halfconv.runtime.kernels import library
from halfconv.runtime.session_server import CPU, LEVELS
from halfconv.runtime.settings import CUDA
from halfconv.runtime_process import RuntimeProcess, Session
from halfconv.weight_files import room_for, weight_bytes, write_weights

__all__ = ["Evaluator", "check_valid", "evaluate_file", "evaluate_model", "evaluate_simulation"]

_FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}


class Evaluator:
    """A session, and what turns samples into its inputs.

    Args:
        label: What messages call the model.
        session: The session.
        kept: What must live as long as it does.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        provider: The provider that is asked first.
        problem: Why halfconv's CUDA kernels are not used; "" if they are, or there are none.
    """

    def __init__(self, label: str, session: Session, kept: ExitStack):
        self.label, self._session, self._kept = label, session, kept
        self._kinds: dict[str, str] = {value.name: value.type for value in session.get_inputs()}
        self.inputs = tuple(self._kinds)
        self.outputs: tuple[str, ...] = tuple(value.name for value in session.get_outputs())
        self.provider: str = session.get_providers()[0]
        self.problem = session.problem

    def run(self, feeds: Mapping[str, Any], sample: str, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run one sample.

        Args:
            feeds: Input -> array (list of arrays for a sequence); floating-point arrays are cast to what the model takes.
            sample: What messages call the sample.
            outputs: The outputs wanted; default all.

        Returns:
            Output -> value.

        Raises:
            InputError: The runtime refuses the inputs, or fails.
        """
        names = list(self.outputs if outputs is None else outputs)
        ready = {name: _fitted(feeds[name], kind) for name, kind in self._kinds.items() if name in feeds}
        try:
            values = self._session.run(names, ready)
        except InputError as error:
            words = " ".join(str(error).split())[:400]
            raise InputError(f"{self.label}: fails on {sample}: {words}", "samples of the shapes that the model takes") from None
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Release the session and its files."""
        self._session.close()
        self._kept.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fitted(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        inner = kind.removeprefix("optional(").removeprefix("seq(").removesuffix(")").removesuffix(")") + ")"
        return [_fitted(item, inner) for item in value]
    wanted = _FLOATS.get(kind)
    if wanted is None or not isinstance(value, np.ndarray) or value.dtype == wanted or value.dtype.kind in "iub":
        return value
    with np.errstate(over="ignore"):
        return value.astype(wanted)


def evaluate_file(
    path: Path, files: Mapping[str, Path], *, provider: str = CPU, process: RuntimeProcess | None = None
) -> Evaluator:  # fmt: skip
    """Open a model file on a provider, at the highest optimisation level at which it loads.

    Args:
        path: The model.
        files: Location -> real path of its files of weights, which may be links.
        provider: ``CPUExecutionProvider`` or ``CUDAExecutionProvider``.
        process: Where; None for a process of its own.

    Raises:
        InputError: It loads at no level.
        EnvironmentProblem: The provider cannot be used here.
    """
    problem = ""
    large = provider == CPU and bytes_of(files.values()) > LARGE_BYTES
    with ExitStack() as kept:
        used = process if process is not None else kept.enter_context(RuntimeProcess())
        file = kept.enter_context(without_links(path, files))
        for level in LEVELS[-1:] if large else LEVELS:
            try:
                session = used.open(file, level, provider, mapped=large, library=library() if provider == CUDA else None)
            except InputError as error:
                problem = " ".join(str(error).split())[:300]
                continue
            if session.get_providers()[0] != provider:
                raise EnvironmentProblem(
                    f"{provider.removesuffix('ExecutionProvider')} cannot be used here: onnxruntime {session.version} "
                    f"offers {', '.join(session.get_providers())}",
                    "--on simulate, or a machine with a GPU and halfconv[gpu]",
                )
            return Evaluator(str(path), session, kept.pop_all())
    raise InputError(f"{path}: ONNX Runtime cannot load it: {problem}", "--on simulate, or onnx.checker.check_model on it")


def check_valid(path: Path, files: Mapping[str, Path]) -> None:
    """Refuse a model that no provider of ONNX Runtime loads: a simulation would make its types agree.

    That the CPU provider lacks a kernel is no reason.

    Args:
        path: The model.
        files: Location -> real path of its files of weights, which may be links.

    Raises:
        InputError: ONNX Runtime finds the graph invalid.
    """
    with without_links(path, files) as file:
        problem, _ = load_in_child(file, LEVELS[-1], CPU, bytes_of([path, *files.values()]))
    if "Load model from" in problem and ("INVALID_GRAPH" in problem or "Type Error" in problem):
        raise InputError(f"{path}: is no valid model: {problem}", "onnx.checker.check_model on it")


def evaluate_model(model: ir.Model, label: str, process: RuntimeProcess | None = None) -> Evaluator:
    """Open a model as it is, without any optimisation, on the CPU provider.

    Args:
        model: An FP32 model; its weights may be lazy or in external files.
        label: What messages call it.
        process: Where; None for a process of its own.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    size = weight_bytes(model)
    with ExitStack() as kept:
        used = process if process is not None else kept.enter_context(RuntimeProcess())
        if size <= LARGE_BYTES:
            ir.external_data.load_to_model(model)  # from bytes, ONNX Runtime finds no file beside the model
            source: Path | bytes = ir.to_proto(model).SerializeToString()
        else:
            folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="halfconv-")))
            source = folder / "model.onnx"
            room_for(size, folder)
            write_weights(model, folder, "model")
            ir.save(model, source)
        try:
            session = used.open(source, LEVELS[-1], CPU, mapped=size > LARGE_BYTES)
        except InputError as error:
            words = " ".join(str(error).split())[:300]
            raise InputError(f"{label}: cannot be run on the CPU: {words}", "--on cuda") from None
        return Evaluator(label, session, kept.pop_all())


def evaluate_simulation(simulation: Simulation, label: str, process: RuntimeProcess | None = None) -> Evaluator:
    """Open a simulation; see `evaluate_model`."""
    return evaluate_model(simulation.model, f"{label} (simulated)", process)
