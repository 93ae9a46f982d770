"""What halfconv writes as JSON is what its schemas say."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from referencing import Registry, Resource

import halfconv
from halfconv.cli import main
from halfconv.planning import plan_model

NAMES = (
    "baseline", "bench", "convert", "demo", "deploy", "diff", "doctor", "explain", "export", "formats", "inspect", "kernels",
    "manifest", "plan", "profile", "ranges", "sweep", "sweep_result", "train", "validate",
)  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    return json.loads(resources.files("halfconv").joinpath("schemas", f"{name}.schema.json").read_text("utf-8"))


def validate(name: str, content: Any) -> None:
    registry = Registry().with_resources((schema(n)["$id"], Resource.from_contents(schema(n))) for n in NAMES)
    jsonschema.Draft202012Validator(schema(name), registry=registry).validate(content)


def strict(text: str) -> Any:
    """Parse JSON as the standard has it, in which there is no NaN."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def save_small(path: Path) -> Path:
    """A model with half values, a block-list operator, a decomposed norm and weights that half changes."""
    weight = np.eye(4, dtype=np.float32)
    weight[0] = [1e-9, np.inf, 1.0, 2.0]
    odd = np.array([1e6, np.nan, -1e-9, 1.0], np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"], "mm"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("MatMul", ["r", "plain"], ["m"], "mm2"),
        helper.make_node("ReduceSum", ["m"], ["s"], "sum"),
        helper.make_node("Add", ["m", "s"], ["t"], "plus"),
        helper.make_node("Add", ["t", "odd"], ["y"], "out"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.full((4, 4), 0.5, np.float32), "plain"),
            numpy_helper.from_array(odd, "odd"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def save_magika(path: Path) -> Path:
    pytest.importorskip("magika")
    from halfconv.demo.magika import find_model

    path.write_bytes(find_model().path.read_bytes())
    return path


SOURCES = {"small": save_small, "magika": save_magika}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, folder: Path) -> Path:
    make: Callable[[Path], Path] = SOURCES[request.param]
    return make(folder / f"{request.param}.onnx")


def answer(capfd: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capfd.readouterr()
    main([str(argument) for argument in arguments])
    return strict(capfd.readouterr().out)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name: str) -> None:
    content = schema(name)
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["$id"] == f"urn:halfconv:schema:1:{name}"
    assert content["properties"]["schema_version"] == {"const": 1, "description": "Version of this schema."}
    assert content["required"] == list(content["properties"])
    folder = resources.files("halfconv").joinpath("schemas")
    assert sorted(entry.name for entry in folder.iterdir()) == [f"{n}.schema.json" for n in NAMES]


def test_schemas_describe_every_property_and_allow_no_other() -> None:
    def walk(part: Any, where: str) -> None:
        if isinstance(part, list):
            for entry in part:
                walk(entry, where)
        if not isinstance(part, dict):
            return
        if "properties" in part and "required" in part:
            assert part["additionalProperties"] is False, where
            for key, entry in part["properties"].items():
                described = entry.get("description") or entry.get("$ref") or entry.get("anyOf")
                assert described, f"{where}.{key}"
        for key, entry in part.items():
            walk(entry, f"{where}.{key}")

    for name in NAMES:
        walk(schema(name), name)


def test_convert_and_inspect_share_what_they_share() -> None:
    convert, inspect = schema("convert"), schema("inspect")
    assert convert["$defs"]["fp32"] == inspect["$defs"]["fp32"]
    for key in ("values", "fusions", "seconds", "warnings"):
        assert convert["properties"][key] == inspect["properties"][key]


def test_schemas_refuse_what_they_do_not_know(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = answer(capfd, "inspect", save_small(folder / "m.onnx"), "--json")
    for broken in (
        {**content, "more": 1},
        {**content, "bytes": -1},
        {**content, "sha256": "x"},
        {key: value for key, value in content.items() if key != "nodes"},
        {**content, "fp32": [{"value": "x"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate("inspect", broken)


@pytest.mark.parametrize(
    "options",
    [[], ["--half-io"], ["--no-check", "--no-fuse"], ["--block-list", "none"], ["--target", "cuda", "--block-op", "MatMul"]],
    ids=" ".join,
)
def test_convert_writes_what_its_schemas_say(source: Path, options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    plan = source.with_name("plan.json")
    content = answer(capfd, "convert", source, "--json", "--save-plan", plan, *options)
    validate("convert", content)
    assert Path(content["output"]) == source.with_name(f"{source.stem}.fp16.onnx")
    assert content["bytes_after"] == Path(content["output"]).stat().st_size
    assert len(content["fp32"]) == content["values"]["float"]

    planned = strict(plan.read_text("utf-8"))
    validate("plan", planned)
    assert [value["id"] for value in planned["values"]] == sorted(value["id"] for value in planned["values"])
    assert {value["id"] for value in planned["values"] if value["dtype"] == "float"} == {e["value"] for e in content["fp32"]}

    profile = strict(source.with_name(f"{source.stem}.fp16.onnx.profile.json").read_text("utf-8"))
    validate("profile", profile)
    assert profile["target"] == content["target"]
    assert profile["ort_version"] == (content["check"]["ort_version"] if content["check"] else None)


def test_inspect_prints_what_its_schema_says(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(source.parent.iterdir())
    content = answer(capfd, "inspect", source, "--json")
    validate("inspect", content)
    assert content["bytes"] == source.stat().st_size
    assert sum(content["ops"].values()) == content["nodes"]
    assert sorted(source.parent.iterdir()) == before


def test_converted_again_prints_what_the_schemas_say(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer(capfd, "convert", save_small(folder / "m.onnx"), "--json")
    for command in ("convert", "inspect"):
        validate(command, answer(capfd, command, folder / "m.fp16.onnx", "--json"))


def test_demo_prints_what_its_schema_says(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("magika")
    validate("demo", answer(capfd, "demo", "--json"))
    content = answer(capfd, "demo", "--json", "-o", folder / "kept")
    validate("demo", content)
    assert content["kept"] == content["conversion"]["output"] == str(folder / "kept" / "magika.fp16.onnx")


def test_doctor_prints_what_its_schema_says(capfd: pytest.CaptureFixture[str]) -> None:
    content = answer(capfd, "doctor", "--provider", "cpu", "--json")
    validate("doctor", content)
    assert content["works"] and content["provider"] == "cpu"
    assert [state["provider"] for state in content["providers"]] == ["cpu", "cuda", "tensorrt"]


def test_changed_constants_are_reported_by_schema(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = save_small(folder / "m.onnx")
    content = answer(capfd, "convert", source, "--json", "--block-list", "none", "--allow-op", "Add")
    validate("convert", content)
    (changed,) = (entry for entry in content["constants"] if entry["name"] == "odd")
    assert (changed["saturated"], changed["flushed"], changed["absmax"]) == (1, 1, 1e6)


# Plans


@pytest.fixture
def plan(source: Path) -> halfconv.PrecisionPlan:
    return plan_model(source).plan


def test_plan_round_trips_through_json(plan: halfconv.PrecisionPlan) -> None:
    read = halfconv.PrecisionPlan.from_dict(json.loads(plan.to_json()))
    assert json.loads(plan.to_json()) == plan.to_dict()
    assert read.to_dict() == plan.to_dict()
    assert read.to_json() == plan.to_json()
    assert read.fingerprint() == plan.fingerprint()
    assert (read.half, read.float) == (plan.half, plan.float)


def test_plan_read_back_is_equal(plan: halfconv.PrecisionPlan) -> None:
    assert halfconv.PrecisionPlan.from_dict(plan.to_dict()) == plan


def test_plan_text_is_stable(source: Path, plan: halfconv.PrecisionPlan) -> None:
    assert plan_model(source).plan.to_json() == plan.to_json()
    lines = plan.to_json().splitlines()
    assert sum(line.startswith('    {"id": ') for line in lines) == len(plan.values)
    assert plan.to_json().endswith("}\n")


def test_plan_of_another_version_is_refused(plan: halfconv.PrecisionPlan) -> None:
    with pytest.raises(ValueError, match="schema version 2"):
        halfconv.PrecisionPlan.from_dict({**plan.to_dict(), "schema_version": 2})


def test_schemas_are_in_the_package() -> None:
    spec = importlib.util.find_spec("halfconv")
    assert spec is not None and spec.origin is not None
    assert all((Path(spec.origin).parent / "schemas" / f"{name}.schema.json").is_file() for name in NAMES)
