"""ONNX Runtime takes a library's kernel for an operator of ours, and what the file defines for one that the library lacks.

The library here is for the CPU, where the CUDA kernels cannot run: its Linear gives 1 everywhere, which no product does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.kernels.stage import place
from halfconv.runtime import loading
from halfconv.runtime.kernels import VARIABLE
from halfconv.runtime_process import RuntimeProcess
from tests.kernels import build, half, widened
from tests.kernels.compiled import compiled
from tests.kernels.test_library import stand_in

#: A Linear whose answer is one everywhere.
ONES = """
struct Node {
  const ort::Api* api;
  Node(const ort::Api* api, const ort::Attributes&) : api(api) {}
  void compute(const ort::Run& run) const {
    auto shape = run.input(0).shape;
    shape.back() = run.input(1).last();
    const auto y = run.output(0, shape);
    for (int64_t i = 0; i < y.rows() * y.last(); ++i) static_cast<uint16_t*>(y.data)[i] = 0x3c00;
  }
};
"""
X, WEIGHTS = half(2, 5, 16), {"w": half(16, 24), "b": half(24), "v": half(24, 8), "c": half(8)}


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("ones"), "com.halfconv", "Linear", 3, onnx.TensorProto.FLOAT16, ONES)


def model() -> bytes:
    """A Linear, and a LinearRelu that reads it."""
    made = build(
        "(float16[n,5,16] x) => (float16[n,5,24] y, float16[n,5,8] z) "
        "{ p = MatMul(x, w)\n y = Add(p, b)\n q = MatMul(y, v)\n s = Add(q, c)\n z = Relu(s) }", WEIGHTS,
    )  # fmt: skip
    assert place(made).operators == {"Linear": 1, "LinearRelu": 1}
    return ir.to_proto(made).SerializeToString()


def after(y: np.ndarray) -> np.ndarray:
    return np.maximum(y.astype(np.float32) @ WEIGHTS["v"].astype(np.float32) + WEIGHTS["c"].astype(np.float32), 0)


def test_a_kernel_beats_the_definition_of_the_same_name_and_others_are_inlined(ones: Path) -> None:
    with RuntimeProcess(60) as process:
        for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
            y, z = process.open(model(), level, "CPUExecutionProvider").run(["y", "z"], {"x": X})
            want = X.astype(np.float32) @ WEIGHTS["w"].astype(np.float32) + WEIGHTS["b"].astype(np.float32)
            np.testing.assert_allclose(y, want, rtol=2e-3, atol=2e-2)
            np.testing.assert_allclose(z, after(y), rtol=2e-3, atol=5e-2)
            session = process.open(model(), level, "CPUExecutionProvider", library=ones)
            assert session.problem == ""
            y, z = session.run(["y", "z"], {"x": X})
            assert (y == 1).all()
            np.testing.assert_allclose(z, after(y), rtol=2e-3, atol=5e-2)


def test_a_session_on_cuda_runs_the_library_that_is_named_and_one_on_the_cpu_does_not(
    ones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(ones))
    with halfconv.Session(model(), provider="cpu") as session:
        assert not (session.run({"x": X})["y"] == 1).all()
    stand_in(monkeypatch)
    loaded = loading.load(model(), loading.Wishes(("cuda",)))
    assert not loaded.notes and (loaded.session.run(["y"], {"x": X})[0] == 1).all()
    loaded.close()


def test_a_file_that_defines_an_operator_for_other_types_runs_without_the_library(
    ones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = widened(ir.from_proto(onnx.load_from_string(model()))).SerializeToString()
    feeds = {"x": X.astype(np.float32)}
    want = feeds["x"] @ WEIGHTS["w"].astype(np.float32) + WEIGHTS["b"].astype(np.float32)
    with RuntimeProcess(60) as process:
        session = process.open(wide, "ORT_ENABLE_ALL", "CPUExecutionProvider", library=ones)
        assert session.problem.startswith(f"with {ones}, ") and "Type Error" in session.problem
        np.testing.assert_allclose(session.run(["y"], feeds)[0], want, rtol=1e-4, atol=1e-4)
    monkeypatch.setenv(VARIABLE, str(ones))
    stand_in(monkeypatch)
    loaded = loading.load(wide, loading.Wishes(("cuda",)))
    (note,) = loaded.notes
    assert note.startswith("halfconv's CUDA kernels are not used: with them, ") and "Type Error" in note
    np.testing.assert_allclose(loaded.session.run(["y"], feeds)[0], want, rtol=1e-4, atol=1e-4)
    loaded.close()
