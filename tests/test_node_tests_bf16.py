"""ONNX's own node tests, converted to BF16 one by one: valid, and right in simulation within what 8 bits hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.drift.simulate import simulate
from halfconv.model import load
from tests.node_cases import NodeCase, node_cases, wrong
from tests.runtime_helpers import LEVELS, Failure, Job, full_check, isolate, run_all

pytestmark = pytest.mark.slow

TOLERANCE = 5e-2
_ROUNDED_INPUT = "the input itself, rounded to BF16, has another answer"
#: With half inputs and outputs: node test -> why no BF16 model answers it, or why it is refused.
BEYOND = {
    "test_ai_onnx_ml_tree_ensemble_set_membership": f"{_ROUNDED_INPUT}: 1.2 is compared with members of a set",
    "test_dynamicquantizelinear": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_expanded": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_max_adjusted": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_max_adjusted_expanded": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_min_adjusted": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_min_adjusted_expanded": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_logsoftmax_large_number": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_logsoftmax_large_number_expanded": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_logsoftmax_large_number_expanded_ver18": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_nonmaxsuppression_iou_threshold_boundary": f"{_ROUNDED_INPUT}: the overlap is exactly the threshold",
    "test_softmax_large_number": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_softmax_large_number_expanded": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_softmax_large_number_expanded_ver18": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 9984",
    "test_stft_with_window": f"{_ROUNDED_INPUT}: bins that are zero are 0.7 beside 952",
    "test_tan": f"{_ROUNDED_INPUT}: an angle beside the pole",
}
REFUSED = {
    "test_scan_sum": "Scan of opset 8 has no equal at opset 22",
    "test_upsample_nearest": "whether it enlarges is known when it runs, and a Resize must say how it rounds",
}


@dataclass(frozen=True)
class Made:
    """A converted node test."""

    simulation: bytes
    half: int


def _convert(item: tuple[bytes, str, bool]) -> Made:
    model, stem, half_io = item
    source, target = Path(f"{stem}.onnx"), Path(f"{stem}.half.onnx")
    source.write_bytes(model)
    result = halfconv.convert(source, target, to="bf16", half_io=half_io, check=False)
    try:
        full_check(source)
    except onnx.shape_inference.InferenceError:
        # onnx's own inference fails on a few of its node tests (MeanVarianceNormalization before opset 18).
        onnx.checker.check_model(str(result.output))
    else:
        full_check(result.output)
    return Made(ir.to_proto(simulate(load(str(target))).model).SerializeToString(), result.values["half"])


def _wrong(case: NodeCase, outputs: list[dict[str, object]]) -> str:
    arrays = [a for answer in case.answers for a in answer.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    largest = max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays), default=0.0)
    return wrong(case, outputs, rtol=TOLERANCE, atol=TOLERANCE * min(largest, 1.0))


@pytest.mark.parametrize(("half_io", "least"), [(False, 400), (True, 1200)])
def test_node_tests_are_right_in_simulation(half_io: bool, least: int, tmp_path: Path) -> None:
    cases = node_cases()
    answers = isolate(_convert, [(case.model, str(tmp_path / case.name), half_io) for case in cases])
    failed = {case.name: answer.message for case, answer in zip(cases, answers, strict=True) if isinstance(answer, Failure)}
    known = REFUSED if half_io else {}
    assert set(failed) == set(known), failed
    assert all("opset 22" in message and "try: " in message for message in failed.values())
    made = [(case, answer) for case, answer in zip(cases, answers, strict=True) if isinstance(answer, Made)]
    assert sum(answer.half > 0 for _, answer in made) >= least
    outcomes = run_all([Job(answer.simulation, case.feeds, True, LEVELS[-1]) for case, answer in made])
    broken = {case.name: outcome.failure for (case, _), outcome in zip(made, outcomes, strict=True) if outcome.failure}
    assert not broken
    bad = {case.name: text for (case, _), outcome in zip(made, outcomes, strict=True) if (text := _wrong(case, outcome.outputs))}
    assert set(bad) == set(BEYOND if half_io else {}), bad
