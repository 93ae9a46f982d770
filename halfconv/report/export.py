"""An export on the console, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.text import Text

from halfconv.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.export.exporting import ExportResult

__all__ = ["show_export"]


def show_export(result: ExportResult, console: Console) -> None:
    """Print what was exported, how, and how far it is from PyTorch.

    Args:
        result: What `halfconv.export.exporting.export` returned.
        console: Where to print.
    """
    place = " beside it" if result.external else ""
    *failed, last = result.attempts
    words = f"  opset {result.opset}, {result.nodes} nodes, {decimal(result.weight_bytes)} of weights{place}, by {last.exporter}"
    console.print(Text.assemble((visible(str(result.output)), "bold"), words), overflow="fold")
    for attempt in failed:
        console.print(Text(f"  {attempt.exporter} failed: {visible(attempt.problem)}"), overflow="fold")
    for kind, slots in (("input ", result.inputs), ("output", result.outputs)):
        for name, dtype, shape in slots:
            dims = ", ".join("?" if dim is None else str(dim) for dim in shape) if shape is not None else "…"
            console.print(Text(f"  {kind} {visible(name)}: {dtype}[{visible(dims)}]"), overflow="fold")
    if result.compared is None:
        console.print(Text("  not compared with PyTorch"))
    else:
        runs = " and ".join(", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example" for sizes in result.sizes)
        for drift in result.compared:
            found = drift.measures
            distance = f"rel_l2 {found.rel_l2:.2e}" if found.rel_l2 is not None else f"agreement {found.agreement or 0:.2%}"
            console.print(Text(f"  as PyTorch: {visible(drift.name)} {distance} ({runs})"), overflow="fold")
    for note in result.notes:
        console.print(Text(f"note: {visible(note)}"), overflow="fold")
