"""Models that only look like those into which operators of halfconv's own are put: the answer stays, or they are left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from halfconv.errors import UnsupportedModel
from halfconv.graph.rules import MS
from halfconv.kernels import layout
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.stage import place
from halfconv.precision.mincut import CastCost
from tests.kernels import build, half, kinds, own, placed
from tests.kernels.test_place import ATTENTION, IMAGE, MATRIX, PACKED, ROWS, images, rows


def test_a_constant_that_others_read_too_is_not_stored_twice() -> None:
    graph = "(float16[n,5,16] x, int64[k] i) => (float16[n,5,24] y, float16[k,16] z) { t = Transpose(u)\n p = MatMul(x, t)\n"
    graph += "y = Add(p, b)\n z = Gather(u, i) }"
    made, done = placed(graph, ROWS | {"i": np.array([3, 0])}, {"u": half(24, 16), "b": half(24)})
    assert set(made.graph.initializers) == {"u", "b"}
    assert {refusal.reason for refusal in done.refused} == {"others read the constant as it is, and it would be stored twice"}


@pytest.mark.parametrize("chosen", range(12))
def test_the_answer_stays_whatever_is_computed_channels_last(chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is about cost only: here, it is made by chance."""
    random = np.random.default_rng(chosen)

    def by_chance(last: Sequence[float], first: Sequence[float], crossings: Sequence[CastCost]) -> list[bool]:
        return [*(random.random(len(last) - 1) < (0.8, 1.0)[chosen % 2]).tolist(), False]

    monkeypatch.setattr(layout, "minimum_cut", by_chance)
    graph = images(
        "a = Conv<pads = [1,1,1,1]>(x, v)\n t = Transpose<perm = [0,3,1,2]>(a)\n b = Conv(t, u)\n"
        "y = MaxPool<kernel_shape = [2,2]>(t)\n c = Relu(t)\n l = Transpose<perm = [0,2,3,1]>(c)\n d = Add(l, a)\n"
        "e = Conv<pads = [1,1,1,1]>(d, v)\n r = Transpose<perm = [0,2,3,1]>(e)\n f = Neg(r)\n g = Transpose<perm = [0,3,1,2]>(f)\n"
        "h = GlobalAveragePool(g)\n w = Mul(g, h)\n k = Flatten(h)\n i = Transpose<perm = [0,3,1,2]>(e)\n j = Relu(i)",
        out="n,16,7,11", outputs=", float16[n,8,8,12] b, float16[n,8,12,16] w, float16[n,8] k, float16[n,16,8,12] j",
    ).replace("n,8,12,10", "n,8,12,16")  # fmt: skip
    made, _ = placed(graph, {"x": half(2, 8, 12, 16)}, {"v": half(8, 8, 3, 3, scale=0.2), "u": half(8, 16, 1, 1)})
    assert all(node.inputs for node in made.graph)


@pytest.fixture
def all_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute channels last what can be."""
    monkeypatch.setattr(layout, "minimum_cut", lambda last, first, crossings: [True] * (len(last) - 1) + [False])


@pytest.mark.usefixtures("all_last")
def test_a_bias_along_the_last_axis_stays_there() -> None:
    graph = images(f"a = Conv(x, v)\n f = {MS}.FastGelu(a, s)\n y = Conv(f, v)").replace("{", "<float16[n,8,12,10] f> {", 1)
    made, done = placed(graph, IMAGE, {"v": half(8, 8, 1, 1), "s": half(10)})
    assert done.operators == {"Linear": 2} and kinds(made) == own(Linear=2) | {"FastGelu": 1, "Transpose": 4}


@pytest.mark.usefixtures("all_last")
def test_one_constant_may_be_a_filter_and_a_term() -> None:
    conv = "Conv<pads = [1,1,1,1]>"
    graph = images(
        f"d = Conv<group = 8, pads = [1,1,1,1]>(x, w)\n p = MaxPool<kernel_shape = [10,8]>(d)\n q = {conv}(p, v)\n r = Add(q, w)\n"
        f"y = {conv}(r, v)", out="8,8,3,3",
    )  # fmt: skip
    _, done = placed(graph, {"x": half(8, 8, 12, 10)}, {"w": half(8, 1, 3, 3), "v": half(8, 8, 3, 3, scale=0.2)})
    assert done.operators == {"DepthwiseConv": 1, "Conv": 2}


@pytest.mark.parametrize(("statistics", "scale"), [(", m", 8), ("", 1)], ids=["statistics are results", "one number for all"])
def test_a_norm_that_the_kernel_does_not_compute_is_left(statistics: str, scale: int) -> None:
    graph = (
        f"(float16[n,8,4,3] x) => (float16[n,8,4,3] y{', float[n,4,3,1] m' if statistics else ''}) "
        "{ d = Conv<group = 8, pads = [1,1,1,1]>(x, w)\n t = Transpose<perm = [0,2,3,1]>(d)\n"
        f"l{statistics} = LayerNormalization(t, g)\n y = Transpose<perm = [0,3,1,2]>(l) }}"
    )
    made, done = placed(graph, {"x": half(1, 8, 4, 3)}, {"w": half(8, 1, 3, 3), "g": half(scale)})
    assert done.operators == {"DepthwiseConv": 1} and kinds(made)["LayerNormalization"] == 1


def test_attention_without_heads_is_left() -> None:
    for given in ("num_heads = 0", "scale = 1.0"):
        made = build((ATTENTION % ("", "", "x, w, b")).replace("num_heads = 2", given), PACKED)
        assert [refusal.reason for refusal in place(made).refused] == ["it has no heads"]


def test_a_model_without_operators_of_onnx_gets_definitions_too() -> None:
    made = build(ATTENTION % ("", "", "x, w, b"), PACKED)
    del made.graph.opset_imports[""]
    assert place(made).operators == {"Linear": 1, "PackedAttention": 1} and made.opset_imports[""] == 17
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


@pytest.mark.parametrize("op", ["Linear", "Other"])
def test_operators_that_a_model_does_not_define_do_not_become_ours(op: str) -> None:
    made = build(rows("s = Add(p, b)\n y = Neg(s)"), MATRIX)
    last = made.graph.node(-1)
    last.domain, last.op_type, last.name = DOMAIN, op, "last"
    with pytest.raises(UnsupportedModel, match=f"node 'last' is {DOMAIN}.{op}, which the model does not define"):
        place(made)
