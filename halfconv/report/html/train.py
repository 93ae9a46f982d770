"""The page of ``train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfconv.report.html.charts import Chart, Lines
from halfconv.report.html.origin import Origin, environment, reproduction
from halfconv.report.html.view import Cell, Section, Table, Tile, Verdict, View, clean, file_name, size

__all__ = ["train_view"]

#: Epochs that are listed.
EPOCHS = 200


def train_view(report: Mapping[str, Any], origin: Origin) -> View:
    """Return what the page of a training run shows.

    Args:
        report: What `TrainReport.to_dict` gives.
        origin: Where the page comes from.
    """
    metric, export = report["metric"], report["export"]
    name = clean(metric["name"].rpartition(":")[2])
    passed = metric["passed"]
    sentence = (
        f"{name} on {report['rows']['test']:,} held-out examples is {metric['value']:.4f}; the recipe promises "
        f"{metric['threshold']:g}."
    )
    tiles = [
        Tile(name, f"{metric['value']:.4f}", f"{metric['threshold']:g} promised"),
        Tile("Precision", clean(report["precision"]), f"on {clean(report['device'])}"),
        Tile("Steps", f"{report['steps']:,}", f"{report['skipped']:,} skipped"),
        Tile("Time", f"{report['seconds']:.1f} s", f"{report['epochs']:,} epochs"),
    ]
    sections = [Section("course", "Course of the training", charts=_charts(report, name), tables=[_table(report["history"])])]
    scales = report["scales"]
    if len(scales) > 1:
        lead = "Each fall is a step whose gradients overflowed in FP16; it was skipped."
        chart = Lines(
            "Loss scale over steps.", [s for s, _ in scales], [v for _, v in scales], "step", "loss scale", steps=True, log=True
        )
        sections.append(Section("scale", "Loss scale", lead, [chart]))
    rows = [
        ("recipe", report["recipe"]),
        ("what it does", report["title"]),
        ("examples", f"{report['rows']['train']:,}, {report['rows']['test']:,} held out"),
        ("weights", f"{report['parameters']:,}"),
        ("opset", str(export["opset"])),
    ]
    if "weight_bytes" in export:
        rows.append(("bytes of weights", size(export["weight_bytes"])))
    sections += [environment(origin, rows), reproduction(origin, [("fold", str(report["fold"]))])]
    verdict = Verdict("good" if passed else "bad", "Reached" if passed else "Not reached", sentence)
    return View("train", f"{clean(report['recipe'])} → {file_name(report['output'])}", verdict, tiles, (), sections)


def _charts(report: Mapping[str, Any], name: str) -> list[Chart]:
    history = report["history"]
    epochs = [entry["epoch"] + 1 for entry in history]
    found: list[Chart] = []
    for key in _figures(history):
        if key == "seconds":
            continue
        label, limit = (name, report["metric"]["threshold"]) if key == "metric" else (clean(key), None)
        values = [entry[key] for entry in history]
        found.append(Lines(f"{label[:1].upper()}{label[1:]} over epochs.", epochs, values, "epoch", label, limit))
    return found


def _figures(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of what every epoch has a figure of."""
    keys = [key for key in (history[0] if history else ()) if key != "epoch"]
    return [key for key in keys if all(isinstance(entry.get(key), (int, float)) for entry in history)]


def _table(history: Sequence[Mapping[str, Any]]) -> Table:
    keys = _figures(history)
    rows = [
        [Cell(f"{entry['epoch'] + 1}", number=True), *(Cell(f"{entry[key]:.4g}", number=True) for key in keys)]
        for entry in history[:EPOCHS]
    ]
    return Table("Every epoch", ("epoch", *map(clean, keys)), rows, max(0, len(history) - EPOCHS))
