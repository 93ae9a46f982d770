"""Plans on the console, with rich: how two differ, what one knows of a value, what it keeps in FP32.

Ids and reasons come from files: they are shown as plain text, never as markup, with control characters escaped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from halfconv.report.text import clip, figure, share, visible

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.explanation import Change, Explanation
    from halfconv.inspection import InspectReport
    from halfconv.plan_diff import PlanDiff, ValueChange
    from halfconv.precision.plan import PlannedValue
    from halfconv.result import FloatValue

__all__ = ["show_diff", "show_explanation", "show_fit"]

#: Rows of a table, and entries of a list, before "and N more".
ROWS = 30
#: Companions of a value that are named.
COMPANIONS = 5
#: Neighbours of a value that are named, on each side.
NEIGHBOURS = 8
#: Characters of an option's value that are shown.
SHOWN = 60


def show_diff(diff: PlanDiff, before: Path, after: Path, console: Console) -> None:
    """Print how two plans differ.

    Args:
        diff: What `halfconv.plan_diff.diff_plans` found.
        before: The first plan's file.
        after: The second plan's file.
        console: Where to print.
    """
    _print(console, Text(f"{visible(str(before))} → {visible(str(after))}", style="bold"))
    if diff.same_decisions:
        _print(console, Text(f"  both give {diff.values:,} values the same types, with the same Casts"))
    else:
        _print(
            console,
            Text(
                f"  {len(diff.changed):,} of {diff.values:,} values changed their type; {len(diff.added):,} values added, "
                f"{len(diff.removed):,} removed; {len(diff.casts_added):,} casts added, {len(diff.casts_removed):,} removed"
            ),
        )
    for change in diff.header:
        _print(console, Text(f"  {visible(change.field)}: {_setting(change.before)} → {_setting(change.after)}", style="dim"))
    if diff.changed:
        _table(console, "Values that changed their type", ("value", "type", "why"), map(_changed, diff.changed), len(diff.changed))
    if diff.reasons:
        title = "Values that stay FP32 for another reason"
        _table(console, title, ("value", "before", "after"), map(_reasons, diff.reasons), len(diff.reasons))
    for title, values in (("Values added", diff.added), ("Values removed", diff.removed)):
        if values:
            _table(console, title, ("value", "type", "why"), ((v.id, _type(v.dtype), _why(v)) for v in values), len(values))
    casts = [("added", *cast) for cast in diff.casts_added] + [("removed", *cast) for cast in diff.casts_removed]
    if casts:
        _table(console, "Casts", ("cast", "value", "to"), ((how, value, _type(to)) for how, value, to in casts), len(casts))
    if diff.reads:
        rows = ((f"{r.node}, input {r.input}", _type(r.before), _type(r.after)) for r in diff.reads)
        _table(console, "Reads of nodes without such a value", ("read", "before", "after"), rows, len(diff.reads))


def show_explanation(found: Explanation, console: Console) -> None:
    """Print what a plan knows of a value.

    Args:
        found: What `halfconv.explanation.explain` found.
        console: Where to print.
    """
    value = found.value
    if value.dtype == "float":
        _print(console, Text.assemble((visible(value.id), "bold"), " stays in FP32"))
    else:
        _print(console, Text.assemble((visible(value.id), "bold"), f" is held in half ({value.dtype}): no rule asks for FP32"))
    rows = []
    if value.dtype == "float":
        rows += [("why", value.reason), ("rule", f"{value.rule}: {found.meaning}")]
        if value.node and value.op in ("Input", "Output"):
            rows.append(("because of", f"{value.op.lower()} '{value.node}' of the model"))
        elif value.node:
            rows.append(("because of", f"node '{value.node}'" + (f" ({value.op})" if value.op else "")))
        if value.figures:
            rows.append(("figures", _figures(value.figures)))
    rows += [("cast", f"to {_type(to)}, once, for all readers in {_type(to)}") for to in found.casts]
    if not found.casts:
        rows.append(("cast", "none: all its readers take it as it is"))
    if found.companions:
        more = len(found.companions) - COMPANIONS
        rows.append(("also", ", ".join(found.companions[:COMPANIONS]) + (f" and {more:,} more" if more > 0 else "")))
    rows += _surroundings(found)
    rows.append(("plan", f"to {found.to}, for target {found.target}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, words in rows:
        grid.add_row(Text(f"  {title}"), Text(visible(words)))
    console.print(grid)


def _surroundings(found: Explanation) -> list[tuple[str, str]]:
    """Say where a value stands, what it held, what stands beside it, and what the other type would cost."""
    place, change = found.place, found.change
    if place is None:
        return []
    shape = "" if place.shape is None else f", [{', '.join(map(str, place.shape))}]"
    where = f"node '{place.node}' ({place.op})" if place.node else f"{place.op.lower()} of the model"
    rows = [("made by", where + (f" in {place.scope}" if place.scope else "") + shape)]
    if place.range is not None:
        held = place.range
        words = f"{figure(held['smallest'])} to {figure(held['absmax'])} in magnitude"
        for share_, what in (("overflow", "beyond half's range"), ("flush", "that half turns to 0")):
            words += f", {share(held[share_])} {what}" if held[share_] else ""
        rows.append(("range", f"{words}; rounding it alone adds rel_l2 {held['rounding']:.2g}"))
    else:
        rows.append(("range", "not measured: --save-plan with the simulation knows it"))
    for title, beside, label in (
        ("reads", found.inputs, "value"),
        ("read by", found.readers, "node"),
    ):
        named = [f"{getattr(entry, label)} ({entry.op}) in {_type(entry.dtype)}" for entry in beside]
        if named:
            more = len(named) - NEIGHBOURS
            rows.append((title, ", ".join(named[:NEIGHBOURS]) + (f" and {more:,} more" if more > 0 else "")))
    if change is not None:
        rows.append((f"in {_type(change.to)}", _cost(change)))
    return rows


def _cost(change: Change) -> str:
    """Say what the other type would cost in one sentence."""
    if not change.possible:
        return "impossible, so no option brings it"
    added, removed = len(change.casts_added), len(change.casts_removed)
    said = [f"{added:,} {'Cast' if added == 1 else 'Casts'} added, {removed:,} removed"]
    if change.bytes is not None:
        free = f" with {', '.join(f'{dim} = 1' for dim in change.free)}" if change.free else ""
        said.append(f"{_delta(change.bytes)} of values{free}")
    if change.weight_bytes:
        said.append(f"{_delta(change.weight_bytes)} of stored weights")
    if change.values:
        more = len(change.values) - COMPANIONS
        named = ", ".join(change.values[:COMPANIONS]) + (f" and {more:,} more" if more > 0 else "")
        said.append(f"with it {named}, which are tied to it")
    return "; ".join(said)


def _delta(size: int) -> str:
    return f"{'−' if size < 0 else '+'}{decimal(abs(size))}"


def show_fit(report: InspectReport, plan: Path, console: Console) -> None:
    """Print what a plan makes of a model that it fits: the values that stay FP32, by reason.

    Args:
        report: What `halfconv.inspect` reported with the plan.
        plan: The plan's file.
        console: Where to print.
    """
    half, total = report.values["half"], sum(report.values.values())
    _print(console, Text(f"{visible(str(plan))} fits {visible(str(report.model))}", style="bold"))
    _print(console, Text(f"  {half:,} of {total:,} values in half, {len(report.fp32):,} in FP32, {report.casts:,} casts"))
    regions: dict[tuple[str, str], list[FloatValue]] = defaultdict(list)
    for entry in report.fp32:
        regions[entry.rule, entry.reason].append(entry)
    if regions:
        rows = sorted(regions.items(), key=lambda item: -len(item[1]))
        cells = (
            (f"{len(entries):,}", rule, reason, _example(entries)) for (rule, reason), entries in rows
        )  # fmt: skip
        _table(console, "Values that stay FP32", ("values", "rule", "reason", "because of"), cells, len(rows))
    for warning in report.warnings:
        _print(console, Text(f"note: {visible(warning)}", style="yellow"))


def _example(entries: Sequence[FloatValue]) -> str:
    """Name a culprit, and how many others there are."""
    culprits = list(dict.fromkeys((entry.node, entry.op) for entry in entries))
    node, op = culprits[0]
    return f"{op} {node}".strip() + (f" and {len(culprits) - 1:,} more" if len(culprits) > 1 else "")


def _changed(change: ValueChange) -> tuple[str, str, str]:
    before, after = change.before, change.after
    why = _why(after) if after.dtype == "float" else f"was: {_why(before)}"
    return _renamed(change), f"{_type(before.dtype)} → {_type(after.dtype)}", why


def _reasons(change: ValueChange) -> tuple[str, str, str]:
    return _renamed(change), _why(change.before), _why(change.after)


def _renamed(change: ValueChange) -> str:
    return change.after.id + (f" (was {change.before.id})" if change.after.id != change.before.id else "")


def _why(value: PlannedValue) -> str:
    """Return the reason with its rule, culprit and figures; nothing of a half value."""
    if value.dtype != "float":
        return ""
    figures = f"; {_figures(value.figures)}" if value.figures else ""
    return f"{value.reason} ({value.rule}{f', {value.op} {value.node}' if value.node else ''}{figures})"


def _figures(figures: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {figure(number)}" for name, number in sorted(figures.items()))


def _type(dtype: str | None) -> str:
    return {"float": "FP32", "float16": "half", "bfloat16": "half", None: "-"}.get(dtype, str(dtype))


def _setting(value: Any) -> str:
    """Show a field of a plan's header; hashes by their beginning."""
    if value is None:
        return "-"
    if isinstance(value, str) and len(value) == 64:
        return visible(f"{value[:12]}…")
    return visible(clip(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), SHOWN))


def _print(console: Console, text: Text) -> None:
    console.print(text, overflow="fold")


def _table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "values" else "left")
    for row in list(rows)[:ROWS]:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
    if count > ROWS:
        _print(console, Text(f"… and {count - ROWS:,} more; --json lists them all"))
