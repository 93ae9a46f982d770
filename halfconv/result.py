"""What a conversion did, as data: for the console, for JSON, and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv.check import CheckResult
from halfconv.precision.plan import PlannedValue, PrecisionPlan

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport
    from halfconv.kernels.stage import Placed

__all__ = ["ChangedConstant", "ConvertResult", "FailedConvert", "FloatValue", "Repaired"]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What the search for values that must stay FP32 did.

    Attributes:
        forced: Ids of the values that it forced to FP32, those first that contribute most to the drift.
        runs: Runs of the model over all samples, those that measured ranges and contributions included.
        minimal: Whether none of them can go back to half without breaking the tolerance.
        stopped: What ended the search early: ``time``, ``runs`` or "".
        seconds: Time that it took.
    """

    forced: tuple[str, ...]
    runs: int
    minimal: bool
    stopped: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {
            "forced": list(self.forced),
            "runs": self.runs,
            "minimal": self.minimal,
            "stopped": self.stopped or None,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class ChangedConstant:
    """A constant that half precision changes by more than rounding.

    Attributes:
        name: The weight's id.
        size: Number of elements.
        absmax: Largest finite magnitude.
        saturated: Elements beyond half's range, which became its largest number; their sign is kept.
        flushed: Non-zero elements that became zero.
        held: ``half`` or ``both``: a weight that stays FP32 only is not listed.
    """

    name: str
    size: int
    absmax: float
    saturated: int
    flushed: int
    held: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in ("name", "size", "absmax", "saturated", "flushed", "held")}


@dataclass(frozen=True, slots=True)
class FloatValue:
    """A value that stays FP32.

    Attributes:
        value: The value's id.
        node: Id of the node that caused it.
        op: Operator of that node.
        reason: Why, in words.
        rule: The row that decided.
    """

    value: str
    node: str
    op: str
    reason: str
    rule: str

    @classmethod
    def of(cls, planned: PlannedValue) -> FloatValue:
        """Take what is reported from a planned value."""
        return cls(planned.id, planned.node, planned.op, planned.reason, planned.rule)

    def to_dict(self) -> dict[str, str]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in ("value", "node", "op", "reason", "rule")}


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What a conversion did.

    Attributes:
        output: The file written.
        to: ``fp16``.
        target: The kind of hardware that it is made for.
        opset: Opset of the default domain in the output.
        nodes: Number of nodes in the output, in all scopes.
        values: Number of floating-point values of the source in ``half`` and in ``float``.
        weights: Number of FP32 weights stored in ``half``, ``float`` and ``both``.
        casts: Casts added.
        bytes_before: Size of the input, external data included.
        bytes_after: Size of the output, external data included.
        seconds: Seconds by stage.
        fp32: Every value that stays FP32, with its reason.
        constants: Constants that changed by more than rounding.
        fusions: Fused operator -> number.
        check: What the checks found; None with ``check=False``.
        plan: The plan.
        drift: Drift of the output on samples, in simulation; None with ``check=False``, or where it could not be simulated.
        repair: What the search for values that must stay FP32 did; None if it was not needed.
        warnings: Sentences that deserve attention.
        kernels: Operators of ``com.halfconv`` that were put in; None if they were not asked for.
    """

    output: Path
    to: str
    target: str
    opset: int
    nodes: int
    values: Mapping[str, int]
    weights: Mapping[str, int]
    casts: int
    bytes_before: int
    bytes_after: int
    seconds: Mapping[str, float]
    fp32: tuple[FloatValue, ...]
    constants: tuple[ChangedConstant, ...]
    fusions: Mapping[str, int]
    check: CheckResult | None
    plan: PrecisionPlan | None
    drift: DriftReport | None = None
    repair: Repaired | None = None
    warnings: tuple[str, ...] = ()
    kernels: Placed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data (``convert --json``)."""
        return {
            "schema_version": 1,
            "output": str(self.output),
            "to": self.to,
            "target": self.target,
            "opset": self.opset,
            "nodes": self.nodes,
            "values": dict(self.values),
            "weights": dict(self.weights),
            "casts": self.casts,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "fp32": [entry.to_dict() for entry in self.fp32],
            "constants": [entry.to_dict() for entry in self.constants],
            "fusions": dict(self.fusions),
            "kernels": self.kernels.to_dict() if self.kernels else None,
            "check": self.check.to_dict() if self.check else None,
            "plan_fingerprint": self.plan.fingerprint() if self.plan else None,
            "warnings": list(self.warnings),
            "drift": self.drift.to_dict() if self.drift else None,
            "repair": self.repair.to_dict() if self.repair else None,
        }


@dataclass(frozen=True, slots=True)
class FailedConvert:
    """What is known of a conversion that did not meet its tolerance.

    Attributes:
        why: What breaks the tolerance, in one line.
        drift: Drift of the best candidate.
        plan: Its plan.
        output: Where it was written for study; None if nothing was left.
    """

    why: str
    drift: DriftReport
    plan: PrecisionPlan
    output: Path | None
