"""The command ``sweep``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from halfconv.html_option import check_html, html_option, write_html
from halfconv.terminal import console, is_quiet, json_option, print_json, progress

__all__ = ["sweep"]


@click.command()
@click.argument("fleet", type=click.Path(path_type=Path), metavar="FLEET.toml")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of models and results.  [default: FLEET.sweep beside FLEET.toml]")
@click.option("--jobs", type=click.IntRange(1), metavar="N",
              help="How many jobs run at a time.  [default: half of the processors; on a cluster, what it has room for]")
@click.option("--ray", metavar="ADDRESS", help="Run the jobs on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, metavar="N",
              help="GPUs, or the share of one, that a job takes on the cluster.")
@click.option("--retry-failed", is_flag=True, help="Do jobs again that failed, although nothing changed.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the table as Markdown, too.")
@html_option
@json_option  # fmt: skip
def sweep(
    fleet: Path, out: Path | None, jobs: int | None, ray: str | None, gpus: float, retry_failed: bool, dry_run: bool,
    markdown: Path | None, html: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Convert, validate and measure many models, for many targets, in several precisions.

    A job that is done is not done again until its model, samples or options change. The exit code is 1 if one failed or drifted.
    """
    from halfconv.report.files import check_report_files
    from halfconv.report.sweep import as_markdown, line, show_sweep
    from halfconv.storage import atomic_text
    from halfconv.sweep.driver import sweep as run

    check_report_files({"--markdown": markdown}, (fleet,))
    check_html(html, {"--markdown": markdown}, (fleet,))
    with progress(as_json, f"sweeping {fleet.name}") as on_progress:
        quiet = as_json or is_quiet() or on_progress is not None
        report = run(
            fleet, out, jobs=jobs, ray=ray, gpus=gpus, retry_failed=retry_failed, dry_run=dry_run, on_progress=on_progress,
            on_done=None if quiet else lambda *done: click.echo(line(*done), err=True),
        )  # fmt: skip
    if markdown is not None:
        atomic_text(markdown, as_markdown(report))
    if html is not None:
        from halfconv.report.html.sweep import sweep_view

        write_html(html, lambda origin: sweep_view(report.to_dict(), origin), {"fleet": fleet})
    if as_json:
        print_json(report.to_dict())
    else:
        show_sweep(report, console())
    if not report.passed and not dry_run:
        sys.exit(1)
