"""Look at a model without writing anything: what it holds, and what would stay FP32 and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.graph.fusions import FUSIONS
from halfconv.graph.prepare import Refusal
from halfconv.placement import Placed, placement
from halfconv.planning import plan_model
from halfconv.precision.plan import PrecisionPlan
from halfconv.precision.rules import Rules
from halfconv.result import FloatValue

__all__ = ["Fused", "InspectReport", "OddWeight", "inspect"]


@dataclass(frozen=True, slots=True)
class OddWeight:
    """A weight that half precision changes by more than rounding.

    Attributes:
        name: The weight's id.
        size: Number of elements.
        absmax: Largest finite magnitude.
        saturated: Elements beyond half's range.
        flushed: Non-zero elements that become zero.
        nonfinite: Infinite and NaN elements.
        rel_l2: Relative L2 error of rounding, over the elements that fit.
    """

    name: str
    size: int
    absmax: float
    saturated: int
    flushed: int
    nonfinite: int
    rel_l2: float

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in self.__slots__}


@dataclass(frozen=True, slots=True)
class Fused:
    """A fusion that was made.

    Attributes:
        fusion: Its name: as a rule, the operator that it makes.
        count: How often.
        node: Id of the first node made; "" if it only removed nodes.
        why: What it is good for.
    """

    fusion: str
    count: int
    node: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in self.__slots__}


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What a model holds.

    Attributes:
        model: The file.
        sha256: Its SHA-256.
        bytes: Its size, external data included.
        to: The half-precision format that a conversion would have: ``fp16`` or ``bf16``.
        target: The kind of hardware that it would be made for.
        ir_version: Its IR version.
        opsets: Domain -> opset, as declared in the file.
        inputs: (name, type and shape) of each input.
        outputs: (name, type and shape) of each output.
        nodes: Number of nodes after preparation, in all scopes.
        ops: Operator -> number.
        dtypes: Element type of weights -> bytes.
        values: Number of floating-point values that would be ``half`` and ``float``.
        casts: Casts that a conversion would need.
        fp32: Every value that would stay FP32, with its reason.
        weights: Weights that half precision changes by more than rounding.
        fusions: Fused operator -> number.
        placement: Which kernels the nodes would get from the providers that the target means.
        fused: The same, with an example and a reason each.
        refused: Fusions that began to match and were not made, each with its reason.
        seconds: Seconds by stage.
        warnings: Sentences that deserve attention.
    """

    model: Path
    sha256: str
    bytes: int
    to: str
    target: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    nodes: int
    ops: Mapping[str, int]
    dtypes: Mapping[str, int]
    values: Mapping[str, int]
    casts: int
    fp32: tuple[FloatValue, ...]
    weights: tuple[OddWeight, ...]
    fusions: Mapping[str, int]
    placement: tuple[Placed, ...]
    fused: tuple[Fused, ...]
    refused: tuple[Refusal, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data (``inspect --json``)."""
        return {
            "schema_version": 1,
            "model": str(self.model),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "to": self.to,
            "target": self.target,
            "ir_version": self.ir_version,
            "opsets": dict(self.opsets),
            "inputs": [{"name": name, "type": kind} for name, kind in self.inputs],
            "outputs": [{"name": name, "type": kind} for name, kind in self.outputs],
            "nodes": self.nodes,
            "ops": dict(self.ops),
            "dtypes": dict(self.dtypes),
            "values": dict(self.values),
            "casts": self.casts,
            "fp32": [entry.to_dict() for entry in self.fp32],
            "weights": [entry.to_dict() for entry in self.weights],
            "fusions": dict(self.fusions),
            "placement": [entry.to_dict() for entry in self.placement],
            "fused": [entry.to_dict() for entry in self.fused],
            "refused": [entry.to_dict() for entry in self.refused],
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "warnings": list(self.warnings),
        }


def inspect(
    model: str | os.PathLike[str],
    *,
    to: str = "fp16",
    target: str = "portable",
    rules: Rules | None = None,
    fuse: bool = True,
    plan: str | os.PathLike[str] | PrecisionPlan | None = None,
    allow_links: str | os.PathLike[str] | None = None,
) -> InspectReport:
    """Report what a model holds and what a conversion would leave in FP32.

    Args:
        model: An ``.onnx`` file.
        to: ``fp16`` or ``bf16``.
        target: The kind of hardware that the model would be made for.
        rules: What the user wants kept in FP32 or forced to half.
        fuse: Whether groups of operators would become one, as the target has them.
        plan: A saved plan that a conversion would replay; its types and reasons are reported.
        allow_links: A folder; data files that are links are read if their real path lies below it.

    Raises:
        InputError: The model cannot be used, or the plan does not fit it.
        UsageError: A rule matches nothing.
    """
    planned = plan_model(model, to=to, target=target, rules=rules, fuse=fuse, plan=plan, allow_links=allow_links)
    graph, source, prepared = planned.source.model.graph, planned.source, planned.prepared
    dtypes: Counter[str] = Counter()
    for scope in planned.names.scopes:
        for value in scope.graph.initializers.values():
            if value.const_value is not None:
                dtypes[str(value.const_value.dtype)] += value.const_value.nbytes
    odd = []
    for known in planned.weights.values():
        stats = known.stats
        if stats.saturated or stats.flushed or stats.nonfinite:
            odd.append(OddWeight(known.id, stats.size, stats.absmax, stats.saturated, stats.flushed, stats.nonfinite, stats.rel_l2))
    return InspectReport(
        model=source.path,
        sha256=source.sha256,
        bytes=source.bytes,
        to=planned.plan.to,
        target=planned.plan.target,
        ir_version=source.ir_version,
        opsets=dict(sorted(source.opsets.items())),
        inputs=tuple((value.name or "", _type(value)) for value in graph.inputs),
        outputs=tuple((value.name or "", _type(value)) for value in graph.outputs),
        nodes=sum(1 for _ in planned.names.nodes()),
        ops=dict(Counter(node.op_type for node in planned.names.nodes()).most_common()),
        dtypes=dict(dtypes.most_common()),
        values={"half": planned.plan.half, "float": planned.plan.float},
        casts=len(planned.plan.casts),
        fp32=tuple(FloatValue.of(value) for value in planned.plan.fp32()),
        weights=tuple(odd),
        placement=placement(planned),
        fusions=prepared.fusions,
        fused=tuple(
            Fused(name, count, prepared.examples.get(name, ""), next((f.why for f in FUSIONS if f.name == name), ""))
            for name, count in prepared.fusions.items()
        ),
        refused=tuple(prepared.refused),
        seconds=planned.seconds,
        warnings=tuple([*planned.prepared.notes, *planned.assignment.overruled]),
    )


def _type(value: ir.Value) -> str:
    if value.type is None:
        return "unknown"
    if isinstance(value.type, ir.TensorType):
        dims = "?" if value.shape is None else ",".join(str(dim) for dim in value.shape)
        return f"{value.type.dtype.name.lower()}[{dims}]"
    return str(value.type)
