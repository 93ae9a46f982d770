"""Ids of values and nodes, as the contract defines them."""

from __future__ import annotations

from halfconv.graph.names import Names
from tests.graph import model

GRAPH = (
    "(float[2] x, bool c) => (float[2] y) { [one] a = Relu(x)\n [twin] b = Relu(a)\n [twin] d = Relu(b)\n e = Tanh(d)\n"
    " [choice] f = If(c) <then_branch = g () => (float[2] t) <float[2] w = {1, 2}> { [one] s = Mul(e, w)\n t = Relu(s) },"
    " else_branch = h () => (float[2] u) { u = If(c) <then_branch = i () => (float[2] t) { t = Relu(e) },"
    " else_branch = j () => (float[2] t) { [deep] t = Tanh(e) }> }>\n y = Tanh(f) }"
)


def test_a_unique_name_is_the_id_and_any_other_node_goes_by_place() -> None:
    names = Names.of(model(GRAPH))
    main = [names.node[node] for node in names.scopes[0].graph]
    assert main == ["one", "Relu#1", "Relu#2", "Tanh#3", "choice", "Tanh#5"]


def test_the_same_name_in_two_scopes_is_unique_in_each() -> None:
    found = set(Names.of(model(GRAPH)).node.values())
    assert {"one", "choice.then_branch/one", "choice.then_branch/Relu#1"} <= found


def test_scopes_nest() -> None:
    names = Names.of(model(GRAPH))
    assert "choice.else_branch/If#0.else_branch/deep" in names.node.values()
    assert "choice.else_branch/If#0.then_branch/t" in names.value.values()


def test_values_are_inputs_weights_and_outputs_of_every_scope() -> None:
    names = Names.of(model(GRAPH))
    found = sorted(names.value.values())
    assert len(found) == len(set(found))
    assert {"x", "c", "a", "y", "choice.then_branch/w", "choice.then_branch/s", "choice.else_branch/u"} <= set(found)


def test_outer_scopes_come_first() -> None:
    names = Names.of(model(GRAPH))
    depths = [scope.prefix.count("/") for scope in names.scopes]
    assert depths == [0, 1, 1, 2, 2]
    assert [names.node[node] for node in names.nodes()][:6] == ["one", "Relu#1", "Relu#2", "Tanh#3", "choice", "Tanh#5"]


def test_a_loops_inputs_belong_to_its_body() -> None:
    graph = (
        "(int64 n, bool c, float[2] x) => (float[2] y) { y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] s)"
        " => (bool k2, float[2] s2) { k2 = Identity(k)\n s2 = Relu(s) }> }"
    )
    assert {"Loop#0.body/i", "Loop#0.body/s", "Loop#0.body/s2"} <= set(Names.of(model(graph)).value.values())
