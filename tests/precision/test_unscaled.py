"""Numbers that arrive in any size: what scales them stays FP32, with what lies in front; and where that would gain nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cases.checks import convert, normal, runs, text, with_weights
from tests.precision.test_patterns import found

WEIGHTS = (
    "<float[4] g = {1, 2, 3, 4}, float[4] b = {0, 0, 0, 0}, float k = {0.00001}, float half = {0.5}, float two = {2},"
    " float lo = {0}, float[4,4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, int64[2] shape = {2, 4}>"
)
#: What scales ``f`` -> all that must stay FP32 for it, but what makes f.
SCALED = {
    "y = Mul(f, k)": "y",
    "y = Mul(k, f)": "y",
    "y = Div(f, g)": "y",
    "y = Sqrt(f)": "y",
    "y = Pow(f, half)": "y",
    "y = Softmax(f)": "y",
    "y = LogSoftmax(f)": "y",
    "y = LayerNormalization(f, g)": "y",
    "y = InstanceNormalization(f, g, b)": "y",
    "s = Sub(f, g)\n y = Div(s, g)": "s y",
    "a = Abs(f)\n m = ReduceMax <axes = [-1]> (a)\n y = Div(f, m)": "a m y",
    "m = ReduceMean <axes = [-1]> (f)\n d = Sub(f, m)\n y = Mul(d, k)": "m d y",
    "q = Reshape(f, shape)\n r = Transpose(q)\n y = Mul(r, k)": "q r y",
    "r = Relu(f)\n y = Mul(r, k)": "r y",
    "y = Mul(f, k)\n z = Sqrt(f)": "y z",
    "y = Mul(f, k)\n z = Tanh(f)": "y",
    "y = Mul(f, k)\n z = Shape(f)": "y z",
    "y = Add(f, g)": "y",
    "a = Relu(f)\n y = Pow(a, two)": "a y",
    "m = ReduceMax <axes = [-1]> (f)\n y = Sub(f, m)": "m y",
    "q = Mul(f, f)\n m = ReduceMean <axes = [-1]> (q)\n r = Sqrt(m)\n y = Div(f, r)": "q m r y",
}


def _results(body: str, shape: str) -> str:
    """The outputs of a graph whose results are y and perhaps z."""
    second = ", int64[3] z" if "z = Shape" in body else f", float[{shape}] z"
    return f"float[{shape}] y" + (second if "z =" in body else "")


@pytest.mark.parametrize("body", SCALED)
@pytest.mark.parametrize("source", ["input", "int32", "int64", "uint16", "uint32", "uint64", "double"])
def test_what_scales_numbers_as_they_arrive_or_returns_them(source: str, body: str) -> None:
    given, made, first = f"{source}[2,4,3] x", "f = Cast <to = 1> (x)\n ", {"f"}
    if source == "input":
        given, made, first = "float[2,4,3] f", "", set()
    io = f"({given}) => ({_results(body, '2,4,3')})"
    assert found("unscaled", made + body, io=io, weights=WEIGHTS) == set(SCALED[body].split()) | first


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(f, w)",
        "r = Relu(f)\n y = MatMul(r, w)",
        "y = Tanh(f)",
        "a = Add(f, b)\n y = MatMul(a, w)",
        "y = Mul(f, k)\n z = MatMul(f, w)",  # read as it is: a Cast to half overflows there anyway
        "a = Abs(f)\n y = Mul(a, k)\n z = MatMul(a, w)",
        "n = LayerNormalization(f, g)\n h = MatMul(n, w)\n y = Add(f, h)",  # a residual
        "h = Sigmoid(w)\n y = Mul(f, h)",
        "a = Pow(f, two)\n y = MatMul(a, w)",
        "t = Tanh(f)\n y = Mul(t, k)",
    ],
)
def test_where_fp32_would_gain_nothing(body: str) -> None:
    assert found("unscaled", body, io=f"(float[2,4,4] f) => ({_results(body, '2,4,4')})", weights=WEIGHTS) == set()


@pytest.mark.parametrize("source", ["int8", "uint8", "int16", "bool", "float16"])
def test_small_integers_fit(source: str) -> None:
    body = "f = Cast <to = 1> (x)\n y = Mul(f, k)"
    assert found("unscaled", body, io=f"({source}[2,4] x) => (float[2,4] y)", weights=WEIGHTS) == set()


def test_the_state_of_a_loop_is_no_input_of_the_model() -> None:
    body = (
        "n = Constant <value_int = 2> ()\n c = Constant <value = bool {1}> ()\n h = Tanh(x)\n y = Loop(n, c, h) <body = b"
        " (int64 i, bool ci, float[2,4] s) => (bool co, float[2,4] o) { co = Identity(ci)\n o = Mul(s, k) }>"
    )
    assert found("unscaled", body, weights=WEIGHTS) == set()


def test_what_a_branch_returns_is_no_result_of_the_model() -> None:
    io = "(float[2,4] f, bool c) => (float[2,4] y)"
    branches = "then_branch = t () => (float[2,4] o) { o = Abs(f) }, else_branch = e () => (float[2,4] p) { p = Neg(f) }"
    assert found("unscaled", f"i = If(c) <{branches}>\n y = MatMul(i, w)", io=io, weights=WEIGHTS) == set()


_LARGE = np.array([[100000, 70000, 1, 2], [3, 100001, 65505, 5]])


@pytest.mark.parametrize("kind", ["float", "int64", "int32", "uint32", "double"])
@pytest.mark.parametrize(
    "body",
    [
        "g = Mul(f, k)",
        "m = ReduceMean<axes=[-1]>(f)\n d = Sub(f, m)\n g = Mul(d, k)",
        "g = LayerNormalization(f, s)",
        "a = ReduceMax<axes=[-1]>(f)\n g = Div(f, a)",
        "t = Transpose<perm=[0,1]>(f)\n g = Sqrt(t)",
    ],
)
def test_large_numbers_arrive(kind: str, body: str, folder: Path) -> None:
    """Beyond 65,504 before, and of ordinary size after."""
    used = {"k": np.float32(1e-5), "s": np.ones(4, np.float32), "w": normal(4, 4)}
    weights = {name: array for name, array in used.items() if f"{name})" in body + " w)"}
    cast = "f = Identity(x)" if kind == "float" else "f = Cast<to=1>(x)"
    model = with_weights(text(f"({kind}[2,4] x) => (float[2,4] y) {{ {cast}\n {body}\n y = MatMul(g, w) }}"), weights)
    converted = convert(model, folder)
    dtype = np.dtype({"float": "f4", "double": "f8"}.get(kind, kind))
    runs(converted, {"x": _LARGE.astype(dtype)})
    assert converted.all_half("MatMul")


@pytest.mark.parametrize("kind", ["float", "int64", "double"])
@pytest.mark.parametrize("body", ["y = Add(f, b)", "y = Mul(f, u)", "y = Max(f, u)", "a = Relu(f)\n y = Sub(a, u)"])
def test_large_numbers_pass_between_fp32_ends(kind: str, body: str, folder: Path) -> None:
    cast = "f = Identity(x)" if kind == "float" else "f = Cast<to=1>(x)"
    graph = f"({kind}[2,4] x, float[2,4] u) => (float[2,4] y) {{ {cast}\n {body} }}"
    converted = convert(with_weights(text(graph), {"b": normal(4)} if "b)" in body else {}), folder)
    dtype = {"float": np.float32, "double": np.float64}.get(kind, np.int64)
    runs(converted, {"x": _LARGE.astype(dtype), "u": normal(2, 4)}, drift=0)
    assert converted.result.casts == 0


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_softmax_between_fp32_ends_tells_large_logits_apart(op: str, folder: Path) -> None:
    graph = f"(float[1,4,2] x) => (float[1,4,2] y) {{ t = Transpose<perm=[0,2,1]>(x)\n s = {op}<axis=-1>(t)\n"
    converted = convert(text(graph + " y = Transpose<perm=[0,2,1]>(s) }"), folder)
    runs(converted, {"x": np.arange(10000, 10008, dtype=np.float32).reshape(1, 4, 2)})


def test_half_inputs_need_no_fp32_scaling(folder: Path) -> None:
    graph = "(float[2,4] x, float[2,4] z) => (float[2,4] y, float[2,4] v) { a = Mul(x, k)\n y = MatMul(a, w)\n b = Mul(z, k)\n"
    weights = {"k": np.float32(1e-3), "w": normal(4, 4)}
    model = with_weights(text(graph + " v = MatMul(b, w) }"), weights)
    converted = convert(model, folder, half_io=["x"])
    kinds = {site.node.output[0]: site.half for site in converted.ops("Mul")}
    assert kinds == {"a": True, "b": False}
