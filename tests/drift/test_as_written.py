"""A model that only ONNX Runtime's fusions save passes, as on an H100, with a warning for runtimes that do not fuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import halfconv
from bench.simulation_fused_cases import fused_cases


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """A decomposed LayerNorm with gamma and beta, in FP32 and in half, and inputs of N(0, 300)."""
    case = next(case for case in fused_cases() if case.name == "decomposed_LayerNorm_static_300_1e-5")
    folder = tmp_path_factory.mktemp("norm")
    half, single = (onnx.load_from_string(case.model) for _ in range(2))
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in (a for node in single.graph.node for a in node.attribute if a.t.data_type == TensorProto.FLOAT16):
        attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    onnx.save(half, folder / "half.onnx")
    onnx.save(single, folder / "single.onnx")
    return folder / "single.onnx", folder / "half.onnx", case.feeds[0]["x"].astype(np.float32)


def test_a_fused_norm_passes_and_the_report_says_what_it_rests_on(pair: tuple[Path, Path, np.ndarray]) -> None:
    reference, candidate, x = pair
    report = halfconv.validate(reference, candidate, samples=[{"x": x}])
    assert report.passed
    assert any("only where ONNX Runtime's optimiser is on (LayerNormFusion)" in warning for warning in report.warnings)


def test_a_norm_within_range_needs_no_warning(pair: tuple[Path, Path, np.ndarray]) -> None:
    reference, candidate, x = pair
    report = halfconv.validate(reference, candidate, samples=[{"x": x / 300}])
    assert report.passed and report.warnings == ()
