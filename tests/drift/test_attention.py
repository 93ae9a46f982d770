"""Attention that is written out, against numpy, and the forms that are not: they give what FP32 gives, rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfconv.errors import UnsupportedModel
from tests.drift.simulating import Array, h, half_model, ops_of, result, run, same, simulated

B, S, N, D = 2, 6, 4, 16
HIDDEN = N * D
RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def split(x: Array) -> Array:
    return x.reshape(*x.shape[:2], N, -1).transpose(0, 2, 1, 3)


def join(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def attend(q: Array, k: Array, v: Array, bias: Any = 0.0, scale: float = D**-0.5) -> Array:
    """In FP32, rounded once."""
    scores = split(q) @ split(k).transpose(0, 1, 3, 2) * np.float32(scale) + bias
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return h(join((e / e.sum(-1, keepdims=True)) @ split(v)))


def flash(q: Array, k: Array, v: Array, bias: Any = 0.0, scale: float = D**-0.5) -> Array:
    """Exponentials are rounded before they meet the values."""
    scores = split(q) @ split(k).transpose(0, 1, 3, 2) * np.float32(scale) + bias
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return h(join((h(e) @ split(v)) / e.sum(-1, keepdims=True)))


def model(
    op: str, arrays: dict[str, Array | None], attributes: str = "", outputs: tuple[str, ...] = ("y",)
) -> tuple[Any, dict[str, Any]]:
    given = {name: array for name, array in arrays.items() if array is not None}
    inputs = ", ".join(name if array is not None else "" for name, array in arrays.items())
    floats = {name: list(array.shape) for name, array in given.items() if array.dtype.kind == "f"}
    body = f"{', '.join(outputs)} = com.microsoft.{op}<num_heads = {N}{attributes}>({inputs})"
    weights = {name: array for name, array in given.items() if array.dtype.kind != "f"}
    return half_model(body, floats, outputs, weights=weights, opset=17), {name: given[name] for name in floats}


Q, K, V = normal(B, S, HIDDEN), normal(B, 9, HIDDEN), normal(B, 9, HIDDEN)
X, W, BIAS = normal(B, S, HIDDEN), normal(HIDDEN, 3 * HIDDEN, scale=0.1), normal(3 * HIDDEN)
MASK = np.ones((B, S), np.int32)
MASK[1, 4:] = 0
LOW = np.where(MASK[:, None, None] == 1, 0, np.float32(-10000))


def near(got: Array, want: Array, share: float = 0.02) -> None:
    same(got, h(got))
    assert (got != want).mean() <= share
    np.testing.assert_allclose(got, want, rtol=4e-3, atol=2e-3)


def projected(x: Array = X) -> list[Array]:
    return list(np.split(h(h(h(x) @ h(W)) + h(BIAS)), 3, axis=-1))


@pytest.mark.parametrize(("attributes", "scale"), [("", D**-0.5), (", scale = 0.3", 0.3)])
def test_multi_head_attention(attributes: str, scale: float) -> None:
    source, feeds = model("MultiHeadAttention", {"q": Q, "k": K, "v": V}, attributes)
    near(result(source, feeds), flash(h(Q), h(K), h(V), scale=scale))


def test_multi_head_attention_with_a_bias_of_scores() -> None:
    bias = normal(B, N, S, 9, scale=3)
    source, feeds = model("MultiHeadAttention", {"q": Q, "k": K, "v": V, "b": None, "m": None, "s": bias})
    near(result(source, feeds), flash(h(Q), h(K), h(V), h(bias)))


def test_attention_projects_in_half() -> None:
    source, feeds = model("Attention", {"x": X, "w": W, "b": BIAS})
    near(result(source, feeds), flash(*projected()))


def test_attention_with_a_bias_of_scores() -> None:
    bias = normal(B, 1, S, S)
    source, feeds = model("Attention", {"x": X, "w": W, "b": BIAS, "m": None, "p": None, "s": bias})
    near(result(source, feeds), flash(*projected(), h(bias)))


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        np.array([6, 4], np.int32),
        np.broadcast_to(MASK[:, None], (B, S, S)).copy(),
        np.array([6, 4, 0, 6, 12, 0, 6, 12], np.int32),
        np.array([6, 4, 0, 0], np.int32),
    ],
    ids=["rows", "lengths", "pairs", "lengths and offsets", "ends and starts"],
)
def test_masks_of_every_form(mask: Array) -> None:
    source, feeds = model("Attention", {"x": X, "w": W, "b": BIAS, "m": mask})
    got, want = result(source, feeds), attend(*projected(), LOW)
    same(got, h(got))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


def test_a_causal_attention() -> None:
    causal = np.where(np.tril(np.ones((S, S))) == 1, 0, np.float32(-1e9))
    source, feeds = model("Attention", {"x": X, "w": W, "b": BIAS}, ", unidirectional = 1")
    near(result(source, feeds), attend(*projected(), causal))


@pytest.mark.parametrize("form", ["keys and values", "all three"])
def test_packed_queries_keys_and_values(form: str) -> None:
    q, k, v = (normal(B, S, HIDDEN) for _ in range(3))
    heads = [x.reshape(B, S, N, D) for x in (q, k, v)]
    if form == "all three":
        source, feeds = model("MultiHeadAttention", {"q": np.stack(heads, 3)})
    else:
        source, feeds = model("MultiHeadAttention", {"q": q, "k": np.stack(heads[1:], 3)})
    near(result(source, feeds), attend(h(q), h(k), h(v)))


def test_a_cache_is_kept_whole_and_rounded() -> None:
    past = {"pk": normal(B, N, 3, D), "pv": normal(B, N, 3, D)}
    arrays = {"q": Q, "k": normal(B, S, HIDDEN), "v": normal(B, S, HIDDEN), "b": None, "m": None, "s": None, **past}
    source, feeds = model("MultiHeadAttention", arrays, outputs=("y", "nk", "nv"))
    simulation = simulated(source)
    assert ops_of(simulation) == ["MultiHeadAttention"]
    got = run(simulation, feeds)
    same(got["nk"][:, :, :3], h(past["pk"]))
    for value in got.values():
        same(value, h(value))


@pytest.mark.parametrize(
    ("attributes", "mask", "form"),
    [(", do_rotary = 1", None, "do_rotary"), ("", np.ones((B, 1, S, S), np.int32), "a mask of rank 4")],
)
def test_forms_that_only_cuda_has_are_refused_by_name(attributes: str, mask: Any, form: str) -> None:
    source, _ = model("Attention", {"x": X, "w": W, "b": BIAS, "m": mask}, attributes)
    with pytest.raises(UnsupportedModel, match=f"Attention with {form} for CUDA only.*try: --on cuda"):
        simulated(source)


def onnx_attention(body: str, arrays: dict[str, Array], opset: int = 23) -> Array:
    bools = {name: array for name, array in arrays.items() if array.dtype.kind == "b"}
    floats = {name: list(array.shape) for name, array in arrays.items() if name not in bools}
    source = half_model(body, floats, weights=bools, opset=opset, ir_version=11)
    got: Array = result(source, {name: arrays[name] for name in floats})
    return got


def test_attention_of_onnx() -> None:
    k, v = normal(B, S, HIDDEN), normal(B, S, HIDDEN)
    want = flash(h(Q), h(k), h(v))
    three = onnx_attention(f"y = Attention<q_num_heads = {N}, kv_num_heads = {N}>(q, k, v)", {"q": Q, "k": k, "v": v})
    four = onnx_attention("y = Attention(q, k, v)", {"q": split(Q), "k": split(k), "v": split(v)})
    near(three, want)
    near(join(four), want)


def test_a_row_that_is_masked_as_a_whole_gives_no_nan() -> None:
    mask = np.ones((S, S), bool)
    mask[2] = False
    k, v = normal(B, S, HIDDEN), normal(B, S, HIDDEN)
    got = onnx_attention("y = Attention(q, k, v, m)", {"q": split(Q), "k": split(k), "v": split(v), "m": mask})
    assert not np.isnan(got).any() and (got[:, :, 2] == 0).all()


@pytest.mark.parametrize("body", ["y = Attention<is_causal = 1>(q, k, v)", "y = Attention<softcap = 2.0>(q, k, v)"])
def test_other_forms_of_onnx_stay_whole(body: str) -> None:
    arrays = {name: split(normal(B, S, HIDDEN)) for name in "qkv"}
    source = half_model(body, {name: list(array.shape) for name, array in arrays.items()}, opset=23, ir_version=11)
    simulation = simulated(source)
    assert ops_of(simulation) == ["Attention"]
    got = run(simulation, arrays)["y"]
    same(got, h(got))
