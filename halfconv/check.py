"""Check a written model: ONNX's full checker, the promised inputs and outputs, and a real session at default optimisation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from halfconv.errors import CheckFailed, EnvironmentProblem, HalfconvError, InputError
from halfconv.external import without_links
from halfconv.graph.kernels import table_source
from halfconv.graph.names import values_of
from halfconv.graph.schema import known_to_onnx, signature
from halfconv.model import SourceModel
from halfconv.runtime.installation import runtime_version
from halfconv.runtime.kernels import library
from halfconv.runtime.session_server import CPU, LEVELS
from halfconv.runtime.settings import CUDA
from halfconv.runtime_process import RuntimeProcess

__all__ = [
    "BIG_BYTES", "CPU", "CUDA", "LARGE_BYTES", "CheckResult", "check_file", "load_in_child", "require_runtime", "runtime_package",
]  # fmt: skip


#: Inputs and outputs.
Promise = tuple[Sequence[onnx.ValueInfoProto], Sequence[onnx.ValueInfoProto]]
#: Beyond this many bytes of weights a session is opened without optimisation: its constant folding takes memory and time.
BIG_BYTES = 10**9
#: Beyond this many nodes none is opened: ONNX Runtime 1.32 takes over 4 minutes for a chain of 100,000, optimised or not.
MANY_NODES = 50_000
#: Beyond this many bytes of weights in external files, they stay there, mapped into memory.
LARGE_BYTES = 1 << 26
#: Seconds that a session may take to load.
LOAD_TIMEOUT = 600
#: Bytes that it may take; a larger model gets 8 times its size.
LOAD_BYTES = 4 << 30
#: Said where BF16 kernels could not be tried.
NO_BF16 = (
    "no session was tried: ONNX Runtime's CPU provider loads no BF16 model, so only onnx's checker and the kernel table of {} "
    "vouch for it"
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the checks found.

    Attributes:
        checker: Whether ONNX's full checker passed; False if it was left out (a failure raises).
        loaded: Whether a session loaded; None if none was tried.
        level: The graph optimisation level at which it loaded.
        provider: The provider it was asked for.
        ort_version: ONNX Runtime's version; empty if none was tried.
        notes: Sentences for the report: levels that failed, checks left out and why.
    """

    checker: bool
    loaded: bool | None
    level: str
    provider: str
    ort_version: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {
            "checker": self.checker,
            "loaded": self.loaded,
            "level": self.level,
            "provider": self.provider,
            "ort_version": self.ort_version,
            "notes": list(self.notes),
        }


def runtime_package() -> str:
    """Return which ONNX Runtime package is installed, ``onnxruntime`` or ``onnxruntime-gpu``; "" if none is."""
    name, _ = runtime_version()
    if name:
        return name
    if importlib.util.find_spec("onnxruntime") is not None:
        return "onnxruntime"
    return ""


def require_runtime() -> str:
    """Return the installed runtime's package name.

    Raises:
        EnvironmentProblem: None is installed.
    """
    name = runtime_package()
    if not name:
        raise EnvironmentProblem(
            "no ONNX Runtime is installed, so the converted model cannot be loaded",
            "pip install 'halfconv[cpu]', or 'halfconv[gpu]' for NVIDIA GPUs; not both: the two packages overwrite each "
            "other's files; or --no-check",
        )
    return name


def check_file(path: Path, promised: Promise, model: ir.Model, target: str, source: SourceModel) -> CheckResult:
    """Check a written model.

    Args:
        path: The file.
        promised: The inputs and outputs that it must have.
        model: The same model in memory, for its operators and weights.
        target: Where it will run.
        source: The model that was converted: what its file fails too is not the conversion's fault.

    Raises:
        InputError: The source itself fails the check.
        CheckFailed: The checker refuses it, the interface differs, or no session loads at any level.
        EnvironmentProblem: No runtime is installed.
    """
    require_runtime()
    foreign = sorted({n.domain for n in ir.traversal.RecursiveGraphIterator(model.graph) if _is_foreign(n, model)})
    shapeless = [
        v.name for side in promised for v in side if v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape")
    ]
    notes = []
    own = sorted({n.op_type for n in ir.traversal.RecursiveGraphIterator(model.graph) if _is_runtimes_own(n, model)})
    if own:
        notes.append(f"onnx's checker was left out: it does not know {', '.join(own)}, which ONNX Runtime's optimiser wrote")
    elif shapeless:
        notes.append(f"onnx's checker was left out: it refuses '{shapeless[0]}', for which the source declares no shape")
    else:
        try:
            onnx.checker.check_model(str(path), full_check=not foreign)
        except Exception as error:
            _blame_source(source, full_check=not foreign)
            raise CheckFailed(f"onnx's checker refuses the converted model: {_first_line(error)}", "report it") from None
    checked = not (own or shapeless)
    _check_interface(path, promised)
    if foreign:
        note = f"no session was tried: it holds operators of {', '.join(foreign)}, which need their own library"
        return CheckResult(checked, None, "", "", "", (*notes, note))
    provider = _provider(target)
    if provider == CPU and _holds(model, ir.DataType.BFLOAT16):
        return CheckResult(checked, None, "", "", "", (*notes, NO_BF16.format(table_source())))
    if (nodes := sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))) > MANY_NODES:
        notes.append(f"no session was tried: it has {nodes:,} nodes, which would take minutes")
        return CheckResult(checked, None, "", "", "", tuple(notes))
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    outside = sum(v.const_value.nbytes for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor))
    mapped = outside > LARGE_BYTES
    levels = LEVELS[1:] if mapped else LEVELS if weights <= BIG_BYTES else LEVELS[-1:]
    if mapped:
        notes.append("loaded without constant folding, so that its weights stay in their files")
    elif levels != LEVELS:
        notes.append(f"loaded without optimisation, because the weights are over {BIG_BYTES / 1e9:g} GB")
    problem, version, size = "", "", path.stat().st_size + outside
    for level in levels:
        problem, version = load_in_child(path, level, provider, size, mapped=mapped)
        if not problem:
            return CheckResult(checked, True, level, provider, version, tuple(notes))
        notes.append(f"ONNX Runtime fails at {level}: {problem}")
    with without_links(source.path, source.locations) as file:
        source_problem, _ = load_in_child(file, LEVELS[-1], CPU, source.bytes, mapped=mapped)
    if source_problem:
        if _holds(model, ir.DataType.BFLOAT16):
            note = "no session could be tried: the source holds BF16 values, which ONNX Runtime's CPU provider cannot run"
            return CheckResult(checked, None, "", "", version, (*notes[:1], note) if not checked else (note,))
        raise InputError(f"{source.path}: ONNX Runtime cannot load the source itself: {source_problem}", "export it again")
    raise CheckFailed(f"the converted model loads at no optimisation level: {problem}", "--block-op on the operator it names")


def _holds(model: ir.Model, dtype: ir.DataType) -> bool:
    """Tell whether a model has inputs, weights or values of a type."""
    return any(value.dtype == dtype for graph in model.graphs() for value in values_of(graph))


def _blame_source(source: SourceModel, *, full_check: bool) -> None:
    """Raise if the source fails the checker too."""
    try:
        with without_links(source.path, source.locations) as file:
            onnx.checker.check_model(str(file), full_check=full_check)
    except HalfconvError:
        raise
    except Exception as error:
        words = f"{source.path}: onnx's checker refuses the source itself: {_first_line(error)}"
        raise InputError(words, "export it again") from None


def _is_runtimes_own(node: ir.Node, model: ir.Model) -> bool:
    """Tell whether a node of ONNX's domain has an operator that only ONNX Runtime knows there."""
    version = model.opset_imports.get(node.domain)
    return node.domain in ("", "ai.onnx") and not known_to_onnx(node.domain, node.op_type, version)


def _check_interface(path: Path, promised: Promise) -> None:
    """Compare the file's inputs and outputs, without its weights, with what was promised."""
    graph = onnx.load_model(path, load_external_data=False).graph
    for side, wanted, given in (("input", promised[0], graph.input), ("output", promised[1], graph.output)):
        if [value.name for value in wanted] != [value.name for value in given]:
            raise CheckFailed(
                f"the converted model's {side}s are {[v.name for v in given]}, promised {[v.name for v in wanted]}",
                "report it",
            )
        for want, have in zip(wanted, given, strict=True):
            if want.HasField("type") and want.type != have.type:
                raise CheckFailed(f"{side} '{have.name}' became {have.type}, promised {want.type}", "report it")


def _is_foreign(node: ir.Node, model: ir.Model) -> bool:
    if any(function.domain == node.domain and function.name == node.op_type for function in model.functions.values()):
        return False
    return signature(node.domain, node.op_type, model.opset_imports.get(node.domain)) is None


def _provider(target: str) -> str:
    if runtime_package() == "onnxruntime-gpu" and target in ("portable", "cuda", "tensorrt"):
        import onnxruntime

        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        if CUDA in onnxruntime.get_available_providers() and Path("/dev/nvidiactl").exists():
            return CUDA
    return CPU


def load_in_child(path: Path, level: str, provider: str, size: int, *, mapped: bool = False) -> tuple[str, str]:
    """Open a session in a process of its own.

    Args:
        path: Model file.
        level: A name of ONNX Runtime's optimisation levels.
        provider: Execution provider.
        size: Bytes of the model with its weights.
        mapped: Whether weights in external files stay there, mapped into memory.

    Returns:
        What went wrong ("" if nothing), and the runtime's version.
    """
    with RuntimeProcess(LOAD_TIMEOUT, max(LOAD_BYTES, 8 * size) if provider == CPU else None) as process:
        try:
            kernels = library() if provider == CUDA else None
            session = process.open(path, level, provider, mapped=mapped, threads=1, library=kernels)
        except InputError as error:
            return " ".join(str(error).split())[:300], ""
        return "" if provider in session.get_providers() else f"{provider} did not load", session.version


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
