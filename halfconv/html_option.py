"""The option --html of several commands: refused before any work where it cannot be kept, written at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from halfconv.drift.report import LayerDrift
    from halfconv.report.html.origin import Origin
    from halfconv.report.html.view import View
    from halfconv.result import ConvertResult, FailedConvert

__all__ = ["COMMAND", "check_html", "html_option", "write_convert_page", "write_failed_page", "write_html"]

Command = Callable[..., Any]
#: Where the group keeps the command line as it was given.
COMMAND = "halfconv.command"


def html_option(command: Command) -> Command:
    """Add the option --html."""
    words = "Write a report as one HTML file, which needs no network: charts, a map of what stays FP32, how to reproduce."
    return click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help=words)(command)


def check_html(path: Path | None, others: Mapping[str, Path | None], models: tuple[Path, ...]) -> None:
    """Refuse --html where the page could not be made or written, before any work is done.

    Args:
        path: Where the page goes; None for no page.
        others: What else the command writes, option -> path.
        models: Files that the command reads, which are never touched.

    Raises:
        UsageError: The path is a folder, a file that is read, or given twice.
        EnvironmentProblem: A package is missing, or the folder is.
    """
    if path is None:
        return
    from halfconv.report.files import check_report_files
    from halfconv.report.html.page import check_packages

    check_packages()
    check_report_files({**{option: None if other is None else other for option, other in others.items()}, "--html": path}, models)


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


def write_convert_page(path: Path, model: Path, result: ConvertResult, samples: str | None, seed: int, links: Path | None) -> None:
    """Write the page of a conversion, for which the values inside are compared on the same samples."""
    from halfconv.report.html.convert import convert_view

    assert result.plan is not None
    plan, layers = result.plan, None
    if result.drift is not None:
        layers = [layer.to_dict() for layer in _inside(model, result.output, samples, seed, links)]
    files = {"FP32 model": model, "converted model": result.output, "samples": Path(samples) if samples else None}
    write_html(path, lambda origin: convert_view(result.to_dict(), plan.to_dict(), layers, model, origin), files, _seeds(samples, seed))


def write_failed_page(path: Path, model: Path, failed: FailedConvert, samples: str | None, seed: int, links: Path | None) -> None:
    """Write the page of a conversion that did not meet its tolerance; its values are compared if --force-failed kept it."""
    from halfconv.report.html.convert import failed_view

    layers = None
    if failed.output is not None:
        layers = [layer.to_dict() for layer in _inside(model, failed.output, samples, seed, links)]
    files = {"FP32 model": model, "model that failed": failed.output, "samples": Path(samples) if samples else None}
    drift, plan = failed.drift.to_dict(), failed.plan.to_dict()
    write_html(path, lambda origin: failed_view(failed.why, drift, plan, layers, model, origin), files, _seeds(samples, seed))


def _seeds(samples: str | None, seed: int) -> dict[str, int]:
    return {} if samples else {"made-up samples": seed}


def _inside(model: Path, output: Path, samples: str | None, seed: int, links: Path | None) -> tuple[LayerDrift, ...]:
    """Compare the values inside; none where that is not possible."""
    from halfconv.drift.compare import validate
    from halfconv.tuning import SYNTHETIC_COUNT

    report = validate(model, output, samples=samples, count=SYNTHETIC_COUNT, seed=seed, layers=True, allow_links=links)
    return report.layers or ()
