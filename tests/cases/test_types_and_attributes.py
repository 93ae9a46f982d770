"""Operators whose inputs, outputs or attributes fix a type (cases.md, Types and attributes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import structure
from tests.cases.checks import convert, normal, runs, same_interface, text, tidy, with_weights
from tests.runtime_helpers import run
from tests.simulation import FLOAT, HALF

X = normal(2, 4)
IMAGE = normal(1, 3, 8, 8, seed=1)


# --- 1. Cast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["int64", "int32", "bool", "uint8"])
def test_a_cast_to_float_takes_the_type_that_its_reader_has(source: str, folder: Path) -> None:
    model = with_weights(
        text(f"({source}[2,4] x) => (float[2,3] y) {{ f = Cast<to=1>(x)\n y = MatMul(f, w) }}"), {"w": normal(4, 3)}
    )
    converted = convert(model, folder)
    x = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], source)
    runs(converted, {"x": x})
    assert converted.all_half("MatMul")
    (cast,) = [site for site in converted.ops("Cast") if site.node.input[0] == "x"]
    assert cast.outputs == (HALF,), "the cast goes straight to half"


def test_a_cast_to_float_with_readers_of_both_types(folder: Path) -> None:
    model = with_weights(
        text("(int64[2,4] x) => (float[2,3] y, float[2,3] z) { f = Cast<to=1>(x)\n [a] y = MatMul(f, w)\n [b] z = MatMul(f, w) }"),
        {"w": normal(4, 3)},
    )
    converted = convert(model, folder, block_nodes=["b"])
    runs(converted, {"x": np.arange(8).reshape(2, 4)})
    kinds = {site.node.name: site.outputs for site in converted.ops("MatMul")}
    assert kinds == {"a": (HALF,), "b": (FLOAT,)}


@pytest.mark.parametrize(
    "body",
    [
        "d = Cast<to=11>(x)\n f = Cast<to=1>(d)\n y = Relu(f)",
        "i = Cast<to=7>(x)\n f = Cast<to=1>(i)\n y = Add(f, x)",
        "h = Cast<to=10>(x)\n f = Cast<to=1>(h)\n y = Relu(f)",
        "h = Cast<to=16>(x)\n f = Cast<to=1>(h)\n y = Relu(f)",
        "f = Cast<to=1>(x)\n y = Relu(f)",
        "a = Relu(x)\n f = Cast<to=1>(a)\n g = Cast<to=1>(f)\n y = Sigmoid(g)",
        "a = Relu(x)\n y = CastLike(a, x)",
        "i = Shape(x)\n f = CastLike(i, x)\n g = ReduceSum<keepdims=0>(f)\n y = Mul(x, g)",
        "s = Cast<to=8>(x)\n f = Cast<to=1>(s)\n y = Relu(f)",
    ],
    ids=["double", "int", "half", "bfloat16", "float", "twice", "castlike", "castlike-int", "string"],
)
def test_casts_of_the_model_itself(body: str, folder: Path) -> None:
    converted = convert(text(f"(float[2,4] x) => (float[2,4] y) {{ {body} }}", opset=19, ir=9), folder)
    runs(converted, {"x": X})


def test_a_cast_to_an_output_keeps_the_outputs_type(folder: Path) -> None:
    converted = convert(text("(int64[2,4] x, float[2,4] u) => (float[2,4] y, float[2,4] v)"
                             " { y = Cast<to=1>(x)\n v = Sigmoid(u) }"), folder)  # fmt: skip
    runs(converted, {"x": np.arange(8).reshape(2, 4) * 1001, "u": X})


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8])
def test_a_computation_that_ends_in_integers_gives_the_same_integers(kind: int, folder: Path) -> None:
    model = text(
        f"(float[1,500] x) => ({'uint8' if kind == TensorProto.UINT8 else f'int{32 if kind == 6 else 64}'}[1,500] y)"
        f" <float k = {{97.3}}> {{ a = Mul(x, k)\n b = Floor(a)\n y = Cast<to={kind}>(b) }}"
    )
    converted = convert(model, folder)
    runs(converted, {"x": np.linspace(0, 2.6, 500, dtype=np.float32)[None]})


def test_a_cast_to_bool_sees_tiny_numbers(folder: Path) -> None:
    converted = convert(text("(float[4] x) => (bool[4] y) { a = Abs(x)\n y = Cast<to=9>(a) }"), folder)
    runs(converted, {"x": np.array([1e-9, 0, -1e-12, 2], np.float32)})


# --- 2. operators that make values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attribute",
    [
        "",
        "<value = float[1] {0.5}>",
        "<value = float[1] {3e38}>",
        "<value = float[1] {-inf}>",
        "<value = int64[1] {3}>",
    ],
    ids=["none", "half", "huge", "inf", "int"],
)
def test_constant_of_shape(attribute: str, folder: Path) -> None:
    to_float = "Cast<to=1>" if "int64" in attribute else "Identity"
    body = f"c = ConstantOfShape{attribute}(s)\n f = {to_float}(c)\n m = Max(x, f)\n y = Min(m, x)"
    model = text(f"(float[2,4] x, int64[2] s) => (float[2,4] y) {{ {body} }}")
    runs(convert(model, folder), {"x": X, "s": np.array([2, 4])})


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        "RandomNormal<shape=[2,4], seed=1.0>()",
        "RandomNormal<shape=[2,4], dtype=1, mean=0.5, scale=0.1, seed=1.0>()",
        "RandomUniform<shape=[2,4], seed=1.0>()",
        "RandomUniform<shape=[2,4], dtype=1, low=-1.0, high=1.0, seed=1.0>()",
        "RandomNormalLike<seed=1.0>(p)",
        "RandomNormalLike<dtype=1, seed=1.0>(p)",
        "RandomUniformLike<seed=1.0>(p)",
        "RandomUniformLike<dtype=1, seed=1.0>(p)",
        "Bernoulli<seed=1.0>(p)",
        "Bernoulli<dtype=1, seed=1.0>(p)",
        "EyeLike(p)",
        "EyeLike<dtype=1, k=1>(p)",
    ],
)
def test_operators_that_draw_or_name_their_type(call: str, half_io: bool, folder: Path) -> None:
    model = text(f"(float[2,4] x) => (float[2,4] y) {{ p = Sigmoid(x)\n r = {call}\n y = Add(p, r) }}")
    converted = convert(model, folder, half_io=half_io)
    tidy(converted)
    outcome = run(converted.path, [{"x": X}], fit=True)
    assert outcome.loads and outcome.level == "ALL", outcome
    y = outcome.outputs[0]["y"]
    assert y.shape == (2, 4) and np.isfinite(y).all()
    if "EyeLike" in call:
        runs(converted, {"x": X}, keep_io=not half_io)


def test_multinomial_reads_logits_and_gives_integers(folder: Path) -> None:
    model = text("(float[2,4] x) => (int32[2,5] y) { r = Relu(x)\n y = Multinomial<sample_size=5, seed=1.0, dtype=6>(r) }")
    converted = convert(model, folder)
    tidy(converted)
    same_interface(converted)
    assert run(converted.path, [{"x": X}]).loads


def test_onehot_with_float_values(folder: Path) -> None:
    model = text(
        "(int64[3] i, float[5,2] w) => (float[3,2] y) <int64 d = {5}, float[2] v = {0, 1}>"
        " { o = OneHot(i, d, v)\n y = MatMul(o, w) }"
    )
    runs(convert(model, folder), {"i": np.array([0, 4, 2]), "w": normal(5, 2)})


# --- 3. Resize and Upsample ----------------------------------------------------------------------------------------

_RESIZE = {
    "upsample-7": (7, "Upsample<mode=\"nearest\", scales=[1.0, 1.0, 2.0, 2.0]>(r)"),
    "upsample-9": (9, "Upsample<mode=\"linear\">(r, scales)"),
    "resize-10": (10, "Resize<mode=\"nearest\">(r, scales)"),
    "resize-11-scales": (11, "Resize<mode=\"linear\">(r, roi, scales)"),
    "resize-11-sizes": (11, "Resize<mode=\"nearest\">(r, roi, none, sizes)"),
    "resize-11-crop": (11, "Resize<coordinate_transformation_mode=\"tf_crop_and_resize\">(r, crop, scales)"),
    "resize-13-scales": (13, "Resize<mode=\"cubic\">(r, , scales)"),
    "resize-13-sizes": (13, "Resize<mode=\"linear\">(r, , , sizes)"),
    "resize-18-sizes": (18, "Resize<mode=\"nearest\">(r, , , sizes)"),
    "resize-19-scales": (19, "Resize<mode=\"linear\">(r, , scales)"),
    "resize-19-sizes": (19, "Resize<mode=\"linear\", antialias=0>(r, , , sizes)"),
    "resize-19-fraction": (19, "Resize<mode=\"nearest\", nearest_mode=\"floor\">(r, , fraction)"),
}  # fmt: skip


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("name", _RESIZE)
def test_resize_keeps_its_scales_exact(name: str, half_io: bool, folder: Path) -> None:
    opset, call = _RESIZE[name]
    model = text(f"(float[1,3,8,8] x) => (float[?,?,?,?] y) {{ r = Relu(x)\n z = {call}\n y = Relu(z) }}", opset=opset)
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        # 1 / 3 in half gives another size for many sizes: scales must stay FP32.
        "fraction": np.array([1, 1, 16 / 3, 1.3], np.float32),
        "roi": np.zeros(0, np.float32),
        "none": np.zeros(0, np.float32),
        "crop": np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8], np.float32),
        "sizes": np.array([1, 3, 11, 13]),
    }
    model = with_weights(model, {name: weights[name] for name in weights if name in call})
    converted = convert(model, folder, half_io=half_io)
    found = runs(converted, {"x": IMAGE}, keep_io=not half_io)
    assert found.plain[0]["y"].shape == found.reference[0]["y"].shape


# --- 4. bounds, padding, ranges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(
    ("opset", "call"),
    [
        (7, "Clip<min=-0.5, max=1e30>(x)"),
        (7, "Clip(x)"),
        (11, "Clip(x, , hi)"),
        (12, "Clip(x, lo)"),
        (13, "Clip(x, , huge)"),
        (13, "Clip(x, minus, huge)"),
        (17, "Clip(x, lowest, hi)"),
        (17, "Clip(x)"),
        (7, "Pad<mode=\"constant\", pads=[0, 1, 0, 1], value=1.5>(x)"),
        (11, "Pad(x, pads, hi)"),
        (13, "Pad(x, pads)"),
        (17, "Pad(x, pads, lowest)"),
        (19, "Pad(x, pads, hi, axes)"),
        (19, "Pad<mode=\"wrap\">(x, pads)"),
        (17, "CumSum(x, axis)"),
        (17, "CumSum<exclusive=1, reverse=1>(x, axis)"),
        (17, "Max(x, lowest)"),
        (17, "Min(x, huge, hi)"),
        (17, "PRelu(x, hi)"),
        (17, "ThresholdedRelu<alpha=0.3>(x)"),
        (17, "Shrink<bias=0.1, lambd=0.2>(x)"),
        (17, "Selu(x)"),
        (17, "Mod<fmod=1>(x, hi)"),
        (17, "Where(flag, x, lowest)"),
    ],
)  # fmt: skip
def test_bounds_and_padding(opset: int, call: str, half_io: bool, folder: Path) -> None:
    inner = "r = Tanh(x)\n z = " + call.replace("(x", "(r") + "\n y = Relu(z)"
    inner = inner.replace("(flag, x,", "(flag, r,")
    weights = {
        "lo": np.float32(-0.25),
        "hi": np.float32(0.75),
        "huge": np.float32(1e30),
        "minus": np.float32(-1e30),
        "lowest": np.float32(np.finfo(np.float32).min),
        "pads": np.array([0, 1, 0, 1]),
        "axes": np.array([0, 1]),
        "axis": np.array(1),
        "flag": np.array([True, False, True, True]),
    }
    model = text(f"(float[2,4] x) => (float[?,?] y) {{ {inner} }}", opset=opset)
    used = {name: np.asarray(weights[name]) for name in weights if f" {name}" in call or f"({name}" in call}
    converted = convert(with_weights(model, used), folder, half_io=half_io)
    runs(converted, {"x": X}, keep_io=not half_io)


def test_range_of_floats(folder: Path) -> None:
    model = text(
        "(float n, float[1,6] x) => (float[1,6] y) <float zero = {0}, float one = {1}> { r = Range(zero, n, one)\n y = Mul(x, r) }"
    )
    runs(convert(model, folder), {"n": np.array(6, np.float32), "x": normal(1, 6)})


def test_a_long_float_range_stays_exact(folder: Path) -> None:
    model = text(
        "(float n, float[5000] x) => (float[5000] y) <float zero = {0}, float one = {1}, float k = {0.001}>"
        " { r = Range(zero, n, one)\n s = Mul(r, k)\n t = Sin(s)\n y = Mul(x, t) }"
    )
    runs(convert(model, folder), {"n": np.array(5000, np.float32), "x": normal(5000)})


@pytest.mark.parametrize("largest", [0, 1])
def test_topk_gives_values_and_the_same_places(largest: int, folder: Path) -> None:
    model = text(
        "(float[2,6] x) => (float[2,3] v, int64[2,3] i) <int64[1] k = {3}>"
        f" {{ r = Neg(x)\n v, i = TopK<largest={largest}>(r, k) }}"
    )
    x = np.array([[1, 2, 3, 4, 5, 6], [0.5, -1, 8, 0.25, 16, -4]], np.float32)
    runs(convert(model, folder), {"x": x})


# --- 5. masks ------------------------------------------------------------------------------------------------------

SENTINELS = ["-3.4028234663852886e38", "-3.4e38", "-1e9", "-1e4", "-65504", "-inf"]
_KEEP = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
SCORES = np.stack([normal(4, 4, seed=2), normal(4, 4, seed=3, scale=20).clip(-50, 50)]).astype(np.float32)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("sentinel", SENTINELS)
@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_where_with_a_sentinel_before_softmax(sentinel: str, kind: str, half_io: bool, folder: Path) -> None:
    made = f"m = Constant<value = float {{{sentinel}}}>()\n" if kind == "constant" else ""
    listed = "" if made else f"<float m = {{{sentinel}}}>"
    model = text(
        f"(float[2,4,4] x, bool[4,4] keep, float[2,4,4] v) => (float[2,4,4] y) {listed}"
        f" {{ {made} s = Where(keep, x, m)\n p = Softmax<axis=-1>(s)\n y = MatMul(p, v) }}"
    )
    converted = convert(model, folder, half_io=half_io)
    keep = _KEEP.copy()
    if sentinel == "-inf":
        keep[2, 0] = True  # a row of nothing but -inf is NaN in FP32 too
    runs(converted, {"x": SCORES, "keep": keep, "v": normal(2, 4, 4, seed=4)}, keep_io=not half_io)


def test_a_row_of_minus_infinity_is_nan_only_where_fp32_is(folder: Path) -> None:
    model = text(
        "(float[2,4,4] x, bool[4,4] keep) => (float[2,4,4] y) <float m = {-inf}>"
        " { s = Where(keep, x, m)\n y = Softmax<axis=-1>(s) }"
    )
    found = runs(convert(model, folder), {"x": SCORES, "keep": _KEEP})
    assert np.isnan(found.reference[0]["y"][:, 2]).all()


@pytest.mark.parametrize("sentinel", SENTINELS[:5])
def test_an_additive_mask_before_softmax(sentinel: str, folder: Path) -> None:
    """Mask as exporters write it: (1 - keep) * sentinel, added to scores; a row may be masked as a whole."""
    model = text(
        "(float[2,4,4] x, int64[4,4] keep, float[2,4,4] v) => (float[2,4,4] y)"
        f" <float m = {{{sentinel}}}, float one={{1}}>"
        " { k = Cast<to=1>(keep)\n n = Sub(one, k)\n b = Mul(n, m)\n s = Add(x, b)\n p = Softmax<axis=-1>(s)\n"
        " y = MatMul(p, v) }"
    )
    converted = convert(model, folder)
    runs(converted, {"x": SCORES, "keep": _KEEP.astype(np.int64), "v": normal(2, 4, 4, seed=4)})


@pytest.mark.parametrize("sentinel", SENTINELS[:5])
def test_a_selected_mask_that_is_added_to_scores(sentinel: str, folder: Path) -> None:
    """As torch's SDPA export writes it: Where(keep, 0, sentinel) added to scaled scores."""
    model = with_weights(
        text(
            f"(float[2,4,8] q, float[2,8,4] k, bool[4,4] keep, float[2,4,4] v) => (float[2,4,4] y)"
            f" <float zero={{0}}, float m = {{{sentinel}}}, float scale={{3}}>"
            " { b = Where(keep, zero, m)\n a = MatMul(q, k)\n c = Mul(a, scale)\n s = Add(c, b)\n"
            " p = Softmax<axis=-1>(s)\n y = MatMul(p, v) }"
        ),
        {},
    )
    converted = convert(model, folder)
    feeds = {"q": normal(2, 4, 8), "k": normal(2, 8, 4, seed=5), "keep": _KEEP, "v": normal(2, 4, 4, seed=4)}
    runs(converted, feeds)


@pytest.mark.parametrize("sentinel", SENTINELS[:5])
def test_a_constant_additive_mask(sentinel: str, folder: Path) -> None:
    mask = np.where(_KEEP, 0, np.float32(float(sentinel))).astype(np.float32)
    model = text(
        "(float[2,4,4] x, float[2,4,4] v) => (float[2,4,4] y) { s = Add(x, mask)\n p = Softmax<axis=-1>(s)\n y = MatMul(p, v) }"
    )
    converted = convert(with_weights(model, {"mask": mask}), folder)
    runs(converted, {"x": SCORES, "v": normal(2, 4, 4, seed=4)})


def test_a_selected_sentinel_saturates_at_the_largest_half(folder: Path) -> None:
    model = text(
        "(float[2,4,4] x, bool[4,4] keep) => (float[2,4,4] y) <float m = {-3.4e38}>"
        " { s = Where(keep, x, m)\n r = MatMul(x, s)\n y = Softmax<axis=-1>(s) }"
    )
    converted = convert(model, folder, half_io=True, allow_ops=["Where"])
    assert [a.item() for _, a in structure.weights(converted.model) if a.dtype == np.float16 and a.size == 1] == [-65504]
    assert [(entry.name, entry.saturated) for entry in converted.result.constants] == [("m", 1)]


# --- 6. normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("outputs", ["y", "y, mean", "y, mean, inv"])
def test_layer_normalization_with_optional_outputs(outputs: str, half_io: bool, folder: Path) -> None:
    extra = "".join(f", float[2,3,1] {name}" for name in ("mean", "inv") if name in outputs)
    model = text(
        f"(float[2,3,8] x) => (float[2,3,8] y{extra}) {{ r = Relu(x)\n"
        f" {outputs} = LayerNormalization<axis=-1, epsilon=1e-5>(r, g, b) }}"
    )
    converted = convert(
        with_weights(model, {"g": normal(8), "b": normal(8, seed=1)}), folder, half_io=["x", "y"] if half_io else False
    )
    runs(converted, {"x": normal(2, 3, 8)}, keep_io=not half_io)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (14, 7), (15, 8), (17, 8)])
def test_batch_normalization_keeps_exact_statistics(opset: int, ir: int, half_io: bool, folder: Path) -> None:
    model = text(
        "(float[1,3,8,8] x) => (float[1,3,8,8] y)"
        " { c = Relu(x)\n z = BatchNormalization<epsilon=1e-5>(c, g, b, m, v)\n y = Relu(z) }",
        opset=opset,
        ir=ir,
    )
    weights = {
        "g": normal(3),
        "b": normal(3, seed=1),
        "m": np.array([0.1, 0.2, 0.3], np.float32),
        # 1e-9 is below half's smallest number, 90000 above its largest.
        "v": np.array([1e-9, 1, 90000], np.float32),
    }
    converted = convert(with_weights(model, weights), folder, half_io=half_io)
    runs(converted, {"x": IMAGE}, keep_io=not half_io)


@pytest.mark.parametrize(
    ("opset", "call", "outputs"),
    [
        (7, "Dropout<ratio=0.3>(r)", "z"),
        (10, "Dropout<ratio=0.3>(r)", "z, mask"),
        (12, "Dropout(r, ratio)", "z"),
        (13, "Dropout(r, ratio)", "z, mask"),
        (13, "Dropout(r, , no)", "z, mask"),
        (17, "InstanceNormalization<epsilon=1e-5>(r, g, b)", "z"),
        (21, "GroupNormalization<num_groups=3>(r, g, b)", "z"),
        (17, "LRN<size=3>(r)", "z"),
        (17, "LpNormalization<axis=1>(r)", "z"),
        (23, "RMSNormalization<axis=-1>(r, g8)", "z"),
    ],
)
@pytest.mark.parametrize("half_io", [False, True])
def test_other_normalisations(opset: int, call: str, outputs: str, half_io: bool, folder: Path) -> None:
    model = text(
        f"(float[1,3,8,8] x) => (float[1,3,8,8] y) {{ r = Relu(x)\n {outputs} = {call}\n y = Tanh(z) }}",
        opset=opset,
        ir=10 if opset > 18 else 8,
    )
    weights = {
        "ratio": np.float32(0.5),
        "no": np.array(False),
        "g": normal(3),
        "b": normal(3, seed=1),
        "g8": normal(8),
    }
    used = {name: np.asarray(weights[name]) for name in weights if f", {name}" in call}
    converted = convert(with_weights(model, used), folder, half_io=half_io)
    runs(converted, {"x": IMAGE}, keep_io=not half_io)


# --- 7. quantisation, detection, spectra ----------------------------------------------------------------------------


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("opset", [10, 13, 17, 19, 21])
@pytest.mark.parametrize("per_axis", [False, True])
def test_quantize_and_dequantize(opset: int, per_axis: bool, half_io: bool, folder: Path) -> None:
    if per_axis and opset < 13:
        pytest.skip("per-axis scales came with opset 13")
    axis = "<axis=1>" if per_axis else ""
    model = text(
        f"(float[2,4] x) => (float[2,3] y) {{ r = Mul(x, x)\n q = QuantizeLinear{axis}(r, s, z)\n"
        f" d = DequantizeLinear{axis}(q, s, z)\n y = MatMul(d, w) }}",
        opset=opset,
        ir=10 if opset > 18 else 8,
    )
    weights = {
        # A scale that half would flush or round changes the integers.
        "s": np.array([0.0123, 0.02, 0.03, 0.04], np.float32) if per_axis else np.array(0.0123456, np.float32),
        "z": np.full(4, 3, np.uint8) if per_axis else np.array(3, np.uint8),
        "w": normal(4, 3),
    }
    converted = convert(with_weights(model, weights), folder, half_io=half_io)
    runs(converted, {"x": X}, keep_io=not half_io, drift=2e-2)


@pytest.mark.parametrize("opset", [13, 19, 21])
def test_int8_weights_in_a_float_graph(opset: int, folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,3] y) { w = DequantizeLinear(q, s, z)\n m = MatMul(x, w)\n y = Add(m, b) }",
        opset=opset,
        ir=10 if opset > 18 else 8,
    )
    weights = {
        "q": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "s": np.array(0.0371, np.float32),
        "z": np.array(0, np.int8),
        "b": normal(3),
    }
    converted = convert(with_weights(model, weights), folder)
    runs(converted, {"x": X})
    assert converted.all_half("MatMul")


def test_dynamic_quantisation(folder: Path) -> None:
    model = text(
        "(float[2,4] x) => (float[2,3] y) { r = Relu(x)\n q, s, z = DynamicQuantizeLinear(r)\n"
        " i = MatMulInteger(q, w, z)\n f = Cast<to=1>(i)\n k = Mul(s, ws)\n m = Mul(f, k)\n y = Relu(m) }"
    )
    weights = {"w": np.arange(12, dtype=np.uint8).reshape(4, 3) * 20, "ws": np.array(0.0123, np.float32)}
    runs(convert(with_weights(model, weights), folder), {"x": X * 100}, drift=2e-2)


@pytest.mark.parametrize(("domain", "kind"), [("", "uint8"), ("com.microsoft", "uint8"), ("com.microsoft", "uint16")])
def test_quantised_layers_stay_what_integer_kernels_are_made_of(domain: str, kind: str, folder: Path) -> None:
    """ONNX's own operators, and those that ONNX Runtime's quantiser writes for 16 bits."""
    prefix = f"{domain}." if domain else ""
    q, d = f"{prefix}QuantizeLinear", f"{prefix}DequantizeLinear"
    body = (
        f"a = {q}(x, s, z)\n b = {d}(a, s, z)\n f = {d}(w, s, wz)\n m = MatMul(b, f)\n r = Relu(m)\n c = {q}(r, t, z)\n"
        f" e = {d}(c, t, z)\n o = MatMul(e, f)\n p = {q}(o, t, z)\n y = {d}(p, t, z)"
    )
    weights = {
        "s": np.float32(0.05), "t": np.float32(0.4), "z": np.array(100, kind), "wz": np.int8(0),
        "w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
    }  # fmt: skip
    model = with_weights(text(f"(float[2,4] x) => (float[2,4] y) {{ {body} }}", extra=', "com.microsoft" : 1'), weights)
    converted = convert(model, folder)
    runs(converted, {"x": X}, drift=0)
    assert converted.none_half("MatMul", "Relu", "QuantizeLinear", "DequantizeLinear")


def test_nothing_but_integers_between_quantised_convolutions(folder: Path) -> None:
    model = text(
        "(uint8[1,1,4,4] x) => (float[1,1,2,2] y)"
        " { c = QLinearConv(x, xs, xz, w, ws, wz, ys, yz)\n d = DequantizeLinear(c, ys, yz)\n y = Relu(d) }"
    )
    weights = {
        "xs": np.array(0.00369, np.float32),
        "xz": np.array(132, np.uint8),
        "w": np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3),
        "ws": np.array(0.00172, np.float32),
        "wz": np.array(3, np.uint8),
        "ys": np.array(0.00162, np.float32),
        "yz": np.array(123, np.uint8),
    }
    x = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4) * 16
    runs(convert(with_weights(model, weights), folder), {"x": x})


@pytest.mark.parametrize("half_io", [False, True])
def test_non_max_suppression_selects_the_same_boxes(half_io: bool, folder: Path) -> None:
    model = text(
        "(float[1,6,4] boxes, float[1,1,6] scores) => (int64[?,3] i)"
        " <int64[1] n={3}, float[1] iou={0.5}, float[1] least={0.0}>"
        " { b = Abs(boxes)\n s = Sigmoid(scores)\n i = NonMaxSuppression(b, s, n, iou, least) }"
    )
    boxes = np.array([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 0.1, 1, 0.9], [0, 10, 1, 11], [0, 10.1, 1, 11.1], [0, 99, 1, 101]])
    feeds = {
        "boxes": boxes[None].astype(np.float32),
        "scores": np.array([[[0.9, 0.75, 0.6, 0.95, 0.5, 0.3]]], np.float32),
    }
    runs(convert(model, folder, half_io=half_io), feeds, keep_io=not half_io)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("opset", [10, 16])
def test_roi_align(opset: int, half_io: bool, folder: Path) -> None:
    model = text(
        "(float[1,3,8,8] x, float[2,4] rois, int64[2] at) => (float[2,3,3,3] y)"
        " { r = Relu(x)\n z = RoiAlign<output_height=3, output_width=3, sampling_ratio=2>(r, rois, at)\n y = Relu(z) }",
        opset=opset,
        ir=10 if opset > 18 else 8,
    )
    feeds = {"x": IMAGE, "rois": np.array([[0, 0, 5, 5], [1.3, 2.1, 7, 6]], np.float32), "at": np.array([0, 0])}
    runs(convert(model, folder, half_io=half_io), feeds, keep_io=not half_io, drift=1e-2)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(("opset", "mode"), [(16, "bilinear"), (20, "linear"), (16, "nearest")])
def test_grid_sample(opset: int, mode: str, half_io: bool, folder: Path) -> None:
    model = text(
        f"(float[1,3,8,8] x, float[1,4,4,2] grid) => (float[1,3,4,4] y) {{ r = Relu(x)\n"
        f' z = GridSample<mode="{mode}">(r, grid)\n y = Relu(z) }}',
        opset=opset,
        ir=9,
    )
    feeds = {"x": IMAGE, "grid": np.random.default_rng(0).uniform(-0.9, 0.9, (1, 4, 4, 2)).astype(np.float32)}
    runs(convert(model, folder, half_io=half_io), feeds, keep_io=not half_io, drift=1e-2)


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bij,bkj->bik", "bij,bjk->ik"])
@pytest.mark.parametrize("half_io", [False, True])
def test_einsum(equation: str, half_io: bool, folder: Path) -> None:
    shape = "[2,4,4]" if equation[-3:] == "bik" else "[4,4]"
    model = text(
        f'(float[2,4,4] x, float[2,4,4] v) => (float{shape} y) {{ z = Einsum<equation="{equation}">(x, v)\n y = Relu(z) }}'
    )
    runs(convert(model, folder, half_io=half_io), {"x": SCORES, "v": normal(2, 4, 4)}, keep_io=not half_io, drift=1e-2)


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(
    ("opset", "graph"),
    [
        (17, "(float[1,256] x) => (float[?,?,?,2] y) <int64 step={64}, int64 size={128}>"
             " { r = Tanh(x)\n s = STFT(r, step, , size)\n y = Mul(s, s) }"),
        (17, "(float[1,256] x) => (float[?,?,?,2] y) <int64 step={64}>"
             " { r = Tanh(x)\n s = STFT(r, step, window)\n y = Mul(s, s) }"),
        (17, "(float[1,256] x) => (float[1,256,2] y) <int64[1] a={2}>"
             " { r = Tanh(x)\n u = Unsqueeze(r, a)\n y = DFT<axis=1>(u) }"),
        (20, "(float[1,256] x) => (float[?,?,?] y) <int64[1] a={2}, int64 one={1}>"
             " { r = Tanh(x)\n u = Unsqueeze(r, a)\n y = DFT<onesided=1>(u, , one) }"),
        (17, "(float[1,128] x) => (float[1,128] y) <int64 n={128}>"
             " { w = HannWindow(n)\n r = Tanh(x)\n y = Mul(r, w) }"),
    ],
    ids=["stft", "stft-window", "dft-17", "dft-20", "hann"],
)  # fmt: skip
def test_spectra(opset: int, graph: str, half_io: bool, folder: Path) -> None:
    model = text(graph, opset=opset, ir=9)
    if "window" in graph:
        model = with_weights(model, {"window": np.hanning(128).astype(np.float32)})
    size = 128 if "HannWindow" in graph else 256
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": normal(1, size)}, keep_io=not half_io, drift=1e-2)


# --- 8. sequences, optionals, ai.onnx.ml ----------------------------------------------------------------------------

_SEQUENCES = {
    "construct-at": "s = SequenceConstruct(a, b)\n y = SequenceAt(s, one)",
    "construct-concat": "s = SequenceConstruct(a, b)\n y = ConcatFromSequence<axis=0>(s)",
    "split-at": "s = SplitToSequence<axis=0>(a)\n t = SequenceAt(s, one)\n y = Relu(t)",
    "split-concat": "s = SplitToSequence<axis=1, keepdims=1>(a)\n y = ConcatFromSequence<axis=0>(s)",
    "insert": "s = SequenceConstruct(a)\n t = SequenceInsert(s, b)\n y = ConcatFromSequence<axis=1>(t)",
    "empty": "e = SequenceEmpty()\n s = SequenceInsert(e, a)\n y = SequenceAt(s, zero)",
    "empty-typed": "e = SequenceEmpty<dtype=1>()\n s = SequenceInsert(e, a)\n y = SequenceAt(s, zero)",
    "erase": "s = SequenceConstruct(a, b)\n t = SequenceErase(s, zero)\n y = ConcatFromSequence<axis=0>(t)",
    "length": "s = SequenceConstruct(a, b)\n n = SequenceLength(s)\n f = Cast<to=1>(n)\n y = Mul(a, f)",
    "stack": "s = SequenceConstruct(a, b)\n y = ConcatFromSequence<axis=0, new_axis=1>(s)",
    "optional": "o = Optional(a)\n e = OptionalGetElement(o)\n y = Relu(e)",
    "optional-has": "o = Optional(a)\n h = OptionalHasElement(o)\n f = Cast<to=1>(h)\n y = Mul(a, f)",
    "optional-sequence": "s = SequenceConstruct(a, b)\n o = Optional(s)\n e = OptionalGetElement(o)\n y = SequenceAt(e, one)",
}


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("name", _SEQUENCES)
def test_sequences_and_optionals(name: str, half_io: bool, folder: Path) -> None:
    model = text(
        f"(float[2,4] x) => (float[{'?,?,?' if name == 'stack' else '?,?'}] y) <int64 zero={{0}}, int64 one={{1}}>"
        f" {{ a = MatMul(x, w)\n b = Sigmoid(a)\n {_SEQUENCES[name]} }}"
    )
    converted = convert(with_weights(model, {"w": normal(4, 4)}), folder, half_io=half_io)
    runs(converted, {"x": X}, keep_io=not half_io)


def test_a_sequence_at_the_interface_keeps_its_type(folder: Path) -> None:
    model = text(
        "(seq(float[2,4]) s, float[2,4] x) => (seq(float[2,4]) t, float[2,4] y) <int64 zero={0}>"
        " { r = Sigmoid(x)\n t = SequenceInsert(s, r)\n e = SequenceAt(s, zero)\n y = Add(e, r) }"
    )
    runs(convert(model, folder), {"s": [X, X + 1], "x": X})


def test_a_sequence_with_float_and_half_neighbours(folder: Path) -> None:
    model = with_weights(
        text(
            "(float[2,4] x) => (float[2,4] y, float[4,4] z) <int64 zero={0}>"
            " { [h] a = MatMul(x, w)\n [f] b = Sigmoid(x)\n s = SequenceConstruct(a, b)\n"
            " [r] e = SequenceAt(s, zero)\n y = Relu(e)\n z = ConcatFromSequence<axis=0>(s) }"
        ),
        {"w": normal(4, 4)},
    )
    runs(convert(model, folder, block_nodes=["f", "r"]), {"x": X})


def test_zipmap_and_classifiers_of_the_ml_domain(folder: Path) -> None:
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5], scale=[2.0]),
        helper.make_node(
            "LinearClassifier", ["s"], ["label", "p"], domain="ai.onnx.ml", classlabels_ints=[0, 1, 2],
            coefficients=normal(12).tolist(), intercepts=[0.1, 0.2, 0.3], post_transform="SOFTMAX",
        ),
        helper.make_node("Normalizer", ["p"], ["n"], domain="ai.onnx.ml", norm="L1"),
        helper.make_node("ZipMap", ["n"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]  # fmt: skip
    mapped = onnx.ValueInfoProto(name="m")
    entry = mapped.type.sequence_type.elem_type.map_type
    entry.key_type = TensorProto.INT64
    entry.value_type.tensor_type.elem_type = FLOAT
    graph = helper.make_graph(
        nodes,
        "ml",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, [2]), mapped],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    converted = convert(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder)
    runs(converted, {"x": X})


def test_trees_and_scalers_between_half_neighbours(folder: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Scaler", ["a"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[0.5]),
        helper.make_node(
            "TreeEnsembleRegressor", ["s"], ["t"], domain="ai.onnx.ml", n_targets=1,
            nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.1, 0.0, 0.0], nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
            target_weights=[1.5, 2.5],
        ),
        helper.make_node("Mul", ["a", "t"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "ml",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = with_weights(helper.make_model(graph, opset_imports=opsets, ir_version=8), {"w": normal(4, 3)})
    converted = convert(model, folder)
    runs(converted, {"x": X})
    assert converted.all_half("MatMul")


# --- 9. recurrent networks -----------------------------------------------------------------------------------------

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_RECURRENT = ["plain", "bias", "lengths", "initial", "lengths-initial"]


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("form", [*_RECURRENT, "peepholes"])
@pytest.mark.parametrize("op", _GATES)
def test_recurrent_networks(op: str, form: str, direction: str, half_io: bool, folder: Path) -> None:
    if form == "peepholes" and op != "LSTM":
        pytest.skip("only an LSTM has peepholes")
    gates, hidden, ways = _GATES[op], 5, 2 if direction == "bidirectional" else 1
    weights = {"w": normal(ways, gates * hidden, 4, scale=0.4), "r": normal(ways, gates * hidden, hidden, scale=0.4)}
    inputs = ["x", "w", "r", "", "", ""]
    if form != "plain":
        weights["b"] = normal(ways, 2 * gates * hidden, scale=0.2)
        inputs[3] = "b"
    declared, feeds = "float[6,2,4] x", {"x": normal(6, 2, 4)}
    if "lengths" in form:
        inputs[4] = "lengths"
        declared += ", int32[2] lengths"
        feeds["lengths"] = np.array([6, 3], np.int32)
    if "initial" in form or form == "peepholes":
        inputs[5] = "h0"
        declared += f", float[{ways},2,{hidden}] h0"
        feeds["h0"] = normal(ways, 2, hidden, seed=7)
    if op == "LSTM" and form == "peepholes":
        weights["p"] = normal(ways, 3 * hidden, seed=8, scale=0.2)
        inputs += ["", "p"]
    elif op == "LSTM" and "initial" in form:
        inputs.append("c0")
        declared += f", float[{ways},2,{hidden}] c0"
        feeds["c0"] = normal(ways, 2, hidden, seed=9)
    outputs = "s, h, c" if op == "LSTM" else "s, h"
    last = f", float[{ways},2,{hidden}] c" if op == "LSTM" else ""
    while not inputs[-1]:
        inputs.pop()
    model = text(
        f"({declared}) => (float[6,{ways},2,{hidden}] y, float[{ways},2,{hidden}] h{last})"
        f' {{ {outputs} = {op}<hidden_size={hidden}, direction="{direction}">({", ".join(inputs)})\n y = Tanh(s) }}'
    )
    converted = convert(with_weights(model, weights), folder, half_io=half_io)
    runs(converted, feeds, keep_io=not half_io)
