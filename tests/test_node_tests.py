"""ONNX's own node tests, converted one by one: right within half precision, or refused with a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import halfconv
from tests import structure
from tests.node_cases import NodeCase, node_cases, wrong
from tests.onnx_node_exceptions import BEYOND_HALF, BEYOND_HALF_WITH_HALF_IO, REFUSED, REFUSED_WITH_HALF_IO
from tests.runtime_helpers import Failure, full_check, isolate, job, run_all
from tests.simulation import FLOAT

pytestmark = pytest.mark.slow

TOLERANCE = 2e-2

# Operators that a half-precision model consists of. With half inputs and outputs nothing speaks for FP32.
# fmt: off
COMMON = [
    "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Elu",
    "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg",
    "Pad", "PRelu", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub",
    "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
]
# fmt: on
# Operators that are worth two Casts even alone between FP32 inputs and outputs.
HEAVY = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def _convert(item: tuple[bytes, str, bool]) -> str:
    model, stem, half_io = item
    source, target = Path(f"{stem}.onnx"), Path(f"{stem}.half.onnx")
    source.write_bytes(model)
    result = halfconv.convert(source, target, half_io=half_io, check=False)
    assert source.read_bytes() == model, "the input was touched"
    try:
        full_check(source)
    except onnx.shape_inference.InferenceError:
        # onnx's own inference fails on a few of its node tests (MeanVarianceNormalization before opset 18).
        onnx.checker.check_model(str(result.output))
    else:
        full_check(result.output)
    return str(result.output)


@dataclass(frozen=True)
class Converted:
    """All node tests after conversion: what went wrong with each, and the files of those that converted."""

    cases: tuple[NodeCase, ...]
    refused: dict[str, str]
    wrong: dict[str, str]
    broken: dict[str, str]
    files: dict[str, str]

    @property
    def right(self) -> int:
        return len(self.cases) - len(self.refused) - len(self.wrong) - len(self.broken)


def _refusals() -> set[str]:
    kinds = [halfconv.HalfconvError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__ for kind in kinds}


def _tolerances(want: Any) -> float:
    """The absolute tolerance: 2e-2 of the largest answer, and at most 2e-2."""
    arrays = want if isinstance(want, list) else [want]
    largest = 0.0
    for array in arrays:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and np.isfinite(array).any():
            largest = max(largest, float(np.abs(array[np.isfinite(array)]).max()))
    return TOLERANCE * min(largest, 1.0)


def _wrong(case: NodeCase, outputs: list[dict[str, Any]]) -> str:
    atol = max((_tolerances(value) for answer in case.answers for value in answer.values()), default=0.0)
    return wrong(case, outputs, rtol=TOLERANCE, atol=atol)


def _all(folder: Path, *, half_io: bool) -> Converted:
    cases = node_cases()
    names = _refusals()
    answers = isolate(_convert, [(case.model, str(folder / case.name), half_io) for case in cases])
    refused, broken, files = {}, {}, {}
    for case, answer in zip(cases, answers, strict=True):
        if not isinstance(answer, Failure):
            files[case.name] = answer
        elif answer.kind in names and answer.message and "\n" not in answer.message:
            refused[case.name] = answer.message
        else:
            broken[case.name] = f"convert: {answer.kind}: {answer.message}"
    converted = [case for case in cases if case.name in files]
    outcomes = run_all([job(files[case.name], case.feeds, fit=True) for case in converted])
    bad = {}
    for case, outcome in zip(converted, outcomes, strict=True):
        if outcome.failure is not None:
            broken[case.name] = f"{outcome.failure.kind}: {outcome.failure.message}"
        elif text := _wrong(case, outcome.outputs):
            bad[case.name] = text
    return Converted(cases, refused, bad, broken, files)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _all(tmp_path_factory.mktemp("keep_io"), half_io=False)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _all(tmp_path_factory.mktemp("half_io"), half_io=True)


def _lines(found: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in sorted(found.items()))


def test_enough_node_tests_are_tried() -> None:
    assert len(node_cases()) >= 1_119


@pytest.mark.parametrize("which", ["kept", "halved"])
def test_every_file_is_valid_and_loads_and_nothing_crashes(which: str, request: pytest.FixtureRequest) -> None:
    broken = request.getfixturevalue(which).broken
    assert not broken, _lines(broken)


def _are(found: dict[str, str], known: dict[str, str]) -> None:
    """The found names are the known ones, no more and no fewer."""
    new = {name: text for name, text in found.items() if name not in known}
    assert not new, f"not known:\n{_lines(new)}"
    gone = {name: text for name, text in known.items() if name not in found}
    assert not gone, f"no longer so, take it off the list:\n{_lines(gone)}"


def test_refusals_are_the_known_ones(kept: Converted) -> None:
    _are(kept.refused, REFUSED)


def test_wrong_answers_are_those_that_half_cannot_hold(kept: Converted) -> None:
    _are(kept.wrong, BEYOND_HALF)


def test_enough_are_right(kept: Converted) -> None:
    right, share = kept.right, kept.right / len(kept.cases)
    assert right >= 1_080
    assert share >= 0.97


def test_refusals_with_half_io_are_the_known_ones(halved: Converted) -> None:
    _are(halved.refused, REFUSED_WITH_HALF_IO)


def test_wrong_answers_with_half_io_are_those_that_half_cannot_hold(halved: Converted) -> None:
    _are(halved.wrong, BEYOND_HALF_WITH_HALF_IO)


def test_enough_are_right_with_half_io(halved: Converted) -> None:
    right = halved.right
    assert right >= 1_080


def _runs_in_float(case: NodeCase, path: str) -> bool:
    """Whether the case's operator gives FP32 in the converted model; statistics beside its first output may be."""
    return any(site.outputs[0] == FLOAT for site in structure.of_type(path, case.op))


def _single(converted: Converted, ops: list[str]) -> list[NodeCase]:
    return [
        case
        for case in converted.cases
        if case.op in ops and case.alone and case.name in converted.files and not case.holds_sequences
    ]


def test_common_operators_run_in_half_where_the_interface_is_half(halved: Converted) -> None:
    cases = _single(halved, COMMON)
    assert {case.op for case in cases} == set(COMMON)
    left = Counter(case.op for case in cases if _runs_in_float(case, halved.files[case.name]))
    assert not left


def test_heavy_operators_run_in_half_between_fp32_inputs_and_outputs(kept: Converted) -> None:
    cases = _single(kept, HEAVY)
    assert {case.op for case in cases} == set(HEAVY)
    assert [case.name for case in cases if _runs_in_float(case, kept.files[case.name])] == []


def test_kept_interfaces_are_kept(kept: Converted) -> None:
    changed = [
        case.name
        for case in kept.cases
        if case.name in kept.files
        and structure.signature(kept.files[case.name])
        != structure.signature(str(Path(kept.files[case.name].replace(".half.onnx", ".onnx"))))
    ]
    assert changed == []


def test_no_cast_is_pointless(kept: Converted, halved: Converted) -> None:
    pointless = {
        name: (structure.round_trips(path), structure.repeated_casts(path), structure.idle_casts(path))
        for converted in (kept, halved)
        for name, path in converted.files.items()
    }
    assert {name: found for name, found in pointless.items() if any(found)} == {}
