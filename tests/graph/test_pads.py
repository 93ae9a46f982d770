"""A Pad with zeros goes into the convolution behind it: in which forms, that the answer stays, and why others are left."""

from __future__ import annotations

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
from tests.graph import ops
from tests.graph.test_fusions import Arrays, build, fuse, normal, positive, reasons

NAME = "Pad, Conv"
FEEDS = {"x": normal(2, 3, 8, 9)}
WEIGHTS = {"w": normal(4, 3, 3, 3)}
BORDER = np.array([0, 0, 1, 0, 0, 0, 2, 1])
PAD = "p = Pad(x, b)\n"
CONV = "y = Conv(p, w)"
#: What PyTorch's exporter makes of ``F.pad(x, (0, 1, 1, 2))``.
CHAIN = (
    "z = ConstantOfShape<value = int64[1] {0}>(four)\n c = Concat<axis = 0>(given, z)\n r = Reshape(c, pairs)\n"
    " s = Slice(r, last, first, zero, last)\n t = Transpose<perm = [1,0]>(s)\n f = Reshape(t, last)\n b = Cast<to = 7>(f)\n"
)
LINKS = {
    "four": np.array([4]), "given": np.array([0, 1, 1, 2]), "pairs": np.array([-1, 2]), "last": np.array([-1]),
    "first": np.array([-(2**63) + 1]), "zero": np.array([0]),
}  # fmt: skip


def graph(body: str, x: str = "float[b,3,8,9] x", y: str = "float[b,o,s,t] y") -> str:
    return f"({x}) => ({y}) {{ {body} }}"


def pads(made: ir.Model) -> list[int]:
    (conv,) = [node for node in made.graph if node.op_type == "Conv"]
    return list(conv.attributes["pads"].as_ints())


# --- what is folded -------------------------------------------------------------------------------------------------


@st.composite
def padded(draw: st.DrawFn) -> tuple[str, Arrays, Arrays, int, list[int]]:
    """Text of a Pad and a convolution, its inputs and weights, the opset, and the pads that the convolution gets."""
    axes, opset = draw(st.integers(1, 3)), draw(st.sampled_from([9, 11, 13, 18, 21]))

    def each(low: int, high: int, count: int = axes) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    groups, channels, out = draw(st.sampled_from([(1, 3, 2), (2, 4, 6), (4, 4, 4)]))
    kernel, added, own = each(1, 3), each(0, 3, 2 * axes), each(0, 2, 2 * axes)
    weights: dict[str, np.ndarray] = {"w": positive(out, channels // groups, *kernel)}
    kind = draw(st.sampled_from(["pads", "none", "VALID"]))
    options = [f"group = {groups}", f"strides = {each(1, 3)}", f"dilations = {each(1, 2)}"]
    options += {"pads": [f"pads = {own}"], "none": [], "VALID": ['auto_pad = "VALID"']}[kind]
    whole = [0, 0, *added[:axes], 0, 0, *added[axes:]]
    number = draw(st.sampled_from(["", "absent", "zero"]))
    how, inputs = ['mode = "constant"'] * draw(st.booleans()), ["x"]
    if opset < 11:
        how += [f"pads = {whole}"] + ["value = 0.0"] * bool(number)
    else:
        weights["n"] = np.array(0, np.float32)
        inputs += ["b"] + ([{"absent": "", "zero": "n"}[number]] if number else [])
        if opset >= 18 and draw(st.booleans()):
            order = draw(st.permutations(range(axes)))
            whole = [added[axis] for axis in order] + [added[axis + axes] for axis in order]
            weights["a"] = np.array([axis + 2 - draw(st.sampled_from([0, axes + 2])) for axis in order])
            inputs += [""] * (3 - len(inputs)) + ["a"]
        weights["b"] = np.array(whole)
    while inputs[-1] == "":
        inputs.pop()
    bias = draw(st.booleans())
    weights |= {"d": positive(out)} if bias else {}
    how = ["<" + ", ".join(how) + ">"] if how else []
    body = f"p = Pad{''.join(how)}({', '.join(inputs)})\n y = Conv<{', '.join(options)}>(p, w{', d' * bias})"
    sizes = each(5, 8)
    text = graph(body, f"float[n,{channels},{','.join(map(str, sizes))}] x", f"float[n,{','.join('oabc'[: axes + 1])}] y")
    read = {name: array for name, array in weights.items() if name in "wd" or name in inputs}
    wanted = [a + b for a, b in zip(added, own, strict=True)] if kind == "pads" else added
    return text, {"x": positive(2, channels, *sizes)}, read, opset, wanted


@given(padded())
@settings(max_examples=80, deadline=None)
def test_zeros_around_an_image_go_into_the_convolution(case: tuple[str, Arrays, Arrays, int, list[int]]) -> None:
    text, feeds, weights, opset, wanted = case
    made, done = fuse(text, feeds, weights, opset=opset)
    assert ops(made) == ["Conv"] and done.fusions == {NAME: 1} and pads(made) == wanted
    assert "auto_pad" not in next(iter(made.graph)).attributes and made.opset_imports[""] == opset


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_what_pytorch_computes_its_pads_by_goes_with_it(target: str) -> None:
    made, done = fuse(graph(CHAIN + PAD + CONV), FEEDS, WEIGHTS | LINKS, target=target)
    assert ops(made) == ["Conv"] and pads(made) == [1, 0, 2, 1] and done.fusions == {"Constant": 1, NAME: 1}
    assert set(made.graph.initializers) == {"w"}
    assert [*made.graph.outputs[0].shape][2:] == [9, 8], "sizes behind it are known now"


def test_pads_that_known_sizes_decide() -> None:
    body = (
        "h = Shape<start = 2, end = 3>(x)\n e = Sub(h, seven)\n q = Concat<axis = 0>(none, e, zero, none, one)\n"
        " p = Pad(x, q)\n y = Conv(p, w)"
    )
    held = {"seven": np.array([7]), "none": np.array([0, 0]), "zero": np.array([0]), "one": np.array([0, 1])}
    made, done = fuse(graph(body), FEEDS, WEIGHTS | held)
    assert ops(made) == ["Conv"] and pads(made) == [1, 0, 0, 1] and done.fusions == {NAME: 1}


def test_the_number_may_be_computed() -> None:
    body = "n = Cast<to = 1>(i)\n p = Pad(x, b, n)\n" + CONV
    made, _ = fuse(graph(body), FEEDS, WEIGHTS | {"b": BORDER, "i": np.array(0)})
    assert ops(made) == ["Conv"] and pads(made) == [1, 0, 2, 1]


def test_paddings_of_the_first_opset() -> None:
    made = build(graph("p = Pad<paddings = [0,0,1,0,0,0,2,1]>(x)\n" + CONV), WEIGHTS, opset=1)
    assert prepare(made, target="cuda").fusions == {NAME: 1} and ops(made) == ["Conv"] and pads(made) == [1, 0, 2, 1]


def test_a_pad_that_adds_nothing_goes() -> None:
    made, _ = fuse(graph(PAD + CONV), FEEDS, WEIGHTS | {"b": np.zeros(8, np.int64)})
    assert ops(made) == ["Conv"] and pads(made) == [0, 0, 0, 0]


def test_a_weight_that_is_computed_is_no_obstacle() -> None:
    made, _ = fuse(graph(PAD + "v = Neg(w)\n y = Conv(p, v)"), FEEDS, WEIGHTS | {"b": BORDER})
    assert sorted(ops(made)) == ["Conv", "Neg"]


def test_it_comes_before_what_is_folded_behind_the_convolution() -> None:
    body = PAD + "c = Conv(p, w)\n i = Identity(c)\n a = Add(i, e)\n y = BatchNormalization(a, g, g, m, v)"
    weights = {"b": BORDER, "e": normal(4, 1, 1), "g": normal(4), "m": normal(4), "v": np.ones(4, np.float32)}
    made, done = fuse(graph(body), FEEDS, WEIGHTS | weights)
    assert ops(made) == ["Conv"] and pads(made) == [1, 0, 2, 1] and "Conv, BatchNormalization" in done.fusions


def test_both_may_be_in_a_branch() -> None:
    body = (
        "b = Constant<value_ints = [0,0,1,1,0,0,1,1]>()\n v = Constant<value = float[1,3,1,1] {1.0, 2.0, 3.0}>()\n"
        " y = If(k) <then_branch = g () => (float[n,o,s,t] z) { r = Pad(x, b)\n q = Conv(r, v)\n z = Relu(q) },"
        " else_branch = h () => (float[n,o,s,t] w) { w = Neg(x) }>"
    )
    made, done = fuse(graph(body, "float[b,3,8,9] x, bool k"), FEEDS | {"k": np.array(True)})
    assert done.fusions == {NAME: 1} and "Pad" not in ops(made)


# --- what is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "why,body,border",
    [
        ("'p' is read by others, too", PAD + "c = Conv(p, w)\n m = ReduceMax(p)\n y = Add(c, m)", BORDER),
        ("'p' is read by others, too", PAD + "c = Conv(p, w)\n e = Conv(p, w)\n y = Add(c, e)", BORDER),
        ("it pads by mode reflect, not with zeros", 'p = Pad<mode = "reflect">(x, b)\n' + CONV, BORDER),
        ("it pads by mode edge, not with zeros", 'p = Pad<mode = "edge">(x, b)\n' + CONV, BORDER),
        ("it pads with 0.5, not with zeros", "n = Constant<value_float = 0.5>()\n p = Pad(x, b, n)\n" + CONV, BORDER),
        ("it pads with -inf, not with zeros", "n = Constant<value = float {-inf}>()\n p = Pad(x, b, n)\n" + CONV, BORDER),
        ("the number that it pads with is computed", "n = ReduceMin<keepdims = 0>(x)\n p = Pad(x, b, n)\n" + CONV, BORDER),
        ("it cuts the image, where it pads by less than 0", PAD + CONV, np.array([0, 0, 1, 1, 0, 0, 1, -1])),
        ("it pads along other axes than those of the image", PAD + CONV, np.array([0, 0, 1, 1, 1, 0, 1, 1])),
        ("the convolution's auto_pad SAME_UPPER depends on the size of the padded image",
         PAD + 'y = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(p, w)', BORDER),
    ],
    ids=["another reader", "two convolutions", "reflect", "edge", "a half", "infinity", "a minimum", "cut", "batch", "same"],
)  # fmt: skip
def test_what_is_left_has_a_reason(why: str, body: str, border: np.ndarray) -> None:
    made, done = fuse(graph(body), FEEDS, WEIGHTS | {"b": border})
    assert "Pad" in ops(made) and NAME not in done.fusions
    assert {reason for fusion, reason in reasons(done) if fusion == NAME} == {why}


@pytest.mark.parametrize("border", [[0, 2, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 2, 1, 1]], ids=["before", "behind"])
def test_channels_that_are_padded_are_left(border: list[int]) -> None:
    made, done = fuse(graph(PAD + CONV, "float[b,1,8,9] x"), {"x": normal(2, 1, 8, 9)}, WEIGHTS | {"b": np.array(border)})
    assert ops(made) == ["Pad", "Conv"] and reasons(done) == {(NAME, "it pads along other axes than those of the image")}


@pytest.mark.parametrize("inputs,call", [("int64[8] b", "x, b"), ("int64[4] b, int64[2] a", "x, b, , a")], ids=["pads", "axes"])
def test_pads_that_an_input_decides_are_left(inputs: str, call: str) -> None:
    feeds = {"b": np.array([0, 0, 1, 1, 0, 0, 1, 1]) if "a" not in call else np.ones(4, np.int64), "a": np.array([2, 3])}
    feeds = FEEDS | {name: array for name, array in feeds.items() if f" {name}" in inputs}
    made, done = fuse(graph(f"p = Pad({call})\n{CONV}", f"float[b,3,8,9] x, {inputs}"), feeds, WEIGHTS, opset=18)
    assert ops(made) == ["Pad", "Conv"] and reasons(done) == {(NAME, "how much it pads is computed")}


def test_a_padded_value_that_is_a_result_is_left() -> None:
    made, done = fuse(graph(PAD + CONV, y="float[b,o,s,t] y, float[b,c,u,v] p"), FEEDS, WEIGHTS | {"b": BORDER})
    assert ops(made) == ["Pad", "Conv"] and reasons(done) == {(NAME, "'p' is read by others, too")}


@pytest.mark.parametrize(
    "body",
    ["y = MaxPool<kernel_shape = [3,3]>(p)", "y = AveragePool<kernel_shape = [3,3]>(p)",
     "v = Transpose<perm = [1,0,2,3]>(w)\n y = ConvTranspose(p, v)", "y = Relu(p)"],
    ids=["MaxPool", "AveragePool", "ConvTranspose", "Relu"],
)  # fmt: skip
def test_other_readers_are_no_case_of_it(body: str) -> None:
    weights = {"b": BORDER} | (WEIGHTS if "w" in body else {})
    made, done = fuse(graph(PAD + body), FEEDS, weights)
    assert "Pad" in ops(made) and not done.fusions and not done.refused


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_types_are_left(kind: str) -> None:
    dtype = {"double": np.float64, "float16": np.float16}[kind]
    text = graph(PAD + CONV, f"{kind}[b,3,8,9] x", f"{kind}[b,o,s,t] y")
    made = build(text, {"w": WEIGHTS["w"].astype(dtype), "b": BORDER})
    assert not prepare(made, target="cuda").fusions and ops(made) == ["Pad", "Conv"]


@pytest.mark.parametrize("border", [[0, 0, 1, 0, 0, 0], [0, 0, 2**62, 0, 0, 0, 2**62, 1], [0] * 10], ids=["few", "far", "many"])
def test_a_model_that_cannot_run_is_left_to_the_checker(border: list[int]) -> None:
    made = build(graph(PAD + CONV), WEIGHTS | {"b": np.array(border)})
    assert not prepare(made, target="cuda").fusions and ops(made) == ["Pad", "Conv"]


@pytest.mark.parametrize("target", ["portable", "cpu", "web", "coreml"])
def test_other_targets_keep_the_pad(target: str) -> None:
    made, done = fuse(graph(PAD + CONV), FEEDS, WEIGHTS | {"b": BORDER}, target=target)
    assert ops(made) == ["Pad", "Conv"] and not done.fusions and not done.refused


def test_twice_changes_nothing() -> None:
    made, _ = fuse(graph(CHAIN + PAD + CONV), FEEDS, WEIGHTS | LINKS)
    before = ir.to_proto(made).SerializeToString()
    assert not prepare(made, target="cuda").fusions and ir.to_proto(made).SerializeToString() == before


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    body = (CHAIN + "[pad] p = Pad(x, b)\n [conv] e = Conv(p, w)\n y = Relu(e)").replace("z = C", "[zeros] z = C")
    ir.save(build(graph(body), WEIGHTS | LINKS), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_its_plan_is_replayed_and_drift_and_promises_stay(path: Path) -> None:
    result = halfconv.convert(path, path.with_name("h.onnx"), target="cuda", samples=[FEEDS])
    assert [node.op_type for node in onnx.load(result.output).graph.node] == ["Cast", "Conv", "Relu", "Cast"]
    plain = halfconv.convert(path, path.with_name("p.onnx"), target="cuda", samples=[FEEDS], fuse=False)
    drifts = [made.drift.outputs[0].measures.rel_l2 for made in (result, plain) if made.drift is not None]
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-6)
    shapes = [ir.load(file).graph.outputs[0].shape for file in (path, result.output)]
    assert shapes[0] == shapes[1] and result.check is not None and result.check.loaded and result.plan is not None
    halfconv.convert(path, path.with_name("again.onnx"), plan=result.plan)
    assert path.with_name("again.onnx").read_bytes() == result.output.read_bytes()


@pytest.mark.parametrize(
    "rule,left,said",
    [({"block_nodes": ["pad"]}, NAME, "--block-node pad"), ({"block_nodes": ["conv"]}, NAME, "--block-node conv"),
     ({"block_ops": ["Pad"]}, NAME, "--block-op Pad"), ({"allow_nodes": ["conv"]}, NAME, "--allow-node conv"),
     ({"block_nodes": ["zeros"]}, "Constant", "--block-node zeros")],
    ids=["pad", "convolution", "operator", "allowed", "what computes the pads"],
)  # fmt: skip
def test_what_a_rule_names_is_not_fused(rule: dict[str, Any], left: str, said: str, path: Path) -> None:
    result = halfconv.convert(path, path.with_name("h.onnx"), target="cuda", samples=[FEEDS], **rule)
    made = onnx.load(result.output).graph
    assert f"{left} is not fused: {said} names what it would take up" in result.warnings
    assert {"Pad", "Conv"} <= {node.op_type for node in made.node}
    if "allow" not in said and left == NAME:
        assert "user-block" in {entry.rule for entry in result.fp32}
