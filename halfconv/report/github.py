"""A validation as GitHub workflow commands, which Actions shows as annotations of the run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halfconv.report.text import clip, evaluated, metric_sentence, sampled, sentences, verdict, visible, waived

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport

__all__ = ["annotations", "in_github_actions"]

#: GitHub shows ten errors and ten warnings of a step and drops the rest in silence.
SHOWN = 10
TITLE_LENGTH = 120
MESSAGE_LENGTH = 2000


def in_github_actions(environ: Mapping[str, str]) -> bool:
    """Say whether an environment is that of a GitHub Actions step."""
    return environ.get("GITHUB_ACTIONS") == "true"


def annotations(report: "DriftReport") -> list[str]:
    """Return a drift report as workflow commands, one a line, to be printed to stdout.

    Args:
        report: What `halfconv.validate` returned.

    Returns:
        An error for every output, metric and baseline figure that failed, a warning for every warning, and a notice with the
        verdict; at most ten of each kind, the last of which says how many are missing.
    """
    errors = [(f"halfconv: {o.name} drifted", "\n".join(sentences(o))) for o in report.outputs if not o.passed]
    for metric in report.metrics:
        if not metric.passed:
            sentence = metric_sentence(metric.name, metric.reference, metric.candidate, metric.drop, metric.limit)
            errors.append((f"halfconv: metric {metric.name} dropped", sentence))
    if report.baseline:
        errors.append(("halfconv: drift grew against the baseline", "\n".join(map(visible, report.baseline))))
    errors += [("halfconv: a waiver expired", visible(waiver.sentence())) for waiver in report.waivers if waiver.expired]
    warnings = [("halfconv", visible(warning)) for warning in report.warnings]
    warnings += [("halfconv: waived for now", sentence) for sentence in waived(report)]
    summary = f"{verdict(report)}: {visible(report.candidate)}, {evaluated(report)}, {sampled(report)}"
    if report.first_bad:
        summary += f"\nfirst bad: {visible(report.first_bad)}"
    return [
        *_commands("error", errors),
        *_commands("warning", warnings),
        _command("notice", "halfconv validate", summary),
    ]


def _commands(kind: str, entries: list[tuple[str, str]]) -> list[str]:
    shown = entries if len(entries) <= SHOWN else entries[: SHOWN - 1]
    found = [_command(kind, title, message) for title, message in shown]
    if len(entries) > len(shown):
        found.append(_command(kind, "halfconv", f"and {len(entries) - len(shown):,} more, which the step's log lists"))
    return found


def _command(kind: str, title: str, message: str) -> str:
    title = _data(clip(visible(title), TITLE_LENGTH)).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={title}::{_data(clip(message, MESSAGE_LENGTH))}"


def _data(text: str) -> str:
    """Escape what ends a workflow command, or starts an escape in one."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
