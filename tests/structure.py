"""What a converted model looks like inside: types of every value in every scope, Casts, weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from tests.simulation import FLOAT, HALF, graphs, subgraphs


@dataclass(frozen=True)
class Site:
    """A node with its scope: element types of what it reads and writes (0 = none or unknown)."""

    node: onnx.NodeProto
    graph: onnx.GraphProto
    depth: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def half(self) -> bool:
        """All its floating-point outputs are half."""
        return HALF in self.outputs and FLOAT not in self.outputs


def element(kind: onnx.TypeProto) -> int:
    """Element type of a tensor, or of what a sequence or optional holds."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            return kind.tensor_type.elem_type
        case "sparse_tensor_type":
            return kind.sparse_tensor_type.elem_type
        case "sequence_type":
            return element(kind.sequence_type.elem_type)
        case "optional_type":
            return element(kind.optional_type.elem_type)
    return 0


def load(path: Path | str | onnx.ModelProto) -> onnx.ModelProto:
    return path if isinstance(path, onnx.ModelProto) else onnx.load(os.fspath(path))


def sites(model: Path | str | onnx.ModelProto) -> list[Site]:
    """Every node of every scope."""
    typed = shape_inference.infer_shapes(load(model))

    def walk(graph: onnx.GraphProto, outer: dict[str, int], depth: int) -> Iterator[Site]:
        scope = dict(outer)
        scope |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        scope |= {t.values.name: t.values.data_type for t in graph.sparse_initializer}
        scope |= {v.name: element(v.type) for v in (*graph.input, *graph.output, *graph.value_info)}
        for node in graph.node:
            yield Site(
                node,
                graph,
                depth,
                tuple(scope.get(name, 0) for name in node.input),
                tuple(scope.get(name, 0) for name in node.output),
            )
            for inner in subgraphs(node):
                yield from walk(inner, scope, depth + 1)

    return list(walk(typed.graph, {}, 0))


def of_type(model: Path | str | onnx.ModelProto, op: str) -> list[Site]:
    """Nodes of one operator, in all scopes."""
    return [site for site in sites(model) if site.node.op_type == op]


def casts(model: Path | str | onnx.ModelProto) -> list[Site]:
    """Casts between FP32 and half, in either direction."""
    return [site for site in of_type(model, "Cast") if {site.inputs[0], site.outputs[0]} == {FLOAT, HALF}]


def round_trips(model: Path | str | onnx.ModelProto) -> list[str]:
    """Pairs of Casts that end where they began: FP32 → half → FP32, or half → FP32 → half."""
    found = casts(model)
    made = {(site.node.output[0], site.outputs[0]): site for site in found}
    return [
        f"{made[key].node.input[0]} -> {site.node.input[0]} -> {site.node.output[0]}"
        for site in found
        if (key := (site.node.input[0], site.inputs[0])) in made
    ]


def repeated_casts(model: Path | str | onnx.ModelProto) -> list[tuple[str, int]]:
    """(value, type) pairs that one graph casts more than once."""
    counts = Counter((id(site.graph), site.node.input[0], site.outputs[0]) for site in casts(model))
    return [(name, kind) for (_, name, kind), count in counts.items() if count > 1]


def idle_casts(model: Path | str | onnx.ModelProto) -> list[str]:
    """Casts between FP32 and half that nobody reads."""
    typed = load(model)
    read = {name for graph in graphs(typed.graph) for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs(typed.graph) for value in graph.output}
    return [site.node.output[0] for site in casts(typed) if site.node.output[0] not in read]


def weights(model: Path | str | onnx.ModelProto) -> list[tuple[str, np.ndarray]]:
    """Constant tensors of all scopes, as initializers or Constant nodes, with their names."""
    found = []
    for graph in graphs(load(model).graph):
        found += [(tensor.name, numpy_helper.to_array(tensor)) for tensor in graph.initializer]
        for node in graph.node:
            if node.op_type == "Constant":
                found += [(node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value"]
    return found


def weight(model: Path | str | onnx.ModelProto, like: np.ndarray) -> Counter[str]:
    """How often a weight is stored, by type: counts constants of its shape whose content is the weight's, rounded."""
    counts: Counter[str] = Counter()
    for _, array in weights(model):
        if array.shape == like.shape and array.dtype in (np.float16, np.float32):
            with np.errstate(over="ignore"):
                same = np.array_equal(array, like.astype(array.dtype), equal_nan=True)
            if same:
                counts[str(array.dtype)] += 1
    return counts


def weight_bytes(model: Path | str | onnx.ModelProto) -> int:
    """Bytes of all constant tensors, in all scopes."""
    total = 0
    for graph in graphs(load(model).graph):
        tensors = list(graph.initializer)
        tensors += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
        total += sum(
            int(np.prod(t.dims))
            * (8 if t.data_type == TensorProto.STRING else onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize)
            for t in tensors
        )
    return total


def signature(model: Path | str | onnx.ModelProto) -> list[tuple[str, bytes]]:
    """Names, types and shapes of inputs and outputs, to compare as a whole."""
    graph = load(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    entries = [v for v in graph.input if v.name not in constants]
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in (*entries, *graph.output)]
