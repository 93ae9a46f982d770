"""A drift report's JSON is what its schema says."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import resources
from typing import Any

import jsonschema
import pytest

from halfconv.drift.baseline import FIGURES
from halfconv.drift.report import DriftReport, LayerDrift, Measures
from halfconv.terminal import print_json
from tests.report import EVIL, bad, good


def schema(name: str = "validate") -> dict[str, Any]:
    return json.loads(resources.files("halfconv").joinpath("schemas", f"{name}.schema.json").read_text("utf-8"))


def check(content: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(content)


def printed(report: DriftReport, capsys: pytest.CaptureFixture[str]) -> Any:
    print_json(report.to_dict())
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["validate", "baseline"])
def test_schemas_describe_all_and_allow_no_more(name: str) -> None:
    content = schema(name)
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["$id"] == f"urn:halfconv:schema:1:{name}"

    def walk(part: Any) -> None:
        if isinstance(part, list):
            for entry in part:
                walk(entry)
        elif isinstance(part, dict):
            if "properties" in part:
                assert part["additionalProperties"] is False
                assert part["required"] == list(part["properties"])
                assert all(entry.get("description") for entry in part["properties"].values())
            for entry in part.values():
                walk(entry)

    walk(content)


def test_schema_has_the_fields_of_the_classes() -> None:
    parts = schema()["$defs"]
    measures = [field.name for field in dataclasses.fields(Measures)]
    assert [name for name in parts["output"]["properties"] if name in measures] == measures
    assert list(parts["layer"]["properties"]) == [field.name for field in dataclasses.fields(LayerDrift)]
    assert list(schema()["properties"]) == list(good().to_dict())
    assert list(schema("baseline")["$defs"]["output"]["properties"]) == list(FIGURES)


@pytest.mark.parametrize(
    "report",
    [
        good(),
        good(layers=(), seconds=None, on="cuda", to="bf16"),
        good(outputs=(), samples=0, tolerance={"rel_l2": math.inf}),
        bad(),
        bad(EVIL),
    ],
    ids=["good", "no-layers", "nothing", "bad", "hostile"],
)
def test_reports_are_what_the_schema_says(report: DriftReport, capsys: pytest.CaptureFixture[str]) -> None:
    check(printed(report, capsys))


def test_nan_and_infinities_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    content = printed(bad(), capsys)
    assert content["outputs"][1]["rel_l2"] is content["outputs"][1]["cosine"] is None
    assert content["metrics"]["loss"]["drop"] is None
    assert content["layers"][2]["added"] is None


def test_schema_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    content = printed(bad(), capsys)
    first = content["outputs"][0]
    for broken in (
        {**content, "more": 1},
        {**content, "on": "tpu"},
        {**content, "samples": {"count": -1, "kind": "given", "seed": 0}},
        {**content, "outputs": [{**first, "rel_l2": -1}]},
        {**content, "outputs": [{**first, "new_nan": None}]},
        {**content, "outputs": [{key: value for key, value in first.items() if key != "zeroed"}]},
        {**content, "layers": [{"value": "x"}]},
        {**content, "metrics": {"m": 1}},
        {key: value for key, value in content.items() if key != "first_bad"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(broken)
