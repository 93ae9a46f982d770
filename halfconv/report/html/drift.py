"""The parts of a page that say how far a candidate is from its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from halfconv.drift.gate import HIGHER_IS_BETTER, MEASURES
from halfconv.report.html.network import (
    Entry,
    beginning,
    drift_chart,
    map_data,
    precision_chart,
    regions,
    shortened,
    span_chart,
    worst_table,
)
from halfconv.report.html.view import Cell, Section, Table, Tile, clean
from halfconv.report.text import figure, metric_figure, share

__all__ = [
    "allowed",
    "evaluated",
    "expired",
    "limit_of",
    "metrics",
    "network_sections",
    "outputs",
    "sampled",
    "tile",
    "waived",
    "waivers",
    "worst_output",
]

EVALUATED = {"simulate": "with a GPU's rounding simulated on the CPU", "cpu": "on ONNX Runtime's CPU provider", "cuda": "on CUDA"}
#: Heading -> measure, and how it is shown; a measure that no output has is left out.
COLUMNS = (
    ("rel_l2", "rel_l2", figure),
    ("largest error", "max_abs", figure),
    ("cosine", "cosine", lambda value: figure(value) if value is None else f"{value:.6f}"),
    ("ulps, p99", "ulp_p99", figure),
    ("same argmax", "argmax_agreement", share),
    ("equal", "agreement", share),
    ("new NaN", "new_nan", figure),
    ("new Inf", "new_inf", figure),
    ("zeroed", "zeroed", share),
)
#: Measures that a telephone shows, too.
MAIN = frozenset({"rel_l2", "agreement"})
#: Outputs and metrics that are listed.
ROWS = 200


def evaluated(drift: Mapping[str, Any]) -> str:
    """Say how a candidate was run."""
    return EVALUATED.get(drift["on"], f"on {clean(drift['on'])}")


def sampled(drift: Mapping[str, Any]) -> str:
    """Say on how many samples of which kind."""
    samples = drift["samples"]
    noun = "sample" if samples["count"] == 1 else "samples"
    made_up = "" if samples["kind"] == "given" else "synthetic "
    return f"{samples['count']:,} {made_up}{noun}"


def limit_of(drift: Mapping[str, Any], measure: str, output: str) -> float | None:
    """Return the bound of a measure that holds for an output; None for none, which an infinite one is, too."""
    tolerance = drift["tolerance"]
    found: float = tolerance.get(f"{measure}@{output}", tolerance.get(measure, math.inf))
    return found if math.isfinite(found) else None


def worst_output(drift: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the output with the largest rel_l2, those that fail before others; None if no output has one."""
    known = [output for output in drift["outputs"] if output["rel_l2"] is not None]
    return max(known, key=lambda output: (not output["passed"], output["rel_l2"]), default=None)


def tile(drift: Mapping[str, Any]) -> list[Tile]:
    """Return the largest rel_l2 beside its bound; empty if no output has one."""
    if (worst := worst_output(drift)) is None:
        return []
    limit = limit_of(drift, "rel_l2", worst["name"])
    word = "waived" if _is_waived(worst) else "allowed"
    return [Tile("Drift", figure(worst["rel_l2"]), "rel_l2" + ("" if limit is None else f", {limit:g} {word}"))]


def allowed(drift: Mapping[str, Any], worst: Mapping[str, Any]) -> str:
    """Say behind the rel_l2 of the worst output which bound it has, or that it is waived."""
    limit = limit_of(drift, "rel_l2", worst["name"])
    if limit is None:
        return ""
    return f"; the bound of {limit:g} is waived for now" if _is_waived(worst) else f"; {limit:g} is allowed"


def _is_waived(output: Mapping[str, Any]) -> bool:
    return any(sentence.startswith("rel_l2 ") for sentence in output["waived"])


def waived(drift: Mapping[str, Any]) -> list[str]:
    """Return a sentence that says what is broken and waived for now; empty if nothing is."""
    found = [f"{output['name']}: {sentence}" for output in drift["outputs"] for sentence in output["waived"]]
    found += [f"{name} drops by {entry['drop']:.4g}" for name, entry in drift["metrics"].items() if entry["waived"]]
    more = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
    return [f"waived for now: {found[0]}{more}"] if found else []


def expired(drift: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every waiver whose last day is over."""
    return [
        f"the waiver for {clean(entry['subject'])} expired on {entry['expires']}" for entry in drift["waivers"] if entry["expired"]
    ]


def waivers(drift: Mapping[str, Any]) -> list[Section]:
    """Return the waivers of the tolerance file; empty without any."""
    rows = []
    for entry in drift["waivers"]:
        now = "expired" if entry["expired"] else "in force" if entry["used"] else "waives nothing"
        rows.append(
            [
                Cell(clean(entry["subject"]), code=True),
                Cell(figure(entry["up_to"]), number=True),
                Cell(entry["expires"]),
                Cell(clean(entry["reason"])),
                Cell(now, state="bad" if entry["expired"] else ""),
            ]
        )
    columns = ("bound", "meanwhile", "last day", "why", "now")
    table = Table("Waivers of the tolerance file", columns, rows[:ROWS], max(0, len(rows) - ROWS), frozenset({1}))
    lead = "Bounds that may be broken until a day. One whose last day is over fails."
    return [Section("waivers", "Waivers", lead, tables=[table])] if rows else []


def outputs(drift: Mapping[str, Any]) -> Section:
    """Return drift per output against the tolerance."""
    shown = sorted(drift["outputs"], key=lambda output: output["passed"])[:ROWS]
    known = [column for column in COLUMNS if any(output[column[1]] is not None for output in shown)]
    rows = []
    for output in shown:
        cells = [Cell(clean(output["name"]), code=True)]
        for _, measure, words in known:
            broken = any(failure.startswith(f"{measure} ") for failure in output["failures"])
            cells.append(Cell(words(output[measure]), number=True, state="bad" if broken else ""))
        cells.append(_verdict(output["passed"], output["waived"]))
        rows.append(cells)
    columns = ("output", *(name for name, _, _ in known), "tolerance")
    minor = frozenset(place for place, (_, measure, _) in enumerate(known, 1) if measure not in MAIN)
    tables = [Table("Drift of every output", columns, rows, len(drift["outputs"]) - len(shown), minor)]
    failures = [
        [Cell(clean(output["name"]), code=True), Cell(clean(sentence), state="bad")]
        for output in shown
        for sentence in dict.fromkeys([*([output["shape_change"]] if output["shape_change"] else []), *output["failures"]])
    ]
    if failures:
        tables.append(Table("What is beyond the tolerance", ("output", "found"), failures[:ROWS], max(0, len(failures) - ROWS)))
    held = [[Cell(clean(output["name"]), code=True), Cell(clean(text))] for output in shown for text in output["waived"]]
    if held:
        tables.append(Table("What is waived for now", ("output", "waived"), held[:ROWS], max(0, len(held) - ROWS)))
    bounds = ", ".join(_bound(key, limit) for key, limit in drift["tolerance"].items())
    lead = f"Each output beside the FP32 model's, {evaluated(drift)}, on {sampled(drift)}."
    return Section("outputs", "Drift per output", f"{lead} Tolerance: {bounds}." if bounds else lead, tables=tables)


def _verdict(passed: bool, waived: object) -> Cell:
    if not passed:
        return Cell("beyond", state="bad")
    return Cell("waived") if waived else Cell("within", state="good")


def _bound(key: str, limit: float) -> str:
    measure = key.partition("@")[0]
    named = clean(key) if measure in MEASURES else f"drop of {clean(key)}"
    return f"{named} {'≥' if measure in HIGHER_IS_BETTER else '≤'} {limit:g}"


def metrics(drift: Mapping[str, Any]) -> list[Section]:
    """Return the user's metrics; empty without any."""
    rows = []
    for name, found in drift["metrics"].items():
        figures = [metric_figure(name, found[key]) for key in ("reference", "candidate", "drop", "limit")]
        verdict = Cell("reported") if found["limit"] is None else _verdict(found["passed"], found["waived"])
        rows.append([Cell(clean(name)), *(Cell(text, number=True) for text in figures), verdict])
    columns = ("metric", "FP32", "half", "drop", "allowed", "tolerance")
    table = Table("Metrics of both models", columns, rows[:ROWS], max(0, len(rows) - ROWS), frozenset({4}))
    return [Section("metrics", "Metrics", tables=[table])] if rows else []


def network_sections(
    entries: Sequence[Entry], drift: Mapping[str, Any] | None, to: str, *, measured: bool
) -> tuple[list[Section], dict[str, Any] | None]:
    """Return the parts about the values inside, and the data of the map.

    Args:
        entries: The values.
        drift: The drift report; None if there is none.
        to: The half format.
        measured: Whether drift of the values inside was looked for.
    """
    if not entries:
        return [], None
    found = []
    worst = None if drift is None else worst_output(drift)
    limit = None if drift is None or worst is None else limit_of(drift, "rel_l2", worst["name"])
    along, table = drift_chart(entries, limit), worst_table(entries)
    if along is not None:
        lead = (
            "How far each value inside is from the FP32 model's, and where the error arises. A dot leads to its value on the map."
        )
        begin = beginning(entries)
        first = f" First to go wrong: {shortened(drift['first_bad'], begin)}." if drift and drift["first_bad"] else ""
        first += f" Names begin with {clean(begin)}, written …/ here." if begin and table else ""
        found.append(Section("network", "Drift along the network", lead + first, [along], [table] if table else ()))
    elif measured:
        found.append(Section("network", "Drift along the network", "No value inside drifts, or none could be compared."))
    strip, kept = precision_chart(entries), regions(entries)
    stays = sum(not entry.half for entry in entries)
    lead = f"{stays:,} of {len(entries):,} values stay FP32." + (
        "" if kept or not stays else " Why is not in the file: the page of convert knows the reasons."
    )
    title = "What stays FP32, where, and why"
    found.append(Section("precision", title, lead, [strip] if strip else (), [kept] if kept else (), map=True))
    spans = span_chart(entries, to)
    if spans is not None:
        lead = (
            "Each line reaches from the smallest to the largest magnitude of a value. Above the band half is infinite; below it "
            "half loses digits, and then all of them."
        )
        found.append(Section("ranges", "Value ranges", lead, [spans]))
    return found, map_data(entries)
