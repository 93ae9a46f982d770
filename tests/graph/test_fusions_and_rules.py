"""Rules of the user beat fusions: what a rule names is not taken up by a fusion of the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import halfconv
from tests.graph.test_fusions import PROJECTED, PROJECTIONS, SHAPES, B, S, W, build, normal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = PROJECTED.replace("p = Softmax", "[soft] p = Softmax").replace("qa = MatMul", "[query] qa = MatMul")
    ir.save(build(graph, SHAPES | PROJECTIONS), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    "rule,left,said",
    [
        ({}, {"Attention"}, ""),
        ({"block_ops": ["Softmax"]}, set(), "MultiHeadAttention is not fused: --block-op Softmax names what it would take up"),
        ({"block_nodes": ["so.t"]}, set(), "MultiHeadAttention is not fused: --block-node so.t names what it would take up"),
        ({"block_patterns": ["softmax-attention"]}, set(),
         "MultiHeadAttention is not fused: --block-pattern softmax-attention names what it would take up"),
        ({"allow_nodes": ["query"]}, {"MultiHeadAttention"},
         "Attention is not fused: --allow-node query names what it would take up"),
    ],
    ids=["none", "operator", "node", "pattern", "projection"],
)  # fmt: skip
def test_what_a_rule_names_is_not_fused(rule: dict[str, Any], left: set[str], said: str, path: Path) -> None:
    samples = [{"x": normal(B, S, W)}]
    result = halfconv.convert(path, path.with_name("h.onnx"), target="cuda", samples=samples, **rule)
    proto = onnx.load(result.output)
    assert {node.op_type for node in proto.graph.node if node.domain} == left
    assert (said in result.warnings) == bool(said)
    if "block_ops" in rule:
        assert [entry.value for entry in result.fp32 if entry.rule == "user-block"] == ["p"]
    assert result.plan is not None
    again = halfconv.convert(path, path.with_name("again.onnx"), plan=result.plan)
    assert path.with_name("again.onnx").read_bytes() == result.output.read_bytes()
    assert again.values == result.values
