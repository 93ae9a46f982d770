"""A model's structure: the same whatever its names, the order of its nodes and its weights."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from halfconv.graph.names import Names
from halfconv.graph.prepare import prepare
from halfconv.graph.structure import Structure
from tests.graph import model
from tests.random_graphs import RandomModel, random_models
from tests.renaming import renamed, reordered, retrained

BRANCHY = (
    "(float[2,2] x, bool c) => (float[2,2] y, float[2,2] z) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {4, 3, 2, 1}> {"
    " a = MatMul(x, w)\n b = MatMul(x, v)\n d = Sub(a, b)\n"
    " y = If(c) <then_branch = g () => (float[2,2] t) { s = Exp(d)\n t = Tanh(s) },"
    " else_branch = h () => (float[2,2] u) { u = Tanh(a) }>\n z = Relu(d) }"
)


def structured(proto: onnx.ModelProto) -> tuple[Structure, dict[str, str], dict[str, str]]:
    """The structure of a model, and the marks of its values and nodes by id."""
    made = ir.from_proto(proto)
    prepare(made)
    names = Names.of(made)
    found = Structure.of(made, names)
    values = {names.value[value]: mark for value, mark in found.value.items() if value in names.value}
    return found, values, {names.node[node]: mark for node, mark in found.node.items()}


def proto(graph: str, **options: object) -> onnx.ModelProto:
    return ir.to_proto(model(graph, **options))  # type: ignore[arg-type]


def test_names_order_and_weights_are_no_structure() -> None:
    base = proto(BRANCHY)
    found, values, _ = structured(base)
    other, names = renamed(base)
    for changed in (other, reordered(base, 3), reordered(other, 5), retrained(base)):
        assert structured(changed)[0].sha256 == found.sha256
    moved = structured(reordered(other, 7))[1]
    assert {names[id_]: mark for id_, mark in values.items() if "/" not in id_}.items() <= moved.items()


@pytest.mark.parametrize(
    ("old", "new"),
    [("Sub(a, b)", "Sub(b, a)"), ("Exp(d)", "Exp(a)"), ("Relu(d)", "Relu(b)"), ("Relu(d)", "Sigmoid(d)"), ("Tanh(a)", "Tanh(b)"),
     ("u = Tanh(a)", "q = Tanh(a)\n u = Tanh(q)"), ("(float[2,2] y, float[2,2] z)", "(float[2,2] z, float[2,2] y)"),
     ("MatMul(x, v)", "MatMul(v, x)"), ("MatMul(x, v)", "MatMul(x, w)")],
)  # fmt: skip
def test_what_is_computed_is_structure(old: str, new: str) -> None:
    assert old in BRANCHY
    assert structured(proto(BRANCHY))[0].sha256 != structured(proto(BRANCHY.replace(old, new)))[0].sha256


def test_attributes_and_opset_are_structure() -> None:
    one = "(float[2] x) => (float[2] y) { y = Elu <alpha = 1.0> (x) }"
    assert structured(proto(one))[0].sha256 != structured(proto(one.replace("1.0", "2.0")))[0].sha256
    assert structured(proto(one))[0].sha256 != structured(proto(one, opset=18))[0].sha256


def test_equal_branches_are_told_apart_by_where_they_are_read() -> None:
    graph = "(float[2] x) => (float[2] y, float[4] z) { a = Tanh(x)\n b = Tanh(x)\n y = Max(x, x)\n z = Concat <axis = 0> (a, b) }"
    swapped = graph.replace("a = Tanh(x)\n b = Tanh(x)", "b = Tanh(x)\n a = Tanh(x)")
    before, after = (structured(proto(text))[1] for text in (graph, swapped))
    assert before == after
    assert len(set(before.values())) == 5


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(steps=8))
def test_a_random_model_is_found_under_other_names(case: RandomModel) -> None:
    found, values, _ = structured(case.model)
    other, _ = renamed(case.model)
    again, moved, _ = structured(other)
    assert again.sha256 == found.sha256
    assert sorted(moved.values()) == sorted(values.values())
    assert not any("." in mark for mark in values.values())  # no twins
