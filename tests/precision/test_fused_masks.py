"""Masks of fused attention in half: sentinels become half's lowest number, never −∞, and nothing stays FP32 because of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

import halfconv
from tests.graph.test_fusions import GUARD, MASK, PROJECTED, PROJECTIONS, SHAPES, ZERO, B, S, W, build, normal

LOWEST = float(np.finfo(np.float32).min)
#: How the mask comes about -> the text before attention, and the weights that it reads.
MAKERS = {
    "selected": (", bool[b,1,s,s] c", "m = Where(c, no, low)\n", {"no": 0.0, "low": LOWEST}),
    "scaled": (", float[b,1,1,s] c", "d = Sub(yes, c)\n m = Mul(d, low)\n", {"yes": 1.0, "low": LOWEST}),
    "summed": (", float[1,4,s,s] r, bool[b,1,s,s] c", "f = Where(c, no, low)\n m = Add(r, f)\n", {"no": 0.0, "low": -1e9}),
    "given": (", float[b,1,s,s] m", "", {}),
}


def save(path: Path, inputs: str, made: str, numbers: dict[str, float], change: tuple[str, str]) -> Path:
    graph = PROJECTED.replace("float[b,s,32] x", f"float[b,s,32] x{inputs}").replace("{ qa", f"{{ {made} qa").replace(*change)
    weights = SHAPES | PROJECTIONS | {name: np.array(number, np.float32) for name, number in numbers.items()}
    ir.save(build(graph, weights), path)
    return path


def sample(maker: str) -> dict[str, np.ndarray]:
    keep = MASK == 0
    keys = keep[:, :, :1].astype(np.float32)
    more = {"selected": {"c": keep}, "scaled": {"c": keys}, "summed": {"c": keep, "r": normal(1, 4, S, S)}, "given": {"m": MASK}}
    return {"x": normal(B, S, W), **more[maker]}


@pytest.mark.parametrize(
    "maker,guarded",
    [*((maker, False) for maker in MAKERS), *((maker, True) for maker in MAKERS if maker != "summed")],  # which differs by head
)
def test_attention_with_a_mask_is_half_and_a_masked_row_has_numbers(maker: str, guarded: bool, tmp_path: Path) -> None:
    inputs, made, numbers = MAKERS[maker]
    change = GUARD if guarded else (GUARD[0], "m0 = Add(s, m)\n p = Softmax<axis = -1>(m0)")
    path = save(tmp_path / "m.onnx", inputs, made, numbers | ({"zero": float(ZERO["zero"])} if guarded else {}), change)
    feeds = sample(maker)
    result = halfconv.convert(path, tmp_path / "half.onnx", target="cuda", samples=[feeds], tolerance={"rel_l2": 0.5})
    assert result.fusions == {"Attention": 1} and result.repair is None
    proto = onnx.load(result.output)
    makers = {name: node for node in proto.graph.node for name in node.output}
    (attention,) = [node for node in proto.graph.node if node.op_type == "Attention"]
    bound = makers[attention.input[5]]
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert bound.op_type == "Max" and weights[bound.input[1]].data_type == TensorProto.FLOAT16
    assert numpy_helper.to_array(weights[bound.input[1]]) == -65504
    report = halfconv.validate(path, result.output, samples=[feeds], tolerance={"rel_l2": 0.5})
    assert report.passed and all(output.measures.new_nan == 0 for output in report.outputs)
