"""Numbers that half precision cannot hold (cases.md, Numbers)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import halfconv
from tests import structure
from tests.cases.checks import Converted, close, convert, normal, runs, text, tidy, with_weights
from tests.runtime_helpers import run
from tests.simulation import FLOAT, HALF

X = normal(2, 4)


# --- 23. weights out of range --------------------------------------------------------------------------------------


def _changes(converted: Converted) -> dict[str, tuple[int, int]]:
    """Constant -> how many of its elements were saturated, how many flushed to zero."""
    return {entry.name: (entry.saturated, entry.flushed) for entry in converted.result.constants}


def _forced(weights: dict[str, np.ndarray], body: str, folder: Path, **options: object) -> Converted:
    """Convert with everything forced to half, so that constants must change."""
    model = with_weights(text(f"(float[2,4] x) => (float[2,4] y) {{ {body} }}"), weights)
    ops = sorted({node.op_type for node in model.graph.node})
    return convert(model, folder, block_list="none", allow_ops=ops, check=False, **options)


def test_forced_half_weights_saturate_with_their_sign_and_are_counted(folder: Path) -> None:
    w = np.array([1e5, -1e5, 65504, -65504, 65519, 65520, -3.4e38, 20000, np.inf, -np.inf, np.nan, 1], np.float32)
    w = np.tile(w[:, None], (1, 4)).T.copy()
    model = with_weights(text("(float[4,12] x) => (float[4,12] y) { y = Add(x, w) }"), {"w": w})
    converted = convert(model, folder, block_list="none", allow_ops=["Add"], half_io=True, check=False)
    (stored,) = [array for _, array in structure.weights(converted.model) if array.shape == w.shape]
    assert stored.dtype == np.float16
    want = [65504, -65504, 65504, -65504, 65504, 65504, -65504, 20000, np.inf, -np.inf, np.nan, 1]
    assert np.array_equal(stored[0], np.array(want, np.float16), equal_nan=True)
    # 65519 rounds down to 65504 like any other number; 65520 would round to infinity.
    assert _changes(converted) == {"w": (4 * 4, 0)}


def test_forced_half_weights_flush_to_zero_with_their_sign_and_are_counted(folder: Path) -> None:
    w = np.array([[1e-9, -1e-9, 2e-8, 3.1e-8]], np.float32)
    converted = _forced({"w": w}, "y = Add(x, w)", folder, half_io=True)
    (stored,) = [array for _, array in structure.weights(converted.model) if array.shape == w.shape]
    assert np.array_equal(stored, np.array([[0, -0.0, 0, 6e-8]], np.float16))
    assert np.signbit(stored[0, 1])
    assert _changes(converted) == {"w": (0, 3)}


def test_a_change_of_a_constant_is_counted_per_element_and_constant(folder: Path) -> None:
    weights = {"w": np.full((2, 4), 1e6, np.float32), "v": np.full((4,), 1e-12, np.float32), "u": normal(4)}
    converted = _forced(weights, "a = Mul(x, w)\n b = Add(a, v)\n y = Add(b, u)", folder, half_io=True)
    assert _changes(converted) == {"w": (8, 0), "v": (0, 4)}


def test_zeros_and_subnormals_are_no_change(folder: Path) -> None:
    weights = {"w": np.array([[0, -0.0, 6e-8, 1e-5]], np.float32)}
    converted = convert(with_weights(text("(float[2,4] x) => (float[2,4] y) { y = Add(x, w) }"), weights), folder)
    runs(converted, {"x": X})
    assert _changes(converted) == {}


@pytest.mark.parametrize("half_io", [False, ["x"]])
@pytest.mark.parametrize(
    ("body", "w"),
    [
        ("y = Div(x, w)", np.array([1e6, 2e5, -7e4, 1e9], np.float32)),
        ("y = Div(x, w)", np.array([1e-9, -1e-8, 1, 3], np.float32)),
        ("a = Mul(x, w)\n y = Log(a)", np.array([1e6, 2e5, 7e4, 1e9], np.float32)),
        ("a = Mul(x, w)\n y = Tanh(a)", np.array([1e-9, 1e-8, -1e-9, 3e-9], np.float32)),
        ("a = Mul(x, w)\n y = Mul(a, v)", np.array([1e6, 2e5, -7e4, 1e9], np.float32)),
        ("a = Add(x, w)\n y = Sub(a, w)", np.array([1e5, 2e5, 7e4, 1e5], np.float32)),
        ("a = MatMul(x, d)\n y = Mul(a, v)", np.array([1e5, 2e5, 7e4, 1e5], np.float32)),
        ("a = Neg(w)\n y = Div(x, a)", np.array([1e6, 2e5, -7e4, 1e9], np.float32)),
    ],
)
def test_a_weight_that_half_cannot_hold_keeps_its_node_in_fp32(
    body: str, w: np.ndarray, half_io: bool | list[str], folder: Path
) -> None:
    weights = {"w": w, "v": (1 / w).astype(np.float32), "d": np.diag(w)}
    used = {name: array for name, array in weights.items() if f", {name})" in body or f"({name})" in body}
    model = with_weights(text(f"(float[2,4] x) => (float[2,4] y) {{ {body} }}"), used)
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": np.abs(X) + 0.1}, keep_io=not half_io, drift=1e-2)
    assert _changes(converted) == {}
    assert structure.weight(converted.model, used.get("w", used.get("d")))["float32"] == 1


def test_infinite_constants_stay_infinite(folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,4] y, float[2,4] z) <float p = {inf}, float m = {-inf}>"
        " { a = Min(x, p)\n y = Max(a, m)\n z = Add(x, p) }"
    )
    converted = convert(model, folder)
    runs(converted, {"x": X})
    assert _changes(converted) == {}


def test_nan_constants_stay_nan(folder: Path) -> None:
    weights = {"k": np.array([np.nan, 1, 2, 3], np.float32)}
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { a = Add(x, k)\n y = Neg(a) }"), weights)
    converted = convert(model, folder)
    found = runs(converted, {"x": X})
    assert np.isnan(found.simulated[0]["y"][:, 0]).all()


def test_tiny_weights_of_a_linear_layer(folder: Path) -> None:
    """A layer of nothing but tiny weights, followed by one that makes up for it."""
    weights = {"a": normal(4, 4) * 1e-9, "b": normal(4, 4, seed=1) * 1e9}
    body = "(float[2,4] x) => (float[2,4] y) { m = MatMul(x, a)\n y = MatMul(m, b) }"
    converted = convert(with_weights(text(body), {k: v.astype(np.float32) for k, v in weights.items()}), folder)
    runs(converted, {"x": X}, drift=1e-2)


def test_a_few_tiny_weights_among_ordinary_ones_do_not_keep_a_layer_in_fp32(folder: Path) -> None:
    w = normal(64, 64)
    w[:2, :2] = 1e-10
    converted = convert(with_weights(text("(float[2,64] x) => (float[2,64] y) { y = MatMul(x, w) }"), {"w": w}), folder)
    runs(converted, {"x": normal(2, 64)})
    assert converted.all_half("MatMul")
    assert _changes(converted) == {"w": (0, 4)}


# --- 24. small epsilons and squares --------------------------------------------------------------------------------


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 1e-8, 1e-12])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_a_decomposed_layer_norm(epsilon: float, scale: float, half_io: bool, folder: Path) -> None:
    model = with_weights(
        text(
            "(float[2,8] x) => (float[2,8] y) { mean = ReduceMean<axes=[-1]>(x)\n d = Sub(x, mean)\n s = Pow(d, two)\n"
            " var = ReduceMean<axes=[-1]>(s)\n e = Add(var, eps)\n r = Sqrt(e)\n n = Div(d, r)\n m = Mul(n, g)\n"
            " y = Add(m, b) }"
        ),
        {"two": np.array(2, np.float32), "eps": np.array(epsilon, np.float32), "g": normal(8), "b": normal(8, seed=1)},
    )
    x = normal(2, 8, scale=scale)
    x[1] = x[1, 0]  # no variance at all: only the epsilon keeps 0 / 0 away
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": x}, keep_io=not half_io, drift=1e-2)


_SMALL = {
    "rsqrt by Reciprocal": "v = ReduceMean<axes=[-1]>(s)\n e = Add(v, eps)\n"
    " q = Sqrt(e)\n r = Reciprocal(q)\n y = Mul(x, r)",
    "Pow -0.5": "v = ReduceMean<axes=[-1]>(s)\n e = Add(v, eps)\n r = Pow(e, mh)\n y = Mul(x, r)",
    "L2 norm": "n = ReduceL2<axes=[-1]>(x)\n e = Max(n, eps)\n y = Div(x, e)",
    "L2 norm clipped": "n = ReduceL2<axes=[-1]>(x)\n e = Clip(n, eps)\n y = Div(x, e)",
    "L2 norm by sum": "v = ReduceSum(s, axis)\n e = Add(eps, v)\n q = Sqrt(e)\n y = Div(x, q)",
    "Where": "v = ReduceSum(s, axis)\n c = Greater(v, eps)\n e = Where(c, v, eps)\n q = Sqrt(e)\n y = Div(x, q)",
    "log": "a = Abs(x)\n e = Max(a, eps)\n y = Log(e)",
    "log of sum": "a = Abs(x)\n e = Add(a, eps)\n y = Log(e)",
    "log of clip": "a = Abs(x)\n e = Clip(a, eps)\n y = Log(e)",
}  # fmt: skip


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("epsilon", [1e-9, 1e-12])
@pytest.mark.parametrize("kind", _SMALL)
def test_epsilons_below_half_precision(kind: str, epsilon: float, half_io: bool, folder: Path) -> None:
    body = _SMALL[kind]
    weights = {
        "eps": np.array(epsilon, np.float32),
        "mh": np.array(-0.5, np.float32),
        "axis": np.array([-1]),
        "two": np.array(2, np.float32),
    }
    square = "s = Mul(x, x)\n " if "(s" in body else ""
    used = {name: array for name, array in weights.items() if f" {name})" in body or f"({name}," in body}
    model = with_weights(text(f"(float[3,4] x) => (float[3,4] y) {{ {square}{body} }}"), used)
    x = normal(3, 4)
    x[1] = 0
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": x}, keep_io=not half_io, drift=1e-2)


@pytest.mark.parametrize("how", ["Pow(d, two)", "Mul(d, d)", "Pow(x, two)"])
@pytest.mark.parametrize("half_io", [False, True])
def test_squares_that_overflow_give_no_zeros(how: str, half_io: bool, folder: Path) -> None:
    """x / sqrt(inf) is 0: finite and wrong, so that a scan for NaN sees nothing."""
    model = with_weights(
        text(
            "(float[2,64] x) => (float[2,64] y) { mean = ReduceMean<axes=[-1]>(x)\n d = Sub(x, mean)\n"
            f" s = {how}\n v = ReduceMean<axes=[-1]>(s)\n e = Add(v, eps)\n r = Sqrt(e)\n y = Div(d, r) }}"
        ),
        {"two": np.array(2, np.float32), "eps": np.array(1e-6, np.float32)},
    )
    converted = convert(model, folder, half_io=half_io)
    found = runs(converted, {"x": normal(2, 64, scale=900)}, keep_io=not half_io, drift=1e-2)
    assert np.abs(found.simulated[0]["y"]).max() > 0.5


@pytest.mark.parametrize("opset", [13, 18])
def test_an_rms_norm(opset: int, folder: Path) -> None:
    reduce = "ReduceMean<axes=[-1]>(s)" if opset < 18 else "ReduceMean(s, axis)"
    model = with_weights(
        text(
            f"(float[2,64] x) => (float[2,64] y) {{ s = Pow(x, two)\n v = {reduce}\n e = Add(v, eps)\n q = Sqrt(e)\n"
            " r = Reciprocal(q)\n n = Mul(x, r)\n y = Mul(n, g) }",
            opset=opset,
        ),
        {"two": np.array(2, np.float32), "eps": np.array(1e-6, np.float32), "g": normal(64)}
        | ({"axis": np.array([-1])} if opset >= 18 else {}),
    )
    converted = convert(model, folder)
    runs(converted, {"x": normal(2, 64, scale=400)}, {"x": normal(2, 64, scale=1e-3)}, drift=1e-2)


def test_a_variance_as_difference_of_means(folder: Path) -> None:
    """E[x²] - E[x]², as TensorFlow's exporter writes it: half loses all digits of the difference."""
    model = with_weights(
        text(
            "(float[2,256] x) => (float[2,256] y) { m = ReduceMean<axes=[-1]>(x)\n s = Mul(x, x)\n"
            " q = ReduceMean<axes=[-1]>(s)\n mm = Mul(m, m)\n v = Sub(q, mm)\n z = Relu(v)\n e = Add(z, eps)\n"
            " r = Sqrt(e)\n d = Sub(x, m)\n y = Div(d, r) }"
        ),
        {"eps": np.array(1e-6, np.float32)},
    )
    converted = convert(model, folder)
    runs(converted, {"x": normal(2, 256) + 40}, drift=2e-2)


# --- 25. sums, exponentials, logits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "ReduceSum(a, axis)",
        "ReduceL2<axes=[-1]>(a)",
        "ReduceL1<axes=[-1]>(a)",
        "ReduceSumSquare<axes=[-1]>(a)",
        "ReduceLogSumExp<axes=[-1]>(a)",
        "ReduceLogSum<axes=[-1]>(a)",
        "ReduceMean<axes=[-1]>(a)",
    ],
)
def test_reductions_over_a_long_axis(call: str, folder: Path) -> None:
    model = text(f"(float[2,5000] x) => (float[2,1] y) {{ a = Abs(x)\n r = {call}\n l = Sqrt(r)\n y = Mul(l, k) }}")
    weights = {"k": np.array(0.01, np.float32)} | ({"axis": np.array([-1])} if "axis)" in call else {})
    runs(convert(with_weights(model, weights), folder), {"x": normal(2, 5000, scale=60)}, drift=1e-2)


def test_a_cumulative_sum_beyond_the_largest_half(folder: Path) -> None:
    model = text(
        "(float[2,3000] x) => (float[2,3000] y) <int64 axis = {1}, float k = {0.001}>"
        " { a = Abs(x)\n c = CumSum(a, axis)\n y = Mul(c, k) }"
    )
    runs(convert(model, folder), {"x": normal(2, 3000, scale=60)}, drift=1e-2)


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp(x)\n s = ReduceSum(e, axis)\n y = Div(e, s)",
        "e = Exp(x)\n o = Add(e, one)\n y = Log(o)",
        "e = Exp(x)\n o = Add(e, one)\n y = Reciprocal(o)",
        "m = ReduceMax<axes=[-1]>(x)\n d = Sub(x, m)\n e = Exp(d)\n s = ReduceSum(e, axis)\n y = Div(e, s)",
        "y = Softmax<axis=-1>(x)",
        "y = LogSoftmax<axis=-1>(x)",
        "y = Softplus(x)",
        "y = Sigmoid(x)",
        "t = Mul(x, k)\n y = Softmax<axis=-1>(t)",
    ],
    ids=["exp-sum", "softplus", "sigmoid", "softmax", "Softmax", "LogSoftmax", "Softplus", "Sigmoid", "huge logits"],
)
def test_exponentials_of_large_values(body: str, folder: Path) -> None:
    weights = {"axis": np.array([-1]), "one": np.array(1, np.float32), "k": np.array(4000, np.float32)}
    used = {name: array for name, array in weights.items() if f", {name})" in body or f"({name})" in body}
    model = with_weights(text(f"(float[2,8] x) => (float[2,8] y) {{ {body} }}"), used)
    x = np.stack([np.linspace(-20, 20, 8), np.linspace(0, 14, 8)]).astype(np.float32)
    runs(convert(model, folder), {"x": x}, drift=1e-2)


def test_attention_with_large_logits(folder: Path) -> None:
    """QKᵀ before its scale goes beyond 65504."""
    model = text(
        "(float[2,4,64] q, float[2,64,4] k, float[2,4,64] v) => (float[2,4,64] y) <float scale = {0.000125}>"
        " { s = MatMul(q, k)\n t = Mul(s, scale)\n p = Softmax<axis=-1>(t)\n y = MatMul(p, v) }"
    )
    feeds = {"q": normal(2, 4, 64, scale=60), "k": normal(2, 64, 4, seed=1, scale=60), "v": normal(2, 4, 64, seed=2)}
    converted = convert(model, folder, block_patterns=["softmax-attention"])
    runs(converted, feeds, drift=1e-2)
    assert [site.outputs[0] for site in converted.ops("MatMul")] == [FLOAT, HALF]


@pytest.mark.parametrize(
    ("pattern", "body", "blocked"),
    [
        ("softmax-attention", "m = MatMul(x, w)\n p = Softmax<axis=-1>(m)\n y = MatMul(p, w)", {"m"}),
        ("exp-sum", "e = Exp(x)\n s = ReduceSum(e, axis)\n y = Div(e, s)", {"e", "s"}),
        (
            "norm",
            "m = ReduceMean<axes=[-1]>(x)\n d = Sub(x, m)\n s = Mul(d, d)\n v = ReduceMean<axes=[-1]>(s)\n"
            " a = Add(v, eps)\n r = Sqrt(a)\n y = Div(d, r)",
            {"s", "v", "a", "r"},
        ),
        ("small-epsilon", "s = Mul(x, x)\n a = Add(s, eps)\n r = Sqrt(a)\n y = Div(x, r)", {"a", "r"}),
        (
            "shape-arithmetic",
            "n = Shape(x)\n f = Cast<to=1>(n)\n t = ReduceProd<keepdims=0>(f)\n y = Mul(x, t)",
            {"f", "t"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" not in value else "",
)  # fmt: skip
def test_every_pattern_can_be_blocked(pattern: str, body: str, blocked: set[str], folder: Path) -> None:
    weights = {"w": normal(4, 4), "axis": np.array([-1]), "eps": np.array(1e-8, np.float32)}
    used = {name: array for name, array in weights.items() if f", {name})" in body or f"({name})" in body}
    model = with_weights(text(f"(float[4,4] x) => (float[4,4] y) {{ {body} }}"), used)
    converted = convert(model, folder, block_list="none", block_patterns=[pattern], fuse=False)
    runs(converted, {"x": normal(4, 4)}, drift=1e-2)
    kinds = {site.node.output[0]: site.outputs[0] for site in structure.sites(converted.model)}
    assert {name for name in blocked if kinds[name] != FLOAT} == set()


# --- 26. positions and lengths -------------------------------------------------------------------------------------

_POSITIONS = {
    "range": "n = Shape(x)\n one = Gather(n, i1)\n f = Cast<to=1>(one)\n r = Range(zero, f, unit)\n s = Mul(r, k)\n"
    " t = Sin(s)\n y = Add(x, t)",
    "integer range": "n = Shape(x)\n one = Gather(n, i1)\n r = Range(i0, one, i1)\n f = Cast<to=1>(r)\n s = Mul(f, k)\n"
    " t = Sin(s)\n y = Add(x, t)",
    "cumulative": "a = Abs(x)\n g = Greater(a, minus)\n f = Cast<to=1>(g)\n c = CumSum(f, i1)\n s = Mul(c, k)\n"
    " t = Cos(s)\n y = Add(x, t)",
    "outer product": "n = Shape(x)\n one = Gather(n, i1)\n r = Range(i0, one, i1)\n f = Cast<to=1>(r)\n"
    " u = Unsqueeze(f, ax)\n o = MatMul(u, freq)\n c = Cos(o)\n m = ReduceSum<keepdims=0>(c, ax)\n y = Add(x, m)",
    "size": "n = Shape(x)\n f = Cast<to=1>(n)\n h = Mul(f, half)\n fl = Floor(h)\n d = Cast<to=7>(fl)\n"
    " st = Sub(d, d)\n z = Slice(x, st, d)\n s = ReduceMean<keepdims=0>(z)\n y = Mul(x, s)",
}  # fmt: skip


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("kind", _POSITIONS)
def test_positions_stay_exact(kind: str, half_io: bool, folder: Path) -> None:
    body = _POSITIONS[kind]
    weights = {
        "zero": np.array(0, np.float32), "unit": np.array(1, np.float32), "k": np.array(0.37, np.float32),
        "i0": np.array(0), "i1": np.array(1), "ax": np.array([1]), "minus": np.array(-1, np.float32),
        "half": np.array(0.5, np.float32), "freq": np.array([[1.0, 0.1, 0.01]], np.float32),
    }  # fmt: skip
    used = {name: array for name, array in weights.items() if f" {name})" in body or f"{name}," in body}
    if kind == "size":
        # Slices of [2, 4099] to half its size: 1 row of 2049.
        assert int(np.float16(4099) * np.float16(0.5)) != 2049
    model = with_weights(text(f"(float[N,4099] x) => (float[N,4099] y) {{ {body} }}"), used)
    converted = convert(model, folder, half_io=half_io)
    tidy(converted)
    runs(converted, {"x": normal(2, 4099)}, keep_io=not half_io, drift=1e-2)


def test_a_position_table_that_indexes(folder: Path) -> None:
    """Indices computed in float, beyond 2048, look rows up."""
    model = text(
        "(int64[4] i, float[5000,2] table) => (float[4,2] y)"
        " { f = Cast<to=1>(i)\n g = Add(f, f)\n h = Mul(g, half)\n j = Cast<to=7>(h)\n"
        " r = Gather(table, j)\n y = Tanh(r) }"
    )
    converted = convert(with_weights(model, {"half": np.array(0.5, np.float32)}), folder, half_io=True)
    table = np.linspace(-2, 2, 10000, dtype=np.float32).reshape(5000, 2)
    runs(converted, {"i": np.array([2049, 4097, 4999, 3]), "table": table}, keep_io=False)
    kinds = {site.node.output[0]: site.outputs[0] for site in structure.sites(converted.model)}
    assert {kinds[name] for name in "gh"} == {FLOAT}


def test_relative_position_buckets_stay_the_same(folder: Path) -> None:
    """T5's logarithmic buckets end in Cast → int: a half ulp moves tokens to another bucket."""
    weights = {
        "sixteen": np.array(16, np.float32),
        "logs": np.array(np.log(128 / 16), np.float32),
        "count": np.array(16, np.float32),
        "bias": normal(64, 2),
        "top": np.array(31),
        "one": np.array(1, np.float32),
    }
    model = text(
        "(int64[N] d) => (float[N,2] y) { f = Cast<to=1>(d)\n m = Max(f, one)\n q = Div(m, sixteen)\n l = Log(q)\n"
        " r = Div(l, logs)\n b = Mul(r, count)\n i = Cast<to=7>(b)\n c = Min(i, top)\n a = Abs(c)\n"
        " g = Gather(bias, a)\n y = Tanh(g) }"
    )
    converted = convert(with_weights(model, weights), folder)
    runs(converted, {"d": np.arange(16, 1000)})


# --- 27. no round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", [["a", "b"], ["b", "c"], ["a", "c"], ["a", "b", "c"], ["b"]])
def test_no_round_trip_between_fp32_neighbours(blocked: list[str], folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,4] y) { [h0] p = MatMul(x, w)\n [a] q = Softplus(p)\n [b] r = Exp(q)\n"
        " [c] s = Log(r)\n [h1] y = MatMul(s, w) }"
    )
    converted = convert(with_weights(model, {"w": normal(4, 4)}), folder, block_nodes=blocked)
    runs(converted, {"x": X})
    kinds = {site.node.name: site.outputs[0] for site in structure.sites(converted.model)}
    assert all(kinds[name] == FLOAT for name in blocked)
    pairs = [pair for pair in (("a", "b"), ("b", "c")) if set(pair) <= set(blocked)]
    nodes = {node.name: node for node in converted.model.graph.node}
    for first, second in pairs:
        assert nodes[first].output[0] == nodes[second].input[0], "neighbours pass FP32 directly"
    if blocked == ["a", "b", "c"]:
        # From the first MatMul into FP32, out of it into the last one, and the two ends of the model.
        assert len(structure.casts(converted.model)) == 4


def test_one_cast_serves_all_readers_of_a_type(folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,4] y) { [f0] a = Softplus(x)\n [h1] b = MatMul(a, w)\n [h2] c = MatMul(a, w)\n"
        " [h3] d = MatMul(a, w)\n [f1] e = Exp(b)\n [f2] f = Log(e)\n [f3] g = Softplus(b)\n i = Add(c, d)\n"
        " j = Cast<to=10>(g)\n k = Cast<to=1>(j)\n l = Add(f, k)\n y = Add(i, l) }"
    )
    converted = convert(with_weights(model, {"w": normal(4, 4)}), folder, block_nodes=["f."])
    tidy(converted)
    same_source = [s.node.input[0] for s in structure.casts(converted.model) if s.outputs == (HALF,)]
    assert same_source.count("a") == 1
    runs(converted, {"x": X})


def test_one_cast_serves_the_main_graph_and_its_branches(folder: Path) -> None:
    model = text(
        "(float[2,4] x, bool c) => (float[2,4] y) { [f] a = Softplus(x)\n b = MatMul(a, w)\n d = If(c) <"
        "then_branch = t () => (float[2,4] p) { p = MatMul(a, w) },"
        "else_branch = e () => (float[2,4] q) { q = MatMul(a, v) }>\n y = Add(b, d) }"
    )
    weights = {"w": normal(4, 4), "v": normal(4, 4, seed=1)}
    converted = convert(with_weights(model, weights), folder, block_nodes=["f"])
    runs(converted, {"x": X, "c": np.array(True)}, {"x": X, "c": np.array(False)})
    assert [site.node.input[0] for site in structure.casts(converted.model)].count("a") == 1


def test_an_fp32_model_between_fp32_ends_needs_no_cast(folder: Path) -> None:
    """One cheap node between FP32 inputs and outputs is not worth two Casts; an ordinary network is worth two."""
    layers = "\n ".join(f"v{i + 1} = MatMul(v{i}, w)\n u{i} = Relu(v{i + 1})" for i in range(3))
    model = text(f"(float[2,4] v0) => (float[2,4] y) {{ {layers}\n y = Tanh(v3) }}")
    converted = convert(with_weights(model, {"w": normal(4, 4)}), folder)
    runs(converted, {"v0": X})
    assert len(structure.casts(converted.model)) == 2
    assert converted.result.casts == 2


@pytest.mark.parametrize("op", ["Reshape", "Transpose", "Identity", "Concat", "Slice", "Squeeze"])
def test_layout_operators_between_fp32_neighbours_stay_fp32(op: str, folder: Path) -> None:
    call = {
        "Reshape": "Reshape(a, shape)",
        "Transpose": "Transpose<perm=[1, 0]>(a)",
        "Identity": "Identity(a)",
        "Concat": "Concat<axis=0>(a, a)",
        "Slice": "Slice(a, one, many)",
        "Squeeze": "Squeeze(a)",
    }[op]
    weights = {"shape": np.array([4, 2]), "one": np.array([0]), "many": np.array([2])}
    used = {name: array for name, array in weights.items() if name in call}
    model = text(f"(float[2,4] x) => (float[?,?] y) {{ [f0] a = Softplus(x)\n b = {call}\n [f1] y = Exp(b) }}")
    converted = convert(with_weights(model, used), folder, block_nodes=["f0", "f1"])
    runs(converted, {"x": X})
    assert structure.casts(converted.model) == []


# --- user's rules against measured and default ones ----------------------------------------------------------------


def test_an_allow_rule_beats_the_default_list_with_a_warning(folder: Path) -> None:
    body = "(float[2,8] x) => (float[2,8] y) { a = Exp(x)\n s = ReduceSum(a, axis)\n y = Div(a, s) }"
    model = with_weights(text(body), {"axis": np.array([-1])})
    converted = convert(model, folder, allow_ops=["ReduceSum", "Exp", "Div"], half_io=True)
    assert converted.all_half("ReduceSum", "Exp", "Div")


def test_a_block_rule_beats_an_allow_rule(folder: Path) -> None:
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { [n] y = MatMul(x, w) }"), {"w": normal(4, 4)})
    converted = convert(model, folder, block_nodes=["n"], allow_ops=["MatMul"])
    assert converted.none_half("MatMul")


def test_reasons_name_the_rule_and_the_node(folder: Path) -> None:
    body = "(float[2,4] x) => (float[2,4] y) { [m] a = MatMul(x, w)\n [e] b = Exp(a)\n [z] y = MatMul(b, w) }"
    converted = convert(with_weights(text(body), {"w": normal(4, 4)}), folder, block_nodes=["e"], half_io=True)
    (entry,) = converted.result.fp32
    assert (entry.value, entry.node, entry.op) == ("b", "e", "Exp")
    assert "e" in entry.rule and entry.reason


@pytest.mark.parametrize("block_list", ["default", "none", "onnxconverter-common"])
def test_every_block_list_gives_a_model_that_runs(block_list: str, folder: Path) -> None:
    model = with_weights(
        text(
            "(float[2,8] x) => (float[2,4] y, int64[2,1] i) { a = MatMul(x, w)\n r = Softmax<axis=-1>(a)\n"
            " v, i = TopK(r, k)\n c = CumSum(r, k0)\n y = Add(c, v) }"
        ),
        {"w": normal(8, 4), "k": np.array([1]), "k0": np.array(1)},
    )
    converted = convert(model, folder, block_list=block_list)
    runs(converted, {"x": normal(2, 8)})
    if block_list == "onnxconverter-common":
        assert all(FLOAT in site.outputs for op in ("TopK", "CumSum") for site in converted.ops(op))


def test_a_saved_plan_names_every_value(folder: Path) -> None:
    model = with_weights(
        text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = Exp(a)\n y = MatMul(b, w) }"),
        {"w": normal(4, 4)},
    )
    plan = folder / "plan.json"
    converted = convert(model, folder, save_plan=plan, block_ops=["Exp"])
    import json

    saved = json.loads(plan.read_text())
    kinds = {entry["id"]: entry["dtype"] for entry in saved["values"]}
    assert {"a", "b"} <= kinds.keys() and kinds["a"] != kinds["b"]
    assert [entry["id"] for entry in saved["values"]] == sorted(kinds)
    assert saved["to"] == "fp16" and saved["target"] == "portable"
    tidy(converted)


def test_the_inspection_agrees_with_the_conversion(folder: Path) -> None:
    weights = {"w": normal(4, 4), "huge": np.array([1e6, 1, 1, 1], np.float32)}
    body = "(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = Div(a, huge)\n y = Exp(b) }"
    converted = convert(with_weights(text(body), weights), folder)
    report = halfconv.inspect(converted.source).to_dict()
    assert report
    runs(converted, {"x": X}, drift=1e-2)


def test_random_inputs_of_large_range_stay_finite_wherever_fp32_is(folder: Path) -> None:
    """A network as it comes: the simulation has no NaN or infinity that FP32 has not."""
    model = text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n b = Relu(a)\n c = MatMul(b, w)\n y = Sigmoid(c) }")
    converted = convert(with_weights(model, {"w": normal(4, 4, scale=30)}), folder)
    found = run(converted.path, [{"x": normal(2, 4, scale=3)}])
    want = run(converted.source, [{"x": normal(2, 4, scale=3)}])
    close(found.outputs, want.outputs, 1e-2)


# --- convolutions beside what must be exact ------------------------------------------------------------------------


@pytest.mark.parametrize("low", [-3.4e38, -np.inf, -1e5])
def test_padding_for_a_max_pool_keeps_no_convolution_in_fp32(low: float, folder: Path) -> None:
    weights = {
        "w": normal(8, 3, 3, 3, scale=0.3), "v": normal(8, 8, 3, 3, scale=0.2), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "low": np.float32(low),
    }  # fmt: skip
    body = "a = Conv(x, w)\n p = Pad(a, pads, low)\n m = MaxPool<kernel_shape=[3,3], strides=[2,2]>(p)\n y = Conv(m, v)"
    converted = convert(with_weights(text(f"(float[1,3,16,16] x) => (float[1,8,5,5] y) {{ {body} }}"), weights), folder)
    runs(converted, {"x": normal(1, 3, 16, 16)})
    assert converted.all_half("Conv")


def test_attentive_pooling_keeps_no_convolution_in_fp32(folder: Path) -> None:
    """Weighted mean and deviation over time, as speaker models pool: the deviation is a norm with a tiny bound."""
    weights = {
        "w": normal(16, 8, 3, seed=1, scale=0.2), "u": normal(8, 16, 1, seed=2, scale=0.2), "g": normal(32, 10, seed=5),
        "v": normal(16, 8, 1, seed=3, scale=0.3), "tiny": np.float32(1e-12), "ax": np.array([2]),
    }  # fmt: skip
    body = (
        "a = Conv(x, w)\n b = Relu(a)\n h = Conv(b, u)\n t = Tanh(h)\n l = Conv(t, v)\n p = Softmax<axis=2>(l)\n o = Mul(p, b)\n"
        " m = ReduceSum<keepdims=1>(o, ax)\n d = Sub(b, m)\n q = Mul(d, d)\n k = Mul(p, q)\n s = ReduceSum<keepdims=1>(k, ax)\n"
        " c = Clip(s, tiny)\n r = Sqrt(c)\n z = Concat<axis=1>(m, r)\n f = Flatten(z)\n y = Gemm(f, g)"
    )
    converted = convert(with_weights(text(f"(float[2,8,40] x) => (float[2,10] y) {{ {body} }}"), weights), folder)
    runs(converted, {"x": normal(2, 8, 40)})
    assert converted.all_half("Conv", "Gemm")
