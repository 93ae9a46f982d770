"""GPU rounding on a CPU: a half model as an FP32 model in which every half value is rounded where it arises.

ONNX Runtime's CPU provider computes most half operators in FP32 and drops roundings, so its drift says little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from tests.runtime_helpers import Feeds, Outcome, run

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

# Attributes that name a tensor type, as an integer.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype"}


def _each_type(kind: onnx.TypeProto) -> Iterator[onnx.TypeProto.Tensor]:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        yield getattr(kind, which)
    elif which in ("sequence_type", "optional_type"):
        yield from _each_type(getattr(kind, which).elem_type)


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


def _upcast(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))


def _widen(graph: onnx.GraphProto, fresh: Iterator[int]) -> None:
    """Make every half node output an FP32 one that is rounded to half where it arises; `simulate` rounds inputs."""
    half = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type == HALF
    }
    for tensor in graph.initializer:
        _upcast(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _upcast(attribute.t)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT and attribute.i == HALF:
                attribute.i = FLOAT
        for inner in subgraphs(node):
            _widen(inner, fresh)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in half:
                raw, narrow = f"{name}__raw{next(fresh)}", f"{name}__half{next(fresh)}"
                node.output[position] = raw
                nodes.append(helper.make_node("Cast", [raw], [narrow], to=HALF))
                nodes.append(helper.make_node("Cast", [narrow], [name], to=FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for kind in _each_type(value.type):
            if kind.elem_type == HALF:
                kind.elem_type = FLOAT


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 model that computes what the half model computes on a device that rounds every half value."""
    typed = shape_inference.infer_shapes(model)
    _widen(typed.graph, iter(range(10**9)))
    return typed


def simulate(path: Path | str, feeds: Sequence[Feeds]) -> Outcome:
    """Run a converted model on the CPU with every half value rounded as a GPU would; half inputs are rounded too."""
    model = onnx.load(os.fspath(path))
    half = {value.name for value in model.graph.input if any(kind.elem_type == HALF for kind in _each_type(value.type))}
    with np.errstate(over="ignore"):
        rounded = [
            {
                name: value.astype(np.float16).astype(np.float32) if name in half and isinstance(value, np.ndarray) else value
                for name, value in feed.items()
            }
            for feed in feeds
        ]
    return run(widened(model), rounded)
