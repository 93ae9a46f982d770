"""Judges a converted model: how much of it is half precision, and whether others accept it.

Runs as a process of its own, ``python bench/judge.py SOURCE CONVERTED [SAMPLE.npz]``, since opening a session on a
converted model can end the process. It prints one JSON object per line, each as soon as it is known, so that what was
found before a crash is kept. All tools' outputs are judged by the same onnx and onnxruntime, those of the interpreter
that runs this file.

What is counted, over the main graph and every subgraph, with local functions inlined:

* ``nodes``: all nodes;
* ``casts``: Cast nodes of the converted model minus Cast nodes of the source; negative if some were removed;
* ``fp32_nodes``: nodes that compute in FP32. A node does if one of its outputs is FP32, or if it has no floating-point
  output but reads an FP32 value (ArgMax, Greater). Not counted are Cast and CastLike (they convert), Constant (a
  weight, whose reader is counted), Shape and Size (they read no numbers) and If, Loop and Scan (their bodies' nodes are
  counted). Types are inferred anew by onnx from inputs, weights and attributes: the file's own annotations may be
  wrong, and are dropped first. An output that onnx cannot infer takes the type of the node's first float input.

What is tried:

* ``checker``: ``onnx.checker.check_model(path, full_check=True)`` accepts the file;
* ``io_kept``: names and element types of all inputs (weights listed as inputs aside) and outputs equal the source's;
* ``loads``: ONNX Runtime makes a session on its CPU provider with default options;
* ``runs``: that session runs the sample, which is made for the source.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
NOT_COUNTED = {"Cast", "CastLike", "Constant", "Shape", "Size", "If", "Loop", "Scan"}
KEEP_BYTES = 4096


def count(source: Path, converted: Path) -> dict[str, object]:
    """Count nodes, added casts and nodes left in FP32.

    Args:
        source: The model before conversion.
        converted: The model after it.

    Returns:
        ``nodes``, ``casts``, ``fp32_nodes`` and ``io_kept``.
    """
    before, after = _load(source), _load(converted)
    kept = _signature(before) == _signature(after)
    for model in (before, after):
        _sort(model.graph)
        _forget(model.graph)
    after = onnx.shape_inference.infer_shapes(after)
    casts = [sum(node.op_type == "Cast" for _, node in _walk(model.graph, {})) for model in (before, after)]
    nodes = list(_walk(after.graph, {}))
    return {
        "nodes": len(nodes),
        "casts": casts[1] - casts[0],
        "fp32_nodes": sum(_is_fp32(node, types) for types, node in nodes),
        "io_kept": kept,
    }


def _load(path: Path) -> onnx.ModelProto:
    """Load a model without its large weights, whose types are all that is needed."""
    model = onnx.load(path, load_external_data=False)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return model


def _signature(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    result = []
    for value in [*(value for value in model.graph.input if value.name not in weights), *model.graph.output]:
        bare = onnx.TypeProto()
        bare.CopyFrom(value.type)
        if bare.HasField("tensor_type"):
            bare.tensor_type.ClearField("shape")
        result.append((value.name, bare.SerializeToString(deterministic=True)))
    return result


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _reads(node: onnx.NodeProto) -> set[str]:
    """All names a node reads, those that its bodies capture (and their own) included."""
    names = set(node.input)
    for graph in _subgraphs(node):
        for inner in graph.node:
            names |= _reads(inner)
        names |= {value.name for value in graph.output}
    return names


def _sort(graph: onnx.GraphProto) -> None:
    """Put producers before consumers, keeping the order where it is free; some tools do not."""
    for node in graph.node:
        for inner in _subgraphs(node):
            _sort(inner)
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[name] for name in _reads(node) if name in producer} for node in graph.node]
    if all(max(need, default=-1) < index for index, need in enumerate(needs)):
        return
    order: list[int] = []
    placed: set[int] = set()
    for root in range(len(needs)):
        stack = [root]
        while stack:
            index = stack[-1]
            missing = [other for other in sorted(needs[index], reverse=True) if other not in placed and other != index]
            if index in placed or not missing:
                stack.pop()
                if index not in placed:
                    placed.add(index)
                    order.append(index)
            elif len(stack) > len(needs):
                raise ValueError("the graph has a cycle")
            else:
                stack.append(missing[0])
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _forget(graph: onnx.GraphProto) -> None:
    """Drop annotations and the bytes of large weights."""
    del graph.value_info[:]
    tensors = list(graph.initializer)
    for node in graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR]
        for inner in _subgraphs(node):
            _forget(inner)
    for tensor in tensors:
        if len(tensor.raw_data) > KEEP_BYTES:
            tensor.ClearField("raw_data")


def _element(type_: onnx.TypeProto) -> int:
    """The element type of a tensor, or of the tensors in a sequence or optional; 0 if there is none."""
    kind = type_.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _element(getattr(type_, kind).elem_type)
    return getattr(type_, kind).elem_type if kind in ("tensor_type", "sparse_tensor_type") else 0


def _walk(graph: onnx.GraphProto, outer: dict[str, int]) -> Iterator[tuple[dict[str, int], onnx.NodeProto]]:
    """Yield every node of all scopes with the element types of the values it can see."""
    types = dict(outer)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        types[value.name] = _element(value.type)
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {sparse.values.name: sparse.values.data_type for sparse in graph.sparse_initializer}
    for node in graph.node:
        for name in node.output:
            if name not in types:
                types[name] = next((types[read] for read in node.input if types.get(read) in FLOATS), 0)
        yield types, node
        for inner in _subgraphs(node):
            yield from _walk(inner, types)


def _is_fp32(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    if node.op_type in NOT_COUNTED and node.domain in ("", "ai.onnx"):
        return False
    outputs = {types.get(name) for name in node.output if name} & FLOATS
    if outputs:
        return onnx.TensorProto.FLOAT in outputs
    return onnx.TensorProto.FLOAT in {types.get(name) for name in node.input if name}


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


def _say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def main(source: str, converted: str, sample: str | None = None) -> None:
    """Judge one converted model and print what was found, line by line.

    Args:
        source: Path of the model before conversion.
        converted: Path of the model after it.
        sample: Path of an npz file with one array per input, or None to skip the run.
    """
    try:
        _say(**count(Path(source), Path(converted)))
    except Exception as error:
        _say(nodes=None, casts=None, fp32_nodes=None, io_kept=None, count_error=_line(error))
    try:
        onnx.checker.check_model(converted, full_check=True)
        _say(checker=True)
    except Exception as error:
        _say(checker=False, checker_error=_line(error))
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # messages only; the graph optimisation level stays at its default
    try:
        session = onnxruntime.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
        _say(loads=True)
    except Exception as error:
        _say(loads=False, loads_error=_line(error), runs=False)
        return
    if sample is None:
        _say(runs=None)
        return
    try:
        with np.load(sample) as arrays:
            names = {value.name for value in session.get_inputs()}
            session.run(None, {name: arrays[name] for name in arrays.files if name in names})
        _say(runs=True)
    except Exception as error:
        _say(runs=False, runs_error=_line(error))


if __name__ == "__main__":
    main(*sys.argv[1:4])
