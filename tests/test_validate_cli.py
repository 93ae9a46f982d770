"""`halfconv validate` on the command line: exit codes, messages, JSON and files, and what is left on disk."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests import zoo
from tests.commands import Run, run_here
from tests.test_cli import listing
from tests.test_validate import FLOAT, SCHEMA, half_of, node, save, scalar


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Run]:
    """Run `halfconv validate` in `folder`, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    return functools.partial(run_here, capfd, "validate")


Cli = Callable[..., Run]
KEEP, BURST = "m.half.onnx", "big.half.onnx"


@pytest.fixture
def models(folder: Path) -> Path:
    """m.onnx and its half, which pass; big.onnx and its half, which overflows with inputs of 100; samples of both kinds."""
    nodes = [node("Mul", "x k", "m"), node("Tanh", "m", "y"), node("Softmax", "m", "p")]
    for name, k in (("m", 0.37), ("big", 1000.0)):
        outputs = {"y": (FLOAT, ["n", 4]), "p": (FLOAT, ["n", 4])}
        half_of(save(folder / f"{name}.onnx", nodes, {"x": (FLOAT, ["n", 4])}, outputs, {"k": scalar(k)}))
    rng = np.random.default_rng(0)
    (folder / "few").mkdir()
    for index in range(3):
        x = rng.standard_normal((2, 4)).astype(np.float32)
        np.savez(folder / "few" / f"s{index}.npz", x=x, labels=x.argmax(1))
    np.savez(folder / "large.npz", x=np.full((2, 4), 100, np.float32))
    return folder


def parsed(run: Run) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads(run.out, parse_constant=refuse)
    jsonschema.validate(content, SCHEMA)
    return content


# Verdicts


def test_a_good_model_passes_on_one_screen(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--samples", "few")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("PASSED  m.half.onnx  simulated GPU rounding on the CPU, 3 samples")
    assert "accuracy" in run.out
    assert len(run.out.splitlines()) < 24


def test_a_bad_model_fails_and_names_the_value(cli: Cli, models: Path) -> None:
    run = cli("big.onnx", BURST, "--samples", "large.npz")
    assert run.code == 1
    assert run.out.startswith("FAILED")
    assert "first bad: mul_m overflows: its result reaches 100,000 (> 65,504) in FP32 (value 'm')" in run.out
    assert "Traceback" not in run.out + run.err


def test_synthetic_samples_are_called_so(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--count", 2, "--seed", 5)
    assert run.code == 0
    assert "2 SYNTHETIC samples (seed 5)" in run.out
    assert "random data hides overflow" in run.out
    content = parsed(cli("m.onnx", KEEP, "--count", 2, "--seed", 5, "--json"))
    assert content["samples"] == {"count": 2, "kind": "synthetic", "seed": 5}
    again = parsed(cli("m.onnx", KEEP, "--count", 2, "--seed", 5, "--json"))
    assert again["outputs"] == content["outputs"]
    assert parsed(cli("m.onnx", KEEP, "--count", 2, "--seed", 6, "--json"))["outputs"] != content["outputs"]


def test_the_cpu_provider_passes_with_its_warning(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--samples", "few", "--on", "cpu")
    assert run.code == 0
    assert "on the CPU provider" in run.out
    assert "what passes here can fail on a GPU" in run.out.replace("\n", " ")
    assert parsed(cli("m.onnx", KEEP, "--on", "cpu", "--json"))["on"] == "cpu"


@pytest.mark.slow
def test_magika_on_files_with_labels(cli: Cli, folder: Path) -> None:
    """The files that the issue asks for: inputs, and an array `labels` beside them."""
    reference, candidate, labels = zoo.model("magika"), folder / "peer.onnx", zoo.labels("magika")
    assert labels is not None
    onnx.save(convert_float_to_float16(onnx.load(reference), keep_io_types=True), candidate)
    (folder / "files").mkdir()
    at = 0
    for index, sample in enumerate(zoo.samples("magika")):
        rows = len(sample["bytes"])
        np.savez(folder / "files" / f"s{index}.npz", **sample, labels=labels[at : at + rows])
        at += rows
    run = cli(reference, candidate, "--samples", "files", "--json")
    content = parsed(run)
    assert run.code == 1 and content["passed"] is False
    assert content["metrics"]["accuracy"] == pytest.approx(
        {"reference": 208 / 228, "candidate": 0.0, "drop": 208 / 228, "limit": None, "waived": False, "passed": True}
    )
    assert "overflows" in content["first_bad"]
    shown = cli(reference, candidate, "--samples", "files", "--on", "cpu")
    assert shown.code == 0
    assert re.search(r"accuracy +91\.2 % +91\.2 % ", shown.out)


# JSON


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 0),
        (("--samples", "few"), 0),
        (("--samples", "few", "--metric", "accuracy", "--tolerance", "accuracy=0"), 0),
        (("--layers",), 0),
        (("--samples", "few", "--layers", "--on", "cpu"), 0),
        (("--tolerance", "rel_l2=0"), 1),
        (("--tolerance", "rel_l2=1e-9@y", "--tolerance", "max_abs=1", "--layers"), 1),
    ],
)
def test_json_keeps_the_schema(cli: Cli, models: Path, arguments: tuple[str, ...], code: int) -> None:
    run = cli("m.onnx", KEEP, *arguments, "--json")
    content = parsed(run)
    assert run.code == code
    assert content["passed"] is (code == 0)
    assert (content["layers"] is None) is ("--layers" not in arguments)
    assert run.out.count("\n") == 1 and run.err == ""


def test_json_writes_nan_and_infinity_as_null(cli: Cli, models: Path) -> None:
    content = parsed(cli("big.onnx", BURST, "--samples", "large.npz", "--layers", "--json"))
    output = {entry["name"]: entry for entry in content["outputs"]}["p"]
    assert output["new_nan"] == 8
    assert output["rel_l2"] is None and output["max_abs"] is None
    layer = {entry["value"]: entry for entry in content["layers"]}["m"]
    assert layer["new_inf"] == 8 and layer["rel_l2"] is None
    assert content["first_bad"].startswith("mul_m overflows")


# Bounds


def test_several_bounds_hold_together(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--tolerance", "rel_l2=1", "--tolerance", "rel_l2=1e-9@p", "--tolerance", "cosine=0.5", "--json")
    content = parsed(run)
    assert run.code == 1
    assert {output["name"]: output["passed"] for output in content["outputs"]} == {"y": True, "p": False}
    assert content["tolerance"]["rel_l2@p"] == 1e-9 and content["tolerance"]["cosine"] == 0.5


def test_a_tolerance_file_is_read_and_the_flag_wins(cli: Cli, models: Path) -> None:
    (models / "t.toml").write_text('rel_l2 = 1e-9\n[outputs."p"]\nrel_l2 = 1.0\n[metrics]\naccuracy = 0.5\n', "utf-8")
    run = cli("m.onnx", KEEP, "--samples", "few", "--tolerance-file", "t.toml", "--metric", "accuracy", "--json")
    content = parsed(run)
    assert run.code == 1
    assert {output["name"]: output["passed"] for output in content["outputs"]} == {"y": False, "p": True}
    assert content["metrics"]["accuracy"]["limit"] == 0.5
    assert cli("m.onnx", KEEP, "--samples", "few", "--tolerance-file", "t.toml", "--tolerance", "rel_l2=1").code == 0


# Metrics


def test_a_metric_of_the_users(cli: Cli, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "my_metrics.py").write_text(
        textwrap.dedent(
            """
            def mean(outputs, extras):
                return float(outputs["y"].mean())

            def precision(outputs, extras):
                return 1e6 * float(abs(outputs["y"]).sum())

            def broken(outputs, extras):
                return outputs["nothing"]

            def words(outputs, extras):
                return "good"
            """
        ),
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(models))
    run = cli("m.onnx", KEEP, "--samples", "few", "--metric", "my_metrics:mean", "--metric", "accuracy", "--json")
    assert run.code == 0
    assert set(parsed(run)["metrics"]) == {"mean", "accuracy"}
    run = cli("m.onnx", KEEP, "--samples", "few", "--metric", "my_metrics:precision", "--tolerance", "precision=0")
    assert run.code in (0, 1)  # drift has either sign
    for name, words in (("broken", "KeyError: 'nothing'"), ("words", "ValueError")):
        run = cli("m.onnx", KEEP, "--samples", "few", "--metric", f"my_metrics:{name}")
        assert run.code == 2
        assert one_line(run).startswith(f"halfconv: metric {name} fails on s0.npz: ")
        assert words in run.err


def test_a_metric_that_drops_too_far_fails(cli: Cli, models: Path) -> None:
    np.savez(models / "l.npz", x=np.array([[100, 1, 1, 1]], np.float32), labels=np.array([0]))
    run = cli("big.onnx", BURST, "--samples", "l.npz", "--tolerance", "accuracy=0.01")
    assert run.code == 1
    assert "accuracy" in run.out


# Files


def test_junit_has_one_case_per_output(cli: Cli, models: Path) -> None:
    assert cli("m.onnx", KEEP, "--samples", "few", "--junit", "j.xml").code == 0
    suite = ElementTree.parse(models / "j.xml").getroot()
    assert [case.get("name") for case in suite.iter("testcase")] == ["y", "p", "metric accuracy"]
    assert suite.get("failures") == "0"
    assert cli("big.onnx", BURST, "--samples", "large.npz", "--junit", "j.xml").code == 1
    suite = ElementTree.parse(models / "j.xml").getroot()
    assert int(suite.get("failures") or 0) >= 1
    assert any("new NaN" in (failure.get("message") or "") for failure in suite.iter("failure"))


def test_markdown_says_the_verdict(cli: Cli, models: Path) -> None:
    assert cli("m.onnx", KEEP, "--layers", "--markdown", "s.md").code == 0
    assert (models / "s.md").read_text("utf-8").startswith("### ✅ halfconv validate: PASSED")
    assert cli("big.onnx", BURST, "--samples", "large.npz", "--markdown", "s.md", "--layers").code == 1
    text = (models / "s.md").read_text("utf-8")
    assert text.startswith("### ❌ halfconv validate: FAILED") and "overflows" in text


def test_a_baseline_is_written_and_compared_with(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--samples", "few", "--baseline", "drift.json")
    assert run.code == 2 and "--update-baseline" in one_line(run)
    assert cli("m.onnx", KEEP, "--samples", "few", "--baseline", "drift.json", "--update-baseline").code == 0
    before = (models / "drift.json").read_text("utf-8")
    assert cli("m.onnx", KEEP, "--samples", "few", "--baseline", "drift.json").code == 0
    content = json.loads(before)
    content["outputs"]["y"]["rel_l2"] /= 100
    (models / "drift.json").write_text(json.dumps(content), "utf-8")
    run = cli("m.onnx", KEEP, "--samples", "few", "--baseline", "drift.json", "--json")
    assert run.code == 1
    assert parsed(run)["baseline"][0].startswith("y: rel_l2 grew from ")
    assert cli("m.onnx", KEEP, "--samples", "few", "--baseline", "drift.json", "--update-baseline").code == 0
    assert (models / "drift.json").read_text("utf-8") == before


def test_annotations_in_github_actions_leave_stdout_to_the_json(cli: Cli, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    run = cli("big.onnx", BURST, "--samples", "large.npz", "--json")
    assert run.code == 1
    parsed(run)
    lines = (run.err).splitlines()
    assert any(line.startswith("::error title=") for line in lines)
    assert any(line.startswith("::notice title=halfconv validate::FAILED") for line in lines)
    assert cli("m.onnx", KEEP, "--samples", "few").err.startswith("::")


# The values inside


@pytest.mark.parametrize("name", ["[bold]x[/]", "a\x1b[31mb", "\u202eevil", "::error::x"])
def test_names_reach_the_terminal_as_plain_text(cli: Cli, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    nodes = [helper.make_node("Mul", ["x", "k"], [name], name), helper.make_node("Div", [name, "k"], ["y"])]
    half_of(save(folder / "m.onnx", nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, {"k": scalar(1e5)}))
    run = cli("m.onnx", KEEP, "--layers", "--count", 1, "--markdown", "m.md", "--junit", "j.xml", "--tolerance", "rel_l2=0")
    assert run.code == 1
    text = run.out + run.err + (folder / "m.md").read_text("utf-8") + (folder / "j.xml").read_text("utf-8")
    assert "\x1b" not in text and "\u202e" not in text
    if name.startswith("["):
        assert name in run.out
    assert all(line.startswith(("::error title=halfconv", "::warning title=", "::notice title=")) for line in run.err.splitlines())
    ElementTree.parse(folder / "j.xml")


def test_layers_are_shown_worst_first(cli: Cli, models: Path) -> None:
    run = cli("m.onnx", KEEP, "--layers", "--samples", "few")
    assert run.code == 0
    assert "Values that add most error" in run.out


def test_an_overflow_that_no_output_shows_is_told_apart(cli: Cli, folder: Path) -> None:
    nodes = [node("Mul", "x k", "m"), node("Tanh", "m", "y")]
    half_of(save(folder / "m.onnx", nodes, {"x": (FLOAT, [4])}, {"y": (FLOAT, [4])}, {"k": scalar(1000)}))
    np.save(folder / "x.npy", np.full(4, 100, np.float32))
    run = cli("m.onnx", KEEP, "--samples", "x.npy", "--layers")
    assert run.code == 0
    assert "first value that went bad, which the outputs do not show: m (Mul mul_m): mul_m overflows" in run.out
    assert "first bad:" not in run.out


# Errors: one line, exit code 2, nothing left


def one_line(run: Run) -> str:
    assert run.code == 2, run
    assert run.out == ""
    assert run.err.count("\n") == 1, run.err
    assert run.err.startswith("halfconv: ") and "try: " in run.err, run.err
    assert "Traceback" not in run.err and "internal" not in run.err
    return run.err.strip()


GOOD = ["m.onnx", KEEP]
ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "no model": ([], ["Missing argument 'REFERENCE'"]),
    "one model": (["m.onnx"], ["Missing argument 'CANDIDATE'"]),
    "missing reference": (["missing.onnx", KEEP], ["missing.onnx: no such file"]),
    "missing candidate": (["m.onnx", "missing.onnx"], ["missing.onnx: no such file"]),
    "directory": (["few", KEEP], ["is a directory"]),
    "garbage": (["m.onnx", "garbage.onnx"], ["garbage.onnx: not an ONNX model"]),
    "empty file": (["empty.onnx", KEEP], ["the file is empty"]),
    "cut off": (["m.onnx", "cut.onnx"], ["cut.onnx"]),
    "another model": (["m.onnx", "other.onnx"], ["other.onnx is no conversion of m.onnx", "a, not x"]),
    "other outputs": (["m.onnx", "outputs.onnx"], ["outputs.onnx is no conversion of m.onnx", "its outputs are"]),
    "swapped": ([KEEP, "m.onnx"], ["the wrong way round", "try: halfconv validate m.onnx m.half.onnx"]),
    "does not load": (["m.onnx", "types.onnx", "--on", "cpu"], ["types.onnx"]),
    "does not load, simulated": (["m.onnx", "types.onnx"], ["types.onnx"]),
    "unknown operator": (["m.onnx", "unknown.onnx"], ["unknown.onnx", "Nonsense"]),
    "samples missing": ([*GOOD, "--samples", "none.npz"], ["none.npz: no such file"]),
    "samples of no kind": ([*GOOD, "--samples", "m.onnx"], ["m.onnx: is no file of samples"]),
    "samples of an empty folder": ([*GOOD, "--samples", "void"], ["void: holds no .npz"]),
    "damaged samples": ([*GOOD, "--samples", "damaged.npz"], ["damaged.npz"]),
    "samples cut off": ([*GOOD, "--samples", "short.npz"], ["short.npz"]),
    "samples of another name": ([*GOOD, "--samples", "name.npz"], ["input 'x' is missing", "X"]),
    "samples of another shape": ([*GOOD, "--samples", "shape.npz"], ["shape (2, 5), expected (n, 4)"]),
    "samples of another rank": ([*GOOD, "--samples", "rank.npz"], ["shape (4,)"]),
    "samples of another type": ([*GOOD, "--samples", "int.npz"], ["type int64, expected float32"]),
    "samples of strings": ([*GOOD, "--samples", "text.npz"], ["type string, expected float32"]),
    "samples of objects": ([*GOOD, "--samples", "pickle.npz"], ["pickled Python objects, which are never loaded"]),
    "samples beyond reach": ([*GOOD, "--samples", "wide.npz"], ["beyond the range of float32"]),
    "later sample bad": ([*GOOD, "--samples", "mixed"], ["s1.npz", "expected (n, 4)"]),
    "no such function": ([*GOOD, "--samples", "no_module:f"], ["no_module"]),
    "a function that fails": ([*GOOD, "--samples", "makers:boom"], ["raised RuntimeError: boom"]),
    "a function of nothing": ([*GOOD, "--samples", "makers:nothing"], ["holds no sample"]),
    "a function of numbers": ([*GOOD, "--samples", "makers:numbers"], ["is a int, not a dictionary"]),
    "count 0": ([*GOOD, "--count", "0"], ["--count"]),
    "count negative": ([*GOOD, "--count", "-3"], ["--count"]),
    "count text": ([*GOOD, "--count", "many"], ["'many'"]),
    "seed negative": ([*GOOD, "--seed", "-1"], ["--seed"]),
    "on nothing": ([*GOOD, "--on", "gpu"], ["'gpu'", "cuda"]),
    "unknown measure": ([*GOOD, "--tolerance", "rel_l3=1"], ["no measure 'rel_l3'", "try: 'rel_l2'"]),
    "unknown output": ([*GOOD, "--tolerance", "rel_l2=1@z"], ["no output 'z'"]),
    "no number": ([*GOOD, "--tolerance", "rel_l2=small"], ["'small' is no number"]),
    "no value": ([*GOOD, "--tolerance", "rel_l2"], ["has no value"]),
    "negative bound": ([*GOOD, "--tolerance", "rel_l2=-1"], ["must be 0 or more"]),
    "NaN bound": ([*GOOD, "--tolerance", "rel_l2=nan"], ["must be 0 or more"]),
    "looser than always": ([*GOOD, "--tolerance", "new_nan=5"], ["looser than 0, which always holds"]),
    "bound of what does not apply": ([*GOOD, "--tolerance", "agreement=1@y"], ["does not apply"]),
    "bound of no metric": ([*GOOD, "--tolerance", "accuracy=0.1"], ["no measure 'accuracy'"]),
    "tolerance file missing": ([*GOOD, "--tolerance-file", "none.toml"], ["none.toml: cannot be read"]),
    "tolerance file no TOML": ([*GOOD, "--tolerance-file", "garbage.onnx"], ["garbage.onnx"]),
    "tolerance file wrong": ([*GOOD, "--tolerance-file", "wrong.toml"], ["wrong.toml", "no measure 'rel'"]),
    "tolerance file is a folder": ([*GOOD, "--tolerance-file", "void"], ["void"]),
    "metric without labels": ([*GOOD, "--metric", "accuracy"], ["hold no labels"]),
    "metric unknown": ([*GOOD, "--metric", "acuracy"], ["neither 'accuracy' nor MODULE:FUNCTION"]),
    "metric missing": ([*GOOD, "--metric", "makers:none"], ["makers"]),
    "metric of no function": ([*GOOD, "--metric", "makers:NUMBER"], ["is a int, not a function"]),
    "metric twice": ([*GOOD, "--metric", "accuracy", "--metric", "accuracy"], ["two metrics are called 'accuracy'"]),
    "baseline missing": ([*GOOD, "--baseline", "none.json"], ["none.json"]),
    "baseline damaged": ([*GOOD, "--baseline", "garbage.onnx"], ["garbage.onnx"]),
    "update of no baseline": ([*GOOD, "--update-baseline"], ["--update-baseline needs the file"]),
    "junit is a folder": ([*GOOD, "--junit", "void"], ["--junit void: is no file"]),
    "junit in no folder": ([*GOOD, "--junit", "none/j.xml"], ["none", "mkdir -p"]),
    "markdown is a model": ([*GOOD, "--markdown", "m.onnx"], ["is a model, which is never touched"]),
    "one file for two": ([*GOOD, "--markdown", "r", "--junit", "r"], ["is also what"]),
    "baseline is a model": ([*GOOD, "--baseline", KEEP, "--update-baseline"], ["is a model, which is never touched"]),
    "unknown option": ([*GOOD, "--nope"], ["--nope"]),
    "three models": ([*GOOD, "m.onnx"], ["m.onnx"]),
}


@pytest.fixture
def bad_inputs(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    good = (models / "m.onnx").read_bytes()
    (models / "garbage.onnx").write_bytes(b"\xff\xfe\x00garbage" * 9)
    (models / "empty.onnx").write_bytes(b"")
    (models / "cut.onnx").write_bytes(good[: len(good) * 2 // 3])
    (models / "void").mkdir()
    save(
        models / "other.onnx",
        [node("Exp", "a", "y"), node("Exp", "a", "p")],
        {"a": (FLOAT, [4])},
        {"y": (FLOAT, [4]), "p": (FLOAT, [4])},
    )
    save(models / "outputs.onnx", [node("Exp", "x", "q")], {"x": (FLOAT, ["n", 4])}, {"q": (FLOAT, ["n", 4])})
    both = {"y": (FLOAT, ["n", 4]), "p": (FLOAT, ["n", 4])}
    types = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Mul", "h x", "y"), node("Exp", "x", "p")]
    save(models / "types.onnx", types, {"x": (FLOAT, ["n", 4])}, both)
    unknown = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "y", to=FLOAT), node("Nonsense", "x", "p")]
    save(models / "unknown.onnx", unknown, {"x": (FLOAT, ["n", 4])}, both)
    x = np.ones((2, 4), np.float32)
    np.savez(models / "name.npz", X=x)
    np.savez(models / "shape.npz", x=np.ones((2, 5), np.float32))
    np.savez(models / "rank.npz", x=np.ones(4, np.float32))
    np.savez(models / "int.npz", x=np.ones((2, 4), np.int64))
    np.savez(models / "text.npz", x=np.array([["a"] * 4]))
    np.savez(models / "wide.npz", x=np.full((2, 4), 1e300))
    np.savez(models / "pickle.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez(models / "whole.npz", x=x)
    whole = (models / "whole.npz").read_bytes()
    (models / "short.npz").write_bytes(whole[: len(whole) // 2])
    (models / "damaged.npz").write_bytes(whole[:80] + b"\xff" * 40 + whole[120:])
    (models / "mixed").mkdir()
    np.savez(models / "mixed" / "s0.npz", x=x)
    np.savez(models / "mixed" / "s1.npz", x=np.ones((2, 3), np.float32))
    (models / "wrong.toml").write_text("rel = 1\n", "utf-8")
    (models / "makers.py").write_text(
        "NUMBER = 1\ndef boom():\n    raise RuntimeError('boom')\ndef nothing():\n    return []\ndef numbers():\n    return [1]\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(models))
    sys.modules.pop("makers", None)
    return models


@pytest.mark.parametrize("case", list(ERRORS))
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(cli: Cli, bad_inputs: Path, case: str) -> None:
    arguments, words = ERRORS[case]
    before = {name: digest for name, digest in listing(bad_inputs).items() if "__pycache__" not in name}
    message = one_line(cli(*arguments))
    for word in words:
        assert word in message
    assert {name: digest for name, digest in listing(bad_inputs).items() if "__pycache__" not in name} == before


@pytest.mark.parametrize("case", ["missing candidate", "another model", "later sample bad", "unknown measure", "unknown option"])
def test_an_error_leaves_stdout_empty_with_json_too(cli: Cli, bad_inputs: Path, case: str) -> None:
    one_line(cli(*ERRORS[case][0], "--json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told_before_any_work(cli: Cli, models: Path) -> None:
    (models / "locked").mkdir(mode=0o500)
    assert "read-only" in one_line(cli(*GOOD, "--junit", "locked/j.xml"))


def test_files_are_written_for_a_failed_run_and_not_for_a_refused_one(cli: Cli, models: Path) -> None:
    cli("m.onnx", KEEP, "--samples", "none.npz", "--junit", "j.xml", "--markdown", "m.md")
    assert not (models / "j.xml").exists() and not (models / "m.md").exists()
    assert cli("big.onnx", BURST, "--samples", "large.npz", "--junit", "j.xml", "--markdown", "m.md").code == 1
    assert (models / "j.xml").exists() and (models / "m.md").exists()


def test_cuda_without_a_gpu_is_one_line(cli: Cli, models: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU, or its runtime")
    message = one_line(cli(*GOOD, "--on", "cuda"))
    assert "CUDA cannot be used here" in message and "--on simulate" in message


def test_the_installed_command_gives_the_exit_code(models: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "halfconv", "validate", *arguments]
        return subprocess.run(command, cwd=models, text=True, capture_output=True, check=False, timeout=300)

    assert run("m.onnx", KEEP).returncode == 0
    done = run("big.onnx", BURST, "--samples", "large.npz", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["passed"] is False and done.stderr == ""
    done = run("m.onnx", "none.onnx")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("halfconv: ")


# pytest's plugin, with the real comparison


@pytest.mark.slow
def test_assert_drift_passes_fails_and_updates(models: Path) -> None:
    (models / "test_drift.py").write_text(
        textwrap.dedent(
            """
            def test_good(assert_drift):
                report = assert_drift("m.onnx", "m.half.onnx", "few", rel_l2=1e-2, accuracy=0.0, baseline="b/drift.json")
                assert report.passed and report.samples == 3

            def test_bad(assert_drift):
                assert_drift("big.onnx", "big.half.onnx", "large.npz")

            def test_refused(assert_drift):
                assert_drift("m.onnx", "none.onnx")
            """
        ),
        "utf-8",
    )

    def run(*options: str) -> tuple[int, str]:
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "halfconv.pytest_plugin", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=models, env=environment, text=True, capture_output=True, check=False, timeout=300)
        return done.returncode, done.stdout

    code, text = run("test_drift.py", "--halfconv-update")
    assert code == 1 and "1 passed" in text and "2 failed" in text, text
    assert (models / "b" / "drift.json").exists()
    assert "big.half.onnx drifts too far: p" in text
    assert "first bad: mul_m overflows: its result reaches 100,000 (> 65,504) in FP32 (value 'm')" in text
    assert "reproduce: halfconv validate big.onnx big.half.onnx --samples large.npz" in text
    assert "InputError: none.onnx: no such file; try: check the path" in text
    code, text = run("test_drift.py::test_good")
    assert code == 0, text
