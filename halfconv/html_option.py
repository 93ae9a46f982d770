"""The option --html of several commands: refused before any work where it cannot be kept, written at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halfconv.errors import UsageError

if TYPE_CHECKING:
    from halfconv.report.html.origin import Origin
    from halfconv.report.html.view import View

__all__ = ["COMMAND", "check_html", "html_option", "write_html"]

Command = Callable[..., Any]
#: Where the group keeps the command line as it was given.
COMMAND = "halfconv.command"
#: How every page begins.
DOCTYPE = b"<!doctype html>"


def html_option(command: Command) -> Command:
    """Add the option --html."""
    words = "Write a report as one HTML file, which needs no network: charts, a map of what stays FP32, how to reproduce."
    return click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help=words)(command)


def check_html(path: Path | None, others: Mapping[str, Path | None], models: Iterable[Path]) -> None:
    """Refuse --html where the page could not be made or written, before any work is done.

    Args:
        path: Where the page goes; None for no page.
        others: What else the command writes, option -> path.
        models: Files that the command reads, which are never touched.

    Raises:
        UsageError: The path is a folder, a file that is read, another file than a page, or given twice.
        EnvironmentProblem: A package is missing, or the folder is.
    """
    if path is None:
        return
    from halfconv.report.files import check_report_files
    from halfconv.report.html.page import check_packages

    check_packages()
    check_report_files({"--html": path}, models)
    for option, other in others.items():
        if other is not None and other.absolute() == path.absolute():
            raise UsageError(f"--html {path}: is also what {option} writes", "another name")
    if path.is_file():  # it may be weights, samples or a model that only the conversion itself knows of
        with path.open("rb") as stream:
            begin = stream.read(len(DOCTYPE))
        if begin and begin.lower() != DOCTYPE:
            raise UsageError(f"--html {path}: holds something else than a page, and is not overwritten", "another name")


def write_html(
    path: Path, view: Callable[[Origin], View], files: Mapping[str, Path | None], seeds: Mapping[str, int] | None = None
) -> None:
    """Write a page.

    Args:
        path: Where it goes.
        view: Makes of the page's origin what it shows.
        files: What each file that the figures rest on is -> its path.
        seeds: What was random -> its seed.
    """
    from halfconv.report.html.origin import origin_of
    from halfconv.report.html.page import write_page

    context = click.get_current_context()
    origin = origin_of(context.meta.get(COMMAND, ()), context.default_map or {}, files, seeds or {})
    write_page(path, view(origin))
