"""A baseline: drift figures committed beside the tests, against which later drift is compared.

A tolerance says how much drift is acceptable; a baseline catches drift that is still within it but has grown. The file is
stable JSON in few digits, so that an update shows in review which figure moved.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.drift.gate import HIGHER_IS_BETTER, MEASURES
from halfconv.drift.report import DriftReport
from halfconv.errors import InputError, UsageError

__all__ = ["FACTOR", "Baseline", "grown", "load", "write"]

#: How much a figure may grow.
FACTOR = 1.5
DIGITS = 4
#: Measures a baseline holds; sqnr_db says what rel_l2 says.
FIGURES = tuple(measure for measure in MEASURES if measure != "sqnr_db")
#: Below these a figure is noise, and what it grows from. Measures of which more is better are compared by 1 − x.
FLOORS = {
    "rel_l2": 1e-6, "max_rel": 1e-4, "cosine": 1e-6, "ulp_p99": 1e-2, "argmax_agreement": 1e-3, "agreement": 1e-3, "new_nan": 0.0,
    "new_inf": 0.0, "zeroed": 1e-3, "mismatched": 0.0,
}  # fmt: skip
#: The floor of max_abs, relative to the output's largest magnitude, and of a metric's drop, relative to its value.
RELATIVE_FLOORS = {"max_abs": 1e-6, "drop": 1e-3}

_WRITTEN = "--update-baseline (in pytest --halfconv-update), which writes it anew"
_FORMS: dict[str, tuple[str, ...]] = {"to": ("fp16", "bf16"), "on": ("simulate", "cpu", "cuda"), "kind": ("given", "synthetic")}

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Drift figures of an earlier run.

    Attributes:
        path: The file they were read from.
        to: The candidate's half format.
        on: How it was evaluated.
        kind: ``given`` or ``synthetic`` samples.
        count: Number of samples.
        outputs: Output -> measure -> figure; None where it was infinite, NaN or did not apply.
        metrics: User metric -> ``reference``, ``candidate`` and ``drop``.
    """

    path: Path
    to: str
    on: str
    kind: str
    count: int
    outputs: Mapping[str, Figures]
    metrics: Mapping[str, Figures]


def load(path: str | Path) -> Baseline:
    """Read a baseline.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        InputError: There is no such file, or it is not a baseline that this version reads.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such baseline", _WRITTEN) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", "check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a baseline: {_first_line(error)}", _WRITTEN) from None
    table = _table(content, path, "the file")
    version = table.get("schema_version")
    if type(version) is not int or version != 1:
        raise InputError(f"{path}: a baseline of schema version {version!r}; this halfconv reads version 1", _WRITTEN)
    _check_keys(table, ("schema_version", "to", "on", "samples", "outputs", "metrics"), path, "the file")
    samples = _table(table["samples"], path, "'samples'")
    _check_keys(samples, ("count", "kind"), path, "'samples'")
    words = {"to": table["to"], "on": table["on"], "kind": samples["kind"]}
    for key, word in words.items():
        if word not in _FORMS[key]:
            raise InputError(f"{path}: not a baseline: '{key}' is {_short(word)}, not one of {', '.join(_FORMS[key])}", _WRITTEN)
    if type(samples["count"]) is not int or samples["count"] < 0:
        raise InputError(f"{path}: not a baseline: 'count' is {_short(samples['count'])}, not a number of samples", _WRITTEN)
    found = {
        key: {name: _figures(entry, names, path, f"'{name}'") for name, entry in _table(table[key], path, f"'{key}'").items()}
        for key, names in (("outputs", FIGURES), ("metrics", ("reference", "candidate", "drop")))
    }
    return Baseline(path, words["to"], words["on"], words["kind"], samples["count"], found["outputs"], found["metrics"])


def write(path: str | Path, report: DriftReport) -> None:
    """Write a report's figures as a baseline, by rename.

    Args:
        path: The file; one that is there is replaced.
        report: The report.

    Raises:
        EnvironmentProblem: The folder is missing or cannot be written.
    """
    from halfconv.storage import atomic_text  # onnx comes with it, which who only compares does not need

    outputs = {}
    for output in sorted(report.outputs, key=lambda output: output.name):
        measures = output.measures.to_dict()
        outputs[output.name] = {name: _rounded(measures[name], name in HIGHER_IS_BETTER) for name in FIGURES}
    metrics = {
        metric.name: {key: _rounded(getattr(metric, key)) for key in ("reference", "candidate", "drop")}
        for metric in sorted(report.metrics, key=lambda metric: metric.name)
    }
    content = {
        "schema_version": 1,
        "to": report.to,
        "on": report.on,
        "samples": {"count": report.samples, "kind": report.sample_kind},
        "outputs": outputs,
        "metrics": metrics,
    }
    atomic_text(Path(path), json.dumps(content, indent=2, allow_nan=False) + "\n")


def grown(report: DriftReport, baseline: Baseline, factor: float = FACTOR) -> tuple[str, ...]:
    """Compare a report with a baseline.

    Args:
        report: The report.
        baseline: Figures of an earlier run.
        factor: How much a figure may grow.

    Returns:
        One sentence for every figure that grew by more than the factor, and for outputs and metrics that came or went.

    Raises:
        UsageError: The baseline was made in another way, so that its figures say nothing about these.
    """
    for what, here, there in (
        ("--on", report.on, baseline.on),
        ("format", report.to, baseline.to),
        ("samples", report.sample_kind, baseline.kind),
    ):
        if here != there:
            raise UsageError(f"{baseline.path}: made with {what} {there}, which says nothing of {what} {here}", _WRITTEN)
    found: list[str] = []
    now = {output.name: output for output in report.outputs}
    found += _came_and_went("output", now, baseline.outputs)
    for name, before in baseline.outputs.items():
        if name in now:
            measures = now[name].measures
            floors = {**FLOORS, "max_abs": RELATIVE_FLOORS["max_abs"] * _size(measures.absmax)}
            found += _compare(f"{name}: ", measures.to_dict(), before, floors, factor)
    drops = {metric.name: metric for metric in report.metrics}
    found += _came_and_went("metric", drops, baseline.metrics)
    for name, before in baseline.metrics.items():
        if name in drops:
            floor = RELATIVE_FLOORS["drop"] * _size(drops[name].reference)
            found += _compare(f"metric {name}: ", {"drop": drops[name].drop}, {"drop": before["drop"]}, {"drop": floor}, factor)
    return tuple(found)


def _size(value: float | None) -> float:
    """A magnitude that a floor can be relative to."""
    return 1.0 if value is None or not math.isfinite(value) or not value else abs(value)


def _came_and_went(kind: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    for name in now:
        if name not in before:
            yield f"{kind} '{name}' is new: the baseline does not hold it"
    for name in before:
        if name not in now:
            yield f"{kind} '{name}' is gone: the baseline holds it"


def _compare(label: str, now: Figures, before: Figures, floors: Figures, factor: float) -> Iterator[str]:
    """Yield what grew. A figure that was not finite, or did not apply, has nothing to grow from."""
    for name, old in before.items():
        if old is None:
            continue
        new = now[name]
        if new is None:
            yield f"{label}{name} is no longer measured; it was {_plain(old)}"
            continue
        turned = name in HIGHER_IS_BETTER
        start, end = (1 - old, 1 - new) if turned else (old, new)
        # 1 − cosine goes with the square of the error.
        most = (factor**2 if name == "cosine" else factor) * max(start, floors[name] or 0.0)
        if end <= most:  # which a NaN is not
            continue
        times = f"{'1 − x ' if turned else ''}{end / start:.3g} times, " if start > 0 and math.isfinite(end) else ""
        verb, limit = ("fell", f"at least {_plain(1 - most)}") if turned else ("grew", f"at most {_plain(most)}")
        yield f"{label}{name} {verb} from {_plain(old)} to {_plain(new)} ({times}{limit} allowed)"


def _plain(value: float) -> str:
    """Format a figure; near 1, where shares lie, with more digits."""
    return f"{value:.9g}" if 0.99 <= abs(value) <= 1 else f"{value:.4g}"


def _rounded(value: float | None, turned: bool = False) -> float | None:
    """Round to few digits; a measure of which more is better to few digits of 1 − x."""
    if value is None or not math.isfinite(value):
        return None
    if isinstance(value, int):
        return value
    distance = abs(1 - value) if turned else abs(value)
    return round(value, DIGITS - 1 - math.floor(math.log10(distance))) if distance else float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _first_line(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]


def _table(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a baseline: {where} is {_short(value)}, not an object", _WRITTEN)
    return value


def _check_keys(table: Mapping[str, Any], names: tuple[str, ...], path: Path, where: str) -> None:
    wrong = [f"lacks '{name}'" for name in names if name not in table]
    wrong += [f"holds {_short(key)}, which no baseline does" for key in table if key not in names]
    if wrong:
        raise InputError(f"{path}: not a baseline: {where} {wrong[0]}", _WRITTEN)


def _figures(value: Any, names: tuple[str, ...], path: Path, where: str) -> Figures:
    table = _table(value, path, where)
    _check_keys(table, names, path, where)
    for name, entry in table.items():
        if entry is not None and not (type(entry) in (int, float) and abs(entry) <= sys.float_info.max):
            raise InputError(f"{path}: not a baseline: '{name}' of {where} is {_short(entry)}, not a number or null", _WRITTEN)
    return table
