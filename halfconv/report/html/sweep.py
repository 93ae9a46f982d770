"""The page of ``sweep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfconv.report.html.charts import Bars, Chart
from halfconv.report.html.origin import Origin, environment, reproduction
from halfconv.report.html.view import Cell, Section, Table, Tile, Verdict, View, clean, file_name, percent, size
from halfconv.report.text import figure

__all__ = ["sweep_view"]

#: Jobs that are listed, and bars that a chart has.
JOBS, BARS = 1000, 24
#: Status -> the colour of its word.
STATES = {"passed": "good", "drifted": "bad", "failed": "bad"}


def sweep_view(report: Mapping[str, Any], origin: Origin) -> View:
    """Return what the page of a sweep shows.

    Args:
        report: What `halfconv.sweep.driver.SweepReport.to_dict` gives.
        origin: Where the page comes from.
    """
    counts, jobs = report["counts"], report["jobs"]
    done = [job for job in jobs if job["result"] is not None]
    tiles = [
        Tile("Passed", f"{counts['passed']:,}", f"of {len(jobs):,} jobs"),
        Tile("Drifted", f"{counts['drifted']:,}", "beyond their tolerance"),
        Tile("Failed", f"{counts['failed']:,}", "gave no model"),
        Tile("Done now", f"{counts['ran']:,}", f"{counts['kept']:,} kept from before"),
    ]
    bad = [job for job in done if job["result"]["status"] != "passed"]
    sections = []
    if bad:
        sections.append(Section("problems", "What went wrong", tables=[_problems(bad)]))
    sections.append(Section("jobs", "Every job", charts=_charts(done), tables=[_table(jobs)]))
    seconds = sum(sum(job["result"]["seconds"].values()) for job in done)
    facts = [("fleet", file_name(report["fleet"])), ("seconds of all jobs", f"{seconds:,.1f}")]
    sections += [environment(origin, facts), reproduction(origin)]
    verdict = Verdict("good" if report["passed"] else "bad", "Passed" if report["passed"] else "Failed", _sentence(report))
    if report["dry_run"]:
        verdict = Verdict("plain", "Planned", f"{counts['planned']:,} of {len(jobs):,} jobs would be done.")
    return View("sweep", file_name(report["fleet"]), verdict, tiles, [clean(note) for note in report["notes"]], sections)


def _sentence(report: Mapping[str, Any]) -> str:
    counts, total = report["counts"], len(report["jobs"])
    models = len({job["name"] for job in report["jobs"]})
    if report["passed"]:
        return f"All {total:,} jobs of {models:,} models are within their tolerances."
    return (
        f"{counts['passed']:,} of {total:,} jobs of {models:,} models are within their tolerances; {counts['drifted']:,} drifted "
        f"and {counts['failed']:,} failed."
    )


def _what(job: Mapping[str, Any]) -> list[Cell]:
    return [Cell(clean(job["name"]), code=True), Cell(clean(job["target"])), Cell(clean(job["to"]))]


def _problems(jobs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for job in jobs[:JOBS]:
        result = job["result"]
        error, drift = result["error"], result["drift"]
        said = f"{error['stage']}: {error['message']}" if error else "; ".join((drift or {}).get("failures", ()))
        rows.append([*_what(job), Cell(clean(result["status"]), state="bad"), Cell(clean(said))])
    columns = ("model", "target", "to", "status", "found")
    return Table("Jobs that drifted or failed", columns, rows, max(0, len(jobs) - JOBS), frozenset({1, 2}))


def _table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for job in jobs[:JOBS]:
        result = job["result"] or {}
        made, drift, speed = result.get("conversion"), result.get("drift"), result.get("speed") or []
        values = made["values"] if made else {}
        status = result.get("status", job["state"])
        rows.append(
            [
                *_what(job),
                Cell(clean(status), state=STATES.get(status, "")),
                Cell(figure(drift["rel_l2"]) if drift else "-", number=True),
                Cell(percent(values["half"], values["half"] + values["float"]) if made else "-", number=True),
                Cell(f"{made['casts']:,}" if made else "-", number=True),
                Cell(size(made["bytes_after"]) if made else "-", number=True),
                Cell(f"{speed[0]['speedup']:.2f}" if speed else "-", number=True),
            ]
        )
    columns = ("model", "target", "to", "status", "rel_l2", "in half", "Casts", "size", "times as fast")
    return Table("Every job", columns, rows, max(0, len(jobs) - JOBS), frozenset({1, 2, 5, 6, 7}))


def _charts(jobs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw how fast each converted model is against its FP32 model, where that was measured."""
    known = [job for job in jobs if job["result"]["speed"]][:BARS]
    if not known:
        return []
    names = [f"{clean(job['name'])}, {clean(job['target'])}, {clean(job['to'])}" for job in known]
    speeds = [job["result"]["speed"][0]["speedup"] for job in known]
    label = "How many times as fast as its FP32 model each converted model is."
    return [Bars(label, names, speeds, [f"{speed:.2f}" for speed in speeds], "times as fast as FP32", frozenset())]
