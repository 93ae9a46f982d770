"""Write a drift report to files: JUnit, Markdown, and the baseline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from halfconv.drift.report import DriftReport
from halfconv.errors import EnvironmentProblem, UsageError

__all__ = ["check_report_files", "write_reports"]


def check_report_files(files: Mapping[str, Path | None], models: Iterable[Path]) -> None:
    """Refuse paths that cannot be written, before any work is done.

    Args:
        files: Option -> path.
        models: The models and whatever else is read, which is never touched.

    Raises:
        UsageError: A path is a folder, a file that is read, or given twice.
        EnvironmentProblem: Its folder is missing or read-only.
    """
    seen: dict[Path, str] = {}
    models = tuple(models)
    for option, path in files.items():
        if path is None:
            continue
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} {path}: is no file", f"{option} {path / 'report'}")
        if any(path.exists() and model.exists() and path.samefile(model) for model in models):
            what = "a model" if path.suffix == ".onnx" else "a file that is read"
            raise UsageError(f"{option} {path}: is {what}, which is never touched", "another name")
        if path.absolute() in seen:
            raise UsageError(f"{option} {path}: is also what {seen[path.absolute()]} writes", "another name")
        seen[path.absolute()] = option
        folder = path.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise EnvironmentProblem(f"{option} {path}: its folder is missing or read-only", f"mkdir -p {folder}")


def write_reports(report: DriftReport, *, junit: Path | None, markdown: Path | None, baseline: Path | None, compared: bool) -> None:
    """Write what was asked for.

    Args:
        report: The report.
        junit: JUnit file.
        markdown: Markdown file.
        baseline: Baseline file to write.
        compared: Whether the report was compared with a baseline, which then is a test case of its own.

    Raises:
        EnvironmentProblem: A file cannot be written.
    """
    from halfconv.storage import atomic_text

    if junit is not None:
        from halfconv.report.junit import junit_xml

        atomic_text(junit, junit_xml(report, baseline=compared))
    if markdown is not None:
        from halfconv.report.markdown import markdown as as_markdown

        atomic_text(markdown, as_markdown(report))
    if baseline is not None:
        from halfconv.drift.baseline import write

        write(baseline, report)
