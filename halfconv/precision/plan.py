"""The precision plan: a type and a reason for every floating-point value, and the Casts between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["PlannedValue", "PrecisionPlan"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlannedValue:
    """What one value is held in, and why.

    Attributes:
        id: The value's id (see `halfconv.graph.names`).
        dtype: ``float16``, ``bfloat16`` or ``float``.
        reason: Why it is FP32, in words; empty for a half value.
        rule: The row that decided; empty for a half value.
        node: Id of the node that caused it.
        op: Operator of that node.
        figures: Numbers that the reason rests on.
    """

    id: str
    dtype: str
    reason: str = ""
    rule: str = ""
    node: str = ""
    op: str = field(default="", compare=False)  # follows from the node; plan files leave it out
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """A type for every floating-point value of one model.

    Attributes:
        source_sha256: SHA-256 of the model file that was planned.
        structure_sha256: Hash of the graph's structure (operators, edges, ids), which retraining does not change.
        to: ``fp16`` or ``bf16``.
        target: The kind of hardware that the plan is made for.
        options: Options that shaped the plan.
        values: One entry per value, sorted by id.
        casts: (value, type) pairs that need a Cast, sorted.
    """

    source_sha256: str
    structure_sha256: str
    to: str
    target: str
    options: Mapping[str, Any]
    values: tuple[PlannedValue, ...]
    casts: tuple[tuple[str, str], ...]

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
        content = asdict(self)
        for entry in content["values"]:
            del entry["op"]
            entry["figures"] = dict(sorted(entry["figures"].items()))
        content["options"] = dict(sorted(content["options"].items()))
        content["casts"] = [{"value": value, "to": to} for value, to in self.casts]
        return {"schema_version": SCHEMA_VERSION, **content, "values": list(content["values"])}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrecisionPlan:
        """Read what `to_dict` wrote.

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
        return _digest([(value.id, value.dtype) for value in self.values], self.casts, self.to)


def _digest(*parts: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()
