"""The pages of ``convert`` and ``validate``: for a conversion the values inside are compared, too, which nothing else needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from halfconv.drift.compare import validate
from halfconv.drift.report import DriftReport
from halfconv.errors import InputError
from halfconv.html_option import write_html
from halfconv.report.html.convert import convert_view, failed_view
from halfconv.report.html.origin import Origin
from halfconv.report.html.validate import validate_view
from halfconv.report.html.view import View
from halfconv.result import ConvertResult, FailedConvert
from halfconv.tuning import SYNTHETIC_COUNT

__all__ = ["write_convert_page", "write_failed_page", "write_validate_page"]


def write_convert_page(path: Path, model: Path, result: ConvertResult, samples: str | None, seed: int, links: Path | None) -> None:
    """Write the page of a conversion, for which the values inside are compared on the same samples."""
    assert result.plan is not None
    plan, layers = result.plan, None
    if result.drift is not None:
        layers, notes = _inside(model, result.output, samples, seed, links)
        result = replace(result, warnings=(*result.warnings, *notes))
    files = {"FP32 model": model, "converted model": result.output, "samples": Path(samples) if samples else None}

    def view(origin: Origin) -> View:
        return convert_view(result.to_dict(), plan.to_dict(), layers, model, origin)

    write_html(path, view, files, _seeds(samples, seed))


def write_failed_page(
    path: Path, model: Path, failed: object, samples: str | None, seed: int, links: Path | None
) -> None:  # fmt: skip
    """Write the page of a conversion that did not meet its tolerance; its values are compared if --force-failed kept it.

    Args:
        path: Where it goes.
        model: The FP32 model.
        failed: What `halfconv.errors.CheckFailed` has as its study.
        samples: What --samples said.
        seed: Seed of made-up samples.
        links: What --allow-links said.
    """
    assert isinstance(failed, FailedConvert)
    layers: list[dict[str, Any]] | None = None
    notes: list[str] = []
    if failed.output is not None:
        layers, notes = _inside(model, failed.output, samples, seed, links)
    files = {"FP32 model": model, "model that failed": failed.output, "samples": Path(samples) if samples else None}
    drift, plan = failed.drift.to_dict(), failed.plan.to_dict()
    drift["warnings"] += notes

    def view(origin: Origin) -> View:
        return failed_view(failed.why, drift, plan, layers, model, failed.output, origin)

    write_html(path, view, files, _seeds(samples, seed))


def write_validate_page(path: Path, models: tuple[Path, Path], report: DriftReport, samples: str | None, seed: int) -> None:
    """Write the page of a validation."""
    files = {"reference": models[0], "candidate": models[1], "samples": Path(samples) if samples else None}
    write_html(path, lambda origin: validate_view(report.to_dict(), origin), files, _seeds(samples, seed))


def _seeds(samples: str | None, seed: int) -> dict[str, int]:
    return {} if samples else {"made-up samples": seed}


def _inside(
    model: Path, output: Path, samples: str | None, seed: int, links: Path | None
) -> tuple[list[dict[str, Any]] | None, list[str]]:  # fmt: skip
    """Compare the values inside; where that is not possible, say why: the model is converted, and its page can do without."""
    try:
        report = validate(model, output, samples=samples, count=SYNTHETIC_COUNT, seed=seed, layers=True, allow_links=links)
    except InputError as error:
        return None, [f"the values inside could not be compared: {str(error).partition('; try:')[0]}"]
    return [layer.to_dict() for layer in report.layers or ()], []
