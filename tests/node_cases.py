"""ONNX's own node tests that concern halfconv: FP32 inputs or outputs, and answered right by FP32 ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.runtime_helpers import Feeds, Job, difference, run_all


@dataclass(frozen=True)
class NodeCase:
    """One node test: its model, and for every data set the feeds and the right answers by output name."""

    name: str
    model: bytes
    feeds: tuple[Feeds, ...]
    answers: tuple[dict[str, Any], ...]
    rtol: float
    atol: float

    @cached_property
    def _ops(self) -> list[str]:
        return [node.op_type for node in onnx.load_from_string(self.model).graph.node]

    @property
    def op(self) -> str:
        """The first operator."""
        return self._ops[0]

    @property
    def holds_sequences(self) -> bool:
        """A sequence or an optional value is at the interface."""
        return any(isinstance(value, list) or value is None for data in self.feeds for value in data.values())

    @property
    def alone(self) -> bool:
        """The model is one node."""
        return len(self._ops) == 1


def _is_float(kind: onnx.TypeProto) -> bool:
    match kind.WhichOneof("value"):
        case "tensor_type":
            return kind.tensor_type.elem_type == TensorProto.FLOAT
        case "sequence_type":
            return _is_float(kind.sequence_type.elem_type)
        case "optional_type":
            return _is_float(kind.optional_type.elem_type)
    return False


def _plain(value: Any) -> Any:
    """An array, a list or None, whatever form the test keeps its data in."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if value is None else np.asarray(value)


def _float_cases() -> Iterator[NodeCase]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators of onnx overflow and divide by zero on purpose
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph
        if not any(_is_float(value.type) for value in (*graph.input, *graph.output)):
            continue
        yield NodeCase(
            case.name,
            case.model.SerializeToString(),
            tuple(
                {entry.name: _plain(value) for entry, value in zip(graph.input, inputs, strict=False)}
                for inputs, _ in case.data_sets
            ),
            tuple(
                {entry.name: _plain(value) for entry, value in zip(graph.output, outputs, strict=False)}
                for _, outputs in case.data_sets
            ),
            case.rtol,
            case.atol,
        )


def wrong(case: NodeCase, outputs: list[dict[str, Any]], *, rtol: float, atol: float) -> str:
    """Say what is wrong with the outputs, or the empty string."""
    for got, want in zip(outputs, case.answers, strict=True):
        for name, value in want.items():
            text = difference(got[name], value, rtol=rtol, atol=atol)
            if text:
                return f"{name}: {text}"
    return ""


def _noise(case: NodeCase) -> float:
    """Absolute tolerance for FP32 itself: transforms of large numbers round where the answer is zero."""
    floats = [a for answer in case.answers for a in answer.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    largest = max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in floats), default=0.0)
    return max(case.atol, 1e-6 * largest)


@cache
def node_cases() -> tuple[NodeCase, ...]:
    """The node tests to convert."""
    cases = list(_float_cases())
    outcomes = run_all([Job(case.model, case.feeds) for case in cases])
    return tuple(
        case
        for case, outcome in zip(cases, outcomes, strict=True)
        if outcome.loads and not wrong(case, outcome.outputs, rtol=max(case.rtol, 1e-3), atol=_noise(case))
    )
