"""Tolerances: read them from the command line, a mapping or a TOML file, and judge a measured output by them.

A tolerance file holds defaults, tables of single outputs, and the largest drop of each user metric::

    rel_l2 = 1e-2
    [outputs."logits"]
    rel_l2 = 1e-3
    argmax_agreement = 0.99
    [metrics]
    accuracy = 0.005
    [[waivers]]
    output = "logits"
    metric = "rel_l2"
    reason = "the new tokenizer, issue 214"
    expires = 2027-01-31

A bound for one output wins over a default, wherever it stands; between two of the same kind, the command line (or the mapping)
wins over the file, and both over the built-in defaults.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from halfconv.drift.report import Measures, MetricDrift, OutputDrift, WaiverUse
from halfconv.drift.waivers import Waiver, read_waivers
from halfconv.errors import InputError, UsageError

__all__ = ["DEFAULTS", "HARD", "MEASURES", "Gate", "make_gate", "parse_tolerances"]

#: Measures whose bound is a lower one.
HIGHER_IS_BETTER = frozenset({"cosine", "sqnr_db", "argmax_agreement", "agreement"})
#: Measures that can be bounded.
MEASURES = tuple(f.name for f in dataclasses.fields(Measures) if f.name != "absmax")
_COUNTS = {"new_nan": "new NaN", "new_inf": "new Inf", "mismatched": "NaN or Inf of the reference not matched"}
#: Bounds that may be made stricter, but not looser: what breaks them is never a matter of tolerance.
HARD = {"new_nan": 0.0, "new_inf": 0.0, "mismatched": 0.0, "zeroed": 0.5}
_ORDER = (*HARD, *(measure for measure in MEASURES if measure not in HARD))  # of sentences: the gravest first
#: Half format -> bounds that hold where the user gives none.
DEFAULTS = {to: {"rel_l2": limit, "agreement": 0.99, **HARD} for to, limit in (("fp16", 1e-2), ("bf16", 5e-2))}

#: (metric, output or None for all) -> bound.
Bounds = dict[tuple[str, str | None], float]


@dataclass(frozen=True)
class Gate:
    """The bounds that drift must meet.

    Attributes:
        bounds: Bounds of every output, by measure.
        outputs: Output -> bounds of this output alone, by measure.
        metrics: User metric -> largest drop.
        waivers: Bounds that may be broken for now (see `halfconv.drift.waivers`).
        today: The day on which waivers are judged.
    """

    bounds: Mapping[str, float]
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    waivers: tuple[Waiver, ...] = ()
    today: datetime.date = field(default_factory=datetime.date.today)

    def judge(self, drift: OutputDrift) -> OutputDrift:
        """Compare an output's measures with their bounds.

        Args:
            drift: The output's drift.

        Returns:
            The same with one sentence in `failures`, or in `waived`, for every bound that is broken. A measure that does not apply
            breaks none.

        Raises:
            UsageError: The user bounds a measure of this output that does not apply to it.
        """
        own = self.outputs.get(drift.name, {})
        failures, waived = [drift.shape_change] if drift.shape_change else [], []
        for metric in sorted({*self.bounds, *own}, key=_ORDER.index):
            bound = own[metric] if metric in own else self.bounds[metric]
            value = getattr(drift.measures, metric)
            if value is None:
                if metric in own:
                    _check_applies(metric, drift)
            elif metric in _COUNTS:
                if value > bound:
                    failures.append(f"{value:,} {_COUNTS[metric]}")
            elif not _within(metric, value, bound):
                active = self._covering(drift.name, metric)
                if active is None:
                    failures.append(_sentence(metric, value, bound))
                elif active.up_to is not None and not _within(metric, value, active.up_to):
                    failures.append(f"{_sentence(metric, value, active.up_to)}, which is more than its waiver allows")
                else:
                    waived.append(f"{_sentence(metric, value, bound)}, waived until {active.expires} ({active.reason})")
        return dataclasses.replace(drift, failures=tuple(failures), waived=tuple(waived))

    def judge_metrics(self, metrics: Sequence[MetricDrift]) -> tuple[MetricDrift, ...]:
        """Waive the drops of user metrics that may be too large for now."""

        def waived(metric: MetricDrift) -> bool:
            active = None if metric.passed else self._covering(None, metric.name)
            most = math.inf if active is None or active.up_to is None else active.up_to
            return active is not None and metric.drop <= most  # which a NaN is not

        return tuple(dataclasses.replace(metric, waived=waived(metric)) for metric in metrics)

    def waiver_uses(self, outputs: Sequence[OutputDrift], metrics: Sequence[MetricDrift]) -> tuple[WaiverUse, ...]:
        """Say of every waiver whether it has expired, and whether it waives anything.

        Args:
            outputs: What `judge` returned.
            metrics: What `judge_metrics` returned.
        """
        broken: list[tuple[str | None, str]] = [(output.name, metric) for output in outputs for metric in self._broken(output)]
        broken += [(None, metric.name) for metric in metrics if metric.limit is not None and not metric.drop <= metric.limit]
        used = {id(self._covering(output, metric)) for output, metric in broken}
        return tuple(waiver.used(self.today, id(waiver) in used) for waiver in self.waivers)

    def _broken(self, drift: OutputDrift) -> list[str]:
        """The measures of an output that are beyond their bounds."""
        values = {metric: getattr(drift.measures, metric) for metric in self.bounds_of(drift.name)}
        bounds = self.bounds_of(drift.name)
        return [metric for metric, value in values.items() if value is not None and not _within(metric, value, bounds[metric])]

    def _covering(self, output: str | None, metric: str) -> Waiver | None:
        """The first waiver in force for a measure that may be waived."""
        if metric in HARD:
            return None
        return next((waiver for waiver in self.waivers if waiver.covers(output, metric, self.today)), None)

    def bounds_of(self, output: str) -> dict[str, float]:
        """All bounds of one output, by measure."""
        return {**self.bounds, **self.outputs.get(output, {})}

    def limit_of(self, metric: str) -> float | None:
        """The largest drop that a user metric may have; None if it is only reported."""
        return self.metrics.get(metric)

    def resolved(self) -> dict[str, float]:
        """All bounds that are applied, as ``METRIC``, ``METRIC@OUTPUT`` or the name of a user metric."""
        own = {f"{metric}@{output}": bound for output, bounds in self.outputs.items() for metric, bound in bounds.items()}
        return {**self.bounds, **own, **self.metrics}


def make_gate(
    to: str,
    outputs: Sequence[str],
    tolerance: Mapping[str, float] | Iterable[str] | None = None,
    file: str | Path | None = None,
    metrics: Sequence[str] = (),
    *,
    defaults: Mapping[str, float] | None = None,
    today: datetime.date | None = None,
) -> Gate:
    """Build the gate of a model.

    Args:
        to: The half format whose defaults hold: ``fp16`` or ``bf16``.
        outputs: Names of the model's outputs.
        tolerance: Texts ``METRIC=VALUE`` or ``METRIC=VALUE@OUTPUT``, or a mapping of ``METRIC`` or ``METRIC@OUTPUT`` to a number.
        file: A tolerance file (see the module).
        metrics: Names of the user's metrics, whose bound is the largest drop.
        defaults: Bounds that hold where the user gives none; None for those of the format.
        today: The day on which waivers are judged; None for this one.

    Raises:
        UsageError: A bound names no measure, metric or output that there is, is no usable number, or is looser than a bound that
            always holds.
        InputError: The file cannot be read.
    """
    if to not in DEFAULTS:
        raise UsageError(f"'{to}' is no half format", "fp16 or bf16")
    if taken := sorted(set(metrics) & {*MEASURES, "absmax", "outputs", "metrics"}):
        raise UsageError(f"the metric '{taken[0]}' has a name that halfconv uses itself", "rename the function")
    content = _read_file(Path(file)) if file is not None else {}
    waivers = read_waivers(content.pop("waivers", []), str(file), outputs, MEASURES, metrics, HARD)
    found = _file_bounds(content, Path(file), outputs, metrics) if file is not None else {}
    found |= parse_tolerances(tolerance, outputs, metrics)
    bounds, drops = dict(DEFAULTS[to] if defaults is None else defaults), {}
    single: dict[str, dict[str, float]] = {}
    for (metric, output), bound in found.items():
        if metric in metrics:
            drops[metric] = bound
        elif output is None:
            bounds[metric] = bound
        else:
            single.setdefault(output, {})[metric] = bound
    return Gate(bounds, single, drops, waivers, today or datetime.date.today())


def parse_tolerances(
    tolerance: Mapping[str, float] | Iterable[str] | None, outputs: Sequence[str], metrics: Sequence[str] = ()
) -> Bounds:
    """Read bounds from texts or from a mapping, and check them.

    Args:
        tolerance: As in `make_gate`. A text may also be ``METRIC@OUTPUT=VALUE``. Output names may hold ``@``, ``=`` and slashes.
        outputs: Names of the model's outputs.
        metrics: Names of the user's metrics.

    Returns:
        (metric, output or None) -> bound.

    Raises:
        UsageError: As in `make_gate`.
    """
    found: Bounds = {}
    if isinstance(tolerance, str):
        tolerance = [tolerance]
    if isinstance(tolerance, Mapping):
        for key, value in tolerance.items():
            metric, at, output = str(key).partition("@")
            found |= _checked(metric.strip(), output if at else None, value, f"tolerance '{key}'", outputs, metrics)
        return found
    for text in tolerance or ():
        label = f"tolerance '{text}'"
        metric, equals, rest = text.partition("=")
        if "@" in metric and equals:  # METRIC@OUTPUT=VALUE; the value, a number, follows the last '='
            metric, _, rest = text.partition("@")
            output, _, number = rest.rpartition("=")
            found |= _checked(metric.strip(), output, number, label, outputs, metrics)
            continue
        if not equals:
            raise UsageError(f"{label} has no value", "METRIC=VALUE or METRIC=VALUE@OUTPUT, as in rel_l2=1e-2@logits")
        number, at, output = rest.partition("@")
        found |= _checked(metric.strip(), output if at else None, number, label, outputs, metrics)
    return found


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}", "check the path of --tolerance-file") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not UTF-8 text", "a TOML file with lines such as rel_l2 = 1e-2") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a list nested 5,000 times
        raise InputError(f"{file}: is no TOML: {error}", "lines such as rel_l2 = 1e-2") from None


def _file_bounds(content: Mapping[str, Any], file: Path, outputs: Sequence[str], metrics: Sequence[str]) -> Bounds:
    found: Bounds = {}
    for key, value in content.items():
        if key == "outputs":
            for output, table in _table(value, f"{file}: outputs").items():
                for metric, bound in _table(table, f"{file}: outputs.'{output}'").items():
                    label = f"{file}: [outputs.'{output}'] {metric}"
                    found |= _checked(metric, output, bound, label, outputs, metrics, drops=False)
        elif key == "metrics":
            for metric, bound in _table(value, f"{file}: metrics").items():
                label = f"{file}: [metrics] {metric}"
                if metric not in metrics:
                    raise UsageError(f"{label}: {_known(metric, metrics, 'metric')}", "--metric MODULE:FUNCTION")
                found |= _checked(metric, None, bound, label, outputs, metrics)
        else:
            found |= _checked(key, None, value, f"{file}: {key}", outputs, metrics, drops=False)
    return found


def _table(value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{label} is no table", '[outputs."NAME"] with lines METRIC = VALUE, or [metrics] with NAME = MAX_DROP')
    return value


def _checked(
    metric: str,
    output: str | None,
    value: Any,
    label: str,
    outputs: Sequence[str],
    metrics: Sequence[str],
    *,
    drops: bool = True,
) -> Bounds:
    """Check one bound, and return it by its key."""
    names = [*MEASURES, *(metrics if drops else ())]
    if metric not in names:
        raise UsageError(f"{label}: {_known(metric, names, 'measure')}", _near(metric, names))
    if output is not None and output not in outputs:
        raise UsageError(f"{label}: {_known(output, outputs, 'output')}", _near(output, outputs))
    bound = _number(value, label)
    if metric in metrics:
        if output is not None:
            raise UsageError(f"{label}: '{metric}' is a metric of all outputs", f"{metric}=MAX_DROP")
    elif metric in HARD and bound > HARD[metric]:
        raise UsageError(f"{label}: looser than {HARD[metric]:g}, which always holds", "keep more of the model in FP32")
    elif metric in HIGHER_IS_BETTER - {"sqnr_db"} and bound > 1:
        raise UsageError(f"{label}: nothing can reach it, since {metric} is at most 1", f"{metric}=0.99")
    return {(metric, output): bound}


def _number(value: Any, label: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (str, Real)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):  # a whole number of 400 digits
        raise UsageError(f"{label}: {value!r} is no number", "rel_l2=1e-2") from None
    if math.isnan(number) or number < 0:
        raise UsageError(f"{label}: {value} is no bound; it must be 0 or more", "rel_l2=1e-2")
    return number


def _known(name: str, names: Iterable[str], what: str) -> str:
    listed = ", ".join(names)
    return f"there is no {what} '{name}'" + (f" among {listed}" if listed and len(listed) <= 300 else "")


def _near(name: str, names: Iterable[str]) -> str:
    lowered = {known.lower(): known for known in names}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), 3, 0.5)]
    return " or ".join(f"'{match}'" for match in close) or "halfconv inspect lists the outputs, --help the measures"


def _check_applies(metric: str, drift: OutputDrift) -> None:
    """Refuse a bound of the user's that can never say anything of this output."""
    if not drift.elements:
        return
    floating = drift.dtype.startswith(("float", "bfloat", "complex"))
    if floating == (metric != "agreement") and not (metric == "argmax_agreement" and drift.measures.absmax is not None):
        return  # it would apply if there were a number to measure
    why = "its last axis has fewer than two elements, or each row a NaN" if floating and metric != "agreement" else drift.dtype
    raise UsageError(f"tolerance '{metric}@{drift.name}' does not apply to that output ({why})", "another measure for it")


def _within(metric: str, value: float, bound: float) -> bool:
    return value >= bound if metric in HIGHER_IS_BETTER else value <= bound


def _sentence(metric: str, value: float, bound: float) -> str:
    sign = "<" if metric in HIGHER_IS_BETTER else ">"
    scale, unit = (100, " %") if metric == "zeroed" else (1, "")
    for digits in range(3, 18):
        left, right = f"{value * scale:.{digits}g}", f"{bound * scale:.{max(digits, 6)}g}"
        if left != right:
            break
    return f"{metric} {left}{unit} {sign} {right}{unit}"
