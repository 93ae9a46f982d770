"""Random graphs to BF16: valid, at an opset that has the types, the same interface, and right in simulation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import halfconv
from tests import random_graphs, structure
from tests.random_graphs import FRAGILE, RandomModel, random_models
from tests.runtime_helpers import full_check, run
from tests.simulation import FLOAT, simulate
from tests.test_random_graphs import QUIET, SLACK, added, outline, prune, walk

BF16 = TensorProto.BFLOAT16
#: 2⁻⁸ against 2⁻¹¹.
COARSER = 8


@st.composite
def cases(draw: Any, steps: int, depth: int) -> tuple[RandomModel, bool]:
    with mock.patch.object(random_graphs, "ROUND", COARSER * random_graphs.ROUND):
        case = draw(random_models(steps, depth))
    prune(case.model)
    return case, draw(st.booleans())


def check_case(case: RandomModel, half_io: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.onnx"
        onnx.save(case.model, source)
        try:
            result = halfconv.convert(source, to="bf16", half_io=half_io, check=False)
        except halfconv.UnsupportedModel as error:
            assert "opset 22" in str(error)
            return
        made = onnx.load(result.output)
        full_check(result.output)
        _check_types(case, result, made, half_io)
        _check_answers(case, result)
        again = halfconv.convert(result.output, folder / "again.onnx", to="bf16", half_io=half_io, check=False)
        assert again.casts == 0 and outline(onnx.load(again.output)) == outline(made)


def _check_types(case: RandomModel, result: Any, made: onnx.ModelProto, half_io: bool) -> None:
    entries = [site for site in structure.of_type(made, "Cast") if added(site)]
    assert len(entries) == result.casts
    assert not any(TensorProto.FLOAT16 in (*s.inputs, *s.outputs) for s in entries)
    assert all(entry.reason and entry.rule for entry in result.fp32)
    before, after = case.model.opset_import[0].version, result.opset
    if after >= 22 > before:
        assert made.ir_version >= 10 and any("raised to opset 22" in text for text in result.warnings)
        assert result.values["half"]
    wanted = onnx.ModelProto()
    wanted.CopyFrom(case.model)
    for value in (*wanted.graph.input, *wanted.graph.output) if half_io else ():
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = BF16
    assert structure.signature(made) == structure.signature(wanted)


def _check_answers(case: RandomModel, result: Any) -> None:
    runnable = onnx.ModelProto()
    runnable.CopyFrom(case.model)
    for index, node in enumerate(walk(runnable.graph)):
        node.name = f"n{index}"  # ONNX Runtime refuses two nodes of one name
    reference, answer = run(runnable, [case.feeds]), simulate(result.output, [case.feeds])
    assert answer.loads, f"{answer.failure} {answer.stumbled}"
    for value in case.outputs:
        want, got = reference.outputs[0][value.name], answer.outputs[0][value.name]
        assert got.shape == want.shape
        if value.error == FRAGILE:
            continue
        if value.kind in "ib":
            np.testing.assert_array_equal(got, want)
            continue
        limit = 2 * value.error + COARSER * SLACK
        gap = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
        assert gap <= limit, f"{value.name} is off by {gap:.3g}, at most {limit:.3g} is explained"


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(cases(steps=8, depth=1))
def test_small_graphs(given_case: tuple[RandomModel, bool]) -> None:
    check_case(*given_case)


@pytest.mark.slow
@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(cases(steps=12, depth=2))
def test_large_graphs(given_case: tuple[RandomModel, bool]) -> None:
    check_case(*given_case)
