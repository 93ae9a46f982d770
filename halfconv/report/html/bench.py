"""The page of ``bench``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halfconv.report.html.charts import Bars
from halfconv.report.html.origin import Origin, environment, reproduction
from halfconv.report.html.view import Cell, Section, Table, Tile, Verdict, View, clean, file_name
from halfconv.report.text import figure

__all__ = ["bench_view"]

Row = Mapping[str, Any]
#: Heading and content of a figure; those that no row has are left out.
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("p50 ms", lambda row: f"{row['p50_ms']:.3f}"),
    ("p90 ms", lambda row: f"{row['p90_ms']:.3f}"),
    ("p99 ms", lambda row: f"{row['p99_ms']:.3f}"),
    ("without copies", lambda row: "" if row["compute_p50_ms"] is None else f"{row['compute_p50_ms']:.3f}"),
    ("rows/s", lambda row: f"{row['throughput']:,.0f}"),
    ("runs", lambda row: f"{row['runs']:,}"),
    ("GPU MB", lambda row: "" if row["device_mb"] is None else f"{row['device_mb']:,.0f}"),
    ("host MB", lambda row: f"{row['host_mb']:,.0f}"),
    ("mJ/run", lambda row: "" if row["energy_mj"] is None else f"{row['energy_mj']:,.0f}"),
    ("load s", lambda row: f"{row['load_s']:.2f}"),
    ("drift", lambda row: "" if row["rel_l2"] is None else figure(row["rel_l2"])),
)
#: Comparisons that the verdict names.
SAID = 2
#: What the page's own facts say already.
KNOWN = frozenset({"system", "python", "cores", "onnxruntime", "time"})
#: Beyond so many bars a chart says less than the table.
BARS = 24


def bench_view(report: Mapping[str, Any], origin: Origin) -> View:
    """Return what the page of a benchmark shows.

    Args:
        report: What `BenchReport.to_dict` gives.
        origin: Where the page comes from.
    """
    rows, machine = report["rows"], report["machine"]
    first = rows[0]
    others = [row for row in rows if row["model"] != first["model"] and row["batch"] == first["batch"]]
    said = [clean(verdict.partition(": ")[0]) for verdict in report["verdicts"]]
    more = f", and {len(said) - SAID:,} more comparisons below" if len(said) > SAID else ""
    sentence = "; ".join(said[:SAID]) + more or f"{file_name(first['model'])} takes {first['p50_ms']:.3f} ms a run (median)"
    fastest = min(rows, key=lambda row: row["p50_ms"] / (row["batch"] or 1))
    tiles = [Tile("Reference", f"{first['p50_ms']:.3g} ms", f"{file_name(first['model'])}{_batch(first)}, median")]
    if others:
        best = min(others, key=lambda row: row["p50_ms"])
        tiles.append(Tile("Fastest other", f"{best['p50_ms']:.3g} ms", f"{file_name(best['model'])}{_batch(best)}, median"))
        tiles.append(Tile("Speed", f"{first['p50_ms'] / best['p50_ms']:.2f} times", "as fast as the reference"))
    tiles.append(Tile("Throughput", f"{fastest['throughput']:,.0f}/s", f"{file_name(fastest['model'])}{_batch(fastest)}"))
    sections = [
        Section(
            "times",
            "Time and memory",
            "Grey is the reference, the first model. A whisker reaches to the 99th percentile.",
            _charts(rows),
            [*_verdicts(report["verdicts"]), _table(rows)],
        ),
        Section("placement", "Where the nodes run", tables=[_placement(rows)]),
    ]
    facts = [(name, str(value)) for name, value in machine.items() if value is not None and name not in KNOWN]
    sections += [environment(origin, facts), reproduction(origin)]
    return View(
        "bench",
        " · ".join(dict.fromkeys(file_name(row["model"]) for row in rows)),
        Verdict("plain", "Measured", sentence + "."),
        tiles,
        [clean(note) for note in report["notes"]],
        sections,
    )


def _batch(row: Row) -> str:
    return "" if row["batch"] is None else f", batch {row['batch']}"


def _names(rows: Sequence[Row]) -> list[str]:
    return [f"{file_name(row['model'])}{_batch(row)}" for row in rows]


def _charts(rows: Sequence[Row]) -> list[Bars]:
    rows = rows[:BARS]
    reference = frozenset(place for place, row in enumerate(rows) if row["model"] == rows[0]["model"])
    found = [
        Bars(
            "Median time of a run, in milliseconds, against the reference.",
            _names(rows),
            [row["p50_ms"] for row in rows],
            [f"{row['p50_ms']:.3g}" for row in rows],
            "milliseconds a run",
            reference,
            [row["p99_ms"] for row in rows],
        )
    ]
    for key, label in (("device_mb", "GPU memory"), ("host_mb", "peak memory of the process")):
        if any(row[key] for row in rows):
            heights = [row[key] for row in rows]
            texts = ["-" if height is None else f"{height:,.0f}" for height in heights]
            found.append(
                Bars(
                    f"{label[0].upper()}{label[1:]}, in MB, against the reference.",
                    _names(rows),
                    heights,
                    texts,
                    f"{label}, MB",
                    reference,
                )
            )
    return found


def _table(rows: Sequence[Row]) -> Table:
    known = [(name, [content(row) for row in rows]) for name, content in COLUMNS]
    known = [(name, cells) for name, cells in known if any(cells)]
    cells = [
        [Cell(name, code=True), *(Cell(column[place], number=True) for _, column in known)]
        for place, name in enumerate(_names(rows))
    ]
    return Table("All figures", ("model", *(name for name, _ in known)), cells)


def _verdicts(verdicts: Sequence[str]) -> list[Table]:
    rows = [[Cell(clean(found)), Cell(clean(why))] for found, _, why in (verdict.partition(": ") for verdict in verdicts)]
    return [Table("Each model against the first", ("against the reference", "why"), rows)] if rows else []


def _placement(rows: Sequence[Row]) -> Table:
    keys = (
        ("nodes", "nodes"),
        ("on the provider", "on_provider"),
        ("on the CPU", "on_cpu"),
        ("copies", "memcpy"),
        ("Casts", "casts"),
    )
    cells = [
        [
            Cell(name, code=True),
            Cell(clean(row["provider"])),
            Cell(clean(row["profile"])),
            *(Cell("-" if row["placement"][key] is None else f"{row['placement'][key]:,}", number=True) for _, key in keys),
        ]
        for name, row in zip(_names(rows), rows, strict=True)
    ]
    return Table("Where nodes run", ("model", "provider", "profile", *(name for name, _ in keys)), cells)
