"""The simulation fuses what ONNX Runtime fuses when it loads a model, and nothing else.

Each pattern is also run through ONNX Runtime itself, in FP32 on the CPU: the values that vanish from the graph that it makes are
those that the simulation must not round. (BiasSoftmax is fused for CUDA only.)
"""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common

from halfconv.drift.fusions import INSIDE, REPLACED, FusePass
from halfconv.graph.prepare import prepare
from tests.drift.simulating import Array, h, half_model, ops_of, run, same, simulated
from tests.runtime_helpers import isolate

RNG = np.random.default_rng(0)
SHAPE = [2, 8, 8]
LAYER_NORM = """
 mean = ReduceMean <keepdims = 1> (x, axes)
 d = Sub (x, mean)
 sq = Pow (d, two)
 var = ReduceMean <keepdims = 1> (sq, axes)
 ve = Add (var, eps)
 sd = Sqrt (ve)
 n = Div (d, sd)
 s = Mul (n, g)
 y = Add (s, b)
"""
RMS_NORM = """
 p = Pow (x, two)
 m = ReduceMean <keepdims = 1> (p, axes)
 e = Add (m, eps)
 r = Sqrt (e)
 dd = Div (x, r)
 y = Mul (dd, g)
"""
GELU = """
 d = Div (x, root)
 e = Erf (d)
 a = Add (e, one)
 m = Mul (x, a)
 y = Mul (m, half)
"""
GELU_HALF_FIRST = """
 d = Div (x, root)
 e = Erf (d)
 a = Add (e, one)
 q = Mul (x, half)
 y = Mul (q, a)
"""
SILU = """
 s = Sigmoid (x)
 y = Mul (x, s)
"""
QUICK_GELU = """
 k = Mul (x, alpha)
 s = Sigmoid (k)
 y = Mul (x, s)
"""
SCALED_BEHIND = """
 m = MatMul (x, w)
 y = Mul (m, alpha)
"""
DIVIDED_BEHIND = """
 m = MatMul (x, w)
 y = Div (m, alpha)
"""
SCALED_BEFORE = """
 m = Mul (x, alpha)
 y = MatMul (m, w)
"""
SCALED_AROUND = """
 m = Mul (x, alpha)
 n = Mul (w, alpha)
 u = MatMul (m, n)
 y = Mul (u, alpha)
"""
RECIPROCAL = """
 r = Div (one, x)
 y = Mul (r, z)
"""
PATTERNS = {
    "LayerNorm": LAYER_NORM, "RMSNorm": RMS_NORM, "Gelu": GELU, "Gelu, half first": GELU_HALF_FIRST, "SiLU": SILU,
    "QuickGelu": QUICK_GELU, "MatMul, Mul": SCALED_BEHIND, "MatMul, Div": DIVIDED_BEHIND, "Mul, MatMul": SCALED_BEFORE,
    "Mul, MatMul, Mul": SCALED_AROUND, "Div, Mul": RECIPROCAL,
}  # fmt: skip
#: Pattern, what is replaced, by what.
CHANGES = [
    ("LayerNorm", "axes)", "first)"), ("LayerNorm", "axes)", "last_two)"), ("LayerNorm", "axes)", "third)"),
    ("LayerNorm", "(sq, axes)", "(sq, last_two)"), ("LayerNorm", "Pow (d, two)", "Mul (d, d)"),
    ("LayerNorm", "Add (var, eps)", "Add (eps, var)"), ("LayerNorm", "Mul (n, g)", "Mul (g, n)"),
    ("LayerNorm", "Add (s, b)", "Add (b, s)"),
    ("LayerNorm", "Mul (n, g)", "Mul (n, gi)"), ("LayerNorm", "Add (s, b)", "Add (s, bi)"),
    ("LayerNorm", "Mul (n, g)", "Mul (n, g2)"),
    ("LayerNorm", "Mul (n, g)", "Mul (n, g3)"), ("LayerNorm", "d = Sub (x, mean)", "d = Sub (z, mean)"),
    ("LayerNorm", "eps", "large"),
    ("LayerNorm", " sq = Pow (d, two)", " d2 = Sub (x, mean)\n sq = Pow (d2, two)"),
    ("LayerNorm", " s = Mul (n, g)", " gc = Neg (gi)\n s = Mul (n, gc)"),
    ("RMSNorm", "axes)", "first)"), ("RMSNorm", "axes)", "last_two)"), ("RMSNorm", "(dd, g)", "(dd, gi)"),
    ("RMSNorm", "(dd, g)", "(g, dd)"),
    ("RMSNorm", "two", "three"), ("RMSNorm", "Pow (x, two)", "Mul (x, x)"), ("RMSNorm", "(dd, g)", "(dd, two)"),
    ("RMSNorm", "Div (x, r)", "Div (z, r)"), ("RMSNorm", "(dd, g)", "(dd, g2)"), ("RMSNorm", "Add (m, eps)", "Add (eps, m)"),
    ("Gelu", "root", "two"), ("Gelu", "(e, one)", "(e, two)"), ("Gelu", "(m, half)", "(m, two)"), ("Gelu", "(e, one)", "(one, e)"),
    ("Gelu", "(x, a)", "(a, x)"), ("Gelu", "(m, half)", "(half, m)"), ("Gelu", "Div (x, root)", "Mul (x, inverse)"),
    ("Gelu", "root", "near"),
    ("Gelu", "root", "far"), ("Gelu, half first", "Div (x, root)", "Mul (x, inverse)"),
    ("Gelu, half first", "(x, half)", "(half, x)"),
    ("Gelu, half first", "(q, a)", "(a, q)"), ("Gelu, half first", "Mul (x, half)", "Mul (z, half)"),
    ("SiLU", "Mul (x, s)", "Mul (s, x)"), ("SiLU", "Mul (x, s)", "Mul (z, s)"), ("SiLU", "Mul (x, s)", "Mul (s, s)"),
    ("QuickGelu", "Mul (x, alpha)", "Mul (alpha, x)"), ("QuickGelu", "Mul (x, alpha)", "Mul (x, g)"),
    ("QuickGelu", "Mul (x, s)", "Mul (z, s)"),
    ("QuickGelu", "Mul (x, alpha)", "Mul (x, given)"),
    ("MatMul, Mul", "Mul (m, alpha)", "Mul (alpha, m)"), ("MatMul, Mul", "Mul (m, alpha)", "Mul (m, g)"),
    ("MatMul, Mul", "Mul (m, alpha)", "Mul (m, given)"), ("MatMul, Mul", "alpha", "alpha1"), ("MatMul, Mul", "alpha", "alpha4"),
    ("MatMul, Div", "Div (m, alpha)", "Div (alpha, m)"), ("Mul, MatMul", "Mul (x, alpha)", "Div (x, alpha)"),
    ("Mul, MatMul", "Mul (x, alpha)", "Div (alpha, x)"), ("Mul, MatMul", "Mul (x, alpha)", "Mul (alpha, x)"),
    ("Mul, MatMul", "MatMul (m, w)", "MatMul (w, m)"),
    ("QuickGelu", "alpha", "alpha2"), ("MatMul, Mul", "alpha", "alpha2"), ("Gelu", "one", "one2"), ("Gelu", "half", "half2"),
    ("Div, Mul", "Mul (r, z)", "Mul (z, r)"), ("Div, Mul", "(one, x)", "(two, x)"), ("Div, Mul", "(one, x)", "(ones, x)"),
    ("Div, Mul", "Mul (r, z)", "Mul (r, r)"), ("Div, Mul", "(one, x)", "(one1, x)"),
]  # fmt: skip
NUMBERS: dict[str, Any] = {
    "axes": [-1], "first": [0], "third": [2], "last_two": [-2, -1], "two": 2.0, "three": 3.0, "eps": 1e-5, "tiny": 1e-12,
    "large": 1.0, "one": 1.0, "half": 0.5,
    "root": 1.41421356, "inverse": 0.70710678, "near": 1.4142, "far": 1.41, "alpha": 0.3, "alpha1": [0.3], "alpha2": [[0.3]],
    "one2": [[1.0]], "half2": [[0.5]], "alpha4": [[[[0.3]]]], "one1": [1.0],
    "g": RNG.standard_normal(8), "b": RNG.standard_normal(8), "g2": RNG.standard_normal((8, 8)), "g3": RNG.standard_normal((1, 8)),
    "ones": np.ones(8),
}  # fmt: skip
INPUTS = {"x": SHAPE, "z": SHAPE, "w": SHAPE, "gi": [8], "bi": [8], "given": [1]}


def variants() -> dict[str, tuple[str, list[str]]]:
    """Each pattern as it is, with each inner value as a result or read by another node, and with each change."""
    found = {}
    for name, text in PATTERNS.items():
        found[name] = (text, ["y"])
        for value in made_in(text)[:-1]:
            found[f"{name}; {value} is a result"] = (text, ["y", value])
            found[f"{name}; {value} is read"] = (text + f" extra = Neg({value})\n", ["y", "extra"])
    for name, old, new in CHANGES:
        assert old in PATTERNS[name], (name, old)
        found[f"{name}; {new.strip()} for {old.strip()}"] = (PATTERNS[name].replace(old, new), ["y"])
    return found


def made_in(text: str) -> list[str]:
    return re.findall(r"^ (\w+) =", text, re.MULTILINE)


def build(text: str, outputs: list[str], *, wide: bool = False, to: str = "fp16", opset: int = 18) -> onnx.ModelProto:
    nodes = onnx.parser.parse_graph(f"g () => () {{ {text} }}").node
    used = {name for node in nodes for name in node.input}
    weights = {name: np.asarray(value) for name, value in NUMBERS.items() if name in used}
    model = half_model(text, {n: s for n, s in INPUTS.items() if n in used}, outputs, weights=weights, to=to, opset=opset)
    if wide:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                array = np.asarray(NUMBERS[tensor.name], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        del model.graph.value_info[:]
    return model


def optimized(model: bytes) -> set[str]:
    """Values that nodes make in the graph that ONNX Runtime will run."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return {output for node in graph.node for output in node.output}


def fused(model: onnx.ModelProto) -> tuple[set[str | None], dict[str, int]]:
    """Values that are rounded or results after `FusePass`, and its counts."""
    graph = ir.from_proto(model)
    prepare(graph, fuse=False)
    fuse = FusePass()
    fuse(graph)
    common.RemoveUnusedNodesPass()(graph)
    kept = {value.name for node in graph.graph for value in node.outputs} - {value.name for value in fuse.inside}
    return kept, fuse.counts


@pytest.mark.parametrize("name", variants())
def test_values_that_onnxruntime_keeps_are_rounded_and_others_are_not(name: str) -> None:
    text, outputs = variants()[name]
    made = set(made_in(text)) - {"gc"}
    [theirs] = isolate(optimized, [build(text, outputs, wide=True).SerializeToString()], workers=1)
    assert isinstance(theirs, set), theirs
    ours, _ = fused(build(text, outputs))
    assert made & theirs == made & ours


@pytest.mark.parametrize("name", variants())
def test_a_model_with_a_variant_runs_and_its_results_are_halves(name: str) -> None:
    text, outputs = variants()[name]
    model = build(text, outputs)
    feeds = {value.name: RNG.uniform(0.5, 2, INPUTS[value.name]).astype(np.float32) for value in model.graph.input}
    for value in run(simulated(model), feeds).values():
        same(value, h(value))


# --- what a fusion computes ------------------------------------------------------------------------------------------

X = (RNG.standard_normal(SHAPE) * 3).astype(np.float32)
Z, W = RNG.standard_normal(SHAPE).astype(np.float32), RNG.standard_normal(SHAPE).astype(np.float32)
G, SHIFT = (h(NUMBERS[name]).astype(np.float64) for name in ("g", "b"))


def centred(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)


def norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + h(1e-5))


def sigmoid_steps(x: Array) -> Array:
    one = h(1 / h(h(np.exp(-np.abs(x))) + 1))
    return np.where(x > 0, one, h(1 - one))


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


COMPUTED: dict[str, tuple[str, Any]] = {
    "LayerNorm": ("LayerNormFusion", lambda x, z, w: h(norm(centred(x)) * G + SHIFT)),
    "RMSNorm": ("SimplifiedLayerNormFusion", lambda x, z, w: h(norm(x) * G)),
    "Gelu": ("GeluFusion", lambda x, z, w: h(x * (1 + erf(x / np.sqrt(2))) / 2)),
    "Gelu, half first": ("GeluFusion", lambda x, z, w: h(x * (1 + erf(x / np.sqrt(2))) / 2)),
    "SiLU": ("QuickGeluFusion", lambda x, z, w: h(x * sigmoid_steps(x))),
    "QuickGelu": ("QuickGeluFusion", lambda x, z, w: h(x * sigmoid_steps(h(h(0.3) * x)))),
    "MatMul, Mul": ("MatMulScaleFusion", lambda x, z, w: h(x @ w * h(0.3))),
    "MatMul, Div": ("MatMulScaleFusion", lambda x, z, w: h(x @ w / h(0.3))),
    "Mul, MatMul": ("MatMulScaleFusion", lambda x, z, w: h((x * h(0.3)) @ w)),
    "Mul, MatMul, Mul": ("MatMulScaleFusion", lambda x, z, w: h(h(0.3) * ((x * h(0.3)) @ (w * h(0.3))))),
    "Div, Mul": ("DivMulFusion", lambda x, z, w: h(z / x)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_fused_kernel_keeps_fp32_inside(name: str) -> None:
    transformer, want = COMPUTED[name]
    simulation = simulated(build(PATTERNS[name], ["y"]))
    assert list(simulation.fused) == [transformer]
    feeds = {
        key: value for key, value in {"x": X, "z": Z, "w": W}.items() if key in {v.name for v in simulation.model.graph.inputs}
    }
    got, expected = run(simulation, feeds)["y"], want(*(h(v).astype(np.float64) for v in (X, Z, W)))
    assert (got != expected).mean() <= (0.06 if "Gelu" in name else 0.02)  # FP32's erf is coarse in the tail
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4)


def test_every_row_is_tried() -> None:
    tried = {transformer for transformer, _ in COMPUTED.values()} | {"BiasSoftmaxFusion"}
    assert tried == {name for name, _ in (*INSIDE, *REPLACED)}


def test_a_gelu_behind_a_bias_becomes_bias_gelu_which_rounds_every_step() -> None:
    simulation = simulated(build(" v = Add (z, b)\n" + GELU.replace("x", "v"), ["y"]))
    assert simulation.fused == {"GeluFusion": 1}
    z = h(h(Z) + h(NUMBERS["b"]))
    want = h(h(z * 0.5) * h(h(erf(h(z * h(0.7071067811865476)))) + 1))
    assert (run(simulation, {"z": Z})["y"] != want).mean() <= 0.02


def test_an_epsilon_that_is_zero_in_half_fuses_nothing() -> None:
    assert simulated(build(RMS_NORM.replace("eps", "tiny"), ["y"])).fused == {}


def test_casts_around_a_norm_in_fp32_are_looked_through() -> None:
    wide = [
        helper.make_node("Cast", ["x"], ["xf"], to=1), helper.make_node("ReduceMean", ["xf", "axes"], ["mean"]),
        helper.make_node("Sub", ["xf", "mean"], ["d"]), helper.make_node("Pow", ["d", "two"], ["sq"]),
        helper.make_node("ReduceMean", ["sq", "axes"], ["var"]), helper.make_node("Add", ["var", "eps"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["sd"]), helper.make_node("Div", ["d", "sd"], ["nf"]),
        helper.make_node("Cast", ["nf"], ["n"], to=10),
        helper.make_node("Mul", ["n", "g"], ["s"]), helper.make_node("Add", ["s", "b"], ["y"]),
    ]  # fmt: skip
    floats = [onnx.numpy_helper.from_array(np.array(NUMBERS[n], np.float32), n) for n in ("two", "eps")]
    halves = [onnx.numpy_helper.from_array(np.array(NUMBERS[n], np.float16), n) for n in ("g", "b")]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT16, SHAPE)] for n in "xy"]
    weights = [*floats, *halves, onnx.numpy_helper.from_array(np.array([-1]), "axes")]
    model = helper.make_model(
        helper.make_graph(wide, "g", *ends, weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    simulation = simulated(model)
    assert simulation.fused == {"LayerNormFusion": 1}
    want = h(norm(centred(h(X).astype(np.float64))) * G + SHIFT)
    assert (run(simulation, {"x": X})["y"] != want).mean() <= 0.02


def test_a_pattern_in_a_branch_is_fused() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float16[2,4] x, bool c) => (float16[2,4] y) {
        y = If (c) <then_branch = t () => (float16[2,4] p) { s = Sigmoid(x) p = Mul(x, s) },
                    else_branch = e () => (float16[2,4] q) { q = Neg(x) }> }"""
    simulation = simulated(text)
    assert simulation.fused == {"QuickGeluFusion": 1}
    x = h(X[0, :2, :4])
    got = run(simulation, {"x": X[0, :2, :4], "c": np.array(True)})["y"]
    assert (got != h(x * sigmoid_steps(x))).mean() <= 0.2


def test_an_fp32_model_is_not_fused() -> None:
    assert simulated(build(LAYER_NORM, ["y"], wide=True)).fused == {}


# --- BiasSoftmax, for the shapes that its transformer takes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "mask", "axis", "opset", "fuses"),
    [
        ([2, 4, 8, 8], [2, 1, 1, 8], -1, 18, True),
        ([2, 4, 8, 8], [1, 1, 8, 8], -1, 18, True),
        ([2, 4, 8, 8], [8, 8], -1, 18, True),
        ([2, 4, 8, 8], [8], 3, 18, True),
        ([2, 4, 8, 8], [2, 4, 8, 8], -1, 18, True),
        ([2, 4, 8, 8], [2, 1, 8, 8], -1, 18, False),
        ([2, 4, 8, 8], [1, 4, 1, 8], -1, 18, False),
        ([2, 4, 8, 8], [1], -1, 18, False),
        ([2, 4, 8, 8], [2, 4, 8, 1], -1, 18, False),
        ([2, 4, 8, 8], [], -1, 18, False),
        ([2, 4, 8, 8], [8, 1], 2, 18, False),
        ([2, 4, 8, 8], [8, 8], 2, 18, False),
        ([2, 4, 8, 8], [8, 8], 2, 11, True),
        ([2, 4, 8, 8], [4, 8, 8], 1, 11, True),
        (["n", 4, "s", "s"], ["n", 1, 1, "s"], -1, 18, True),
    ],
)
def test_a_mask_is_added_inside_softmax(scores: Any, mask: Any, axis: int, opset: int, fuses: bool) -> None:
    for inputs in ("x, m", "m, x"):
        model = half_model(f"a = Add({inputs}) y = Softmax<axis = {axis}>(a)", {"x": scores, "m": mask}, opset=opset)
        simulation = simulated(model)
        assert simulation.fused == ({"BiasSoftmaxFusion": 1} if fuses else {})
        sizes = [[{"n": 2, "s": 8}.get(size, size) for size in shape] for shape in (scores, mask)]
        x, m = (np.asarray(RNG.standard_normal(shape) * 20, np.float32) for shape in sizes)
        if axis == -1:
            total = h(x).astype(np.float64) + h(m) if fuses else h(h(x) + h(m))
            e = np.exp(total - total.max(-1, keepdims=True))
            got = run(simulation, {"x": x, "m": m})["y"]
            assert (got != h(e / e.sum(-1, keepdims=True))).mean() <= 0.02


def test_bf16_has_no_bias_softmax() -> None:
    model = half_model("a = Add(x, m) y = Softmax(a)", {"x": [2, 4, 8, 8], "m": [2, 1, 1, 8]}, to="bf16", opset=22)
    assert simulated(model).fused == {}


@pytest.mark.parametrize(
    ("body", "outputs"), [("a = Add(x, m) y = Softmax(a)", ("y", "a")), ("a = Add(x, m) y = Softmax(a) z = Neg(a)", ("y", "z"))]
)
def test_a_masked_score_that_is_read_elsewhere_is_rounded(body: str, outputs: tuple[str, ...]) -> None:
    simulation = simulated(half_model(body, {"x": [2, 4, 8, 8], "m": [2, 1, 1, 8]}, outputs))
    assert simulation.fused == {} and "Softmax" in ops_of(simulation)
