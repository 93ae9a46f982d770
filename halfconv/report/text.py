"""Words and figures that every form of a validation report shares. Nothing heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from halfconv.drift.gate import HIGHER_IS_BETTER
from halfconv.drift.gate import MEASURES as BOUNDABLE

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport, LayerDrift, OutputDrift

__all__ = [
    "MEASURES",
    "bounds",
    "clip",
    "evaluated",
    "figure",
    "metric_figure",
    "metric_sentence",
    "reach",
    "sampled",
    "sentences",
    "share",
    "verdict",
    "visible",
    "waived",
    "worst_first",
    "worst_layers",
]

#: Measures of an output, in the order in which they are shown.
MEASURES = (*BOUNDABLE, "absmax")

_EVALUATED = {"simulate": "simulated GPU rounding on the CPU", "cpu": "on the CPU provider", "cuda": "on CUDA"}


def visible(text: str) -> str:
    r"""Show what does not print as an escape: a name must neither drive a terminal nor reorder or break a line.

    Args:
        text: Any text, such as a name from a model.

    Returns:
        The text with control, format, surrogate and unassigned characters as ``\x1b``, ``\u202e``, …
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def clip(text: str, limit: int) -> str:
    """Cut a text in the middle, where it is longer than a limit."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def figure(value: float | None) -> str:
    """Format a figure in three digits, a count or a figure in the thousands in full; a hyphen if there is none."""
    if value is None:
        return "-"
    if isinstance(value, int) or 1e3 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share(value: float | None) -> str:
    """Format a share as a percentage that never rounds to all or to none."""
    if value is None or not math.isfinite(value):
        return figure(value)
    percent = f"{value:.2%}"
    if percent == "100.00%" and value < 1:
        return "99.99%"
    return "<0.01%" if percent == "0.00%" and value > 0 else percent


def evaluated(report: DriftReport) -> str:
    """Say how the candidate was evaluated."""
    return _EVALUATED.get(report.on, f"on {visible(report.on)}")


def sampled(report: DriftReport) -> str:
    """Say on how many samples of which kind."""
    noun = "sample" if report.samples == 1 else "samples"
    if report.sample_kind == "given":
        return f"{report.samples:,} {noun}"
    return f"{report.samples:,} {visible(report.sample_kind).upper()} {noun} (seed {report.seed})"


def verdict(report: DriftReport) -> str:
    """Return PASSED or FAILED."""
    return "PASSED" if report.passed else "FAILED"


def bounds(report: DriftReport) -> list[str]:
    """Return every bound that was applied: ``rel_l2 ≤ 0.01``, ``cosine@logits ≥ 0.99``, ``drop of accuracy ≤ 0.02``."""
    found = []
    for key, limit in report.tolerance.items():
        measure = key.partition("@")[0]
        name = visible(key) if measure in MEASURES else f"drop of {visible(key)}"
        found.append(f"{name} {'≥' if measure in HIGHER_IS_BETTER else '≤'} {limit:g}")
    return found


def sentences(output: OutputDrift) -> list[str]:
    """Return what is wrong with an output, in words."""
    found = [visible(failure) for failure in output.failures]
    change = visible(output.shape_change)
    if change and not any(change in sentence for sentence in found):
        found.insert(0, change)
    return found


def waived(report: DriftReport) -> list[str]:
    """Return what is broken and waived for now, and until when."""
    found = [f"{visible(output.name)}: {visible(sentence)}" for output in report.outputs for sentence in output.waived]
    for metric in report.metrics:
        if metric.waived:
            sentence = metric_sentence(metric.name, metric.reference, metric.candidate, metric.drop, metric.limit)
            found.append(f"metric {sentence}, waived for now")
    return found


def metric_figure(name: str, value: float | None) -> str:
    """Format a figure of a metric; accuracy as a percentage, which is rounded to 0 or 100 only if it is that."""
    if value is None or not math.isfinite(value) or name != "accuracy":
        return "-" if value is None else f"{value:.4g}"
    text = f"{100 * value:.1f}"
    return f"{100 * value:.4g} %" if float(text) in (0, 100) and float(text) != 100 * value else f"{text} %"


def metric_sentence(name: str, reference: float, candidate: float, drop: float, limit: float | None) -> str:
    """Return a metric of both models in one sentence."""
    figures = [metric_figure(name, value) for value in (reference, candidate, drop, limit)]
    allowed = "" if limit is None else f" ({figures[3]} allowed)"
    return f"{visible(name)}: reference {figures[0]}, candidate {figures[1]}, drop {figures[2]}{allowed}"


def reach(layer: LayerDrift) -> str:
    """Return the largest magnitudes of a value in reference and candidate, where NaN and infinity are larger than all."""
    theirs = "NaN" if layer.new_nan else "inf" if layer.new_inf else figure(layer.candidate_absmax)
    return f"{figure(layer.reference_absmax)} → {theirs}"


def worst_first(outputs: Iterable[OutputDrift]) -> list[OutputDrift]:
    """Return the outputs that fail before those that pass, each in the model's order."""
    return sorted(outputs, key=lambda output: output.passed)


def worst_layers(layers: Sequence[LayerDrift], limit: int) -> list[LayerDrift]:
    """Return the values that add most error, the most first; NaN counts as infinite."""

    def added(layer: LayerDrift) -> float:
        return 0.0 if layer.added is None else math.inf if math.isnan(layer.added) else layer.added

    return [layer for layer in sorted(layers, key=added, reverse=True)[:limit] if added(layer) > 0]
