"""Convolutions of every geometry: as operators of halfconv's own, channels last, they give what ONNX Runtime's Conv gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from halfconv.kernels.channels_last import ChannelsLastPass
from halfconv.kernels.convolutions import Convolution, convolution
from halfconv.kernels.layout import Layout
from halfconv.kernels.operators import define
from tests.kernels import answers, build, widened

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float16)


def as_ours(graph: str, weights: dict[str, np.ndarray], image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an operator of ours of the only Conv, whatever it costs; require the same answer, and return the operator."""
    before, after = build(graph, weights), build(graph, weights)
    (node,) = after.graph
    known = convolution(node)
    assert isinstance(known, Convolution), known
    with monkeypatch.context() as patch:
        patch.setattr("halfconv.kernels.channels_last.choose", lambda graph: Layout({node}, {node: known}))
        ChannelsLastPass()(after)
    function = define(known.op, 20)
    after.functions[function.identifier()] = function
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    feeds = {"x": image.astype(np.float32)}
    want, got = (answers(widened(made), feeds)["y"] for made in (before, after))
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    return known.op


sizes = st.integers(1, 9)


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    found: dict[str, Any] = {"kernel": kernel, "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))}
    found["dilations"] = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    found["auto_pad"] = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if found["auto_pad"] == "NOTSET":
        found["pads"] = draw(st.tuples(*[st.integers(0, 3)] * 4))
    else:
        found["dilations"] = (1, 1)  # ONNX Runtime's SAME pads ignore them
    return found


@settings(max_examples=60, deadline=None)
@given(
    known=geometries(), size=st.tuples(sizes, sizes), batch=st.integers(1, 3), channels=st.sampled_from([8, 16]),
    biased=st.booleans(),
)  # fmt: skip
def test_a_convolution_of_any_geometry(
    known: dict[str, Any], size: tuple[int, int], batch: int, channels: int, biased: bool
) -> None:
    kernel, pads = known["kernel"], known.get("pads", (0, 0, 0, 0))
    for axis in (0, 1):
        padded = size[axis] + pads[axis] + pads[axis + 2]
        assume(known["auto_pad"].startswith("SAME") or padded >= (kernel[axis] - 1) * known["dilations"][axis] + 1)
    text = f'auto_pad = "{known["auto_pad"]}", strides = {list(known["strides"])}, dilations = {list(known["dilations"])}'
    text += f", pads = {list(pads)}" if "pads" in known else ""
    weights = {"w": normal(8, channels, *kernel)} | ({"b": normal(8)} if biased else {})
    shape = f"{batch},{channels},{size[0]},{size[1]}"
    graph = f"(float16[{shape}] x) => (float16[n,m,h,v] y) {{ y = Conv<{text}>(x, w{', b' * biased}) }}"
    with pytest.MonkeyPatch.context() as patch:
        op = as_ours(graph, weights, normal(batch, channels, *size), patch)
    plain = kernel == (1, 1) and known["strides"] == (1, 1) and not any(pads)
    assert op == ("Linear" if plain else "Conv")


@settings(max_examples=25, deadline=None)
@given(
    side=st.sampled_from([3, 5, 7]), size=st.tuples(sizes, sizes), batch=st.integers(1, 3),
    shift=st.tuples(st.integers(-2, 2), st.integers(-2, 2)), same=st.booleans(), biased=st.booleans(),
)  # fmt: skip
def test_a_convolution_of_one_channel_each(
    side: int, size: tuple[int, int], batch: int, shift: tuple[int, int], same: bool, biased: bool
) -> None:
    first = [min(max((side - 1) // 2 + by, 0), side - 1) for by in shift]
    pads = [*first, *(side - 1 - given for given in first)]
    text = 'auto_pad = "SAME_LOWER"' if same else f"pads = {pads}"
    weights = {"w": normal(16, 1, side, side)} | ({"b": normal(16)} if biased else {})
    shape = f"{batch},16,{size[0]},{size[1]}"
    graph = f"(float16[{shape}] x) => (float16[n,m,h,v] y) {{ y = Conv<group = 16, {text}>(x, w{', b' * biased}) }}"
    with pytest.MonkeyPatch.context() as patch:
        assert as_ours(graph, weights, normal(batch, 16, *size), patch) == "DepthwiseConv"


def test_pads_that_depend_on_an_unknown_size_are_refused() -> None:
    made = build('(float16[n,8,h,v] x) => (float16[n,8,i,j] y) { y = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(x, w) }',
                 {"w": normal(8, 8, 3, 3)})  # fmt: skip
    assert convolution(made.graph[0]) == "its auto_pad SAME_UPPER depends on the size of the image"
