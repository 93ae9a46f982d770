"""Fusions for CUDA, on small models in text form: what they make, that the answer stays, and why others are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from halfconv.drift.expansions import EXPANSIONS
from halfconv.drift.kernels import CUDA_ONLY, UNMODELLED
from halfconv.graph.fusions import CUDA, FUSIONS, fusions_for
from halfconv.graph.kernels import on_cuda
from halfconv.graph.prepare import Prepared, prepare
from halfconv.graph.rules import MS
from halfconv.graph.schema import signature
from tests.graph import model, ops
from tests.runtime_helpers import Job, _run_in_child

RNG = np.random.default_rng(0)
Arrays = Mapping[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Numbers that are the same whenever they are asked for, and whose sums do not cancel: relative errors stay what they are."""
    return np.random.default_rng(shape).uniform(0.1, 2.0, shape).astype(np.float32)


def build(graph: str, weights: Arrays | None = None, opset: int = 17) -> ir.Model:
    """A model from text, with weights beside it."""
    made = model(graph, opset=opset, imports=f', "{MS}" : 1')
    for name, array in (weights or {}).items():
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        tensor = ir.Tensor(array, name=name)
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        made.graph.register_initializer(value)
    return made


def fuse(
    graph: str, feeds: Arrays, weights: Arrays | None = None, *, opset: int = 17, target: str = "cuda"
) -> tuple[ir.Model, Prepared]:
    """Fuse, and require that the answer stays."""
    before, after = build(graph, weights, opset), build(graph, weights, opset)
    done = prepare(after, target=target)
    proto = ir.to_proto(after)
    onnx.checker.check_model(proto, full_check=True)
    got, want = (
        _run_in_child(Job(made.SerializeToString(), [dict(feeds)], level="DISABLE_ALL")) for made in (proto, ir.to_proto(before))
    )
    assert got.loads and want.loads, (got.failure, want.failure)
    for name, value in want.outputs[0].items():
        answer = got.outputs[0][name]
        assert answer.shape == value.shape
        np.testing.assert_array_equal(np.isnan(answer), np.isnan(value))
        finite = np.nan_to_num(value)
        assert np.linalg.norm(np.nan_to_num(answer) - finite) <= 1e-5 * np.linalg.norm(finite), name
    return after, done


def reasons(done: Prepared) -> set[tuple[str, str]]:
    return {(refusal.fusion, refusal.reason) for refusal in done.refused}


def contrib(made: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(made.graph) if node.domain)


# --- the table ------------------------------------------------------------------------------------------------------


def test_targets_without_onnx_runtimes_own_operators_get_none() -> None:
    for target in ("portable", "tensorrt", "cpu", "coreml", "xnnpack", "qnn", "web"):
        assert not any(fusion.contrib for fusion, _ in fusions_for(target, ir.DataType.FLOAT16))
    assert [fusion for fusion, _ in fusions_for("cuda", ir.DataType.FLOAT16)] == list(FUSIONS)


@pytest.mark.parametrize("fusion", [fusion for fusion in FUSIONS if fusion.contrib], ids=lambda fusion: fusion.name)
def test_what_is_made_has_kernels_a_schema_and_a_simulation(fusion: Any) -> None:
    assert fusion.targets == CUDA
    assert signature(MS, fusion.name, 1) is not None
    simulated = any(row.domain == MS and row.op == fusion.name for row in EXPANSIONS) or fusion.name == "Gelu"  # rounded once
    refused = (MS, fusion.name) in UNMODELLED or fusion.name in ("FusedConv", "GroupNorm")
    assert simulated or refused
    if not refused:
        assert fusion.name not in CUDA_ONLY
        for to in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            assert on_cuda(MS, fusion.name, 1, to)


# --- attention ------------------------------------------------------------------------------------------------------

B, S, H, D = 2, 6, 4, 8
W = H * D
QKV = {name: normal(B, S, W) for name in "qkv"}
SHAPES = {"split": np.array([0, 0, H, D]), "join": np.array([0, 0, W]), "scale": np.array(D**-0.5, np.float32)}
HEADS = (
    "q1 = Reshape(q, split)\n q4 = Transpose<perm = [0,2,1,3]>(q1)\n k1 = Reshape(k, split)\n v1 = Reshape(v, split)\n"
    " v4 = Transpose<perm = [0,2,1,3]>(v1)\n"
)
KEYS = "kt = Transpose<perm = [0,2,3,1]>(k1)\n"
SCORES = "s0 = MatMul(q4, kt)\n s = Mul(s0, scale)\n"
REST = "p = Softmax<axis = -1>(s)\n o = MatMul(p, v4)\n o1 = Transpose<perm = [0,2,1,3]>(o)\n y = Reshape(o1, join)"
SIDE = "float[b,s,32] q, float[b,s,32] k, float[b,s,32] v"


def attend(
    *changes: tuple[str, str], inputs: str = "", heads: str = HEADS, keys: str = KEYS, scores: str = SCORES, rest: str = REST
) -> str:
    body = heads + keys + scores + rest
    for old, new in changes:
        assert old in body, old
        body = body.replace(old, new)
    return f"({SIDE}{inputs}) => (float[b,s,32] y) {{ {body} }}"


@pytest.mark.parametrize(
    "graph,weights",
    [
        (attend(), {}),
        (attend(keys="k4 = Transpose<perm = [0,2,1,3]>(k1)\n kt = Transpose<perm = [0,1,3,2]>(k4)\n"), {}),
        (attend(("s = Mul(s0, scale)", "s = Div(s0, root)")), {"root": np.array(D**0.5, np.float32)}),
        (attend(("s0 = MatMul(q4, kt)\n s = Mul(s0, scale)", "qs = Mul(q4, scale)\n s = MatMul(qs, kt)")), {}),
        (attend(("s0 = MatMul(q4, kt)", "qs = Mul(q4, half)\n ks = Mul(kt, half)\n s0 = MatMul(qs, ks)")),
         {"half": np.array(0.7, np.float32)}),
        (attend(("s = Mul(s0, scale)", "s = Mul(scale, s0)")), {}),
        (attend(scores="s = MatMul(q4, kt)\n"), {}),
        (attend(("p = Softmax<axis = -1>(s)", "pf = Softmax<axis = -1>(s)\n p = Cast<to = 1>(pf)")), {}),
        (attend(("y = Reshape(o1, join)", "y0 = Reshape(o1, join)\n y = Identity(y0)")), {}),
        (attend(("s = Mul(s0, scale)",
                 "qh = Shape(q4)\n n = Gather(qh, three)\n nf = Cast<to = 1>(n)\n r = Sqrt(nf)\n s = Div(s0, r)")),
         {"three": np.array(3)}),
    ],
    ids=["plain", "keys apart", "divided", "queries scaled", "both scaled", "scale first", "no scale", "cast", "identity",
         "computed"],
)  # fmt: skip
def test_attention_in_many_forms(graph: str, weights: Arrays) -> None:
    needed = {name: array for name, array in SHAPES.items() if f" {name})" in graph or f"({name}," in graph}
    made, done = fuse(graph, QKV, needed | dict(weights))
    assert contrib(made) == {"MultiHeadAttention": 1}
    assert not {"Softmax", "Transpose", "Reshape"} & set(ops(made))
    assert done.examples["MultiHeadAttention"]


MASK = np.where(RNG.random((B, 1, S, S)) < 0.7, 0, np.finfo(np.float32).min).astype(np.float32)
MASK[0, 0, 2] = np.finfo(np.float32).min  # a row that is masked as a whole
KEEP = MASK == 0


@pytest.mark.parametrize("mask", [MASK, MASK[:1], MASK[:1, 0], MASK[0, 0], MASK[:, :, :1], MASK[0, 0, 0]],
                         ids=["whole", "one batch", "rank 3", "rank 2", "keys", "rank 1"])  # fmt: skip
def test_masks_that_are_added(mask: np.ndarray) -> None:
    shape = ",".join("bs"[0] if size == B else "s" if size == S else "1" for size in mask.shape)
    graph = attend(("p = Softmax<axis = -1>(s)", "m0 = Add(s, m)\n p = Softmax<axis = -1>(m0)"), inputs=f", float[{shape}] m")
    made, _ = fuse(graph, QKV | {"m": mask}, SHAPES)
    assert contrib(made) == {"MultiHeadAttention": 1}


@pytest.mark.parametrize("fill", [-1e9, np.finfo(np.float32).min], ids=["-1e9", "lowest"])
@pytest.mark.parametrize("order", ["keep, s, fill", "drop, fill, s"])
def test_masks_that_are_filled_in(order: str, fill: float) -> None:
    graph = attend(
        ("p = Softmax", f"w = Where({order})\n p = Softmax"), ("(s)\n o", "(w)\n o"), inputs=f", bool[b,1,s,s] {order[:4]}"
    )
    feeds = QKV | {order[:4]: KEEP if order.startswith("keep") else ~KEEP}
    made, _ = fuse(graph, feeds, SHAPES | {"fill": np.array(fill, np.float32)})
    assert contrib(made) == {"MultiHeadAttention": 1}


GUARD = ("p = Softmax<axis = -1>(s)", "m0 = Add(s, m)\n p0 = Softmax<axis = -1>(m0)\n n = IsNaN(p0)\n p = Where(n, zero, p0)")
ZERO = {"zero": np.array(0, np.float32)}


@pytest.mark.parametrize("opset", [17, 18])
def test_rows_of_minus_infinity_stay_zero(opset: int) -> None:
    graph = attend(GUARD, inputs=", float[b,1,s,s] m")
    mask = np.where(KEEP, 0, -np.inf).astype(np.float32)
    made, _ = fuse(graph, QKV | {"m": mask}, SHAPES | ZERO, opset=opset)
    assert contrib(made) == {"MultiHeadAttention": 1} and "Where" in ops(made)


def test_a_mask_for_each_head_with_rows_of_minus_infinity_is_refused() -> None:
    _, done = fuse(attend(GUARD, inputs=", float[b,4,s,s] m"), QKV | {"m": np.zeros((B, H, S, S), np.float32)}, SHAPES | ZERO)
    assert ("MultiHeadAttention", "a row of its mask may be −inf throughout, and differ between heads") in reasons(done)


def test_two_masks_are_one_sum_made_once() -> None:
    graph = attend(("p = Softmax<axis = -1>(s)", "m0 = Add(s, r)\n m1 = Add(m0, m)\n p = Softmax<axis = -1>(m1)"),
                   inputs=", float[1,4,s,s] r, float[b,1,1,s] m")  # fmt: skip
    made, _ = fuse(graph, QKV | {"r": normal(1, H, S, S), "m": MASK[:, :, :1]}, SHAPES)
    assert contrib(made) == {"MultiHeadAttention": 1} and ops(made).count("Add") == 1


def test_heads_that_are_folded_into_the_batch() -> None:
    graph = (
        "(float[n,s,8] q, float[n,t,8] k, float[n,t,8] v, float[n,s,t] m) => (float[n,s,8] y) { kt = Transpose<perm = [0,2,1]>(k)\n"
        " s0 = MatMul(q, kt)\n s1 = Mul(s0, scale)\n s = Add(s1, m)\n p = Softmax<axis = -1>(s)\n y = MatMul(p, v) }"
    )
    feeds = {"q": normal(8, S, D), "k": normal(8, 5, D), "v": normal(8, 5, D), "m": normal(8, S, 5)}
    made, _ = fuse(graph, feeds, {"scale": SHAPES["scale"]})
    assert contrib(made) == {"MultiHeadAttention": 1}


def test_a_mask_that_lets_all_pass_goes() -> None:
    graph = attend(
        ("p = Softmax<axis = -1>(s)",
         "h = Shape(q4)\n a = Expand(true, h)\n w = Where(a, zero, low)\n m0 = Add(s, m)\n p = Softmax<axis = -1>(m0)"),
        ("m0 = Add(s, m)", "m0 = Add(s, w)"),
    )  # fmt: skip
    graph = graph.replace("h = Shape(q4)", "h = Concat<axis = 0>(hb, hb, hb, hb)")
    weights = SHAPES | ZERO | {"true": np.ones((1, 1, 1, 1), bool), "low": np.array(-1e9, np.float32), "hb": np.array([1])}
    made, _ = fuse(graph, QKV, weights)
    (node,) = [node for node in made.graph if node.domain]
    assert len(node.inputs) == 3


@pytest.mark.parametrize(
    "why,graph",
    [
        ("its mask is scaled together with the scores",
         attend(("s = Mul(s0, scale)", "m0 = Add(s0, m)\n s = Mul(m0, scale)"), inputs=", float[b,1,s,s] m")),
        ("'p' inside it is read by others, too",
         attend(("y = Reshape(o1, join)", "y0 = Reshape(o1, join)\n z = ReduceMax<keepdims = 0>(p)\n y = Add(y0, z)"))),
        ("its softmax is not over the last axis", attend(("Softmax<axis = -1>", "Softmax<axis = 1>"))),
        ("its keys are not transposed in a way that is known", attend(("MatMul(q4, kt)", "MatMul(q4, v4)"), keys="")),
        ("its scores are no product of queries and keys that is scaled and masked",
         attend(("s = Mul(s0, scale)", "s1 = Mul(s0, scale)\n s = Tanh(s1)"))),
        ("its probabilities reach the values through Einsum, which is not followed",
         attend(("s0 = MatMul(q4, kt)", 's0 = Einsum<equation = "bind,bjnd->bnij">(q1, k1)'),
                ("o = MatMul(p, v4)", 'o = Einsum<equation = "bnij,bnjd->bnid">(p, v4)'), keys="")),
        ("its probabilities reach the values through Unsqueeze, which is not followed",
         attend(("o = MatMul(p, v4)", "one = Constant<value_ints = [0]>()\n pf = Unsqueeze(p, one)\n of = MatMul(pf, v4)\n"
                 " o = Squeeze(of, one)"))),
    ],
    ids=lambda value: value if len(value) < 80 else "",
)  # fmt: skip
def test_attention_that_is_refused(why: str, graph: str) -> None:
    feeds = QKV | ({"m": MASK} if " m)" in graph else {})
    if "v4)\n s" in graph:  # queries times values
        feeds = {name: normal(B, D, W) for name in "qkv"}
    made, done = fuse(graph, feeds, {name: array for name, array in SHAPES.items() if f"{name})" in graph})
    assert ("MultiHeadAttention", why) in reasons(done)
    assert "Softmax" in ops(made) and not contrib(made)


@pytest.mark.parametrize(
    "graph,feeds",
    [
        ("(float[b,8] x) => (float[b,8] y) { y = Softmax(x) }", {"x": normal(3, 8)}),
        ("(float[b,8,8] x) => (float[b,8,8] y) { a = MatMul(x, x)\n p = Softmax(a)\n t = Transpose<perm = [0,2,1]>(p)\n"
         " y = MatMul(x, t) }", {"x": normal(3, 8, 8)}),
        ("(float[b,8,8] x) => (float[b,8,8] y) { p = Softmax(x)\n t = Transpose<perm = [0,2,1]>(p)\n y = MatMul(t, x) }",
         {"x": normal(3, 8, 8)}),
    ],
    ids=["alone", "second factor", "no scores"],
)  # fmt: skip
def test_a_softmax_that_is_no_attention_is_not_mentioned(graph: str, feeds: dict[str, np.ndarray]) -> None:
    _, done = fuse(graph, feeds)
    assert not done.refused


PROJECTED = (
    "(float[b,s,32] x) => (float[b,s,32] y) { qa = MatMul(x, wq)\n q = Add(qa, bq)\n ka = MatMul(x, wk)\n k = Identity(ka)\n"
    f" va = MatMul(x, wv)\n v = Add(bv, va)\n {HEADS}{KEYS}{SCORES}{REST} }}"
).replace("k = Identity(ka)\n", "").replace("Reshape(k,", "Reshape(ka,")  # fmt: skip
PROJECTIONS = {name: normal(W, W) for name in ("wq", "wk", "wv")} | {name: normal(W) for name in ("bq", "bv")}


def test_projections_of_one_input_become_one_product() -> None:
    made, done = fuse(PROJECTED, {"x": normal(B, S, W)}, SHAPES | PROJECTIONS)
    assert ops(made) == ["Attention"] and done.fusions == {"Attention": 1}
    weight = made.graph[0].inputs[1]
    assert weight is not None and weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), np.concatenate([PROJECTIONS[n] for n in ("wq", "wk", "wv")], 1))


@pytest.mark.parametrize(
    "why,change,more",
    [
        (
            "queries, keys and values are not products of one input",
            ("va = MatMul(x, wv)", "xx = Relu(x)\n va = MatMul(xx, wv)"),
            {},
        ),
        ("queries, keys and values are not each a product with a weight", ("va = MatMul(x, wv)", "va = Relu(x)"), {}),
    ],
)
def test_projections_that_stay(why: str, change: tuple[str, str], more: Arrays) -> None:
    weights = {n: a for n, a in (SHAPES | PROJECTIONS).items() if n != "wv" or "wv" in change[1]}
    made, done = fuse(PROJECTED.replace(*change), {"x": normal(B, S, W)}, weights | dict(more))
    assert "MultiHeadAttention" in ops(made) and ("Attention", why) in reasons(done)


#: How queries, keys and values come out of [3, batch, heads, length, size].
CHOICES = {
    "gather": "q4 = Gather<axis = 0>(t, i0)\n k4 = Gather<axis = 0>(t, i1)\n v4 = Gather<axis = 0>(t, i2)\n",
    "split": "a, c, d = Split<axis = 0>(t)\n q4 = Squeeze(a, n0)\n k4 = Squeeze(c, n0)\n v4 = Squeeze(d, n0)\n",
    "slice": "a = Slice(t, n0, n1, n0)\n q4 = Squeeze(a, n0)\n c = Slice(t, n1, n2, n0)\n k4 = Squeeze(c, n0)\n"
             " d = Slice(t, n2, n3, n0)\n v4 = Squeeze(d, n0)\n",
}  # fmt: skip
PACKED = "t = Transpose<perm = [2,0,3,1,4]>(x5)\n {choice} kt = Transpose<perm = [0,1,3,2]>(k4)\n" + SCORES + REST
PLACES = {f"n{k}": np.array([k]) for k in range(4)} | {f"i{k}": np.array(k) for k in range(3)}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("projected", [True, False])
def test_queries_keys_and_values_in_one(projected: bool, choice: str) -> None:
    body = PACKED.format(choice=CHOICES[choice])
    before = "a5 = MatMul(x, w)\n x3 = Add(a5, bias)\n x5 = Reshape(x3, five)\n" if projected else ""
    graph = f"({'float[b,s,32] x' if projected else 'float[b,s,3,4,8] x5'}) => (float[b,s,32] y) {{ {before} {body} }}"
    weights = {name: array for name, array in (SHAPES | PLACES).items() if f" {name})" in graph or f" {name}," in graph}
    weights |= {"w": normal(W, 3 * W), "bias": normal(3 * W), "five": np.array([0, 0, 3, H, D])} if projected else {}
    made, _ = fuse(graph, {"x": normal(B, S, W)} if projected else {"x5": normal(B, S, 3, H, D)}, weights)
    assert contrib(made) == {"Attention" if projected else "MultiHeadAttention": 1}
    assert not projected or ops(made) == ["Attention"]


def test_a_projection_of_flat_rows() -> None:
    graph = (
        "(float[b,s,32] x) => (float[b,s,32] y) { f = Reshape(x, rows)\n g = Gemm(f, w, bias)\n h = Shape<start = 0, end = 2>(x)\n"
        f" n = Concat<axis = 0>(h, wide)\n x3 = Reshape(g, n)\n q, k, v = Split<axis = 2>(x3)\n {HEADS}{KEYS}{SCORES}{REST} }}"
    )
    weights = SHAPES | {"rows": np.array([-1, W]), "wide": np.array([3 * W]), "w": normal(W, 3 * W), "bias": normal(3 * W)}
    made, _ = fuse(graph, {"x": normal(B, S, W)}, weights)
    assert ops(made) == ["Attention"]


ONNX = "(float[b,s,32] q, float[b,s,32] k, float[b,s,32] v{more}) => (float[b,s,32] y) {{ y = Attention<q_num_heads = 4, kv_num_heads = {kv}{options}>({reads}) }}"  # noqa: E501


@pytest.mark.parametrize(
    "options,mask",
    [("", None), (", scale = 0.5", None), (", is_causal = 1", None), ("", MASK), ("", KEEP), ("", MASK[0, 0])],
    ids=["plain", "scale", "causal", "mask", "bool", "rank 2"],
)
def test_onnx_attention_becomes_multi_head_attention(options: str, mask: np.ndarray | None) -> None:
    shape = "" if mask is None else ",".join("b" if size == B else "s" if size == S else "1" for size in mask.shape)
    more = "" if mask is None else f", {'bool' if mask.dtype == bool else 'float'}[{shape}] m"
    graph = ONNX.format(more=more, kv=4, options=options, reads="q, k, v" + ("" if mask is None else ", m"))
    made, _ = fuse(graph, QKV | ({} if mask is None else {"m": mask}), opset=23)
    assert contrib(made) == {"MultiHeadAttention": 1} and "Attention" not in ops(made)


POSITIONS = "t = Transpose<perm = [2,0,1]>(table)\n m = Unsqueeze(t, zeroth)\n "


@pytest.mark.parametrize("add", [False, True], ids=["positions", "positions and window"])
def test_onnx_attention_with_relative_positions_of_each_head(add: bool) -> None:
    graph = ONNX.format(more="", kv=4, options="", reads="q, k, v, m").replace("{ y", f"{{ {POSITIONS}y").replace("b,s", f"b,{S}")
    weights = {"table": normal(S, S, H), "zeroth": np.array([0])}
    if add:
        graph = graph.replace("m = Unsqueeze(t, zeroth)", "m0 = Unsqueeze(t, zeroth)\n m = Add(m0, window)")
        weights["window"] = np.where(np.arange(S) < np.arange(2, S + 2)[:, None], 0, -100).astype(np.float32)
    made, _ = fuse(graph, QKV, weights, opset=23)
    assert contrib(made) == {"MultiHeadAttention": 1} and not {"Where", "ReduceMax"} & set(ops(made))


@pytest.mark.parametrize("low", [-3.4e38, -65000.0, -np.inf])
def test_onnx_attention_with_a_row_of_one_head_masked_is_refused(low: float) -> None:
    graph = ONNX.format(more="", kv=4, options="", reads="q, k, v, m").replace("{ y", f"{{ {POSITIONS}y").replace("b,s", f"b,{S}")
    table = normal(S, S, H)
    table[0, :, 1] = low
    made, done = fuse(graph, QKV, {"table": table, "zeroth": np.array([0])}, opset=23)
    assert ("MultiHeadAttention", "a row may be masked as a whole, by a mask that differs between heads") in reasons(done)
    assert not contrib(made)


def test_onnx_attention_of_rank_4() -> None:
    graph = "(float[b,4,s,8] q, float[b,4,t,8] k, float[b,4,t,8] v) => (float[b,4,s,8] y) { y = Attention(q, k, v) }"
    feeds = {"q": normal(B, H, S, D), "k": normal(B, H, 5, D), "v": normal(B, H, 5, D)}
    made, _ = fuse(graph, feeds, opset=23)
    assert contrib(made) == {"MultiHeadAttention": 1}


@pytest.mark.parametrize(
    "options,kv,why",
    [
        (", softcap = 2.0", 4, "its scores are capped, which MultiHeadAttention does not do"),
        ("", 2, "groups of queries share keys (GroupQueryAttention), which the simulation does not model"),
    ],
)
def test_onnx_attention_that_is_refused(options: str, kv: int, why: str) -> None:
    graph = ONNX.format(more="", kv=kv, options=options, reads="q, k, v")
    graph = graph if kv == 4 else graph.replace("[b,s,32] k", "[b,s,16] k").replace("[b,s,32] v", "[b,s,16] v")
    feeds = QKV if kv == 4 else QKV | {"k": normal(B, S, 16), "v": normal(B, S, 16)}
    made, done = fuse(graph, feeds, opset=23)
    assert ("MultiHeadAttention", why) in reasons(done) and not contrib(made)


# --- GELU -----------------------------------------------------------------------------------------------------------

GELU = {
    "half first": "e = Erf(d)\n a = Add(e, one)\n h = Mul(half, a)\n y = Mul(x, h)",
    "half last": "e = Erf(d)\n a = Add(one, e)\n h = Mul(x, a)\n y = Mul(h, half)",
    "half on x": "h = Mul(x, half)\n e = Erf(d)\n a = Add(e, one)\n y = Mul(h, a)",
}
NUMBERS = {name: np.array(number, np.float32) for name, number in
           {"one": 1, "half": 0.5, "root": 2**0.5, "inverse": 0.5**0.5, "cube": 3, "small": 0.044715, "pi": (2 / np.pi) ** 0.5,
            "alpha": 1.702, "two": 2}.items()}  # fmt: skip


#: What follows the hyperbolic tangent.
GELU_END = "a = Add(t, one)\n h = Mul(x, half)\n y = Mul(h, a)"


def number_weights(graph: str) -> dict[str, np.ndarray]:
    return {
        name: array for name, array in NUMBERS.items() if any(f"{left}{name}{right}" in graph for left in "( " for right in ",)")
    }


@pytest.mark.parametrize("argument", ["d = Div(x, root)", "d = Mul(x, inverse)"])
@pytest.mark.parametrize("form", GELU)
def test_gelu_by_erf(form: str, argument: str) -> None:
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {argument}\n {GELU[form]} }}"
    made, _ = fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))
    assert ops(made) == ["Gelu"]


@pytest.mark.parametrize("cube", ["c = Pow(x, cube)", "xx = Mul(x, x)\n c = Mul(xx, x)"])
def test_gelu_by_tanh(cube: str) -> None:
    graph = (
        f"(float[b,s,8] x) => (float[b,s,8] y) {{ {cube}\n k = Mul(c, small)\n i = Add(x, k)\n z = Mul(i, pi)\n t = Tanh(z)\n"
        " a = Add(t, one)\n h = Mul(x, half)\n y = Mul(h, a) }"
    )
    made, _ = fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))
    assert ops(made) == ["FastGelu"]


@pytest.mark.parametrize("factor", ["z0 = Mul(x, pi)\n z = Mul(z0, b)", "z0 = Mul(b, x)\n z = Mul(pi, z0)"])
@pytest.mark.parametrize("square", ["xx = Mul(x, small)\n k = Mul(xx, x)", "xx = Pow(x, two)\n k = Mul(small, xx)"])
def test_gelu_by_tanh_of_a_product(square: str, factor: str) -> None:
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {square}\n b = Add(k, one)\n {factor}\n t = Tanh(z)\n {GELU_END} }}"
    made, _ = fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))
    assert ops(made) == ["FastGelu"]


@pytest.mark.parametrize(
    "argument",
    [
        "xx = Pow(x, cube)\n k = Mul(small, xx)\n b = Add(k, one)\n z0 = Mul(x, pi)\n z = Mul(z0, b)",
        "xx = Pow(x, two)\n k = Mul(small, xx)\n b = Add(k, two)\n z0 = Mul(x, pi)\n z = Mul(z0, b)",
        "xx = Pow(x, two)\n k = Mul(small, xx)\n b = Add(k, one)\n z0 = Mul(x, half)\n z = Mul(z0, b)",
        "xx = Pow(x, two)\n k = Mul(small, xx)\n b = Add(k, one)\n z0 = Mul(pi, pi)\n z = Mul(z0, b)",
        "c = Pow(x, cube)\n k = Mul(c, small)\n i = Add(x, k)\n z = Mul(i, half)",
        "c = Pow(x, cube)\n k0 = Mul(c, small)\n k = Mul(k0, small)\n i = Add(x, k)\n z = Mul(i, pi)",
    ],
    ids=["cube", "plus two", "another factor", "no x", "another factor of the sum", "0.044715 twice"],
)
def test_a_tanh_of_something_else_is_refused(argument: str) -> None:
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {argument}\n t = Tanh(z)\n {GELU_END} }}"
    made, done = fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))
    assert ("FastGelu", "its argument is not √(2/π) · (x + 0.044715 · x³)") in reasons(done) and "Tanh" in ops(made)


@pytest.mark.parametrize("body", ["s = Sigmoid(x)\n y = Mul(x, s)", "i = Mul(x, alpha)\n s = Sigmoid(i)\n y = Mul(s, x)"])
def test_gelu_by_sigmoid(body: str) -> None:
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {body} }}"
    assert ops(fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))[0]) == ["QuickGelu"]


@pytest.mark.parametrize(
    "body",
    ["d = Div(x, half)\n e = Erf(d)\n a = Add(e, one)\n h = Mul(x, a)\n y = Mul(h, half)",
     "d = Div(x, root)\n e = Erf(d)\n a = Add(e, half)\n h = Mul(x, a)\n y = Mul(h, half)",
     "d = Div(x, root)\n e = Erf(d)\n a = Add(e, one)\n z = Neg(x)\n h = Mul(z, a)\n y = Mul(h, half)"],
    ids=["argument", "addend", "factor"],
)  # fmt: skip
def test_an_erf_that_is_no_gelu(body: str) -> None:
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {body} }}"
    made, done = fuse(graph, {"x": normal(2, 3, 8)}, number_weights(graph))
    assert "Erf" in ops(made) and {refusal.fusion for refusal in done.refused} == {"Gelu"}


def test_a_bias_before_gelu() -> None:
    graph = "(float[b,s,8] x) => (float[b,s,8] y) { a = MatMul(x, w)\n c = Add(a, bias)\n y = Gelu(c) }"
    made, _ = fuse(graph, {"x": normal(2, 3, 8)}, {"w": normal(8, 8), "bias": normal(8)}, opset=20)
    assert ops(made) == ["MatMul", "BiasGelu"]


# --- residual norms -------------------------------------------------------------------------------------------------

NORM = {"g": normal(8), "c": normal(8)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_residual_before_a_norm(shared: bool, bias: bool) -> None:
    second = "a0 = MatMul(x, w)\n a = Add(a0, d)\n" if bias else "a = MatMul(x, w)\n"
    end = " n = LayerNormalization<axis = -1>(t, g, c)\n y = Add(n, t)" if shared else " y = LayerNormalization<axis = -1>(t, g, c)"
    graph = f"(float[b,s,8] x) => (float[b,s,8] y) {{ {second} t = Add(x, a)\n{end} }}"
    made, _ = fuse(graph, {"x": normal(2, 3, 8)}, NORM | {"w": normal(8, 8)} | ({"d": normal(8)} if bias else {}))
    assert contrib(made) == {"SkipLayerNormalization": 1} and ops(made).count("Add") == int(shared)


def test_a_sum_that_is_a_result_of_the_model_stays_one() -> None:
    graph = (
        "(float[b,s,8] x, float[b,s,8] z) => (float[b,s,8] y, float[b,s,8] t) { t = Add(x, z)\n y = LayerNormalization(t, g, c) }"
    )
    made, _ = fuse(graph, {"x": normal(2, 3, 8), "z": normal(2, 3, 8)}, NORM)
    assert ops(made) == ["SkipLayerNormalization"] and [value.name for value in made.graph.outputs] == ["y", "t"]


@pytest.mark.parametrize("opset", [17, 18, 23])
def test_a_residual_before_an_rms_norm(opset: int) -> None:
    axes, last = ("<axes = [-1]>(q)", {}) if opset < 18 else ("(q, last)", {"last": np.array([-1])})
    graph = (
        "(float[b,s,8] x, float[b,s,8] z) => (float[b,s,8] y) { t = Add(x, z)\n q = Pow(t, two)\n"
        f" m = ReduceMean{axes}\n e = Add(m, eps)\n r = Sqrt(e)\n i = Reciprocal(r)\n n = Mul(t, i)\n h = Mul(g, n)\n"
        " y = Add(h, t) }"
    )
    weights = {"g": NORM["g"], "two": np.array(2, np.float32), "eps": np.array(1e-6, np.float32)} | last
    made, _ = fuse(graph, {"x": normal(2, 3, 8), "z": normal(2, 3, 8)}, weights, opset=opset)
    assert contrib(made) == {"SkipSimplifiedLayerNormalization": 1} and ops(made)[-1] == "Add"


def test_a_gamma_that_is_computed_behind_the_sum_is_left_alone() -> None:
    graph = (
        "(float[b,s,8] x, float[b,s,8] z, float[1,8] h) => (float[b,s,8] y, float[b,s,8] r) { t = Add(x, z)\n r = Relu(t)\n"
        " g = Squeeze(h, nil)\n y = LayerNormalization(t, g, c) }"
    )
    feeds = {"x": normal(2, 3, 8), "z": normal(2, 3, 8), "h": normal(1, 8)}
    made, done = fuse(graph, feeds, {"c": NORM["c"], "nil": np.array([0])})
    assert not contrib(made)
    assert reasons(done) == {("SkipLayerNormalization", "its gamma or beta is no weight of the last axis's size")}


def test_sides_of_a_sum_that_may_differ_are_left_alone() -> None:
    graph = "(float[b,s,8] x, float[1,s,8] z) => (float[b,s,8] y) { t = Add(x, z)\n y = LayerNormalization(t, g, c) }"
    made, done = fuse(graph, {"x": normal(2, 3, 8), "z": normal(1, 3, 8)}, NORM)
    assert ops(made) == ["Add", "LayerNormalization"]
    assert reasons(done) == {("SkipLayerNormalization", "the two sides of the sum before it may differ in shape")}


# --- convolutions, factors, transpositions --------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_is_folded(op: str, bias: bool, target: str) -> None:
    graph = f"(float[b,3,6,6] x) => (float[b,4,n,m] y) {{ c = {op}(x, w{', d' * bias})\n y = BatchNormalization(c, g, e, m, v) }}"
    weights = {"w": normal(4, 3, 3, 3) if op == "Conv" else normal(3, 4, 3, 3), "g": normal(4), "e": normal(4), "m": normal(4)}
    weights |= {"v": np.abs(normal(4)) + 0.1} | ({"d": normal(4)} if bias else {})
    made, done = fuse(graph, {"x": normal(2, 3, 6, 6)}, weights, target=target)
    assert ops(made) == [op] and done.fusions == {"Conv, BatchNormalization": 1}


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("op,group", [("Conv", 1), ("Conv", 3), ("ConvTranspose", 1), ("ConvTranspose", 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1, 1, 1), (1,), ()])
@pytest.mark.parametrize("order", ["c, e", "e, c"])
def test_a_bias_behind_a_convolution_is_folded(
    op: str, group: int, bias: bool, shape: tuple[int, ...], order: str, target: str
) -> None:
    graph = f"(float[b,3,6,6] x) => (float[b,6,n,m] y) {{ c = {op}<group = {group}>(x, w{', d' * bias})\n y = Add({order}) }}"
    weights = {"w": normal(6, 3 // group, 3, 3) if op == "Conv" else normal(3, 6 // group, 3, 3), "e": normal(*shape)}
    made, done = fuse(graph, {"x": normal(2, 3, 6, 6)}, weights | ({"d": normal(6)} if bias else {}), target=target)
    assert ops(made) == [op] and done.fusions == {"Conv, Add": 1}


def test_a_bias_and_a_batch_norm_are_both_folded() -> None:
    graph = "(float[b,3,6,6] x) => (float[b,4,n,m] y) { c = Conv(x, w)\n d = Add(c, e)\n y = BatchNormalization(d, g, g, m, v) }"
    weights = {"w": normal(4, 3, 3, 3), "e": normal(4, 1, 1), "g": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 0.1}
    made, done = fuse(graph, {"x": normal(2, 3, 6, 6)}, weights)
    assert ops(made) == ["Conv"] and done.fusions == {"Conv, BatchNormalization": 1}


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (4, 4), (1, 4), (6, 1, 4), (1, 1, 6, 1, 1), (2, 1, 1, 1), (2, 6, 1, 1)])
def test_a_sum_along_other_axes_than_the_channels_stays(shape: tuple[int, ...]) -> None:
    made = ",".join("ijklm"[: max(4, len(shape))])
    graph = f"(float[b,3,6,6] x) => (float[{made}] y) {{ c = Conv(x, w)\n y = Add(c, e) }}"
    model, done = fuse(graph, {"x": normal(2, 3, 6, 6)}, {"w": normal(6, 3, 3, 3), "e": normal(*shape)})
    assert ops(model) == ["Conv", "Add"] and not done.fusions and not done.refused


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1)])
def test_a_sum_behind_a_weight_of_unknown_sizes_stays(shape: tuple[int, ...]) -> None:
    graph = "(float[b,3,6,6] x, float[o,i,k,l] w) => (float[b,o,n,m] y) { c = Conv(x, w)\n y = Add(c, e) }"
    model, done = fuse(graph, {"x": normal(2, 3, 6, 6), "w": normal(6, 3, 3, 3)}, {"e": normal(*shape)})
    assert ops(model) == ["Conv", "Add"] and not done.fusions


@pytest.mark.parametrize(
    "graph,reason",
    [
        ("(float[b,3,6,6] x) => (float[b,6,4,4] y, float[b,6,4,4] z) { c = Conv(x, w)\n y = Add(c, e)\n z = Relu(c) }",
         "'c' is read by others, too"),
        ("(float[b,3,6,6] x) => (float[b,6,4,4] y, float[b,6,4,4] c) { c = Conv(x, w)\n y = Add(c, e) }",
         "'c' is read by others, too"),
        ("(float[b,3,6,6] x, float[6] r) => (float[b,6,4,4] y) { d = Relu(r)\n c = Conv(x, w, d)\n y = Add(c, e) }",
         "the convolution's bias is computed"),
    ],
    ids=["read twice", "a result", "computed"],
)  # fmt: skip
def test_a_bias_that_cannot_be_folded_says_why(graph: str, reason: str) -> None:
    feeds = {"x": normal(2, 3, 6, 6)} | ({"r": normal(6)} if "r)" in graph.split("=>")[0] else {})
    made, done = fuse(graph, feeds, {"w": normal(6, 3, 3, 3), "e": normal(6, 1, 1)})
    assert "Add" in ops(made) and reasons(done) == {("Conv, Add", reason)}


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_scale_is_folded(bias: bool) -> None:
    rest = "c = Add(a, d)\n y = Mul(g, c)" if bias else "y = Mul(g, a)"
    graph = f"(float[b,s,8] x) => (float[b,s,6] y) {{ a = MatMul(x, w)\n {rest} }}"
    weights = {"w": normal(8, 6), "g": np.linspace(0.5, 2, 6, dtype=np.float32)} | ({"d": normal(6)} if bias else {})
    assert ops(fuse(graph, {"x": normal(2, 3, 8)}, weights)[0]) == ["MatMul", "Add"][: 1 + bias]
    made, done = fuse(graph, {"x": normal(2, 3, 8)}, weights | {"g": np.full(6, 1e-6, np.float32)})
    assert "Mul" in ops(made) and {refusal.fusion for refusal in done.refused} == {"MatMul, Mul"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1)])
def test_a_layer_scale_behind_a_transposition_is_folded(bias: bool, shape: tuple[int, ...]) -> None:
    rest = "c = Add(a, d)\n t = Transpose<perm = [0,3,1,2]>(c)" if bias else "t = Transpose<perm = [0,3,1,2]>(a)"
    graph = f"(float[b,s,s,8] x) => (float[b,6,s,s] y) {{ a = MatMul(x, w)\n {rest}\n y = Mul(t, g) }}"
    factors = np.linspace(0.5, 2, 6, dtype=np.float32)
    weights = {"w": normal(8, 6), "g": factors.reshape(shape)} | ({"d": normal(6)} if bias else {})
    made, done = fuse(graph, {"x": normal(2, 3, 3, 8)}, weights)
    assert ops(made) == ["MatMul", *["Add"] * bias, "Transpose"] and done.fusions == {"MatMul, Mul": 1}
    for other in (np.linspace(0.5, 2, 3, dtype=np.float32), factors.reshape(6, 1, 1, 1)[:2]):  # along other axes
        made, done = fuse(graph, {"x": normal(2, 3, 3, 8)}, weights | {"g": other})
        assert "Mul" in ops(made) and not done.fusions


STRIDED = """(float[b,4,2,2] x) => (float[b,4,1,1] y) {
    s = Shape<start = 0, end = 1>(x)
    n = Squeeze(s)
    m = GlobalAveragePool(x)
    f = Reshape(m, one)
    r = Range(zero, LIMIT, step)
    p = Mul(r, four)
    q = Unsqueeze(p, axes)
    i = Add(q, inner)
    g = Gather<axis = 0>(f, i)
    y = Relu(g)
}"""


def strided(**changed: np.ndarray) -> dict[str, np.ndarray]:
    numbers = {"zero": 0, "step": 1, "four": 4, "one": [-1], "axes": [1, 2, 3], "inner": np.arange(4).reshape(1, 4, 1, 1)}
    return {name: np.array(number, np.int64) for name, number in (numbers | changed).items()}


def test_a_gather_of_all_elements_in_order_is_removed() -> None:
    made, done = fuse(STRIDED.replace("LIMIT", "n"), {"x": normal(3, 4, 2, 2)}, strided())
    assert ops(made) == ["GlobalAveragePool", "Relu"] and done.fusions == {"no-op Gather": 1}


@pytest.mark.parametrize(
    "changed", [{"inner": np.array([1, 0, 2, 3]).reshape(1, 4, 1, 1)}, {"four": 2}, {"step": 2}, {"inner": np.zeros((1, 4, 1, 1))}]
)
def test_a_gather_of_other_elements_stays(changed: dict[str, Any]) -> None:
    made, done = fuse(STRIDED.replace("LIMIT", "n"), {"x": normal(3, 4, 2, 2)}, strided(**changed))
    assert "Gather" in ops(made) and reasons(done) == {("no-op Gather", "its places are not those of all elements in order")}


@pytest.mark.parametrize(
    "body,left",
    [
        ("t = Transpose<perm = [0,2,3,1]>(x)\n u = Transpose<perm = [0,3,1,2]>(t)\n y = Relu(u)", ["Relu"]),
        ("t = Transpose<perm = [0,2,3,1]>(x)\n r = Relu(t)\n y = Transpose<perm = [0,3,1,2]>(r)", ["Relu"]),
        ("t = Transpose<perm = [0,2,3,1]>(x)\n y = Transpose<perm = [0,2,3,1]>(t)", ["Transpose"]),
        ("t = Transpose<perm = [0,2,3,1]>(x)\n u = Transpose<perm = [0,3,1,2]>(t)\n z = Relu(t)\n w = ReduceMax<keepdims = 0>(z)\n"
         " y = Add(u, w)", ["Transpose", "Relu", "ReduceMax", "Add"]),
    ],
    ids=["pair", "around Relu", "merged", "read by others"],
)  # fmt: skip
def test_transpositions_cancel(body: str, left: list[str]) -> None:
    made, _ = fuse(f"(float[b,3,4,5] x) => (float[b,i,j,k] y) {{ {body} }}", {"x": normal(2, 3, 4, 5)}, target="tensorrt")
    assert ops(made) == left


def test_what_only_stands_in_the_way_goes() -> None:
    graph = (
        "(float[b,s,8] x) => (float[b,s,8] y) { c = Cast<to = 1>(x)\n h = Shape(c)\n r = Reshape(c, h)\n i = Identity(r)\n"
        " a = Add(i, nought)\n y = Relu(a) }"
    )
    assert ops(fuse(graph, {"x": normal(2, 3, 8)}, {"nought": np.array(0, np.float32)})[0]) == ["Relu"]


@pytest.mark.parametrize("addend", [np.zeros((2, 1, 1, 1), np.float32), np.array(1e-30, np.float32)], ids=["more axes", "not 0"])
def test_an_addition_that_does_something_stays(addend: np.ndarray) -> None:
    outputs = "float[c,b,s,t] y" if addend.ndim else "float[b,s,t] y"
    graph = f"(float[b,s,8] x) => ({outputs}) {{ a = Add(x, addend)\n y = Relu(a) }}"
    assert ops(fuse(graph, {"x": normal(2, 3, 8)}, {"addend": addend})[0]) == ["Add", "Relu"]


def test_an_activation_behind_a_convolution_is_refused_for_want_of_a_kernel() -> None:
    graph = "(float[b,3,6,6] x) => (float[b,4,4,4] y) { [conv] c = Conv(x, w)\n [relu] y = Relu(c) }"
    _, done = fuse(graph, {"x": normal(2, 3, 6, 6)}, {"w": normal(4, 3, 3, 3)})
    ((fusion, reason),) = reasons(done)
    assert fusion == "FusedConv" and reason.endswith("has no FLOAT16 CUDA kernel for FusedConv")
    assert done.refused[0].node == "relu"


# --- in all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["portable", "tensorrt", "web"])
def test_other_targets_keep_to_onnx(target: str) -> None:
    made, _ = fuse(PROJECTED, {"x": normal(B, S, W)}, SHAPES | PROJECTIONS, target=target)
    assert not contrib(made) and "Softmax" in ops(made)


def test_fusing_twice_changes_nothing_and_names_are_the_same_each_time() -> None:
    first, second = (build(PROJECTED, SHAPES | PROJECTIONS) for _ in range(2))
    for made in (first, second):
        prepare(made, target="cuda")
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()
    prepare(second, target="cuda")
    assert list(ir.to_proto(first).graph.node) == list(ir.to_proto(second).graph.node)


@pytest.mark.parametrize("graph", ["float[b,s,8] x"])
def test_attention_inside_a_branch(graph: str) -> None:
    body = (HEADS + KEYS + SCORES + REST).replace(" y = Reshape(o1, join)", " z = Reshape(o1, join)")
    text = (
        f"({SIDE}, bool c) => (float[b,s,32] y) {{ y = If(c) <then_branch = g1 () => (float[b,s,32] z) {{ {body} }},"
        " else_branch = h () => (float[b,s,32] w) { w = Relu(q) }> }"
    )
    made, _ = fuse_in_branch(text)
    assert contrib(made) == {"MultiHeadAttention": 1}


def fuse_in_branch(text: str) -> tuple[ir.Model, Prepared]:
    """Give the weights as inputs of a Constant: text models cannot share initializers with branches."""
    constants = (
        "split = Constant<value_ints = [0, 0, 4, 8]>()\n join = Constant<value_ints = [0, 0, 32]>()\n"
        f" scale = Constant<value_float = {D**-0.5}>()\n "
    )
    return fuse(text.replace("{ y = If", "{ " + constants + "y = If"), QKV | {"c": np.array(True)})
