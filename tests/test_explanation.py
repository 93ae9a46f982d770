"""What a plan says of one value: its range, its neighbours, and what the other type would cost, as planning itself has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.errors import UsageError
from halfconv.explanation import Explanation, explain
from halfconv.plan_file import read_plan
from halfconv.planning import Planned, plan_model
from halfconv.precision.plan import PrecisionPlan
from halfconv.precision.rewrite import cast_ids
from tests.commands import run_here
from tests.graph import model
from tests.precision.test_golden import attention
from tests.test_schemas import save_magika, save_small, validate


def save_attention(path: Path) -> Path:
    onnx.save(attention(), path)
    return path


@pytest.fixture(params=[save_small, save_attention, save_magika], ids=["small", "attention", "magika"])
def planned(request: pytest.FixtureRequest, folder: Path) -> Planned:
    return plan_model(request.param(folder / "m.onnx"))


def test_the_cost_of_a_change_is_what_planning_says(planned: Planned) -> None:
    """The oracle is the planner itself: with the other type for the value's group, it places other Casts."""
    groups, names, plan = planned.groups, planned.names, planned.plan
    ids = {names.value[value]: value for value in groups.produced}
    before = set(plan.casts)
    for entry in plan.values:
        group = groups.produced[ids[entry.id]]
        half = list(planned.assignment.half)
        half[group] = not half[group]
        after = set(cast_ids(groups, half, names, "float16"))
        change = explain(plan, entry.id).change
        assert change is not None
        assert (set(change.casts_added), set(change.casts_removed)) == (after - before, before - after), entry.id
        tied = {names.value[value] for value, number in groups.produced.items() if number == group}
        assert set(change.values) == tied - {entry.id}
        assert change.to == ("float" if entry.dtype != "float" else "float16")
        assert change.possible == (change.to == "float" or group not in groups.forced)


def test_neighbours_are_those_of_the_graph(planned: Planned) -> None:
    names, plan = planned.names, planned.plan
    ids = {names.value[value]: value for value in planned.groups.produced}
    for entry in plan.values:
        found, value = explain(plan, entry.id), ids[entry.id]
        readers = {names.node[use.node] for use in value.uses() if (use.node, use.idx) in planned.groups.read}
        assert {reader.node for reader in found.readers if reader.op != "Output"} >= readers
        producer = value.producer()
        if producer is not None and producer.op_type != "If":  # which gives on what its branches end with
            read = {names.value[v] for i, v in enumerate(producer.inputs) if v is not None and (producer, i) in planned.groups.read}
            assert {neighbour.value for neighbour in found.inputs} == read
            assert found.place is not None and (found.place.node, found.place.op) == (names.node[producer], producer.op_type)


def found_in(folder: Path, value: str, **options: object) -> Explanation:
    plan = folder / "plan.json"
    halfconv.convert(folder / "m.onnx", folder / "out.onnx", save_plan=plan, **options)  # type: ignore[arg-type]
    return explain(read_plan(plan), value)


def test_bytes_count_values_and_the_weights_that_go_with_them(folder: Path) -> None:
    text = "(float[n,64] x) => (float[n,64] y) { [mm] a = MatMul(x, w)\n [th] y = Tanh(a) }"
    graph = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {text}'.replace(") {", ") <float[64,64] w> {", 1))
    graph.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    onnx.save(graph, folder / "m.onnx")
    change = found_in(folder, "a").change
    assert change is not None and change.to == "float"
    assert (change.bytes, change.weight_bytes, change.free) == (2 * 64, 2 * 64 * 64, ("n",))
    blocked = found_in(folder, "a", block_ops=["MatMul"]).change
    assert blocked is not None and blocked.to == "float16"
    assert (blocked.bytes, blocked.weight_bytes) == (-2 * 64, -2 * 64 * 64)


def test_a_plan_made_with_samples_knows_the_range(folder: Path) -> None:
    onnx.save(ir.to_proto(model("(float[4] x) => (float[4] y) { [sq] y = Mul(x, x) }")), folder / "m.onnx")
    samples = [{"x": np.array([1e-5, 0, -3, 300], np.float32)}]
    found = found_in(folder, "y", samples=samples)
    assert found.place is not None and found.place.range is not None
    held = found.place.range
    assert (held["absmax"], held["overflow"]) == (pytest.approx(9e4), 0.25) and held["smallest"] == pytest.approx(1e-10)
    content = found.to_dict()
    validate("explain", content)
    assert content["range"] == held and content["readers"] == [{"value": "y", "node": "y", "op": "Output", "dtype": "float"}]


def test_what_no_kernel_has_is_said_to_be_impossible(folder: Path) -> None:
    text = "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { [grid] s = GridSample(x, g)\n [th] y = Tanh(s) }"
    onnx.save(ir.to_proto(model(text, opset=16)), folder / "m.onnx")
    change = explain(plan_model(folder / "m.onnx", target="cuda").plan, "s").change
    assert change is not None and not change.possible


def test_a_wrong_value_names_near_misses(folder: Path) -> None:
    plan = plan_model(save_magika(folder / "m.onnx")).plan
    with pytest.raises(UsageError, match=r"no value 'target_labl'; try: 'target_label'"):
        explain(plan, "target_labl")


def test_a_plan_without_places_still_explains(folder: Path) -> None:
    plan = plan_model(save_small(folder / "m.onnx")).plan
    content = plan.to_dict() | {"places": [], "edges": []}
    found = explain(PrecisionPlan.from_dict(content), plan.values[0].id)
    assert found.change is None and found.place is None
    validate("explain", found.to_dict())


@pytest.mark.parametrize("shape", [[10**400], [10**30] * 1000, [-1, 4]], ids=["digits", "rank", "negative"])
def test_a_shape_that_no_tensor_has_costs_nothing(shape: list[int], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A plan comes from anywhere: its numbers may be of any size."""
    content = plan_model(save_small(folder / "m.onnx")).plan.to_dict()
    content["places"] = [place | {"shape": shape} for place in content["places"]]
    (folder / "p.json").write_text(json.dumps(content), "utf-8")
    for value in content["values"]:
        assert run_here(capfd, "explain", value["id"], "--plan", folder / "p.json").code == 0
        run = run_here(capfd, "explain", value["id"], "--plan", folder / "p.json", "--json")
        assert run.code == 0 and json.loads(run.out)["change"]["bytes"] is None


def test_a_figure_beyond_all_floats_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = plan_model(save_small(folder / "m.onnx")).plan.to_dict()
    for text in ("1" + "0" * 400, "1e400"):
        content["values"][0]["figures"] = {"absmax": "HERE"}
        (folder / "p.json").write_text(json.dumps(content).replace('"HERE"', text), "utf-8")
        run = run_here(capfd, "explain", content["values"][0]["id"], "--plan", folder / "p.json")
        assert (run.code, run.out) == (2, "") and "is not a number or null" in run.err
