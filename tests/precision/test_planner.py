"""From decisions to a type for every group, and a plan that says why."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from halfconv.graph.structure import Structure
from halfconv.precision.plan import PlannedValue, PrecisionPlan
from halfconv.precision.planner import Assignment, assign, build_plan
from halfconv.precision.rules import Rules, decisions
from tests.graph import group, grouped

FP16 = ir.DataType.FLOAT16


def plan(
    graph: str, rules: Rules | None = None, half_in: tuple[str, ...] = (), half_out: tuple[str, ...] = (), **options: object
) -> PrecisionPlan:
    made, names, groups = grouped(graph, **options)
    found: Assignment = assign(made, names, groups, decisions(names, rules or Rules()), frozenset(half_in), frozenset(half_out))
    return build_plan(
        names, groups, found, source_sha256="0" * 64, structure=Structure.of(made, names), to="fp16", target="portable",
        options={}, dtype=FP16,
    )  # fmt: skip


def halves(made: PrecisionPlan) -> set[str]:
    return {value.id for value in made.values if value.dtype == "float16"}


def entry(made: PrecisionPlan, value: str) -> PlannedValue:
    return next(v for v in made.values if v.id == value)


CHAIN = "(float[64,64] x) => (float[64,64] y) { a = Tanh(x)\n b = Relu(a)\n y = Sigmoid(b) }"


def test_inputs_keep_their_type_and_what_is_inside_is_half() -> None:
    made = plan(CHAIN)
    assert halves(made) == {"a", "b", "y"}
    assert made.casts == (("x", "float16"), ("y", "float"))
    assert (entry(made, "x").rule, entry(made, "x").node) == ("io", "x")


def test_half_inputs_and_outputs_need_no_casts() -> None:
    made = plan(CHAIN, half_in=("x",), half_out=("y",))
    assert halves(made) == {"x", "a", "b", "y"} and made.casts == ()


def test_half_for_one_side_only() -> None:
    assert plan(CHAIN, half_in=("x",)).casts == (("y", "float"),)
    assert plan(CHAIN, half_out=("y",)).casts == (("x", "float16"),)


def test_every_fp32_value_has_a_reason_a_rule_and_a_culprit() -> None:
    made = plan("(float[2,4] x) => (float[2,4] y) { a = Exp(x)\n b = Relu(a)\n c = Exp(b)\n d = Sin(c)\n y = Tanh(d) }")
    for value in made.fp32():
        assert value.reason and value.rule and value.node and value.op, value.id
    assert entry(made, "b").rule == "min-cut"
    assert all(not (v.reason or v.rule or v.node) for v in made.values if v.dtype == "float16")
    assert made.half + made.float == len(made.values)


def test_one_cast_for_all_readers() -> None:
    graph = "(float[64,64] x) => (float[64,64] y, float[64,64] z) { a = MatMul(x, x)\n y = Exp(a)\n z = Log(a) }"
    made = plan(graph)
    assert made.casts == (("a", "float"), ("x", "float16"))


def test_no_casts_between_two_fp32_neighbours() -> None:
    made = plan("(float[64,64] x) => (float[64,64] y) { a = Exp(x)\n b = Transpose(a)\n c = Log(b)\n y = Sin(c) }")
    assert made.casts == () and halves(made) == set()


def test_a_heavy_operator_is_never_moved_to_save_a_cast() -> None:
    made = plan("(float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { a = Exp(x)\n b = MatMul(a, w)\n y = Log(b) }")
    assert "b" in halves(made)


def test_what_only_moves_numbers_between_fp32_neighbours_stays() -> None:
    made = plan("(float[64,64] x) => (float[4096] y) <int64[1] s = {-1}> { a = Transpose(x)\n y = Reshape(a, s) }")
    assert halves(made) == set() and made.casts == ()


def test_a_mover_beside_something_useful_goes_with_it() -> None:
    made = plan("(float[64,64] x) => (float[64,64] y) { a = Transpose(x)\n b = Tanh(a)\n y = Transpose(b) }")
    assert {"a", "b"} <= halves(made)


@pytest.mark.parametrize("op", ["Identity", "Transpose"])
def test_an_output_that_only_moves_an_input_is_not_rounded(op: str) -> None:
    """FP32 → half → FP32: v would lose its low bits, and there would be three Casts instead of two."""
    made = plan(f"(float[4,4] x) => (float[4,4] v, float[4,4] z) {{ v = {op}(x)\n z = MatMul(v, v) }}")
    assert ("v", "float") not in made.casts
    assert len(made.casts) == 2


def test_an_input_that_is_an_output_is_what_the_user_says() -> None:
    graph = "(float[2] x) => (float[2] x, float[2] y) { y = Tanh(x) }"
    assert "x" not in halves(plan(graph))
    assert "x" in halves(plan(graph, half_in=("x",), half_out=("x",)))


def test_the_plan_is_sorted_and_comes_back_from_json() -> None:
    made = plan(CHAIN, Rules(block_ops=("Relu",)))
    assert [v.id for v in made.values] == sorted(v.id for v in made.values)
    assert list(made.casts) == sorted(made.casts)
    again = PrecisionPlan.from_dict(json.loads(made.to_json()))
    assert again.to_json() == made.to_json() and again.fingerprint() == made.fingerprint()


def test_a_plan_of_another_schema_is_refused() -> None:
    content = {**plan(CHAIN).to_dict(), "schema_version": 99}
    with pytest.raises(ValueError, match="99"):
        PrecisionPlan.from_dict(content)


def test_the_fingerprint_follows_the_types_and_not_the_words() -> None:
    a, b = plan(CHAIN, Rules(block_ops=("Relu",))), plan(CHAIN, Rules(block_nodes=("Relu#1",)))
    assert a.fingerprint() == b.fingerprint() != plan(CHAIN).fingerprint()


def test_the_structure_is_the_same_after_retraining_only() -> None:
    def hashed(graph: str, **options: object) -> str:
        made, names, _ = grouped(graph, **options)
        return Structure.of(made, names).sha256

    one = "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Mul(x, w)\n y = Elu <alpha = 1.0> (a) }"
    assert hashed(one) == hashed(one.replace("{1, 2}", "{3, 4}"))
    for other in (one.replace("Mul", "Add"), one.replace("alpha = 1.0", "alpha = 2.0"), one.replace("Mul(x, w)", "Mul(w, x)")):
        assert hashed(one) != hashed(other)
    assert hashed(one) != hashed(one, opset=18)


def test_a_culprit_inside_a_branch_has_its_full_id() -> None:
    made = plan(
        "(float[2,2] x, bool c) => (float[2,2] y) { y = If(c) <then_branch = g () => (float[2,2] t)"
        " { [e] s = Exp(x)\n t = Tanh(s) }, else_branch = h () => (float[2,2] u) { u = Tanh(x) }> }"
    )
    value = entry(made, "If#0.then_branch/s")
    assert (value.rule, value.node) == ("block-list:Exp", "If#0.then_branch/e")


def test_groups_are_found_by_their_values() -> None:
    _, names, groups = grouped(CHAIN)
    assert len({group(names, groups, v) for v in ("x", "a", "b", "y")}) == 4
