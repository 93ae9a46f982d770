"""What this machine can run in half precision, and why not: `halfconv doctor`.

The facts come from `halfconv.runtime`. What settles a question is a session that runs one operator in half, in a process of its
own.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from halfconv import __version__
from halfconv.errors import InputError, UsageError
from halfconv.graph.kernels import PROVIDERS, operators, table_source
from halfconv.kernels.information import KernelsReport, kernels_report
from halfconv.runtime.installation import NAMES, Facts, facts
from halfconv.runtime.providers import Problem, installation_problems, limits_of, own_provider, problems_of
from halfconv.runtime.session_server import LEVELS
from halfconv.runtime_process import RuntimeProcess

__all__ = ["DoctorReport", "ProviderState", "Run", "doctor"]

#: Format -> its type in a model.
TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
#: Format -> ONNX Runtime's name of it.
ELEMENTS = {"fp16": "float16", "bf16": "bfloat16"}
#: Whose operators are counted, but for those that ONNX Runtime inserts by itself.
DOMAINS, INSERTED = ("", "ai.onnx.ml", "com.microsoft"), frozenset({"MemcpyFromHost", "MemcpyToHost"})
#: Seconds that the sessions of one provider may take; TensorRT builds an engine first.
SECONDS = 300
NO_CAUSE = "onnxruntime.set_default_logger_severity(0) before a session, whose log names the cause"


@dataclass(frozen=True, slots=True)
class Run:
    """One operator, run in half.

    Attributes:
        dtype: ``fp16`` or ``bf16``.
        passed: Whether it gave the right numbers on the provider.
        problem: What went wrong; empty if nothing.
    """

    dtype: str
    passed: bool
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON data."""
        return {"dtype": self.dtype, "passed": self.passed, "problem": self.problem}


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What became of one provider.

    Attributes:
        name: ``cpu``, ``cuda`` or ``tensorrt``.
        available: Whether ONNX Runtime here has it compiled in.
        problems: Why it does not work, or only by luck; empty if it does.
        limits: What it does not do here.
        runs: What was tried; nothing if it is not compiled in.
        installed: Operators with half kernels, as the installed package says itself; None if it does not.
    """

    name: str
    available: bool
    problems: tuple[Problem, ...]
    limits: tuple[Problem, ...]
    runs: tuple[Run, ...]
    installed: Mapping[str, Any] | None = None

    @property
    def runs_fp16(self) -> bool:
        """Whether FP16 ran on it."""
        return any(run.passed for run in self.runs if run.dtype == "fp16")

    @property
    def works(self) -> bool:
        """Whether FP16 ran on it, and nothing is wrong with the installation."""
        return self.runs_fp16 and not self.problems

    @property
    def kernels(self) -> Mapping[str, Any] | None:
        """Operators with half kernels, by the installed package or else the kernel table; None where neither is known."""
        if self.installed is not None:
            return self.installed
        if self.name not in PROVIDERS:
            return None
        halves = {name: list(operators(self.name, dtype)) for name, dtype in DTYPES.items()}
        return {"package": table_source(self.name), "operators": len(operators(self.name)), **halves}

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON data."""
        return {
            "provider": self.name,
            "available": self.available,
            "works": self.works,
            "problems": [problem._asdict() for problem in self.problems],
            "limits": [limit._asdict() for limit in self.limits],
            "runs": [run.to_dict() for run in self.runs],
            "kernels": self.kernels,
        }


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What this machine can run.

    Attributes:
        python: Python's version.
        system: The system and its version.
        machine: The processor's architecture.
        provider: The provider that was asked for.
        facts: What is installed.
        states: The providers.
        kernels: The library of halfconv's CUDA kernels.
    """

    python: str
    system: str
    machine: str
    provider: str
    facts: Facts
    states: tuple[ProviderState, ...]
    kernels: KernelsReport

    @property
    def asked(self) -> ProviderState:
        """The provider that was asked for."""
        return next(state for state in self.states if state.name == self.provider)

    @property
    def works(self) -> bool:
        """Whether the provider that was asked for works."""
        return self.asked.works

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data (``doctor --json``)."""
        return {
            "schema_version": 1,
            "halfconv": __version__,
            "python": self.python,
            "system": self.system,
            "machine": self.machine,
            "provider": self.provider,
            "works": self.works,
            "runtime": self.facts.to_dict(),
            "providers": [state.to_dict() for state in self.states],
            "kernels": {key: value for key, value in self.kernels.to_dict().items() if key in ("version", "library", "exists")},
        }


def doctor(provider: str | None = None) -> DoctorReport:
    """Find out what this machine can run.

    Args:
        provider: The one that must work: ``cpu``, ``cuda`` or ``tensorrt``. None: ``cuda`` if the GPU package is installed, else
            ``cpu``.

    Raises:
        UsageError: There is no such provider.
    """
    if provider is not None and provider not in NAMES:
        raise UsageError(f"unknown provider {provider!r}", "one of " + ", ".join(NAMES))
    found = facts()
    return DoctorReport(
        python=platform.python_version(),
        system=platform.platform(),
        machine=platform.machine(),
        provider=provider or own_provider(found),
        facts=found,
        states=tuple(examine(found, name) for name in NAMES),
        kernels=kernels_report(),
    )


def examine(found: Facts, name: str) -> ProviderState:
    """Try a provider, and say what is wrong with it.

    Args:
        found: What is installed.
        name: ``cpu``, ``cuda`` or ``tensorrt``.
    """
    available = NAMES[name] in found.built
    runs = _runs(name) if available else ()
    limits = tuple(limits_of(found, name)) if available else ()
    installed = _installed_kernels(found) if name == "cpu" and available else None
    state = ProviderState(name, available, (), limits, runs, installed)
    if state.runs_fp16:
        return replace(state, problems=tuple(installation_problems(found, name)))  # what else seemed to be missing is there
    listed = problems_of(found, name)
    if not listed and runs:
        listed = [Problem(f"no session runs on it: {runs[0].problem}", NO_CAUSE)]
    return replace(state, problems=tuple(listed))


def _installed_kernels(found: Facts) -> Mapping[str, Any] | None:
    """Ask the CPU provider for its kernels: which are for half depends on the processor, and on the version."""
    try:
        with RuntimeProcess(SECONDS) as process:
            listed = process.kernels(NAMES["cpu"])
    except InputError:
        return None
    takes: dict[str, set[str]] = {}
    for domain, op_type, kinds in listed:
        if domain in DOMAINS and op_type not in INSERTED:
            bare = {kind.rstrip(")").rpartition("(")[2] for kind in kinds}  # of a sequence, what is in it
            takes.setdefault(f"{domain}::{op_type}".removeprefix("::"), set()).update(bare & {"float", *ELEMENTS.values()})
    halves = {name: sorted(op for op, kinds in takes.items() if element in kinds) for name, element in ELEMENTS.items()}
    package = f"{found.package} {found.version}, installed"
    return {"package": package, "operators": sum(bool(kinds) for kinds in takes.values()), **halves}


def _runs(provider: str) -> tuple[Run, ...]:
    """Run one operator in each half format, in a process of its own."""
    with RuntimeProcess(SECONDS) as process:
        return tuple(_run(process, provider, dtype) for dtype in TYPES)


def _run(process: RuntimeProcess, provider: str, dtype: str) -> Run:
    """Multiply two matrices of small whole numbers: in every half format, the result is exact."""
    left = np.arange(16, dtype=np.float32).reshape(4, 4) % 5
    right = np.arange(16, dtype=np.float32).reshape(4, 4) % 3
    try:
        session = process.open(_model(TYPES[dtype]), LEVELS[0], NAMES[provider])
        if NAMES[provider] not in session.get_providers():
            return Run(dtype, False, f"the session does not get {NAMES[provider]}")
        (given,) = session.run(["y"], {"a": left, "b": right})
    except InputError as error:
        return Run(dtype, False, " ".join(str(error).split())[:300])
    if not np.array_equal(given, left @ right):
        return Run(dtype, False, f"a product of whole numbers comes out wrong, by {np.abs(given - left @ right).max():g}")
    return Run(dtype, True)


def _model(dtype: int) -> bytes:
    """Build a model with FP32 inputs and output and a MatMul in half between Casts."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["a"], ["a_half"], to=dtype),
        helper.make_node("Cast", ["b"], ["b_half"], to=dtype),
        helper.make_node("MatMul", ["a_half", "b_half"], ["y_half"]),
        helper.make_node("Cast", ["y_half"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    a, b, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in "aby")
    graph = helper.make_graph(nodes, "doctor", [a, b], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
