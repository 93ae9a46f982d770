"""halfconv's own simulation of a GPU's rounding, run in a child process; and what tests need to look into graphs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from halfconv.drift.simulate import simulate as simulate_model
from halfconv.model import load
from tests.runtime_helpers import LEVELS, Failure, Feeds, Job, Outcome, _run_in_child, isolate

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def simulate(path: Path | str, feeds: Sequence[Feeds]) -> Outcome:
    """Run a converted model on the CPU with every half value rounded as a GPU would; half inputs are rounded too."""
    data = ir.to_proto(simulate_model(load(os.fspath(path))).model).SerializeToString()
    wide = [
        {name: value.astype(np.float32) if _is_half(value) else value for name, value in feed.items()} for feed in feeds
    ]
    # Without optimisation, as `halfconv validate` runs it: fused kernels of the CPU would drop roundings.
    (answer,) = isolate(_run_in_child, [Job(data, wide, True, LEVELS[-1])], workers=1)
    return Outcome(failure=answer) if isinstance(answer, Failure) else answer


def _is_half(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float16
