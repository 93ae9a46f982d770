"""Where operators of halfconv's own are put into a model, that the answer stays, and why others are left."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from halfconv.graph.rules import MS
from halfconv.kernels.operators import OPERATORS
from halfconv.kernels.stage import place
from tests.kernels import Arrays, answers, build, half, kinds, own, placed, widened

# --- products -------------------------------------------------------------------------------------------------------

ROWS = {"x": half(2, 5, 16)}
MATRIX = {"w": half(16, 24), "b": half(24)}
LINEAR = "p = MatMul(x, w)\n"


def rows(body: str, more: str = "") -> str:
    return f"(float16[n,5,16] x{more}) => (float16[n,5,24] y) {{ {LINEAR}{body} }}"


@pytest.mark.parametrize(
    "body,name",
    [
        ("y = Add(p, b)", "Linear"),
        ("y = Add(b, p)", "Linear"),
        ("s = Add(p, b)\n y = Relu(s)", "LinearRelu"),
        (f"y = {MS}.BiasGelu(p, b)", "LinearGelu"),
        ("s = Add(p, b)\n y = Gelu(s)", "LinearGelu"),
        (f"s = Add(p, b)\n y = {MS}.Gelu(s)", "LinearGelu"),
    ],
)
def test_a_product_takes_up_bias_and_activation(body: str, name: str) -> None:
    made, done = placed(rows(body), ROWS, MATRIX)
    assert kinds(made) == own(**{name: 1}) and done.operators == {name: 1}
    assert not done.refused and done.copies == 0


@pytest.mark.parametrize("body,name", [("y = Add(s, r)", "LinearAdd"), ("t = Add(r, s)\n y = Relu(t)", "LinearAddRelu")])
def test_a_product_takes_up_a_residual_before_the_activation(body: str, name: str) -> None:
    graph = rows(f"s = Add(p, b)\n {body}", ", float16[n,5,24] r")
    made, _ = placed(graph, ROWS | {"r": half(2, 5, 24)}, MATRIX)
    assert kinds(made) == own(**{name: 1})


def test_a_bias_of_more_axes_is_a_vector() -> None:
    made, _ = placed(rows("y = Add(p, b)"), ROWS, MATRIX | {"b": half(1, 1, 24)})
    assert kinds(made) == own(Linear=1)
    (node,) = made.graph
    assert node.inputs[2] is not None and node.inputs[2].shape == (24,)


@pytest.mark.parametrize(
    "body,weights,reason",
    [
        ("q = Add(p, b)\n y = Add(p, q)", {}, "its result is read by others, too"),
        ("s = Add(p, b)\n y = Add(s, r)", {}, "the two sides of the sum may differ in shape"),
        ("s = Add(p, b)\n y = Gelu<approximate = \"tanh\">(s)", {}, "it is GELU by tanh, not by erf"),
        ("y = Add(p, b)", {"w": half(16, 23), "b": half(23)}, "its weight of 16 x 23 is not in multiples of 8"),
    ],
    ids=["read twice", "broadcast", "tanh", "odd"],
)  # fmt: skip
def test_why_a_product_is_left(body: str, weights: Arrays, reason: str) -> None:
    more = ", float16[n,1,24] r" if "r)" in body else ""
    graph = rows(body, more).replace("5,24] y", f"5,{(MATRIX | dict(weights))['b'].size}] y")
    _, done = placed(graph, ROWS | ({"r": half(2, 1, 24)} if more else {}), MATRIX | dict(weights))
    assert reason in {refusal.reason for refusal in done.refused}


def test_products_that_onnx_runtime_computes_well_are_left() -> None:
    graph = "(float16[n,5,16] x, float16[n,5,24] s) => (float16[n,5,24] y, float16[n,5,24] z) {"
    graph += f"p = MatMul(x, w)\n y = {MS}.SkipLayerNormalization(p, s, g, c, b)\n z = MatMul(x, w) }}"
    made, done = placed(graph, ROWS | {"s": half(2, 5, 24)}, MATRIX | {"g": half(24), "c": half(24)})
    assert not done.operators and not done.refused and not made.functions


def test_what_stays_fp32_is_left() -> None:
    graph = rows("q = Cast<to = 1>(p)\n c = Cast<to = 1>(b)\n t = Add(q, c)\n y = Cast<to = 10>(t)")
    made, done = placed(graph, ROWS, MATRIX)
    assert not done.operators and kinds(made)["MatMul"] == 1


def test_a_product_inside_a_branch_is_put_in_there() -> None:
    branch = "g1 () => (float16[n,5,24] t) { p = MatMul(x, w)\n t = Add(p, b) }"
    other = "g2 () => (float16[n,5,24] e) { q = MatMul(x, w)\n e = Neg(q) }"
    graph = "(float16[n,5,16] x, bool c) => (float16[n,5,24] y) { y = If(c) <then_branch = %s, else_branch = %s> }"
    made, done = placed(graph % (branch, other), ROWS | {"c": np.array(True)}, MATRIX)
    assert done.operators == {"Linear": 1} and kinds(made) == {"If": 1}


# --- attention ------------------------------------------------------------------------------------------------------

PACKED = {"w": half(16, 48, scale=0.3), "b": half(48)}
ATTENTION = "(float16[n,s,16] x%s) => (float16[n,s,16] y) { y = " + MS + ".Attention<num_heads = 2%s>(%s) }"
TOKENS = {"x": half(2, 6, 16)}
SCORES = half(2, 1, 6, 6, scale=3)


@pytest.mark.parametrize(
    "inputs,attributes,given,feeds",
    [
        ("", "", "x, w, b", {}),
        ("", ", scale = 0.1", "x, w, b", {}),
        ("", ", qkv_hidden_sizes = [16, 16, 16]", "x, w, b", {}),
        ("", "", "x, w", {}),
        (", float16[n,1,s,s] a", "", "x, w, b, , , a", {"a": SCORES}),
        (", float16[n,2,s,s] a", "", "x, w, b, , , a", {"a": half(2, 2, 6, 6)}),
    ],
    ids=["plain", "scale", "sizes", "no bias", "bias", "bias of heads"],
)
def test_attention_becomes_one_product_and_what_reads_it_in_place(
    inputs: str, attributes: str, given: str, feeds: Arrays
) -> None:
    weights = {name: array for name, array in PACKED.items() if f"{name}," in given + ","}
    made, done = placed(ATTENTION % (inputs, attributes, given), TOKENS | dict(feeds), weights)
    name = "PackedAttentionBias" if feeds else "PackedAttention"
    assert kinds(made) == own(**{"Linear": 1, name: 1})
    assert done.operators == {"Linear": 1, name: 1} and not done.refused


@pytest.mark.parametrize(
    "inputs,attributes,given,reason",
    [
        (", int32[n,s] m", "", "x, w, b, m", "it has a mask of places; try: a mask that is added"),
        ("", ", unidirectional = 1", "x, w, b", "it looks back only"),
        (", float16[2,n,2,t,8] a", "", "x, w, b, , a", "it has a cache of keys and values"),
        ("", ", qkv_hidden_sizes = [8, 8, 32]", "x, w, b", "queries, keys and values differ in size"),
        ("", ", do_rotary = 1", "x, w, b", "it has do_rotary, which PackedAttention has not"),
        (", float16[16,48] v", "", "x, v, b", "its weight is not an FP16 matrix of the model"),
    ],
)
def test_why_attention_is_left(inputs: str, attributes: str, given: str, reason: str) -> None:
    made = build(ATTENTION % (inputs, attributes, given), {k: v for k, v in PACKED.items() if f"{k}," in given + ","})
    assert [refusal.reason for refusal in place(made).refused] == [reason]
    assert kinds(made) == {"Attention": 1}


# --- images ---------------------------------------------------------------------------------------------------------

IMAGE = {"x": half(2, 8, 12, 10)}
CONVS = {
    "w1": half(16, 8, 1, 1), "w2": half(16, 16, 3, 3, scale=0.2), "w3": half(8, 16, 1, 1), "b1": half(16), "wd": half(8, 1, 5, 5),
    "bd": half(8), "g": half(8), "c": half(8),
}  # fmt: skip
BLOCK = """
    c1 = Conv(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads = [1,1,1,1]>(r1, w2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3)
"""


def images(body: str, *, out: str = "n,8,12,10", inputs: str = "", outputs: str = "") -> str:
    return f"(float16[n,8,12,10] x{inputs}) => (float16[{out}] y{outputs}) {{ {body} }}"


def used_weights(graph: str, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array for name, array in (CONVS | others).items() if re.search(rf"[( ]{name}[,)]", graph)}


def test_a_residual_block_is_three_operators_between_two_copies() -> None:
    graph = images(BLOCK + "s = Add(c3, x)\n y = Relu(s)")
    made, done = placed(graph, IMAGE, used_weights(graph))
    assert kinds(made) == own(LinearRelu=1, ConvRelu=1, LinearAddRelu=1) | {"Transpose": 2}
    assert done.copies == 2


def test_where_both_sides_are_ours_the_product_takes_the_residual() -> None:
    graph = images(
        BLOCK + "d = Conv<strides = [2,2]>(x, wk)\n e = Conv<strides = [2,2]>(c3, wk)\n"
        " f = Conv(e, ws)\n s = Add(d, f)\n y = Relu(s)", out="n,8,6,5"
    )  # fmt: skip
    made, done = placed(graph, IMAGE, used_weights(graph, wk=half(8, 8, 1, 1), ws=half(8, 8, 1, 1)))
    assert done.operators == {"Linear": 1, "LinearRelu": 1, "LinearAddRelu": 1, "Conv": 2, "ConvRelu": 1}
    assert kinds(made)["Add"] == kinds(made)["Relu"] == 0


def test_a_convolution_takes_a_residual() -> None:
    conv = "Conv<pads = [1,1,1,1]>"
    graph = images(f"a = {conv}(x, v)\n b = {conv}(a, v)\n s = Add(x, b)\n c = {conv}(s, v)\n t = Add(c, s)\n y = Relu(t)")
    made, _ = placed(graph, IMAGE, {"v": half(8, 8, 3, 3, scale=0.2)})
    assert kinds(made) == own(Conv=1, ConvAdd=1, ConvAddRelu=1) | {"Transpose": 2}
    assert len([name for name in made.graph.initializers if "last" in name]) == 1  # one weight, stored once


def test_a_block_of_convnext_has_no_copy_inside() -> None:
    mlp = {"m1": half(8, 32), "n1": half(32), "m2": half(32, 8, scale=0.2), "n2": half(8)}
    block = (
        "d{0} = Conv<group = 8, pads = [2,2,2,2]>({1}, wd, bd)\n t{0} = Transpose<perm = [0,2,3,1]>(d{0})\n"
        "l{0} = LayerNormalization<axis = -1, epsilon = 0.001>(t{0}, g, c)\n p{0} = MatMul(l{0}, m1)\n"
        "h{0} = Add(p{0}, n1)\n q{0} = Gelu(h{0})\n u{0} = MatMul(q{0}, m2)\n v{0} = Add(u{0}, n2)\n"
        "z{0} = Transpose<perm = [0,3,1,2]>(v{0})\n {2} = Add(z{0}, {1})\n"
    )
    graph = images(block.format(1, "x", "o") + block.format(2, "o", "y"))
    made, done = placed(graph, IMAGE, used_weights(graph, **mlp))
    assert kinds(made) == own(DepthwiseConvNorm=2, LinearGelu=2, LinearAdd=2) | {"Transpose": 2}
    assert done.copies == -2


@pytest.mark.parametrize(
    "op",
    [
        "y = Relu({0})", "y = Sigmoid({0})", "y = Clip({0}, zero, six)", "y = HardSwish({0})", "y = Mul({0}, scale)",
        "y = Add(scale, {0})",
        "y = Mul({0}, grid)", "y = Sub({0}, row)", "h = Sigmoid({0})\n y = Mul({0}, h)",
        "h = GlobalAveragePool({0})\n i = Sigmoid(h)\n y = Mul({0}, i)",
        "h = Neg({0})\n i = Concat<axis = 1>({0}, h)\n y = Conv(i, w3)",
        "h = Concat<axis = -2>({0}, {0})\n i = Conv(h, ws)\n y = MaxPool<kernel_shape = [2,1], strides = [2,1]>(i)",
        "h = Neg({0})\n y = Max({0}, h, x)",
    ],
)  # fmt: skip
def test_what_lies_between_convolutions_is_computed_channels_last(op: str) -> None:
    graph = images(BLOCK + op.format("c3"))
    more = {
        "zero": np.array(0, np.float16), "six": np.array(1, np.float16), "scale": half(8, 1, 1), "grid": half(1, 1, 12, 10),
        "row": half(10), "ws": half(8, 8, 1, 1),
    }  # fmt: skip
    made, done = placed(graph, IMAGE, used_weights(graph, **more))
    pooled = "MaxPool" in op
    assert kinds(made)["Transpose"] == 2 and sum(done.operators.values()) >= 3
    last = made.graph.outputs[0].producer()
    assert last is not None and last.op_type == ("MaxPool" if pooled else "Transpose")


def test_a_pooled_image_needs_no_copy_behind_it() -> None:
    graph = images(BLOCK + "h = GlobalAveragePool(c3)\n y = Reshape(h, flat)", out="n,8")
    made, done = placed(graph, IMAGE, used_weights(graph, flat=np.array([0, -1])))
    assert kinds(made) == own(LinearRelu=1, ConvRelu=1, Linear=1, GlobalAveragePool=1) | {"Transpose": 1, "Reshape": 1}
    assert done.copies == 1


def test_a_pixel_changes_its_layout_for_nothing() -> None:
    graph = images(
        BLOCK + "h = GlobalAveragePool(c3)\n i = Conv(h, odd)\n j = Relu(i)\n k = Conv(j, even)\n l = Mul(c3, k)\n y = Conv(l, ws)"
    )
    weights = {"odd": half(3, 8, 1, 1), "even": half(8, 3, 1, 1), "ws": half(8, 8, 1, 1)}
    made, _ = placed(graph, IMAGE, used_weights(graph, **weights))
    assert kinds(made)["Transpose"] == 2 and kinds(made)["Reshape"] == 2 and kinds(made)["Conv"] == 2


def test_images_of_unknown_size_are_taken_too() -> None:
    chain = f"x0 = {MS}.QuickGelu(x)\n c1 = Conv(x0, w1, b1)\n c2 = Conv<pads = [1,1,1,1]>(c1, w2)\n y = Conv(c2, w3)"
    graph = images(chain, out="n,c,h,w")
    made, done = placed(graph, IMAGE, used_weights(graph))
    assert done.operators == {"Linear": 2, "Conv": 1} and kinds(made)["Transpose"] == 2


def test_results_and_other_readers_get_what_they_had() -> None:
    graph = images(
        BLOCK + "y = Relu(c3)\n z = MaxPool<kernel_shape = [2,2]>(c1)",
        outputs=", float16[n,16,12,10] r1, float16[n,16,11,9] z, float16[n,8,12,10] x2",
    ).replace("y = Relu(c3)", "y = Relu(c3)\n x2 = Identity(x)")  # fmt: skip
    made, done = placed(graph, IMAGE, used_weights(graph))
    assert [value.name for value in made.graph.outputs] == ["y", "r1", "z", "x2"]
    assert done.operators


@pytest.mark.parametrize(
    "body,weights,reason",
    [
        ("y = Conv<group = 2>(x, v)", {"v": half(8, 4, 1, 1)}, "it has 2 groups"),
        ("y = Conv(x, v)", {"v": half(12, 8, 1, 1)}, "its 8 channels in and 12 out are not multiples of 8"),
        ("y = Conv<group = 8, strides = [2,2]>(x, v)", {"v": half(8, 1, 1, 1)},
         "its kernels of one channel have strides [2, 2] and dilations [1, 1]"),
        ("y = Conv<group = 8>(x, v)", {"v": half(8, 1, 3, 3)}, "its kernels of one channel change the size of the image"),
        ("y = Conv<group = 8, pads = [1,0,1,0]>(x, v)", {"v": half(8, 1, 3, 1)},
         "its kernels of one channel are 3 x 1, not square and 3, 5, 7 wide"),
        ("y = Conv(x, v)", {"v": half(8, 8, 1, 1)}, "the copies around it would cost more than it saves"),
    ],
    ids=["groups", "channels", "strides", "size", "oblong", "alone"],
)  # fmt: skip
def test_why_a_convolution_is_left(body: str, weights: Arrays, reason: str) -> None:
    made, done = placed(images(body, out="n,c,h,w"), IMAGE, weights)
    assert [refusal.reason for refusal in done.refused] == [reason]
    assert kinds(made) == {"Conv": 1}


def test_an_older_opset_has_the_same_operators() -> None:
    graph = images(BLOCK + "d = Conv<group = 8, pads = [2,2,2,2]>(c3, wd, bd)\n s = Add(d, x)\n y = Relu(s)")
    made, done = placed(graph, IMAGE, used_weights(graph), opset=11)
    assert done.operators == {"LinearRelu": 1, "Linear": 1, "ConvRelu": 1, "DepthwiseConv": 1}
    assert all(function.opset_imports[""] == 11 for function in made.functions.values()) and made.ir_version >= 8


def test_the_answer_in_fp16_stays_at_every_level_of_optimisation() -> None:
    graph = images(BLOCK + "s = Add(c3, x)\n y = Relu(s)")
    before, after = (build(graph, used_weights(graph)) for _ in range(2))
    place(after)
    want = answers(ir.to_proto(before), IMAGE)["y"].astype(np.float64)
    for level in ("ALL", "DISABLE_ALL"):
        got = answers(ir.to_proto(after), IMAGE, level)["y"]
        assert np.linalg.norm(got - want) <= 2e-3 * np.linalg.norm(want)


def test_putting_in_twice_changes_nothing() -> None:
    graph = images(BLOCK + "s = Add(c3, x)\n y = Relu(s)")
    made = build(graph, used_weights(graph))
    place(made)
    before = ir.to_proto(made)
    again = place(made)
    assert ir.to_proto(made) == before and sum(again.operators.values()) == 3 and not again.copies


def test_every_operator_is_made_somewhere() -> None:
    source = Path(__file__).read_text("utf-8")
    for name in OPERATORS:
        assert f"{name}=" in source or f'"{name}"' in source, name


def test_the_definitions_need_no_types() -> None:
    made = build(rows("y = Add(p, b)"), MATRIX)
    place(made)
    onnx.checker.check_model(widened(made), full_check=True)


@pytest.mark.parametrize(("channels", "count"), [(1024, 1), (1032, 0)])
def test_a_norm_of_more_channels_than_the_convolution_takes_is_by_itself(channels: int, count: int) -> None:
    graph = (
        f"(float16[n,{channels},4,3] x) => (float16[n,{channels},4,3] y) {{ d = Conv<group = {channels}, pads = [1,1,1,1]>(x, w)\n"
        "t = Transpose<perm = [0,2,3,1]>(d)\n l = LayerNormalization(t, g)\n y = Transpose<perm = [0,3,1,2]>(l) }"
    )
    _, done = placed(graph, {"x": half(1, channels, 4, 3)}, {"w": half(channels, 1, 3, 3), "g": half(channels)})
    assert done.operators == ({"DepthwiseConvNorm": 1} if count else {"DepthwiseConv": 1, "LayerNorm": 1})


@pytest.mark.parametrize(
    ("stride", "kind", "taken"),
    [("", "pads = [1,1,1,1]", True), ("", 'auto_pad = "SAME_LOWER"', True), ("", "dilations = [2,1], pads = [2,1,2,1]", True),
     ("", "pads = [0,1,2,1]", True), ("strides = [2,2], ", "pads = [1,1,1,1]", False), ("", "pads = [1,1,1,2]", False)],
)  # fmt: skip
def test_a_residual_of_unknown_size_is_taken_where_both_sides_keep_it(stride: str, kind: str, taken: bool) -> None:
    conv = f"Conv<{stride}{kind}>"
    graph = (
        "(float16[n,8,h,w] x) => (float16[n,8,k,l] y) { a = Conv<pads = [1,1,1,1]>(x, v)\n b = Relu(a)\n"
        f"c = {conv}(b, v)\n d = {conv if not taken else 'Conv<pads = [1,1,1,1]>'}(x, v)\n s = Add(c, d)\n y = Relu(s) }}"
    )
    _, done = placed(graph, IMAGE, {"v": half(8, 8, 3, 3, scale=0.2)})
    reasons = {refusal.reason for refusal in done.refused}
    assert (done.operators.get("ConvAddRelu", 0) == 1) == taken
    assert ("the two sides of the sum may differ in shape" in reasons) == (not taken)


def test_a_weight_that_is_transposed_is_stored_so() -> None:
    graph = "(float16[n,5,16] x) => (float16[n,5,24] y, float16[24,16] z) { t = Transpose(u)\n p = MatMul(x, t)\n y = Add(p, b)\n"
    graph += "z = Transpose<perm = [1,0]>(k) }"
    made, _ = placed(graph, ROWS, {"u": half(24, 16), "b": half(24), "k": half(16, 24)})
    assert kinds(made) == own(Linear=1) | {"Transpose": 1}  # a result of the model stays
