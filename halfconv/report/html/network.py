"""The map of the network: every value with its place, precision, reason, range and drift, and what follows from them for charts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfconv.formats.layout import BFLOAT16, BINARY16
from halfconv.report.html.charts import Drift, Mark, Spans, Strip
from halfconv.report.html.view import Cell, Table, clean
from halfconv.report.text import figure

__all__ = [
    "Entry",
    "beginning",
    "drift_chart",
    "entries_of_layers",
    "entries_of_plan",
    "map_data",
    "precision_chart",
    "regions",
    "shortened",
    "span_chart",
    "worst_table",
]

#: Values that a chart points out, and that are listed as worst.
MARKS, WORST = 8, 12
#: Reasons that have a colour of their own; the last one stands for all others.
REASONS = 6
#: Share of the ids that must begin alike, and with so many characters, to be written shorter in tables.
SHARED, SHORT = 0.6, 12
#: Regions that are listed.
REGIONS = 40
#: Levels of modules that are told apart: names come from anywhere, and one may be nothing but slashes.
LEVELS = 64
LAYOUTS = {"fp16": BINARY16, "bf16": BFLOAT16}


@dataclass(frozen=True, slots=True)
class Entry:
    """A value on the map.

    Attributes:
        id: Its id.
        node: Id of the node that makes it.
        op: That node's operator.
        scope: Path of the module that it belongs to, outermost first.
        half: Whether it is held in half.
        rule: The rule that keeps it in FP32.
        reason: Why it is FP32, in words.
        culprit: The node that caused it.
        smallest: Smallest magnitude that is not 0, on samples.
        largest: Largest magnitude on samples.
        overflow: Share that would be infinite in half.
        drift: rel_l2; infinite if it is not finite.
        added: rel_l2 that arises here.
        verdict: What is wrong with it, in words.
    """

    id: str
    node: str
    op: str
    scope: tuple[str, ...]
    half: bool
    rule: str = ""
    reason: str = ""
    culprit: str = ""
    smallest: float | None = None
    largest: float | None = None
    overflow: float = 0.0
    drift: float | None = None
    added: float | None = None
    verdict: str = ""


def entries_of_plan(plan: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return the values of a plan, in topological order.

    Args:
        plan: What `PrecisionPlan.to_dict` gives.
        layers: What `LayerDrift.to_dict` gives of each value whose drift is known.
    """
    drifts = {layer["value"]: layer for layer in layers}
    planned = {value["id"]: value for value in plan["values"]}
    found = []
    for place in plan["places"]:
        value = planned.get(place["value"])
        if value is None:
            continue
        held, layer = place["range"] or {}, drifts.get(place["value"], {})
        culprit = f"{value['op']} {value['node']}".strip()
        found.append(
            Entry(
                value["id"],
                place["node"],
                place["op"],
                _path(place["scope"], place["node"]),
                value["dtype"] != "float",
                value["rule"],
                value["reason"],
                culprit,
                held.get("smallest"),
                held.get("absmax"),
                held.get("overflow") or 0.0,
                layer.get("rel_l2"),
                layer.get("added"),
                layer.get("verdict", ""),
            )
        )
    return found


def entries_of_layers(layers: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return the values that were compared, in topological order; see `entries_of_plan`."""
    return [
        Entry(
            layer["value"],
            layer["node"],
            layer["op"] or "Input",
            _path(layer["scope"], layer["node"]),
            layer["dtype"] != "float32",
            largest=layer["reference_absmax"],
            drift=layer["rel_l2"],
            added=layer["added"],
            verdict=layer["verdict"],
        )
        for layer in layers
    ]


def _path(scope: str, node: str) -> tuple[str, ...]:
    """Return the modules that a node belongs to: the exporter's, or else the part of its name before the last slash."""
    parts = scope.replace("/", ".").split(".") if scope else node.split("/")[:-1]
    return tuple(part for part in parts if part)[:LEVELS]


def _label(entry: Entry) -> str:
    return clean(entry.id)


def beginning(entries: Sequence[Entry]) -> str:
    """Return how most ids begin, up to a slash, which tables need not repeat; "" if they have little in common."""
    counts: Counter[str] = Counter()
    for entry in entries:
        parts = entry.id.split("/")
        counts.update("/".join(parts[:depth]) + "/" for depth in range(1, min(len(parts), LEVELS)))
    shared = [prefix for prefix, count in counts.items() if count >= SHARED * len(entries) and len(prefix) >= SHORT]
    return max(shared, key=len, default="")


def shortened(text: str, begin: str) -> str:
    """Return a text without what ids begin with."""
    return clean(text.replace(begin, "…/") if begin else text)


def _rules(entries: Sequence[Entry]) -> list[str]:
    """Return the rules that keep values in FP32, the most frequent first."""
    counts = Counter(entry.rule for entry in entries if not entry.half)
    return [rule for rule, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def map_data(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what the page's script shows: columns, with names that repeat as numbers of a list."""
    ops, scopes, reasons = (
        _numbered(column)
        for column in (
            (clean(entry.op) for entry in entries),
            (tuple(map(clean, entry.scope)) for entry in entries),
            ((clean(entry.rule), clean(entry.reason)) for entry in entries),
        )
    )
    ranks = {rule: min(rank, REASONS - 1) for rank, rule in enumerate(_rules(entries))}
    return {
        "ops": list(ops[0]),
        "scopes": [list(scope) for scope in scopes[0]],
        "reasons": [[rule, reason, ranks.get(rule, 0)] for rule, reason in reasons[0]],
        "ids": [clean(entry.id) for entry in entries],
        "nodes": [clean(entry.node) for entry in entries],
        "op": ops[1],
        "scope": scopes[1],
        "reason": [-1 if entry.half else number for entry, number in zip(entries, reasons[1], strict=True)],
        "culprits": [clean(entry.culprit) for entry in entries],
        "verdicts": [clean(entry.verdict) for entry in entries],
        **{name: [_number(getattr(entry, name)) for entry in entries] for name in ("smallest", "largest", "drift", "added")},
    }


def _numbered(column: Any) -> tuple[dict[Any, int], list[int]]:
    known: dict[Any, int] = {}
    return known, [known.setdefault(entry, len(known)) for entry in column]


def _number(value: float | None) -> float | str | None:
    """Return a figure in four digits; what is not finite in words, as JSON has no number for it."""
    if value is None:
        return None
    return float(f"{value:.4g}") if math.isfinite(value) else "not finite"


def drift_chart(entries: Sequence[Entry], limit: float | None) -> Drift | None:
    """Return drift along the network; None if it is not known of any value."""
    heights = [_height(entry.drift) for entry in entries]
    if not any(heights):
        return None
    marks = [
        Mark(at, heights[at] or 0.0, f"#v{at}", f"{_label(entries[at])}, rel_l2 {_words(entries[at].drift)}")
        for at in _worst(entries)[:MARKS]
        if heights[at]
    ]
    label = "Drift (rel_l2) of every value from input to output, on a logarithmic scale; the values that add most are links."
    return Drift(label, [height or None for height in heights], limit, marks)


def _height(drift: float | None) -> float | None:
    return math.inf if drift is not None and not math.isfinite(drift) else drift


def _words(drift: float | None) -> str:
    return "not finite" if drift is not None and not math.isfinite(drift) else figure(drift)


def _worst(entries: Sequence[Entry]) -> list[int]:
    """Return the places of the values that add most error, the most first."""

    def added(at: int) -> float:
        value = entries[at].added
        return 0.0 if value is None else math.inf if math.isnan(value) else value

    return [at for at in sorted(range(len(entries)), key=added, reverse=True) if added(at) > 0]


def worst_table(entries: Sequence[Entry]) -> Table | None:
    """Return the values that add most error; None if there are none."""
    worst = _worst(entries)[:WORST]
    if not worst:
        return None
    begin = beginning(entries)
    rows = [
        [
            Cell(shortened(entries[at].id, begin), href=f"#v{at}", code=True, below=shortened(entries[at].verdict, begin)),
            Cell(clean(entries[at].op)),
            Cell("half" if entries[at].half else "FP32"),
            Cell(_words(entries[at].added), number=True),
            Cell(_words(entries[at].drift), number=True),
        ]
        for at in worst
    ]
    columns = ("value", "operator", "held in", "adds rel_l2", "rel_l2")
    return Table("Values that add most drift, the worst first", columns, rows, minor=frozenset({1, 2, 4}))


def precision_chart(entries: Sequence[Entry]) -> Strip | None:
    """Return precision along the network; None without values."""
    if not entries:
        return None
    rules = _rules(entries)
    ranks = {rule: min(rank, REASONS - 1) for rank, rule in enumerate(rules)}
    names = [clean(rule) or "FP32" for rule in rules[:REASONS]]
    if len(rules) > REASONS:
        names[-1] = "other reasons"
    kept = sum(not entry.half for entry in entries)
    label = f"Precision along the network, from input to output: {kept:,} of {len(entries):,} values are FP32, coloured by reason."
    return Strip(label, [-1 if entry.half else ranks[entry.rule] for entry in entries], names)


def span_chart(entries: Sequence[Entry], to: str) -> Spans | None:
    """Return magnitudes against half's range; None if no range was measured."""
    spans = [(entry.smallest, entry.largest) if entry.largest and entry.smallest is not None else None for entry in entries]
    if not any(spans):
        return None
    layout = LAYOUTS[to]
    beyond = sorted(
        (at for at, entry in enumerate(entries) if (entry.largest or 0) > layout.max), key=lambda at: -(entries[at].largest or 0)
    )
    marks = [
        Mark(at, entries[at].largest or 0.0, f"#v{at}", f"{_label(entries[at])} reaches {figure(entries[at].largest)}")
        for at in beyond[:MARKS]
    ]
    label = (
        f"Smallest and largest magnitude of every value from input to output, against half's range; {len(beyond):,} values pass "
        "its largest number."
    )
    return Spans(label, spans, ["half" if entry.half else "fp32" for entry in entries], layout.min_normal, layout.max, marks)


def regions(entries: Sequence[Entry]) -> Table | None:
    """Return what stays FP32, one row a rule; None if nothing does, or no rule is known."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry.half and entry.rule:
            found.setdefault(entry.rule, []).append(entry)
    begin = beginning(entries)
    rows = [
        [
            Cell(clean(rule), rule=clean(rule)),
            Cell(f"{len(kept):,}", number=True),
            Cell(shortened(_more([entry.reason for entry in kept], "other reasons"), begin)),
            Cell(shortened(_more([entry.culprit for entry in kept], "more"), begin), code=True),
        ]
        for rule, kept in ((rule, found[rule]) for rule in _rules(entries) if rule in found)
    ]
    columns = ("rule", "values", "why", "because of")
    return Table("What stays FP32, by rule", columns, rows[:REGIONS], max(0, len(rows) - REGIONS), frozenset({3})) if rows else None


def _more(texts: Sequence[str], others: str) -> str:
    """Return the most frequent of some texts, and how many others there are."""
    counts = Counter(text for text in texts if text)
    if not counts:
        return ""
    text = counts.most_common(1)[0][0]
    return text + (f", and {len(counts) - 1:,} {others}" if len(counts) > 1 else "")
