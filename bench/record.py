"""A benchmark's result: the file that is committed, and the table that is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.peers import environments

Row = dict[str, object]
#: Heading -> the key of the figure, and its format; "" for yes or no.
Columns = Mapping[str, tuple[str, str]]


def content(command: str, machine: Row, pythons: Mapping[str, str], rows: Sequence[Row], **more: object) -> Row:
    """Make the content of a benchmark file.

    Args:
        command: The command line that gave it.
        machine: Facts of the machine, taken before the run.
        pythons: Tool -> its interpreter.
        rows: The figures.
        more: What else was set.

    Returns:
        The content, with today's date and all versions.
    """
    return {
        "schema_version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": {
            "judge": environments.versions("judge", sys.executable),
            **{who: environments.versions(who, python) for who, python in pythons.items()},
        },
        "command": command,
        **more,
        "rows": list(rows),
    }


def write(path: Path, result: Row) -> None:
    """Write a benchmark file, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def sized(rows: Sequence[Row]) -> list[Row]:
    """Add to rows their ``size``: the result's bytes against the source's."""
    return [row | {"size": row["bytes_out"] / row["bytes_in"]} if "bytes_out" in row else row for row in rows]


def show(rows: Sequence[Row], columns: Columns, notes: Sequence[str] = ()) -> None:
    """Print notes and what went wrong, then the rows as a table.

    Args:
        rows: The figures, those of one case together.
        columns: What the table has beside case and tool.
        notes: Sentences to print first.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    table.add_column("tool", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        cells = [_cell(row.get(key), form) for key, form in columns.values()]
        last = index + 1 == len(rows) or rows[index + 1]["case"] != row["case"]
        table.add_row(str(row["case"]), str(row["who"]), *cells, end_section=last)
    errors = [
        f"{row['case']}, {row['who']}: {key}: {str(row[key])[:160]}" for row in rows for key in row if key.endswith("error")
    ]
    console = Console(width=max(200, Console().width))
    for note in (*notes, *errors):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def line(*cells: object) -> str:
    """Return a line of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"


def _cell(value: object, form: str) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "NO") if isinstance(value, bool) else format(value, form)
