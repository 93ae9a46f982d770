"""A number in several formats, and operations on it step by step, on the console, with rich."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from halfconv.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.formats.describe import FormatsReport, Stored
    from halfconv.formats.trace import Trace

__all__ = ["show_formats"]

_ROUNDINGS = {"nearest-even": "to nearest, ties to even", "toward-zero": "toward zero", "stochastic": "stochastically"}
_OPERATIONS = {"add": "+", "multiply": "·"}


def show_formats(report: FormatsReport, console: Console) -> None:
    """Print a number's bits, neighbours and errors in each format; or, where there are any, operations in their place.

    Args:
        report: What `halfconv.formats.describe.describe` found.
        console: Where to print.
    """
    for trace in report.operations:
        _show_trace(trace, console)
    if report.operations:
        return
    pattern = report.given.pattern
    meaning = f" is {pattern.value!r} in {pattern.format.name}" if pattern else ""
    words = f"{meaning}, rounded {_ROUNDINGS[report.rounding]}"
    console.print(Text.assemble((visible(report.given.text), "bold"), words), overflow="fold")
    bits = _table("format", "sign exponent fraction", "pattern", "value", "")
    for stored in report.stored:
        known = stored.fields
        bits.add_row(known.format.name, known.bits, known.hex, f"{known.value:.12g}", _note(stored))
    console.print(bits)
    console.print()
    errors = _table("format", "next below", "next above", "error", "relative", "ulps", "largest")
    for column in errors.columns[1:]:
        column.justify = "right"
    for stored in report.stored:
        format = stored.fields.format
        numbers = (stored.error, stored.relative_error, stored.ulps)
        row = (*(_beside(number) for number in (stored.below, stored.above)), *(_figure(number) for number in numbers))
        errors.add_row(format.name, *row, f"{format.max:.6g}")
    console.print(errors)


def _show_trace(trace: Trace, console: Console) -> None:
    format, symbol = trace.result.format.name, _OPERATIONS[trace.operation]
    console.print(Text.assemble((f"a {symbol} b in {format}", "bold"), f", rounded {_ROUNDINGS[trace.rounding]}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for step in trace.steps:
        grid.add_row(Text(f"  {step.name}"), Text(step.text))
    console.print(grid)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _note(stored: Stored) -> str:
    """Say in a few words what became of a number."""
    known = stored.fields
    if stored.overflows:
        return "overflows"
    if stored.underflows:
        return "underflows" if known.kind == "zero" else f"subnormal, {known.fraction.bit_length()} bits"
    if known.kind == "nan":
        return "NaN"
    return "exact" if stored.exact else "rounded down" if stored.error < 0 else "rounded up"


def _beside(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.10g}"


def _figure(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.3g}"
