"""Fusing decomposed LayerNorms: what is one, and the near misses that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.graph.names import Names
from halfconv.graph.norms import FuseLayerNormPass
from tests.graph import model, ops, prepared
from tests.runtime_helpers import run

WEIGHTS = "<float[4] g = {1, 2, 3, 4}, float[4] b = {0.5, 0.25, 0, 1}, float e = {1e-5}, float two = {2}>"
BODY = (
    "[mean] m = ReduceMean <axes = [-1]> (x)\n [sub] d = Sub(x, m)\n [pow] q = Pow(d, two)\n"
    " [var] v = ReduceMean <axes = [-1]> (q)\n [eps] a = Add(v, e)\n [root] r = Sqrt(a)\n"
    " [div] n = Div(d, r)\n [mul] s = Mul(n, g)\n [add] y = Add(s, b)"
)
X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def norm(*changes: tuple[str, str], inputs: str = "float[2,3,4] x", outputs: str = "float[2,3,4] y", weights: str = WEIGHTS) -> str:
    """Return the text of a LayerNorm with some parts exchanged."""
    body = BODY
    for old, new in changes:
        assert old in body, old
        body = body.replace(old, new)
    return f"({inputs}) => ({outputs}) {weights} {{ {body} }}"


def fused(graph: str, **options: object) -> bool:
    return "LayerNormalization" in ops(prepared(graph, **options))


def same_answer(graph: str, *, opset: int = 17) -> None:
    """The fused model gives what the decomposed one gives."""
    before, after = model(graph, opset=opset), prepared(graph, opset=opset)
    want, got = (run(ir.to_proto(made), [{"x": X}]) for made in (before, after))
    assert want.loads and got.loads, (want.failure, got.failure)
    for name, value in want.outputs[0].items():
        np.testing.assert_allclose(got.outputs[0][name], value, rtol=1e-4, atol=1e-5)


# --- what is one ----------------------------------------------------------------------------------------------------


TWICE = ("q = Pow(d, two)", "d2 = Sub(x, m)\n q = Pow(d2, two)")
TWO_MEANS = ("q = Pow(d, two)", "m2 = ReduceMean <axes = [-1]> (x)\n d2 = Sub(x, m2)\n q = Pow(d2, two)")


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("Pow(d, two)", "Mul(d, d)"),),
        (("Add(v, e)", "Add(e, v)"),),
        (("Mul(n, g)", "Mul(g, n)"), ("Add(s, b)", "Add(b, s)")),
        (("[mean] m = ReduceMean <axes = [-1]>", "[mean] m = ReduceMean <axes = [2]>"),),
        (TWICE,),
        (TWO_MEANS,),
    ],
)
def test_a_layer_norm_becomes_one_operator(changes: tuple[tuple[str, str], ...]) -> None:
    graph = norm(*changes)
    assert ops(prepared(graph)) == ["LayerNormalization"]
    same_answer(graph)


def test_the_operator_keeps_the_last_nodes_name_the_output_and_the_epsilon() -> None:
    made = prepared(norm())
    node = made.graph[0]
    assert (node.name, node.outputs[0].name) == ("add", "y")
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert [value.name for value in node.inputs if value is not None] == ["x", "g", "b"]
    assert node.outputs[0].dtype == ir.DataType.FLOAT and Names.of(made).value[node.outputs[0]] == "y"


def test_two_norms_are_two_operators() -> None:
    second = BODY.replace(" x", " z").replace("(x", "(y").replace("[", "[_").replace("<axes = [_-1]>", "<axes = [-1]>")
    for name in "mdqvarns":
        second = second.replace(f" {name} =", f" {name}_ =").replace(f"({name})", f"({name}_)").replace(f"({name},", f"({name}_,")
        second = second.replace(f", {name})", f", {name}_)")
    second = second.replace(" y = Add", " y2 = Add")
    graph = f"(float[2,3,4] x) => (float[2,3,4] y2) {WEIGHTS} {{ {BODY}\n {second} }}"
    assert ops(prepared(graph)) == ["LayerNormalization"] * 2
    same_answer(graph)


def test_a_norm_inside_a_branch() -> None:
    graph = (
        f"(float[2,3,4] x, bool c) => (float[2,3,4] z) {WEIGHTS} {{ z = If(c) <then_branch = g1 () => (float[2,3,4] y)"
        f" {{ {BODY} }}, else_branch = h () => (float[2,3,4] o) {{ o = Relu(x) }}> }}"
    )
    assert sorted(ops(prepared(graph))) == ["If", "LayerNormalization", "Relu"]


def test_axes_as_an_input() -> None:
    axes = "<int64[1] k = {-1}, " + WEIGHTS[1:]
    changes = (
        ("m = ReduceMean <axes = [-1]> (x)", "m = ReduceMean(x, k)"),
        ("v = ReduceMean <axes = [-1]> (q)", "v = ReduceMean(q, k)"),
    )
    graph = norm(*changes, weights=axes)
    assert fused(graph, opset=18)
    same_answer(graph, opset=18)


@pytest.mark.parametrize(
    "opset,after,want", [(13, 17, True), (16, 17, True), (11, 17, True), (12, 17, True), (9, 17, True), (7, 7, False)]
)
def test_the_opset_is_raised_where_that_is_safe(opset: int, after: int, want: bool) -> None:
    made = prepared(norm(), opset=opset)
    assert (made.opset_imports[""], "LayerNormalization" in ops(made)) == (after, want)


def test_a_model_whose_opset_cannot_be_raised_keeps_its_norms() -> None:
    roi = "(float[1,1,8,8] im, float[k,4] ro, int64[k] ri, float[2,3,4] x) => (float[2,3,4] y, float[k,1,1,1] z)"
    graph = f"{roi} {WEIGHTS} {{ {BODY}\n z = RoiAlign(im, ro, ri) }}"
    made = prepared(graph, opset=15)
    assert made.opset_imports[""] == 15 and "Sqrt" in ops(made)


def test_without_fusing_nothing_changes() -> None:
    assert "Sqrt" in ops(prepared(norm(), fuse=False))


_RECIPROCAL = ("[div] n = Div(d, r)", "i = Reciprocal(r)\n n = Mul(d, i)")
_SPREAD = (
    ("[div] n = Div(d, r)\n [mul] s = Mul(n, g)\n [add] y = Add(s, b)",
     "i = Reciprocal(r)\n w = Mul(i, g)\n p = Mul(x, w)\n o = Mul(m, w)\n t = Sub(b, o)\n [add] y = Add(p, t)"),
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        (_RECIPROCAL,),
        (("[div] n = Div(d, r)", "i = Reciprocal(r)\n n = Mul(i, d)"),),
        (("[div] n = Div(d, r)", "i = Div(one, r)\n n = Mul(d, i)"),),
        (("[root] r = Sqrt(a)", "[root] r = Pow(a, half)"),),
        (("[root] r = Sqrt(a)\n [div] n = Div(d, r)", "r = Pow(a, minus)\n n = Mul(d, r)"),),
        (("[root] r = Sqrt(a)", "[root] r = Pow(a, half)"), _RECIPROCAL),
        (_RECIPROCAL, TWICE),
        (_RECIPROCAL, TWO_MEANS),
        _SPREAD,
        (*_SPREAD, ("Mul(i, g)", "Mul(g, i)"), ("Mul(x, w)", "Mul(w, x)"), ("Mul(m, w)", "Mul(w, m)"), ("Add(p, t)", "Add(t, p)")),
    ],
)
def test_a_root_applied_in_another_way_is_a_layer_norm(changes: tuple[tuple[str, str], ...]) -> None:
    graph = norm(*changes, weights=WEIGHTS[:-1] + ", float one = {1}, float half = {0.5}, float minus = {-0.5}>")
    assert ops(prepared(graph)) == ["LayerNormalization"]
    same_answer(graph)


_NO_BIAS = ("[mul] s = Mul(n, g)\n [add] y = Add(s, b)", "[mul] y = Mul(n, g)")
_PLAIN = ("[div] n = Div(d, r)\n [mul] s = Mul(n, g)\n [add] y = Add(s, b)", "[div] y = Div(d, r)")
_PLAIN_PRODUCT = ("[div] n = Div(d, r)\n [mul] s = Mul(n, g)\n [add] y = Add(s, b)", "i = Reciprocal(r)\n y = Mul(d, i)")


@pytest.mark.parametrize(
    "graph,rest",
    [
        (norm(_NO_BIAS), []),
        (norm(_PLAIN), []),
        (norm(_PLAIN_PRODUCT), []),
        (norm(("[add] y = Add(s, b)", "[id] y = Identity(s)")), ["Identity"]),
        (norm(("Add(s, b)", "Sub(s, b)")), ["Sub"]),
        (norm(weights=WEIGHTS.replace("float[4] g = {1, 2, 3, 4}", "float[3,1] g = {1, 2, 3}")), ["Mul", "Add"]),
        (norm(weights=WEIGHTS.replace("float[4] g = {1, 2, 3, 4}", "float g = {2}")), ["Mul", "Add"]),
        (norm(("[add]", "z = Relu(n)\n [add]"), outputs="float[2,3,4] y, float[2,3,4] z"), ["Mul", "Relu", "Add"]),
        (norm(outputs="float[2,3,4] y, float[2,3,4] n"), ["Mul", "Add"]),
        (norm(outputs="float[2,3,4] y, float[2,3,4] s"), ["Add"]),
    ],
    ids=["no beta", "neither", "neither, product", "identity", "subtracted", "other axis", "scalar", "read", "output", "scaled"],
)
def test_a_norm_without_all_of_gamma_and_beta(graph: str, rest: list[str]) -> None:
    assert ops(prepared(graph)) == ["LayerNormalization", *rest]
    same_answer(graph)


def test_norms_without_gamma_share_one() -> None:
    second = (
        "c = Tanh(y)\n m2 = ReduceMean <axes = [-1]> (c)\n d2 = Sub(c, m2)\n q2 = Pow(d2, two)\n"
        " v2 = ReduceMean <axes = [-1]> (q2)\n a2 = Add(v2, e)\n r2 = Sqrt(a2)\n z = Div(d2, r2)"
    )
    graph = norm(_PLAIN, outputs="float[2,3,4] z")[:-1] + f" {second} }}"
    made = prepared(graph)
    assert ops(made) == ["LayerNormalization", "Tanh", "LayerNormalization"]
    assert [value.shape for value in made.graph.initializers.values()] == [(4,)]


# --- RMSNorm --------------------------------------------------------------------------------------------------------

RMS = (
    "q = Pow(x, two)\n v = ReduceMean(q, last)\n a = Add(v, e)\n r = Sqrt(a)\n i = Reciprocal(r)\n n = Mul(x, i)\n y = Mul(g, n)"
)
RMS_WEIGHTS = WEIGHTS[:-1] + ", float one = {1}, float minus = {-0.5}, int64[1] last = {-1}>"
APPLIED = "r = Sqrt(a)\n i = Reciprocal(r)\n n = Mul(x, i)"


def rms(*changes: tuple[str, str], outputs: str = "float[2,3,4] y") -> str:
    """Return the text of an RMSNorm with some parts exchanged."""
    body = RMS
    for old, new in changes:
        assert old in body, old
        body = body.replace(old, new)
    return f"(float[2,3,4] x) => ({outputs}) {RMS_WEIGHTS} {{ {body} }}"


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("Pow(x, two)", "Mul(x, x)"), ("Mul(g, n)", "Mul(n, g)"), ("Add(v, e)", "Add(e, v)")),
        ((APPLIED, "r = Sqrt(a)\n n = Div(x, r)"),),
        ((APPLIED, "r = Sqrt(a)\n i = Div(one, r)\n n = Mul(i, x)"),),
        ((APPLIED, "i = Pow(a, minus)\n n = Mul(x, i)"),),
        (("n = Mul(x, i)\n y = Mul(g, n)", "y = Mul(x, i)"),),
    ],
)
def test_an_rms_norm_of_opset_23_becomes_one_operator(changes: tuple[tuple[str, str], ...]) -> None:
    graph = rms(*changes)
    assert ops(prepared(graph, opset=23)) == ["RMSNormalization"]
    same_answer(graph, opset=23)


@pytest.mark.parametrize(
    "graph",
    [
        rms(("Pow(x, two)", "Mul(x, g)")),
        rms(("Mul(x, i)", "Mul(q, i)")),
        rms(("Reciprocal(r)", "Neg(r)")),
        rms(outputs="float[2,3,4] y, float[2,3,1] v"),
        rms(outputs="float[2,3,4] y, float[2,3,1] i"),
    ],
)
def test_what_is_no_rms_norm(graph: str) -> None:
    assert "RMSNormalization" not in ops(prepared(graph, opset=23))


def test_an_older_opset_has_no_operator_for_it() -> None:
    made = prepared(rms(), opset=22)
    assert made.opset_imports[""] == 22 and "Sqrt" in ops(made)


# --- near misses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "why,graph",
    [
        ("the mean is over another axis", norm(("m = ReduceMean <axes = [-1]>", "m = ReduceMean <axes = [1]>"))),
        ("the variance is over another axis", norm(("v = ReduceMean <axes = [-1]>", "v = ReduceMean <axes = [1]>"))),
        ("two axes", norm(("<axes = [-1]> (x)", "<axes = [-2, -1]> (x)"), ("<axes = [-1]> (q)", "<axes = [-2, -1]> (q)"))),
        ("all axes", norm(("<axes = [-1]> (x)", "(x)"), ("<axes = [-1]> (q)", "(q)"))),
        ("a negative axis that is not the last", norm(("m = ReduceMean <axes = [-1]>", "m = ReduceMean <axes = [-2]>"))),
        ("a cube", norm(weights=WEIGHTS.replace("two = {2}", "two = {3}"))),
        ("a product of different values", norm(("Pow(d, two)", "Mul(d, x)"))),
        ("the mean of another input", norm(("(x)", "(z)"), inputs="float[2,3,4] x, float[2,3,4] z")),
        ("the numerator of another input", norm(("q = Pow(d, two)", "d2 = Sub(z, m)\n q = Pow(d2, two)"),
                                                inputs="float[2,3,4] x, float[2,3,4] z")),
        ("an epsilon that is computed", norm(("Add(v, e)", "Add(v, f)"), inputs="float[2,3,4] x, float f")),
        ("an epsilon for each element", norm(weights=WEIGHTS.replace("float e = {1e-5}", "float[4] e = {1e-5, 1e-5, 1e-5, 1e-5}"))),
        ("the other way round", norm(("Div(d, r)", "Div(r, d)"))),
        ("mean minus x", norm(("Sub(x, m)", "Sub(m, x)"))),
        ("an input that is not centred", norm(("Pow(d, two)", "Pow(x, two)"))),
        ("neither gamma nor a known size", norm(_PLAIN, inputs="float[2,3,k] x", outputs="float[2,3,k] y")),
        ("an inverse that is divided by", norm(("Div(d, r)", "Div(d, i)"), ("[div]", "i = Reciprocal(r)\n [div]"))),
        ("a root that is multiplied", norm(("Div(d, r)", "Mul(d, r)"))),
        ("the mean of another input is spread", norm(*_SPREAD, ("Mul(m, w)", "Mul(z, w)"),
                                                     inputs="float[2,3,4] x, float[2,3,1] z")),
        ("another input is spread", norm(*_SPREAD, ("Mul(x, w)", "Mul(z, w)"), inputs="float[2,3,4] x, float[2,3,4] z")),
        ("the spread mean is subtracted from", norm(*_SPREAD, ("Sub(b, o)", "Sub(o, b)"))),
        ("the spread weight is read", norm(*_SPREAD, outputs="float[2,3,4] y, float[2,3,4] w")),
        ("somebody reads the variance", norm(outputs="float[2,3,4] y, float[2,3,1] v")),
        ("somebody reads x - mean", norm(("[div]", "z = Relu(d)\n [div]"), outputs="float[2,3,4] y, float[2,3,4] z")),
        ("somebody reads the mean", norm(outputs="float[2,3,4] y, float[2,3,1] m")),
    ],
    ids=lambda value: value if len(value) < 60 else "",
)  # fmt: skip
def test_a_near_miss_stays_as_it_is(why: str, graph: str) -> None:
    made = model(graph)
    onnx.checker.check_model(ir.to_proto(made))
    assert not fused(graph), why


@pytest.mark.parametrize(
    "why,change",
    [
        ("no keepdims", ("v = ReduceMean <axes = [-1]>", "v = ReduceMean <axes = [-1], keepdims = 0>")),
    ],
)
def test_a_mean_that_drops_its_axis_is_no_norm(why: str, change: tuple[str, str]) -> None:
    assert not fused(norm(change, inputs="float[4,4,4] x", outputs="float[4,4,4] y")), why


def test_a_norm_that_a_branch_reads_in_the_middle_stays() -> None:
    graph = (
        f"(float[2,3,4] x, bool c) => (float[2,3,4] y, float[2,3,1] z) {WEIGHTS} {{ {BODY}\n z = If(c) <then_branch = g1 () =>"
        " (float[2,3,1] t) { t = Relu(v) }, else_branch = h () => (float[2,3,1] o) { o = Tanh(v) }> }"
    )
    assert not fused(graph)


def test_an_output_named_like_something_else_keeps_its_readers() -> None:
    graph = norm(outputs="float[2,3,4] y, float[2,3,4] z").replace("[add] y = Add(s, b)", "[add] y = Add(s, b)\n z = Relu(y)")
    made = prepared(graph)
    assert ops(made) == ["LayerNormalization", "Relu"]
    same_answer(graph)


def test_the_pass_counts_what_it_fuses() -> None:
    made = model(norm())
    fuse = FuseLayerNormPass()
    fuse(made)
    assert fuse.count in (0, 1)
    assert fuse.count == ops(made).count("LayerNormalization")


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_only_fp32_norms_are_fused(kind: str) -> None:
    graph = norm().replace("float[", f"{kind}[").replace("float e", f"{kind} e").replace("float two", f"{kind} two")
    if kind == "float16":
        graph = graph.replace("{1, 2, 3, 4}", "{15360, 16384, 16896, 17408}").replace("{0.5, 0.25, 0, 1}", "{0, 0, 0, 0}")
        graph = graph.replace("{1e-5}", "{168}").replace("{2}", "{16384}")
    assert not fused(graph)


def test_fusing_leaves_no_weight_that_nobody_reads() -> None:
    assert set(prepared(norm()).graph.initializers) == {"g", "b"}


# --- what ONNX Runtime fuses by itself ------------------------------------------------------------------------------


def _behind_a_product(*changes: tuple[str, str], inputs: str = "float[2,3,4] x") -> str:
    """A LayerNorm of a half value: its body stays FP32, its scale and bias would be half."""
    weights = WEIGHTS[:-1] + ", float[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}>"
    graph = norm(*changes, inputs=inputs, weights=weights)
    return graph.replace("(x)", "(z)").replace("Sub(x,", "Sub(z,").replace("{ [mean]", "{ z = MatMul(x, w)\n [mean]")


@pytest.mark.parametrize(
    "changes,fuse",
    [
        ((), True),
        ((), False),
        ((("Mul(n, g)", "Mul(n, h)"),), True),
        ((("Add(s, b)", "Add(s, h)"),), True),
    ],
    ids=["fused", "not fused", "computed scale", "computed bias"],
)
def test_a_norm_loads_at_default_optimisation(
    changes: tuple[tuple[str, str], ...], fuse: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """ORT's own LayerNormFusion (from opset 17 on) looks through Casts: a half scale beside an FP32 body is a type error."""
    if not fuse:
        reason = "with --no-fuse ORT takes the half input from behind our Cast beside FP32 weights; reported, and in the profile"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    inputs = "float[2,3,4] x, float[4] h" if changes else "float[2,3,4] x"
    source = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(model(_behind_a_product(*changes, inputs=inputs))), source)
    result = halfconv.convert(source, fuse=fuse, check=False)
    outcome = run(result.output)
    assert outcome.level == "ALL", outcome.stumbled


# --- a root that is squared again -----------------------------------------------------------------------------------

SPECTRUM = "(float[2,4] re, float[2,4] im) => (float[2,4] y) <float two = {2}> {"


@pytest.mark.parametrize(
    "body,cancels",
    [
        ("a = Mul(re, re)\n b = Mul(im, im)\n s = Add(a, b)\n r = Sqrt(s)\n p = Pow(r, two)\n y = Tanh(p)", True),
        ("a = Pow(re, two)\n r = Sqrt(a)\n p = Mul(r, r)\n y = Tanh(p)", True),
        ("s = Add(re, im)\n r = Sqrt(s)\n p = Pow(r, two)\n y = Tanh(p)", False),
        ("a = Mul(re, im)\n r = Sqrt(a)\n p = Pow(r, two)\n y = Tanh(p)", False),
        ("a = Mul(re, re)\n r = Sqrt(a)\n p = Mul(r, im)\n y = Tanh(p)", False),
        ("a = Mul(re, re)\n r = Sqrt(a)\n y = Pow(r, two)", False),
    ],
)
def test_a_root_that_is_squared_again_is_cancelled_where_it_cannot_be_of_a_negative(body: str, cancels: bool) -> None:
    made = prepared(f"{SPECTRUM} {body} }}")
    assert ("Sqrt" not in ops(made)) is cancels


# --- means over all spatial axes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "call"),
    [(17, "ReduceMean <axes = [2, 3]> (x)"), (17, "ReduceMean <axes = [-1, -2], keepdims = 1> (x)"), (18, "ReduceMean (x, axes)")],
)
def test_a_mean_over_all_spatial_axes_is_a_pooling(opset: int, call: str) -> None:
    graph = f"(float[2,3,5,7] x) => (float[2,3,1,1] y) <int64[2] axes = {{2, 3}}> {{ m = {call}\n y = Relu(m) }}"
    before, after = model(graph, opset=opset), prepared(graph, opset=opset)
    assert ops(after) == ["GlobalAveragePool", "Relu"]
    assert after.graph[0].outputs[0].name == "m"
    image = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    want, got = (run(ir.to_proto(made), [{"x": image}]) for made in (before, after))
    np.testing.assert_allclose(got.outputs[0]["y"], want.outputs[0]["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "graph",
    [
        "(float[2,3,5,7] x) => (float[2,3] y) { y = ReduceMean <axes = [2, 3], keepdims = 0> (x) }",
        "(float[2,3,5,7] x) => (float[2,3,5,1] y) { y = ReduceMean <axes = [3]> (x) }",
        "(float[2,3,5,7] x) => (float[2,1,1,1] y) { y = ReduceMean <axes = [1, 2, 3]> (x) }",
        "(float[2,3,5] x) => (float[2,3,1] y) { y = ReduceMean <axes = [2]> (x) }",
        "(double[2,3,5,7] x) => (double[2,3,1,1] y) { y = ReduceMean <axes = [2, 3]> (x) }",
    ],
)
def test_another_mean_is_none(graph: str) -> None:
    assert ops(prepared(graph)) == ["ReduceMean"]
