"""Rewriting: every value has the type of its group, with one Cast per (value, type) and weights as they are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups
from halfconv.precision.rewrite import RewritePass, RewriteStats, cast_ids
from tests import structure
from tests.graph import grouped, model
from tests.simulation import FLOAT, HALF

FP16 = ir.DataType.FLOAT16
Wanted = Callable[[str], bool]


def rewritten(graph: str, wanted: Wanted, **options: object) -> tuple[onnx.ModelProto, RewriteStats]:
    """Make the groups half that hold a value, or are results, which the predicate names; all others are FP32."""
    made, names, groups = grouped(graph, **options)
    half = [False] * (1 + max([*groups.produced.values(), *groups.read.values(), *groups.returned.values()], default=-1))
    for value, number in groups.produced.items():
        half[number] |= wanted(names.value[value])
    for (owner, index), number in groups.returned.items():
        if owner is made.graph:
            half[number] |= wanted(f"result {index}")
    for (node, index), number in groups.read.items():
        if node.op_type == "Cast" and node.inputs[index] in groups.produced:  # what a Cast reads follows its producer
            half[number] |= half[groups.produced[node.inputs[index]]]  # type: ignore[index]
    ids = cast_ids(groups, half, names, "float16")
    rewrite = RewritePass(groups, half, names, FP16)
    rewrite(made)
    proto = ir.to_proto(made)
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    assert not structure.repeated_casts(proto) and not structure.idle_casts(proto)
    assert rewrite.stats.casts == len(ids)
    return proto, rewrite.stats


def among(*ids: str) -> Wanted:
    return lambda value: value in ids


def site(proto: onnx.ModelProto, op: str) -> structure.Site:
    (only,) = [s for s in structure.of_type(proto, op) if op != "Cast" or s.node.metadata_props]
    return only


def stored(proto: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


# --- Casts ----------------------------------------------------------------------------------------------------------


CHAIN = "(float[2] x) => (float[2] y) { a = Relu(x)\n b = Tanh(a)\n y = Neg(b) }"


def test_casts_at_both_sides_of_what_is_half() -> None:
    proto, stats = rewritten(CHAIN, among("b"))
    assert stats.casts == 2
    assert site(proto, "Tanh").inputs == site(proto, "Tanh").outputs == (HALF,)
    assert site(proto, "Relu").outputs == site(proto, "Neg").inputs == (FLOAT,)


def test_nothing_to_do_changes_nothing() -> None:
    before = model(CHAIN)
    proto, stats = rewritten(CHAIN, among())
    assert stats.casts == 0
    assert [(n.op_type, list(n.input), list(n.output)) for n in proto.graph.node] == [
        (n.op_type, [v.name for v in n.inputs if v], [v.name for v in n.outputs]) for n in before.graph
    ]


def test_all_readers_share_a_cast_also_those_in_other_scopes() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y, float[2] u) { a = Relu(x)\n u = Tanh(a)\n y = If(c) <then_branch = g ()"
        " => (float[2] t) { t = Tanh(a) }, else_branch = h () => (float[2] e) { e = Tanh(a) }> }"
    )
    proto, stats = rewritten(graph, among("u", "If#2.then_branch/t", "If#2.else_branch/e"))
    assert [s.node.output[0] for s in structure.casts(proto) if s.node.input[0] == "a"] == ["a_fp16"]
    assert all(s.inputs == (HALF,) for s in structure.of_type(proto, "Tanh"))
    assert stats.casts == 1 + 1 + 2  # a; u back for the output; t and e back for what the branches return


def test_an_output_keeps_its_name_and_its_type() -> None:
    proto, _ = rewritten(CHAIN, among("y"))
    assert proto.graph.output[0].name == "y" and structure.element(proto.graph.output[0].type) == FLOAT
    assert site(proto, "Neg").node.output[0] == "y_fp16"


def test_an_output_that_is_read_inside_is_renamed_for_all_readers() -> None:
    graph = "(float[2] x) => (float[2] a, float[2] y) { a = Relu(x)\n y = Tanh(a) }"
    proto, _ = rewritten(graph, among("a", "y"))
    assert site(proto, "Relu").node.output[0] == site(proto, "Tanh").node.input[0] == "a_fp16"
    assert [v.name for v in proto.graph.output] == ["a", "y"]


def test_half_outputs_are_half() -> None:
    proto, stats = rewritten(CHAIN, among("b", "result 0"))
    assert structure.element(proto.graph.output[0].type) == HALF and proto.graph.output[0].name == "y"
    assert stats.casts == 3


def test_new_names_avoid_those_that_are_there() -> None:
    graph = (
        "(float[2] x) => (float[2] y) { [Cast_x_fp16] x_fp16 = Neg(x)\n x_fp16_2 = Abs(x_fp16)\n [Cast_x_fp16_2] b = Tanh(x)\n"
        " c = Add(b, x_fp16_2)\n y = Neg(c) }"
    )
    proto, _ = rewritten(graph, among("b"))
    names = [name for node in proto.graph.node for name in node.output]
    assert len(names) == len(set(names)) and len({node.name for node in proto.graph.node if node.name}) >= 4


def test_a_cast_of_a_bodys_input_is_inside_the_body() -> None:
    graph = (
        "(int64 n, bool c, float[2] x) => (float[2] y) { y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] s)"
        " => (bool k2, float[2] s2) { k2 = Identity(k)\n s2 = Tanh(s) }> }"
    )
    proto, stats = rewritten(graph, among("Loop#0.body/s2"))
    assert stats.casts == 2
    assert all(s.depth == 1 for s in structure.casts(proto))
    body = next(a.g for a in proto.graph.node[0].attribute if a.name == "body")
    assert [structure.element(v.type) for v in (*body.input, *body.output)][2:] == [FLOAT, onnx.TensorProto.BOOL, FLOAT]


def test_a_carried_state_in_half_is_half_all_the_way() -> None:
    graph = (
        "(int64 n, bool c, float[2] x) => (float[2] z) { z = Tanh(y)\n y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] s)"
        " => (bool k2, float[2] s2) { k2 = Identity(k)\n s2 = Tanh(s) }> }"
    )
    proto, stats = rewritten(graph, among("y", "z", "Loop#0.body/s2"))
    body = next(a.g for n in proto.graph.node for a in n.attribute if a.name == "body")
    assert [structure.element(v.type) for v in (*body.input, *body.output)][2:] == [HALF, onnx.TensorProto.BOOL, HALF]
    assert stats.casts == 2  # x in, z out


def test_a_cast_knows_what_it_was_added_for() -> None:
    proto, _ = rewritten(CHAIN, among("b"))
    props = [{p.key: p.value for p in s.node.metadata_props} for s in structure.casts(proto)]
    assert [p["halfconv.cast"] for p in props] == ["a", "b"]


# --- weights --------------------------------------------------------------------------------------------------------


SHARED = "(float[2] x) => (float[2] y) <float[2] w = {1, 0.1}> { a = Mul(x, w)\n b = Add(a, w)\n y = Neg(b) }"


@pytest.mark.parametrize(
    "wanted,want,kept",
    [
        (among(), {"w": FLOAT}, ([], ["w"], [])),
        (among("a", "b"), {"w": HALF}, (["w"], [], [])),
        (among("b"), {"w": FLOAT, "w_fp16": HALF}, ([], [], ["w"])),
    ],
)
def test_a_weight_is_stored_once_per_precision(wanted: Wanted, want: dict[str, int], kept: tuple[list[str], ...]) -> None:
    proto, stats = rewritten(SHARED, wanted)
    assert stored(proto) == want
    assert (stats.half_weights, stats.float_weights, stats.both_weights) == kept
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for array in arrays.values():
        assert np.array_equal(array, np.array([1, 0.1], np.float32).astype(array.dtype))


@pytest.mark.parametrize("half", [False, True])
def test_a_weight_that_is_an_output_keeps_its_name(half: bool) -> None:
    graph = "(float[2] x) => (float[2] w, float[2] y) <float[2] w = {1, 0.1}> { a = Mul(x, w)\n y = Neg(a) }"
    proto, stats = rewritten(graph, among("result 0") if half else among("a"))
    assert proto.graph.output[0].name == "w"
    assert structure.element(proto.graph.output[0].type) == stored(proto)["w"] == (HALF if half else FLOAT)
    assert stats.both_weights == ["w"] and sorted(stored(proto).values()) == [FLOAT, HALF]
    assert site(proto, "Mul").inputs == ((FLOAT, FLOAT) if half else (HALF, HALF))


def test_a_weight_of_a_branch_is_copied_there() -> None:
    graph = (
        "(float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = g () => (float[2] t) <float[2] w = {1, 2}>"
        " { p = Mul(x, w)\n q = Add(p, w)\n t = Neg(q) }, else_branch = h () => (float[2] e) { e = Neg(x) }> }"
    )
    proto, stats = rewritten(graph, among("If#0.then_branch/p"))
    then = next(a.g for a in proto.graph.node[-1].attribute if a.name == "then_branch")
    assert sorted(t.data_type for t in then.initializer) == [FLOAT, HALF]
    assert stats.both_weights == ["w"] and not proto.graph.initializer


def test_out_of_range_weights_saturate() -> None:
    proto, _ = rewritten("(float[2] x) => (float[2] y) <float[2] w = {-1e9, 70000}> { y = Max(x, w) }", among("y"))
    assert onnx.numpy_helper.to_array(proto.graph.initializer[0]).tolist() == [-65504, 65504]


# --- types in attributes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line,attribute",
    [
        ("a = Cast <to = 1> (i)", "to"),
        ("a = RandomNormalLike <dtype = 1> (x)", "dtype"),
        ("a = RandomNormalLike (x)", "dtype"),
        ("a = Bernoulli <dtype = 1> (x)", "dtype"),
        ("a = HannWindow (n)", "output_datatype"),
        ("a = HannWindow <output_datatype = 1> (n)", "output_datatype"),
    ],
)
def test_a_type_in_an_attribute_follows(line: str, attribute: str) -> None:
    graph = f"(float[4] x, int64[4] i, int64 n) => (float[4] y) {{ {line}\n y = Neg(a) }}"
    for half in (False, True):
        made, names, groups = grouped(graph)
        number = next(g for v, g in groups.produced.items() if v.name == "a")
        decided = [half and g == number for g in range(1 + max([*groups.produced.values(), *groups.returned.values()]))]
        RewritePass(groups, decided, names, FP16)(made)
        node = next(n for n in made.graph if n.outputs[0].name == "a")
        given = node.attributes.get(attribute)
        if half:
            assert given is not None and given.as_int() == HALF
        elif given is not None:
            assert given.as_int() == FLOAT
        elif line == "a = RandomNormalLike (x)":
            assert node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("given", ["", "<value = float[1] {2.5}>", "<value = float[1] {1e9}>"])
def test_the_value_of_a_constant_of_shape_follows(given: str) -> None:
    graph = f"(float[2] x) => (float[2] y) {{ s = Shape(x)\n a = ConstantOfShape {given} (s)\n y = Add(x, a) }}"
    proto, _ = rewritten(graph, among("a"))
    value = next(a.t for a in site(proto, "ConstantOfShape").node.attribute if a.name == "value")
    number = float(given.split("{")[1].split("}")[0]) if given else 0.0
    assert value.data_type == HALF and onnx.numpy_helper.to_array(value).item() == min(number, 65504)
    proto, _ = rewritten(graph, among())
    assert site(proto, "ConstantOfShape").outputs == (FLOAT,)


# --- the model's own Casts ------------------------------------------------------------------------------------------


def test_a_cast_that_now_changes_nothing_goes() -> None:
    graph = (
        "(float[2] x) => (float[2] y) { a = Relu(x)\n h = Cast <to = 10> (a)\n b = Neg(h)\n c = Cast <to = 1> (b)\n y = Tanh(c) }"
    )
    proto, stats = rewritten(graph, among("a", "c", "y"))
    assert stats.dropped_casts == 2
    assert [n.op_type for n in proto.graph.node] == ["Cast", "Relu", "Neg", "Tanh", "Cast"]


def test_a_cast_that_gives_an_output_its_name_stays() -> None:
    proto, stats = rewritten("(float[2] x) => (float[2] y) { a = Relu(x)\n y = Cast <to = 1> (a) }", among())
    assert stats.dropped_casts == 0 and [n.op_type for n in proto.graph.node] == ["Relu", "Cast"]


def test_a_cast_to_another_type_stays_whatever_it_reads() -> None:
    graph = "(float[2] x) => (int64[2] y) { a = Relu(x)\n y = Cast <to = 7> (a) }"
    proto, _ = rewritten(graph, among("a"))
    assert [s.outputs for s in structure.of_type(proto, "Cast") if s.outputs != (HALF,)] != []


OWN_CASTS = "(float[2] x) => (float[2] y, float[2] z) { h = Cast <to = 10> (x)\n f = Cast <to = 1> (h)\n y = Exp(f)\n z = Log(x) }"


def test_the_models_own_cast_is_shared_with_those_that_are_added() -> None:
    """With a half x, f becomes Cast(x), and so is what Log reads."""
    proto, _ = rewritten(OWN_CASTS, among("x"))
    assert len(structure.casts(proto)) == 1


# --- the model ------------------------------------------------------------------------------------------------------


def test_nodes_that_share_a_name_get_their_own() -> None:
    proto, _ = rewritten("(float[2] x) => (float[2] y) { [n] a = Relu(x)\n [n] b = Tanh(a)\n [n_2] y = Neg(b) }", among())
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == 3 and names[0] == "n" and names[2] == "n_2"


def test_a_model_with_functions_is_refused() -> None:
    made = model(
        "(float[2] x) => (float[2] y) { y = my.domain.f(x) }", imports=', "my.domain" : 1',
        functions='<domain: "my.domain", opset_import: ["" : 17]> f (x) => (y) { y = Tanh(x) }',
    )  # fmt: skip
    names = Names.of(made)
    with pytest.raises(ir.passes.PreconditionError):
        RewritePass(TypeGroups(), [], names, FP16)(made)


def test_a_cast_in_a_model_of_foreign_operators_imports_onnx() -> None:
    made = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["my.domain" : 1]>\nmain (float[2] x) => (float[2] y) { y = my.domain.Thing(x) }'
    )
    names = Names.of(made)
    groups = TypeGroups.of(made, names, FP16)
    half = [value == groups.produced[made.graph.inputs[0]] for value in range(1 + max(groups.returned.values()))]
    RewritePass(groups, half, names, FP16)(made)
    assert made.opset_imports[""] >= 13 and [node.op_type for node in made.graph] == ["Cast", "Thing"]
