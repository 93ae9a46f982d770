"""The simulation against an H100: kernel outputs kept in tests/data, and the figures committed in bench/results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bench.simulation_cases import Case, made_cases
from bench.simulation_fused_cases import fused_cases
from halfconv.drift.kernels import UNMODELLED
from halfconv.drift.simulate import simulate
from halfconv.model import load
from tests.runtime_helpers import LEVELS, Failure, Job, _run_in_child, isolate

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
TRUTH = ROOT / "tests" / "data" / "h100_outputs.npz"
#: Share of an output's elements that may differ in the last place: a GPU adds in another order.
DIFFER = 0.08
#: State that is carried on multiplies such differences; here only the size of the error is compared.
RECURRENT = ("GRU", "LSTM", "RNN")
#: Cases that are known to differ, with the reason.
KNOWN = {
    "CumSum_reverse=1": "the GPU adds each reversed sum from its far end, which takes a quadratic number of steps",
    "Resize_linear": UNMODELLED["", "Resize"],
    "positive_ReduceSum_770x6_0_1": "the order of a sum over leading axes is not known",
    "positive_ReduceSum_770x6_0_100": "the order of a sum over leading axes is not known",
    "ms_RotaryEmbedding": UNMODELLED["com.microsoft", "RotaryEmbedding"],
}


@cache
def truth() -> dict[str, dict[str, np.ndarray]]:
    """Outputs of an H100 (onnxruntime-gpu 1.31.1), by case and output."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(TRUTH) as stored:
        for name in stored.files:
            case, output = name.rsplit("/", 1)
            found.setdefault(case, {})[output] = stored[name]
    return found


@cache
def cases() -> dict[str, Case]:
    return {case.name: case for make in (made_cases, fused_cases) for case in make() if case.name in truth()}


def simulated(case: Case, folder: Path) -> dict[str, Any]:
    path = folder / "case.onnx"
    path.write_bytes(case.model)
    data = ir.to_proto(simulate(load(path)).model).SerializeToString()
    feeds = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in case.feeds[0].items()}
    (answer,) = isolate(_run_in_child, [Job(data, [feeds], True, LEVELS[-1])], workers=1)
    assert not isinstance(answer, Failure), answer
    assert answer.loads, answer.failure
    return dict(answer.outputs[0])


def _names() -> Iterator[str]:
    with np.load(TRUTH) as stored:
        yield from sorted({name.rsplit("/", 1)[0] for name in stored.files})


@pytest.mark.parametrize("name", tuple(_names()))
def test_a_kernel_rounds_as_on_an_h100(name: str, tmp_path: Path) -> None:
    case = cases()[name]
    got = simulated(case, tmp_path)
    for output, want in truth()[name].items():
        wanted, found = want.astype(np.float32), got[output].astype(np.float32)
        assert found.shape == wanted.shape
        assert np.array_equal(np.isfinite(found), np.isfinite(wanted)), "NaN and infinities"
        fine = np.isfinite(wanted)
        differ = float((found[fine] != wanted[fine]).mean()) if fine.any() else 0.0
        if case.op in RECURRENT:
            error = np.linalg.norm((found - wanted)[fine]) / np.linalg.norm(wanted[fine])
            assert error < 5e-3
        elif name in KNOWN:
            assert differ <= 1.0
        else:
            few = 1 / max(1, wanted.size) if wanted.size < 40 else 0  # one element of a small output
            assert differ <= max(DIFFER, few), differ


def rows(name: str) -> list[dict[str, Any]]:
    content = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return [row for row in content["rows"] if "agree" in row]


def test_the_predicted_drift_of_real_models_is_within_1_25_of_the_gpus_on_nine_outputs_of_ten() -> None:
    found = rows("simulation_zoo_h100")
    assert len(found) >= 50
    assert sum(row["agree"] for row in found) >= 0.9 * len(found)
    for row in found:
        if row["agree"] and row["gpu_rel_l2"] and row["rel_l2"]:
            assert 0.8 <= row["rel_l2"] / row["gpu_rel_l2"] <= 1.25, row


def test_no_model_passes_in_simulation_that_fails_on_the_gpu() -> None:
    """But for an FP32 model whose neighbours tie: on the GPU it differs from itself on the CPU, without any half value."""
    for row in rows("simulation_zoo_h100"):
        passes = row["rel_l2"] is not None and row["rel_l2"] <= 1e-2
        fails = row["gpu_rel_l2"] is None or row["gpu_rel_l2"] > 1e-2
        assert not (passes and fails) or row["case"].endswith("--fp32"), row


def test_node_tests_agree_with_the_gpu() -> None:
    found = rows("simulation_fidelity_h100")
    assert len(found) >= 1700
    assert sum(row["agree"] for row in found) >= 0.97 * len(found)


def test_what_is_not_modelled_is_short_and_holds_no_common_operator() -> None:
    common = {
        "Add", "Attention", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Erf", "Exp", "Gelu", "Gemm",
        "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "MatMul", "Mul",
        "MultiHeadAttention", "Pow", "RMSNormalization", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
        "Sigmoid", "Softmax", "Sqrt", "Sub", "Tanh",
    }  # fmt: skip
    assert len(UNMODELLED) <= 10
    assert not common & {op for _, op in UNMODELLED}
    assert all(UNMODELLED.values())
