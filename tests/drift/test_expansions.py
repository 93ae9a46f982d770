"""Operators whose kernels compute in half step by step, against the same steps in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from halfconv.drift.expansions import EXPANSIONS
from tests.drift.simulating import Array, h, half_model, ops_of, result, run, same, simulated

Feeds = dict[str, Array]
Reference = Callable[..., Any]
RNG = np.random.default_rng(0)
erf = np.vectorize(math.erf, otypes=[np.float32])


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def near(got: Array, want: Any, to: str = "fp16", share: float = 0.02) -> None:
    """Equal, but for the few elements where FP32 itself differs between numpy and ONNX Runtime across a rounding boundary."""
    want = np.asarray(want, np.float32)
    assert got.shape == want.shape
    same(got, h(got, to))
    off = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    assert off.mean() <= share, f"{off.mean():.1%} of the elements differ"
    np.testing.assert_allclose(got, want, rtol=2e-2 if to == "bf16" else 4e-3, atol=2e-3)


# --- the steps, in numpy ---------------------------------------------------------------------------------------------


def step_sigmoid(x: Array, r: Reference = h) -> Array:
    one = r(1 / r(r(np.exp(-np.abs(x))) + 1))
    return np.where(x > 0, one, r(1 - one))


def tanh_gelu(x: Array, r: Reference = h) -> Array:
    inner = r(r(0.035677408136300125) * r(x * x) + r(0.7978845608028654))
    return r(x * r(0.5 * r(np.tanh(r(x * inner))) + 0.5))


def elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x < 0, h(h(alpha) * h(h(np.exp(x)) - 1)), x)


def selu(x: Array, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    return np.where(x > 0, h(h(gamma) * x), h(h(h(gamma) * h(alpha)) * h(h(np.exp(x)) - 1)))


def softplus(x: Array) -> Array:
    tail = h(np.log(h(h(np.exp(-np.abs(x))) + 1)))
    return np.where(x > 0, h(x + tail), tail)


def fp16_sigmoid(x: Array) -> Array:
    one = np.float32(1) / (np.float32(1) + np.exp(-np.abs(x)))
    return h(np.where(x > 0, one, 1 - one))


def bias_gelu(x: Array, b: Array) -> Array:
    x = h(x + b)
    return h(h(x * 0.5) * h(h(erf(h(x * h(0.7071067811865476)))) + 1))


def phi(x: Array) -> Array:
    return np.float32(0.5) * (1 + erf(x * np.float32(0.7071067811865476)))


def mean(x: Array, axis: tuple[int, ...] | None, keepdims: bool = True) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        total = h(x.sum(axis=axis, keepdims=keepdims, dtype=np.float64))
        return h(total / h(x.size / total.size))


def cumsum(x: Array, axis: int, exclusive: bool = False, reverse: bool = False) -> Array:
    x = np.moveaxis(x, axis, 0)
    x = x[::-1] if reverse else x
    state, rows = np.zeros_like(x[0]), []
    for row in x:
        after = h(state + row)
        rows.append(state if exclusive else after)
        state = after
    stacked = np.stack(rows)
    return np.moveaxis(stacked[::-1] if reverse else stacked, 0, axis)


def instance_norm(x: Array, s: Array, b: Array) -> Array:
    axes = tuple(range(2, x.ndim))
    column = (1, -1) + (1,) * len(axes)
    m = x.mean(axis=axes, keepdims=True)
    variance = ((x - m) ** 2).mean(axis=axes, keepdims=True)
    if len(x) == 1:
        return h((x - m) / np.sqrt(variance + np.float32(1e-5)) * s.reshape(column) + b.reshape(column))
    deviation = h(np.sqrt(h(h(variance) + h(1e-5))))
    with np.errstate(invalid="ignore"):
        return h(h(h(s.reshape(column) * h(x - h(m))) / deviation) + b.reshape(column))


def layer_norm(x: Array, g: Array, b: Array | None = None, epsilon: float = 1e-12, *, rms: bool = False) -> Array:
    x = x.astype(np.float64)
    x = x if rms else x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * g
    return h(y if b is None else y + b)


def group_norm(x: Array, g: Array, b: Array, groups: int, *, silu: bool = True) -> Array:
    n, rows, columns, channels = x.shape
    parts = x.astype(np.float64).reshape(n, rows * columns, groups, channels // groups)
    m, v = parts.mean(axis=(1, 3), keepdims=True), parts.var(axis=(1, 3), keepdims=True)
    y = ((parts - m) / np.sqrt(v + 1e-5)).reshape(x.shape) * g + b
    return h(y / (1 + np.exp(-y)) if silu else y)


def convolution(x: Array, w: Array) -> Array:
    """A 2-d convolution without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64)).astype(np.float32)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- one case per row, and more where a row has forms ----------------------------------------------------------------


@dataclass
class Case:
    body: str
    feeds: Feeds
    want: Reference
    opset: int = 20
    to: str = "fp16"
    weights: dict[str, Any] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    share: float = 0.02


X = normal(32, 64, scale=2)
IMAGE, KERNEL, BIAS = normal(2, 3, 8, 8), normal(5, 3, 3, 3), normal(5, scale=20)
A, B, C = normal(24, 32), normal(32, 16), normal(16, scale=20)
ROW = {"x": X}

CASES: dict[str, Case] = {
    "Conv": Case(
        "y = Conv(x, w, b)", {"x": IMAGE, "w": KERNEL, "b": BIAS}, lambda x, w, b: h(h(convolution(x, w)) + b[:, None, None])),
    "ConvTranspose": Case(
        "y = ConvTranspose(x, w, b)", {"x": normal(1, 4, 1, 1), "w": normal(4, 5, 3, 3), "b": BIAS},
        lambda x, w, b: h(h(np.einsum("c,coij->oij", x[0, :, 0, 0], w)) + b[:, None, None])[None],
    ),
    "CumSum": Case("y = CumSum(x, a)", ROW, lambda x: cumsum(x, 1), weights={"a": np.array(1)}),
    "CumSum exclusive": Case(
        "y = CumSum<exclusive = 1>(x, a)", ROW, lambda x: cumsum(x, 0, exclusive=True), weights={"a": np.array(0)}),
    "CumSum reverse": Case("y = CumSum<reverse = 1>(x, a)", ROW, lambda x: cumsum(x, 1, reverse=True), weights={"a": np.array(-1)}),
    "CumSum both": Case(
        "y = CumSum<reverse = 1, exclusive = 1>(x, a)", ROW, lambda x: cumsum(x, 1, True, True), weights={"a": np.array(1)}),
    "Elu": Case("y = Elu(x)", ROW, elu),
    "Elu alpha": Case("y = Elu<alpha = 0.3>(x)", ROW, lambda x: elu(x, 0.3)),
    "Gelu tanh": Case('y = Gelu<approximate = "tanh">(x)', ROW, tanh_gelu),
    "Gelu bf16": Case("y = Gelu(x)", ROW, lambda x: h(x * h(phi(x), "bf16"), "bf16"), to="bf16"),
    "Gelu tanh bf16": Case('y = Gelu<approximate = "tanh">(x)', ROW, lambda x: tanh_gelu(x, lambda v: h(v, "bf16")), to="bf16"),
    "Gemm": Case("y = Gemm(a, w, c)", {"a": A, "w": B, "c": C}, lambda a, w, c: h(h(a @ w) + c)),
    "Gemm transposed": Case(
        "y = Gemm<transA = 1, transB = 1>(a, w, c)", {"a": A.T, "w": B.T, "c": C}, lambda a, w, c: h(h(a.T @ w.T) + c)),
    "Gemm factors": Case(
        "y = Gemm<alpha = 0.3, beta = 1.7>(a, w, c)", {"a": A, "w": B, "c": C}, lambda a, w, c: h(h(0.3) * (a @ w) + h(1.7) * c)),
    "Gemm without addend": Case("y = Gemm(a, w)", {"a": A, "w": B}, lambda a, w: h(a @ w)),
    "HardSigmoid": Case("y = HardSigmoid(x)", ROW, lambda x: np.clip(h(h(0.2) * x + h(0.5)), 0, 1)),
    "HardSwish": Case("y = HardSwish(x)", ROW, lambda x: h(x * np.clip(h(h(x * np.float32(1 / 6)) + 0.5), 0, 1))),
    "InstanceNormalization": Case(
        "y = InstanceNormalization(x, s, b)", {"x": IMAGE * 10, "s": normal(3), "b": normal(3)}, instance_norm, share=0.05),
    "InstanceNormalization of one": Case(
        "y = InstanceNormalization(x, s, b)", {"x": IMAGE[:1], "s": normal(3), "b": normal(3)}, instance_norm, share=0.05),
    "LeakyRelu": Case("y = LeakyRelu<alpha = 0.013>(x)", ROW, lambda x: np.where(x < 0, h(h(0.013) * x), x)),
    "ReduceMean": Case("y = ReduceMean(x, a)", {"x": np.abs(X) * 30}, lambda x: mean(x, (1,)), weights={"a": np.array([1])}),
    "ReduceMean first": Case(
        "y = ReduceMean<keepdims = 0>(x, a)", ROW, lambda x: mean(x, (0,), False), weights={"a": np.array([0])}),
    "ReduceMean all": Case("y = ReduceMean<keepdims = 0>(x)", ROW, lambda x: mean(x, None, False)),
    "ReduceMean attribute": Case("y = ReduceMean<axes = [-1]>(x)", ROW, lambda x: mean(x, (1,)), opset=13),
    "ReduceMean overflow": Case(
        "y = ReduceMean(x, a)", {"x": np.full((2, 3000), 30, np.float32)},
        lambda x: np.full((2, 1), np.inf), weights={"a": np.array([1])}),
    "ReduceLogSum": Case(
        "y = ReduceLogSum(x, a)", {"x": np.abs(X)}, lambda x: h(np.log(h(x.sum(1, keepdims=True)))), weights={"a": np.array([1])}),
    "ReduceLogSumExp": Case(
        "y = ReduceLogSumExp(x, a)", ROW,
        lambda x: h(h(np.log(h(h(np.exp(h(x - x.max(1, keepdims=True)))).sum(1, keepdims=True)))) + x.max(1, keepdims=True)),
        weights={"a": np.array([1])}, share=0.1,
    ),
    "Selu": Case("y = Selu(x)", ROW, selu),
    "Sigmoid bf16": Case("y = Sigmoid(x)", ROW, lambda x: step_sigmoid(x, lambda v: h(v, "bf16")), to="bf16"),
    "Sigmoid": Case("y = Sigmoid(x)", ROW, fp16_sigmoid),
    "Softplus": Case("y = Softplus(x)", ROW, softplus),
    "Softsign": Case("y = Softsign(x)", ROW, lambda x: h(x / h(np.abs(x) + 1))),
    "Sum": Case("y = Sum(x, a, b)", {"x": X, "a": X[:1] * 100, "b": X[:, :1] * 100}, lambda x, a, b: h(h(x + a) + b)),
    "Sum of one": Case("y = Sum(x)", ROW, lambda x: x),
    "BiasAdd": Case(
        "y = com.microsoft.BiasAdd(x, a, b)", {"x": normal(2, 4, 8), "a": normal(8, scale=50), "b": normal(2, 4, 8)},
        lambda x, a, b: h(h(x + a) + b)),
    "BiasGelu": Case("y = com.microsoft.BiasGelu(x, b)", {"x": X, "b": normal(64)}, bias_gelu),
    "BiasSoftmax inner": Case(
        "y = com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 1>(x, m)",
        {"x": normal(2, 3, 4, 5, scale=3), "m": normal(2, 1, 1, 5, scale=3)},
        lambda x, m: h(softmax(x + m))),
    "BiasSoftmax outer": Case(
        "y = com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 0>(x, m)",
        {"x": normal(2, 3, 4, 5, scale=3), "m": normal(4, 5, scale=3)},
        lambda x, m: h(softmax(x + m))),
    "BiasSoftmax of many axes": Case(
        "y = com.microsoft.BiasSoftmax<axis = 1, is_inner_broadcast = 0>(x, m)", {"x": normal(2, 3, 4), "m": normal(1, 3, 4)},
        lambda x, m: h(softmax((x + m).reshape(2, 12)).reshape(2, 3, 4))),
    "BiasSplitGelu": Case(
        "y = com.microsoft.BiasSplitGelu(x, b)", {"x": normal(2, 4, 16), "b": normal(16)},
        lambda x, b: h(h(x + b)[..., :8] * (h(x + b)[..., 8:] * phi(h(x + b)[..., 8:])))),
    "FastGelu": Case("y = com.microsoft.FastGelu(x)", ROW, tanh_gelu),
    "FastGelu bias": Case("y = com.microsoft.FastGelu(x, b)", {"x": X, "b": normal(64)}, lambda x, b: tanh_gelu(h(x + b))),
    "MS Gelu bf16": Case("y = com.microsoft.Gelu(x)", ROW, lambda x: h(x * h(phi(x), "bf16"), "bf16"), to="bf16"),
    "GroupNorm": Case(
        "y = com.microsoft.GroupNorm<groups = 4, activation = 1, epsilon = 1e-5>(x, g, b)",
        {"x": normal(2, 3, 3, 8, scale=9), "g": normal(8), "b": normal(8)},
        lambda x, g, b: group_norm(x, g, b, 4), wide=("g", "b")),
    "GroupNorm first": Case(
        "y = com.microsoft.GroupNorm<groups = 2, activation = 0, channels_last = 0, epsilon = 1e-5>(x, g, b)",
        {"x": normal(2, 8, 3, 3), "g": normal(8), "b": normal(8)},
        lambda x, g, b: group_norm(x.transpose(0, 2, 3, 1), g, b, 2, silu=False).transpose(0, 3, 1, 2), wide=("g", "b")),
    "NhwcConv": Case(
        "y = com.microsoft.NhwcConv(x, w, b)", {"x": IMAGE.transpose(0, 2, 3, 1), "w": KERNEL.transpose(0, 2, 3, 1), "b": BIAS},
        lambda x, w, b: h(h(convolution(x.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1) + b)),
    "QuickGelu": Case("y = com.microsoft.QuickGelu(x)", ROW, lambda x: h(x * step_sigmoid(h(h(1.702) * x)))),
    "SkipGroupNorm": Case(
        "y = com.microsoft.SkipGroupNorm<groups = 4, activation = 0, epsilon = 1e-5>(x, g, b, s, c)",
        {"x": normal(2, 3, 3, 8), "g": normal(8), "b": normal(8), "s": normal(2, 8), "c": normal(8, scale=50)},
        lambda x, g, b, s, c: group_norm(h(h(x + c) + s[:, None, None]), g, b, 4, silu=False), wide=("g", "b")),
    "SkipLayerNormalization": Case(
        "y = com.microsoft.SkipLayerNormalization<epsilon = 1e-5>(x, s, g, b, c)",
        {"x": normal(2, 4, 32), "s": normal(2, 4, 32, scale=50), "g": normal(32), "b": normal(32), "c": normal(32)},
        lambda x, s, g, b, c: layer_norm(h(h(x + c) + s), g, b, 1e-5)),
    "SkipLayerNormalization without": Case(
        "y = com.microsoft.SkipLayerNormalization(x, s, g)",
        {"x": normal(2, 4, 32), "s": normal(2, 4, 32, scale=50), "g": normal(32)},
        lambda x, s, g: layer_norm(h(x + s), g)),
    "SkipSimplifiedLayerNormalization": Case(
        "y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 1e-5>(x, s, g, c)",
        {"x": normal(2, 4, 32), "s": normal(2, 4, 32, scale=50), "g": normal(32), "c": normal(32)},
        lambda x, s, g, c: layer_norm(h(h(x + c) + s), g, None, 1e-5, rms=True)),
}  # fmt: skip


def source(case: Case) -> Any:
    shapes = {name: list(value.shape) for name, value in case.feeds.items()}
    return half_model(
        case.body, shapes, weights=case.weights, opset=22 if case.to == "bf16" else case.opset, to=case.to, wide=case.wide
    )


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_the_steps_of_its_kernel(name: str) -> None:
    case = CASES[name]
    halves = {key: value if key in case.wide else h(value, case.to) for key, value in case.feeds.items()}
    near(result(source(case), case.feeds), case.want(**halves), case.to, case.share)


def test_every_row_is_tried() -> None:
    """Recurrent operators and attention have modules of their own."""
    apart = {"GRU", "LSTM", "RNN", "Attention", "MultiHeadAttention"}
    tried = " ".join(case.body for case in CASES.values())
    for row in EXPANSIONS:
        assert row.op in apart or f"{row.domain}.{row.op}".lstrip(".") + "(" in tried.replace("<", "(") or f" {row.op}(" in tried, (
            row.op
        )


@pytest.mark.parametrize("op", ["Elu", "Selu", "LeakyRelu", "HardSigmoid", "Softplus", "Sigmoid"])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(bits=st.lists(st.integers(0, 65535), min_size=1, max_size=64))
def test_an_activation_of_any_half_is_a_half_and_a_nan_only_of_a_nan(op: str, bits: list[int]) -> None:
    x = np.array(bits, np.uint16).view(np.float16).astype(np.float32)
    got = result(half_model(f"y = {op}(x)", {"x": ["n"]}), {"x": x})
    same(got, h(got))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))


# --- where a row must not fire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shapes", "opset", "kept"),
    [
        ("y = Conv(x, w)", {"x": [1, 2, 4, 4], "w": [3, 2, 3, 3]}, 20, ["Conv"]),
        ("y = Gelu(x)", {"x": [2, 3]}, 20, ["Gelu"]),
        ("y = CumSum(x, a)", {"x": [2, 3]}, 20, ["CumSum"]),
        ("y = ReduceMean(x, k)", {"x": [2, 3, 4]}, 20, ["ReduceMean"]),
        ("y = ReduceMean<noop_with_empty_axes = 1>(x)", {"x": [2, 3]}, 20, ["ReduceMean"]),
        ("y = HardSwish(x)", {"x": [2, 3]}, 20, None),
    ],
)
def test_rows_that_do_not_apply(body: str, shapes: Any, opset: int, kept: list[str] | None) -> None:
    inputs = dict(shapes)
    model = half_model(body, inputs, weights={"k": np.array([1])}, opset=opset)
    if " a)" in body:  # an axis that is known at run time only
        model.graph.input.append(helper.make_tensor_value_info("a", TensorProto.INT64, []))
    got = ops_of(simulated(model))
    assert got == kept if kept else "HardSwish" not in got


def test_an_opset_without_a_cuda_kernel_is_computed_by_the_cpu_in_fp32() -> None:
    """Selu has a CUDA kernel for opset 6 up to 21, not for BF16 before 22; CumSum none for BF16."""
    assert ops_of(simulated(half_model("y = Selu(x)", {"x": [2, 3]}, to="bf16", opset=20))) == ["Selu"]
    got = ops_of(simulated(half_model("y = Selu(x)", {"x": [2, 3]}, opset=20)))
    assert "Selu" not in got and "Where" in got


def test_an_fp32_operator_of_a_mixed_model_stays_whole() -> None:
    model = half_model("a = Cast<to = 1>(x) b = Elu(a) y = Cast<to = 10>(b)", {"x": [2, 3]})
    assert "Elu" in ops_of(simulated(model))


def test_a_result_that_is_read_twice_and_is_an_output_keeps_its_name() -> None:
    model = half_model("y = Elu(x) a = Neg(y) z = Add(a, y)", {"x": [2, 3]}, ("y", "z"))
    x = normal(2, 3)
    got = run(simulated(model), {"x": x})
    near(got["y"], elu(h(x)))
    same(got["z"], np.zeros((2, 3)))


def test_a_running_sum_begins_at_zero_even_before_an_infinity() -> None:
    x = np.array([[np.inf, 1.0], [1.0, np.nan], [2.0, 3.0]], np.float32)
    for body, want in (("CumSum", cumsum(x, 1)), ("CumSum<exclusive = 1>", cumsum(x, 1, exclusive=True))):
        same(result(half_model(f"y = {body}(x, a)", {"x": [3, 2]}, weights={"a": np.array(1)}), {"x": x}), want)


def test_the_second_result_of_a_skip_norm_is_the_sum() -> None:
    body = "y, , , t = com.microsoft.SkipLayerNormalization(x, s, g)"
    x, s = normal(2, 4, 8), normal(2, 4, 8, scale=90)
    got = run(
        simulated(half_model(body, {"x": [2, 4, 8], "s": [2, 4, 8], "g": [8]}, ("y", "t"))),
        {"x": x, "s": s, "g": np.ones(8, np.float32)},
    )
    same(got["t"], h(h(x) + h(s)))
    body = "y, t = com.microsoft.SkipGroupNorm<groups = 2, activation = 0>(x, g, b, s)"
    x, s, vector = normal(1, 2, 2, 4), normal(1, 2, 2, 4, scale=90), np.ones(4, np.float32)
    shapes = {"x": [1, 2, 2, 4], "g": [4], "b": [4], "s": [1, 2, 2, 4]}
    got = run(simulated(half_model(body, shapes, ("y", "t"), wide=("g", "b"))), {"x": x, "s": s, "g": vector, "b": vector})
    same(got["t"], h(h(x) + h(s)))
