"""A validation as JUnit XML: one case for every output, metric and baseline, for any CI system that reads JUnit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from halfconv.report.text import MEASURES, bounds, evaluated, figure, metric_sentence, sentences, visible, waived

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport, OutputDrift

__all__ = ["junit_xml"]

SUITE = "halfconv validate"


def junit_xml(report: DriftReport, *, baseline: bool = False) -> str:
    r"""Return a drift report as JUnit XML.

    Characters that XML cannot hold, and others that do not print, are written as escapes such as ``\x1b``.

    Args:
        report: What `halfconv.validate` returned.
        baseline: Whether a baseline was compared; what grew against one makes a case in any event.

    Returns:
        The XML, with its declaration; encode it as UTF-8.
    """
    name = visible(report.candidate)
    cases = [_case(name, visible(output.name), sentences(output), _figures(output)) for output in report.outputs]
    for metric in report.metrics:
        sentence = metric_sentence(metric.name, metric.reference, metric.candidate, metric.drop, metric.limit)
        cases.append(_case(name, f"metric {visible(metric.name)}", () if metric.passed else (sentence,), (sentence,)))
    if report.baseline or baseline:
        cases.append(_case(name, "baseline", [visible(sentence) for sentence in report.baseline], ()))
    for waiver in report.waivers:
        sentence = visible(waiver.sentence())
        cases.append(_case(name, f"waiver for {visible(waiver.subject)}", (sentence,) if waiver.expired else (), ()))
    failed = sum(case.find("failure") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0", "skipped": "0"}
    counts["time"] = f"{sum((report.seconds or {}).values()):.3f}"

    root = ElementTree.Element("testsuites", {"name": SUITE, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(report).items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": visible(value)})
    suite.extend(cases)
    notes = [f"warning: {visible(warning)}" for warning in report.warnings]
    notes += [f"not modelled: {visible(sentence)}" for sentence in report.unmodelled]
    notes += [f"waived: {sentence}" for sentence in waived(report)]
    if report.first_bad:
        notes.insert(0, f"first bad: {visible(report.first_bad)}")
    if notes:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(notes)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(report: DriftReport) -> dict[str, str]:
    found = {
        "reference": report.reference,
        "candidate": report.candidate,
        "on": report.on,
        "evaluated": evaluated(report),
        "to": report.to,
        "samples.count": str(report.samples),
        "samples.kind": report.sample_kind,
        "tolerance": ", ".join(bounds(report)),
    }
    return found | ({} if report.sample_kind == "given" else {"samples.seed": str(report.seed)})


def _figures(output: OutputDrift) -> list[str]:
    """All figures of an output, one a line."""
    found = [f"dtype: {visible(output.dtype)}", f"elements: {output.elements:,}"]
    measures = output.measures.to_dict()
    return found + [f"{name}: {figure(measures[name])}" for name in MEASURES if measures[name] is not None]


def _case(classname: str, name: str, failures: Iterable[str], figures: Iterable[str]) -> ElementTree.Element:
    """One case; its failure says what broke in the message, and all figures in the body."""
    case = ElementTree.Element("testcase", {"classname": classname, "name": name, "time": "0"})
    failures = list(failures)
    if failures:
        failure = ElementTree.SubElement(case, "failure", {"type": "drift", "message": "; ".join(failures)})
        failure.text = "\n".join(dict.fromkeys((*failures, *figures)))
    return case
