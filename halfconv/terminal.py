"""What all commands share: the --json option, JSON on stdout, the console, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

__all__ = ["console", "json_option", "print_json", "progress"]

Command = Callable[..., Any]


def json_option(command: Command) -> Command:
    """Add the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def console() -> Any:
    """Return the console that results are shown on."""
    from rich.console import Console

    return Console(soft_wrap=False, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool, title: str) -> Iterator[Callable[[str], None] | None]:
    """Show the running stage on stderr, where a person is looking."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:
        yield lambda stage: status.update(f"{title}: {stage}")


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
