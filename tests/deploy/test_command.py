"""`halfconv deploy`: what it refuses, what it leaves behind, and what it says."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv.deploy import packaging
from halfconv.deploy.making import safe_name
from halfconv.deploy.manifest import check
from halfconv.deploy.packaging import deploy
from halfconv.deploy.recorded import read_samples
from halfconv.deploy.running import Verified
from halfconv.locks import held_folder
from tests.commands import Run, run_here
from tests.deploy.packages import DIGITS
from tests.test_schemas import validate


@pytest.fixture
def model(folder: Path) -> Path:
    return Path(shutil.copy(DIGITS, folder / "digits.onnx"))


def refused(run: Run, *words: str) -> None:
    assert (run.code, run.out) == (2, "")
    (line,) = run.err.splitlines()
    assert line.startswith("halfconv: ") and "try: " in line
    assert all(word in line for word in words), line


def test_json_says_what_its_schema_says(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("edge")
    run = run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--record", 1, "--json")
    assert (run.code, run.err) == (0, "")
    content = json.loads(run.out)
    validate("deploy", content)
    assert (content["kind"], content["recorded"], content["sample_kind"]) == ("edge", 1, "synthetic")
    assert content["verified"]["passed"] and "synthetic" in " ".join(content["warnings"])
    assert content["files"] == len(check(out)["files"])
    assert content["bytes"] == sum(entry["bytes"] for entry in check(out)["files"])
    assert sorted(entry.name for entry in model.parent.iterdir()) == ["digits.onnx", "edge"]


def test_a_package_is_replaced_and_nothing_else_is(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("edge")
    for record in (1, 2):
        run = run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--record", record)
        assert run.code == 0
        assert f"{record} SYNTHETIC sample{'s' * (record > 1)} recorded" in run.out
    assert len(read_samples(out / "samples").samples) == 2
    before = (out / "manifest.json").read_bytes()
    for place, words in ((model.parent, "no package"), (model, "is no folder"), (model.parent / "no" / "way", "does not exist")):
        refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", place), words)
    inside = Path(shutil.copy(model, out / "model" / "digits.onnx"))
    refused(run_here(capfd, "deploy", inside, "-p", "edge", "-o", out), "lies in the package")
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(entry.name for entry in model.parent.iterdir()) == ["digits.onnx", "edge"]


def test_what_a_killed_run_left_is_removed(model: Path) -> None:
    left, other, busy = (model.parent / f".edge.{word}.tmp" for word in ("0123abcd", "other", "abcd0123"))
    for folder in (left, other, busy):
        (folder / "package").mkdir(parents=True)
    with held_folder(busy):  # another run works there
        deploy(model, "edge", model.with_name("edge"), record=1)
    assert sorted(entry.name for entry in model.parent.iterdir()) == [busy.name, other.name, "digits.onnx", "edge"]
    deploy(model, "edge", model.with_name("edge"), record=1)
    assert sorted(entry.name for entry in model.parent.iterdir()) == [other.name, "digits.onnx", "edge"]


def test_a_package_that_a_killed_run_was_about_to_replace_is_put_back(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = deploy(model, "edge", model.with_name("edge"), record=1).output
    out.rename(model.parent / ".edge.0123abcd.old.tmp")
    refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--fix", "no=1"), "has a free dimension")
    assert sorted(entry.name for entry in model.parent.iterdir()) == ["digits.onnx", "edge"]
    check(out)


def test_a_package_that_does_not_prove_itself_is_not_left(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = packaging.find_kind("edge")
    changed = type(kind)(kind.name, kind.target, kind.write, kind.summary, lambda folder: Verified(True, False, "it fails"))
    monkeypatch.setattr(packaging, "find_kind", lambda name: changed)
    with pytest.raises(halfconv.CheckFailed, match="it fails"):
        deploy(model, "edge", model.with_name("edge"), record=1)
    assert [entry.name for entry in model.parent.iterdir()] == ["digits.onnx"]


def test_what_came_meanwhile_is_not_replaced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, out = packaging.find_kind("edge"), model.with_name("edge")

    def verify(folder: Path) -> Verified:
        out.mkdir()
        (out / "notes.txt").write_text("mine", "utf-8")
        return Verified(True, True, "")

    monkeypatch.setattr(packaging, "find_kind", lambda name: type(kind)(kind.name, kind.target, kind.write, kind.summary, verify))
    with pytest.raises(halfconv.UsageError, match="no package of halfconv"):
        deploy(model, "edge", out, record=1)
    assert sorted(entry.name for entry in model.parent.iterdir()) == ["digits.onnx", "edge"]
    assert [entry.name for entry in out.iterdir()] == ["notes.txt"]


def test_a_bound_that_json_cannot_hold_is_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("edge")
    run = run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--tolerance", "max_abs=inf")
    refused(run, "max_abs is infinite", "--tolerance max_abs=1e30")
    assert not out.exists()


def test_a_tolerance_that_cannot_be_met_leaves_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("edge")
    half = model.with_name("half.onnx")
    halfconv.convert(model, half)
    run = run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--tolerance", "max_abs=0", "--half", half)
    assert run.code == 1
    assert "does not prove itself" in run.err and "max_abs" in run.err and not out.exists()


def test_a_half_must_belong_to_the_model(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half, out = model.with_name("half.onnx"), model.with_name("edge")
    halfconv.convert(model, half)
    refused(run_here(capfd, "deploy", half, "-p", "edge", "-o", out), "already converted", f"--half {half}")
    refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--half", model), "does not say what it was converted from")
    other = onnx.load(model)
    other.producer_name = "another"
    onnx.save(other, model.with_name("other.onnx"))
    refused(run_here(capfd, "deploy", model.with_name("other.onnx"), "-p", "edge", "-o", out, "--half", half), "another file")
    whole = model.with_name("half-io.onnx")
    halfconv.convert(model, whole, half_io=True)
    refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--half", whole), "'image' is float16", "without --half-io")
    run = run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--half", half, "--block-op", "Conv")
    refused(run, "--block-op", "--half")
    assert not out.exists()


def test_formats_that_a_runtime_does_not_compute_are_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("mobile", "node"):
        refused(run_here(capfd, "deploy", model, "-p", kind, "-o", model.with_name(kind), "--to", "bf16"), "bf16", kind)
    half = model.with_name("bf16.onnx")
    halfconv.convert(model, half, to="bf16")
    refused(run_here(capfd, "deploy", model, "-p", "node", "-o", model.with_name("node"), "--half", half), "bf16")


def test_a_size_of_files_is_for_kinds_that_cut_models(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_here(capfd, "deploy", model, "-p", "edge", "-o", model.with_name("edge"), "--chunk-size", "1MB")
    refused(run, "'edge' cuts no model", "--package web")


def test_bf16_is_packed_for_a_gpu(model: Path) -> None:
    result = deploy(model, "edge", model.with_name("edge"), to="bf16", record=1)
    assert (result.to, result.tolerance["rel_l2"]) == ("bf16", 5e-2)
    assert not result.verified.ran and "GPU" in result.verified.words
    assert (result.output / "model" / "digits.bf16.onnx").is_file()
    assert result.min_ort == "1.21"  # its operators need opset 22


def test_missing_and_unusable_models(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(run_here(capfd, "deploy", folder / "no.onnx", "-p", "edge", "-o", folder / "edge"), "no such file")
    (folder / "bad.onnx").write_bytes(b"no model")
    refused(run_here(capfd, "deploy", folder / "bad.onnx", "-p", "edge", "-o", folder / "edge"), "not an ONNX model")
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"])]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "sequence.onnx")
    refused(run_here(capfd, "deploy", folder / "sequence.onnx", "-p", "edge", "-o", folder / "edge"), "'s' is a sequence")


def test_without_jinja2_nothing_begins(model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", model.with_name("edge")), "Jinja2", "halfconv[deploy]")
    assert [entry.name for entry in model.parent.iterdir()] == ["digits.onnx"]


def test_an_operator_that_no_runtime_has_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slots = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])] for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Unheard", ["h"], ["y"], domain="nobody")]
    graph = helper.make_graph(nodes, "g", *slots, [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "custom.onnx")
    refused(run_here(capfd, "deploy", folder / "custom.onnx", "-p", "edge", "-o", folder / "edge"), "Unheard")
    assert [entry.name for entry in folder.iterdir()] == ["custom.onnx"]


def test_weights_beside_the_model_come_along(model: Path) -> None:
    outside = model.with_name("outside.onnx")
    onnx.save(onnx.load(model), outside, save_as_external_data=True, location="weights.bin", size_threshold=64)
    result = deploy(outside, "edge", model.with_name("edge"), record=1)
    assert result.verified.passed
    held = [entry["path"] for entry in check(result.output)["files"] if entry["path"].startswith("model/")]
    assert len(held) == 3  # model, weights, profile
    data = next(path for path in held if not path.endswith((".onnx", ".json")))
    (result.output / data).unlink()
    with pytest.raises(halfconv.InputError, match=r"is missing"):
        check(result.output)


@pytest.mark.parametrize(("name", "fix"), [("n", "a:0=3"), ("n", "n=3"), ("b:n", "b:n=3")])
def test_a_dimension_of_several_inputs_is_fixed_in_all(folder: Path, name: str, fix: str) -> None:
    nodes = [helper.make_node("MatMul", ["a", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    slots = [helper.make_tensor_value_info(slot, TensorProto.FLOAT, [name, 4]) for slot in ("a", "b", "y")]
    graph = helper.make_graph(nodes, "g", slots[:2], slots[2:], [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    result = deploy(folder / "m.onnx", "edge", folder / "edge", fix=[fix], record=1)
    assert [slot.dims for slot in (*result.inputs, *result.outputs)] == [(3, 4)] * 3
    shipped = onnx.load(result.output / "model" / "m.fp16.onnx").graph.input
    assert [slot.type.tensor_type.shape.dim[0].dim_value for slot in shipped] == [3, 3]


@pytest.mark.parametrize("fix", ["batch=2", pytest.param("image:0=2", marks=pytest.mark.slow)])
def test_dimensions_are_fixed_in_both_models(model: Path, fix: str) -> None:
    result = deploy(model, "mobile", model.with_name("mobile"), fix=[fix], record=1)
    assert result.verified.passed
    assert result.inputs[0].dims == (2, 1, 8, 8) and result.outputs[0].dims == (2, 10)
    shipped = onnx.load(result.output / "model" / "digits.fp16.onnx")
    assert [dim.dim_value for dim in shipped.graph.input[0].type.tensor_type.shape.dim] == [2, 1, 8, 8]
    assert read_samples(result.output / "samples").samples[0].inputs["image"].shape == (2, 1, 8, 8)
    content = check(result.output)
    assert content["fixed"] == {fix.partition("=")[0]: 2}
    usable = json.loads((result.output / "usability.json").read_text("utf-8"))["usability"]
    coreml = next(entry for entry in usable if entry["provider"] == "CoreML MLProgram")
    assert coreml["supported"] == coreml["nodes"] and coreml["verdict"] == "YES"


def test_fixing_what_is_not_there_is_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("edge")
    for fix, words in (("seq=4", "there are: batch"), ("batch", "no dimension and size"), ("batch=0", "no dimension and size")):
        refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--fix", fix), words)
    samples = model.with_name("s.npz")
    np.savez(samples, image=np.zeros((3, 1, 8, 8), np.float32))
    refused(run_here(capfd, "deploy", model, "-p", "edge", "-o", out, "--fix", "batch=2", "--samples", samples), "image")


@pytest.mark.parametrize(
    ("stem", "name"),
    [("a b/c", "a_b_c"), ("..", "model"), ("-rf", "rf"), ("Größe", "Gr_e"), ("m.v2", "m.v2"), ("build", "build_model")],
)
def test_names_are_safe(stem: str, name: str) -> None:
    assert safe_name(stem) == name
