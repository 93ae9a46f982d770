"""Walk and write the protobuf messages of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

import onnx
import onnx_ir as ir

__all__ = ["graphs_of", "subgraphs_of", "write_inline"]

#: Tags of length-delimited fields: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_of(*roots: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield graphs and all graphs inside them."""
    todo = list(roots)
    while todo:
        graph = todo.pop()
        yield graph
        todo += [inner for node in graph.node for inner in subgraphs_of(node)]


def write_inline(proto: onnx.ModelProto, weights: Iterable[tuple[str, ir.TensorProtocol]], file: IO[bytes]) -> None:
    """Write a model with large weights inside, tensor by tensor: no message holds them.

    Protobuf allows the fields of a message in any order, and says before each how long it is, so that the lengths of the weights
    are all that must be known beforehand (https://protobuf.dev/programming-guides/encoding).

    Args:
        proto: The model without these weights; its graph is taken out of it.
        weights: (name, tensor) of the initializers to add to the main graph.
        file: Where to write.
    """
    heads: list[tuple[bytes, Any]] = []
    size = 0
    for name, tensor in weights:
        head = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        begin = head.SerializeToString(deterministic=True) + RAW_DATA + _varint(tensor.nbytes)
        begin = INITIALIZER + _varint(len(begin) + tensor.nbytes) + begin
        heads.append((begin, tensor))
        size += len(begin) + tensor.nbytes
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))
    file.write(GRAPH + _varint(len(graph) + size) + graph)
    for begin, tensor in heads:
        file.write(begin)
        tensor.tofile(file)


def _varint(number: int) -> bytes:
    """Encode a length: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
