"""The parts of a page that say how far a candidate is from its reference."""

from __future__ import annotations

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
from halfconv.report.html.view import Cell, Section, Table, clean
from halfconv.report.text import figure, metric_figure, share

__all__ = ["evaluated", "limit_of", "metrics", "network_sections", "outputs", "sampled", "worst_output"]

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
    """Return the bound of a measure that holds for an output; None for none."""
    tolerance = drift["tolerance"]
    found: float | None = tolerance.get(f"{measure}@{output}", tolerance.get(measure))
    return found


def worst_output(drift: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the output with the largest rel_l2, those that fail before others; None if no output has one."""
    known = [output for output in drift["outputs"] if output["rel_l2"] is not None]
    return max(known, key=lambda output: (not output["passed"], output["rel_l2"]), default=None)


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
        cells.append(Cell("within" if output["passed"] else "beyond", state="good" if output["passed"] else "bad"))
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
    bounds = ", ".join(_bound(key, limit) for key, limit in drift["tolerance"].items())
    lead = f"Each output beside the FP32 model's, {evaluated(drift)}, on {sampled(drift)}."
    return Section("outputs", "Drift per output", f"{lead} Tolerance: {bounds}." if bounds else lead, tables=tables)


def _bound(key: str, limit: float) -> str:
    measure = key.partition("@")[0]
    named = clean(key) if measure in MEASURES else f"drop of {clean(key)}"
    return f"{named} {'≥' if measure in HIGHER_IS_BETTER else '≤'} {limit:g}"


def metrics(drift: Mapping[str, Any]) -> list[Section]:
    """Return the user's metrics; empty without any."""
    rows = []
    for name, found in drift["metrics"].items():
        figures = [metric_figure(name, found[key]) for key in ("reference", "candidate", "drop", "limit")]
        verdict = (
            Cell("reported")
            if found["limit"] is None
            else Cell("within" if found["passed"] else "beyond", state="good" if found["passed"] else "bad")
        )
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
