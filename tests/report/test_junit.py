"""JUnit XML of a validation: its shape, and that any name fits in."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.drift.report import DriftReport, MetricDrift
from halfconv.report.junit import junit_xml
from halfconv.report.text import visible
from tests.report import EVIL, bad, good

#: Element -> its attributes, and its children in the order that JUnit's schema asks for.
SHAPE = {
    "testsuites": ({"name", "tests", "failures", "errors", "skipped", "time"}, ["testsuite"]),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, ["properties", "testcase", "system-out"]),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"classname", "name", "time"}, ["failure"]),
    "failure": ({"type", "message"}, []),
    "system-out": (set(), []),
}


def suite(report: DriftReport, **options: bool) -> ElementTree.Element:
    text = junit_xml(report, **options)
    root = ElementTree.fromstring(text.encode())
    for element in root.iter():
        attributes, children = SHAPE[element.tag]
        assert set(element.attrib) == attributes
        places = [children.index(child.tag) for child in element]
        assert places == sorted(places)
    (only,) = root
    assert root.attrib == only.attrib
    cases = only.findall("testcase")
    assert int(only.attrib["tests"]) == len(cases)
    assert int(only.attrib["failures"]) == sum(case.find("failure") is not None for case in cases)
    assert (only.attrib["failures"] == "0") == report.passed
    return only


def test_good_report() -> None:
    found = suite(good())
    assert found.attrib == {
        "name": "halfconv validate", "tests": "1", "failures": "0", "errors": "0", "skipped": "0", "time": "1.750",
    }  # fmt: skip
    (case,) = found.findall("testcase")
    assert (case.attrib["classname"], case.attrib["name"], len(case)) == ("m.fp16.onnx", "logits", 0)
    properties = {entry.attrib["name"]: entry.attrib["value"] for entry in found.iter("property")}
    assert properties == {
        "reference": "m.onnx", "candidate": "m.fp16.onnx", "on": "simulate", "evaluated": "simulated GPU rounding on the CPU",
        "to": "fp16", "samples.count": "1000", "samples.kind": "given", "tolerance": "rel_l2 ≤ 0.01, agreement ≥ 0.99",
    }  # fmt: skip
    assert found.find("system-out") is None


def test_bad_report() -> None:
    found = suite(bad())
    cases = {case.attrib["name"]: case for case in found.findall("testcase")}
    assert list(cases) == ["logits", "scores", "iscores", "grid", "metric scores accuracy", "metric loss", "baseline"]
    failure = cases["scores"].find("failure")
    assert failure is not None and failure.text is not None
    assert failure.attrib["message"] == "rel_l2 inf > 0.01; new_nan 12 > 0; zeroed 0.6 > 0.5"
    lines = failure.text.splitlines()
    assert {"rel_l2: inf", "cosine: nan", "new_nan: 12", "new_inf: 3", "mismatched: 1", "dtype: float32"} <= set(lines)
    assert len(cases["metric loss"]) == len(cases["logits"]) == 0
    dropped = cases["metric scores accuracy"].find("failure")
    assert dropped is not None and "drop 0.912 (0.02 allowed)" in dropped.attrib["message"]
    grown = cases["baseline"].find("failure")
    assert grown is not None and grown.attrib["message"].startswith("scores: rel_l2 grew")
    said = found.findtext("system-out") or ""
    assert [line.split(":")[0] for line in said.splitlines()] == ["first bad", "warning", "warning", "not modelled"]
    assert {"name": "samples.seed", "value": "7"} in [entry.attrib for entry in found.iter("property")]


def test_a_baseline_that_held_is_a_case() -> None:
    cases = suite(good(), baseline=True).findall("testcase")
    assert [(case.attrib["name"], len(case)) for case in cases] == [("logits", 0), ("baseline", 0)]


def test_metrics_alone_and_no_output_at_all() -> None:
    assert suite(good(outputs=())).attrib["tests"] == "0"
    cases = suite(good(outputs=(), metrics=(MetricDrift("acc", 0.9, 0.9, 0.0),))).findall("testcase")
    assert [case.attrib["name"] for case in cases] == ["metric acc"]


def test_hostile_names() -> None:
    names = [case.attrib["name"] for case in suite(bad(EVIL)).findall("testcase")]
    assert names[1] == visible(EVIL)


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(codec=None)))
def test_any_name_parses_back(name: str) -> None:
    cases = suite(bad(name)).findall("testcase")
    assert [case.attrib["name"] for case in cases[1:3]] == [visible(name), visible(f"i{name}")]
    assert cases[0].attrib["classname"] == visible(f"{name}.fp16.onnx")
