"""A validation on the console, with rich: the verdict first, then what it rests on.

Names come from models, which come from anywhere: they are shown as plain text, never as markup, with control characters escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from halfconv.report.text import (
    bounds,
    evaluated,
    figure,
    metric_figure,
    metric_sentence,
    reach,
    sampled,
    sentences,
    share,
    verdict,
    visible,
    waived,
    worst_first,
    worst_layers,
)

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.drift.report import DriftReport, LayerDrift

__all__ = ["show_validation"]

#: Outputs shown before "and N more", those that fail first.
OUTPUTS = 40
#: Sentences of one kind shown before "and N more".
SENTENCES = 30
#: Values inside the model shown, those that add most error.
LAYERS = 15


def show_validation(report: DriftReport, console: Console) -> None:
    """Print a drift report.

    Args:
        report: What `halfconv.validate` returned.
        console: Where to print.
    """
    color = "green" if report.passed else "red"
    how = f"{evaluated(report)}, {sampled(report)}"
    _print(console, Text.assemble((verdict(report), f"bold {color}"), (f"  {visible(report.candidate)}  {how}", "bold")))
    line = f"  against {visible(report.reference)}"
    if report.tolerance:
        line += f"; tolerance {', '.join(bounds(report))}"
    _print(console, Text(line, style="dim"))
    if report.outputs:
        console.print(_outputs(report))
    broken = [f"{visible(o.name)}: {sentence}" for o in report.outputs if not o.passed for sentence in sentences(o)]
    broken += [
        f"metric {metric_sentence(m.name, m.reference, m.candidate, m.drop, m.limit)}" for m in report.metrics if not m.passed
    ]
    broken += [f"baseline: {visible(sentence)}" for sentence in report.baseline]
    broken += [f"EXPIRED: {visible(waiver.sentence())}" for waiver in report.waivers if waiver.expired]
    _list(console, broken, "red")
    _list(console, waived(report), "yellow")
    if report.first_bad:
        _print(console, Text.assemble(("first bad: ", "bold red"), visible(report.first_bad)))
    if report.metrics:
        console.print(_metrics(report))
    if report.layers is not None:
        _layers(report, report.layers, console)
    _list(console, [f"not modelled: {visible(sentence)}" for sentence in report.unmodelled], "yellow")
    _list(console, [f"warning: {visible(warning)}" for warning in report.warnings], "yellow")


def _print(console: Console, text: Text) -> None:
    console.print(text, overflow="fold")


def _list(console: Console, lines: Iterable[str], style: str) -> None:
    lines = list(lines)
    for line in lines[:SENTENCES]:
        _print(console, Text(line, style=style))
    if len(lines) > SENTENCES:
        _print(console, Text(f"… and {len(lines) - SENTENCES} more; --json lists them all", style=style))


def _table(title: str, columns: dict[str, str]) -> Table:
    """Make a table of columns that hold text (left) or figures (right)."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, kind in columns.items():
        if kind == "text":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _outputs(report: DriftReport) -> Table:
    """Drift per output; columns that say nothing of any output are left out."""
    equal = any(output.measures.agreement is not None for output in report.outputs)
    mismatched = any(output.measures.mismatched for output in report.outputs)
    columns = {"output": "text", "rel_l2": "", "max_abs": "", "argmax": ""}
    columns |= {"equal": ""} if equal else {}
    columns |= {"new NaN": "", "new Inf": ""}
    columns |= {"mismatched": ""} if mismatched else {}
    table = _table("", {**columns, "zeroed": "", "verdict": ""})
    shown = report.outputs if len(report.outputs) <= OUTPUTS else worst_first(report.outputs)[:OUTPUTS]
    for output in shown:
        m = output.measures
        cells = [visible(output.name), figure(m.rel_l2), figure(m.max_abs), share(m.argmax_agreement)]
        cells += [share(m.agreement)] if equal else []
        cells += [figure(m.new_nan), figure(m.new_inf)]
        cells += [figure(m.mismatched)] if mismatched else []
        cells.append(share(m.zeroed))
        mark = Text("passed", style="green") if output.passed else Text("FAILED", style="bold red")
        table.add_row(*map(Text, cells), mark)
    if len(report.outputs) > len(shown):
        table.add_row(Text(f"… and {len(report.outputs) - len(shown)} more; --json lists them all"))
    return table


def _metrics(report: DriftReport) -> Table:
    table = _table("", {"metric": "text", "reference": "", "candidate": "", "drop": "", "allowed": "", "verdict": ""})
    for metric in report.metrics:
        mark = Text("passed", style="green") if metric.passed else Text("FAILED", style="bold red")
        if metric.limit is None:
            mark = Text("reported")
        figures = [metric_figure(metric.name, v) for v in (metric.reference, metric.candidate, metric.drop, metric.limit)]
        table.add_row(*map(Text, (visible(metric.name), *figures)), mark)
    return table


def _layers(report: DriftReport, layers: tuple[LayerDrift, ...], console: Console) -> None:
    """The first value that went bad, then the values that add most error."""
    bad = next((layer for layer in layers if layer.verdict), None)
    if bad is not None:
        place = ", ".join(visible(part) for part in (f"{bad.op} {bad.node}".strip(), bad.scope) if part)
        title = "first value that went bad" + (", which the outputs do not show: " if report.passed else ": ")
        _print(
            console,
            Text.assemble(
                (title, "yellow" if report.passed else "bold red"), f"{visible(bad.value)} ({place}): {visible(bad.verdict)}"
            ),
        )
    worst = worst_layers(layers, LAYERS)
    if not worst:
        _print(console, Text(f"none of {len(layers):,} values inside adds error"))
        return
    scopes = any(layer.scope for layer in worst)
    columns = {"value": "text", "op": "text", "dtype": "text", "rel_l2": "", "added": "", "largest |r| → |c|": ""}
    title = f"Values that add most error ({len(worst)} of {len(layers):,})"
    table = _table(title, columns | ({"scope": "text"} if scopes else {}))
    for layer in worst:
        figures = (figure(layer.rel_l2), figure(layer.added), reach(layer))
        cells = [visible(layer.value), visible(layer.op), visible(layer.dtype), *figures]
        table.add_row(*map(Text, cells + ([visible(layer.scope)] if scopes else [])))
    console.print(table)
