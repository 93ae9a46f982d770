"""A plan file comes from anywhere: what is no plan is refused in one line, and by the published schema."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halfconv
from halfconv import plan_file
from halfconv.json_schema import complaint, schema
from halfconv.plan_file import read_plan
from halfconv.planning import plan_model
from tests.graph import model

GRAPH = (
    "(float[8,8] x) => (float[8,8] y, int64[8,1] best) { [mm] a = MatMul(x, x)\n [sum] s = ReduceSum(a)\n [out] y = Div(a, s)\n"
    " [most] best = ArgMax <axis = 1> (a) }"
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("plan") / "m.onnx"
    ir.save(model(GRAPH), path)
    return plan_model(path).plan.to_dict()


def write(folder: Path, content: Any) -> Path:
    path = folder / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def message(path: Path) -> str:
    """The one line that refuses a file."""
    with pytest.raises(halfconv.InputError) as caught:
        read_plan(path)
    text = str(caught.value)
    assert re.fullmatch(r"[^\n]+; try: [^\n]+", text) and text.isprintable() and len(text) < 500 + len(str(path)), text
    return text


def test_a_saved_plan_is_read_as_it_was(content: dict[str, Any], folder: Path) -> None:
    plan = read_plan(write(folder, content))
    assert plan.to_dict() == content
    assert read_plan(write(folder, plan.to_json())) == plan
    assert {value.op for value in plan.fp32()} >= {"Input", "ReduceSum"}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "other version": ({"schema_version": 2}, "schema version 2; this halfconv reads version 1"),
    "version as text": ({"schema_version": "1"}, 'schema_version: "1" is not 1'),
    "version true": ({"schema_version": True}, "schema_version: true is not 1"),
    "bad hash": ({"source_sha256": "abc"}, 'source_sha256: "abc" has not the form'),
    "other format": ({"to": "int8"}, 'to: "int8" is not one of fp16'),
    "other target": ({"target": ["cuda"]}, "target: a list of 1 is not one of"),
    "unknown option": ({"options": {"level": 3}}, 'options: "level" is not known'),
    "empty option": ({"options": {"block_ops": []}}, "options.block_ops: it is empty"),
    "values no list": ({"values": {"x": "float"}}, "values: an object of 1 is not a list"),
    "null casts": ({"casts": None}, "casts: null is not a list"),
    "more": ({"more": 1}, '"more" is not known'),
    "foreign cast": ({"casts": [{"value": "q", "to": "float"}]}, "'casts' names 'q', which the plan does not know"),
    "cast twice": ({"casts": [{"value": "a", "to": "float"}] * 2}, "casts: an entry is there twice"),
    "read of nobody": ({"reads": [{"node": "q", "input": 0, "dtype": "float"}]}, "'reads' names 'q'"),
    "negative input": ({"reads": [{"node": "most", "input": -1, "dtype": "float"}]}, "reads[0].input: -1 is less than 0"),
    "read twice": ({"reads": [{"node": "most", "input": 0, "dtype": d} for d in ("float", "float16")]}, "'most, input 0' is there"),
    "bad mark": ({"marks": {"values": {"a": "zz"}, "nodes": {}}}, 'marks.values["a"]: "zz" has not the form'),
    "no marks": ({"marks": {"values": {}, "nodes": {}}}, "has no mark"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str, content: dict[str, Any], folder: Path) -> None:
    changes, wanted = BROKEN[name]
    assert wanted in message(write(folder, {**content, **changes}))


def test_a_wrong_value_is_named_by_its_place(content: dict[str, Any], folder: Path) -> None:
    def edited(index: int, **changes: Any) -> dict[str, Any]:
        values = copy.deepcopy(content["values"])
        values[index] |= changes
        return {**content, "values": values}

    float_index = next(i for i, value in enumerate(content["values"]) if value["dtype"] == "float")
    half_index = next(i for i, value in enumerate(content["values"]) if value["dtype"] != "float")
    for index, changes, wanted in (
        (0, {"dtype": "int8"}, 'values[0].dtype: "int8" is not one of float, float16'),
        (0, {"id": 7}, "values[0].id: 7 is not a text"),
        (0, {"figures": {"absmax": "big"}}, 'values[0].figures["absmax"]: "big" is not a number or null'),
        (float_index, {"reason": ""}, f"values[{float_index}].reason: it is empty"),
        (half_index, {"reason": "because"}, f'values[{half_index}].reason: "because" is not ""'),
        (0, {"id": content["values"][1]["id"]}, "is there twice"),
    ):
        assert wanted in message(write(folder, edited(index, **changes)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", "the file is empty"), ("[]", "no JSON object"), ("null", "no JSON object"), ("what", "no JSON"), ("[" * 100_000, "deep"),
     ('{"a": NaN}', "NaN is not JSON"), ('{"a": "\\ud800"}', "no UTF-8 text"), ("1" * 5000, "no JSON")],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_plan_is_refused(text: str, wanted: str, folder: Path) -> None:
    assert wanted in message(write(folder, text))


def test_what_is_no_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> None:
    assert "no such plan" in message(folder / "none.json")
    assert "is a directory" in message(folder)
    os.mkfifo(folder / "pipe")
    assert "is no file" in message(folder / "pipe")
    (folder / "latin.json").write_bytes(b'{"a": "\xe4"}')
    assert "no UTF-8 text" in message(folder / "latin.json")
    monkeypatch.setattr(plan_file, "SIZE_LIMIT", 100)
    assert "more than any plan has" in message(write(folder, content))


def test_every_truncation_is_refused(content: dict[str, Any], folder: Path) -> None:
    text = halfconv.PrecisionPlan.from_dict(content).to_json()
    for end in range(1, len(text) - 2, 41):
        assert "truncated?" in message(write(folder, text[:end])), end


def test_a_name_cannot_drive_the_terminal(content: dict[str, Any], folder: Path) -> None:
    assert "\\x1b" in message(write(folder, {**content, "casts": [{"value": "\x1b[2J", "to": "float"}]}))
    assert "\\u202e" in message(write(folder, {**content, "\u202e": 1}))


# The checker says what the schema says


ODD = [None, True, 0, 1, -1, 1.0, 2.5, "", "x", "float", "float16", "fp16", "0" * 64, [], {}, [1], "0" * 16, "0" * 16 + "\n"]


@st.composite
def mutations(draw: Any, content: dict[str, Any]) -> Any:
    """A plan with one part replaced, removed or added."""
    changed = copy.deepcopy(content)
    part: Any = changed
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            return changed
        key = draw(st.sampled_from(keys))
        if isinstance(part[key], (dict, list)) and draw(st.integers(0, 3)):
            part = part[key]
            continue
        break
    match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
        case "remove":
            del part[key]
        case "add" if isinstance(part, dict):
            part[draw(st.sampled_from(["more", "id", ""]))] = "x"
        case _:
            part[key] = draw(st.sampled_from(ODD))
    return changed


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_the_checker_agrees_with_jsonschema(data: st.DataObject, content: dict[str, Any]) -> None:
    changed = data.draw(mutations(content))
    valid = jsonschema.Draft202012Validator(schema("plan")).is_valid(changed)
    # In JSON Schema 1.0 is an integer, and $ may stand before a last newline; here neither is.
    text = json.dumps(changed)
    if "1.0" not in text and "\\n" not in text:
        assert (complaint(changed, "plan") is None) == valid
    elif not valid:
        assert complaint(changed, "plan") is not None
