"""A validation as GitHub-flavoured Markdown that fits a step summary, which GitHub drops whole beyond 1 MiB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from halfconv.report.text import (
    bounds,
    clip,
    evaluated,
    figure,
    metric_figure,
    metric_sentence,
    reach,
    sampled,
    sentences,
    share,
    verdict,
    visible,
    waived,
    worst_first,
    worst_layers,
)

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport, LayerDrift

__all__ = ["markdown"]

#: Rows of one table, or sentences of one list, before a line that says how many more there are.
ROWS = 200
LAYERS = 100
#: Bytes that one table or list may take; there are at most ten of them.
SECTION_BYTES = 95_000
NAME_LENGTH = 160
SENTENCE_LENGTH = 600

_ENTITIES = {"|": "&#124;", "<": "&lt;", ">": "&gt;", "&": "&amp;", "`": "&#96;", '"': "&quot;", "$": "&#36;", "@": "&#64;"}
#: What Markdown or GitHub gives a meaning to; an underscore inside a word has no meaning.
_SPECIAL = re.compile(r'[|<>&`"$@]|[\\*\[\]~#!]|:(?=/)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.')


def markdown(report: DriftReport) -> str:
    """Return a drift report as Markdown, always below 1 MiB.

    Args:
        report: What `halfconv.validate` returned.

    Returns:
        The text: verdict, outputs, failures, the first bad value, and details to unfold.
    """
    mark = "✅" if report.passed else "❌"
    parts = [f"### {mark} halfconv validate: {verdict(report)}"]
    parts.append(f"{_code(report.candidate)} against {_code(report.reference)}: **{evaluated(report)}**, {_sampled(report)}")
    broken = [f"- {_code(o.name)}: {_prose(sentence)}" for o in report.outputs if not o.passed for sentence in sentences(o)]
    broken += [
        f"- Metric {_prose(metric_sentence(m.name, m.reference, m.candidate, m.drop, m.limit))}"
        for m in report.metrics
        if not m.passed
    ]
    broken += [f"- Baseline: {_prose(sentence)}" for sentence in report.baseline]
    broken += [f"- Expired: {_prose(waiver.sentence())}" for waiver in report.waivers if waiver.expired]
    parts += _outputs(report)
    parts += _section("**What failed**", broken)
    parts += _section("**Waived for now**", [f"- {_prose(sentence)}" for sentence in waived(report)])
    if report.first_bad:
        parts.append(f"**First bad value:** {_prose(report.first_bad)}")
    parts += _metrics(report)
    parts += _section("", [f"- ⚠️ {_prose(warning)}" for warning in report.warnings])
    if report.layers is not None:
        parts += _layers(report.layers)
    parts += _details("Not modelled", _section("", [f"- Kernel: {_prose(sentence)}" for sentence in report.unmodelled]))
    parts += _details("Tolerance", _section("", [f"- {_code(bound)}" for bound in bounds(report)]))
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Write printable text so that no character of it means anything to Markdown, HTML or a table."""
    return _SPECIAL.sub(lambda match: _ENTITIES.get(match[0]) or "\\" + match[0], text)


def _code(name: str) -> str:
    """Write a name in the font of code; not in backticks, which a table and the name itself could break."""
    return f"<code>{_escape(clip(visible(name), NAME_LENGTH))}</code>"


def _prose(sentence: str) -> str:
    return _escape(clip(" ".join(visible(sentence).split()), SENTENCE_LENGTH))


def _sampled(report: DriftReport) -> str:
    text = sampled(report)
    return text if report.sample_kind == "given" else f"**{_escape(clip(text, NAME_LENGTH))}**"


def _fit(lines: Sequence[str], limit: int) -> list[str]:
    """Return the first lines that keep both limits of a section."""
    size = 0
    for number, line in enumerate(lines[:limit]):
        size += len(line.encode()) + 1
        if size > SECTION_BYTES:
            return list(lines[:number])
    return list(lines[:limit])


def _section(title: str, lines: Sequence[str], head: Sequence[str] = (), limit: int = ROWS) -> list[str]:
    """Return the blocks of a list, or of a table with a head; none if there is no line."""
    if not lines:
        return []
    shown = _fit(lines, limit)
    blocks = [title] if title else []
    blocks.append("\n".join((*head, *shown)))
    if len(shown) < len(lines):
        blocks.append(f"… and {len(lines) - len(shown):,} more, cut here; `halfconv validate --json` lists them all.")
    return blocks


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int, limit: int = ROWS) -> list[str]:
    """Return the blocks of a table whose first columns hold text and whose others hold figures."""
    head = ["| " + " | ".join(columns) + " |", "|" + "".join(" --- |" if i < texts else " ---: |" for i in range(len(columns)))]
    return _section(title, ["| " + " | ".join(row) + " |" for row in rows], head, limit)


def _outputs(report: DriftReport) -> list[str]:
    columns = ("output", "rel_l2", "max_abs", "argmax", "equal", "new NaN", "new Inf", "zeroed", "verdict")
    rows = []
    for output in worst_first(report.outputs):
        m = output.measures
        agree = (share(m.argmax_agreement), share(m.agreement))
        figures = (figure(m.rel_l2), figure(m.max_abs), *agree, figure(m.new_nan), figure(m.new_inf), share(m.zeroed))
        rows.append((_code(output.name), *map(_escape, figures), "passed" if output.passed else "**FAILED**"))
    return _table("", columns, rows, 1)


def _metrics(report: DriftReport) -> list[str]:
    rows = []
    for metric in report.metrics:
        figures = [metric_figure(metric.name, v) for v in (metric.reference, metric.candidate, metric.drop, metric.limit)]
        word = "reported" if metric.limit is None else "passed" if metric.passed else "**FAILED**"
        rows.append((_code(metric.name), *figures, word))
    return _table("", ("metric", "reference", "candidate", "drop", "allowed", "verdict"), rows, 1)


def _layers(layers: tuple[LayerDrift, ...]) -> list[str]:
    """The values inside, folded away: those that went bad, first to last, then those that add most error."""
    bad = [
        f"- {_code(layer.value)} ({_code(layer.op)}{' in ' + _code(layer.scope) if layer.scope else ''}): {_prose(layer.verdict)}"
        for layer in layers
        if layer.verdict
    ]
    rows = [
        (
            *map(_code, (layer.value, layer.op, layer.dtype)),
            _code(layer.scope) if layer.scope else "",
            figure(layer.rel_l2),
            figure(layer.added),
            reach(layer),
        )
        for layer in worst_layers(layers, LAYERS)
    ]
    columns = ("value", "op", "dtype", "scope", "rel_l2", "added", "largest r → c")
    inside = _section("**Values that went bad, the first one first**", bad, limit=LAYERS)
    inside += _table("**Values that add most error**", columns, rows, 4)
    return _details(f"Values inside the model ({len(layers):,})", inside)


def _details(title: str, inside: list[str]) -> list[str]:
    """Fold blocks away under a title."""
    return [f"<details><summary>{title}</summary>", *inside, "</details>"] if inside else []
