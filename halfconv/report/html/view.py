"""What a page shows, as data: every command's view model is made of these parts, and one template renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfconv.report.html.charts import Chart
from halfconv.report.text import visible

__all__ = ["Cell", "Facts", "Section", "Table", "Tile", "Verdict", "View", "clean", "file_name", "percent", "size"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes first.

    Attributes:
        state: ``good``, ``bad`` or ``plain``.
        word: One word: Passed, Failed, Measured.
        sentence: The verdict with its numbers.
    """

    state: str
    word: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is shown large.

    Attributes:
        label: What it is.
        value: The figure with its unit.
        note: A few words more.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        number: Whether it is a figure, which stands at the right.
        state: ``good``, ``bad`` or "".
        href: A place on the page.
        rule: A reason by which the map is filtered when the cell is pressed; "" for none.
        code: Whether the text is a name out of a model.
        below: A sentence below the text, of what is wrong.
    """

    text: str
    number: bool = False
    state: str = ""
    href: str = ""
    rule: str = ""
    code: bool = False
    below: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        caption: What it holds, for those who cannot see it.
        columns: Headings; a heading's cells are figures if its first cell is.
        rows: Cells.
        more: How many rows are left out.
        minor: Places of the columns that a telephone leaves out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    more: int = 0
    minor: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what belongs to them.

    Attributes:
        rows: (name, text) pairs.
        long: Whether texts are long, so that each needs a line.
    """

    rows: Sequence[tuple[str, str]]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        id: The place that links name.
        title: Its heading.
        lead: What to see here, in a sentence or two; "" for none.
        charts: Charts.
        tables: Tables.
        facts: Facts; None for none.
        command: A command line to copy; "" for none.
        map: Whether the map of the network stands here.
    """

    id: str
    title: str
    lead: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    facts: Facts | None = None
    command: str = ""
    map: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """A page.

    Attributes:
        command: The command that made it.
        title: What it is about.
        verdict: What comes first.
        tiles: Figures that are shown large.
        notes: Sentences that deserve attention.
        sections: Parts, in order.
        network: Data of the map of the network; None if there is none.
    """

    command: str
    title: str
    verdict: Verdict
    tiles: Sequence[Tile]
    notes: Sequence[str]
    sections: Sequence[Section]
    network: Mapping[str, Any] | None = field(default=None)


def clean(text: Any) -> str:
    """Return text from a model or file with what does not print as escapes, on one line."""
    return visible(" ".join(str(text).split()))


def file_name(path: Any) -> str:
    """Return the last part of a path, to be shown."""
    return clean(Path(str(path)).name)


def percent(part: int, whole: int) -> str:
    """Return a share in whole percent that is 0 or 100 only if it is that."""
    if not whole:
        return "-"
    rounded = round(100 * part / whole)
    return f"{min(max(rounded, 1), 99) if 0 < part < whole else rounded}%"


def size(count: float) -> str:
    """Return a number of bytes in units of 1,000, such as ``3.2 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
