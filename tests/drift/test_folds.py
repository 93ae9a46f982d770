"""Weights of convolutions are folded as ONNX Runtime folds them on load, in half, step by step; and where it does, only there.

Where is compared with the graph that ONNX Runtime itself makes, in FP32 on the CPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx_ir.passes import common

from halfconv.drift.folds import FoldPass, RemoveIdentityPass
from halfconv.graph.prepare import prepare
from tests.drift.simulating import Array, h, half_model, ops_of, run, same, simulated
from tests.runtime_helpers import isolate
from tests.runtime_helpers import run as run_file

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS: dict[str, Array] = {
    "w": normal(4, 2, 3, 3), "w2": normal(4, 1, 3, 3), "w1": normal(1, 2, 3, 3), "wt": normal(2, 4, 3, 3),
    "wt2": normal(2, 2, 3, 3),
    "c": normal(4) * 20, "c1": normal(1), "s": normal(4), "b": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 0.1,
    "chw": normal(4, 1, 1), "nchw": normal(1, 4, 1, 1), "scalar": normal(), "one": normal(1), "ones3": normal(1, 1, 1),
    "ones4": normal(1, 1, 1, 1), "row": normal(4), "full": normal(2, 4, 4, 4), "image": normal(1, 4, 4, 4),
}  # fmt: skip
INPUTS = {"x": [2, 2, 6, 6], "si": [4], "ci": [4], "wi": [4, 2, 3, 3], "ki": [4, 1, 1]}
BN = "BatchNormalization"

CASES = {
    "norm": f"a = Conv(x, w, c)\n y = {BN}(a, s, b, m, v)",
    "norm, no bias": f"a = Conv(x, w)\n y = {BN}(a, s, b, m, v)",
    "norm, epsilon": f"a = Conv(x, w, c)\n y = {BN}<epsilon = 0.1>(a, s, b, m, v)",
    "norm, groups": f"a = Conv<group = 2>(x, w2, c)\n y = {BN}(a, s, b, m, v)",
    "norm, read twice": f"a = Conv(x, w, c)\n y = {BN}(a, s, b, m, v)\n z = Neg(a)",
    "norm, a result": f"a = Conv(x, w, c)\n y = {BN}(a, s, b, m, v)\n",
    "norm behind Relu": f"a = Conv(x, w, c)\n r = Relu(a)\n y = {BN}(r, s, b, m, v)",
    "norm behind Identity": f"a = Conv(x, w, c)\n i = Identity(a)\n y = {BN}(i, s, b, m, v)",
    "norm, given scale": f"a = Conv(x, w, c)\n y = {BN}(a, si, b, m, v)",
    "norm, given bias": f"a = Conv(x, w, ci)\n y = {BN}(a, s, b, m, v)",
    "norm, given weight": f"a = Conv(x, wi, c)\n y = {BN}(a, s, b, m, v)",
    "norm, transposed": f"a = ConvTranspose(x, wt, c)\n y = {BN}(a, s, b, m, v)",
    "norm, transposed, no bias": f"a = ConvTranspose(x, wt)\n y = {BN}(a, s, b, m, v)",
    "norm, transposed, groups": f"a = ConvTranspose<group = 2>(x, wt2, c)\n y = {BN}(a, s, b, m, v)",
    "transposed and Mul": "a = ConvTranspose(x, wt, c)\n y = Mul(a, chw)",
    "transposed and Add": "a = ConvTranspose(x, wt, c)\n y = Add(a, chw)",
    **{
        f"Mul by {k}": f"a = Conv(x, w, c)\n y = Mul(a, {k})"
        for k in ("chw", "nchw", "scalar", "one", "ones3", "ones4", "row", "image", "ki")
    },
    **{
        f"Add of {k}": f"a = Conv(x, w, c)\n y = Add(a, {k})"
        for k in ("chw", "nchw", "scalar", "ones3", "ones4", "row", "full", "ki")
    },
    "Mul, no bias": "a = Conv(x, w)\n y = Mul(a, chw)",
    "Add, no bias": "a = Conv(x, w)\n y = Add(a, chw)",
    "Mul from the left": "a = Conv(x, w, c)\n y = Mul(chw, a)",
    "Add from the left": "a = Conv(x, w, c)\n y = Add(chw, a)",
    "Mul by itself": "a = Conv(x, w, c)\n y = Mul(a, a)",
    "Sub": "a = Conv(x, w, c)\n y = Sub(a, chw)",
    "Mul then Add": "a = Conv(x, w, c)\n d = Mul(a, chw)\n y = Add(d, nchw)",
    "norm then Mul": f"a = Conv(x, w, c)\n d = {BN}(a, s, b, m, v)\n y = Mul(d, chw)",
    "Add then norm": f"a = Conv(x, w)\n d = Add(a, chw)\n y = {BN}(d, s, b, m, v)",
    "one weight, two readers": "a = Conv(x, w, c)\n d = Mul(a, chw)\n e = Conv(x, w, c)\n f = Mul(e, nchw)\n y = Add(d, f)",
    "one channel, Mul": "a = Conv(x, w1, c1)\n y = Mul(a, ones3)",
    "one channel, Add": "a = Conv(x, w1, c1)\n y = Add(a, ones4)",
    "no convolution": f"y = {BN}(x, si2, si2, si2, si2)",
}
WEIGHTS["si2"] = np.abs(normal(2)) + 0.1


def build(name: str, *, wide: bool = False, to: str = "fp16") -> onnx.ModelProto:
    text = CASES[name]
    nodes = onnx.parser.parse_graph(f"g () => () {{ {text} }}").node
    used = {value for node in nodes for value in node.input}
    outputs = ["y"] + ["z"] * ("z = " in text) + ["a"] * name.endswith("a result")
    weights = {key: value for key, value in WEIGHTS.items() if key in used}
    inputs = {key: shape for key, shape in INPUTS.items() if key in used}
    model = half_model(text, inputs, outputs, weights=weights, opset=22 if to == "bf16" else 17, to=to)
    if wide:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        del model.graph.initializer[:], model.graph.value_info[:]
        model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items())
    return model


def optimized(model: bytes) -> list[str]:
    """Operators of the graph that ONNX Runtime will run."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return sorted(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_folds_the_same(name: str) -> None:
    [theirs] = isolate(optimized, [build(name, wide=True).SerializeToString()], workers=1)
    assert isinstance(theirs, list), theirs
    model = ir.from_proto(build(name))
    prepare(model, fuse=False)
    RemoveIdentityPass()(model)
    FoldPass()(model)
    common.RemoveUnusedNodesPass()(model)
    assert sorted(node.op_type for node in model.graph) == theirs


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_folded_model_gives_nearly_the_same(name: str, to: str) -> None:
    model = build(name, to=to)
    feeds = {value.name: np.abs(normal(*INPUTS[value.name])) for value in model.graph.input}
    want = run_file(build(name, wide=True), [feeds]).outputs[0]
    for key, value in run(simulated(model), feeds).items():
        same(value, h(value, to))
        limit = 8 * (2**-8 if to == "bf16" else 2**-11)
        assert np.linalg.norm(value - want[key]) <= limit * np.linalg.norm(want[key])


# --- the steps, in numpy ---------------------------------------------------------------------------------------------

X = h(normal(*INPUTS["x"]))
W, C, S, B, M, V = (h(WEIGHTS[k]) for k in "wcsbmv")


def convolved(weight: Array, bias: Array | None) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(X.astype(np.float64), (3, 3), axis=(2, 3))
    product = h(np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64)))
    return product if bias is None else h(product + bias[:, None, None])


def column(vector: Array) -> Array:
    return vector.reshape(-1, 1, 1, 1)


def factor(epsilon: float = 1e-5) -> Array:
    return h(S / h(np.sqrt(h(V + np.float32(epsilon)))))


STEPS: dict[str, tuple[Array, Array | None]] = {
    "norm": (h(W * column(factor())), h(h(h(C - M) * factor()) + B)),
    "norm, epsilon": (h(W * column(factor(0.1))), h(h(h(C - M) * factor(0.1)) + B)),
    "norm, no bias": (h(W * column(factor())), h(B - h(M * factor()))),
    "Mul by chw": (h(W * column(h(WEIGHTS["chw"]))), h(C * h(WEIGHTS["chw"]).ravel())),
    "Mul by nchw": (h(W * column(h(WEIGHTS["nchw"]))), h(C * h(WEIGHTS["nchw"]).ravel())),
    "Mul by scalar": (h(W * h(WEIGHTS["scalar"])), h(C * h(WEIGHTS["scalar"]))),
    "Mul, no bias": (h(W * column(h(WEIGHTS["chw"]))), None),
    "Add of chw": (W, h(C + h(WEIGHTS["chw"]).ravel())),
    "Add, no bias": (W, h(WEIGHTS["chw"]).ravel()),
    "Mul then Add": (h(W * column(h(WEIGHTS["chw"]))), h(h(C * h(WEIGHTS["chw"]).ravel()) + h(WEIGHTS["nchw"]).ravel())),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_a_fold_rounds_every_weight(name: str) -> None:
    simulation = simulated(build(name))
    assert [op for op in ops_of(simulation) if op not in ("Reshape", "Add")] == ["Conv"]
    got, want = run(simulation, {"x": X})["y"], convolved(*STEPS[name])
    assert (got != want).mean() <= 0.02
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-2)


def test_the_transposed_norm_scales_what_each_weight_makes() -> None:
    """Weights are [in, out of its group, …]."""
    got = run(simulated(build("norm, transposed, groups")), {"x": X})["y"]
    weight = h(WEIGHTS["wt2"])
    scaled = np.stack([h(weight[g] * factor()[2 * g : 2 * g + 2, None, None]) for g in range(2)])
    moved = h(h(h(C - M) * factor()) + B)
    want = np.zeros((2, 4, 8, 8))
    for g in range(2):
        for i in range(3):
            for j in range(3):
                want[:, 2 * g : 2 * g + 2, i : i + 6, j : j + 6] += X[:, g : g + 1] * scaled[g, :, i, j].reshape(1, 2, 1, 1)
    want = h(h(want) + moved[:, None, None])
    assert (got != want).mean() <= 0.02


def test_a_variance_of_zero_and_an_overflow_give_infinities_without_a_warning() -> None:
    weights = {"w": WEIGHTS["w"] * 3e4, "s": np.full(4, 3e4), "b": B, "m": M, "v": np.zeros(4)}
    model = half_model(f"a = Conv(x, w) y = {BN}<epsilon = 0.0>(a, s, b, m, v)", {"x": INPUTS["x"]}, weights=weights, opset=17)
    assert not np.isfinite(run(simulated(model), {"x": X})["y"]).all()


def test_the_folded_weight_meets_no_other_name() -> None:
    body = f'"y/folded_1_0" = Neg(x) a = Conv("y/folded_1_0", w, c) y = {BN}(a, s, b, m, v)'
    weights = {key: WEIGHTS[key] for key in "wcsbmv"}
    model = half_model(body, {"x": INPUTS["x"]}, weights=weights, opset=17)
    got = run(simulated(model), {"x": -X})["y"]
    same(got, run(simulated(build("norm")), {"x": X})["y"])


def test_a_fold_in_a_branch() -> None:
    inner = build("norm").graph
    value = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    body = onnx.helper.make_graph(list(inner.node), "t", [], [value])
    node = onnx.helper.make_node("If", ["k"], ["out"], then_branch=body, else_branch=body)
    ends = [onnx.helper.make_tensor_value_info("k", TensorProto.BOOL, []), inner.input[0]]
    out = onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT16, None)
    graph = onnx.helper.make_graph([node], "g", ends, [out], list(inner.initializer))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    got: Any = run(simulated(model), {"x": X, "k": np.array(True)})["out"]
    same(got, run(simulated(build("norm")), {"x": X})["y"])
