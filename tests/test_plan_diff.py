"""Two plans compared, and one value explained: what changed, why, and what is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

import halfconv
from halfconv.explanation import MEANINGS, explain
from halfconv.plan_diff import diff_plans
from halfconv.planning import plan_model
from halfconv.precision.plan import PlannedValue, PrecisionPlan
from halfconv.precision.rules import Rules
from tests import zoo
from tests.graph import model
from tests.random_graphs import RandomModel, random_models
from tests.renaming import renamed, reordered

GRAPH = (
    "(float[64,64] x) => (float[64,64] y, int64[64,1] best) { [mm] a = MatMul(x, x)\n [sum] s = ReduceSum(a)\n"
    " [div] d = Div(a, s)\n [th] t = Tanh(d)\n [most] best = ArgMax <axis = 1> (a)\n [out] y = MatMul(t, x) }"
)


def save(folder: Path, graph: str = GRAPH) -> Path:
    ir.save(model(graph), folder / "m.onnx")
    return folder / "m.onnx"


def planned(path: Path, *block_ops: str, **options: Any) -> PrecisionPlan:
    return plan_model(path, rules=Rules(block_ops=block_ops), **options).plan


# diff


def test_a_plan_does_not_differ_from_itself(folder: Path) -> None:
    plan = planned(save(folder))
    diff = diff_plans(plan, plan)
    assert diff.same_decisions and diff.same_structure and diff.values == len(plan.values)
    assert not (diff.header or diff.changed or diff.reasons or diff.added or diff.removed)


def test_a_rule_shows_in_values_casts_reads_and_header(folder: Path) -> None:
    path = save(folder)
    diff = diff_plans(planned(path), planned(path, "Tanh", "ArgMax", target="cuda"))
    assert not diff.same_decisions and diff.same_structure
    assert {(c.field, c.before, str(c.after)) for c in diff.header} == {
        ("options.block_ops", None, "['Tanh', 'ArgMax']"),
        ("target", "portable", "cuda"),
    }
    (change,) = (c for c in diff.changed if c.after.id == "t")
    assert (change.before.dtype, change.after.dtype) == ("float16", "float")
    assert (change.after.rule, change.after.node) == ("user-block", "th")
    assert change.to_dict()["after"]["reason"] == "--block-op Tanh"
    assert ("t", "float16") in diff.casts_added
    assert [(r.node, r.before, r.after) for r in diff.reads] == [("most", "float16", "float")]


def test_the_way_back_is_the_opposite(folder: Path) -> None:
    path = save(folder)
    one, other = planned(path), planned(path, "MatMul", fuse=False)
    there, back = diff_plans(one, other), diff_plans(other, one)
    assert there.casts_added == back.casts_removed and there.casts_removed == back.casts_added
    assert [(c.before, c.after) for c in there.changed] == [(c.after, c.before) for c in back.changed]
    assert [(h.field, h.before, h.after) for h in there.header] == [(h.field, h.after, h.before) for h in back.header]


def test_another_reason_is_no_other_type(folder: Path) -> None:
    path = save(folder)
    diff = diff_plans(planned(path), planned(path, "ReduceSum"))
    assert diff.same_decisions and not diff.changed
    (change,) = diff.reasons
    assert (change.before.rule, change.after.rule) == ("block-list:ReduceSum", "user-block")


def test_values_of_another_model_are_added_and_removed(folder: Path) -> None:
    one = planned(save(folder))
    other = planned(save(folder, GRAPH.replace("[th] t = Tanh(d)", "[th] q = Tanh(d)\n [neg] t = Neg(q)")))
    diff = diff_plans(one, other)
    assert not diff.same_structure and not diff.same_decisions
    assert [value.id for value in diff.added] == ["q"] and not diff.removed
    assert [value.id for value in diff_plans(other, one).removed] == ["q"]
    assert {change.field for change in diff.header} == {"source_sha256", "structure_sha256"}


def test_other_names_are_no_change(folder: Path) -> None:
    path = save(folder)
    onnx.save(reordered(renamed(onnx.load(path))[0], 3), folder / "n.onnx")
    for blocked in ((), ("Tanh",)):
        diff = diff_plans(planned(path), planned(folder / "n.onnx", *blocked))
        assert [change.before.id for change in diff.changed] == (["t"] if blocked else [])
        assert not (diff.added or diff.removed or diff.reasons) and diff.same_decisions == (not blocked)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(steps=8))
def test_random_models_differ_by_what_was_asked(tmp_path_factory: pytest.TempPathFactory, case: RandomModel) -> None:
    path = tmp_path_factory.mktemp("diff") / "m.onnx"
    onnx.save(case.model, path)
    one, other = plan_model(path).plan, plan_model(path, rules=Rules(block_list="none")).plan
    diff = diff_plans(one, other)
    types = {value.id: value.dtype for value in one.values}
    assert {change.after.id for change in diff.changed} == {v.id for v in other.values if v.dtype != types[v.id]}
    assert set(one.casts) - set(diff.casts_removed) | set(diff.casts_added) == set(other.casts)
    assert diff.same_decisions == (one.fingerprint() == other.fingerprint())


# explain


def test_every_value_of_a_real_plan_is_explained() -> None:
    plan = plan_model(zoo.model("magika")).plan
    for value in plan.values:
        found = explain(plan, value.id)
        assert found.value == value and bool(found.meaning) == (value.dtype == "float")
        assert found.casts == tuple(to for name, to in plan.casts if name == value.id)
    exp = next(value for value in plan.fp32() if value.rule == "exp-sum")
    assert len(explain(plan, exp.id).companions) == 2


def test_an_fp32_value_is_explained_by_rule_culprit_and_casts(folder: Path) -> None:
    found = explain(planned(save(folder)), "d")
    assert (found.value.rule, found.value.node, found.value.op) == ("wide-sum", "sum", "ReduceSum")
    assert "--allow-op" in found.meaning and found.casts == ("float16",) and found.companions == ()
    assert explain(planned(save(folder)), "s").value.rule == "block-list:ReduceSum"
    assert explain(planned(save(folder)), "x").meaning.startswith("an input or output")


def test_every_rule_has_a_meaning() -> None:
    text = (Path(halfconv.__file__).parents[1] / "docs" / "convert.md").read_text("utf-8")
    table = text[text.index("| rule | what it means |") : text.index("A rule on an operator counts")]
    for rule in MEANINGS:
        assert f"`{rule}" in table, rule


@pytest.mark.parametrize(
    ("asked", "advice"),
    [("A", "'a'"), ("yy", "'y'"), ("sum", "'d' or 's', which the node of that name keeps in FP32"),
     ("?????", "one of 'a' or 'd' or 's' …"), ("\x1b[31m", "one of")],
)  # fmt: skip
def test_an_unknown_value_gets_near_misses(asked: str, advice: str, folder: Path) -> None:
    with pytest.raises(halfconv.UsageError) as caught:
        explain(planned(save(folder)), asked)
    text = str(caught.value)
    assert text.startswith("the plan has no value '") and f"; try: {advice}" in text and text.isprintable()


def test_a_plan_without_values_says_so(folder: Path) -> None:
    empty = dataclasses.replace(planned(save(folder)), values=())
    with pytest.raises(halfconv.UsageError, match="another plan: this one has no values"):
        explain(empty, "a")
    assert explain(dataclasses.replace(empty, values=(PlannedValue("a", "float16"),)), "a").meaning == ""
