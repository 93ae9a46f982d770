"""Baselines: what they hold, that they diff well, what counts as growth, and what a broken file leads to."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.drift.baseline import FIGURES, FLOORS, RELATIVE_FLOORS, Baseline, grown, load, write
from halfconv.drift.report import DriftReport, Measures, MetricDrift
from halfconv.errors import EnvironmentProblem, InputError, UsageError
from tests.report import bad, good, integer, output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "drift.json"


def schema() -> dict[str, Any]:
    return json.loads(resources.files("halfconv").joinpath("schemas", "baseline.schema.json").read_text("utf-8"))


def written(file: Path, report: DriftReport) -> Baseline:
    write(file, report)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(file.read_text("utf-8")))
    return load(file)


def drift(**measures: Any) -> DriftReport:
    return good(outputs=(output(measures=dataclasses.replace(output().measures, **measures)),))


def test_every_figure_has_a_floor() -> None:
    assert {*FIGURES} == {*FLOORS, "max_abs"}
    assert "drop" in RELATIVE_FLOORS


def test_file_is_stable_and_short(file: Path) -> None:
    report = good(outputs=(output("b"), output("a")), metrics=(MetricDrift("m", 0.91234567, 0.9, 0.02),))
    write(file, report)
    text = file.read_text("utf-8")
    assert text.endswith("}\n")
    content = json.loads(text)
    assert list(content) == ["schema_version", "to", "on", "samples", "outputs", "metrics"]
    assert list(content["outputs"]) == ["a", "b"]
    assert content["outputs"]["a"] == {
        "rel_l2": 0.00152, "max_abs": 0.0123, "max_rel": 0.02, "cosine": 0.9999988, "ulp_p99": 2.5, "argmax_agreement": 0.99996,
        "agreement": None, "new_nan": 0, "new_inf": 0, "zeroed": 0.0, "mismatched": 0,
    }  # fmt: skip
    assert content["metrics"] == {"m": {"reference": 0.9123, "candidate": 0.9, "drop": 0.01235}}
    write(file, dataclasses.replace(report, outputs=report.outputs[::-1], seconds={"run": 9.0}, reference="elsewhere.onnx"))
    assert file.read_text("utf-8") == text
    assert [entry.name for entry in file.parent.iterdir()] == ["drift.json"]


def test_shares_near_one_keep_what_distinguishes_them(file: Path) -> None:
    baseline = written(file, drift(cosine=1 - 1.23456789e-9, argmax_agreement=1.0))
    assert baseline.outputs["logits"]["cosine"] == 0.999999998765
    assert baseline.outputs["logits"]["argmax_agreement"] == 1.0


def test_infinities_are_null(file: Path) -> None:
    baseline = written(file, bad())
    assert baseline.outputs["scores"]["rel_l2"] is None
    assert baseline.outputs["scores"]["new_nan"] == 12
    assert baseline.metrics["loss"] == {"reference": 0.5, "candidate": None, "drop": None}
    assert grown(bad(), baseline) == ()


def test_same_drift_has_not_grown(file: Path) -> None:
    report = bad()
    assert grown(report, written(file, report)) == ()


def test_sentences(file: Path) -> None:
    baseline = written(file, drift(rel_l2=0.001, argmax_agreement=0.99, new_nan=0))
    assert grown(drift(rel_l2=0.003, argmax_agreement=0.95, new_nan=2), baseline) == (
        "logits: rel_l2 grew from 0.001 to 0.003 (3 times, at most 0.0015 allowed)",
        "logits: argmax_agreement fell from 0.99 to 0.95 (1 − x 5 times, at least 0.985 allowed)",
        "logits: new_nan grew from 0 to 2 (at most 0 allowed)",
    )


@pytest.mark.parametrize(
    "figure, before, allowed, refused",
    [
        ("rel_l2", 0.01, 0.0149, 0.0151),
        ("rel_l2", 0.0, 1.49e-6, 1.51e-6),
        ("rel_l2", 1e-9, 1.49e-6, 1.51e-6),
        ("rel_l2", 0.01, 0.0, math.inf),
        ("rel_l2", 0.01, 0.01, math.nan),
        ("max_abs", 0.0, 0.13, 0.14),  # the largest magnitude is 91,204
        ("max_rel", 0.1, 0.149, 0.151),
        ("cosine", 0.99, 0.978, 0.977),  # by the square
        ("cosine", 1.0, 0.999998, 0.999997),
        ("ulp_p99", 2.0, 3.0, 3.1),
        ("argmax_agreement", 1.0, 0.9986, 0.998),
        ("argmax_agreement", 0.9, 0.851, 0.849),
        ("agreement", 1.0, 0.9986, 0.998),
        ("zeroed", 0.1, 0.149, 0.151),
        ("new_inf", 4, 6, 7),
        ("mismatched", 0, 0, 1),
    ],
)
def test_growth_by_figure(file: Path, figure: str, before: float, allowed: float, refused: float) -> None:
    baseline = written(file, drift(**{figure: before}))
    assert grown(drift(**{figure: allowed}), baseline) == ()
    (sentence,) = grown(drift(**{figure: refused}), baseline)
    assert sentence.startswith(f"logits: {figure} ")


def test_factor(file: Path) -> None:
    baseline = written(file, drift(rel_l2=0.001))
    assert grown(drift(rel_l2=0.0029), baseline, 3.0) == ()
    assert len(grown(drift(rel_l2=0.0011), baseline, 1.0)) == 1


def test_figures_that_came_and_went(file: Path) -> None:
    baseline = written(file, drift(argmax_agreement=None))
    assert grown(drift(argmax_agreement=0.1), baseline) == ()
    baseline = written(file, drift(argmax_agreement=1.0))
    assert grown(drift(argmax_agreement=None), baseline) == ("logits: argmax_agreement is no longer measured; it was 1",)


def test_outputs_and_metrics_that_came_and_went(file: Path) -> None:
    baseline = written(file, good(metrics=(MetricDrift("accuracy", 0.9, 0.9),)))
    report = good(outputs=(integer(),), metrics=(MetricDrift("f1", 0.9, 0.9),))
    assert grown(report, baseline) == (
        "output 'labels' is new: the baseline does not hold it",
        "output 'logits' is gone: the baseline holds it",
        "metric 'f1' is new: the baseline does not hold it",
        "metric 'accuracy' is gone: the baseline holds it",
    )


@pytest.mark.parametrize(
    "before, after, fails",
    [((0.9, 0.9), (0.9, 0.899), False), ((0.9, 0.9), (0.9, 0.898), True), ((0.9, 0.89), (0.9, 0.886), False),
     ((0.9, 0.89), (0.9, 0.88), True), ((0.9, 0.95), (0.9, 0.9), False), ((0.0, 0.0), (0.0, -0.1), True),
     ((0.9, 0.9), (0.9, math.nan), True), ((0.9, math.nan), (0.9, 0.0), False)],
)  # fmt: skip
def test_metrics(file: Path, before: tuple[float, float], after: tuple[float, float], fails: bool) -> None:
    baseline = written(file, good(metrics=(MetricDrift("accuracy", *before),)))
    found = grown(good(metrics=(MetricDrift("accuracy", *after),)), baseline)
    assert [sentence.startswith("metric accuracy: drop grew from ") for sentence in found] == [True] * fails


@pytest.mark.parametrize("field, other", [("on", "cuda"), ("to", "bf16"), ("sample_kind", "synthetic")])
def test_a_baseline_made_in_another_way_is_refused(file: Path, field: str, other: str) -> None:
    baseline = written(file, good())
    made = getattr(good(), field)
    with pytest.raises(UsageError, match=rf"drift\.json: made with .* {made}, which says nothing of .* {other}; try"):
        grown(good(**{field: other}), baseline)


CONTENT: dict[str, Any] = {
    "schema_version": 1, "to": "fp16", "on": "cpu", "samples": {"count": 1, "kind": "given"},
    "outputs": {"y": dict.fromkeys(FIGURES, 0)}, "metrics": {"m": {"reference": 1, "candidate": 1.0, "drop": None}},
}  # fmt: skip


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "not a baseline: Expecting value"),
        ("{", "not a baseline: Expecting property name"),
        ("[" * 200_000, "nested too deeply"),
        ("[]", r"the file is \[\], not an object"),
        ("{}", "schema version None"),
        ({"schema_version": 2}, "schema version 2; this halfconv reads version 1"),
        ({"schema_version": True}, "schema version True"),
        ({"more": 1}, "the file holds 'more'"),
        ({"on": "tpu"}, "'on' is 'tpu', not one of simulate, cpu, cuda"),
        ({"to": ["fp16"]}, r"'to' is \['fp16'\]"),
        ({"samples": 3}, "'samples' is 3, not an object"),
        ({"samples": {"kind": "given"}}, "'samples' lacks 'count'"),
        ({"samples": {"kind": "given", "count": -1}}, "'count' is -1"),
        ({"outputs": []}, r"'outputs' is \[\]"),
        ({"outputs": {"y": {}}}, "'y' lacks 'rel_l2'"),
        ({"outputs": {"y": {**CONTENT["outputs"]["y"], "zeroed": "0"}}}, "'zeroed' of 'y' is '0', not a number or null"),
        ({"outputs": {"y": {**CONTENT["outputs"]["y"], "zeroed": math.nan}}}, "'zeroed' of 'y' is nan"),
        ({"outputs": {"y": {**CONTENT["outputs"]["y"], "zeroed": True}}}, "'zeroed' of 'y' is True"),
        ({"outputs": {"y": {**CONTENT["outputs"]["y"], "zeroed": 10**400}}}, "'zeroed' of 'y' is 1000"),
        ({"metrics": {"m": {"drop": 1}}}, "'m' lacks 'reference'"),
    ],
)
def test_what_is_no_baseline_is_refused_in_one_line(file: Path, text: str | dict[str, Any], problem: str) -> None:
    file.write_text(text if isinstance(text, str) else json.dumps({**CONTENT, **text}))
    with pytest.raises(InputError, match=problem) as caught:
        load(file)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(file)) and "; try: " in message and len(message) < len(str(file)) + 250


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(InputError, match="no such baseline; try: --update-baseline"):
        load(file)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(file.parent)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="it is no UTF-8 text"):
        load(file)
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        write(file.parent / "missing" / "drift.json", good())


def test_content_above_is_good(file: Path) -> None:
    file.write_text(json.dumps(CONTENT))
    assert load(file).metrics["m"]["drop"] is None
    jsonschema.Draft202012Validator(schema()).validate(CONTENT)


positive = st.none() | st.floats(0) | st.just(math.nan)
share = st.none() | st.floats(0, 1)


@settings(derandomize=True, deadline=None)
@given(
    st.text(st.characters(codec=None)),
    st.builds(Measures, rel_l2=positive, max_abs=positive, max_rel=positive, cosine=st.none() | st.floats(-1, 1), ulp_p99=positive,
              argmax_agreement=share, agreement=share, new_nan=st.integers(0, 10**12), zeroed=share, absmax=positive),
)  # fmt: skip
def test_any_report_round_trips_and_has_not_grown(tmp_path_factory: pytest.TempPathFactory, name: str, measures: Measures) -> None:
    report = good(outputs=(output(name, measures=measures),), metrics=(MetricDrift(name, 1.0, measures.rel_l2 or 0.0),))
    file = tmp_path_factory.getbasetemp() / "any.json"
    baseline = written(file, report)
    assert grown(report, baseline) == ()
    text = file.read_text("utf-8")
    assert len(text) < 1500 + 24 * len(name)
