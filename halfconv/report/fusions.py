"""What was fused and what was not, on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfconv.report.text import visible

if TYPE_CHECKING:
    from halfconv.graph.prepare import Refusal
    from halfconv.inspection import InspectReport

__all__ = ["show_fusions"]


def show_fusions(report: InspectReport, console: Console) -> None:
    """Print what a conversion would fuse for its target, and what it would refuse to."""
    console.print(f"[bold]{_plain(str(report.model))}[/]  for {report.target}, {report.to}: {report.nodes:,} nodes")
    if report.fused:
        table = _table("Fused", {"fusion": "left", "number": "right", "for example": "left", "why": "left"})
        for fused in report.fused:
            table.add_row(fused.fusion, f"{fused.count:,}", _plain(fused.node), fused.why)
        console.print(table)
    else:
        console.print("  nothing is fused")
    if report.refused:
        table = _table("Not fused", {"fusion": "left", "number": "right", "for example": "left", "reason": "left"})
        grouped: dict[tuple[str, str], list[Refusal]] = {}
        for refusal in report.refused:
            grouped.setdefault((refusal.fusion, refusal.reason), []).append(refusal)
        for (fusion, reason), found in grouped.items():
            table.add_row(fusion, f"{len(found):,}", _plain(found[0].node), _plain(reason))
        console.print(table)
    if report.target != "cuda":
        console.print("  ONNX Runtime's own operators, which make a model faster, are for --target cuda")


def _plain(text: str) -> str:
    return escape(visible(text))


def _table(title: str, columns: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column, side in columns.items():
        table.add_column(column, justify="right" if side == "right" else "left")
    return table
