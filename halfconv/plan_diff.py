"""Compare two plans: what changed its type, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfconv.precision.plan import PlannedValue, PrecisionPlan, counterparts

__all__ = ["HeaderChange", "PlanDiff", "ReadChange", "ValueChange", "diff_plans"]


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """A difference between what two plans were made from or with.

    Attributes:
        field: ``source_sha256``, ``structure_sha256``, ``to``, ``target`` or ``options.NAME``.
        before: What the first plan has; None if it has none.
        after: What the second plan has; None if it has none.
    """

    field: str
    before: Any
    after: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {"field": self.field, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A value of which two plans say different things.

    Attributes:
        before: What the first plan says.
        after: What the second plan says; its id is another one where the second model has other names.
    """

    before: PlannedValue
    after: PlannedValue

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {"value": self.after.id, "was": self.before.id, "before": said(self.before), "after": said(self.after)}


@dataclass(frozen=True, slots=True)
class ReadChange:
    """A read that two plans do in different types.

    Attributes:
        node: Id of the node, in the second plan if it has it.
        input: Index of the input.
        before: Type in the first plan; None if it has no such read.
        after: Type in the second plan; None if it has no such read.
    """

    node: str
    input: int
    before: str | None
    after: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {"node": self.node, "input": self.input, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """How two plans differ.

    Attributes:
        fingerprints: The two plans' fingerprints.
        same_structure: Whether both are for models of one structure; values are then found by their marks, too.
        values: Number of values that both have.
        header: What they were made from and with.
        changed: Values whose type changed.
        reasons: Values that are FP32 in both, for another reason, rule, node or figures.
        added: Values that only the second plan has.
        removed: Values that only the first plan has.
        casts_added: (value, type) pairs that need a Cast in the second plan only.
        casts_removed: (value, type) pairs that need a Cast in the first plan only.
        reads: Reads of nodes that hold no value of the type.
    """

    fingerprints: tuple[str, str]
    same_structure: bool
    values: int
    header: tuple[HeaderChange, ...]
    changed: tuple[ValueChange, ...]
    reasons: tuple[ValueChange, ...]
    added: tuple[PlannedValue, ...]
    removed: tuple[PlannedValue, ...]
    casts_added: tuple[tuple[str, str], ...]
    casts_removed: tuple[tuple[str, str], ...]
    reads: tuple[ReadChange, ...]

    @property
    def same_decisions(self) -> bool:
        """Whether both plans give every value the same type, with the same Casts."""
        formats = any(change.field == "to" for change in self.header)
        parts = (self.changed, self.added, self.removed, self.casts_added, self.casts_removed, self.reads)
        return not formats and not any(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON data (``diff --json``)."""
        return {
            "schema_version": 1,
            "fingerprints": list(self.fingerprints),
            "same_structure": self.same_structure,
            "same_decisions": self.same_decisions,
            "values": self.values,
            "header": [change.to_dict() for change in self.header],
            "changed": [change.to_dict() for change in self.changed],
            "reasons": [change.to_dict() for change in self.reasons],
            "added": [{"value": value.id, **said(value)} for value in self.added],
            "removed": [{"value": value.id, **said(value)} for value in self.removed],
            "casts": {
                "added": [{"value": value, "to": to} for value, to in self.casts_added],
                "removed": [{"value": value, "to": to} for value, to in self.casts_removed],
            },
            "reads": [change.to_dict() for change in self.reads],
        }


def said(value: PlannedValue) -> dict[str, Any]:
    """Return what a plan says of a value, as JSON data, without its id."""
    words = {key: getattr(value, key) for key in ("dtype", "reason", "rule", "node", "op")}
    return {**words, "figures": dict(sorted(value.figures.items()))}


def diff_plans(before: PrecisionPlan, after: PrecisionPlan) -> PlanDiff:
    """Compare two plans.

    Values are the same if they have the same id. Where both plans are for one structure, values with other names are found by
    their marks, as a replay finds them.

    Args:
        before: The first plan.
        after: The second plan.
    """
    same = before.structure_sha256 == after.structure_sha256
    ids = _pairs(before.value_marks, after.value_marks, same)
    nodes = _pairs(before.node_marks, after.node_marks, same)
    old = {value.id: value for value in before.values}
    pairs = [ValueChange(old[ids[value.id]], value) for value in after.values if value.id in ids]
    kept = {ids[change.after.id] for change in pairs}
    now = {was: id_ for id_, was in ids.items()}
    old_casts = {(now.get(value, value), to) for value, to in before.casts}
    return PlanDiff(
        fingerprints=(before.fingerprint(), after.fingerprint()),
        same_structure=same,
        values=len(pairs),
        header=tuple(_header(before, after)),
        changed=tuple(change for change in pairs if change.before.dtype != change.after.dtype),
        reasons=tuple(change for change in pairs if _other_reason(change, nodes)),
        added=tuple(value for value in after.values if value.id not in ids),
        removed=tuple(value for value in before.values if value.id not in kept),
        casts_added=tuple(cast for cast in after.casts if cast not in old_casts),
        casts_removed=tuple(sorted(old_casts - set(after.casts))),
        reads=tuple(_reads(before, after, nodes)),
    )


def _pairs(before: Mapping[str, str], after: Mapping[str, str], same: bool) -> dict[str, str]:
    """Return second id -> first id."""
    return counterparts(before, after) if same else {id_: id_ for id_ in after if id_ in before}


def _other_reason(change: ValueChange, nodes: Mapping[str, str]) -> bool:
    """Tell whether a value is FP32 in both for other reasons; a node that only has another name is the same."""
    one, other = change.before, change.after
    if one.dtype != other.dtype or one.dtype != "float":
        return False
    moved = one.rule != "io" and one.node != nodes.get(other.node, other.node)
    return moved or (one.reason, one.rule, one.op, one.figures) != (other.reason, other.rule, other.op, other.figures)


def _header(before: PrecisionPlan, after: PrecisionPlan) -> list[HeaderChange]:
    names = ("source_sha256", "structure_sha256", "to", "target")
    options = sorted({*before.options, *after.options})
    found = [HeaderChange(name, getattr(before, name), getattr(after, name)) for name in names]
    found += [HeaderChange(f"options.{name}", before.options.get(name), after.options.get(name)) for name in options]
    return [change for change in found if change.before != change.after]


def _reads(before: PrecisionPlan, after: PrecisionPlan, nodes: Mapping[str, str]) -> list[ReadChange]:
    now = {was: id_ for id_, was in nodes.items()}
    old = {(now.get(read.node, read.node), read.input): read.dtype for read in before.reads}
    new = {(read.node, read.input): read.dtype for read in after.reads}
    return [
        ReadChange(node, index, old.get((node, index)), new.get((node, index)))
        for node, index in sorted({*old, *new})
        if old.get((node, index)) != new.get((node, index))
    ]
