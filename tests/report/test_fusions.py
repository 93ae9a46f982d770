"""`inspect --fusions`: what was fused and what was not, on the console and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

import halfconv
from halfconv.cli import main
from halfconv.report.fusions import show_fusions
from tests.graph.test_fusions import build as model
from tests.graph.test_fusions import normal

SCHEMA = json.loads((Path(halfconv.__file__).parent / "schemas/inspect.schema.json").read_text("utf-8"))
#: A convolution with an activation, and a GELU.
GRAPH = (
    "(float[b,3,6,6] x) => (float[b,4,4,4] y) { [conv] c = Conv(x, w)\n [relu] r = Relu(c)\n [div] d = Div(r, root)\n"
    " [erf] e = Erf(d)\n [one] a = Add(e, one)\n [mul] m = Mul(r, a)\n [gelu] y = Mul(m, half) }"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    numbers = {name: np.array(number, np.float32) for name, number in (("root", 2**0.5), ("one", 1), ("half", 0.5))}
    ir.save(model(GRAPH, numbers | {"w": normal(4, 3, 3, 3)}), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def shown(path: Path, **options: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        show_fusions(halfconv.inspect(path, **options), console)
    return " ".join(capture.get().split())


def test_fusions_and_refusals_have_a_node_and_a_reason(path: Path) -> None:
    text = shown(path, target="cuda")
    assert "Fused fusion number for example why Gelu 1 gelu five passes over memory become one" in text
    assert "Not fused fusion number for example reason FusedConv 1 relu" in text
    assert "has no FLOAT16 CUDA kernel for FusedConv" in text


def test_the_default_says_what_cuda_has_beyond_it(path: Path) -> None:
    text = shown(path)
    assert "nothing is fused" in text and "--target cuda" in text and "Gelu" not in text


def test_the_command_shows_the_tables_and_json_holds_them(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--fusions", "--target", "cuda"], ["--fusions", "--target", "cuda", "--json"]):
        main(["inspect", str(path), *arguments])
    shown_text, _, printed = capfd.readouterr().out.partition("{")
    assert "FusedConv" in shown_text
    content = json.loads("{" + printed)
    jsonschema.validate(content, SCHEMA)
    assert content["target"] == "cuda" and content["fusions"] == {"Gelu": 1}
    assert content["fused"] == [{"fusion": "Gelu", "count": 1, "node": "gelu", "why": "five passes over memory become one"}]
    assert [(entry["fusion"], entry["node"]) for entry in content["refused"]] == [("FusedConv", "relu")]


def test_bf16_is_refused_for_its_own_kernels(path: Path) -> None:
    (refusal,) = halfconv.inspect(path, target="cuda", to="bf16").refused
    assert refusal.reason.endswith("has no BFLOAT16 CUDA kernel for FusedConv")
