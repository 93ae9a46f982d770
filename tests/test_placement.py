"""Which kernels the nodes of a planned model get."""

from __future__ import annotations

import io
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from halfconv.inspection import inspect
from halfconv.precision.rules import Rules
from halfconv.report.console import show_inspect

TEXT = """
g (float[1,2,8,8] x, float[1,2,8,8] w, int64[1] i) => (float[1,2,7,7] y, int64[1] k) {
    m = MatMul(x, w)
    c = Clip(m)
    g = Mish(c)
    p = MaxPool<kernel_shape=[2,2]>(g)
    y = Reciprocal(p)
    k = Neg(i)
}
"""


def save(path: Path, text: str = TEXT, opset: int = 22, domain: str = "") -> Path:
    opsets = [onnx.helper.make_opsetid("", opset), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(onnx.helper.make_model(onnx.parser.parse_graph(text), opset_imports=opsets, ir_version=10), path)
    return path


def placed(path: Path, target: str, to: str = "fp16", **rules: tuple[str, ...]) -> dict[tuple[str, str], tuple[str, str, int]]:
    report = inspect(path, target=target, to=to, rules=Rules(**rules))
    return {(p.provider, f"{p.op}-{p.version}"): (p.dtype, p.runs, p.nodes) for p in report.placement}


def test_cuda_leaves_versions_without_a_kernel_to_the_cpu(tmp_path: Path) -> None:
    found = placed(save(tmp_path / "m.onnx"), "cuda")
    assert found == {
        ("cuda", "MaxPool-22"): ("float16", "cpu", 1),
        ("cuda", "Clip-13"): ("float16", "native", 1),
        ("cuda", "Mish-22"): ("float16", "native", 1),
        ("cuda", "MatMul-13"): ("float16", "native", 1),
        ("cuda", "Reciprocal-13"): ("float", "native", 1),
    }
    assert placed(save(tmp_path / "old.onnx", opset=18), "cuda")["cuda", "MaxPool-12"] == ("float16", "native", 1)


def test_the_cpu_computes_most_in_float(tmp_path: Path) -> None:
    found = placed(save(tmp_path / "m.onnx"), "cpu")
    assert {op: runs for (_, op), (_, runs, _) in found.items()} == {
        "MaxPool-22": "casts", "Clip-13": "native", "Mish-22": "casts", "MatMul-13": "casts", "Reciprocal-13": "native",
    }  # fmt: skip
    floats = placed(tmp_path / "m.onnx", "cpu", block_ops=("MaxPool", "MatMul", "Mish", "Clip"))
    assert {(dtype, runs) for dtype, runs, _ in floats.values()} == {("float", "native")}


def test_a_portable_model_is_for_both_and_others_are_not_known(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    assert placed(path, "portable") == placed(path, "cuda") | placed(path, "cpu")
    for target in ("tensorrt", "coreml", "web"):
        assert not placed(path, target)


def test_bfloat16_is_not_for_the_cpu(tmp_path: Path) -> None:
    found = placed(save(tmp_path / "m.onnx"), "portable", "bf16", allow_ops=("MatMul", "Mish"))
    assert {provider for provider, _ in found} == {"cuda"}
    assert found["cuda", "MatMul-13"] == ("bfloat16", "native", 1)
    assert found["cuda", "MaxPool-22"] == ("float", "cpu", 1)


def test_what_only_cuda_runs_has_no_kernel_on_the_cpu(tmp_path: Path) -> None:
    text = "g (float[1,2,4] x, float[1,4,4] w) => (float[1,2,4] y) { y = com.microsoft.ComplexMul(x, w) }"
    found = placed(save(tmp_path / "m.onnx", text, 17, "com.microsoft"), "portable")
    assert found["cuda", "com.microsoft::ComplexMul-1"][1] == "native"
    assert found["cpu", "com.microsoft::ComplexMul-1"][1] == "nowhere"


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_the_console_says_what_does_not_run_there(tmp_path: Path, target: str) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    show_inspect(inspect(save(tmp_path / "m.onnx"), target=target), console)
    said = console.export_text()
    if target == "cuda":
        assert "4 of 5 nodes with floating-point numbers have a kernel; on the CPU instead: MaxPool-22 1" in said
    else:
        assert "1 of 4 half nodes run in half; in FP32 between Casts: MatMul-13 1, MaxPool-22 1, Mish-22 1" in said
