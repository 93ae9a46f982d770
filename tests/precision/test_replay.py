"""A saved plan, replayed: on the same model, after retraining, under other names; and what it cannot do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import halfconv
from halfconv.planning import Planned, plan_model
from halfconv.precision.plan import PlannedValue, PrecisionPlan
from halfconv.precision.rules import Rules
from tests import zoo
from tests.graph import model
from tests.random_graphs import RandomModel, random_models
from tests.renaming import renamed, reordered, retrained

NET = (
    "(float[2,64] x, bool c) => (float[2,64] y, int64[2,1] best, bool[2,64] more) <float[64,64] w, float[64] b> {"
    " [mm] m = MatMul(x, w)\n [plus] a = Add(m, b)\n [sum] s = ReduceSum(a)\n [scale] d = Div(a, s)\n"
    " [most] best = ArgMax <axis = 1> (a)\n [test] more = Greater(d, a)\n"
    " [choice] y = If(c) <then_branch = g () => (float[2,64] t) { [e] p = Exp(d)\n [mm2] t = MatMul(p, w) },"
    " else_branch = h () => (float[2,64] u) { [th] u = Tanh(a) }> }"
)


def save(path: Path, graph: str = NET, seed: int = 0) -> Path:
    proto = ir.to_proto(model(graph.replace("float[64,64] w, float[64] b", "float[64,64] w = {0}, float[64] b = {0}")))
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(rng.normal(0, 0.1, tuple(tensor.dims)).astype(np.float32), tensor.name))
    onnx.save(proto, path)
    return path


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def types(plan: PrecisionPlan) -> dict[str, str]:
    return {value.id: value.dtype for value in plan.values}


def flipped(plan: PrecisionPlan, **dtypes: str) -> PrecisionPlan:
    """A plan as a person edits it: other types for some values."""

    def edit(value: PlannedValue) -> PlannedValue:
        if value.id not in dtypes:
            return value
        if dtypes[value.id] == "float":
            return PlannedValue(value.id, "float", "I say so", "mine", "mm", "MatMul")
        return PlannedValue(value.id, dtypes[value.id])

    return dataclasses.replace(plan, values=tuple(edit(value) for value in plan.values))


# The same model

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "half io": {"half_io": True},
    "half output": {"half_io": ["y"]},
    "no list": {"block_list": "none"},
    "blocked reader": {"block_ops": ["ArgMax"]},
    "allowed": {"allow_ops": ["ReduceSum", "Exp"]},
    "cuda, not fused": {"target": "cuda", "fuse": False, "block_nodes": ["mm2?"]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_on_the_same_model_it_gives_the_same_bytes(name: str, folder: Path) -> None:
    source = save(folder / "m.onnx")
    first = halfconv.convert(source, folder / "a.onnx", check=False, save_plan=folder / "a.json", **OPTIONS[name])
    second = halfconv.convert(source, folder / "b.onnx", check=False, plan=folder / "a.json", save_plan=folder / "b.json")
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert first.plan is not None and second.plan is not None and first.plan.fingerprint() == second.plan.fingerprint()
    assert (first.target, first.fp32, first.casts) == (second.target, second.fp32, second.casts)
    assert not any("the plan" in text for text in second.warnings if "although" not in text)


def test_a_plan_object_is_as_good_as_its_file(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source, rules=Rules(block_ops=("Add",))).plan
    assert plan_model(source, plan=plan).plan == plan


@pytest.mark.parametrize("key", ["magika", "skl_mlp_digits"])
def test_real_models_come_back_byte_for_byte(key: str, folder: Path) -> None:
    plan = plan_model(zoo.model(key)).plan
    (folder / "p.json").write_text(plan.to_json(), "utf-8")
    assert plan_model(zoo.model(key), plan=folder / "p.json").plan.to_json() == plan.to_json()


# After retraining, and under other names


def test_a_retrained_model_keeps_the_plans_types(folder: Path) -> None:
    plan = plan_model(save(folder / "m.onnx")).plan
    again = plan_model(save(folder / "n.onnx", seed=1), plan=plan)
    assert types(again.plan) == types(plan) and again.plan.casts == plan.casts
    assert again.plan.source_sha256 != plan.source_sha256
    (note,) = again.assignment.overruled
    assert "another file of the same structure; 9 of 9 values found by name, 0 by structure" in note


def test_a_weight_that_left_halfs_range_is_noted_and_the_type_is_kept(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source).plan
    proto = onnx.load(source)
    next(t for t in proto.graph.initializer if t.name == "b").CopyFrom(numpy_helper.from_array(np.full(64, 1e5, np.float32), "b"))
    worse = saved(proto, folder / "n.onnx")
    assert types(plan_model(worse).plan)["a"] == "float"
    again = plan_model(worse, plan=plan)
    assert types(again.plan)["a"] == "float16"
    assert any("half for node 'plus', although" in note for note in again.assignment.overruled)


def test_a_retrained_real_model_keeps_the_plans_types(folder: Path) -> None:
    plan = plan_model(zoo.model("magika")).plan
    again = plan_model(saved(retrained(onnx.load(zoo.model("magika"))), folder / "n.onnx"), plan=plan).plan
    assert again.fingerprint() == plan.fingerprint()


def check_renamed(plan: PrecisionPlan, again: Planned, names: dict[str, str]) -> None:
    """All values of the main graph have their types and rules under their new names."""
    now = {value.id: value for value in again.plan.values}
    assert len(now) == len(plan.values)
    for value in plan.values:
        if value.id in names:
            new = now[names[value.id]]
            assert (new.dtype, new.rule, new.op) == (value.dtype, value.rule, value.op)
    assert len(again.plan.casts) == len(plan.casts)
    assert {value.node for value in again.plan.fp32() if value.rule != "io"} <= set(again.names.node.values())
    assert sorted((r.input, r.dtype) for r in again.plan.reads) == sorted((r.input, r.dtype) for r in plan.reads)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_with_other_names_keeps_the_plans_types(name: str, folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = halfconv.convert(source, folder / "a.onnx", check=False, **OPTIONS[name]).plan
    assert plan is not None
    other, names = renamed(reordered(onnx.load(source), 1))
    again = plan_model(saved(other, folder / "n.onnx"), plan=plan)
    check_renamed(plan, again, names)
    assert again.half_inputs | again.half_outputs == {names[n] for n in plan.options.get("half_io", ())}
    assert "0 of 9 values found by name, 9 by structure" in again.assignment.overruled[0]
    assert plan_model(folder / "n.onnx", plan=again.plan).plan == again.plan


def test_a_real_model_with_other_names_keeps_the_plans_types(folder: Path) -> None:
    proto = onnx.load(zoo.model("magika"))
    plan = plan_model(zoo.model("magika")).plan
    other, names = renamed(reordered(proto, 2))
    check_renamed(plan, plan_model(saved(other, folder / "n.onnx"), plan=plan), names)


def test_a_name_that_means_another_value_now_is_not_believed(folder: Path) -> None:
    """Exporters number values: after a change of the exporter, 5 may be what 7 was."""
    source = save(folder / "m.onnx")
    plan = plan_model(source).plan
    swap = {"a": "s", "s": "a"}
    proto = onnx.load(source)
    for node in proto.graph.node:
        for inner in (node, *(n for attribute in node.attribute for n in attribute.g.node)):
            inner.input[:] = [swap.get(name, name) for name in inner.input]
            inner.output[:] = [swap.get(name, name) for name in inner.output]
    again = plan_model(saved(proto, folder / "n.onnx"), plan=plan).plan
    assert types(plan)["a"] == "float16" and types(plan)["s"] == "float"
    assert types(again)["s"] == "float16" and types(again)["a"] == "float"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(steps=8))
def test_random_models_replay_exactly(tmp_path_factory: pytest.TempPathFactory, case: RandomModel) -> None:
    folder = tmp_path_factory.mktemp("replay")
    source = saved(case.model, folder / "m.onnx")
    plan = plan_model(source).plan
    (folder / "p.json").write_text(plan.to_json(), "utf-8")
    assert plan_model(source, plan=folder / "p.json").plan.to_json() == plan.to_json()
    other, names = renamed(case.model)
    check_renamed(plan, plan_model(saved(other, folder / "n.onnx"), plan=folder / "p.json"), names)


# What a plan cannot do


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_models(steps=8), data=st.data())
def test_no_edit_makes_an_invalid_model(tmp_path_factory: pytest.TempPathFactory, case: RandomModel, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("edit")
    source = saved(case.model, folder / "m.onnx")
    plan = plan_model(source).plan
    edits = {value.id: data.draw(st.sampled_from(["float", "float16"])) for value in plan.values}
    edited = flipped(plan, **edits)
    result = halfconv.convert(source, folder / "o.onnx", plan=edited, check=False)
    onnx.checker.check_model(folder / "o.onnx", full_check=True)
    assert result.plan is not None
    impossible = {value.id for value in plan.fp32() if value.rule in ("io", "schema", "kernel", "sequence", "unknown-type")}
    for value in result.plan.values:
        if value.dtype == "float16":
            assert edits[value.id] == "float16" and value.id not in impossible
        elif edits[value.id] == "float16":
            assert any(f"half for '{value.id}', which stays FP32" in note for note in result.warnings)
    (folder / "p.json").write_text(result.plan.to_json(), "utf-8")
    assert plan_model(source, plan=folder / "p.json").plan == result.plan


def test_impossible_beats_the_plan_and_a_note_says_so(folder: Path) -> None:
    graph = "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { a = Tanh(x)\n k = GridSample(a, g)\n y = Tanh(k) }"
    path = saved(ir.to_proto(model(graph)), folder / "m.onnx")
    plan = plan_model(path).plan
    assert types(plan)["k"] == "float"
    again = plan_model(path, plan=flipped(plan, k="float16"))
    assert types(again.plan)["k"] == "float"
    assert any(note.startswith("the plan says half for 'k', which stays FP32: ") for note in again.assignment.overruled)


def test_the_border_beats_the_plan(folder: Path) -> None:
    source = save(folder / "m.onnx")
    again = plan_model(source, plan=flipped(plan_model(source).plan, x="float16"))
    assert types(again.plan)["x"] == "float"
    assert any("half for 'x', which stays FP32: model input keeps its type" in note for note in again.assignment.overruled)


def test_values_that_must_have_one_type_get_fp32(folder: Path) -> None:
    graph = "(float[64,64] x, bool c) => (float[64,64] y) { a = Tanh(x)\n y = If(c) <then_branch = g () => (float[64,64] t)"
    graph += " { t = Sigmoid(a) }, else_branch = h () => (float[64,64] u) { u = Tanh(a) }> }"
    path = saved(ir.to_proto(model(graph)), folder / "m.onnx")
    plan = plan_model(path, half_io=True).plan
    assert set(types(plan).values()) == {"float16"}
    again = plan_model(path, plan=flipped(plan, a="float"))
    assert types(again.plan) == {**types(plan), "a": "float"}
    assert again.plan.fp32()[0].reason == "I say so"


def test_an_edited_value_takes_its_group_along(folder: Path) -> None:
    graph = "(float[64,64] x, bool c, int64 n) => (float[64,64] y) { a = Tanh(x)\n"
    graph += " z = Loop(n, c, a) <body = g (int64 i, bool k, float[64,64] v)"
    graph += " => (bool k2, float[64,64] w) { k2 = Identity(k)\n w = Sigmoid(v) }>\n y = Tanh(z) }"
    path = saved(ir.to_proto(model(graph)), folder / "m.onnx")
    plan = plan_model(path).plan
    assert types(plan)["z"] == "float16"
    again = plan_model(path, plan=flipped(plan, z="float"))
    assert types(again.plan)["z"] == types(again.plan)["Loop#1.body/v"] == "float"
    assert any("it must have one type with 'z'" in note for note in again.assignment.overruled)


@pytest.mark.parametrize("old, new", [("Tanh(a)", "Sigmoid(a)"), ("Div(a, s)", "Div(m, s)"), ("Greater(d, a)", "Less(d, a)")])
def test_a_plan_of_another_structure_is_refused_and_nothing_is_left(old: str, new: str, folder: Path) -> None:
    assert old in NET
    plan = plan_model(save(folder / "m.onnx")).plan
    other = save(folder / "n.onnx", NET.replace(old, new))
    before = sorted(folder.iterdir())
    with pytest.raises(halfconv.InputError, match=r"another structure.*; try: "):
        halfconv.convert(other, plan=plan, save_plan=folder / "q.json")
    assert sorted(folder.iterdir()) == before


def test_a_plan_that_lacks_a_value_is_refused(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source).plan
    marks = {id_: mark for id_, mark in plan.value_marks.items() if id_ != "a"}
    short = dataclasses.replace(plan, values=tuple(v for v in plan.values if v.id != "a"), value_marks=marks)
    with pytest.raises(halfconv.InputError, match="says nothing of value 'a'"):
        plan_model(source, plan=short)
    marks = {**plan.value_marks, "zz": "0"}
    more = dataclasses.replace(plan, values=(*plan.values, PlannedValue("zz", "float16")), value_marks=marks)
    with pytest.raises(halfconv.InputError, match="has values that the model has not"):
        plan_model(source, plan=more)


def test_a_plan_without_reads_lets_them_follow_what_they_read(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source).plan
    assert {read.node for read in plan.reads} == {"most", "test"}
    again = plan_model(source, plan=dataclasses.replace(plan, reads=())).plan
    assert types(again) == types(plan)
    assert {(r.node, r.dtype) for r in again.reads if r.node == "most"} == {("most", "float16")}


# Options beside it


@pytest.mark.parametrize(
    ("options", "option"),
    [({"block_ops": ["Add"]}, "--block-op Add"), ({"block_list": "none"}, "--block-list none"), ({"fuse": False}, "--no-fuse"),
     ({"target": "cuda"}, "--target cuda"), ({"half_io": True}, "--half-io x, y"), ({"allow_nodes": ["s.*"]}, "--allow-node s")],
)  # fmt: skip
def test_options_that_contradict_the_plan_are_refused(options: dict[str, Any], option: str, folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source).plan
    with pytest.raises(halfconv.UsageError, match=f"^{option}.*contradicts the plan.*; try: leave out --plan"):
        halfconv.convert(source, plan=plan, check=False, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx"]


def test_an_output_that_the_plan_makes_half_cannot_be_kept(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = plan_model(source, half_io=["y"]).plan
    assert plan_model(source, plan=plan, keep_io=["x"]).plan == plan
    with pytest.raises(halfconv.UsageError, match="--keep-io y contradicts the plan"):
        plan_model(source, plan=plan, keep_io=iter(["y"]))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_the_plan_was_made_with_may_stand_beside_it(name: str, folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = halfconv.convert(source, folder / "a.onnx", check=False, **OPTIONS[name]).plan
    again = halfconv.convert(source, folder / "b.onnx", check=False, plan=plan, **OPTIONS[name]).plan
    assert again == plan


def test_the_plan_is_never_overwritten_by_the_output(folder: Path) -> None:
    source = save(folder / "m.onnx")
    plan = folder / "o.onnx"
    plan.write_text(plan_model(source).plan.to_json(), "utf-8")
    before = plan.read_bytes()
    with pytest.raises(halfconv.UsageError, match="would be overwritten"):
        halfconv.convert(source, plan, plan=plan, check=False)
    assert plan.read_bytes() == before
    plan = plan.rename(folder / "o.onnx.profile.json")
    with pytest.raises(halfconv.UsageError, match="would be overwritten"):
        halfconv.convert(source, folder / "o.onnx", plan=plan, check=False)
    assert plan.read_bytes() == before and json.loads(before)["schema_version"] == 1
