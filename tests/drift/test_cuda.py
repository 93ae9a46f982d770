"""`validate --on cuda`: the real thing, on a machine that has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import halfconv

pytestmark = pytest.mark.gpu

GRAPH = """g (float[4,32] x) => (float[4,32] y) <float two = {2}> {
    s = Mul(x, x)
    t = Mul(s, two)
    y = Sqrt(t)
}"""


def _cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/dev/nvidiactl").exists()


needs_cuda = pytest.mark.skipif(not _cuda(), reason="needs a CUDA device and onnxruntime-gpu")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the same all in half."""
    model = onnx.helper.make_model(
        onnx.parser.parse_graph(GRAPH), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )  # fmt: skip
    onnx.save(model, tmp_path / "model.onnx")
    options = {"block_list": "none", "allow_ops": ["Mul", "Sqrt"], "check": False}
    halfconv.convert(tmp_path / "model.onnx", tmp_path / "half.onnx", **options)  # type: ignore[arg-type]
    return tmp_path / "model.onnx", tmp_path / "half.onnx"


@needs_cuda
def test_the_gpu_gives_what_the_simulation_predicts(pair: tuple[Path, Path]) -> None:
    samples = [{"x": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}]
    real, predicted = (halfconv.validate(*pair, samples=samples, on=on) for on in ("cuda", "simulate"))
    assert real.on == "cuda" and real.passed and predicted.passed
    assert real.outputs[0].measures.rel_l2 == pytest.approx(predicted.outputs[0].measures.rel_l2, rel=0.05)


@needs_cuda
def test_what_overflows_on_the_gpu_overflows_in_simulation(pair: tuple[Path, Path]) -> None:
    samples = [{"x": np.full((4, 32), 200, np.float32)}]
    real, predicted = (halfconv.validate(*pair, samples=samples, on=on) for on in ("cuda", "simulate"))
    assert not real.passed and not predicted.passed
    assert real.outputs[0].measures.new_inf == predicted.outputs[0].measures.new_inf == 128
