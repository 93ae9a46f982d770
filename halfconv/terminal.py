"""What all commands share: the options --json, --quiet and --verbose, JSON on stdout, the console, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import click

from halfconv.progress import Progress

__all__ = ["Size", "console", "is_quiet", "is_verbose", "json_option", "print_json", "progress"]

Command = Callable[..., Any]
#: Where a command keeps --quiet and --verbose, among what click's contexts share.
QUIET, VERBOSE = "halfconv.quiet", "halfconv.verbose"


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
    """Add the options that every command has: --json, and --quiet and --verbose, which the command need not know of."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_keep(QUIET),
                     help="Print errors only; the exit code, --json and files say the rest."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_keep(VERBOSE),
                     help="Say on stderr, line by line, what is being done; show where an internal error arose."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _keep(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(context: click.Context, option: click.Parameter, given: bool) -> None:
        context.meta[key] = given
        if context.meta.get(QUIET) and context.meta.get(VERBOSE):
            raise click.UsageError("--quiet and --verbose contradict each other; try: one of them")

    return keep


def _asked(key: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(key))


def is_quiet() -> bool:
    """Tell whether the command that runs was given --quiet."""
    return _asked(QUIET)


def is_verbose() -> bool:
    """Tell whether the command that runs was given --verbose."""
    return _asked(VERBOSE)


def _plain() -> bool:
    """Tell whether a CI system reads what looks like a terminal; FORCE_COLOR asks for colours there."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false") and not os.environ.get("FORCE_COLOR")


def console() -> Any:
    """Return the console that results are shown on: plain where it is piped or in CI, silent with --quiet.

    rich follows NO_COLOR.
    """
    from rich.console import Console

    return Console(soft_wrap=False, highlight=False, quiet=is_quiet(), force_terminal=False if _plain() else None)


@contextlib.contextmanager
def progress(quiet: bool, title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Show on stderr what is being done and how much of it is done: a bar where a person is looking, lines with --verbose.

    Args:
        quiet: Whether to show no bar.
        title: What the command does.

    Yields:
        What is to be told of progress; None where nobody looks.
    """
    if is_verbose():
        yield _lines(title)
        return
    if quiet or is_quiet() or _plain() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from halfconv.report.text import visible

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(visible(title)), total=None, amount="")

        stage = [""]

        def tell(now: Progress) -> None:
            words = ": ".join(part for part in (title, now.stage, now.detail) if part)
            done, total = (decimal(now.done), decimal(now.total)) if now.unit == "bytes" else (str(now.done), str(now.total))
            amount = f"{done} of {total}" if now.total else ""
            if now.stage != stage[0]:
                bar.reset(task, total=None)  # so that the time left is this stage's
                stage[0] = now.stage
            bar.update(task, description=escape(visible(words)), completed=now.done, total=now.total or None, amount=amount)

        yield tell


def _lines(title: str) -> Callable[[Progress], None]:
    """Return what writes a line whenever something else is being done."""
    from halfconv.report.text import visible

    begin, last = time.monotonic(), [""]

    def tell(now: Progress) -> None:
        words = ": ".join(part for part in (title, now.stage, now.detail) if part)
        if words != last[0]:
            click.echo(f"[{time.monotonic() - begin:6.1f} s] {visible(words)}", err=True)
            last[0] = words

    tell(Progress(""))
    return tell


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
