"""Say in plain words what a plan knows of one value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfconv.errors import UsageError
from halfconv.precision.plan import PlannedEdge, PlannedPlace, PlannedValue, PrecisionPlan
from halfconv.report.text import visible

__all__ = ["Change", "Explanation", "Neighbour", "explain"]

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
#: Rules that no option lifts.
IMPOSSIBLE = frozenset({"kernel", "schema", "sequence", "unknown-op", "unknown-type"})
_PATTERN = "this pattern of operators breaks in half; --allow-op or --allow-node forces its operators to half"
#: Near misses that a message names.
NEAR = 3
#: More elements than any tensor has: a plan comes from anywhere, and its shapes may say anything.
ELEMENTS = 1 << 63


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A value beside the one that is asked for, or what reads that.

    Attributes:
        value: Id of a value that the same node reads, weights included; of a reader, the value that is asked for.
        node: Id of the node that makes the value, or that reads it; empty for inputs and weights.
        op: That node's operator; ``Input``, ``Output`` or ``Weight`` if there is none.
        dtype: What it is read in.
    """

    value: str
    node: str
    op: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Change:
    """What the other type would cost, if all else stayed as it is.

    Attributes:
        to: The other type.
        possible: Whether a rule or option can bring it; an operator without a kernel or schema for half cannot.
        values: Values that change with this one, since a node's type variable or a branch ties them together; sorted.
        casts_added: (value, type) pairs that would need a Cast.
        casts_removed: Those that would no longer need one.
        bytes: Bytes of the tied values in the new type minus those in the old one, each free dimension counted as 1; None if the
            shape of one is unknown.
        weight_bytes: The same for weights that are stored.
        free: Names of the free dimensions.
    """

    to: str
    possible: bool
    values: tuple[str, ...]
    casts_added: tuple[tuple[str, str], ...]
    casts_removed: tuple[tuple[str, str], ...]
    bytes: int | None
    weight_bytes: int | None
    free: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        casts = {
            key: [{"value": value, "to": to} for value, to in getattr(self, key)] for key in ("casts_added", "casts_removed")
        }
        return {**asdict(self), "values": list(self.values), "free": list(self.free), **casts}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a plan knows of one value.

    Attributes:
        value: What the plan says of it.
        place: Where it stands, with its shape and what it held on samples.
        to: The plan's half-precision format.
        target: The kind of hardware that the plan is made for.
        meaning: What the rule means, in words; empty for a half value.
        casts: Types in which the value is also needed, each by a Cast.
        companions: Other values that the same node keeps in FP32 by the same rule, sorted.
        inputs: What the node that makes it reads.
        readers: What reads it.
        change: What the other type would cost; None if the plan does not say where values stand.
    """

    value: PlannedValue
    place: PlannedPlace | None
    to: str
    target: str
    meaning: str
    casts: tuple[str, ...]
    companions: tuple[str, ...]
    inputs: tuple[Neighbour, ...]
    readers: tuple[Neighbour, ...]
    change: Change | None

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON data (``explain --json``)."""
        value, place = self.value, self.place
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
            "made_by": None if place is None else {"node": place.node, "op": place.op, "scope": place.scope},
            "shape": None if place is None or place.shape is None else list(place.shape),
            "range": None if place is None else place.range,
            "inputs": [asdict(entry) for entry in self.inputs],
            "readers": [asdict(entry) for entry in self.readers],
            "change": None if self.change is None else self.change.to_dict(),
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
    places = {place.value: place for place in plan.places}
    place = places.get(value)
    return Explanation(
        value=found,
        place=place,
        to=plan.to,
        target=plan.target,
        meaning="" if half else MEANINGS.get(found.rule.partition(":")[0], _PATTERN),
        casts=tuple(to for name, to in plan.casts if name == value),
        companions=() if half or not found.node else _companions(plan, found),
        inputs=tuple(_inputs(plan, places, place)),
        readers=tuple(Neighbour(value, edge.node, edge.op, edge.dtype) for edge in plan.edges if edge.value == value),
        change=None if place is None or place.group is None else _change(plan, places, found, place.group),
    )


def _inputs(plan: PrecisionPlan, places: Mapping[str, PlannedPlace], place: PlannedPlace | None) -> Iterable[Neighbour]:
    """Yield what the node that makes a value reads."""
    if place is None or not place.node:
        return
    for edge in plan.edges:
        if edge.node == place.node and edge.op != "Output" and (source := places.get(edge.value)) is not None:
            yield Neighbour(edge.value, source.node, source.op, edge.dtype)


def _change(plan: PrecisionPlan, places: Mapping[str, PlannedPlace], found: PlannedValue, group: int) -> Change:
    """Say what follows if a value, and all that is tied to it, gets the other type."""
    half = {"fp16": "float16", "bf16": "bfloat16"}[plan.to]
    to = "float" if found.dtype != "float" else half
    tied = [place for place in plan.places if place.group == group]
    types = {value.id: value.dtype for value in plan.values}
    wanted = types | dict.fromkeys((place.value for place in tied), to)
    # Only what is read or made in the group can need another Cast.
    touched = {place.value for place in tied} | {edge.value for edge in plan.edges if edge.group == group}
    edges = [edge for edge in plan.edges if edge.value in touched]
    before = _casts(edges, types, {})
    after = _casts(edges, wanted, {group: to})
    stored = [places[edge.value] for edge in edges if edge.group == group and edge.value in places and edge.value not in types]
    sizes = [_elements(place) for place in tied]
    weights = [_stored(place, edges, {group: to}) - _stored(place, edges, {}) for place in dict.fromkeys(stored)]
    known = [size for size in sizes if size is not None]
    return Change(
        to=to,
        possible=to == "float" or found.rule not in IMPOSSIBLE,
        values=tuple(sorted(place.value for place in tied if place.value != found.id)),
        casts_added=tuple(sorted(after - before)),
        casts_removed=tuple(sorted(before - after)),
        bytes=sum(known) * (2 if to == "float" else -2) if len(known) == len(sizes) else None,
        weight_bytes=sum(weights) if all(_elements(place) is not None for place in stored) else None,
        free=tuple(sorted({dim for place in tied for dim in place.shape or () if isinstance(dim, str)})),
    )


def _casts(edges: Iterable[PlannedEdge], types: Mapping[str, str], changed: Mapping[int, str]) -> set[tuple[str, str]]:
    """Return the (value, type) pairs that need a Cast; weights need none."""
    reads = {(edge.value, changed.get(edge.group, edge.dtype)) for edge in edges if edge.value in types}
    return {(value, dtype) for value, dtype in reads if types[value] != dtype}


def _stored(weight: PlannedPlace, edges: Iterable[PlannedEdge], changed: Mapping[int, str]) -> int:
    """Return the bytes of a weight, which is stored in each type that it is read in."""
    types = {changed.get(edge.group, edge.dtype) for edge in edges if edge.value == weight.value}
    return sum((_elements(weight) or 0) * (4 if dtype == "float" else 2) for dtype in types)


def _elements(place: PlannedPlace) -> int | None:
    """Return the number of elements, each free dimension counted as 1; None if the rank is not known, or the shape no tensor's."""
    if place.shape is None:
        return None
    count = 1
    for dim in place.shape:
        count *= dim if isinstance(dim, int) else 1
        if not 0 <= count < ELEMENTS:
            return None
    return count


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
