"""The commands ``kernels build`` and ``kernels info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from halfconv.terminal import console, json_option, print_json, progress

if TYPE_CHECKING:
    from halfconv.kernels.information import KernelsReport

__all__ = ["kernels"]


@click.group()
def kernels() -> None:
    """Build the CUDA kernels of the operators that `convert --kernels` puts in."""


@kernels.command()
@click.option("--nvcc", type=click.Path(path_type=Path), metavar="PATH", help="CUDA's compiler.  [default: the one that is found]")
@click.option("--include", type=click.Path(path_type=Path), multiple=True, metavar="FOLDER", help="Look for headers here first.")
@json_option
def build(nvcc: Path | None, include: tuple[Path, ...], as_json: bool) -> None:
    """Compile the kernels for this machine, and keep the library where sessions on CUDA find it."""
    from halfconv.kernels.build import build as run
    from halfconv.kernels.information import kernels_report

    with progress(as_json, "compiling the kernels"):
        made = run(nvcc, include)
    report = kernels_report()
    if report.library != made and not as_json:
        click.echo(f"note: {made} is built, but sessions use what the environment names", err=True)
    _show(report, as_json)


@kernels.command()
@json_option
def info(as_json: bool) -> None:
    """Say which library of kernels sessions on CUDA use."""
    from halfconv.kernels.information import kernels_report

    _show(kernels_report(), as_json)


def _show(report: KernelsReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    from rich.markup import escape

    console().print(escape(report.sentence()))
