"""Names, scopes and values that several nodes share (cases.md, Names, scopes, sharing)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import halfconv
from tests import structure
from tests.cases.checks import answers, close, convert, normal, proto, runs, same_interface, text, tidy, with_weights
from tests.runtime_helpers import run
from tests.simulation import FLOAT, HALF, graphs

X = normal(2, 4)
W = normal(4, 4, seed=1)
YES, NO = np.array(True), np.array(False)


# --- 10. shared weights --------------------------------------------------------------------------------------------


def test_a_weight_read_by_half_nodes_only_is_stored_once(folder: Path) -> None:
    model = text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = MatMul(a, w)\n y = MatMul(b, w) }")
    converted = convert(with_weights(model, {"w": W}), folder)
    runs(converted, {"x": X})
    assert structure.weight(converted.model, W) == {"float16": 1}
    assert converted.result.weights == {"half": 1, "float": 0, "both": 0}


def test_a_weight_read_in_both_precisions_is_stored_once_per_precision(folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,4] y, float[2,4] z)"
        " { [h1] a = MatMul(x, w)\n [h2] y = MatMul(a, w)\n [f1] b = MatMul(x, w)\n [f2] z = MatMul(b, w) }"
    )
    converted = convert(with_weights(model, {"w": W}), folder, block_nodes=["f."])
    runs(converted, {"x": X})
    assert {s.node.name: s.outputs for s in converted.ops("MatMul")} == {
        "h1": (HALF,),
        "h2": (HALF,),
        "f1": (FLOAT,),
        "f2": (FLOAT,),
    }
    assert structure.weight(converted.model, W) == {"float16": 1, "float32": 1}
    assert converted.result.weights == {"half": 0, "float": 0, "both": 1}


def test_a_weight_read_by_blocked_nodes_only_stays_as_it_is(folder: Path) -> None:
    model = text("(float[2,4] x) => (float[2,4] y) { [f] a = MatMul(x, w)\n [h] y = MatMul(a, v) }")
    converted = convert(with_weights(model, {"w": W, "v": normal(4, 4, seed=2)}), folder, block_nodes=["f"])
    runs(converted, {"x": X})
    assert structure.weight(converted.model, W) == {"float32": 1}
    assert converted.result.weights == {"half": 1, "float": 1, "both": 0}


@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_a_weight_shared_between_scopes(kind: str, folder: Path) -> None:
    """One reader in the main graph, one in each branch, one of them FP32."""
    made = "w = Constant<value = float[2,2] {0.5, -1.25, 2, 0.75}>()\n" if kind == "constant" else ""
    listed = "" if made else "<float[2,2] w = {0.5, -1.25, 2, 0.75}>"
    model = text(
        f"(float[2,2] x, bool c) => (float[2,2] y) {listed} {{ {made} a = MatMul(x, w)\n y = If(c) <"
        "then_branch = t () => (float[2,2] p) { [half] p = MatMul(a, w) },"
        "else_branch = e () => (float[2,2] q) { [float] q = MatMul(a, w) }> }"
    )
    converted = convert(model, folder, block_nodes=[r".*\.else_branch/float"])
    runs(converted, {"x": normal(2, 2), "c": YES}, {"x": normal(2, 2), "c": NO})
    w = np.array([[0.5, -1.25], [2, 0.75]], np.float32)
    assert structure.weight(converted.model, w) == {"float16": 1, "float32": 1}


def test_a_weight_that_needs_float_in_one_slot_and_may_be_half_in_another(folder: Path) -> None:
    """Resize wants FP32 scales; Mul takes half."""
    model = text(
        "(float[1,1,2,4] x) => (float[?,?,?,?] y) <float[4] s = {1, 1, 2, 1}>"
        ' { r = Resize<mode="nearest">(x, , s)\n y = Mul(r, s) }'
    )
    converted = convert(model, folder, half_io=True)
    runs(converted, {"x": normal(1, 1, 2, 4)}, keep_io=False)
    assert structure.weight(converted.model, np.array([1, 1, 2, 1], np.float32)) == {"float16": 1, "float32": 1}


# --- 11. the same name in several scopes ---------------------------------------------------------------------------


def test_the_same_initializer_name_in_both_branches(folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) { y = If(c) <"
        "then_branch = t () => (float[2,4] o) <float[4] k = {1, 2, 3, 4}> { a = Mul(x, k)\n o = Sigmoid(a) },"
        "else_branch = e () => (float[2,4] o) <float[4] k = {9, 8, 7, 6}> { a = Add(x, k)\n o = Tanh(a) }> }"
    )
    runs(convert(model, folder), {"x": X, "c": YES}, {"x": X, "c": NO})


def test_the_same_names_in_branches_of_two_precisions(folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) { y = If(c) <"
        "then_branch = t () => (float[2,4] o) <float[4,4] k> { [a] z = MatMul(x, k)\n o = Sigmoid(z) },"
        "else_branch = e () => (float[2,4] o) <float[4,4] k> { [b] z = MatMul(x, k)\n o = Sigmoid(z) }> }"
    )
    made = proto(model)
    for seed, branch in enumerate(made.graph.node[0].attribute):
        del branch.g.value_info[:]
        branch.g.initializer.append(onnx.numpy_helper.from_array(normal(4, 4, seed=seed), "k"))
    converted = convert(made, folder, block_nodes=[".*/a"])
    runs(converted, {"x": X, "c": YES}, {"x": X, "c": NO})
    assert {s.node.name: s.outputs for s in converted.ops("MatMul")} == {"a": (FLOAT,), "b": (HALF,)}


@pytest.mark.parametrize("what", ["initializer", "node output"])
def test_an_inner_name_that_hides_an_outer_one(what: str, folder: Path) -> None:
    """ORT itself refuses some shadowing; the output must run wherever the source does."""
    inner = "<float[4] k = {9, 9, 9, 9}> { o = Add(a, k) }" if what == "initializer" else "{ k = Tanh(a)\n o = Neg(k) }"
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) <float[4] k = {1, 2, 3, 4}> { a = Mul(x, k)\n z = If(c) <"
        f"then_branch = t () => (float[2,4] o) {inner},"
        "else_branch = e () => (float[2,4] p) { p = Add(a, k) }>\n y = Mul(z, k) }"
    )
    source = folder / "model.onnx"
    onnx.save(proto(model), source)
    feeds = [{"x": X, "c": YES}, {"x": X, "c": NO}]
    if run(source, feeds).loads:
        runs(convert(source, folder), *feeds)
    else:
        try:
            converted = convert(source, folder)
        except halfconv.InputError:
            return
        # Renaming the inner value is a repair; the result has to be valid.
        tidy(converted)


# --- 12. captured values, loops and scans --------------------------------------------------------------------------


def test_branches_that_capture_values_of_both_precisions(folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y)"
        " { [h] a = MatMul(x, w)\n [f] b = Softplus(a)\n z = If(c) <"
        "then_branch = t () => (float[2,4] p) { p = Add(a, b) },"
        "else_branch = e () => (float[2,4] q) { m = MatMul(b, w)\n q = Sub(m, a) }>\n y = Mul(z, a) }"
    )
    converted = convert(with_weights(model, {"w": W}), folder, block_nodes=["f"])
    runs(converted, {"x": X, "c": YES}, {"x": X, "c": NO})


@pytest.mark.parametrize("half_io", [False, True])
def test_a_branch_that_returns_an_outer_value(half_io: bool, folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) { a = MatMul(x, w)\n y = If(c) <"
        "then_branch = t () => (float[2,4] p) { p = Identity(a) },"
        "else_branch = e () => (float[2,4] q) { q = Identity(x) }> }"
    )
    converted = convert(with_weights(model, {"w": W}), folder, half_io=half_io)
    runs(converted, {"x": X, "c": YES}, {"x": X, "c": NO}, keep_io=not half_io)


@pytest.mark.parametrize("half_io", [False, True])
def test_nested_branches(half_io: bool, folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c, bool d) => (float[2,4] y) { a = MatMul(x, w)\n y = If(c) <"
        "then_branch = t () => (float[2,4] p) { b = Relu(a)\n p = If(d) <"
        "  then_branch = tt () => (float[2,4] pp) { pp = MatMul(b, w) },"
        "  else_branch = te () => (float[2,4] pq) { pq = Add(b, x) }> },"
        "else_branch = e () => (float[2,4] q) { q = Neg(a) }> }"
    )
    feeds = [{"x": X, "c": np.array(c), "d": np.array(d)} for c in (True, False) for d in (True, False)]
    runs(convert(with_weights(model, {"w": W}), folder, half_io=half_io), *feeds, keep_io=not half_io)


_LOOP = (
    "(float[2,4] x, int64 n) => (float[2,4] y, float[?,2,4] s) <bool yes = {1}> { a = Tanh(x)\n"
    " y, s = Loop(n, yes, a) <body = b (int64 i, bool go, float[2,4] v) => (bool on, float[2,4] u, float[2,4] o)"
    " { on = Identity(go)\n [inner] m = MatMul(v, w)\n u = Tanh(m)\n o = Add(u, a) }> }"
)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("blocked", [[], [".*/inner"]])
def test_a_loop_with_carried_state_and_scan_outputs(blocked: list[str], half_io: bool, folder: Path) -> None:
    converted = convert(with_weights(text(_LOOP), {"w": W}), folder, half_io=half_io, block_nodes=blocked)
    runs(converted, {"x": X, "n": np.array(5)}, keep_io=not half_io)
    assert converted.none_half("MatMul") if blocked else converted.all_half("MatMul")


def test_a_loop_that_runs_zero_times_gives_its_initial_state(folder: Path) -> None:
    runs(convert(with_weights(text(_LOOP), {"w": W}), folder), {"x": X, "n": np.array(0)})


def test_a_loop_whose_state_is_swapped(folder: Path) -> None:
    """Values travel between carried slots, so that their types depend on each other."""
    model = text(
        "(float[2,4] x, int64 n) => (float[2,4] y, float[2,4] z) <bool yes = {1}> {"
        " [f] a = Softplus(x)\n b = MatMul(x, w)\n"
        " y, z = Loop(n, yes, a, b) <body = l (int64 i, bool go, float[2,4] p, float[2,4] q)"
        " => (bool on, float[2,4] q2, float[2,4] p2)"
        " { on = Identity(go)\n q2 = Identity(q)\n p2 = Neg(p) }> }"
    )
    converted = convert(with_weights(model, {"w": W}), folder, block_nodes=["f"])
    runs(converted, {"x": X, "n": np.array(3)})


def test_a_loop_that_counts_in_float(folder: Path) -> None:
    model = text(
        "(float[3000] x, int64 n) => (float[3000] y) <bool yes = {1}, float zero = {0}, float one = {1}> {"
        " k = Loop(n, yes, zero) <body = l (int64 i, bool go, float c) => (bool on, float d)"
        " { on = Identity(go)\n d = Add(c, one) }>\n y = Add(x, k) }"
    )
    converted = convert(model, folder)
    runs(converted, {"x": normal(3000), "n": np.array(3000)})


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("opset", [9, 11, 17])
def test_a_scan(opset: int, half_io: bool, folder: Path) -> None:
    model = text(
        "(float[4] h, float[5,4] xs) => (float[4] y, float[5,4] ys) { y, ys = Scan(h, xs) <num_scan_inputs=1,"
        " body = b (float[4] s, float[4] v) => (float[4] t, float[4] o)"
        " { a = Add(s, v)\n t = Tanh(a)\n o = Mul(t, k) }> }",
        opset=opset,
    )
    converted = convert(with_weights(model, {"k": normal(4)}), folder, half_io=half_io)
    runs(converted, {"h": normal(4), "xs": normal(5, 4)}, keep_io=not half_io)


def test_a_loop_inside_a_branch_inside_a_loop(folder: Path) -> None:
    model = text(
        "(float[2,4] x, int64 n, bool c) => (float[2,4] y) <bool yes = {1}> {"
        " y = Loop(n, yes, x) <body = outer (int64 i, bool go, float[2,4] v) => (bool on, float[2,4] u)"
        " { on = Identity(go)\n u = If(c) <"
        "   then_branch = t () => (float[2,4] p) { p = Loop(n, go, v) <body = inner"
        "     (int64 j, bool g2, float[2,4] vv) => (bool o2, float[2,4] uu)"
        "     { o2 = Identity(g2)\n m = MatMul(vv, w)\n uu = Tanh(m) }> },"
        "   else_branch = e () => (float[2,4] q) { q = Sigmoid(v) }> }> }"
    )
    feeds = [{"x": X, "n": np.array(3), "c": c} for c in (YES, NO)]
    runs(convert(with_weights(model, {"w": W}), folder), *feeds)


def test_a_sequence_carried_by_a_loop(folder: Path) -> None:
    model = text(
        "(float[2,4] x, int64 n) => (float[?,4] y) <bool yes = {1}> { e = SequenceEmpty<dtype=1>()\n"
        " s = Loop(n, yes, e) <body = b (int64 i, bool go, seq(float[2,4]) v) => (bool on, seq(float[2,4]) u)"
        " { on = Identity(go)\n f = Cast<to=1>(i)\n m = Add(x, f)\n u = SequenceInsert(v, m) }>\n"
        " y = ConcatFromSequence<axis=0>(s) }"
    )
    runs(convert(model, folder), {"x": X, "n": np.array(3)})


# --- 13. block rules and scopes ------------------------------------------------------------------------------------

_IF = (
    "(float[2,4] x, bool c) => (float[2,4] y) { [before] a = MatMul(x, w)\n [choice] b = If(c) <"
    "then_branch = t () => (float[2,4] p) { [left] p = MatMul(a, w) },"
    "else_branch = e () => (float[2,4] q) { [right] q = Gemm(a, w) }>\n [after] y = MatMul(b, w) }"
)
_BOTH = [{"x": X, "c": YES}, {"x": X, "c": NO}]


def test_a_blocked_node_inside_a_branch(folder: Path) -> None:
    converted = convert(with_weights(text(_IF), {"w": W}), folder, block_nodes=[r"choice\.then_branch/left"])
    runs(converted, *_BOTH)
    kinds = {s.node.name: s.outputs for s in (*converted.ops("MatMul"), *converted.ops("Gemm"))}
    assert kinds == {"before": (HALF,), "left": (FLOAT,), "right": (HALF,), "after": (HALF,)}


@pytest.mark.parametrize("rule", [{"block_ops": ["If"]}, {"block_nodes": ["choice"]}])
def test_blocking_an_if_keeps_all_inside_it_fp32(rule: dict[str, list[str]], folder: Path) -> None:
    converted = convert(with_weights(text(_IF), {"w": W}), folder, **rule)
    runs(converted, *_BOTH)
    kinds = {s.node.name: s.outputs for s in (*converted.ops("MatMul"), *converted.ops("Gemm"), *converted.ops("If"))}
    assert kinds == {"before": (HALF,), "choice": (FLOAT,), "left": (FLOAT,), "right": (FLOAT,), "after": (HALF,)}


def test_blocking_an_operator_blocks_it_in_every_scope(folder: Path) -> None:
    converted = convert(with_weights(text(_IF), {"w": W}), folder, block_ops=["MatMul"])
    runs(converted, *_BOTH)
    assert converted.none_half("MatMul")
    assert converted.all_half("Gemm")


@pytest.mark.parametrize("rule", [{"block_ops": ["Loop"]}, {"block_nodes": [r"Loop#\d\.body/inner"]}])
def test_blocking_a_loop_or_a_node_inside_it(rule: dict[str, list[str]], folder: Path) -> None:
    converted = convert(with_weights(text(_LOOP), {"w": W}), folder, **rule)
    runs(converted, {"x": X, "n": np.array(4)})
    assert converted.none_half("MatMul")


def test_blocking_a_scope(folder: Path) -> None:
    model = text(
        '(float[2,4] x) => (float[2,4] y) { ["/net/head/a"] a = MatMul(x, w)\n ["/net/head/b"] b = MatMul(a, w)\n'
        ' ["/net/header/c"] c = MatMul(b, w)\n ["/net/tail/d"] y = MatMul(c, w) }'
    )
    converted = convert(with_weights(model, {"w": W}), folder, block_scopes=["/net/head"])
    runs(converted, {"x": X})
    assert [s.outputs[0] for s in converted.ops("MatMul")] == [FLOAT, FLOAT, HALF, HALF]


@pytest.mark.parametrize(
    ("rule", "near"),
    [
        ({"block_ops": ["MatMull"]}, "MatMul"),
        ({"block_ops": ["matmul"]}, "MatMul"),
        ({"block_nodes": ["befor"]}, "before"),
        ({"block_nodes": ["lef"]}, "left"),
        ({"block_scopes": ["nowhere"]}, ""),
        ({"block_patterns": ["softmax-atention"]}, "softmax-attention"),
        ({"allow_ops": ["Gem"]}, "Gemm"),
        ({"allow_nodes": ["afte"]}, "after"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error_with_near_misses(rule: dict[str, list[str]], near: str, folder: Path) -> None:
    with pytest.raises(halfconv.UsageError) as caught:
        convert(with_weights(text(_IF), {"w": W}), folder, **rule)
    message = str(caught.value)
    assert next(iter(rule.values()))[0] in message
    assert near in message
    assert "try:" in message and "\n" not in message
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_a_node_rule_matches_the_whole_id(folder: Path) -> None:
    converted = convert(with_weights(text(_IF), {"w": W}), folder, block_nodes=["b.*e"])
    kinds = {s.node.name: s.outputs for s in converted.ops("MatMul")}
    assert kinds == {"before": (FLOAT,), "left": (HALF,), "after": (HALF,)}


def test_a_bad_pattern_in_a_rule_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(halfconv.UsageError):
        convert(with_weights(text(_IF), {"w": W}), folder, block_nodes=["("])


# --- 14. names -----------------------------------------------------------------------------------------------------


def test_unnamed_nodes_have_an_id_by_operator_and_position(folder: Path) -> None:
    model = text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = MatMul(a, w)\n y = MatMul(b, w) }")
    converted = convert(with_weights(model, {"w": W}), folder, block_nodes=["MatMul#1"])
    runs(converted, {"x": X})
    kinds = [s.outputs[0] for s in converted.ops("MatMul")]
    assert kinds.count(FLOAT) == 1
    assert kinds[0] == FLOAT or kinds[1] == FLOAT


def test_duplicate_node_names(folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,4] y) { [n] a = MatMul(x, w)\n [n] b = Softplus(a)\n [n] c = MatMul(b, w)\n [n] y = Add(c, a) }"
    )
    made = with_weights(model, {"w": W})
    converted = convert(made, folder)
    tidy(converted)
    # ORT refuses the source: compare with the same graph without names.
    for node in made.graph.node:
        node.name = ""
    want, got = run(made, [{"x": X}]), run(converted.path, [{"x": X}])
    assert got.loads, "node names are unique in the output"
    close(got.outputs, want.outputs, 5e-3)


def test_duplicate_node_names_across_scopes(folder: Path) -> None:
    model = text(_IF.replace("[left]", "[n]").replace("[right]", "[n]").replace("[after]", "[n]"))
    runs(convert(with_weights(model, {"w": W}), folder), *_BOTH)


_NAMES = [
    "a b",
    "a/b",
    "a:0",
    "größe",
    "值",
    "a.b",
    "a\\b",
    "a'b",
    "%x",
    "a\tb",
    "Cast",
    "x_cast",
    "x_half",
    "x_fp16",
    "0",
]


@pytest.mark.parametrize("name", _NAMES)
def test_value_names_of_all_kinds(name: str, folder: Path) -> None:
    made = with_weights(
        text("(float[2,4] x) => (float[2,4] y) { v0 = MatMul(x, w0)\n v1 = Softplus(v0)\n y = Add(v0, v1) }"), {"w0": W}
    )
    for node in made.graph.node:
        for field in (node.input, node.output):
            for place, value in enumerate(field):
                field[place] = {"x": name + "i", "v0": name, "v1": name + "n", "y": name + "o", "w0": name + "w"}[value]
    made.graph.initializer[0].name = name + "w"
    made.graph.input[0].name = name + "i"
    made.graph.output[0].name = name + "o"
    made.graph.node[1].name = name
    del made.graph.value_info[:]
    runs(convert(made, folder), {name + "i": X})


def test_names_that_a_converter_would_like_to_use(folder: Path) -> None:
    """The output of one conversion, read back, names everything as halfconv names it; such names may exist already."""
    plain = text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = Softplus(a)\n y = Add(a, b) }")
    first = convert(with_weights(plain, {"w": W}), folder, block_ops=["Softplus"])
    taken = {name for node in first.model.graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in first.model.graph.initializer}
    made = with_weights(plain, {"w": W})
    for index, name in enumerate(sorted(taken - {"x", "y", "a", "b", "w", ""})):
        made.graph.node.append(helper.make_node("Relu", ["x"], [name], f"decoy{index}"))
        made.graph.output.append(helper.make_tensor_value_info(name, FLOAT, [2, 4]))
    runs(convert(made, folder, "taken.onnx", block_ops=["Softplus"]), {"x": X})


# --- 15. values that are also outputs ------------------------------------------------------------------------------

_OUTPUTS = {
    "read inside": "(float[2,4] x) => (float[2,4] a, float[2,4] y) { a = MatMul(x, w)\n y = MatMul(a, w) }",
    "read by both": "(float[2,4] x) => (float[2,4] a, float[2,4] y)"
    " { a = MatMul(x, w)\n b = Softplus(a)\n y = Add(a, b) }",
    "initializer": "(float[2,4] x) => (float[2,4] y, float[4,4] w) { y = MatMul(x, w) }",
    "only an initializer": "(float[2,4] x) => (float[2,4] y, float[4,4] w) { y = Relu(x) }",
    "input": "(float[2,4] x) => (float[2,4] y, float[2,4] x) { y = MatMul(x, w) }",
    "input alone": "(float[2,4] x, float[2,4] u) => (float[2,4] y, float[2,4] u) { y = MatMul(x, w) }",
    "constant": "(float[2,4] x) => (float[2,4] y, float[2] k) { k = Constant<value = float[2] {0.1, 0.2}>()\n"
    " y = MatMul(x, w) }",
    "in a branch": "(float[2,4] x, bool c) => (float[2,4] a, float[2,4] y) { a = MatMul(x, w)\n y = If(c) <"
    "then_branch = t () => (float[2,4] p) { p = Relu(a) }, else_branch = e () => (float[2,4] q) { q = Neg(a) }> }",
}  # fmt: skip


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("kind", _OUTPUTS)
def test_outputs_that_are_also_something_else(kind: str, half_io: bool, folder: Path) -> None:
    model = with_weights(text(_OUTPUTS[kind]), {"w": W} if "w" in _OUTPUTS[kind] else {})
    feeds = {"x": X, "u": X + 1, "c": YES}
    feeds = {value.name: feeds[value.name] for value in model.graph.input}
    converted = convert(model, folder, half_io=half_io)
    assert [v.name for v in converted.model.graph.output] == [v.name for v in model.graph.output]
    runs(converted, feeds, keep_io=not half_io)


@pytest.mark.parametrize("half_io", [False, True])
def test_the_same_value_as_two_outputs(half_io: bool, folder: Path) -> None:
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }"), {"w": W})
    model.graph.output.append(model.graph.output[0])
    source = folder / "model.onnx"
    onnx.save(model, source)
    try:
        onnx.checker.check_model(str(source), full_check=True)
        valid = run(source, [{"x": X}]).loads
    except Exception:
        valid = False
    if valid:
        runs(convert(source, folder, half_io=half_io), {"x": X}, keep_io=not half_io)
        return
    # The file is against the standard: convert it right, or say so.
    try:
        tidy(convert(source, folder, half_io=half_io))
    except halfconv.InputError as error:
        assert "y" in str(error) and "\n" not in str(error)


def test_half_io_for_some_names_only(folder: Path) -> None:
    model = with_weights(
        text("(float[2,4] x, float[2,4] u) => (float[2,4] y, float[2,4] v) { y = MatMul(x, w)\n v = MatMul(u, w) }"),
        {"w": W},
    )
    for options in ({"half_io": ["u", "v"]}, {"half_io": True, "keep_io": ["x", "y"]}):
        converted = convert(model, folder, **options)
        graph = converted.model.graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        assert kinds == {"x": FLOAT, "u": HALF, "y": FLOAT, "v": HALF}
        runs(converted, {"x": X, "u": X}, keep_io=False)


def test_half_io_that_names_no_input_or_output_is_an_error(folder: Path) -> None:
    model = with_weights(text("(float[2,4] xin) => (float[2,4] y) { y = MatMul(xin, w) }"), {"w": W})
    with pytest.raises(halfconv.UsageError, match="xin"):
        convert(model, folder, half_io=["xim"])
    with pytest.raises(halfconv.UsageError, match="xin"):
        convert(model, folder, half_io=True, keep_io=["xim"])


def test_half_io_leaves_integers_alone(folder: Path) -> None:
    model = text("(int64[2,2] i, float[2,2] x) => (int64[2,2] j, float[2,2] y) { j = Neg(i)\n y = Neg(x) }")
    converted = convert(model, folder, half_io=True)
    kinds = [v.type.tensor_type.elem_type for v in (*converted.model.graph.input, *converted.model.graph.output)]
    assert kinds == [TensorProto.INT64, HALF, TensorProto.INT64, HALF]


# --- 16. functions and custom domains ------------------------------------------------------------------------------


def _functions(body: str, functions: str, *, graph: str = "(float[2,4] x) => (float[2,4] y)") -> onnx.ModelProto:
    return proto(f'<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\nmain {graph} {{ {body} }}\n{functions}')


_LOCAL = '<domain: "local", opset_import: ["" : 18, "local" : 1]>'
_FUNCTIONS = {
    "plain": ("y = local.f(x)", f"{_LOCAL} f (p) => (q) {{ s = Sigmoid(p)\n q = Mul(p, s) }}"),
    "twice": ("a = local.f(x)\n y = local.f(a)", f"{_LOCAL} f (p) => (q) {{ q = Tanh(p) }}"),
    "nested": (
        "y = local.f(x)",
        f"{_LOCAL} f (p) => (q) {{ s = local.g(p)\n q = Mul(p, s) }}\n{_LOCAL} g (p) => (q) {{ q = Softmax<axis=-1>(p) }}",
    ),
    "attribute": ("y = local.f<k = 0.25>(x)", f"{_LOCAL} f <k> (p) => (q) {{ q = LeakyRelu<alpha: float = @k>(p) }}"),
    "named as an op": ("a = local.Relu(x)\n y = Relu(a)", f"{_LOCAL} Relu (p) => (q) {{ q = Neg(p) }}"),
    "with a constant": (
        "y = local.f(x)",
        f"{_LOCAL} f (p) => (q) {{ c = Constant<value = float {{0.3}}>()\n d = Cast<to=1>(c)\n q = Mul(p, d) }}",
    ),
}


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("kind", _FUNCTIONS)
def test_functions_of_the_model(kind: str, half_io: bool, folder: Path) -> None:
    converted = convert(_functions(*_FUNCTIONS[kind]), folder, half_io=half_io)
    runs(converted, {"x": X}, keep_io=not half_io)


def test_a_function_that_returns_what_it_takes(folder: Path) -> None:
    """ONNX's checker takes it, ONNX Runtime refuses it: the answer must be that of the function written out."""
    made = _functions("a, b = local.f(x)\n y = Add(a, b)", f"{_LOCAL} f (p) => (p, q) {{ q = Relu(p) }}")
    converted = convert(made, folder)
    tidy(converted)
    same_interface(converted)
    close(run(converted.path, [{"x": X}], fit=True).outputs, [{"y": X + np.maximum(X, 0)}], 5e-3)


def test_a_function_called_inside_a_branch(folder: Path) -> None:
    body = "y = If(c) <then_branch = t () => (float[2,4] p) { p = local.f(x) },else_branch = e () => (float[2,4] q) { q = Neg(x) }>"
    made = _functions(body, _FUNCTIONS["plain"][1], graph="(float[2,4] x, bool c) => (float[2,4] y)")
    runs(convert(made, folder), {"x": X, "c": YES}, {"x": X, "c": NO})


def _custom(*, typed: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Strange", ["a"], ["b"], "strange", domain="acme.ops"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "custom",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 4])],
        value_info=[helper.make_tensor_value_info("b", FLOAT, [2, 4])] if typed else [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme.ops", 1)]
    return with_weights(helper.make_model(graph, opset_imports=opsets, ir_version=8), {"w": W})


def test_an_unknown_custom_operator_keeps_fp32_inputs_and_outputs(folder: Path) -> None:
    converted = convert(_custom(typed=True), folder, check=False)
    tidy(converted)
    (site,) = converted.ops("Strange")
    assert site.inputs == (FLOAT,) and site.outputs == (FLOAT,)
    assert converted.all_half("MatMul")
    assert converted.reasons()["b"].reason


def test_an_unknown_custom_operator_without_types_is_a_clear_error_or_stays_fp32(folder: Path) -> None:
    try:
        converted = convert(_custom(typed=False), folder, check=False)
    except halfconv.UnsupportedModel as error:
        assert "Strange" in str(error) and "try:" in str(error) and "\n" not in str(error)
        assert [path.name for path in folder.iterdir()] == ["model.onnx"]
        return
    onnx.checker.check_model(str(converted.path))
    (site,) = converted.ops("Strange")
    assert HALF not in (*site.inputs, *site.outputs)


def test_com_microsoft_operators(folder: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("FastGelu", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("SkipLayerNormalization", ["b", "x", "g", "h"], ["c"], domain="com.microsoft", epsilon=1e-5),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "contrib",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2, 4])],
        value_info=[helper.make_tensor_value_info(name, FLOAT, [1, 2, 4]) for name in "bc"],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    converted = convert(with_weights(made, {"w": W, "g": normal(4), "h": normal(4)}), folder)
    tidy(converted)
    assert converted.all_half("MatMul")
    # The simulation's shape inference does not know these operators: the CPU answers must do.
    found = answers(converted, [{"x": normal(1, 2, 4)}])
    close(found.plain, found.reference, 5e-3)


# --- 17. order, dead nodes, idle Casts -----------------------------------------------------------------------------


def test_nodes_out_of_order(folder: Path) -> None:
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = Softplus(a)\n y = Add(a, b) }"), {"w": W})
    right = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    sorted_file = folder / "sorted.onnx"
    onnx.save(model, sorted_file)
    del model.graph.node[:]
    model.graph.node.extend(reversed(right))
    converted = convert(model, folder)
    tidy(converted)
    want = run(sorted_file, [{"x": X}])
    got = run(converted.path, [{"x": X}])
    close(got.outputs, want.outputs, 5e-3)


def test_nodes_out_of_order_inside_a_branch(folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) { y = If(c) <"
        "then_branch = t () => (float[2,4] p) { p = Relu(m)\n m = MatMul(x, w) },"
        "else_branch = e () => (float[2,4] q) { q = Neg(x) }> }"
    )
    made = with_weights(model, {"w": W})
    converted = convert(made, folder)
    tidy(converted)
    assert run(converted.path, _BOTH).loads


@pytest.mark.parametrize(
    "dead",
    ["d = Softplus(a)", "d = Cast<to=10>(a)", "d = Cast<to=1>(a)", "d = Cast<to=11>(a)", "d, e = TopK(a, k)"],
)
def test_dead_nodes_and_casts_that_nobody_reads(dead: str, folder: Path) -> None:
    model = text(f"(float[2,4] x) => (float[2,4] y) <int64[1] k = {{2}}> {{ a = MatMul(x, w)\n {dead}\n y = Relu(a) }}")
    converted = convert(with_weights(model, {"w": W}), folder)
    runs(converted, {"x": X})


def test_unused_initializers_and_inputs(folder: Path) -> None:
    model = text("(float[2,4] x, float[3] spare) => (float[2,4] y) { y = MatMul(x, w) }")
    converted = convert(with_weights(model, {"w": W, "idle": normal(5)}), folder)
    runs(converted, {"x": X, "spare": normal(3)})


def test_initializers_listed_as_inputs_can_still_be_overridden(folder: Path) -> None:
    model = with_weights(text("(float[2,4] x, float[4,4] w) => (float[2,4] y) { y = MatMul(x, w) }", ir=3), {})
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    converted = convert(model, folder)
    tidy(converted)
    feeds = [{"x": X}, {"x": X, "w": W * 2}]
    want, got = run(converted.source, feeds), run(converted.path, feeds, fit=True)
    close(got.outputs, want.outputs, 5e-3)


_OVERRIDABLE = {
    "product": "(float[2,4] x, float[4,4] w) => (float[2,4] y) { a = MatMul(x, v)\n y = MatMul(a, w) }",
    "two readers": "(float[2,4] x, float[4,4] w) => (float[2,4] y) { a = MatMul(x, w)\n b = MatMul(a, v)\n e = Exp(w)\n"
    " y = MatMul(b, e) }",
    "branch": "(float[2,4] x, float[4,4] w, bool c) => (float[2,4] y) { a = MatMul(x, v)\n y = If(c) <then_branch = t ()"
    " => (float[2,4] o) { o = MatMul(a, w) }, else_branch = e () => (float[2,4] p) { p = Neg(a) }> }",
    "output": "(float[2,4] x, float[4,4] w) => (float[2,4] y, float[4,4] w) { a = MatMul(x, v)\n y = MatMul(a, w) }",
}


@pytest.mark.parametrize("half_io", [False, True, ["w"], ["x"]])
@pytest.mark.parametrize("kind", _OVERRIDABLE)
def test_an_input_with_a_default_keeps_it_and_can_be_overridden(kind: str, half_io: bool | list[str], folder: Path) -> None:
    model = with_weights(text(_OVERRIDABLE[kind]), {"w": W, "v": normal(4, 4, seed=1, scale=0.5)})
    converted = convert(model, folder, half_io=half_io)
    tidy(converted)
    extra = {"c": np.array(True)} if kind == "branch" else {}
    feeds = [{"x": X, **extra}, {"x": X, "w": -W, **extra}]
    want, got = run(converted.source, feeds), run(converted.path, feeds, fit=True)
    assert want.loads and got.loads, (want.failure, got.failure)
    close(got.outputs, want.outputs, 5e-3)


@pytest.mark.parametrize(
    ("body", "half_io"),
    [
        ("y = Add(a, k)", False),
        ("y = Div(a, k)", False),
        ("y = Div(a, k)", ["y"]),
        ("b = Neg(k)\n y = Div(a, b)", False),
        ("m = Max(a, k)\n y = Div(m, k)", ["y"]),
    ],
)
def test_a_default_that_half_cannot_hold(body: str, half_io: bool | list[str], folder: Path) -> None:
    graph = f"(float[2,4] x, float[4] k) => (float[2,4] y) {{ a = MatMul(x, w)\n {body} }}"
    model = with_weights(text(graph), {"w": W, "k": np.array([1e6, 2e5, 7e4, 1e9], np.float32)})
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": X}, keep_io=not half_io)


def test_a_default_that_becomes_half_is_reported(folder: Path) -> None:
    model = with_weights(text("(float[2,4] x, float[4] k) => (float[2,4] y) { a = MatMul(x, w)\n y = Max(a, k) }"), {"w": W})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1e6, 1, 1, 1e-12], np.float32), "k"))
    (changed,) = convert(model, folder, half_io=True).result.constants
    assert (changed.name, changed.saturated, changed.flushed) == ("k", 1, 1)


def test_every_graph_keeps_its_outputs_names_and_count(folder: Path) -> None:
    converted = convert(with_weights(text(_IF), {"w": W}), folder)
    before = [len(graph.output) for graph in graphs(onnx.load(converted.source).graph)]
    assert [len(graph.output) for graph in graphs(converted.model.graph)] == before
