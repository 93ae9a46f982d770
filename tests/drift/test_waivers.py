"""Waivers: a bound may be broken until a day, with a reason; then the gate fails."""

from __future__ import annotations

import datetime
import html
import json
import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import halfconv
from halfconv.drift.gate import Gate, make_gate
from halfconv.drift.report import Measures, MetricDrift, OutputDrift
from halfconv.drift.waivers import SOON, expired_in, notes
from halfconv.errors import UsageError
from halfconv.pytest_plugin import _failure
from halfconv.report.github import annotations
from halfconv.report.html.origin import Origin
from halfconv.report.html.page import render
from halfconv.report.html.validate import validate_view
from halfconv.report.junit import junit_xml
from halfconv.report.markdown import markdown
from halfconv.sweep.fleet import read_fleet
from halfconv.sweep.job import make_jobs
from halfconv.sweep.outcome import drift_of
from tests.commands import Run, run_here
from tests.report import good

TODAY = datetime.date(2026, 11, 28)
DRIFTED = OutputDrift("logits", "float32", 10, Measures(rel_l2=0.03, max_abs=0.1, cosine=0.999, zeroed=0.0, absmax=4.0))
WAIVER = '[[waivers]]\noutput = "logits"\nmetric = "rel_l2"\nreason = "issue 214"\nexpires = {}\n'


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., Gate]:
    def make(text: str, today: datetime.date = TODAY, metrics: tuple[str, ...] = ("accuracy",)) -> Gate:
        (tmp_path / "gate.toml").write_text(text, "utf-8")
        return make_gate("fp16", ["logits", "state"], None, tmp_path / "gate.toml", metrics, today=today)

    return make


@pytest.mark.parametrize(("expires", "passed"), [("2026-11-27", False), ("2026-11-28", True), ("2027-01-31", True)])
def test_a_waiver_counts_to_the_end_of_its_last_day(gate: Callable[..., Gate], expires: str, passed: bool) -> None:
    made = gate(WAIVER.format(expires))
    found = made.judge(DRIFTED)
    assert found.passed is passed
    (sentence,) = found.waived if passed else found.failures
    assert sentence.startswith("rel_l2 0.03 > 0.01")
    if passed:
        assert sentence.endswith(f"waived until {expires} (issue 214)")
    (use,) = made.waiver_uses([found], [])
    assert use.expired is not passed


def test_it_waives_what_it_names_and_nothing_else(gate: Callable[..., Gate]) -> None:
    made = gate("max_abs = 0.01\n" + WAIVER.format("2027-01-31"))
    assert [s.split()[0] for s in made.judge(DRIFTED).failures] == ["max_abs"]
    assert made.judge(replace(DRIFTED, name="state")).waived == ()
    whole = gate("max_abs = 0.01\n" + WAIVER.format("2027-01-31").replace('metric = "rel_l2"\n', ""))
    assert whole.judge(DRIFTED).passed and len(whole.judge(DRIFTED).waived) == 2
    everywhere = gate(WAIVER.format("2027-01-31").replace('output = "logits"\n', ""))
    assert everywhere.judge(replace(DRIFTED, name="state")).passed


@pytest.mark.parametrize("measures", [{"new_nan": 1}, {"new_inf": 2}, {"zeroed": 0.9}, {"mismatched": 1}])
def test_what_always_holds_is_never_waived(gate: Callable[..., Gate], measures: dict[str, float]) -> None:
    made = gate(WAIVER.format("2027-01-31").replace('metric = "rel_l2"\n', ""))
    assert not made.judge(replace(DRIFTED, measures=replace(DRIFTED.measures, **measures))).passed
    assert not made.judge(replace(DRIFTED, shape_change="[2] became [3]")).passed


def test_a_bound_that_holds_meanwhile(gate: Callable[..., Gate]) -> None:
    made = gate(WAIVER.format("2027-01-31") + "up_to = 0.02\n")
    found = made.judge(DRIFTED)
    assert found.failures == ("rel_l2 0.03 > 0.02, which is more than its waiver allows",)
    assert made.waiver_uses([found], [])[0].used
    assert gate(WAIVER.format("2027-01-31") + "up_to = 0.05\n").judge(DRIFTED).passed


def test_a_user_metric_is_waived(gate: Callable[..., Gate]) -> None:
    text = '[metrics]\naccuracy = 0.01\n[[waivers]]\nmetric = "accuracy"\nreason = "r"\nexpires = 2027-01-31\nup_to = 0.1\n'
    made = gate(text)
    drops = [MetricDrift("accuracy", 0.9, candidate, 0.01) for candidate in (0.9, 0.85, 0.7, float("nan"))]
    assert [metric.passed for metric in made.judge_metrics(drops)] == [True, True, False, False]
    assert [metric.waived for metric in made.judge_metrics(drops)] == [False, True, False, False]
    assert made.waiver_uses([], made.judge_metrics(drops[1:2]))[0].used
    unbounded = gate(text.replace("up_to = 0.1\n", ""))
    assert [metric.passed for metric in unbounded.judge_metrics(drops)] == [True, True, True, False]  # NaN cannot be waived


def test_who_waives_is_told_before_the_end_and_when_it_is_not_needed(gate: Callable[..., Gate]) -> None:
    def said(days: int, rel_l2: float = 0.03) -> list[str]:
        made = gate(WAIVER.format(TODAY + datetime.timedelta(days)))
        found = made.judge(replace(DRIFTED, measures=replace(DRIFTED.measures, rel_l2=rel_l2)))
        return notes(made.waiver_uses([found], []))

    assert said(SOON + 1) == said(-1) == []
    assert [words[0].split("ends ")[1].split(",")[0] for words in map(said, (SOON, 1, 0))] == ["in 14 days", "tomorrow", "today"]
    assert said(SOON + 1, 0.001) == ["the waiver for rel_l2 of 'logits' waives nothing: no bound of it is broken; remove it"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("expires = {}\n", "has no date, and a waiver without one would last for ever; try: expires = 2027-01-31"),
        ("reason = \"issue 214\"\n", "has no reason"),
    ],
)  # fmt: skip
def test_a_date_and_a_reason_are_needed(gate: Callable[..., Gate], change: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"gate.toml: waiver 1: {message}")):
        gate(WAIVER.replace(change, "").format("2027-01-31"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WAIVER.format('"2027-01-31"'), "expires is '2027-01-31', not a day; try: expires = 2027-01-31, without quotes"),
        (WAIVER.format("2027-01-31T00:00:00"), "not a day"),
        (WAIVER.format("2027-01-31").replace("logits", "logit"), "there is no output 'logit'; try: 'logits'"),
        (WAIVER.format("2027-01-31").replace("rel_l2", "rel"), "there is no metric 'rel'"),
        (WAIVER.format("2027-01-31").replace("rel_l2", "new_nan"), "new_nan always holds, and cannot be waived"),
        (WAIVER.format("2027-01-31").replace("rel_l2", "accuracy"), "'accuracy' is a metric of all outputs"),
        (WAIVER.format("2027-01-31") + 'until = "x"', "there is no key 'until'"),
        (WAIVER.format("2027-01-31") + 'up_to = "x"', "up_to is 'x'"),
        (WAIVER.format("2027-01-31").replace('metric = "rel_l2"', "up_to = 1"), "up_to is 1, and must be a number"),
        ("rel_l2 = 1" + "0" * 400, "is no number"),
        ('[[waivers]]\nreason = "r"\nexpires = 2027-01-31\n', "names neither an output nor a metric"),
        ("[waivers]\nexpires = 2027-01-31\n", "waivers is no list of tables"),
    ],
)  # fmt: skip
def test_a_wrong_waiver_is_refused(gate: Callable[..., Gate], text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        gate(text)
    assert "\n" not in str(caught.value) and "try: " in str(caught.value)


# On the command line, and in every form of a report


@pytest.fixture
def models(tmp_path: Path) -> Path:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 4] x) => (float[n, 4] logits) { h = Mul(x, x) logits = Tanh(h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    halfconv.convert(tmp_path / "m.onnx", tmp_path / "half.onnx", check=False)
    np.savez(tmp_path / "x.npz", x=np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4))
    return tmp_path


def gated(capfd: pytest.CaptureFixture[str], models: Path, expires: object, *more: object) -> Run:
    (models / "gate.toml").write_text("rel_l2 = 1e-9\n" + WAIVER.format(expires), "utf-8")
    files = (models / "m.onnx", models / "half.onnx", "--samples", models / "x.npz", "--tolerance-file", models / "gate.toml")
    return run_here(capfd, "validate", *files, *more)


def test_a_gate_with_a_waiver_passes_and_says_so(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = gated(capfd, models, "2999-12-31", "--json")
    content = json.loads(run.out)
    assert run.code == 0 and content["passed"]
    assert content["waivers"][0]["used"] and not content["waivers"][0]["expired"]
    assert content["outputs"][0]["failures"] == [] and "waived until 2999-12-31" in content["outputs"][0]["waived"][0]
    assert "waived until 2999-12-31 (issue 214)" in " ".join(gated(capfd, models, "2999-12-31").out.split())


def test_an_expired_waiver_fails_with_a_clear_word(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for loose in ((), ("--tolerance", "rel_l2=1")):  # also where the bound would hold without it
        run = gated(capfd, models, "2020-01-31", *loose)
        assert run.code == 1
        assert "EXPIRED: the waiver for rel_l2 of 'logits' expired on 2020-01-31 (issue 214)" in " ".join(run.out.split())


def test_one_that_ends_soon_warns(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = gated(capfd, models, datetime.date.today() + datetime.timedelta(5))
    assert run.code == 0 and "warning: the waiver for rel_l2 of 'logits' ends in" in " ".join(run.out.split())


def test_without_a_date_it_is_an_error(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (models / "gate.toml").write_text(WAIVER.replace("expires = {}\n", ""), "utf-8")
    run = run_here(capfd, "validate", models / "m.onnx", models / "half.onnx", "--tolerance-file", models / "gate.toml")
    assert (run.code, run.out) == (2, "") and run.err.count("\n") == 1 and "waiver 1: has no date" in run.err


def test_conversion_meets_the_same_gate(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (models / "gate.toml").write_text("rel_l2 = 1e-9\n" + WAIVER.format("2999-12-31"), "utf-8")
    made = halfconv.convert(models / "m.onnx", models / "c.onnx", samples=models / "x.npz", tolerance_file=models / "gate.toml")
    assert made.drift is not None and made.drift.passed and made.values["half"] > 0
    files = ("--samples", models / "x.npz", "--tolerance-file", models / "gate.toml")
    run = run_here(capfd, "convert", models / "m.onnx", "-o", models / "c.onnx", *files)
    assert run.code == 0 and "waived until 2999-12-31 (issue 214)" in " ".join(run.out.split())


def test_conversion_fails_on_an_expired_waiver(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As validation does: also where the bound holds, and where the samples are made up."""
    (models / "gate.toml").write_text("rel_l2 = 1\n" + WAIVER.format("2020-01-31"), "utf-8")
    for samples in (("--samples", models / "x.npz"), ()):
        run = run_here(
            capfd, "convert", models / "m.onnx", "-o", models / "c.onnx", "--tolerance-file", models / "gate.toml", *samples
        )
        assert (run.code, run.out) == (1, "") and not (models / "c.onnx").exists()
        assert "the waiver for rel_l2 of 'logits' expired on 2020-01-31 (issue 214)" in run.err and run.err.count("\n") == 1


def test_a_sweep_does_not_keep_what_passed_by_a_waiver_that_is_over(tmp_path: Path) -> None:
    files = tmp_path / "gate.toml", tmp_path / "broken.toml"
    files[0].write_text(WAIVER.format("2026-11-28") + WAIVER.format("2027-01-31"), "utf-8")
    files[1].write_text("[[waivers", "utf-8")
    days = [TODAY + datetime.timedelta(days) for days in (0, 1, 90)]
    assert [[expired_in(file, day) for day in days] for file in files] == [[0, 1, 2], [0, 0, 0]]
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('tolerance_file = "gate.toml"\nmodels = [{ path = "m.onnx" }]\n', "utf-8")
    onnx.save(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { y = Tanh(x) }'),
              tmp_path / "m.onnx")  # fmt: skip

    def key(day: datetime.date) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("halfconv.sweep.job.datetime", types.SimpleNamespace(date=types.SimpleNamespace(today=lambda: day)))
            (job,) = make_jobs(read_fleet(fleet, tmp_path / "out"))[0]
        return job.key

    keys = [key(day) for day in (days[0], days[0] - datetime.timedelta(1), *days[1:])]
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize(("expires", "word"), [("2027-01-31", "Passed"), ("2026-11-01", "Failed")])
def test_a_page_says_what_is_waived(gate: Callable[..., Gate], expires: str, word: str) -> None:
    origin = Origin("halfconv validate", "", (), {}, {}, "2026-11-28 12:00 UTC")
    for text in (WAIVER.format(expires), "rel_l2 = 1\n" + WAIVER.format(expires)):
        made = gate(text)
        outputs = (made.judge(DRIFTED),)
        report = good(outputs=outputs, waivers=made.waiver_uses(outputs, []), tolerance=made.resolved())
        view = validate_view(report.to_dict(), origin)
        page = html.unescape(render(view))
        assert view.verdict.word == word and "Waivers" in {section.title for section in view.sections}
        if outputs[0].waived:
            assert "the bound of 0.01 is waived for now" in view.verdict.sentence and "0.01 is allowed" not in page
            assert view.notes[0] == f"waived for now: logits: rel_l2 0.03 > 0.01, waived until {expires} (issue 214)"
            assert ">within<" not in page
        if word == "Failed" and outputs[0].passed:
            assert f"the waiver for rel_l2 of 'logits' expired on {expires}" in view.verdict.sentence
        assert "issue 214" in page and (">expired<" in page) is (word == "Failed")


def test_every_form_of_a_report_tells(gate: Callable[..., Gate]) -> None:
    for expires, word in (("2027-01-31", "waived until 2027-01-31"), ("2026-11-01", "expired on 2026-11-01")):
        made = gate(WAIVER.format(expires))
        outputs = (made.judge(DRIFTED),)
        report = good(outputs=outputs, waivers=made.waiver_uses(outputs, []))
        xml = junit_xml(report)
        shown = [_failure(report, "halfconv validate")] if not report.passed else []
        for text in (markdown(report), xml, "\n".join(annotations(report)), *shown):
            assert word in text
        assert (word in " ".join(drift_of(report)["failures"])) is not report.passed
        failed = {case.get("name") for case in ElementTree.fromstring(xml).iter("testcase") if case.find("failure") is not None}
        assert failed == (set() if report.passed else {"logits", "waiver for rel_l2 of 'logits'"})
