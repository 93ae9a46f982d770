"""The simulation's form: an FP32 model with the half model's interface, in which every half value is rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfconv.drift.kernels import UNMODELLED
from halfconv.errors import UnsupportedModel
from tests.drift.simulating import (
    TYPES,
    Array,
    h,
    half_model,
    ops_of,
    outcome,
    proto_of,
    result,
    run,
    same,
    simulated,
)

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
F16, BF16, FLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT


def model(text: str, opset: int = 18, ir_version: int = 10) -> str:
    return f'<ir_version: {ir_version}, opset_import: ["": {opset}, "com.microsoft": 1]> {text}'


def made(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, weights: Any = (), opset: int = 18, ir_version: int = 10) -> Any:
    ends = [[helper.make_tensor_value_info(*entry) for entry in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def weight(name: str, value: Any, dtype: Any = np.float16) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def element_types(proto: onnx.ModelProto) -> set[int]:
    return {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}


# --- what holds for every model --------------------------------------------------------------------------------------

WHOLE = model("g (float16[2,4] x) => (float16[2,4] y) { a = Exp(x) b = Neg(a) y = Mul(a, b) }")
IF = model("""g (float16[2,4] x, bool c) => (float16[2,4] y) {
    k = Exp(x)
    y = If (c) <then_branch = t () => (float16[2,4] p) { p = Mul(k, x) }, else_branch = e () => (float16[2,4] q) { q = Add(k, k) }>
}""")
LOOP = model("""g (float16[4] x, int64 n, bool c) => (float16[4] y, float16[s,4] ys) {
    y, ys = Loop (n, c, x) <body = b (int64 i, bool go, float16[4] s) => (bool on, float16[4] t, float16[4] u) {
        on = Identity(go) t = Mul(s, x) u = Exp(t) }>
}""")
SCAN = model("""g (float16[4] s0, float16[3,4] x) => (float16[4] y, float16[3,4] ys) {
    y, ys = Scan <num_scan_inputs = 1, body = b (float16[4] s, float16[4] v) => (float16[4] t, float16[4] u) {
        t = Add(s, v) u = Mul(t, t) }> (s0, x)
}""")
SEQUENCE = model("""g (float16[4,4] x) => (float16[4,4] y) {
    n = Constant <value = int64 {2}> () i = Constant <value = int64 {1}> ()
    parts = SplitToSequence <axis = 0> (x, n)
    part = SequenceAt (parts, i) e = Exp(part) more = SequenceInsert(parts, e) y0 = ConcatFromSequence <axis = 0> (more)
    s = Constant <value = int64[2] {2, 4}> () a, y = Split <axis = 0> (y0, s)
}""")
MIXED = model("""g (float16[2,4] x, float[2,4] w) => (float16[2,4] y, float[2,4] z) {
    a = Cast <to = 1> (x) b = Exp(a) z = Mul(b, w) c = Cast <to = 10> (z) y = Add(c, x)
}""")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": (WHOLE, {"x": X}),
    "then": (IF, {"x": X, "c": np.array(True)}),
    "else": (IF, {"x": X, "c": np.array(False)}),
    "loop": (LOOP, {"x": X[0], "n": np.array(3), "c": np.array(True)}),
    "scan": (SCAN, {"s0": X[0], "x": np.ones((3, 4), np.float32)}),
    "sequence": (SEQUENCE, {"x": np.ones((4, 4), np.float32)}),
    "mixed": (MIXED, {"x": X, "w": X}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_simulation_is_a_valid_fp32_model_with_the_same_interface(name: str) -> None:
    text, feeds = CASES[name]
    source, simulation = onnx.parser.parse_model(text), simulated(text)
    proto = proto_of(simulation)
    onnx.checker.check_model(proto, full_check=True)
    assert element_types(proto) <= {FLOAT, TensorProto.BOOL, TensorProto.INT64}
    for side in ("input", "output"):
        assert [v.name for v in getattr(proto.graph, side)] == [v.name for v in getattr(source.graph, side)]
        shapes = [
            [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in getattr(p.graph, side)]
            for p in (source, proto)
        ]
        assert shapes[0] == shapes[1]
    assert simulation.to == "fp16" and outcome(simulation, feeds).loads


@pytest.mark.parametrize("name", CASES)
def test_every_result_of_a_half_model_is_a_half_number(name: str) -> None:
    text, feeds = CASES[name]
    source = onnx.parser.parse_model(text)
    half = {v.name for v in source.graph.output if v.type.tensor_type.elem_type == F16}
    for key, value in run(simulated(text), feeds).items():
        if key in half:
            same(value, h(value))


def test_values_keep_their_names_and_are_listed_with_their_format() -> None:
    simulation = simulated(WHOLE)
    assert simulation.half == dict.fromkeys("xaby", ir.DataType.FLOAT16)
    names = {value.name for node in simulation.model.graph for value in node.outputs}
    assert {"a", "b", "y"} <= names


def test_values_of_a_branch_are_rounded_too() -> None:
    k = h(np.exp(h(X)))
    same(result(IF, {"x": X, "c": np.array(True)}), h(k * h(X)))
    same(result(IF, {"x": X, "c": np.array(False)}), h(k + k))


def test_a_loop_rounds_its_state_in_every_step() -> None:
    got, x = run(simulated(LOOP), {"x": X[0], "n": np.array(3), "c": np.array(True)}), h(X[0])
    state, shown = x, []
    for _ in range(3):
        state = h(state * x)
        shown.append(h(np.exp(state)))
    same(got["y"], state)
    np.testing.assert_allclose(got["ys"], shown, rtol=1e-3)


def test_a_scan_rounds_its_state_in_every_step() -> None:
    values = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32) * 100
    got, state, shown = run(simulated(SCAN), {"s0": X[0], "x": values}), h(X[0]), []
    for row in values:
        state = h(state + h(row))
        shown.append(h(state * state))
    same(got["y"], state)
    same(got["ys"], shown)


def test_fp32_parts_of_a_mixed_model_are_not_rounded() -> None:
    got = run(simulated(MIXED), {"x": X, "w": X})
    np.testing.assert_allclose(got["z"], np.exp(h(X)) * X, rtol=1e-6)
    assert not np.array_equal(got["z"], h(got["z"]))
    same(got["y"], h(h(got["z"]) + h(X)))


def test_an_exact_operator_is_not_rounded_again() -> None:
    text = model("g (float16[2,4] x) => (float16[4,2] y) { a = Relu(x) b = Transpose<perm = [1, 0]>(a) y = Neg(b) }")
    simulation = simulated(text)
    assert sum(node.op_type == "Cast" for node in simulation.model.graph) == 2  # the input's
    same(run(simulation, {"x": X})["y"], -np.maximum(h(X), 0).T)


def test_an_fp32_model_simulates_as_itself() -> None:
    text = model("g (float[2,4] x) => (float[2,4] y) { a = Exp(x) y = Mul(a, x) }")
    simulation = simulated(text)
    assert (simulation.to, simulation.half, simulation.fused, simulation.unmodelled) == ("", {}, {}, ())
    assert [node.op_type for node in simulation.model.graph] == ["Exp", "Mul"]
    np.testing.assert_allclose(run(simulation, {"x": X})["y"], np.exp(X) * X, rtol=1e-6)


def test_a_model_with_half_at_its_interface_alone_is_a_half_model() -> None:
    simulation = simulated(model("g (float16[2,4] x) => (float[2,4] y) { y = Cast<to = 1>(x) }"))
    assert simulation.to == "fp16"
    same(run(simulation, {"x": X})["y"], h(X))


# --- what half precision does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "x", "want"),
    [
        ("y = Mul(x, x)", 300.0, np.inf),
        ("n = Neg(x) y = Mul(n, x)", 300.0, -np.inf),
        ("y = Mul(x, x)", 1e-4, 0.0),
        ("a = Mul(x, x) y = Sub(a, a)", 300.0, np.nan),
        ("a = Mul(x, x) y = Div(x, a)", 300.0, 0.0),
        ("a = Mul(x, x) y = Div(x, a)", 1e-4, np.inf),
        ("a = Mul(x, x) y = Sqrt(a)", 2e-4, 0.000244140625),
        ("y = Exp(x)", 12.0, np.inf),
        ("y = Identity(x)", 70000.0, np.inf),
        ("y = Identity(x)", 1e-8, 0.0),
    ],
)
def test_overflow_flush_nan_and_collapse_appear(body: str, x: float, want: float) -> None:
    got = result(model(f"g (float16[1] x) => (float16[1] y) {{ {body} }}"), {"x": np.array([x], np.float32)})
    same(got, [want])


def test_the_decomposed_norm_of_large_inputs_collapses_where_its_square_overflows() -> None:
    """Without gamma and beta nothing is fused: the variance is infinite, and every result zero."""
    body = "m = ReduceMean<keepdims = 1>(x, a) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<keepdims = 1>(q, a)"
    body += " r = Sqrt(v) y = Div(d, r)"
    source = half_model(body, {"x": [4, 64]}, weights={"a": np.array([-1]), "two": np.array(2.0)})
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32) * 2000
    assert (result(source, {"x": x}) == 0).all()


def test_bf16_neither_overflows_there_nor_keeps_as_many_digits() -> None:
    source = half_model("y = Mul(x, x)", {"x": [2]}, to="bf16", opset=22)
    simulation = simulated(source)
    assert simulation.to == "bf16" and set(simulation.half.values()) == {ir.DataType.BFLOAT16}
    x = np.array([300.7, 1.01], np.float32)
    same(run(simulation, {"x": x})["y"], h(h(x, "bf16") ** 2, "bf16"))


def test_a_model_with_both_formats_rounds_each_to_its_own() -> None:
    text = model(
        f"g (float[2,4] x) => (float16[2,4] p, bfloat16[2,4] q) {{ a = Cast<to = {F16}>(x) p = Exp(a) b = Cast<to = "
        f"{BF16}>(x) q = Exp(b) }}",
        22,
    )
    got = run(simulated(text), {"x": X})
    same(got["p"], h(got["p"]))
    same(got["q"], h(got["q"], "bf16"))
    np.testing.assert_allclose(got["q"], h(np.exp(h(X, "bf16")), "bf16"), rtol=1e-2)


# --- names, scopes, sharing ------------------------------------------------------------------------------------------


def test_an_input_that_is_a_result() -> None:
    got = run(simulated(model("g (float16[2,4] x) => (float16[2,4] x, float16[2,4] y) { y = Relu(x) }")), {"x": X})
    same(got["y"], np.maximum(h(X), 0))
    same(got["x"], X)


def test_an_initializer_that_is_a_result() -> None:
    source = made(
        [helper.make_node("Relu", ["x"], ["y"])], [("x", F16, [2])], [("w", F16, [2]), ("y", F16, [2])], [weight("w", [0.1, 2])]
    )
    same(run(simulated(source), {"x": X[0, :2]})["w"], h([0.1, 2]))


def test_a_half_initializer_that_an_output_calls_fp32() -> None:
    """As onnxconverter-common writes it."""
    source = made(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [("x", F16, [2])],
        [("w", FLOAT, [2]), ("y", F16, [2])],
        [weight("w", [0.1, 2])],
    )
    got = run(simulated(source), {"x": X[0, :2]})
    same(got["w"], h([0.1, 2]))
    same(got["y"], h(h(X[0, :2]) * h([0.1, 2])))


def test_a_value_that_is_two_results() -> None:
    got = run(simulated(model("g (float16[2,4] x) => (float16[2,4] y, float16[2,4] z) { y = Elu(x) z = Identity(y) }")), {"x": X})
    same(got["y"], got["z"])


def test_a_weight_that_a_branch_and_the_graph_read_is_one_fp32_weight() -> None:
    text = model("""g (float16[2] x, bool c) => (float16[2] y) {
        w = Constant <value_floats = [0.1, 0.7]> () k = Cast <to = 10> (w) a = Mul(x, k)
        y = If (c) <then_branch = t () => (float16[2] p) { p = Add(a, k) },
                        else_branch = e () => (float16[2] q) { q = Sub(a, k) }> }""")
    x = X[0, :2]
    k = h([0.1, 0.7])
    same(result(text, {"x": x, "c": np.array(True)}), h(h(h(x) * k) + k))
    same(result(text, {"x": x, "c": np.array(False)}), h(h(h(x) * k) - k))


def test_names_that_the_simulation_would_like_are_left_to_the_model() -> None:
    names = ["x/half", "x/rounded", "y/unrounded", "y/half", "Elu/0/Exp_1_0", "Elu/0/Constant_0_0"]
    nodes, last = [], "x"
    for name in names:
        nodes.append(helper.make_node("Neg" if last != "x" else "Abs", [last], [name]))
        last = name
    nodes += [helper.make_node("Exp", [last], ["y"]), helper.make_node("Elu", ["y"], ["z"])]
    simulation = simulated(made(nodes, [("x", F16, [2, 4])], [("y", F16, [2, 4]), ("z", F16, [2, 4])]))
    proto = proto_of(simulation)
    onnx.checker.check_model(proto, full_check=True)
    outputs = [name for node in proto.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs)) and set(names) <= set(outputs)
    same(run(simulation, {"x": X})["y"], h(run(simulation, {"x": X})["y"]))


def test_unnamed_nodes_and_odd_value_names() -> None:
    nodes = [helper.make_node("Exp", ["x y"], ["/a.b/é:0"]), helper.make_node("Elu", ["/a.b/é:0"], ["y"])]
    got = run(simulated(made(nodes, [("x y", F16, [2, 4])], [("y", F16, [2, 4])])), {"x y": X})
    same(got["y"], h(np.exp(h(X))))


def test_a_default_for_an_input_is_widened_too() -> None:
    source = made(
        [helper.make_node("Add", ["x", "k"], ["y"])],
        [("x", F16, [2, 4]), ("k", F16, [4])],
        [("y", F16, [2, 4])],
        [weight("k", [1, 2, 3, 4])],
    )
    simulation = simulated(source)
    same(run(simulation, {"x": X})["y"], h(np.add(h(X), [1, 2, 3, 4])))
    same(run(simulation, {"x": X, "k": np.full(4, 0.1, np.float32)})["y"], h(h(X) + h(0.1)))


# --- types and attributes --------------------------------------------------------------------------------------------

TYPED: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "ConstantOfShape": (
        made([helper.make_node("ConstantOfShape", ["n"], ["y"], value=weight("", [0.1]))],
             [("n", TensorProto.INT64, [1])], [("y", F16, ["a"])]),
        {"n": np.array([3])}, h([0.1] * 3),
    ),
    "CastLike": (model("g (int64[2] i, float16[1] x) => (float16[2] y) { y = CastLike(i, x) }"),
                 {"i": np.array([2049, 70000]), "x": X[0, :1]}, [2048, np.inf]),
    "EyeLike": (model("g (float[2,2] x) => (float16[2,2] y) { y = EyeLike<dtype = 10>(x) }"), {"x": X[:, :2]}, np.eye(2)),
    "Cast from float64": (model("g (double[2] x) => (float16[2] y) { y = Cast<to = 10>(x) "
        "}"), {"x": np.array([0.1, 1e300])}, [h(0.1), np.inf]),
    "SequenceEmpty": (
        model("g (float16[2,4] x) => (float16[2,4] y) { s = SequenceEmpty<dtype = 10>() t = SequenceInsert(s, x) y = "
            "ConcatFromSequence<axis = 0>(t) }"),
        {"x": X}, h(X),
    ),
    "OptionalGetElement": (model("g (float16[2,4] x) => (float16[2,4] y) { o = Optional(x) y = OptionalGetElement(o) "
        "}"), {"x": X}, h(X)),
    "Pad of opset 10": (model("g (float16[1] x) => (float16[3] y) { y = Pad<pads = [1, 1], value = 0.1>(x) }", 10), {"x": X[0, :1]},
                        [h(0.1), h(X[0, 0]), h(0.1)]),
    "Clip of opset 10": (model("g (float16[2,4] x) => (float16[2,4] y) { y = Clip<min = -0.3, max = 0.1>(x) }", 10), {"x": X},
                         np.clip(h(X), h(-0.3), h(0.1))),
    "QuantizeLinear's precision": (
        made([helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.INT8, precision=F16),
              helper.make_node("DequantizeLinear", ["q", "s"], ["y"], output_dtype=F16)],
             [("x", F16, [2])], [("y", F16, [2])], [weight("s", 0.5)], 23, 11),
        {"x": np.array([0.8, -3.1], np.float32)}, [1.0, -3.0],
    ),
    "Attention's softmax": (model("g (float16[1,1,2,4] x) => (float16[1,1,2,4] y) { y = Attention<softmax_precision = "
        "10>(x, x, x) }", 23, 11),
                            {"x": np.ones((1, 1, 2, 4), np.float32)}, np.ones((1, 1, 2, 4))),
    "BitCast from half": (model("g (float16[2] x) => (int16[2] i, float16[2] y) { i = BitCast<to = 5>(x) y = "
        "BitCast<to = 10>(i) }", 26, 13),
                          {"x": X[0, :2]}, h(X[0, :2])),
    "a model without ONNX's own operators": (
        '<ir_version: 10, opset_import: ["com.microsoft": 1]> g (float16[2] x) => (float16[2] y) { y = com.microsoft.Gelu(x) }',
        {"x": np.zeros(2, np.float32)}, [0, 0],
    ),
    "a domain written out": ('<ir_version: 10, opset_import: ["ai.onnx": 13]> g (float16[2] x) => (float16[2] y) { y '
        '= ai.onnx.Mul(x, x) }',
                             {"x": X[0, :2]}, h(h(X[0, :2]) ** 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_types_in_attributes(name: str) -> None:
    source, feeds, want = TYPED[name]
    simulation = simulated(source)
    onnx.checker.check_model(proto_of(simulation), full_check=True)
    same(run(simulation, feeds)["y"], want)


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_random_numbers_are_rounded(op: str) -> None:
    text = model(
        f"g (float16[2,4] x) => (float16[2,4] y, float16[2,4] z) {{ y = {op}<dtype = 10, shape = [2, 4]>() z = "
        f"{op}Like<dtype = 10>(x) }}"
    )
    got = run(simulated(text), {"x": X})
    same(got["y"], h(got["y"]))
    same(got["z"], h(got["z"]))


def test_an_empty_optional_of_half() -> None:
    kind = helper.make_tensor_type_proto(F16, [2])
    nodes = [helper.make_node("Optional", [], ["o"], type=kind), helper.make_node("OptionalHasElement", ["o"], ["y"])]
    assert not run(simulated(made(nodes, [("x", F16, [2])], [("y", TensorProto.BOOL, [])])), {"x": X[0, :2]})["y"]


@pytest.mark.parametrize(
    ("text", "feeds", "want"),
    [
        (
            "g (seq(float16[2,4]) s) => (float16[2,4] y) { i = Constant<value = int64 {0}>() y = SequenceAt(s, i) }",
            {"s": [X, X]},
            h(X),
        ),
        (
            "g (seq(float16[2,4]) s) => (float16[4,4] y) { y = ConcatFromSequence<axis = 0>(s) }",
            {"s": [X, X]},
            h(np.concatenate([X, X])),
        ),
        ("g (optional(float16[2,4]) s) => (float16[2,4] y) { y = OptionalGetElement(s) }", {"s": X}, h(X)),
        (
            "g (seq(float16[2,4]) s) => (seq(float16[2,4]) y) "
            "{ y = SequenceMap<body = b (float16[2,4] a) => (float16[2,4] c) { c = Neg(a) }>(s) }",
            {"s": [X]},
            [-h(X)],
        ),
    ],
)
def test_half_inputs_in_sequences_and_optionals_are_rounded(text: str, feeds: dict[str, Any], want: Any) -> None:
    got = result(model(text), feeds)
    same(got if isinstance(got, np.ndarray) else np.stack(got), want)


# --- old opsets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 8])
def test_opsets_before_where(opset: int) -> None:
    text = model("g (float16[2,4] x) => (float16[2,4] y) { y = LeakyRelu<alpha = 0.1>(x) }", opset, 4)
    same(result(text, {"x": X}), np.where(h(X) < 0, h(h(X) * h(0.1)), h(X)))


def test_upsample_and_batch_norm_of_old_opsets() -> None:
    body = 'z = Upsample<scales = [1.0, 1.0, 2.0, 2.0], mode = "nearest">(x) b = BatchNormalization(z, s, s, s, s) y = LeakyRelu(b)'
    text = model(f"g (float16[1,1,2,4] x, float16[1] s) => (float16[1,1,4,8] y) {{ {body} }}", 7, 4)
    got = result(text, {"x": X[None, None], "s": np.ones(1, np.float32)})
    assert got.shape == (1, 1, 4, 8)


def test_a_scan_of_opset_8() -> None:
    body = "b (float16[4] s, float16[4] v) => (float16[4] t, float16[4] u) { t = Add(s, v) u = Identity(t) }"
    text = model(
        f"g (float16[1,4] s, float16[1,3,4] x) => (float16[1,4] y, float16[1,3,4] ys) {{ y, ys = Scan<num_scan_inputs "
        f"= 1, body = {body}>(, s, x) }}",
        8,
        4,
    )
    x = np.random.default_rng(2).standard_normal((1, 3, 4)).astype(np.float32)
    state = h(X[:1])
    for step in range(3):
        state = h(state + h(x[:, step]))
    same(result(text, {"s": X[:1], "x": x}), state)


# --- operators of com.microsoft, functions, refusals -----------------------------------------------------------------


def test_a_function_rounds_inside() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "my": 1]>
        g (float16[2,4] x) => (float16[2,4] y) { y = my.f(x) }
        <domain: "my", opset_import: ["": 18]> f (a) => (c) { b = Mul(a, a) c = Mul(b, a) }"""
    same(result(text, {"x": X}), h(h(h(X) ** 2) * h(X)))


def test_a_definition_gets_the_defaults_of_its_attributes() -> None:
    x = h(X)
    text = model("g (float16[2,4] x) => (float16[2,4] y) { y = Swish(x) }", 24, 11)
    np.testing.assert_allclose(result(text, {"x": X}), x / (1 + np.exp(-x)), atol=2e-3)


def test_an_operator_that_onnxruntime_inlines_rounds_at_every_step() -> None:
    simulation = simulated(model("g (float16[2,4] x) => (float16[2,4] y) { y = Mish(x) }", 18))
    assert "Mish" not in ops_of(simulation)
    x = h(X)
    soft = run(simulated(model("g (float16[2,4] x) => (float16[2,4] y) { y = Softplus(x) }")), {"x": X})["y"]
    np.testing.assert_allclose(run(simulation, {"x": X})["y"], h(x * h(np.tanh(soft))), atol=2e-3)


@pytest.mark.parametrize("op", ["PackedAttention", "RemovePadding", "GemmFloat8", "LongformerAttention"])
def test_what_only_cuda_can_run_is_refused_by_name(op: str) -> None:
    source = made(
        [helper.make_node(op, ["x"], ["y"], "the node", domain="com.microsoft")], [("x", F16, [2, 4])], [("y", F16, [2, 4])]
    )
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedModel, match=rf"'the node'.*{op}.*try: --on cuda"):
        simulated(source)


def test_what_is_not_modelled_is_a_short_list_without_the_operators_that_matter() -> None:
    assert len(UNMODELLED) <= 10
    modelled = {
        "MatMul", "Gemm", "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
        "GroupNormalization", "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "Softmax", "LogSoftmax",
        "Attention", "MultiHeadAttention", "SkipLayerNormalization", "SimplifiedLayerNormalization", "GroupNorm", "SkipGroupNorm",
    }  # fmt: skip
    ops = {op for _, op in UNMODELLED}
    assert not ops & modelled and not [op for op in ops if op.startswith("Reduce") or "Pool" in op]
    elementwise = {
        s.name for s in onnx.defs.get_all_schemas() if len(s.inputs) in (1, 2) and len(s.outputs) == 1 and s.name in _ELEMENTWISE
    }
    assert len(elementwise) > 40 and not ops & elementwise


_ELEMENTWISE = {
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
}


def test_what_is_not_modelled_is_said_once() -> None:
    text = model(
        "g (float16[1,1,2,4] x) => (float16[1,1,4,8] y) { s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = "
        'Resize<mode = "linear">(x, , s) }'
    )
    said = simulated(text).unmodelled
    assert len(said) == 1 and said[0].startswith("Resize: ")
    assert simulated(text.replace('"linear"', '"nearest"')).unmodelled == ()


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_weights_are_widened_exactly(to: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        values: Array = bits.view(TYPES[to][1]).astype(np.float32)
    finite = values[np.isfinite(values)]
    source = half_model("y = Identity(w)", {"x": [1]}, weights={"w": finite}, to=to, opset=22)
    same(run(simulated(source), {"x": np.zeros(1, np.float32)})["y"], finite)
