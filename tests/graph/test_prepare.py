"""Preparation: no functions, no Constants, sorted, typed, and nothing that nobody needs."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from halfconv.errors import InputError, UnsupportedModel
from halfconv.graph.infer import InferTypesPass
from halfconv.graph.names import Names
from halfconv.graph.prepare import InputConstantsPass, UniqueNamesPass, prepare
from tests.graph import model, ops, prepared


def types(made: ir.Model) -> dict[str, ir.DataType | None]:
    return {known: value.dtype for value, known in Names.of(made).value.items()}


# --- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["value = float {2}", "value_float = 2.0", "value_floats = [2.0, 2.0]", "value_int = 2"])
def test_constants_become_weights(content: str) -> None:
    graph = f"(float[2] x) => (float[2] y) {{ c = Constant <{content}> ()\n d = Cast <to = 1> (c)\n y = Mul(x, d) }}"
    made = prepared(graph)
    assert "Constant" not in ops(made) and "c" in made.graph.initializers


def test_constants_inside_a_branch_stay_in_its_scope() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = g () => (float[2] t) { k = Constant"
        " <value = float {2}> ()\n t = Mul(x, k) },"
        " else_branch = h () => (float[2] e) { k = Constant <value = float {3}> ()\n e = Mul(x, k) }> }"
    )
    made = prepared(graph)
    assert sorted(ops(made)) == ["If", "Mul", "Mul"]
    held = [v.const_value.numpy().item() for g in made.graphs() for v in g.initializers.values() if v.const_value is not None]
    assert sorted(held) == [2, 3]


def _with_listed_weights(ir_version: int, listed: int) -> ir.Model:
    made = model("(float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> { a = Mul(x, v)\n y = Mul(a, w) }")
    made.ir_version = ir_version
    made.graph.inputs.extend(list(made.graph.initializers.values())[:listed])
    return made


@pytest.mark.parametrize(
    "ir_version,listed,inputs,fixed",
    [
        (3, 2, ["x"], 0),  # had to be listed
        (8, 2, ["x"], 2),  # an exporter's habit
        (8, 1, ["x", "v"], 0),  # a default that a caller may override
        (8, 0, ["x"], 0),
    ],
)
def test_weights_that_are_also_inputs(ir_version: int, listed: int, inputs: list[str], fixed: int) -> None:
    made = _with_listed_weights(ir_version, listed)
    constants = InputConstantsPass()
    constants(made)
    assert [value.name for value in made.graph.inputs] == inputs
    assert constants.fixed == fixed and made.ir_version >= 4


# --- order, dead nodes ----------------------------------------------------------------------------------------------


def test_nodes_are_sorted() -> None:
    made = prepared("(float[2] x) => (float[2] y) { y = Tanh(b)\n b = Exp(a)\n a = Relu(x) }")
    assert ops(made) == ["Relu", "Exp", "Tanh"]


def test_a_cycle_is_refused() -> None:
    made = model("(float[2] x) => (float[2] y) { a = Add(x, b)\n b = Relu(a)\n y = Tanh(b) }")
    with pytest.raises(InputError, match="cycle"):
        prepare(made, label="m.onnx")


def test_dead_nodes_go() -> None:
    assert ops(prepared("(float[2] x) => (float[2] y) { a = Exp(x)\n b = Log(a)\n y = Relu(x) }")) == ["Relu"]


DEAD_BRANCH = (
    "(float[2] x, bool c) => (float[2] y) { a = Exp(x)\n d = If(c) <then_branch = g () => (float[2] t) { t = Relu(a) },"
    " else_branch = h () => (float[2] e) { e = Tanh(x) }>\n y = Relu(x) }"
)


def test_what_only_a_dead_branch_reads_goes_too() -> None:
    assert ops(prepared(DEAD_BRANCH)) == ["Relu"]


def test_no_value_has_a_reader_outside_the_model() -> None:
    made = prepared(DEAD_BRANCH)
    alive = set(ir.traversal.RecursiveGraphIterator(made.graph))
    for node in alive:
        for value in (*node.inputs, *node.outputs):
            assert value is None or {use.node for use in value.uses()} <= alive


def test_what_a_dead_node_in_a_living_branch_keeps_alive_goes_too() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y) { a = Exp(x)\n d = If(c) <then_branch = g () => (float[2] t) { t = Relu(a) },"
        " else_branch = h () => (float[2] e) { e = Tanh(x) }>\n q = Tanh(d)\n y = If(c) <then_branch = k () => (float[2] t)"
        " { dead = Log(q)\n t = Neg(x) }, else_branch = l () => (float[2] e) { e = Abs(x) }> }"
    )
    assert sorted(ops(prepared(graph))) == ["Abs", "If", "Neg"]


# --- names ----------------------------------------------------------------------------------------------------------


def test_an_inner_value_that_hides_an_outer_one_gets_a_new_name() -> None:
    made = model(
        "(float[2] x, bool c) => (float[2] y) { a = Relu(x)\n a_2 = Tanh(x)\n b = If(c) <then_branch = g () => (float[2] a)"
        " { a = Tanh(x) }, else_branch = h () => (float[2] e) { e = Add(a, a_2) }>\n y = Add(a, b) }"
    )
    UniqueNamesPass()(made)
    found = list(Names.of(made).value.values())
    assert "If#2.then_branch/a_3" in found or "If#2.then_branch/a_2" not in found
    inner = next(scope.graph for scope in Names.of(made).scopes if scope.graph.name == "g")
    assert inner.outputs[0].name not in ("a", "a_2")


def test_the_same_name_in_both_branches_may_stay() -> None:
    made = model(
        "(float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = g () => (float[2] t) { t = Tanh(x) },"
        " else_branch = h () => (float[2] t) { t = Relu(x) }> }"
    )
    assert not UniqueNamesPass()(made).modified


# --- types ----------------------------------------------------------------------------------------------------------


def test_every_value_of_every_scope_has_a_type() -> None:
    made = prepared(
        "(float[2] x, bool c) => (float[2] y) { s = Shape(x)\n k = Cast <to = 1> (s)\n b = Mul(x, k)\n y = If(c)"
        " <then_branch = g () => (t) { q = Tanh(b)\n t = Relu(q) }, else_branch = h () => (e) { e = Relu(b) }> }"
    )
    assert None not in types(made).values()
    assert types(made)["If#3.then_branch/q"] == ir.DataType.FLOAT and types(made)["s"] == ir.DataType.INT64


def test_types_behind_contrib_operators_come_from_their_schema() -> None:
    graph = "(float[2,4] x) => (float[2,4] y) { a = com.microsoft.QuickGelu(x)\n b = Relu(a)\n y = Tanh(b) }"
    made = prepared(graph, imports=', "com.microsoft" : 1')
    assert types(made)["a"] == ir.DataType.FLOAT


def test_a_sequence_is_no_tensor() -> None:
    made = prepared(
        "(float[2] x) => (float[2] y) <int64 i = {0}> { l = SequenceConstruct(x, x)\n k = Identity(l)\n y = SequenceAt(k, i) }"
    )
    kinds = {value.name: type(value.type) for value in Names.of(made).value}
    assert kinds["l"] is ir.SequenceType and kinds["k"] is ir.SequenceType and kinds["y"] is ir.TensorType


def test_inferring_again_changes_nothing() -> None:
    made = prepared("(float[2] x) => (float[2] y) { a = Tanh(x)\n y = Relu(a) }")
    assert not InferTypesPass()(made).modified


# --- functions and operators ----------------------------------------------------------------------------------------


def test_functions_are_inlined() -> None:
    made = prepared(
        "(float[2] x) => (float[2] y) { a = my.domain.twice(x)\n y = Relu(a) }", imports=', "my.domain" : 1',
        functions='<domain: "my.domain", opset_import: ["" : 17]> twice (x) => (y) { t = Tanh(x)\n y = Add(t, t) }',
    )  # fmt: skip
    assert ops(made) == ["Tanh", "Add", "Relu"] and not made.functions


@pytest.mark.parametrize("op,opset", [("Nothing", 17), ("Gelu", 19), ("RMSNormalization", 22)])
def test_an_operator_that_onnx_does_not_know_is_refused(op: str, opset: int) -> None:
    made = model(f"(float[2] x) => (float[2] y) {{ [who] y = {op}(x, x) }}", opset=opset)
    with pytest.raises(UnsupportedModel) as caught:
        prepare(made, label="m.onnx")
    assert all(word in str(caught.value) for word in ("m.onnx", "'who'", op, str(opset))) and "\n" not in str(caught.value)


def test_a_model_without_onnx_operators_is_fine() -> None:
    made = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["my.domain" : 1]>\nmain (float[2] x) => (float[2] y) { y = my.domain.Thing(x) }'
    )
    prepare(made)
    assert ops(made) == ["Thing"]
