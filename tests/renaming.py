"""The same model as another export would write it: other names, another order of nodes, other weights."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that its nodes hold."""
    yield graph
    for node in graph.node:
        for inner in bodies(node):
            yield from graphs(inner)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def renamed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Give every value another name and every node none; return the model and old name -> new name."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return names.setdefault(name, f"anew.{len(names)}") if name else ""

    for graph in graphs(made.graph):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = new(value.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = new(sparse.values.name)
        for node in graph.node:
            node.name = ""
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
    return made, names


def reordered(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """List the main graph's nodes in another topological order."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rng, left, order = random.Random(seed), list(made.graph.node), []
    missing = {name for node in left for name in node.output}
    while left:
        ready = [node for node in left if not (reads(node) & missing)]
        node = rng.choice(ready)
        order.append(node)
        left.remove(node)
        missing -= set(node.output)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del made.graph.node[:]
    made.graph.node.extend(copies)
    return made


def reads(node: onnx.NodeProto) -> set[str]:
    """All names that a node and its bodies read."""
    return set(node.input) | {
        name for body in bodies(node) for graph in graphs(body) for inner in graph.node for name in inner.input
    } | {value.name for body in bodies(node) for graph in graphs(body) for value in graph.output}  # fmt: skip


def retrained(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Change every FP32 weight of more than one element a little."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rng = np.random.default_rng(seed)
    for graph in graphs(made.graph):
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1:
                array = numpy_helper.to_array(tensor)
                changed = array * rng.uniform(0.9, 1.1, array.shape).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
    return made
