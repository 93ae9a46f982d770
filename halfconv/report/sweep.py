"""A sweep on the console and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfconv.report.text import clip, figure, share, visible

if TYPE_CHECKING:
    from halfconv.sweep.driver import SweepEntry, SweepReport

__all__ = ["as_markdown", "line", "show_sweep"]

STYLES = {"passed": "green", "drifted": "red", "failed": "red", "planned": "dim"}


def _part(entry: SweepEntry, name: str) -> Any:
    return (entry.result or {}).get(name)


def _half(entry: SweepEntry) -> str:
    found = _part(entry, "conversion")
    if found is None:
        return ""
    values = found["values"]
    return share(values["half"] / total) if (total := values["half"] + values["float"]) else "none"


def _size(entry: SweepEntry) -> str:
    found = _part(entry, "conversion")
    return "" if found is None or not found["bytes_before"] else f"{found['bytes_after'] / found['bytes_before']:.0%}"


def _precision(entry: SweepEntry) -> str:
    found = _part(entry, "conversion")
    return entry.to if found is None or found["to"] == entry.to else f"{entry.to}: {found['to']}"


def _drift(entry: SweepEntry) -> str:
    found = _part(entry, "drift")
    return "" if found is None else figure(found["rel_l2"]) + ("*" if found["sample_kind"] == "synthetic" else "")


def _times(entry: SweepEntry) -> str:
    return "\n".join(f"{figure(row['p50_ms'])}{_batch(row)}" for row in _part(entry, "speed") or ())


def _batch(row: dict[str, Any]) -> str:
    return f" (batch {row['batch']})" if (row["batch"] or 1) > 1 else ""


def _speedup(entry: SweepEntry) -> str:
    return "\n".join(f"{row['speedup']:.2f}" for row in _part(entry, "speed") or ())


#: Heading and content; those that no job has are left out.
COLUMNS: tuple[tuple[str, Callable[[SweepEntry], str]], ...] = (
    ("model", lambda entry: entry.name),
    ("target", lambda entry: entry.target),
    ("to", _precision),
    ("result", lambda entry: entry.status),
    ("half", _half),
    ("size", _size),
    ("rel_l2", _drift),
    ("ms", _times),
    ("speedup", _speedup),
)
_LEFT = frozenset({"model", "target", "to", "result"})


def _columns(report: SweepReport) -> list[tuple[str, list[str]]]:
    found = [(name, [content(entry) for entry in report.entries]) for name, content in COLUMNS]
    return [(name, cells) for name, cells in found if any(cells)]


def _why(entry: SweepEntry) -> list[str]:
    """Return what went wrong with a job."""
    if (error := _part(entry, "error")) is not None:
        return [f"{error['stage']}: {error['message']}" if error["stage"] else error["message"]]
    drift = _part(entry, "drift")
    return list(drift["failures"]) if drift is not None else []


def _label(entry: SweepEntry) -> str:
    return f"{entry.name} {entry.target} {entry.to}"


def _remarks(report: SweepReport) -> list[str]:
    """Return what the table's figures need to be understood."""
    drifts = [found for entry in report.entries if (found := _part(entry, "drift")) is not None]
    said = list(report.notes)
    if any(found["sample_kind"] == "synthetic" for found in drifts):
        said.append("* the samples are synthetic, which says little about accuracy; give samples in the fleet file")
    if providers := {row["provider"] for entry in report.entries for row in _part(entry, "speed") or ()}:
        said.append(f"ms: median of a run, on {' and '.join(sorted(providers))}; size and speedup are relative to the FP32 model")
    if not report.dry_run and any(entry.status == "failed" and entry.state == "kept" for entry in report.entries):
        said.append("failed jobs are kept, too, until their input changes; --retry-failed does them again")
    return said


def _summary(report: SweepReport) -> str:
    counts = report.counts()
    if report.dry_run:
        return f"{counts['planned']} of {len(report.entries)} jobs would run; {counts['kept']} are done"
    said = [f"{counts[key]} {key}" for key in ("passed", "drifted", "failed") if counts[key]]
    return f"{len(report.entries)} jobs: {', '.join(said)}; {counts['ran']} ran, {counts['kept']} kept from earlier runs"


def line(entry: SweepEntry, number: int, total: int) -> str:
    """Return a line of a log about a job that is done."""
    why = "; ".join(_why(entry)) or f"{sum((_part(entry, 'seconds') or {}).values()):.1f} s"
    return visible(f"[{number}/{total}] {_label(entry)}: {entry.status}: {why}")


def show_sweep(report: SweepReport, console: Console) -> None:
    """Print the table, what went wrong, and where the results are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = _columns(report)
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold", no_wrap=name != "model")
    for entry, *cells in zip(report.entries, *(cells for _, cells in columns), strict=True):
        texts = [escape("\n".join(visible(part) for part in cell.splitlines())) for cell in cells]
        style = STYLES[entry.status] + (" dim" if entry.state == "kept" else "")
        table.add_row(
            *(f"[{style}]{text}[/]" if name == "result" else text for (name, _), text in zip(columns, texts, strict=True))
        )
    console.print(table)
    for entry in report.entries:
        for words in _why(entry):
            console.print(f"[red]{escape(visible(_label(entry)))}[/]: {escape(visible(words))}")
    for note in _remarks(report):
        console.print(f"[yellow]note:[/] {escape(visible(note))}")
    console.print(f"{_summary(report)}; in {escape(visible(report.out))}")


def as_markdown(report: SweepReport) -> str:
    """Return the table in GitHub's Markdown, and what went wrong as a list."""

    def cell(text: str) -> str:
        parts = (visible(part).replace("|", "&#124;").replace("<", "&lt;") for part in text.splitlines())
        return "<br>".join(parts)

    columns = _columns(report)
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    said = [f"**{cell(_label(entry))}**: {cell(clip(words, 1000))}" for entry in report.entries for words in _why(entry)]
    lines += ["", f"{_summary(report)}.", "", *(f"- {words}" for words in (*said, *(cell(note) for note in _remarks(report))))]
    return "\n".join(lines).rstrip() + "\n"
