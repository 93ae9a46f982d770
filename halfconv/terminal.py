"""What all commands share: the --json option, JSON on stdout, the console, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import click

from halfconv.progress import Progress

__all__ = ["Size", "console", "json_option", "print_json", "progress"]

Command = Callable[..., Any]


class Size(click.ParamType):  # type: ignore[type-arg]  # older releases of click have no type argument
    """A number of bytes, such as ``500MB`` or ``4GiB``."""

    name = "size"
    UNITS: ClassVar = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        unit = self.UNITS.get(found[2].upper()) if found else None
        size = int(float(found[1]) * unit) if found and unit else 0
        if size < 1:
            self.fail(f"{value!r} is no size; try: 500MB or 4GiB", param, ctx)
        return size


def json_option(command: Command) -> Command:
    """Add the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def console() -> Any:
    """Return the console that results are shown on."""
    from rich.console import Console

    return Console(soft_wrap=False, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool, title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Show on stderr what is being done and how much of it is done, where a person is looking.

    Args:
        quiet: Whether to show nothing.
        title: What the command does.

    Yields:
        What is to be told of progress; None where nobody looks.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(title), total=None, amount="")

        stage = [""]

        def tell(now: Progress) -> None:
            words = ": ".join(part for part in (title, now.stage, now.detail) if part)
            done, total = (decimal(now.done), decimal(now.total)) if now.unit == "bytes" else (str(now.done), str(now.total))
            amount = f"{done} of {total}" if now.total else ""
            if now.stage != stage[0]:
                bar.reset(task, total=None)  # so that the time left is this stage's
                stage[0] = now.stage
            bar.update(task, description=escape(words), completed=now.done, total=now.total or None, amount=amount)

        yield tell


def print_json(content: dict[str, Any]) -> None:
    """Print JSON in which NaN and infinities are null."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if value - value == 0 else None
        if isinstance(value, dict):
            return {key: clean(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(entry) for entry in value]
        return value

    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(clean(content), ensure_ascii=not unicode, allow_nan=False))
