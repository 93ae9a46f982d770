"""The page of ``convert``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfconv.report.html.drift import (
    allowed,
    evaluated,
    metrics,
    network_sections,
    outputs,
    sampled,
    tile,
    waived,
    waivers,
    worst_output,
)
from halfconv.report.html.network import Entry, beginning, entries_of_plan, shortened
from halfconv.report.html.origin import Origin, environment, reproduction
from halfconv.report.html.view import Cell, Section, Table, Tile, Verdict, View, clean, file_name, percent, size
from halfconv.report.text import figure

__all__ = ["convert_view", "failed_view"]

#: Constants that are listed.
CONSTANTS = 100


def convert_view(
    result: Mapping[str, Any], plan: Mapping[str, Any], layers: Sequence[Mapping[str, Any]] | None, source: Path, origin: Origin
) -> View:
    """Return what the page of a conversion shows.

    Args:
        result: What `ConvertResult.to_dict` gives.
        plan: What `PrecisionPlan.to_dict` gives.
        layers: Drift of the values inside, as `LayerDrift.to_dict` gives it; None if it was not looked for.
        source: The model that was converted.
        origin: Where the page comes from.
    """
    drift, values = result["drift"], result["values"]
    total = values["half"] + values["float"]
    tiles = [
        Tile("Size", size(result["bytes_after"]), f"from {size(result['bytes_before'])}"),
        Tile("In half", percent(values["half"], total), f"{values['half']:,} of {total:,} values"),
        Tile("Casts", f"{result['casts']:,}", f"in {result['nodes']:,} nodes"),
    ]
    tiles += [Tile("Drift", "-", "not simulated")] if drift is None else tile(drift)
    sections = [] if drift is None else [outputs(drift), *metrics(drift), *waivers(drift)]
    entries = entries_of_plan(plan, layers or ())
    inside, network = network_sections(entries, drift, result["to"], measured=layers is not None)
    sections += inside
    sections += _constants(result["constants"])
    sections += _repair(result["repair"], entries)
    stages = [(f"seconds: {stage}", f"{seconds:.2f}") for stage, seconds in result["seconds"].items()]
    more = [("format", result["to"]), ("target", result["target"]), ("opset", str(result["opset"]))]
    if (check := result["check"]) is not None and check["loaded"]:
        more.append(("loads in", f"ONNX Runtime {check['ort_version']}, {check['provider']}, {check['level']}"))
    sections += [environment(origin, more, stages), reproduction(origin, _identity(plan, result["plan_fingerprint"]))]
    notes = list(dict.fromkeys([*(waived(drift) if drift else ()), *result["warnings"], *(drift["warnings"] if drift else ())]))
    return View(
        "convert",
        f"{file_name(source)} → {file_name(result['output'])}",
        _verdict(result, drift),
        tiles,
        [clean(note) for note in notes],
        sections,
        network,
    )


def failed_view(
    failure: str,
    drift: Mapping[str, Any],
    plan: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]] | None,
    source: Path,
    kept: Path | None,
    origin: Origin,
) -> View:
    """Return what the page of a conversion shows that does not meet its tolerance; see `convert_view`.

    Args:
        failure: Why, in a sentence.
        drift: What `DriftReport.to_dict` gives of the best candidate.
        plan: Its plan.
        layers: Drift of its values.
        source: The model.
        kept: Where the candidate was written for study; None if it was not.
        origin: Where the page comes from.
    """
    half, total = sum(value["dtype"] != "float" for value in plan["values"]), len(plan["values"])
    tiles = [Tile("In half", percent(half, total), f"{half:,} of {total:,} values, in the best plan")]
    tiles += tile(drift)
    inside, network = network_sections(entries_of_plan(plan, layers or ()), drift, plan["to"], measured=layers is not None)
    sections = [
        outputs(drift),
        *metrics(drift),
        *waivers(drift),
        *inside,
        environment(origin, [("format", plan["to"]), ("target", plan["target"])]),
        reproduction(origin, _identity(plan, None)),
    ]
    left = "No model was left" if kept is None else f"{file_name(kept)} is for study only"
    sentence = f"{left}: {clean(failure)}."
    return View(
        "convert",
        file_name(source),
        Verdict("bad", "Failed", sentence),
        tiles,
        [clean(note) for note in (*waived(drift), *drift["warnings"])],
        sections,
        network,
    )


def _verdict(result: Mapping[str, Any], drift: Mapping[str, Any] | None) -> Verdict:
    name = file_name(result["output"])
    if drift is None:
        return Verdict("plain", "Converted", f"{name} was written; whether it answers as the FP32 model does was not simulated.")
    worst = worst_output(drift)
    on = f"on {sampled(drift)}, {evaluated(drift)}"
    if worst is None:
        words = f"{name} is within its tolerance {on}."
    else:
        words = f"{name} stays within rel_l2 {figure(worst['rel_l2'])} of the FP32 model{allowed(drift, worst)} ({on})."
    return Verdict("good" if drift["passed"] else "bad", "Passed" if drift["passed"] else "Failed", words)


def _identity(plan: Mapping[str, Any], fingerprint: str | None) -> list[tuple[str, str]]:
    found = [("source SHA-256", plan["source_sha256"])]
    return [*found, ("plan fingerprint", fingerprint)] if fingerprint else found


def _constants(constants: Sequence[Mapping[str, Any]]) -> list[Section]:
    rows = [
        [
            Cell(clean(entry["name"]), code=True),
            Cell(f"{entry['size']:,}", number=True),
            Cell(figure(entry["absmax"]), number=True),
            Cell(f"{entry['saturated']:,}", number=True, state="bad" if entry["saturated"] else ""),
            Cell(f"{entry['flushed']:,}", number=True),
        ]
        for entry in constants[:CONSTANTS]
    ]
    columns = ("weight", "elements", "largest", "beyond half's range", "rounded to zero")
    lead = "Weights of which half precision keeps less than a rounding."
    table = Table("Weights that half changes by more than rounding", columns, rows, max(0, len(constants) - CONSTANTS))
    return [Section("constants", "Weights that change", lead, tables=[table])] if rows else []


def _repair(repair: Mapping[str, Any] | None, entries: Sequence[Entry]) -> list[Section]:
    if repair is None:
        return []
    minimal = "none of them can go back to half" if repair["minimal"] else "some of them might go back to half"
    ended = f"; the search was ended early by its limit of {repair['stopped']}" if repair["stopped"] else ""
    lead = (
        f"{len(repair['forced']):,} values were forced to FP32 to meet the tolerance, in {repair['runs']:,} runs; {minimal}{ended}."
    )
    places, begin = {entry.id: at for at, entry in enumerate(entries)}, beginning(entries)
    rows = [
        [Cell(shortened(value, begin), code=True, href=f"#v{places[value]}" if value in places else "")]
        for value in repair["forced"][:CONSTANTS]
    ]
    table = Table(
        "Values that repair forced to FP32",
        ("value, the one that contributes most first",),
        rows,
        max(0, len(repair["forced"]) - CONSTANTS),
    )
    return [Section("repair", "Repair", lead, tables=[table] if rows else ())]
