"""Patterns: several operators that must stay FP32 together, and their near misses."""

from __future__ import annotations

import pytest

from halfconv.precision.formats import FP16, HalfFormat
from halfconv.precision.patterns import PATTERNS
from tests.graph import grouped

BY_NAME = {pattern.name: pattern for pattern in PATTERNS}
IO = "(float[2,4] x) => (float[2,4] y)"
LAYER_NORM = (
    "m = ReduceMean <axes = [-1]> (x)\n d = Sub(x, m)\n q = Pow(d, two)\n v = ReduceMean <axes = [-1]> (q)\n a = Add(v, e)\n"
    " r = Sqrt(a)\n n = Div(d, r)\n y = Mul(n, g)"
)
WEIGHTS = (
    "<float[4] g = {1, 2, 3, 4}, float e = {1e-5}, float two = {2}, float one = {1}, float big = {4096}, float tiny = {1e-12}>"
)


def found(name: str, body: str, *, io: str = IO, weights: str = WEIGHTS, to: HalfFormat = FP16, **options: object) -> set[str]:
    """Outputs of the nodes that a pattern keeps in FP32."""
    _, names, _ = grouped(f"{io} {weights} {{ {body} }}", fuse=False, **options)
    matches = list(BY_NAME[name].find(list(names.nodes()), to))
    assert all(match.why and match.culprit in names.node for match in matches)
    return {node.outputs[0].name or "" for match in matches for node in match.nodes}


def test_the_patterns_of_the_contract_are_there() -> None:
    assert {"softmax-attention", "norm", "exp-sum", "shape-arithmetic", "small-epsilon"} <= set(BY_NAME)
    assert len(BY_NAME) == len(PATTERNS)
    assert all(pattern.why for pattern in PATTERNS)
    assert not BY_NAME["softmax-attention"].default


def test_a_decomposed_layer_norm_with_its_gamma_and_beta() -> None:
    """A runtime fuses the whole, and cannot when a Cast splits it."""
    kept = found("norm", LAYER_NORM)
    assert {"m", "d", "q", "v", "a", "r", "n"} <= kept
    assert "y" in kept


def test_a_decomposed_rms_norm() -> None:
    body = "q = Mul(x, x)\n v = ReduceMean <axes = [-1]> (q)\n a = Add(v, e)\n r = Sqrt(a)\n n = Div(x, r)\n y = Mul(n, g)"
    assert {"q", "v", "a", "r"} <= found("norm", body)
    assert "n" not in found("norm", body), "1e-5 bounds the root, so the division may be half"
    assert "n" in found("norm", body.replace("(v, e)", "(v, tiny)")), "sqrt(1e-12) is too small to divide by in half"


def test_a_norm_by_reciprocal_root() -> None:
    root = "q = Mul(x, x)\n v = ReduceMean <axes = [-1]> (q)\n a = Add(v, e)\n s = Sqrt(a)\n "
    body = root + "r = Reciprocal(s)\n n = Mul(x, r)\n y = Mul(n, g)"
    assert {"q", "v", "a", "s", "r"} <= found("norm", body)
    assert "n" in found("norm", body.replace("(v, e)", "(v, tiny)"))


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, x)\n r = Sqrt(a)\n y = Tanh(r)",  # a root of squares that nothing sums: |x|
        "a = Abs(x)\n r = Sqrt(a)\n y = Tanh(r)",  # no square
        "q = Mul(x, x)\n v = ReduceMean <axes = [-1]> (q)\n y = Mul(x, v)",  # no root
        "q = Pow(x, g)\n v = ReduceMean <axes = [-1]> (q)\n r = Sqrt(v)\n y = Mul(x, r)",  # another power
    ],
)
def test_what_is_no_norm(body: str) -> None:
    assert found("norm", body) == set()


def test_a_decomposed_softmax() -> None:
    body = "k = ReduceMax <axes = [-1]> (x)\n d = Sub(x, k)\n e1 = Exp(d)\n s = ReduceSum(e1, ax)\n y = Div(e1, s)"
    assert {"e1", "s", "y"} <= found("exp-sum", body, weights="<int64[1] ax = {-1}>")


@pytest.mark.parametrize("body", ["a = Exp(x)\n y = Tanh(a)", "a = Exp(x)\n y = Mul(a, x)", "a = Exp(x)\n y = Add(a, x)"])
def test_an_exponential_that_is_not_summed_and_divided(body: str) -> None:
    assert found("exp-sum", body) == set()


def test_a_tiny_constant_that_protects_a_division() -> None:
    kept = found("small-epsilon", "a = Abs(x)\n b = Add(a, tiny)\n y = Div(x, b)")
    assert {"b", "y"} <= kept


def test_the_figure_is_the_constant() -> None:
    _, names, _ = grouped(f"{IO} {WEIGHTS} {{ a = Abs(x)\n b = Add(a, tiny)\n y = Div(x, b) }}")
    match = next(iter(BY_NAME["small-epsilon"].find(list(names.nodes()), FP16)))
    assert match.figures["epsilon"] == pytest.approx(1e-12)


@pytest.mark.parametrize(
    "body",
    [
        "a = Abs(x)\n b = Add(a, tiny)\n y = Mul(x, b)",  # it protects nothing
        "a = Abs(x)\n b = Add(a, one)\n y = Div(x, b)",  # it is not tiny
        "a = Abs(x)\n b = Mul(a, tiny)\n y = Tanh(b)",  # it is a factor
    ],
)
def test_a_constant_that_may_be_half(body: str) -> None:
    assert found("small-epsilon", body) == set()


def test_a_logarithm_keeps_what_computes_its_argument() -> None:
    assert {"a", "y"} <= found("log", "a = Softmax(x)\n y = Log(a)")
    assert found("log", "y = Log(x)") == set(), "nothing behind it: the block list alone has it"


def test_a_sum_that_is_divided_by_a_count() -> None:
    body = "s = ReduceSum <keepdims = 1> (x, ax)\n n = Div(s, big)\n y = Add(x, n)"
    assert {"s", "n"} <= found("wide-sum", body, weights="<int64[1] ax = {-1}, float big = {4096}>")
    assert found("wide-sum", body.replace("Div(s, big)", "Tanh(s)"), weights="<int64[1] ax = {-1}, float big = {1}>") == set()


@pytest.mark.parametrize("factor,kept", [("4096", True), ("1024", True), ("1000", False), ("70000", False), ("-4096", True)])
def test_a_large_factor(factor: str, kept: bool) -> None:
    """Beyond 65,504 the weight itself is out of range, which is another rule's business."""
    body = "a = Mul(x, k)\n y = Softmax(a)"
    assert bool(found("scale-up", body, weights=f"<float k = {{{factor}}}>")) is kept


def test_a_division_by_a_small_number_is_a_large_factor() -> None:
    assert {"a", "y"} <= found("scale-up", "a = Div(x, k)\n y = Sigmoid(a)", weights="<float k = {0.0001}>")


@pytest.mark.parametrize("low", ["-1e9", "-10000", "-3.4028234663852886e38"])
def test_a_mask_that_is_added(low: str) -> None:
    weights = f"<float[4] k = {{0, 0, {low}, {low}}}>"
    assert {"a", "y"} == found("mask-sum", "a = Add(x, k)\n y = Softmax(a)", weights=weights)


def test_a_mask_that_is_selected_may_be_half() -> None:
    weights = "<bool[4] m = {1, 0, 1, 0}, float k = {-1e9}>"
    assert found("mask-sum", "a = Where(m, x, k)\n y = Softmax(a)", weights=weights) == set()


def test_a_bias_is_no_mask() -> None:
    assert found("mask-sum", "a = Add(x, g)\n y = Softmax(a)") == set()


ATTENTION = "s = MatMul(x, t)\n t = Transpose(x)\n c = Div(s, one)\n p = Softmax(c)\n y = MatMul(p, x)"


def test_attention_scores() -> None:
    assert found("softmax-attention", ATTENTION) == {"s", "c", "p"}
    assert found("softmax-attention", "a = Add(x, x)\n y = Softmax(a)") == set()


def test_positions_from_sizes_and_integers() -> None:
    body = "s = Shape(x)\n i = Gather(s, z)\n f = Cast <to = 1> (i)\n p = Mul(f, h)\n y = Mul(x, p)"
    kept = found("shape-arithmetic", body, weights="<int64 z = {0}, float h = {0.5}>")
    assert {"f", "p"} <= kept and "y" not in kept


@pytest.mark.parametrize("to,kept", [(7, True), (6, True), (9, True), (11, False)])
def test_what_becomes_an_integer(to: int, kept: bool) -> None:
    body = f"a = Mul(x, x)\n b = Cast <to = {to}> (a)\n y = Cast <to = 1> (b)"
    assert ("a" in found("shape-arithmetic", body)) is kept


@pytest.mark.parametrize("op", ["Ceil", "Floor", "Round"])
def test_what_is_rounded_to_whole_numbers(op: str) -> None:
    assert {"a", "b"} <= found("shape-arithmetic", f"a = Mul(x, x)\n b = {op}(a)\n y = Tanh(b)")


def test_a_counter_in_a_loop() -> None:
    body = (
        "y = Loop(n, c, x) <body = b (int64 i, bool k, float[2,4] s) => (bool k2, float[2,4] s2)"
        " { k2 = Identity(k)\n s2 = Add(s, one) }>"
    )
    io = "(int64 n, bool c, float[2,4] x) => (float[2,4] y)"
    assert {"y", "s2"} <= found("shape-arithmetic", body, io=io)
    assert "s2" not in found("shape-arithmetic", body.replace("Add(s, one)", "Tanh(s)"), io=io)


def test_foreign_operators_are_in_no_pattern() -> None:
    graph = LAYER_NORM.replace("Sqrt", "my.domain.Sqrt")
    assert found("norm", graph, imports=', "my.domain" : 1') == set()


# --- integer kernels, masks that only pad, filter banks --------------------------------------------------------------


def test_what_runs_between_dequantise_and_quantise() -> None:
    weights = "<float s = {0.1}, uint8 z = {0}, int8[4,4] q = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, int8 zq = {0}>"
    body = (
        "a = QuantizeLinear(x, s, z)\n b = DequantizeLinear(a, s, z)\n w = DequantizeLinear(q, s, zq)\n m = MatMul(b, w)\n"
        " r = Relu(m)\n c = QuantizeLinear(r, s, z)\n y = DequantizeLinear(c, s, z)"
    )
    assert {"m", "r"} <= found("quantised", body, io="(float[4,4] x) => (float[4,4] y)", weights=weights)


def test_a_weight_that_alone_is_quantised_may_be_read_in_half() -> None:
    weights = "<float s = {0.1}, int8[4,4] q = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, int8 z = {0}>"
    body = "w = DequantizeLinear(q, s, z)\n y = MatMul(x, w)"
    assert found("quantised", body, io="(float[4,4] x) => (float[4,4] y)", weights=weights) == set()


def test_a_filter_bank_between_squares_and_a_logarithm_is_kept() -> None:
    weights = "<float[4,4] g = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, float two = {2}, float tiny = {1e-10}>"
    io = "(float[3,4] x) => (float[3,4] y)"
    assert {"q", "m", "a"} <= found(
        "small-epsilon", "q = Pow(x, two)\n m = MatMul(q, g)\n a = Max(m, tiny)\n y = Log(a)", io=io, weights=weights
    )


def test_an_ordinary_product_before_a_norm_is_not() -> None:
    weights = "<float[4,4] g = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, float two = {2}, float tiny = {1e-10}>"
    body = (
        "h = MatMul(x, g)\n q = Pow(h, two)\n w = MatMul(h, g)\n e = Softmax(w)\n p = Mul(q, e)\n"
        " v = ReduceSum <keepdims = 1> (p)\n a = Max(v, tiny)\n r = Sqrt(a)\n y = Div(h, r)"
    )
    kept = found("small-epsilon", body, io="(float[3,4] x) => (float[3,4] y)", weights=weights)
    assert "q" in kept and not {"h", "w"} & kept


@pytest.mark.parametrize(
    ("io", "call", "kept"),
    [
        ("(float[2,1023] x) => (float[2,1] y)", "ReduceMean <axes = [-1]> (x)", False),
        ("(float[2,1024] x) => (float[2,1] y)", "ReduceMean <axes = [-1]> (x)", True),
        ("(float[2,n] x) => (float[2,1] y)", "ReduceMean <axes = [-1]> (x)", True),
        ("(float[4096,3] x) => (float[1,3] y)", "ReduceMean <axes = [0]> (x)", True),
        ("(float[2,4096,3] x) => (float[2,1,3] y)", "ReduceMean <axes = [1]> (x)", False),
        ("(float[64,64] x) => (float[1,1] y)", "ReduceMean (x)", True),
    ],
)
def test_a_mean_of_many_numbers_at_an_end_of_the_shape(io: str, call: str, kept: bool) -> None:
    """The GPU's kernel for leading or trailing axes rounds the sum to half; cuDNN's for axes in the middle does not."""
    assert found("wide-mean", f"y = {call}", io=io) == ({"y"} if kept else set())
