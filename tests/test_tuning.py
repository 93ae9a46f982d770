"""Conversion with samples: it ends with a model that meets the tolerance in simulation, or with none and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import halfconv
import halfconv.repair as repairing
from halfconv.precision.ranges import load_ranges
from tests import zoo
from tests.labelled import labelled
from tests.test_schemas import validate

#: Half holds 300² only as infinity, and the difference of two large numbers not at all.
CANCEL = """
(float[n, 4] x) => (float[n, 4] y) <float[4] big = {1000, 2000, 3000, 4000}> {
    a = Add(x, big) b = Relu(a) c = Sub(b, big) d = Exp(c) e = Neg(d) y = Tanh(e)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {CANCEL}'), tmp_path / "m.onnx")
    rng = np.random.default_rng(1)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"s{number}.npz", x=rng.normal(0, 1, (5, 4)).astype(np.float32))
    return tmp_path / "m.onnx"


def run(*arguments: str | Path) -> int:
    from halfconv.cli import main

    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_tolerance_is_met_and_the_search_is_reported(model: Path) -> None:
    result = halfconv.convert(model, samples=model.parent / "in")
    assert result.repair is not None and result.repair.minimal
    assert 0 < len(result.repair.forced) <= 2 and result.repair.runs <= 30
    report = halfconv.validate(model, result.output, samples=model.parent / "in")
    assert report.passed
    assert result.drift is not None and result.drift.passed
    shown = [output.measures.rel_l2 for output in result.drift.outputs]
    assert shown == pytest.approx([output.measures.rel_l2 for output in report.outputs])
    assert {entry.rule for entry in result.fp32} <= {"io", "repair", "min-cut"}
    assert {entry.value for entry in result.fp32 if entry.rule == "repair"} >= set(result.repair.forced)


def test_without_repair_it_fails_and_leaves_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", model, "--samples", model.parent / "in", "--no-repair", "--save-plan", model.parent / "p.json") == 1
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert "the tolerance is not met: y: rel_l2" in said.err and "try: " in said.err
    assert sorted(path.name for path in model.parent.iterdir()) == ["in", "m.onnx"]


def test_a_failed_model_is_kept_for_study_on_request(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = model.parent / "bad.onnx"
    assert run("convert", model, "--samples", model.parent / "in", "--no-repair", "--force-failed", bad) == 1
    assert str(bad) in capsys.readouterr().err
    assert not (model.parent / "m.fp16.onnx").exists()
    assert not halfconv.validate(model, bad, samples=model.parent / "in").passed


def test_a_tolerance_that_nothing_meets_says_why(model: Path) -> None:
    with pytest.raises(halfconv.CheckFailed, match=r"tolerance is not met.*--keep-io"):
        halfconv.convert(model, samples=model.parent / "in", half_io=True, tolerance={"max_abs": 1e-12})


def test_json_and_ranges_are_what_their_schemas_say(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = model.parent / "r.json"
    assert run("convert", model, "--samples", model.parent / "in", "--json", "--save-ranges", file) == 0
    content = json.loads(capsys.readouterr().out)
    validate("convert", content)
    assert content["drift"]["passed"] and content["repair"]["minimal"]
    validate("ranges", json.loads(file.read_text()))
    ranges = load_ranges(file)
    assert set(ranges.values) == {"x", "a", "b", "c", "d", "e", "y"} and ranges.samples == 3
    other = model.parent / "again.onnx"
    assert run("convert", model, "-o", other, "--samples", model.parent / "in", "--json", "--ranges", file) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["plan_fingerprint"] == content["plan_fingerprint"]
    assert again["repair"]["runs"] == content["repair"]["runs"] - 1


def test_the_console_says_what_was_reached(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", model, "--samples", model.parent / "in") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "drift on 3 samples, in simulation: rel_l2" in said
    assert "values forced to FP32; none of them can be half;" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "auto"], "--to auto needs samples"),
        (["--metric", "nowhere:f"], "--metric needs samples"),
        (["--no-check", "--samples", "in"], "--samples needs"),
        (["--no-check", "--tolerance", "rel_l2=1"], "--tolerance needs"),
        (["--no-check", "--save-ranges", "r.json"], "--save-ranges needs"),
        (["--tolerance", "rel=1"], "there is no measure 'rel'"),
        (["--seed", "-1"], "--seed"),
        (["--samples", "nothing.npz"], "nothing.npz"),
        (["--samples", "in", "--tolerance", "rel=1"], "there is no measure 'rel'"),
        (["--samples", "in", "--ranges", "m.onnx"], "is no JSON"),
        (["--samples", "in", "--save-ranges", "m.onnx"], "m.onnx"),
        (["--samples", "in", "--time-limit", "-1"], "--time-limit"),
        (["--samples", "in", "--metric", "nowhere:f"], "nowhere"),
    ],
)
def test_wrong_options_say_so_in_one_line(
    model: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    before = model.read_bytes()
    assert run("convert", "m.onnx", *options) == 2
    said = capsys.readouterr().err
    assert words in said and "try: " in said and said.count("\n") == 1
    assert model.read_bytes() == before and sorted(path.name for path in model.parent.iterdir()) == ["in", "m.onnx"]


def test_ranges_of_another_model_or_format_are_refused(model: Path) -> None:
    file = model.parent / "r.json"
    halfconv.convert(model, samples=model.parent / "in", save_ranges=file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "to": "bf16"}))
    with pytest.raises(halfconv.InputError, match="ranges for bf16"):
        halfconv.convert(model, samples=model.parent / "in", ranges=file)
    file.write_text(json.dumps({**content, "values": {"other": next(iter(content["values"].values()))}}))
    with pytest.raises(halfconv.InputError, match="no value of"):
        halfconv.convert(model, samples=model.parent / "in", ranges=file)


def test_samples_that_can_be_read_once_are_refused(model: Path) -> None:
    with pytest.raises(halfconv.UsageError, match="only once"):
        halfconv.convert(model, samples=iter([{"x": np.zeros((1, 4), np.float32)}]))


def test_no_time_gives_the_best_plan_there_is(model: Path) -> None:
    result = halfconv.convert(model, samples=model.parent / "in", time_limit=0)
    assert result.repair is not None and result.repair.stopped == "time" and not result.repair.minimal
    assert result.drift is not None and result.drift.passed
    assert halfconv.validate(model, result.output, samples=model.parent / "in").passed


def test_user_rules_beat_the_search(model: Path) -> None:
    result = halfconv.convert(model, samples=model.parent / "in", block_ops=["Neg"])
    assert result.drift is not None and result.drift.passed
    assert {entry.rule for entry in result.fp32 if entry.value == "e"} == {"user-block"}
    with pytest.raises(halfconv.CheckFailed):
        halfconv.convert(model, samples=model.parent / "in", allow_ops=["Add", "Relu", "Sub"])


def test_the_same_every_time(model: Path) -> None:
    results = [halfconv.convert(model, model.parent / f"{n}.onnx", samples=model.parent / "in") for n in range(2)]
    assert results[0].plan == results[1].plan
    assert (model.parent / "0.onnx").read_bytes() == (model.parent / "1.onnx").read_bytes()


BODIES = """
(float[4] x, int64 n) => (float[4] y) <float[4] big = {1000, 2000, 3000, 4000}, bool yes = {1}> {
    z = Tanh(x)
    [loop] s = Loop (n, yes, z) <body = g (int64 i, bool go, float[4] v) => (bool on, float[4] t) {
        a = Add(v, big) b = Relu(a) c = Sub(b, big) t = Tanh(c) on = Identity(go)
    }>
    y = Neg(s)
}"""


def test_the_search_goes_into_bodies(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {BODIES}'), tmp_path / "m.onnx")
    feeds = [{"x": np.array([0.1, 0.2, 0.3, -1], np.float32), "n": np.array(3)}]
    result = halfconv.convert(tmp_path / "m.onnx", samples=feeds)
    assert result.repair is not None and result.repair.minimal
    assert all(name.startswith("loop.body/") for name in result.repair.forced)
    assert halfconv.validate(tmp_path / "m.onnx", result.output, samples=feeds).passed


def test_converting_again_changes_nothing_with_samples_either(model: Path) -> None:
    first = halfconv.convert(model, samples=model.parent / "in")
    again = halfconv.convert(first.output, model.parent / "again.onnx", samples=model.parent / "in")
    assert again.casts == 0 and again.drift is not None and again.drift.passed
    assert all(output.measures.rel_l2 == 0 for output in again.drift.outputs)


def test_bf16_is_repaired_to_its_own_tolerance(model: Path) -> None:
    result = halfconv.convert(model, samples=model.parent / "in", to="bf16", target="cuda")
    assert result.drift is not None and result.drift.passed and result.drift.to == "bf16"
    assert result.drift.tolerance["rel_l2"] == 5e-2
    assert result.repair is not None and result.repair.forced
    assert halfconv.validate(model, result.output, samples=model.parent / "in").passed


def test_auto_takes_the_format_that_keeps_more_in_half(model: Path, tmp_path: Path) -> None:
    result = halfconv.convert(model, samples=model.parent / "in", to="auto")
    assert result.to == "fp16" and result.output.name == "m.fp16.onnx"
    assert any("fp16 was chosen" in warning and "bf16 meets its tolerance" in warning for warning in result.warnings)
    wide = """(float[4] x) => (float[4] y) { a = Relu(x) b = Mul(a, a) c = Mul(b, b) d = Sqrt(c) y = Sqrt(d) }"""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]>\nmain {wide}'), tmp_path / "w.onnx")
    feeds = [{"x": np.array([100, 200, 300, 400], np.float32)}]
    chosen = halfconv.convert(tmp_path / "w.onnx", samples=feeds, to="auto", target="cuda")
    assert chosen.to == "bf16" and chosen.output.name == "w.bf16.onnx"
    assert chosen.drift is not None and chosen.drift.passed
    assert sorted(path.name for path in tmp_path.glob("w.*")) == ["w.bf16.onnx", "w.bf16.onnx.profile.json", "w.onnx"]


def test_a_plan_made_with_samples_replays_on_a_retrained_model(model: Path) -> None:
    plan = model.parent / "p.json"
    first = halfconv.convert(model, samples=model.parent / "in", save_plan=plan)
    retrained = onnx.load(model)
    weight = onnx.numpy_helper.to_array(retrained.graph.initializer[0])
    retrained.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * np.float32(1.01), "big"))
    onnx.save(retrained, model.parent / "new.onnx")
    again = halfconv.convert(model.parent / "new.onnx", plan=plan, samples=model.parent / "in")
    assert again.repair is None and again.drift is not None and again.drift.passed
    assert again.plan is not None and first.plan is not None
    assert [(v.id, v.dtype) for v in again.plan.values] == [(v.id, v.dtype) for v in first.plan.values]


def test_a_plan_that_no_longer_meets_the_tolerance_is_refused(model: Path) -> None:
    plan = model.parent / "p.json"
    halfconv.convert(model, save_plan=plan, block_list="none", check=False)
    with pytest.raises(halfconv.CheckFailed, match="made for other weights or samples"):
        halfconv.convert(model, plan=plan, samples=model.parent / "in")


# --- without samples -----------------------------------------------------------------------------------------------

#: What is far below half's range is 0 in half, and the factor that brings it back finds nothing: y is 0 throughout, not NaN.
VANISHES = """
(float[n, 4] x) => (float[n, 4] y) <float small = {0.00001}> {
    t = Tanh(x) a = Mul(t, small) b = Mul(a, small) c = Mul(b, small) d = Div(c, small) e = Div(d, small) y = Div(e, small)
}"""
#: In half, infinity minus infinity; in FP32, a finite number. No single value of the FP32 model is beyond half's range.
SQUARES = """
(float[n, 4] x) => (float[n, 4] y) <float big = {60000}> {
    t = Tanh(x) a = Mul(t, t) b = Add(a, big) c = Add(b, big) d = Sub(c, big) y = Sub(d, big)
}"""


def parsed(graph: str, file: Path, opset: int = 17) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {graph}'), file)
    return file


def test_without_samples_it_is_simulated_on_made_up_ones(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed("(float[n, 4] x) => (float[n, 4] y) { a = Neg(x) b = Relu(a) y = Tanh(b) }", model)
    assert run("convert", model, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    validate("convert", content)
    drift = content["drift"]
    assert drift["samples"] == {"count": 2, "kind": "synthetic", "seed": 0} and drift["passed"] and drift["warnings"]
    assert "rel_l2" not in drift["tolerance"] and drift["outputs"][0]["rel_l2"] > 0 and content["repair"] is None
    assert run("convert", model) == 0
    assert "drift on 2 SYNTHETIC samples (seed 0), in simulation: rel_l2" in " ".join(capsys.readouterr().out.split())
    other = halfconv.convert(model, seed=7).drift
    assert other is not None and other.seed == 7 and other.outputs[0].measures.rel_l2 != drift["outputs"][0]["rel_l2"]


@pytest.mark.parametrize("graph", [VANISHES, SQUARES])
def test_what_vanishes_or_overflows_is_repaired_without_samples(graph: str, tmp_path: Path) -> None:
    source = parsed(graph, tmp_path / "m.onnx")
    result = halfconv.convert(source, block_list="none")
    assert result.drift is not None and result.drift.passed and result.values["float"] > 0
    assert halfconv.validate(source, result.output, tolerance={"rel_l2": 1}).passed
    rules = {entry.rule for entry in result.fp32}
    assert rules & {"repair", "overflow"}


def test_without_samples_drift_alone_forces_nothing(model: Path) -> None:
    result = halfconv.convert(model, block_list="none")
    assert result.repair is None and result.drift is not None and result.drift.passed
    assert (result.drift.outputs[0].measures.rel_l2 or 0) > 1e-2
    assert not {entry.rule for entry in result.fp32} - {"io", "min-cut"}


def test_a_tolerance_without_samples_is_judged(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", model, "--block-list", "none", "--tolerance", "rel_l2=1e-2") == 1
    said = capsys.readouterr().err
    assert "the tolerance is not met on synthetic samples: y: rel_l2" in said and "try: " in said
    assert sorted(path.name for path in model.parent.iterdir()) == ["in", "m.onnx"]
    assert run("convert", model, "--block-list", "none", "--tolerance", "rel_l2=2") == 0


def test_ranges_can_be_saved_and_used_without_samples(model: Path) -> None:
    file = model.parent / "r.json"
    halfconv.convert(model, samples=[{"x": np.full((1, 4), 70000, np.float32)}], save_ranges=file)
    plain, ranged = halfconv.convert(model), halfconv.convert(model, ranges=file)
    assert "overflow" not in {entry.rule for entry in plain.fp32}
    assert "overflow" in {entry.rule for entry in ranged.fp32}
    halfconv.convert(model, save_ranges=file)
    assert load_ranges(file).kind == "synthetic"


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        ("(float[n, 4] x) => (float[n, 4] y) { a = Tanh(x) b = other.Unknown(a) y = Neg(b) }", "not simulated"),
        ("(float[2000000, 2000000] x) => (float[2000000, 2000000] y) { a = Relu(x) b = Neg(a) y = Tanh(b) }", "too large"),
    ],
)
def test_what_cannot_be_run_is_converted_and_said_to_be_unseen(graph: str, why: str, tmp_path: Path) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17, "other" : 1]>\nmain {graph}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = halfconv.convert(tmp_path / "m.onnx", half_io=True)
    assert result.drift is None and result.values["half"]
    assert any("not simulated" in warning and why in warning for warning in result.warnings)
    with pytest.raises(halfconv.InputError):
        halfconv.convert(tmp_path / "m.onnx", tolerance={"rel_l2": 1e-2})


def test_large_models_are_not_simulated_unless_samples_ask_for_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfconv.tuning.BIG_BYTES", 100)
    result = halfconv.convert(model, block_list="none")
    assert result.drift is None and any(warning.startswith("not simulated: ") for warning in result.warnings)
    assert halfconv.convert(model, samples=model.parent / "in").drift is not None


def test_a_plan_that_overflows_is_refused_without_samples(tmp_path: Path) -> None:
    plan = tmp_path / "p.json"
    halfconv.convert(parsed(SQUARES, tmp_path / "m.onnx"), save_plan=plan, block_list="none", check=False)
    with pytest.raises(halfconv.CheckFailed, match="made for other weights or samples"):
        halfconv.convert(tmp_path / "m.onnx", plan=plan)


# --- real models ---------------------------------------------------------------------------------------------------

#: Model -> a tolerance that its whole conversion breaks.
REPAIRED = {"resemblyzer_lstm": 1e-2, "silero_vad_op18": 1e-3, "dnsmos_p808": 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize("key", REPAIRED)
def test_none_of_what_the_search_forced_can_be_half(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[frozenset[int], bool]] = []
    original = repairing.smallest

    def watched(ranked: Any, search: Any) -> Any:
        found = original(ranked, search)
        for group in found.forced:
            fewer = frozenset(found.forced) - {group}
            ran.append((fewer, bool(fewer) and search._test(fewer)))
        return found

    monkeypatch.setattr(repairing, "smallest", watched)
    result = halfconv.convert(
        zoo.model(key), tmp_path / "h.onnx", samples=zoo.samples(key), tolerance={"rel_l2": REPAIRED[key]}
    )
    assert result.repair is not None and result.repair.minimal and result.drift is not None and result.drift.passed
    assert len(ran) == len(result.repair.forced) > 0
    assert not any(passed for _, passed in ran)


@pytest.mark.slow
def test_magika_keeps_its_answers_with_few_values_in_fp32(tmp_path: Path) -> None:
    samples = labelled("magika")
    result = halfconv.convert(zoo.model("magika"), tmp_path / "h.onnx", samples=samples)
    assert result.values["float"] <= 0.08 * sum(result.values.values())
    assert result.repair is not None and result.repair.runs <= 30
    report = halfconv.validate(zoo.model("magika"), result.output, samples=samples)
    assert report.passed
    (accuracy,) = report.metrics
    assert sum(len(sample["labels"]) for sample in samples) == 228 and accuracy.name == "accuracy" and accuracy.candidate >= 0.91


@pytest.mark.slow
@pytest.mark.parametrize("key", ["dnsmos_sig_bak_ovr", "aecmos_16k", "silero_vad", "resemblyzer_lstm", "plcmos_v2", "rapidocr_cls"])
def test_real_models_meet_the_default_tolerance(key: str, tmp_path: Path) -> None:
    result = halfconv.convert(zoo.model(key), tmp_path / "h.onnx", samples=zoo.samples(key))
    assert result.drift is not None and result.drift.passed
    assert (result.repair.runs if result.repair else 2) <= 30
    assert result.values["half"] >= 0.7 * sum(result.values.values())
