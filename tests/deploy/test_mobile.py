"""The package for phones: types of what is shipped, operators, usability, and the two project skeletons."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import tree_sitter
import tree_sitter_kotlin
import tree_sitter_swift
from onnx import TensorProto, helper

import halfconv
from halfconv.deploy import making
from halfconv.deploy.mobile import check_twin
from halfconv.deploy.ort_format import read_ort
from halfconv.deploy.ort_tools import call
from halfconv.deploy.packaging import deploy
from halfconv.deploy.parts import place_model
from halfconv.deploy.templates import kotlin, swift
from halfconv.errors import CheckFailed, InputError
from tests.deploy.packages import DIGITS


@pytest.fixture(scope="module")
def package(made: Path) -> Path:
    return made / "mobile-digits_cnn"


def test_the_twin_is_fp32_and_the_other_is_half(package: Path) -> None:
    held = read_ort(str(package / "model" / "digits_cnn.fp32.ort"))
    weights = [weight for weight in onnx.load(DIGITS).graph.initializer if weight.data_type == TensorProto.FLOAT]
    assert held["weights"]["FLOAT"] == len(weights)
    assert "FLOAT16" not in {**held["weights"], **held["values"]} and "Cast" not in held["operators"]
    assert sorted(file.name for file in (package / "model").iterdir()) == ["digits_cnn.fp16.onnx", "digits_cnn.fp32.ort"]


@pytest.mark.parametrize("level", ["disable", "all"])
def test_why_no_half_model_is_shipped_in_ort_format(level: str, package: Path, tmp_path: Path) -> None:
    copy = place_model(package / "model" / "digits_cnn.fp16.onnx", {}, tmp_path, "digits.onnx")
    made = tmp_path / ("digits.ort" if level == "all" else "digits.disable.ort")
    _, held = call(("to_ort", (str(copy), level, False)), ("read_ort", (str(made),)))
    if level == "all":
        assert "FLOAT16" not in held["weights"]  # all are FP32, twice as large as in the file that was converted
    else:
        assert held["operators"]["Cast"] > 2  # the model has one at its input and one at its output
    with pytest.raises(CheckFailed, match="an FP32 twin must not hold"):
        check_twin(made, held)


def test_a_twin_with_half_precision_is_refused() -> None:
    for held in ({"weights": {"FLOAT16": 1}, "values": {}}, {"weights": {"FLOAT": 3}, "values": {"BFLOAT16": 2}}):
        with pytest.raises(CheckFailed, match="in half precision"):
            check_twin(Path("m.ort"), held)
    check_twin(Path("m.ort"), {"weights": {"FLOAT": 3}, "values": {"INT64": 2}})


def test_the_lists_of_operators_hold_what_the_models_need(package: Path) -> None:
    twin = (package / "reduced" / "fp32.required_operators_and_types.config").read_text("utf-8")
    both = (package / "reduced" / "all.required_operators.config").read_text("utf-8")
    operators = {line: set(re.findall(r"[A-Z]\w+", line.partition(";")[2])) for line in both.splitlines() if line[0] != "#"}
    listed = set().union(*operators.values())
    assert {node.op_type for node in onnx.load(package / "model" / "digits_cnn.fp16.onnx").graph.node} <= listed
    assert set(read_ort(str(package / "model" / "digits_cnn.fp32.ort"))["operators"]) <= listed
    assert '"float"' in twin and "float16" not in twin
    assert not re.search(r"^# - .*/", twin + both, re.M)  # no folder of the machine that made them


def test_usability_covers_what_the_helper_covers(package: Path) -> None:
    entries = json.loads((package / "usability.json").read_text("utf-8"))["usability"]
    for model in ("digits_cnn.fp16.onnx", "digits_cnn.fp32.ort"):
        known = {entry["provider"]: entry for entry in entries if entry["model"] == model}
        assert set(known) == {"NNAPI", "CoreML MLProgram", "CoreML NeuralNetwork", "XNNPACK", "QNN"}
        for provider in ("XNNPACK", "QNN"):
            assert not known[provider]["covered"] and known[provider]["verdict"] == ""
            assert "does not cover" in known[provider]["note"]
        nnapi = known["NNAPI"]
        assert nnapi["covered"] and nnapi["supported"] < nnapi["supported_if_fixed"] == nnapi["nodes"]
        assert sum(nnapi["partitions_if_fixed"]) == nnapi["supported_if_fixed"]
    assert next(entry["nodes"] for entry in entries if entry["model"].endswith(".ort")) == len(onnx.load(DIGITS).graph.node)


def test_a_model_that_the_tools_cannot_take_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"bad\.onnx"):
        call(("to_ort", (str(tmp_path / "bad.onnx"), "all", True)))


# The skeletons


@cache
def parser(language: str) -> tree_sitter.Parser:
    known = tree_sitter_kotlin if language == "kotlin" else tree_sitter_swift
    return tree_sitter.Parser(tree_sitter.Language(known.language()))


def problems(node: tree_sitter.Node) -> list[str]:
    found = [f"{node.start_point}: {(node.text or b'')[:80]!r}"] if node.type == "ERROR" or node.is_missing else []
    return found + [problem for child in node.children for problem in problems(child)]


def strings(node: tree_sitter.Node) -> list[str]:
    """All string literals that are one."""
    found = [(node.text or b"").decode()] if node.type in ("string_literal", "line_string_literal") else []
    return found + [literal for child in node.children for literal in strings(child)]


def sources(package: Path) -> list[tuple[str, Path]]:
    kinds = {".kt": "kotlin", ".kts": "kotlin", ".swift": "swift"}
    return [(kinds[file.suffix], file) for file in sorted(package.rglob("*")) if file.suffix in kinds]


def test_sources_are_well_formed(package: Path) -> None:
    found = sources(package)
    assert len(found) == 9
    for language, file in found:
        assert problems(parser(language).parse(file.read_bytes()).root_node) == [], file
    ElementTree.parse(package / "android" / "app" / "src" / "main" / "AndroidManifest.xml")


def test_the_checker_of_sources_sees_what_is_wrong() -> None:
    for language, text in (("kotlin", "class A { fun b( }"), ("swift", "func a( -> {")):
        assert problems(parser(language).parse(text.encode()).root_node)


HOSTILE = 'in"put$x ${y} \\(z) \\u{41}\n\t/*é*/\u2028'


@pytest.mark.slow
def test_names_of_a_model_stay_data(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    for node in model.graph.node:
        node.input[:] = [HOSTILE if name == "image" else name for name in node.input]
    model.graph.input[0].name = HOSTILE
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = 'ba"tch$n'
    onnx.save(model, tmp_path / "digits.onnx")
    package = deploy(tmp_path / "digits.onnx", "mobile", tmp_path / "mobile", record=1).output
    for language, file in sources(package):
        assert problems(parser(language).parse(file.read_bytes()).root_node) == [], file
    (half,) = package.rglob("HalfModel.kt")
    assert kotlin(HOSTILE) in half.read_text("utf-8")
    (half,) = package.rglob("HalfModel.swift")
    assert swift(HOSTILE) in half.read_text("utf-8")
    readme = (package / "README.md").read_text("utf-8")
    assert HOSTILE not in readme and "in_put_x" in readme


@pytest.mark.parametrize("text", [HOSTILE, "plain", "", "\\", '"', "$", "\x00\x1f\x7f", "日本", "\f\\f"])
def test_literals_are_one_literal(text: str) -> None:
    code = f"val a = {kotlin(text)}\n"
    root = parser("kotlin").parse(code.encode()).root_node
    assert problems(root) == [] and strings(root) == [kotlin(text)]
    assert set(re.findall(r"\\(.)", kotlin(text))) <= set('tbnr"\\$u')  # all that Kotlin knows
    assert "${" not in kotlin(text).replace("\\$", "")
    code = f"let a = {swift(text)}\n"
    root = parser("swift").parse(code.encode()).root_node
    assert problems(root) == [] and strings(root) == [swift(text)]


@pytest.mark.slow
def test_swift_lacks_types_and_the_report_says_so(folder: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT), helper.make_node("Relu", ["h"], ["y"])]
    kinds = (("x", TensorProto.BOOL), ("y", TensorProto.FLOAT))
    graph = helper.make_graph(nodes, "g", *([helper.make_tensor_value_info(name, kind, [4])] for name, kind in kinds))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    result = deploy(folder / "m.onnx", "mobile", folder / "mobile", record=1)
    assert result.verified.passed
    assert any("Swift have no bool" in note for note in result.notes)


@pytest.mark.parametrize(("least", "android"), [("1.28", "1.28.0"), ("1.30.0.dev20260101", "1.30.0")])
def test_the_projects_ask_for_a_release_that_loads_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, least: str, android: str
) -> None:
    monkeypatch.setattr(making, "oldest_runtime", lambda model, newest: least)
    deploy(DIGITS, "mobile", folder / "mobile", record=1)
    text = (folder / "mobile" / "android" / "app" / "build.gradle.kts").read_text("utf-8")
    assert f'onnxruntime-android:{android}")' in text


def test_a_model_beyond_2_gb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfconv.deploy import mobile

    monkeypatch.setattr(mobile, "LARGEST", 1000)
    with pytest.raises(halfconv.InputError, match="at most 2 GB"):
        deploy(DIGITS, "mobile", folder / "mobile", record=1)
    assert list(folder.iterdir()) == []
