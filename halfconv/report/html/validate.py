"""The page of ``validate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfconv.report.html.drift import (
    allowed,
    evaluated,
    expired,
    metrics,
    network_sections,
    outputs,
    sampled,
    tile,
    waived,
    waivers,
    worst_output,
)
from halfconv.report.html.network import entries_of_layers
from halfconv.report.html.origin import Origin, environment, reproduction
from halfconv.report.html.view import Cell, Section, Table, Tile, Verdict, View, clean, file_name
from halfconv.report.text import figure

__all__ = ["validate_view"]


def validate_view(drift: Mapping[str, Any], origin: Origin) -> View:
    """Return what the page of a validation shows.

    Args:
        drift: What `DriftReport.to_dict` gives.
        origin: Where the page comes from.
    """
    passed, worst = drift["passed"], worst_output(drift)
    within = sum(output["passed"] for output in drift["outputs"])
    tiles = [
        *tile(drift),
        Tile("Outputs within", f"{within:,} of {len(drift['outputs']):,}"),
        Tile("Samples", f"{drift['samples']['count']:,}", drift["samples"]["kind"]),
    ]
    inside, network = network_sections(
        entries_of_layers(drift["layers"] or ()), drift, drift["to"], measured=drift["layers"] is not None
    )
    sections = [outputs(drift), *metrics(drift), *_baseline(drift), *waivers(drift), *inside]
    stages = [(f"seconds: {stage}", f"{seconds:.2f}") for stage, seconds in drift["seconds"].items()]
    sections += [environment(origin, [("format", drift["to"]), ("run", evaluated(drift))], stages), reproduction(origin)]
    notes = [*waived(drift), *drift["warnings"], *(f"not modelled: {sentence}" for sentence in drift["unmodelled"])]
    verdict = Verdict("good" if passed else "bad", "Passed" if passed else "Failed", _sentence(drift, worst))
    title = f"{file_name(drift['candidate'])} against {file_name(drift['reference'])}"
    return View("validate", title, verdict, tiles, [clean(note) for note in notes], sections, network)


def _sentence(drift: Mapping[str, Any], worst: Mapping[str, Any] | None) -> str:
    """Say the verdict with its numbers."""
    on = f"on {sampled(drift)}, {evaluated(drift)}"
    broken = [
        f"{clean(o['name'])}: {clean((o['failures'] or [o['shape_change']])[0])}" for o in drift["outputs"] if not o["passed"]
    ]
    broken += [f"{clean(name)} drops by {metric['drop']:.4g}" for name, metric in drift["metrics"].items() if not metric["passed"]]
    broken += [clean(sentence) for sentence in drift["baseline"]]
    if not broken and (over := expired(drift)):
        return f"The candidate is within its bounds {on}, and {over[0]}."
    if broken:
        more = f", and {len(broken) - 1:,} more" if len(broken) > 1 else ""
        return f"The candidate drifts too far {on}: {broken[0]}{more}."
    if worst is None:
        return f"The candidate is within its tolerance {on}."
    return f"The candidate stays within rel_l2 {figure(worst['rel_l2'])} of the reference{allowed(drift, worst)} ({on})."


def _baseline(drift: Mapping[str, Any]) -> list[Section]:
    rows = [[Cell(clean(sentence), state="bad")] for sentence in drift["baseline"]]
    table = Table("What grew against the baseline", ("found",), rows)
    return [Section("baseline", "Against the baseline", tables=[table])] if rows else []
