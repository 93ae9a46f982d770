"""pytest plugin: the fixture ``assert_drift`` and the option ``--halfconv-update``.

    def test_half_precision(assert_drift):
        assert_drift("model.onnx", "model.fp16.onnx", "samples.npz", rel_l2=1e-2, baseline="drift.json")

pytest loads this module in every run of an environment that has halfconv; nothing heavy is imported before the fixture is called.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halfconv.errors import HalfconvError, UsageError

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport

__all__ = ["DriftAssertion", "assert_drift"]

#: Failing outputs, and sentences, in the text of a failure.
OUTPUTS = 20
SENTENCES = 40
NAME_LENGTH = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's option."""
    parser.getgroup("halfconv", "half-precision drift").addoption(
        "--halfconv-update",
        action="store_true",
        default=False,
        help="write the baselines of assert_drift anew, instead of failing where drift grew; what breaks a tolerance still fails",
    )


@dataclass(frozen=True, slots=True)
class DriftAssertion:
    """What the fixture `assert_drift` gives: call it to compare two models.

    Attributes:
        folder: The test file's folder, in which relative baselines lie.
        update: Whether to write baselines instead of comparing with them.
    """

    folder: Path
    update: bool = False

    def __call__(
        self,
        reference: str | os.PathLike[str],
        candidate: str | os.PathLike[str],
        samples: Any = None,
        *,
        baseline: str | os.PathLike[str] | None = None,
        on: str = "simulate",
        layers: bool = False,
        metrics: Any = (),
        seed: int = 0,
        tolerance: Mapping[str, float] | None = None,
        tolerance_file: str | os.PathLike[str] | None = None,
        **bounds: float,
    ) -> DriftReport:
        """Compare a candidate with its reference, and fail if it drifts too far.

        Args:
            reference: The FP32 model's file.
            candidate: The half-precision model's file.
            samples: As `halfconv.validate` takes them; None for synthetic ones.
            baseline: A committed baseline, relative to the test file; ``--halfconv-update`` writes it.
            on: ``simulate``, ``cpu`` or ``cuda``.
            layers: Whether to compare the values inside, which finds where drift arises.
            metrics: The user's metrics, as `halfconv.validate` takes them.
            seed: Seed of synthetic samples.
            tolerance: Bounds whose names are no Python names: ``{"rel_l2@logits": 1e-3}``.
            tolerance_file: A TOML file with bounds.
            bounds: Bounds by measure or metric: ``rel_l2=1e-2``.

        Returns:
            The report.

        Raises:
            AssertionError: A bound is broken, or drift grew against the baseline.
            HalfconvError: A file or an option cannot be used.
        """
        __tracebackhide__ = True
        if twice := sorted(set(bounds) & set(tolerance or {})):
            raise UsageError(f"assert_drift: {twice[0]} is given both by keyword and in tolerance", "one of them")
        allowed = {**(tolerance or {}), **bounds}
        file = None if baseline is None else self.folder / baseline
        validate: Callable[..., DriftReport] = import_module("halfconv.drift.compare").validate
        try:
            report = validate(
                reference, candidate, samples=samples, tolerance=allowed or None, tolerance_file=tolerance_file, on=on,
                layers=layers, metrics=metrics, seed=seed, baseline=None if self.update else file,
            )  # fmt: skip
            if report.passed and file is not None and self.update:
                _write_baseline(file, report)
        except HalfconvError as error:
            raise error.with_traceback(None) from None  # the message says it all
        if not report.passed:
            command = ["halfconv", "validate", os.fspath(reference), os.fspath(candidate)]
            if isinstance(samples, (str, os.PathLike)):
                command += ["--samples", os.fspath(samples)]
            command += ["--on", on] if on != "simulate" else []
            command += ["--seed", str(seed)] if seed else []
            for key, value in allowed.items():
                measure, at, output = key.partition("@")
                command += ["--tolerance", f"{measure}={value!r}{at}{output}"]
            command += ["--tolerance-file", os.fspath(tolerance_file)] if tolerance_file is not None else []
            for name in _metric_names(metrics):
                command += ["--metric", name]
            command += ["--baseline", os.fspath(file)] if file is not None and not self.update else []
            command += ["--layers"] if layers or not report.first_bad else []
            unsaid = samples is not None and not isinstance(samples, (str, os.PathLike))
            raise AssertionError(_failure(report, shlex.join(command) + ("  (with the test's own samples)" if unsaid else "")))
        return report


@pytest.fixture
def assert_drift(request: pytest.FixtureRequest) -> DriftAssertion:
    """Compare a half-precision model with its reference: ``assert_drift(reference, candidate, samples, rel_l2=1e-2)``."""
    return DriftAssertion(request.path.parent, bool(request.config.getoption("halfconv_update")))


def _write_baseline(file: Path, report: DriftReport) -> None:
    from halfconv.drift.baseline import write

    if not file.parent.exists() and file.parent.parent.is_dir():
        file.parent.mkdir(exist_ok=True)
    write(file, report)


def _metric_names(metrics: Any) -> list[str]:
    """Return metrics as the command line takes them."""
    entries: Iterable[Any] = metrics.values() if isinstance(metrics, Mapping) else [metrics] if callable(metrics) else metrics
    if isinstance(entries, str):
        entries = [entries]
    return [e if isinstance(e, str) else f"{e.__module__}:{getattr(e, '__qualname__', type(e).__qualname__)}" for e in entries]


def _failure(report: DriftReport, command: str) -> str:
    """Return what a failed test shows."""
    from halfconv.report.text import evaluated, metric_sentence, sampled, sentences, visible

    names = [visible(output.name) for output in report.outputs if not output.passed]
    names += [f"metric {visible(metric.name)}" for metric in report.metrics if not metric.passed]
    names += ["baseline"] if report.baseline else []
    names += [f"waiver for {visible(waiver.subject)}" for waiver in report.waivers if waiver.expired]
    what = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [
        f"{visible(report.candidate)} drifts too far: {what}",
        f"against {visible(report.reference)}, {evaluated(report)}, {sampled(report)}",
        *_table(report),
    ]
    broken = [f"{visible(o.name)}: {sentence}" for o in report.outputs if not o.passed for sentence in sentences(o)]
    broken += [
        f"metric {metric_sentence(m.name, m.reference, m.candidate, m.drop, m.limit)}" for m in report.metrics if not m.passed
    ]
    broken += [f"baseline: {visible(sentence)}" for sentence in report.baseline]
    broken += [visible(waiver.sentence()) for waiver in report.waivers if waiver.expired]
    lines += broken[:SENTENCES]
    if len(broken) > SENTENCES:
        lines.append(f"… and {len(broken) - SENTENCES} more")
    if report.first_bad:
        lines.append(f"first bad: {visible(report.first_bad)}")
    lines += [f"warning: {visible(warning)}" for warning in report.warnings]
    if report.baseline:
        lines.append("accept the growth: pytest --halfconv-update")
    return "\n".join([*lines, f"reproduce: {visible(command)}"])


def _table(report: DriftReport) -> list[str]:
    """Return the failing outputs as aligned lines."""
    from halfconv.report.text import clip, figure, share, visible

    failed = [output for output in report.outputs if not output.passed]
    if not failed:
        return []
    rows = [("output", "rel_l2", "max_abs", "argmax", "equal", "new NaN", "new Inf", "zeroed")]
    for output in failed[:OUTPUTS]:
        m = output.measures
        name = clip(visible(output.name), NAME_LENGTH)
        agree = (share(m.argmax_agreement), share(m.agreement))
        rows.append((name, figure(m.rel_l2), figure(m.max_abs), *agree, figure(m.new_nan), figure(m.new_inf), share(m.zeroed)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells))
    return lines + ([f"  … and {len(failed) - OUTPUTS} more outputs"] if len(failed) > OUTPUTS else [])
