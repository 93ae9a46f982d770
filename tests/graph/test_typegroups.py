"""Type groups: which slots share a type, and what cannot be half, with its reason."""

from __future__ import annotations

import pytest

from tests.graph import forced, group, grouped

BN = "<float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>"


def together(graph: str, *values: str, **options: object) -> bool:
    _, names, groups = grouped(graph, **options)
    return len({group(names, groups, value) for value in values}) == 1


# --- what goes together ---------------------------------------------------------------------------------------------


def test_inputs_and_outputs_of_one_type_variable_are_one_group() -> None:
    _, names, groups = grouped("(float[2] x) => (float[2] y) { a = Tanh(x)\n b = Add(a, x)\n y = Relu(b) }")
    add = next(node for node in names.node if node.op_type == "Add")
    assert groups.read[add, 0] == groups.read[add, 1] == group(names, groups, "b")
    assert group(names, groups, "a") != group(names, groups, "b"), "a producer and its reader may differ: a Cast joins them"


def test_two_nodes_are_two_groups() -> None:
    assert not together("(float[2] x) => (float[2] y) { a = Tanh(x)\n y = Relu(a) }", "a", "y")


def test_both_branches_of_an_if_give_what_the_if_gives() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y, float[2] z) { y, z = If(c) <then_branch = g () => (float[2] t, float[2] t2)"
        " { t = Relu(x)\n t2 = Tanh(x) }, else_branch = h () => (float[2] e, float[2] e2) { e = Tanh(x)\n e2 = Relu(x) }> }"
    )
    _, names, groups = grouped(graph)
    for value, place in (("y", 0), ("z", 1)):
        returned = [g for (owner, index), g in groups.returned.items() if owner.name in ("g", "h") and index == place]
        assert len(returned) == 2 and {*returned} == {group(names, groups, value)}
    assert group(names, groups, "y") != group(names, groups, "z")


LOOP = (
    "(int64 n, bool c, float[2] x) => (float[2] y, float[k,2] z) { y, z = Loop(n, c, x) <body = b (int64 i, bool k, float[2] s)"
    " => (bool k2, float[2] s2, float[2] o) { k2 = Identity(k)\n s2 = Relu(s)\n o = Tanh(s) }> }"
)


def test_what_a_loop_carries_has_one_type_all_the_way() -> None:
    _, names, groups = grouped(LOOP)
    loop = next(node for node in names.node if node.op_type == "Loop")
    assert groups.read[loop, 2] == group(names, groups, "y") == group(names, groups, "Loop#0.body/s")
    assert group(names, groups, "Loop#0.body/s2") != group(names, groups, "y"), "what computes the state may differ"
    assert group(names, groups, "z") != group(names, groups, "y")


def test_what_a_scan_carries_and_what_it_slices() -> None:
    graph = (
        "(float[2] h, float[3,2] x) => (float[2] y, float[3,2] z) { y, z = Scan <num_scan_inputs = 1, body = b"
        " (float[2] s, float[2] r) => (float[2] s2, float[2] o) { s2 = Add(s, r)\n o = Tanh(r) }> (h, x) }"
    )
    _, names, groups = grouped(graph)
    scan = next(node for node in names.node if node.op_type == "Scan")
    assert groups.read[scan, 0] == group(names, groups, "y") == group(names, groups, "Scan#0.body/s")
    assert groups.read[scan, 1] == group(names, groups, "Scan#0.body/r")
    assert len({group(names, groups, v) for v in ("y", "z", "Scan#0.body/r")}) == 3


def test_an_input_that_is_directly_an_output_has_one_type() -> None:
    made, names, groups = grouped("(float[2] x) => (float[2] x, float[2] y) { y = Relu(x) }")
    assert groups.returned[made.graph, 0] == group(names, groups, "x")


def test_a_cast_from_fp32_to_fp32_changes_nothing() -> None:
    _, names, groups = grouped("(float[2] x) => (float[2] y) { a = Relu(x)\n b = Cast <to = 1> (a)\n y = Tanh(b) }")
    cast = next(node for node in names.node if node.op_type == "Cast")
    assert groups.read[cast, 0] == group(names, groups, "b")


def test_a_cast_from_another_type_has_only_its_output() -> None:
    _, names, groups = grouped("(int64[2] x) => (float[2] y) { a = Cast <to = 1> (x)\n y = Tanh(a) }")
    cast = next(node for node in names.node if node.op_type == "Cast")
    assert (cast, 0) not in groups.read
    assert groups.of_node(cast) == {group(names, groups, "a")}


def test_weights_belong_to_no_group_but_their_readers_slots_do() -> None:
    _, names, groups = grouped("(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    mul = next(iter(names.node))
    assert "w" not in {names.value[value] for value in groups.produced}
    assert groups.read[mul, 1] == group(names, groups, "y")


def test_a_missing_optional_input_has_no_slot() -> None:
    _, _, groups = grouped("(float[2] x) => (float[2] y) <float k = {1}> { y = Clip(x, , k) }")
    assert {index for _, index in groups.read} == {0, 2}


@pytest.mark.parametrize("kind", ["double", "int64", "float16"])
def test_other_types_are_left_alone(kind: str) -> None:
    _, _, groups = grouped(f"({kind}[2] x) => ({kind}[2] y) {{ y = Neg(x) }}")
    assert not groups.produced and not groups.read


def test_the_statistics_of_batch_normalization_go_apart_where_a_kernel_mixes() -> None:
    _, _, groups = grouped(f"(float[1,2,3,3] x) => (float[1,2,3,3] y) {BN} {{ y = BatchNormalization(x, s, b, m, v) }}")
    assert not groups.forced


# --- what cannot be half --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph,value,rule,node,words",
    [
        # no kernel on the target
        ("(float[2,2] x) => (float y) { a = Relu(x)\n [d] y = Det(a) }", "y", "kernel", "d", "no CUDA kernel for Det"),
        ("(float a, float b, float c) => (float[n] y) { [r] y = Range(a, b, c) }", "y", "schema", "r", "FLOAT16"),
        ("(float[3,3] x) => (float[3,3] y) { [e] y = EyeLike(x) }", "y", "kernel", "e", "FLOAT16"),
        ("(float[2] x) => (float[2] y) { [r] a = RandomNormal <shape = [2]> ()\n y = Add(x, a) }", "a", "kernel", "r", "CPU"),
        ("(float[2] x, int64[1,1] i, float[1] u) => (float[2] y) { [s] y = ScatterND <reduction = \"add\"> (x, i, u) }",
         "y", "kernel", "s", "'add'"),
        # sequences
        ("(float[2] x) => (float[2] y) <int64 i = {0}> { [s] l = SequenceConstruct(x, x)\n [a] y = SequenceAt(l, i) }",
         "y", "sequence", "a", "sequence"),
    ],
)  # fmt: skip
def test_each_reason_names_its_culprit(graph: str, value: str, rule: str, node: str, words: str) -> None:
    why = forced(graph, value)
    assert why is not None and why[:2] == (rule, node) and words in why[2]


def test_a_schema_that_does_not_allow_half() -> None:
    graph = "(float[2,2] x) => (float[2,2] y) { [s] y = ai.onnx.ml.Scaler <offset = [0.0], scale = [2.0]> (x) }"
    why = forced(graph, "y", imports=', "ai.onnx.ml" : 1')
    assert why is not None and why[0] == "schema" and why[1] == "s" and "Scaler" in why[2]


def test_the_scales_of_resize_are_float_and_its_data_are_not() -> None:
    graph = "(float[1,1,2,2] x, float[4] k) => (float[a,b,c,d] y) { [r] y = Resize(x, , s)\n s = Relu(k) }"
    _, names, groups = grouped(graph)
    resize = next(node for node in names.node if node.op_type == "Resize")
    why = groups.forced[groups.read[resize, 2]]
    assert (why.rule, why.node) == ("schema", "r")
    assert groups.read[resize, 0] not in groups.forced


def test_the_statistics_that_layer_normalization_returns_are_float() -> None:
    graph = "(float[2,4] x) => (float[2,4] y, float[2,1] m) <float[4] g = {1, 1, 1, 1}> { [n] y, m = LayerNormalization(x, g) }"
    why = forced(graph, "m")
    assert why is not None and why[:2] == ("schema", "n")
    assert forced(graph, "y") is None


@pytest.mark.parametrize("typed", [True, False])
def test_an_unknown_operator(typed: bool) -> None:
    graph = "(float[2] x) => (float[2] y) { a = Relu(x)\n [u] b = my.domain.Thing(a)\n y = Relu(b) }"
    _, names, groups = grouped(graph, imports=', "my.domain" : 1')
    node = next(node for node in names.node if node.op_type == "Thing")
    why = groups.forced[groups.read[node, 0]]
    assert (why.rule, why.node) == ("unknown-op", "u") and "my.domain::Thing" in why.reason


def test_what_an_unknown_type_touches_is_float() -> None:
    graph = "(float[2] x) => (float[2] y) { [u] b = my.domain.Thing(x)\n [a] c = Add(b, x)\n y = Relu(c) }"
    _, names, groups = grouped(graph, imports=', "my.domain" : 1')
    add = next(node for node in names.node if node.op_type == "Add")
    why = groups.forced[groups.read[add, 1]]
    assert (why.rule, why.node) == ("unknown-type", "a") and "'b'" in why.reason


def test_one_impossible_branch_makes_the_whole_if_float() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = g () => (float[2] t) { t = Relu(x) },"
        " else_branch = h () => (float[2] e) { e = RandomNormal <shape = [2]> () }> }"
    )
    # the result of the branch is another slot than what computes it: a Cast can stand between
    assert forced(graph, "y") is None
    assert forced(graph, "If#0.else_branch/e") is not None
