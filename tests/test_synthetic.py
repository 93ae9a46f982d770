"""Made-up samples: every model of the zoo runs on them, and values respect what the model does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from halfconv.errors import InputError, UsageError
from halfconv.model import load
from halfconv.samples import Samples
from halfconv.synthetic import input_specs, synthetic_samples
from tests import zoo
from tests.runtime_helpers import run

#: Zoo models that do not run on made-up samples, with the reason.
EXCEPTIONS: dict[str, str] = {}


def feeds(model: onnx.ModelProto, **options: Any) -> list[dict[str, Any]]:
    """Samples of a model, after ONNX Runtime has run on them."""
    found = [sample.feeds for sample in synthetic_samples(ir.from_proto(model), **options)]
    outcome = run(model, found)
    assert outcome.loads, outcome.failure
    return found


def parsed(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A model of ONNX's text form, with weights."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 18, "ai.onnx.ml": 3, "com.microsoft": 1, "f": 1]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def table(rows: int, width: int = 4) -> np.ndarray:
    return np.ones((rows, width), np.float32)


# --- the zoo -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("key", zoo.KEYS)
def test_a_real_model_runs_on_made_up_samples(key: str) -> None:
    samples = synthetic_samples(load(zoo.model(key)).model, count=2)
    outcome = run(zoo.model(key), [sample.feeds for sample in samples])
    assert outcome.loads == (key not in EXCEPTIONS), outcome.failure


@pytest.mark.slow
def test_real_transformers_get_tokens_masks_and_segments() -> None:
    first, second = (s.feeds for s in synthetic_samples(load(zoo.model("minilm_ts")).model, count=2))
    assert first["input_ids"].shape == (1, 16) and 1000 < first["input_ids"].max() < 30522
    assert first["attention_mask"].all() and second["attention_mask"][0, 0] == 1
    assert set(np.unique([first["token_type_ids"], second["token_type_ids"]])) == {0, 1}


@pytest.mark.slow
def test_magikas_bytes_are_bytes() -> None:
    [sample] = synthetic_samples(load(zoo.model("magika")).model, count=1)
    assert sample.feeds["bytes"].min() == 0 and sample.feeds["bytes"].max() == 256


# --- indices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(table, x)",
        "i = Cast<to=6>(x)  y = Gather(table, i)",
        "i = Unsqueeze(x, zero)  y = Gather(table, i)",
        "i = Reshape(x, flat)  y = Gather(table, i)",
        "i = Transpose(x)  j = Identity(i)  y = Gather(table, j)",
        "i = Slice(x, zero, one, zero)  y = Gather(table, i)",
        "i = Concat<axis=0>(x, x)  y = Gather(table, i)",
        "i, j = Split<num_outputs=2, axis=1>(x)  y = Gather(table, j)",
        "i = Max(x, zero)  y = Gather(table, i)",
        "i = Abs(x)  y = Gather<axis=1>(wide, x)",
        "half = Cast<to=10>(table)  y = Gather(half, x)",
        "y = OneHot(x, depth, values)",
        "d = Constant<value_int=7>()  y = OneHot(x, d, values)",
        "i = Expand(x, flat1)  y = GatherElements(table, i)",
        "y = GatherElements(row, x)",
    ],
)
def test_indices_stay_in_their_table(body: str) -> None:
    model = parsed(
        f"g (int64[2, 4] x) => (y) {{ {body} }}",
        table=table(7),
        wide=table(3, 7),
        row=table(7, 4),
        zero=np.array([0]),
        one=np.array([1]),
        flat=np.array([-1]),
        flat1=np.array([1, 1]),
        depth=np.array([7]),
        values=np.array([0, 1], np.float32),
    )
    values = np.array([f["x"] for f in feeds(model, count=20)])
    assert values.min() == 0 and values.max() == 6


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("i = Add(x, two)  y = Gather(table, i)", 0, 4),
        ("i = Sub(x, two)  y = Gather(table, i)", 2, 8),
        ("i = Sub(eight, x)  y = Gather(table, i)", 2, 8),
        ("i = Mul(x, two)  y = Gather(table, i)", 0, 3),
        ("i = Add(x, some)  y = Gather(table, i)", 0, 3),
        ("i = Add(x, two)  j = Mul(i, two)  k = Sub(j, two)  y = Gather(table, k)", 0, 2),
        ("i = Gather(table, x)  y = Gather(small, x)", 0, 2),
    ],
)
def test_shifted_and_scaled_indices(body: str, low: int, high: int) -> None:
    constants = {
        "table": table(7),
        "small": table(3),
        "two": np.array(2),
        "eight": np.array(8),
        "some": np.array([0, 1, 2, 3]),
    }
    values = np.array([f["x"] for f in feeds(parsed(f"g (int64[2, 4] x) => (y) {{ {body} }}", **constants), count=30)])
    assert (values.min(), values.max()) == (low, high)


def test_indices_of_several_axes() -> None:
    text = "g (int64[5, 2] x, float[5] u) => (y, z) { y = GatherND(table, x)  z = ScatterND(table, x, u) }"
    values = np.array([f["x"] for f in feeds(parsed(text, table=table(7, 3)), count=20)])
    assert (values.min(), values.max()) == (0, 2)


def test_floating_point_indices() -> None:
    model = parsed("g (float[2, 4] x) => (y) { i = Cast<to=7>(x)  y = Gather(table, i) }", table=table(7))
    values = np.array([f["x"] for f in feeds(model, count=20)])
    assert values.dtype == np.float32 and set(np.unique(values)) == set(range(7))


def test_indices_of_another_input_follow_its_size() -> None:
    model = parsed("g (float[1, seq, 4] x, int64[3] last_token) => (y) { y = Gather<axis=1>(x, last_token) }")
    values = np.array([f["last_token"] for f in feeds(model, count=20)])
    assert values.min() == 0 and values.max() == 15


def test_a_one_hot_code_made_of_comparisons() -> None:
    text = "g (int32[1, 300] x) => (y) { i = Reshape(x, shape)  y = Equal(i, codes) }"
    model = parsed(text, shape=np.array([1, 300, 1]), codes=np.arange(257, dtype=np.int32))
    values = np.array([f["x"] for f in feeds(model)])
    assert values.min() < 10 and 246 < values.max() <= 256


def test_positions_count_up() -> None:
    model = parsed("g (int64[batch, seq] position_ids) => (y) { y = Gather(table, position_ids) }", table=table(7))
    assert feeds(model)[0]["position_ids"].tolist() == [[i % 7 for i in range(16)]]


def test_indices_used_in_an_if() -> None:
    text = """g (int64[2] x, bool c) => (y) {
        y = If (c) <
            then_branch = a () => (float[2, 4] p) { p = Gather(table, x) },
            else_branch = b () => (float[2, 4] q) { i = Sub(x, one)  q = Gather(table, i) }
        >
    }"""
    samples = feeds(parsed(text, table=table(7), one=np.array(1)), count=20)
    values = np.array([f["x"] for f in samples])
    assert (values.min(), values.max()) == (1, 6) and {bool(f["c"]) for f in samples} == {True, False}


def test_indices_that_leave_an_if() -> None:
    text = """g (int64[2] x, bool c) => (y) {
        i = If (c) <
            then_branch = a () => (int64[2] p) { p = Identity(x) },
            else_branch = b () => (int64[2] q) { q = Add(x, one) }
        >
        y = Gather(table, i)
    }"""
    assert max(f["x"].max() for f in feeds(parsed(text, table=table(7), one=np.array(1)), count=20)) in (5, 6)


def test_indices_carried_by_a_loop() -> None:
    text = """g (int64[2] x) => (z, y) {
        z, y = Loop (three, true, x) <
            body = b (int64 i, bool c, int64[2] v) => (bool d, int64[2] w, float[2, 4] r)
                { d = Identity(c)  w = Identity(v)  r = Gather(table, v) }
        >
    }"""
    values = [f["x"].max() for f in feeds(parsed(text, table=table(7), three=np.array(3), true=np.array(True)), count=20)]
    assert max(values) == 6


def test_indices_used_in_a_function() -> None:
    model = parsed(
        """g (int64[2] x) => (y) { y = f.look(table, x) }
        <domain: "f", opset_import: ["": 18]> look (t, i) => (r) { r = Gather(t, i) }""",
        table=table(7),
    )
    assert max(s.feeds["x"].max() for s in synthetic_samples(ir.from_proto(model), 20)) <= 6


# --- masks, lengths, counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int64", "int32", "float", "bool"])
def test_masks_by_name(kind: str) -> None:
    samples = feeds(parsed(f"g ({kind}[1, seq] attention_mask) => (y) {{ y = Cast<to=1>(attention_mask) }}"), count=20)
    assert samples[0]["attention_mask"].all()
    for f in samples:
        row = f["attention_mask"][0]
        kept = int(row.sum())
        assert 12 <= kept <= 16 and row[:kept].all() and not row[kept:].any()
    assert any(not f["attention_mask"].all() for f in samples)


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast<to=1>(m)  b = Sub(one, a)  y = Mul(b, large)",
        "a = Cast<to=9>(m)  y = Where(a, one, large)",
    ],
)
def test_masks_by_use(body: str) -> None:
    model = parsed(f"g (int64[1, seq] m) => (y) {{ {body} }}", one=np.float32(1), large=np.float32(-1e4))
    samples = feeds(model, count=10)
    assert samples[0]["m"].all() and all(f["m"][0, :12].all() for f in samples) and any(not f["m"].all() for f in samples)


def test_a_boolean_padding_mask_is_true_where_nothing_is() -> None:
    samples = feeds(parsed("g (bool[1, seq] key_padding_mask) => (y) { y = Not(key_padding_mask) }"), count=10)
    assert not samples[0]["key_padding_mask"].any() and not any(f["key_padding_mask"][0, :12].any() for f in samples)


def test_lengths_by_name_and_by_use() -> None:
    model = parsed("g (float[1, t, 4] x, int64[1] x_lengths) => (y) { y = Identity(x) }")
    lengths = [f["x_lengths"] for f in feeds(model, count=10)]
    assert lengths[0] == 16 and all(8 <= n <= 16 for n in lengths)
    weights = {name: np.ones(dims, np.float32) for name, dims in {"w": (1, 8, 3), "r": (1, 8, 2), "bias": (1, 16)}.items()}
    model = parsed("g (float[t, b, 3] x, int32[b] n) => (y) { y = LSTM<hidden_size=2>(x, w, r, bias, n) }", **weights)
    assert all(1 <= int(f["n"].max()) <= f["x"].shape[0] for f in feeds(model, count=10))


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2, 6] x, int64[3] s) => (y) { y = Reshape(x, s) }",
        "g (float[2, 6] x, int64[2] s) => (y) { y = Expand(x, s) }",
        "g (int64[2] s) => (y) { y = ConstantOfShape(s) }",
        "g (float[2, 6] x, int64[2] s) => (y) { y = Tile(x, s) }",
        "g (float[2, 6] x, int64[1] s) => (y, i) { y, i = TopK(x, s) }",
        "g (int64 s) => (y) { y = Range(zero, s, one) }",
        "g (float[2, 6] x, int64[1] s) => (y) { y = ReduceSum(x, s) }",
        "g (float[2, 6] x, int64[1] s) => (y) { y = Unsqueeze(x, s) }",
        "g (float[2, 6] x, int64[4] s) => (y) { y = Pad(x, s) }",
        "g (float[2, 6] x, int64[2] s) => (y) { t = Add(s, ones)  y = Slice(x, ones, t) }",
        "g (float[2, 6] x, int64 s) => (y) { y = CumSum(x, s) }",
        """g (float[2] x, int64 s) => (y) {
            y = Loop (s, true, x) <
                body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) { d = Identity(c)  w = Add(v, v) }
            >
        }""",
    ],
)
def test_shapes_and_counts(text: str) -> None:
    model = parsed(text, zero=np.array(0), one=np.array(1), ones=np.array([1, 1]), true=np.array(True))
    assert all(np.abs(f["s"]).max() <= 8 for f in feeds(model, count=10))


def test_a_scalar_that_is_compared_takes_what_it_is_compared_with() -> None:
    model = parsed("g (int64 sr) => (y) { y = Equal(sr, rate) }", rate=np.array(16000))
    assert all(f["sr"] == 16000 for f in feeds(model))


# --- dimensions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "shapes"),
    [
        ("float[batch, 3, height, width] x", [(1, 3, 224, 224)]),
        ("float[N, 3, H, W] x", [(1, 3, 224, 224)]),
        ("float[N, h, w, 3] x", [(1, 224, 224, 3)]),
        ("float[batch, seq, 8] x, float[batch, seq, 8] z", [(1, 16, 8), (1, 16, 8)]),
        ("float[batch, frames, 8] x", [(1, 16, 8)]),
        ("float[batch, 3, frames, 8] x", [(1, 3, 16, 8)]),
        ("float[a, b, c] x, float[c, b] z", [(16, 16, 16), (16, 16)]),
        ("float[1, past_seq] x, float[1, seq] z, float[1, total_seq] w", [(1, 8), (1, 16), (1, 24)]),
        ("float x", [()]),
        ("float[0, 3] x", [(0, 3)]),
    ],
)
def test_dimensions_by_name(inputs: str, shapes: list[tuple[int, ...]]) -> None:
    names = "xzw"[: len(shapes)]
    body = "  ".join(f"y{name} = Identity({name})" for name in names)
    model = parsed(f"g ({inputs}) => ({', '.join(f'y{name}' for name in names)}) {{ {body} }}")
    first = feeds(model)[0]
    assert [first[name].shape for name in names] == shapes


def inputs_of(*values: onnx.ValueInfoProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [value.name], [f"{value.name}_out"]) for value in values]
    outputs = [helper.make_value_info(f"{v.name}_out", v.type) for v in values]
    return helper.make_model(
        helper.make_graph(nodes, "g", values, outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def test_sums_of_dimensions() -> None:
    model = inputs_of(
        helper.make_tensor_value_info("past", TensorProto.FLOAT, [1, "past_len"]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "seq"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [1, "past_len + seq"]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "2*seq - 1"]),
    )
    first = next(iter(synthetic_samples(ir.from_proto(model)))).feeds
    assert [first[name].shape[1] for name in ("past", "x", "attention_mask", "z")] == [8, 16, 24, 31]


def test_unknown_dimensions() -> None:
    model = inputs_of(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [-1, 3, "?", "?"]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, None, 128]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None]),
    )
    first = next(iter(synthetic_samples(ir.from_proto(model)))).feeds
    assert [first[n].shape for n in ("image", "state", "x")] == [(1, 3, 224, 224), (2, 1, 128), (1, 16)]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[n, c, h, w] x) => (y) { y = Conv(x, k2) }", (1, 5, 224, 224)),
        ("g (float[a, b, c] x) => (y) { y = MatMul(x, m) }", (16, 16, 6)),
        ("g (float[n, c] x) => (y) { y = Gemm(x, m) }", (1, 6)),
        ("g (float[n, c] x) => (y) { y = Gemm<transB=1>(x, m) }", (1, 4)),
        ("g (float[n, s] x) => (y) { a = Unsqueeze(x, one)  y = Conv<strides=[100]>(a, k1) }", (1, 256)),
        ("g (float[n, s] x) => (y) { a = Unsqueeze(x, one)  y = Conv<pads=[100, 99]>(a, k1) }", (1, 16)),
        ("g (float[n, 1, s] x) => (y) { a = Conv<strides=[4]>(x, k1)  b = Relu(a)  y = Conv(b, k1) }", (1, 1, 1024)),
    ],
)
def test_dimensions_that_weights_need(text: str, shape: tuple[int, ...]) -> None:
    ones = {name: np.ones(dims, np.float32) for name, dims in {"k2": (2, 5, 3, 3), "m": (6, 4), "k1": (1, 1, 200)}.items()}
    assert feeds(parsed(text, **ones, one=np.array([1])), count=1)[0]["x"].shape == shape


def test_given_dimensions_and_lengths() -> None:
    model = parsed("g (float[batch, seq] x) => (y) { y = Identity(x) }")
    assert feeds(model, length=64)[0]["x"].shape == (1, 64)
    assert feeds(model, dims={"seq": 5, "batch": 3})[0]["x"].shape == (3, 5)


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("uint8", 0, 255), ("int8", -128, 127), ("int16", 0, 9), ("int32", 0, 9), ("uint64", 0, 9), ("int64", 0, 9)],
)
def test_integers_without_a_role(kind: str, low: int, high: int) -> None:
    values = feeds(parsed(f"g ({kind}[100, 40] x) => (y) {{ y = Identity(x) }}"))[0]["x"]
    assert values.dtype == kind and (values.min(), values.max()) == (low, high)


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_floating_point_numbers_are_normal(kind: str) -> None:
    values = feeds(parsed(f"g ({kind}[100, 40] x) => (y) {{ y = Identity(x) }}"))[0]["x"].astype(np.float64)
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1


def test_bfloat16() -> None:
    model = parsed("g (bfloat16[4] x) => (y) { y = Cast<to=1>(x) }")
    assert next(iter(synthetic_samples(ir.from_proto(model)))).feeds["x"].dtype == ml_dtypes.bfloat16


def test_strings() -> None:
    known = parsed('g (string[50] x) => (y) { y = ai.onnx.ml.LabelEncoder<keys_strings=["a", "b"], values_int64s=[1, 2]>(x) }')
    assert set(feeds(known)[0]["x"]) == {"a", "b"}
    free = parsed("g (string[50] x) => (y) { y = Identity(x) }")
    assert {type(text) for text in feeds(free)[0]["x"]} == {str}


def test_sequences_and_optionals() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3])
    model = inputs_of(
        helper.make_value_info("s", helper.make_sequence_type_proto(tensor)),
        helper.make_value_info("o", helper.make_optional_type_proto(tensor)),
        helper.make_value_info("os", helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor))),
    )
    kinds = [(spec.sequence, spec.optional) for spec in input_specs(ir.from_proto(model))]
    assert kinds == [(True, False), (False, True), (True, True)]
    first = feeds(model)[0]
    assert [item.shape for item in first["s"]] == [(1, 3)] * 2 == [item.shape for item in first["os"]]
    assert first["o"].shape == (1, 3)


def test_weights_that_are_listed_as_inputs_are_none() -> None:
    model = parsed("g (float[2] x, float[2] w) => (y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    assert [spec.name for spec in input_specs(ir.from_proto(model))] == ["x"] and feeds(model)[0].keys() == {"x"}


def test_what_cannot_be_made_up() -> None:
    huge = parsed("g (float[1000000, 1000000] x) => (y) { y = Identity(x) }")
    with pytest.raises(InputError, match="too large to be made up"):
        synthetic_samples(ir.from_proto(huge))
    with pytest.raises(UsageError, match="0 synthetic samples"):
        synthetic_samples(ir.from_proto(huge), 0)


def test_a_map_cannot_be_made_up(tmp_path: Path) -> None:
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", string_vocabulary=["a"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph([node], "g", [helper.make_value_info("x", kind)], [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="input 'x' is a map"):
        synthetic_samples(load(tmp_path / "m.onnx").model)


# --- what is promised ----------------------------------------------------------------------------------------------


def made(seed: int) -> tuple[Samples, list[np.ndarray]]:
    model = parsed("g (float[2, 4] x, int64[9] i) => (y, z) { y = Identity(x)  z = Gather(t, i) }", t=table(1000))
    samples = synthetic_samples(ir.from_proto(model), 3, seed)
    return samples, [np.concatenate([s.feeds["x"].ravel(), s.feeds["i"]]) for s in samples]


def test_the_seed_decides() -> None:
    samples, first = made(7)
    assert (samples.kind, samples.seed, len(first)) == ("synthetic", 7, 3)
    again = [np.concatenate([s.feeds["x"].ravel(), s.feeds["i"]]) for s in samples]
    assert np.array_equal(first, again) and np.array_equal(first, made(7)[1])
    assert not np.array_equal(first, made(8)[1]) and not np.array_equal(first[0], first[1])
