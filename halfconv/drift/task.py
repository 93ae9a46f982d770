"""Metrics of the task itself: user functions of outputs and labels, and accuracy.

A metric is a function ``f(outputs: dict, extras: dict) -> float``: outputs of one sample by name, and the sample's arrays that no
input claims. It is called for the reference and for the candidate on every sample; the mean over the samples is reported. Accuracy
is the share of all rows of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfconv.drift.report import MetricDrift
from halfconv.errors import InputError, UsageError
from halfconv.imports import import_function, names_function

__all__ = ["Metric", "MetricMeans", "accuracy", "find_metrics", "labels_of"]

Metric = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
#: Names under which samples hold the right classes.
LABELS = ("label", "labels", "target", "targets", "y", "y_true")


def labels_of(extras: Mapping[str, Any]) -> Any:
    """Return the right classes that a sample holds beside its inputs, or None."""
    return next((extras[name] for name in LABELS if name in extras), None)


def accuracy(outputs: Mapping[str, Any], extras: Mapping[str, Any]) -> float:
    """Share of rows whose largest score is that of the right class.

    Args:
        outputs: One floating-point output of scores [rows, classes]; others are ignored.
        extras: The right classes [rows], as ``labels`` (or another of `LABELS`).

    Returns:
        A number from 0 to 1. A row with a score that is NaN or infinite is wrong.

    Raises:
        InputError: There are no labels, or no output has as many rows.
    """
    labels = labels_of(extras)
    if labels is None:
        raise InputError("accuracy: the samples hold no labels", f"an array named {LABELS[1]} beside the inputs")
    right = np.asarray(labels).reshape(-1)
    for value in outputs.values():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 2 and len(value) == len(right):
            known = np.isfinite(value).all(axis=1)
            return float((known & (value.argmax(axis=1) == right)).mean()) if len(right) else math.nan
    raise InputError(f"accuracy: no output has {len(right)} rows of scores", "a metric of your own: --metric MODULE:FUNCTION")


def find_metrics(given: Sequence[str | Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Resolve metrics.

    Args:
        given: ``package.module:function``, ``accuracy``, or functions; or functions by name.

    Returns:
        Name -> function.

    Raises:
        UsageError: A function cannot be found, or two have one name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, Metric] = {}
    for entry in given:
        if isinstance(entry, str):
            name, function = ("accuracy", accuracy) if entry == "accuracy" else _imported(entry)
        else:
            name, function = _named(entry)
        if name in found:
            raise UsageError(f"two metrics are called '{name}'", "functions of different names")
        found[name] = function
    return found


def _named(function: Metric) -> tuple[str, Metric]:
    return getattr(function, "__name__", "metric"), function


def _imported(text: str) -> tuple[str, Metric]:
    if not names_function(text):
        raise UsageError(f"--metric {text}: is neither 'accuracy' nor MODULE:FUNCTION", "--metric package.module:function")
    return text.rpartition(":")[2].rpartition(".")[2], import_function(text, f"--metric {text}")


class MetricMeans:
    """Means of metrics over samples, for reference and candidate.

    Args:
        metrics: Name -> function.
        asked: Whether somebody asked for them; if not, they are given up where they do not fit.
    """

    def __init__(self, metrics: Mapping[str, Metric], asked: bool = True):
        self._metrics, self._asked = dict(metrics), asked
        self._sums = {name: [0.0, 0.0] for name in metrics}
        self._weights = dict.fromkeys(metrics, 0)

    def update(self, outputs: Sequence[Mapping[str, Any]], extras: Mapping[str, Any], sample: str) -> None:
        """Add one sample.

        Args:
            outputs: The reference's outputs and the candidate's.
            extras: What the sample holds beside its inputs.
            sample: What messages call it.

        Raises:
            InputError: A metric fails or returns no number.
        """
        for name, metric in self._metrics.items():
            weight = np.size(labels_of(extras)) if metric is accuracy else 1
            if not weight:  # a batch without rows
                continue
            try:
                for index, values in enumerate(outputs):
                    self._sums[name][index] += weight * float(metric(values, extras))
            except InputError as error:
                if self._asked:
                    raise InputError(f"{sample}: {error}".partition("; try:")[0], str(error).partition("; try: ")[2]) from None
                self._metrics.clear()
                return
            except Exception as error:
                words = f"{type(error).__name__}: {error}"
                raise InputError(f"metric {name} fails on {sample}: {words}", "f(outputs, extras) -> float") from error
            self._weights[name] += weight

    def result(self, limit_of: Callable[[str], float | None]) -> tuple[MetricDrift, ...]:
        """Return the means.

        Args:
            limit_of: Metric -> the largest drop allowed, or None.
        """
        found = []
        for name in self._metrics:
            reference, candidate = self._sums[name]
            weight = self._weights[name] or math.nan
            found.append(MetricDrift(name, reference / weight, candidate / weight, limit_of(name)))
        return tuple(found)
