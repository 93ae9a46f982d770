"""What a job gave, as the JSON data that its worker returns, its file holds and ``sweep --json`` prints."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfconv.benchmark import BenchReport
    from halfconv.drift.report import DriftReport
    from halfconv.result import ConvertResult

__all__ = ["DRIFTED", "ENVIRONMENT", "FAILED", "PASSED", "conversion_of", "drift_of", "finite", "outcome", "speed_of"]

PASSED, DRIFTED, FAILED = "passed", "drifted", "failed"
#: The kind of errors that are not the model's: the next sweep does such a job again.
ENVIRONMENT = "EnvironmentProblem"


def outcome(
    task: Mapping[str, Any], status: str, *, stage: str = "", kind: str = "", message: str = "", attempts: int = 1,
    seconds: Mapping[str, float] | None = None, conversion: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None, speed: list[dict[str, Any]] | None = None, notes: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Build the data.

    Args:
        task: What the job was (`halfconv.sweep.job.Job.task`).
        status: ``passed``, ``drifted`` (the converted model is there, but not within the tolerance) or ``failed``.
        stage: Where it failed.
        kind: The error's class; ``TimeOut`` or ``ProcessEnded`` for what ended the worker.
        message: The error, in one line.
        attempts: How often it was begun.
        seconds: Stage -> seconds.
        conversion: See `conversion_of`.
        drift: See `drift_of`.
        speed: See `speed_of`; None if nothing was measured.
        notes: Sentences that deserve attention.
    """
    return {
        "schema_version": 1,
        "key": task["key"],
        "name": task["name"],
        "model": task["model"],
        "target": task["target"],
        "to": task["to"],
        "status": status,
        "error": {"stage": stage, "kind": kind, "message": message} if status == FAILED else None,
        "attempts": attempts,
        "conversion": conversion,
        "drift": drift,
        "speed": speed,
        "notes": notes or [],
        "seconds": {name: round(value, 3) for name, value in (seconds or {}).items()},
        "halfconv": task["halfconv"],
        "host": platform.node(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def conversion_of(result: ConvertResult) -> dict[str, Any]:
    """Return what of a conversion is kept: where its model is, and how much of it is half."""
    return {
        "output": str(result.output),
        "to": result.to,
        "opset": result.opset,
        "values": dict(result.values),
        "casts": result.casts,
        "bytes_before": result.bytes_before,
        "bytes_after": result.bytes_after,
        "forced": len(result.repair.forced) if result.repair else 0,
    }


def drift_of(report: DriftReport) -> dict[str, Any]:
    """Return what of a validation is kept: the worst figures, and every bound that is broken."""
    measured = [output.measures for output in report.outputs]
    drifts = [m.rel_l2 for m in measured if m.rel_l2 is not None]
    agreements = [share for m in measured for share in (m.argmax_agreement, m.agreement) if share is not None]
    failures = [f"{output.name}: {failure}" for output in report.outputs for failure in output.failures]
    failures += [f"{m.name}: drops by {m.drop:.3g} > {m.limit:g}" for m in report.metrics if not m.passed]
    failures += [waiver.sentence() for waiver in report.waivers if waiver.expired]
    return {
        "on": report.on,
        "samples": report.samples,
        "sample_kind": report.sample_kind,
        "rel_l2": max(drifts, default=None),
        "agreement": min(agreements, default=None),
        "metrics": {metric.name: metric.to_dict() for metric in report.metrics},
        "failures": failures,
    }


def speed_of(report: BenchReport) -> list[dict[str, Any]]:
    """Return the FP32 model beside the converted one, for each batch size."""
    found = []
    for reference, half in zip(report.rows[::2], report.rows[1::2], strict=True):
        found.append(
            {
                "batch": half.batch,
                "provider": half.provider,
                "fp32_p50_ms": reference.p50_ms,
                "p50_ms": half.p50_ms,
                "p99_ms": half.p99_ms,
                "throughput": half.throughput,
                "speedup": reference.p50_ms / half.p50_ms,
            }
        )
    return found


def finite(value: Any) -> Any:
    """Return JSON data in which NaN and infinities are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value
