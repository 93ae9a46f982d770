"""halfconv: half-precision deployment of ONNX models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfconv.drift.compare import validate
    from halfconv.drift.report import DriftReport
    from halfconv.errors import (
        CheckFailed,
        EnvironmentProblem,
        HalfconvError,
        InputError,
        PoolFull,
        ProfileWarning,
        RunStopped,
        UnsupportedModel,
        UsageError,
    )
    from halfconv.inspection import InspectReport, inspect
    from halfconv.pipeline import convert
    from halfconv.precision.plan import PrecisionPlan
    from halfconv.result import ConvertResult
    from halfconv.runtime.pool import Pool
    from halfconv.runtime.session import Session
    from halfconv.runtime.shadow import Shadow
    from halfconv.runtime.tensorrt import EngineOptions

__version__ = "0.1.0"

# Public name -> the module that defines it. Imported on first use: `import halfconv` loads neither onnx nor numpy.
_HOME = {
    "CheckFailed": "halfconv.errors",
    "ConvertResult": "halfconv.result",
    "DriftReport": "halfconv.drift.report",
    "EngineOptions": "halfconv.runtime.tensorrt",
    "EnvironmentProblem": "halfconv.errors",
    "HalfconvError": "halfconv.errors",
    "InputError": "halfconv.errors",
    "InspectReport": "halfconv.inspection",
    "Pool": "halfconv.runtime.pool",
    "PoolFull": "halfconv.errors",
    "PrecisionPlan": "halfconv.precision.plan",
    "ProfileWarning": "halfconv.errors",
    "RunStopped": "halfconv.errors",
    "Session": "halfconv.runtime.session",
    "Shadow": "halfconv.runtime.shadow",
    "UnsupportedModel": "halfconv.errors",
    "UsageError": "halfconv.errors",
    "convert": "halfconv.pipeline",
    "inspect": "halfconv.inspection",
    "validate": "halfconv.drift.compare",
}

__all__ = [
    "CheckFailed",
    "ConvertResult",
    "DriftReport",
    "EngineOptions",
    "EnvironmentProblem",
    "HalfconvError",
    "InputError",
    "InspectReport",
    "Pool",
    "PoolFull",
    "PrecisionPlan",
    "ProfileWarning",
    "RunStopped",
    "Session",
    "Shadow",
    "UnsupportedModel",
    "UsageError",
    "__version__",
    "convert",
    "inspect",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'halfconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
