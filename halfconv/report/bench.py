"""A benchmark on the console and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfconv.report.text import visible

if TYPE_CHECKING:
    from halfconv.benchmark import BenchReport, BenchRow
    from halfconv.profile_search import ProfileSearch

__all__ = ["as_markdown", "show_bench", "show_search"]


def _memory(row: BenchRow) -> str:
    device = "" if row.device_mb is None else f"{row.device_mb:,.0f} + "
    return f"{device}{row.host_mb:,.0f}"


def _placed(row: BenchRow) -> str:
    held = row.placement
    said = f"{held['nodes']:,} nodes"
    if row.provider != "cpu" and held["on_cpu"]:
        said += f", {held['on_cpu']:,} on the CPU"
    if held["memcpy"]:
        said += f", {held['memcpy']:,} copies"
    if held["casts"]:
        said += f", {held['casts']:,} Casts"
    return said + (", CUDA graph" if held["graph"] else "")


#: Heading and content; those that no row has are left out.
COLUMNS: tuple[tuple[str, Callable[[BenchRow], str]], ...] = (
    ("model", lambda row: Path(row.model).name),
    ("batch", lambda row: "" if row.batch is None else str(row.batch)),
    ("p50 ms", lambda row: f"{row.p50_ms:.3f}"),
    ("p90 ms", lambda row: f"{row.p90_ms:.3f}"),
    ("p99 ms", lambda row: f"{row.p99_ms:.3f}"),
    ("without copies", lambda row: "" if row.compute_p50_ms is None else f"{row.compute_p50_ms:.3f}"),
    ("rows/s", lambda row: f"{row.throughput:,.0f}"),
    ("MB", _memory),
    ("mJ/run", lambda row: "" if row.energy_mj is None else f"{row.energy_mj:,.0f}"),
    ("load s", lambda row: f"{row.load_s:.2f}"),
    ("drift", lambda row: "" if row.rel_l2 is None else f"{row.rel_l2:.2g}"),
    ("provider", lambda row: row.provider),
    ("placement", _placed),
)


def _columns(report: BenchReport) -> list[tuple[str, list[str]]]:
    found = [(name, [content(row) for row in report.rows]) for name, content in COLUMNS]
    return [(name, cells) for name, cells in found if any(cells)]


def show_bench(report: BenchReport, console: Console) -> None:
    """Print the figures, and what they mean."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = _columns(report)
    for name, _ in columns:
        table.add_column(name, justify="left" if name in ("model", "provider", "placement") else "right", overflow="fold")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(escape(visible(cell)) for cell in cells))
    console.print(table)
    console.print(f"on {escape(visible(_where(report)))}")
    for verdict in report.verdicts:
        console.print(escape(visible(verdict)))
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(visible(note))}")


def show_search(search: ProfileSearch, console: Console) -> None:
    """Print the options that were tried, and what became of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tried")
    for batch in search.batches:
        table.add_column("p50 ms" if batch is None else f"batch {batch} ms", justify="right")
    table.add_column("result", overflow="fold")
    for trial in search.trials:
        times = [f"{ms:.3f}" for ms in trial.p50_ms] or [""] * len(search.batches)
        table.add_row(trial.what, *times, "kept" if trial.kept else escape(visible(trial.why_not)))
    console.print(table)
    console.print(f"profile: {escape(visible(search.profile))}")


def as_markdown(report: BenchReport) -> str:
    """Return the figures as a table of GitHub's Markdown, and the verdicts as a list."""
    columns = _columns(report)

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(visible(cell).replace("|", "&#124;").replace("<", "&lt;") for cell in cells) + " |"

    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    lines = [line([name for name, _ in columns]), "|" + "---|" * len(columns), *(line(row) for row in rows), ""]
    said = [visible(words).replace("<", "&lt;") for words in (*report.verdicts, *report.notes)]
    lines += [f"On {_where(report)}.", "", *(f"- {words}" for words in said)]
    return "\n".join(lines).rstrip() + "\n"


def _where(report: BenchReport) -> str:
    facts = report.machine
    card = f"{facts['card']}, " if facts["card"] else ""
    return f"{card}{facts['cores']} cores, onnxruntime {facts['onnxruntime']}, {facts['time'][:10]}"
