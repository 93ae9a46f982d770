"""Say in plain words what a plan knows of one value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfconv.errors import UsageError
from halfconv.precision.plan import PlannedValue, PrecisionPlan
from halfconv.report.text import visible

__all__ = ["Explanation", "explain"]

#: Rule, up to a colon -> what it means and what lifts it.
MEANINGS: Mapping[str, str] = {
    "block-list": "the block list keeps this operator in FP32; --allow-op or --allow-node forces it to half",
    "constant-range": "a weight leaves half's range where that matters; --allow-op or --allow-node forces it to half",
    "converted": "the model was converted by halfconv before, which left this value in FP32",
    "io": "an input or output of the model keeps its type; --half-io changes it",
    "kernel": "half is impossible: no kernel of the target computes this operator in it",
    "min-cut": "no rule asks for FP32, but half would cost Casts and save nothing",
    "schema": "half is impossible: the operator's schema forbids it",
    "sequence": "half is impossible: no Cast converts a sequence or an optional",
    "unknown-op": "half is not tried: nobody here knows the operator",
    "unknown-type": "half is not tried: a type is not known",
    "user-block": "a block rule of yours asked for it",
}
_PATTERN = "this pattern of operators breaks in half; --allow-op or --allow-node forces its operators to half"
#: Near misses that a message names.
NEAR = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a plan knows of one value.

    Attributes:
        value: What the plan says of it.
        to: The plan's half-precision format.
        target: The kind of hardware that the plan is made for.
        meaning: What the rule means, in words; empty for a half value.
        casts: Types in which the value is also needed, each by a Cast.
        companions: Other values that the same node keeps in FP32 by the same rule, sorted.
    """

    value: PlannedValue
    to: str
    target: str
    meaning: str
    casts: tuple[str, ...]
    companions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON data (``explain --json``)."""
        value = self.value
        return {
            "schema_version": 1,
            "value": value.id,
            "dtype": value.dtype,
            "to": self.to,
            "target": self.target,
            "reason": value.reason,
            "rule": value.rule,
            "meaning": self.meaning,
            "node": value.node,
            "op": value.op,
            "figures": dict(sorted(value.figures.items())),
            "casts": list(self.casts),
            "companions": list(self.companions),
        }


def explain(plan: PrecisionPlan, value: str) -> Explanation:
    """Look a value up.

    Args:
        plan: The plan.
        value: The value's id.

    Raises:
        UsageError: The plan has no such value; near misses are named.
    """
    found = next((entry for entry in plan.values if entry.id == value), None)
    if found is None:
        raise UsageError(f"the plan has no value '{visible(value)}'", _advice(plan, value))
    half = found.dtype != "float"
    return Explanation(
        value=found,
        to=plan.to,
        target=plan.target,
        meaning="" if half else MEANINGS.get(found.rule.partition(":")[0], _PATTERN),
        casts=tuple(to for name, to in plan.casts if name == value),
        companions=() if half or not found.node else _companions(plan, found),
    )


def _companions(plan: PrecisionPlan, found: PlannedValue) -> tuple[str, ...]:
    return tuple(e.id for e in plan.fp32() if e.id != found.id and (e.rule, e.node) == (found.rule, found.node))


def _advice(plan: PrecisionPlan, wanted: str) -> str:
    """Name values that are near, or those of which the node of that name decides."""
    if kept := [entry.id for entry in plan.fp32() if entry.node == wanted and entry.rule != "io"]:
        return f"{_some(kept)}, which the node of that name keeps in FP32"
    ids = [entry.id for entry in plan.values]
    near = [id_ for id_ in ids if wanted and wanted.lower() in id_.lower()][:NEAR]
    near = near or difflib.get_close_matches(wanted, ids, NEAR, 0.5)
    if near:
        return _some(near)
    return f"one of {_some(ids)}" if ids else "another plan: this one has no values"


def _some(ids: Sequence[str]) -> str:
    return " or ".join(f"'{visible(id_)}'" for id_ in ids[:NEAR]) + (" …" if len(ids) > NEAR else "")
