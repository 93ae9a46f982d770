"""Convolutions of windows beside each other become one product: in which forms, that the answer stays, and why others are left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halfconv
from halfconv.graph.prepare import prepare
from halfconv.kernels.operators import DOMAIN
from tests import exports
from tests.graph import ops
from tests.graph.test_fusions import Arrays, build, fuse, normal, positive, reasons

NAME = "Conv, Transpose"
PARTS = ["Reshape", "Transpose", "Reshape", "MatMul"]
#: Images of 8 x 12, windows of 4 x 4: two by three of them.
FEEDS = {"x": normal(2, 3, 8, 12)}
WEIGHTS = {"w": normal(16, 3, 4, 4), "d": normal(16)}
FLAT = {"flat": np.array([0, 16, -1])}
CONV = "[patch] c = Conv<strides = [4,4]>(x, w, d)\n"
TURN = "Transpose<perm = [0,2,3,1]>"
LAST = f"y = {TURN}(c)"
ROWS = "r = Reshape(c, flat)\n y = Transpose<perm = [0,2,1]>(r)"


def graph(body: str, x: str = "float[b,3,8,12] x", y: str = "float[b,s,t,o] y") -> str:
    return f"({x}) => ({y}) {{ {body} }}"


def rows(body: str) -> str:
    return graph(body, y="float[b,s,o] y")


def used(body: str, weights: Arrays) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights.items() if f", {name})" in body or f", {name}," in body}


# --- what is fused --------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[str, Arrays, Arrays, bool]:
    """Text of a convolution that is fused, its inputs and weights, and whether it has a bias."""
    axes = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 5), min_size=axes, max_size=axes).filter(lambda sizes: math.prod(sizes) > 2))
    batch, counts = draw(st.integers(1, 3)), draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    channels, out = draw(st.integers(math.ceil(16 / math.prod(kernel)), 7)), draw(st.integers(1, 9))
    sizes = [count * size for count, size in zip(counts, kernel, strict=True)]
    strides = f"strides = [{','.join(map(str, kernel))}]"
    padding = draw(st.sampled_from(["", ', auto_pad = "VALID"', ', auto_pad = "SAME_UPPER"', f", pads = {[0] * 2 * axes}"]))
    bias, flat, order = draw(st.booleans()), draw(st.booleans()), [0, *draw(st.permutations(range(1, axes + 2)))]
    body, dims, turned = "", [batch, channels, *sizes], draw(st.booleans())
    if turned:
        dims = [dims[order.index(place)] for place in range(axes + 2)]
        body = f"i = Transpose<perm = {order}>(x)\n "
    body += f"c = Conv<{strides}{padding}>({'i' if turned else 'x'}, w{', d' if bias else ''})\n "
    weights = {"w": positive(out, channels, *kernel)} | ({"d": positive(out)} if bias else {})
    if flat:
        weights["flat"] = np.array(draw(st.sampled_from([[0, out, -1], [-1, out, math.prod(counts)], [0, 0, math.prod(counts)]])))
        body += "r = Reshape(c, flat)\n "
    body += f"y = Transpose<perm = {[0, 2, 1] if flat else [0, *range(2, axes + 2), 1]}>({'r' if flat else 'c'})"
    x = f"float[{','.join(map(str, ['n', *dims[1:]]))}] x"
    y = "float[n,s,o] y" if flat else f"float[n,{','.join('abc'[:axes])},o] y"
    return graph(body, x, y), {"x": positive(*dims)}, weights, bias


@given(convolutions())
@settings(max_examples=60)
def test_any_windows_that_fill_the_image_are_one_product(case: tuple[str, Arrays, Arrays, bool]) -> None:
    text, feeds, weights, bias = case
    made, done = fuse(text, feeds, weights)
    in_order = feeds["x"].ndim == 3 and "Transpose" not in ops(made)
    assert ops(made) == (["Reshape", "MatMul"] if in_order else PARTS) + ["Add"] * bias and done.fusions[NAME] == 1


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
@pytest.mark.parametrize("body", [CONV + LAST, CONV + ROWS], ids=["image", "rows"])
def test_it_needs_no_newer_opset(body: str, opset: int) -> None:
    made, _ = fuse(graph(body) if body.endswith(LAST) else rows(body), FEEDS, used(body, WEIGHTS | FLAT), opset=opset)
    assert ops(made) == [*PARTS, "Add"] and made.opset_imports[""] == opset


def test_the_weight_is_a_matrix_of_fp32_and_the_result_keeps_its_name() -> None:
    made, _ = fuse(rows(CONV + ROWS), FEEDS, WEIGHTS | FLAT)
    matrix = next(value for value in made.graph.initializers.values() if value.name == "w_matrix")
    assert matrix.const_value is not None
    np.testing.assert_array_equal(matrix.const_value.numpy(), WEIGHTS["w"].reshape(16, 48).T)
    assert [node.outputs[0].name for node in made.graph] == ["c_split", "c_windows", "c_patches", "c_product", "y"]
    assert "w" not in made.graph.initializers


@pytest.mark.parametrize(
    "before,dims,turn",
    [([0, 3, 1, 2], (8, 12, 3), (0, 1, 3, 2, 4, 5)), ([0, 2, 1, 3], (8, 3, 12), (0, 1, 4, 2, 3, 5)),
     ([0, 1, 3, 2], (3, 12, 8), (0, 4, 2, 1, 3, 5))],
    ids=["channels last", "rows first", "on its side"],
)  # fmt: skip
def test_an_image_that_was_turned_is_not_turned_twice(before: list[int], dims: tuple[int, ...], turn: tuple[int, ...]) -> None:
    body = f"i = Transpose<perm = {before}>(x)\n c = Conv<strides = [4,4]>(i, w, d)\n " + LAST
    made, _ = fuse(graph(body, f"float[b,{','.join(map(str, dims))}] x"), {"x": normal(2, *dims)}, WEIGHTS)
    (node,) = [node for node in made.graph if node.op_type == "Transpose"]
    assert node.attributes["perm"].as_ints() == turn


def test_a_batch_that_was_not_first_is_turned_before() -> None:
    body = "i = Transpose<perm = [1,0,2,3]>(x)\n c = Conv<strides = [4,4]>(i, w, d)\n " + LAST
    made, _ = fuse(graph(body, "float[3,b,8,12] x"), {"x": normal(3, 2, 8, 12)}, WEIGHTS)
    assert ops(made) == ["Transpose", *PARTS, "Add"]


def test_images_of_one_channel_have_no_axis_of_channels() -> None:
    made, _ = fuse(graph(CONV + LAST, "float[b,1,8,12] x"), {"x": normal(2, 1, 8, 12)}, WEIGHTS | {"w": normal(16, 1, 4, 4)})
    (node,) = [node for node in made.graph if node.op_type == "Transpose"]
    assert node.attributes["perm"].as_ints() == (0, 1, 3, 2, 4)


def test_windows_that_follow_each_other_are_not_moved() -> None:
    body = "c = Conv<strides = [16]>(x, w)\n y = Transpose<perm = [0,2,1]>(c)"
    made, _ = fuse(graph(body, "float[b,1,64] x", "float[b,s,o] y"), {"x": normal(2, 1, 64)}, {"w": normal(8, 1, 16)})
    assert ops(made) == ["Reshape", "MatMul"]


def test_a_batch_norm_between_is_folded_first() -> None:
    body = CONV + "n = BatchNormalization(c, d, d, m, v)\n y = Transpose<perm = [0,2,3,1]>(n)"
    made, done = fuse(graph(body), FEEDS, WEIGHTS | {"m": normal(16), "v": np.ones(16, np.float32)})
    assert ops(made) == [*PARTS, "Add"] and done.fusions == {NAME: 1}


def test_a_weight_of_two_convolutions_is_stored_once() -> None:
    body = CONV + f"e = Conv<strides = [4,4]>(z, w, d)\n f = {TURN}(c)\n g = {TURN}(e)\n y = Sub(f, g)"
    made, done = fuse(graph(body, "float[b,3,8,12] x, float[b,3,8,12] z"), FEEDS | {"z": normal(2, 3, 8, 12)}, WEIGHTS)
    assert done.fusions == {NAME: 2} and sorted(name for name in made.graph.initializers if name.startswith("w")) == ["w_matrix"]


@pytest.mark.parametrize(
    "shapes,reshape",
    [
        ("s = Shape(c)\n", "h = Gather(s, order)"),
        ("s = Shape(c)\n e = Shape<start = 1>(c)\n", "p = Concat<axis = 0>(s, e)\n h = Gather(p, order)"),
        ("s = Shape<start = 0, end = 1>(c)\n e = Shape<start = -2>(c)\n f = Shape<start = 1, end = 2>(c)\n",
         "h = Concat<axis = 0>(s, e, f)"),
        ("s = Shape<start = 0, end = 2>(c)\n e = Shape<start = 2, end = 9>(c)\n",
         "p = Concat<axis = 0>(s, e)\n h = Gather(p, order)"),
    ],
    ids=["whole", "twice", "parts", "beyond the end"],
)  # fmt: skip
def test_others_may_ask_for_the_shape_of_the_convolution(shapes: str, reshape: str) -> None:
    """As TorchScript's exporter does for Swin; the convolution would stay for them alone."""
    body = CONV + shapes + f"r = Reshape(c, flat)\n t = Transpose<perm = [0,2,1]>(r)\n {reshape}\n y = Reshape(t, h)"
    weights = used(body, WEIGHTS | FLAT | {"order": np.array([0, 2, 3, 1])})
    for x in ("float[b,3,8,12] x", "float[2,3,8,12] x"):
        made, done = fuse(graph(body, x), FEEDS, weights)
        assert "Conv" not in ops(made) and done.fusions[NAME] == 1


def test_a_shape_that_only_the_reshape_asks_for_goes() -> None:
    body = CONV + "s = Shape(c)\n n = Slice(s, nought, two)\n h = Concat<axis = 0>(n, rest)\n r = Reshape(c, h)\n"
    body += " y = Transpose<perm = [0,2,1]>(r)"
    numbers = {"nought": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    made, _ = fuse(rows(body), FEEDS, WEIGHTS | numbers)
    assert ops(made) == [*PARTS, "Add"]


def test_inside_a_branch() -> None:
    constants = "w = Constant<value = float[2,1,4,4] {" + ", ".join(map(str, range(32))) + "}>()\n "
    body = "c = Conv<strides = [4,4]>(x, w)\n z = Transpose<perm = [0,2,3,1]>(c)"
    text = (
        "(float[b,1,8,8] x, bool q) => (float[b,s,t,o] y) { " + constants + "y = If(q) <then_branch = g1 () => (float[b,s,t,o] z) {"
        f" {body} }}, else_branch = h () => (float[b,s,t,o] u) {{ u = Identity(x) }}> }}"
    )
    made, done = fuse(text, {"x": normal(2, 1, 8, 8), "q": np.array(True)})
    assert done.fusions[NAME] == 1 and "Conv" not in ops(made)


# --- what is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "why,body,changed",
    [
        ("it has 3 groups", CONV.replace("strides", "group = 3, strides") + LAST, {"w": normal(12, 1, 4, 4), "d": normal(12)}),
        ("its windows have 12 numbers, too few for tensor cores", CONV.replace("4,4", "2,2") + LAST, {"w": normal(16, 3, 2, 2)}),
        ("its weight is computed", "v = Neg(w)\n c = Conv<strides = [4,4]>(x, v)\n " + LAST, {}),
        ("its windows do not fill the image, or reach beyond it", CONV.replace("4,4", "5,4") + LAST, {"w": normal(16, 3, 5, 4)}),
        ("its windows do not fill the image, or reach beyond it",
         CONV.replace("strides", 'auto_pad = "SAME_LOWER", strides').replace("4,4", "5,4") + LAST, {"w": normal(16, 3, 5, 4)}),
        ("its windows do not fill the image, or reach beyond it", CONV.replace("strides", "pads = [2,2,2,2], strides") + LAST, {}),
        ("its result is read channels first", CONV + "y = Relu(c)", {}),
        ("its result is read channels first", CONV + "y = Transpose<perm = [0,3,2,1]>(c)", {}),
        ("its result is read channels first", CONV + f"r = Relu(c)\n y = {TURN}(r)", {}),
        ("its result is read by others, too", CONV + f"z = ReduceMax<keepdims = 0>(c)\n t = {TURN}(c)\n y = Add(t, z)", {}),
        ("its result is read by others, too", CONV + f"t = {TURN}(c)\n u = {TURN}(c)\n y = Add(t, u)", {}),
    ],
    ids=["groups", "small", "computed", "rest", "rest padded", "padded", "first", "turned", "between", "reader", "readers"],
)  # fmt: skip
def test_images_that_are_left(why: str, body: str, changed: Arrays) -> None:
    left(why, graph(body), used(body.replace("Neg(w)", "Neg(x, w)"), WEIGHTS | dict(changed)))


@pytest.mark.parametrize(
    "why,body,flat",
    [
        ("its result is read channels first", ROWS, [0, 32, -1]),
        ("its result is read channels first", ROWS.replace("0,2,1", "2,0,1"), [0, 16, -1]),
        ("its result is read channels first", "r = Reshape(c, flat)\n y = Relu(r)", [0, 16, -1]),
        ("its result is read by others, too", ROWS.replace("y =", "t =") + "\n z = Relu(r)\n y = MatMul(t, z)", [0, 16, -1]),
    ],
    ids=["other axes", "turned", "first", "reader"],
)  # fmt: skip
def test_rows_that_are_left(why: str, body: str, flat: list[int]) -> None:
    left(why, rows(CONV + body), WEIGHTS | {"flat": np.array(flat)})


@pytest.mark.parametrize(
    "why,x,y",
    [("the size of its image is not known", "float[b,3,h,12] x", "float[b,s,t,o] y"),
     ("its result is read by others, too", "float[b,3,8,12] x", "float[b,s,t,o] y, float[b,o,s,t] c")],
    ids=["dynamic", "result"],
)  # fmt: skip
def test_models_that_are_left(why: str, x: str, y: str) -> None:
    left(why, graph(CONV + LAST, x, y), WEIGHTS)
    if "c" in y.split()[-1]:
        left(why, graph(CONV + "s = Shape(c)\n" + LAST, x, "float[b,s,t,o] y, int64[4] s"), WEIGHTS)


def left(why: str, text: str, weights: Arrays) -> None:
    made, done = fuse(text, FEEDS, weights)
    assert "Conv" in ops(made) and NAME not in done.fusions
    assert {reason for fusion, reason in reasons(done) if fusion == NAME} == {why}


def test_many_channels_are_left_to_the_convolution() -> None:
    body = "c = Conv<strides = [2,2]>(x, w)\n " + LAST
    made, done = fuse(graph(body, "float[b,8,8,12] x"), {"x": normal(2, 8, 8, 12)}, {"w": normal(16, 8, 2, 2)})
    assert ops(made) == ["Conv", "Transpose"]
    assert reasons(done) == {(NAME, "its input has 8 channels, enough for tensor cores as it is")}


@pytest.mark.parametrize(
    "kernel,attributes",
    [((4, 4), "strides = [2,2]"), ((2, 2), "strides = [4,4]"), ((4, 4), "dilations = [1,2], strides = [4,4]"),
     ((4, 4), "group = 1"), ((1, 1), "strides = [1,1]")],
    ids=["overlap", "gaps", "dilated", "every pixel", "single pixels"],
)  # fmt: skip
def test_other_convolutions_are_none(kernel: tuple[int, int], attributes: str) -> None:
    body = f"c = Conv<{attributes}>(x, w)\n {LAST}"
    made, done = fuse(graph(body, "float[b,7,8,12] x"), {"x": normal(2, 7, 8, 12)}, {"w": normal(16, 7, *kernel)})
    assert ops(made) == ["Conv", "Transpose"] and not reasons(done) and not done.fusions


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_types_are_left(kind: str) -> None:
    text = graph(CONV + LAST, f"{kind}[b,3,8,12] x", f"{kind}[b,s,t,o] y")
    dtype = {"double": np.float64, "float16": np.float16}[kind]
    made = build(text, {name: array.astype(dtype) for name, array in WEIGHTS.items()})
    done = prepare(made, target="cuda")
    assert ops(made) == ["Conv", "Transpose"] and not done.fusions


@pytest.mark.parametrize("target", ["portable", "tensorrt", "cpu", "web", "coreml"])
def test_other_targets_keep_the_convolution(target: str) -> None:
    made, done = fuse(graph(CONV + LAST), FEEDS, WEIGHTS, target=target)
    assert ops(made) == ["Conv", "Transpose"] and not done.fusions and not done.refused


def test_twice_changes_nothing() -> None:
    made, _ = fuse(rows(CONV + ROWS), FEEDS, WEIGHTS | FLAT)
    before = list(ir.to_proto(made).graph.node)
    assert not prepare(made, target="cuda").fusions
    assert list(ir.to_proto(made).graph.node) == before


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ir.save(build(rows(CONV + ROWS.replace("y = T", "[turn] y = T")), WEIGHTS | FLAT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_its_plan_is_replayed(path: Path) -> None:
    result = halfconv.convert(path, path.with_name("h.onnx"), target="cuda", samples=[FEEDS])
    assert [node.op_type for node in onnx.load(result.output).graph.node] == ["Cast", *PARTS, "Add", "Cast"]
    assert result.drift is not None and result.drift.passed and result.plan is not None
    halfconv.convert(path, path.with_name("again.onnx"), plan=result.plan)
    assert path.with_name("again.onnx").read_bytes() == result.output.read_bytes()


@pytest.mark.parametrize(
    "rule,said",
    [({"block_nodes": ["patch"]}, "--block-node patch"), ({"block_ops": ["Conv"]}, "--block-op Conv"),
     ({"block_nodes": ["turn"]}, "--block-node turn")],
    ids=["node", "operator", "transpose"],
)  # fmt: skip
def test_what_a_rule_names_is_not_fused(rule: dict[str, Any], said: str, path: Path) -> None:
    result = halfconv.convert(path, path.with_name("h.onnx"), target="cuda", samples=[FEEDS], **rule)
    made = onnx.load(result.output)
    assert f"{NAME} is not fused: {said} names what it would take up" in result.warnings
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    (conv,) = [node for node in made.graph.node if node.op_type == "Conv"]
    assert (kinds[conv.input[1]] == onnx.TensorProto.FLOAT) == ("turn" not in said)
    assert "user-block" in {entry.rule for entry in result.fp32}


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("key", ["vit_ts", "vit_dynamo", "timm_vit_ts", "timm_vit_dynamo", "convnext_ts", "convnext_dynamo"])
def test_exported_models_begin_with_a_product(key: str, kernels: bool, tmp_path: Path) -> None:
    path, samples = exports.make(key, tmp_path)
    result = halfconv.convert(path, tmp_path / "half.onnx", target="cuda", samples=samples, kernels=kernels)
    assert result.check is not None and result.check.loaded and result.drift is not None and result.drift.passed
    made = onnx.load(result.output).graph
    readers = {name: node for node in reversed(made.node) for name in node.input if node.op_type != "Shape"}
    node, found = readers["pixel_values"], []
    while node.op_type not in ("LayerNormalization", "LayerNorm", "Concat"):
        found.append(node.op_type)
        node = readers[node.output[0]]
    assert found == ["Cast", *(["Reshape", "Transpose", "Reshape", "Linear"] if kernels else [*PARTS, "Add"])]
    assert {node.domain for node in made.node if node.op_type == "Linear"} <= {DOMAIN}
