"""The precision plan: a type and a reason for every floating-point value, and the Casts between them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SCHEMA_VERSION", "PlannedEdge", "PlannedPlace", "PlannedRead", "PlannedValue", "PrecisionPlan", "counterparts"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlannedValue:
    """What one value is held in, and why.

    Attributes:
        id: The value's id (see `halfconv.graph.names`).
        dtype: ``float16``, ``bfloat16`` or ``float``.
        reason: Why it is FP32, in words; empty for a half value.
        rule: The row that decided; empty for a half value.
        node: Id of the node that caused it; of an input or output of the model, its name.
        op: Operator of that node; ``Input`` or ``Output`` for the model's own.
        figures: Numbers that the reason rests on; None for NaN and infinities.
    """

    id: str
    dtype: str
    reason: str = ""
    rule: str = ""
    node: str = ""
    op: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedRead:
    """What a node reads that produces no floating-point value in the same type: a comparison, a Cast to integers.

    Attributes:
        node: Id of the node.
        input: Index of the input.
        dtype: What it is read in.
    """

    node: str
    input: int
    dtype: str


@dataclass(frozen=True, slots=True)
class PlannedPlace:
    """Where a value stands in the graph.

    Attributes:
        value: Its id.
        node: Id of the node that makes it; empty for inputs and weights.
        op: That node's operator; ``Input`` or ``Weight`` if there is none.
        scope: Where the exporter says the node came from (PyTorch's module path); empty if it does not say.
        shape: Its dimensions, free ones by name, ``?`` if they have none; None if not even the rank is known.
        group: Number of the values and reads that share its type; None for a weight, which is stored in the types it is read in.
        range: What it held on samples, as `halfconv.precision.ranges.ValueRange` has it; None if that was not measured.
    """

    value: str
    node: str
    op: str
    scope: str
    shape: tuple[int | str, ...] | None
    group: int | None
    range: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PlannedEdge:
    """One read of a value or weight.

    Attributes:
        value: Its id.
        node: Id of the node that reads it; of an output of the model, its name.
        op: That node's operator, ``Output`` for the model's own.
        group: Number of the values and reads that share the type in which it is read.
        dtype: That type.
    """

    value: str
    node: str
    op: str
    group: int
    dtype: str


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """A type for every floating-point value of one model.

    Attributes:
        source_sha256: SHA-256 of the model file that was planned.
        structure_sha256: Hash of the graph's structure (see `halfconv.graph.structure`), which neither retraining nor other
            names change.
        to: ``fp16`` or ``bf16``.
        target: The kind of hardware that the plan is made for.
        options: Options that shaped the plan.
        values: One entry per value, sorted by id.
        casts: (value, type) pairs that need a Cast, sorted.
        reads: What is read by nodes whose type no value tells, sorted.
        value_marks: Value id -> its mark in the structure, by which a model with other names is recognised.
        node_marks: Id of each node that the plan names -> its mark.
        places: Where each value, and each weight that is read in FP32 or half, stands in the graph, in topological order.
        edges: What reads them.
    """

    source_sha256: str
    structure_sha256: str
    to: str
    target: str
    options: Mapping[str, Any]
    values: tuple[PlannedValue, ...]
    casts: tuple[tuple[str, str], ...]
    reads: tuple[PlannedRead, ...] = ()
    value_marks: Mapping[str, str] = field(default_factory=dict)
    node_marks: Mapping[str, str] = field(default_factory=dict)
    places: tuple[PlannedPlace, ...] = ()
    edges: tuple[PlannedEdge, ...] = ()

    @property
    def half(self) -> int:
        """Number of values in half precision."""
        return sum(value.dtype != "float" for value in self.values)

    @property
    def float(self) -> int:
        """Number of values in FP32."""
        return sum(value.dtype == "float" for value in self.values)

    def fp32(self) -> tuple[PlannedValue, ...]:
        """Return the values that stay FP32."""
        return tuple(value for value in self.values if value.dtype == "float")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data, in a stable order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source_sha256": self.source_sha256,
            "structure_sha256": self.structure_sha256,
            "to": self.to,
            "target": self.target,
            "options": dict(sorted(self.options.items())),
            "values": [{**asdict(value), "figures": _finite(value.figures)} for value in self.values],
            "casts": [{"value": value, "to": to} for value, to in self.casts],
            "reads": [asdict(read) for read in self.reads],
            "marks": {"values": dict(sorted(self.value_marks.items())), "nodes": dict(sorted(self.node_marks.items()))},
            "places": [{**asdict(place), "shape": None if place.shape is None else list(place.shape)} for place in self.places],
            "edges": [asdict(edge) for edge in self.edges],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrecisionPlan:
        """Read what `to_dict` wrote; `halfconv.plan_file.read_plan` reads a file that may hold anything.

        Raises:
            KeyError: A field is missing.
            ValueError: The schema version is unknown.
        """
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"plan schema version {content['schema_version']}, expected {SCHEMA_VERSION}")
        return cls(
            source_sha256=content["source_sha256"],
            structure_sha256=content["structure_sha256"],
            to=content["to"],
            target=content["target"],
            options=dict(content["options"]),
            values=tuple(PlannedValue(**entry) for entry in content["values"]),
            casts=tuple((entry["value"], entry["to"]) for entry in content["casts"]),
            reads=tuple(PlannedRead(**entry) for entry in content["reads"]),
            value_marks=dict(content["marks"]["values"]),
            node_marks=dict(content["marks"]["nodes"]),
            places=tuple(
                PlannedPlace(**{**entry, "shape": None if entry["shape"] is None else tuple(entry["shape"])})
                for entry in content["places"]
            ),
            edges=tuple(PlannedEdge(**entry) for entry in content["edges"]),
        )

    def to_json(self) -> str:
        """Return the plan as text: one line per value, so that two plans can be compared line by line."""
        content = self.to_dict()
        lines = []
        for key, entry in content.items():
            if isinstance(entry, list):
                rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in entry)
                text = f"[\n{rows}\n  ]" if rows else "[]"
            else:
                text = json.dumps(entry, ensure_ascii=False)
            lines.append(f"  {json.dumps(key)}: {text}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def fingerprint(self) -> str:
        """Return a SHA-256 over what the plan decides: types and Casts, not the words."""
        reads = [(read.node, read.input, read.dtype) for read in self.reads]
        return _digest([(value.id, value.dtype) for value in self.values], self.casts, reads, self.to)


def counterparts(wanted: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """Find what is the same in two models of one structure, by marks (see `halfconv.graph.structure`).

    Args:
        wanted: Id -> mark in the one model.
        present: Id -> mark in the other.

    Returns:
        Id in the other model -> id in the one; what has no counterpart is absent.
    """
    ids = {mark: id_ for id_, mark in wanted.items()}
    return {id_: ids[mark] for id_, mark in present.items() if mark in ids}


def _finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: figure if figure is not None and math.isfinite(figure) else None for name, figure in sorted(figures.items())}


def _digest(*parts: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()
