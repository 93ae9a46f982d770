"""Write a model to disk atomically, with its weights inside or beside it, in memory that does not grow with them.

The order is: weights under a new name, then the model by rename, then removal of the weights of the model that was replaced.
Whatever fails, the old model or nothing is left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from halfconv.claims import Claim, claimed
from halfconv.errors import UsageError
from halfconv.graph.protos import graphs_of, write_inline
from halfconv.progress import Progress, StageClock
from halfconv.storage import disk_problem
from halfconv.weight_files import external_weights, room_for, weight_bytes, write_weights

__all__ = ["EXTERNAL_DATA", "INLINE_LIMIT", "written_model"]

EXTERNAL_DATA = ("auto", "always", "never")
#: Above this a protobuf file cannot hold the weights (2 GB, with room for the graph itself).
INLINE_LIMIT = 2**31 - 2**26
#: Weights of fewer bytes stay in the message of the model.
STREAMED = 1 << 16


@contextlib.contextmanager
def written_model(
    model: ir.Model,
    output: Path,
    *,
    types: Mapping[str, onnx.TypeProto],
    annotated: frozenset[str],
    external: bool,
    shard_size: int | None,
    data_format: str,
    unchanged: Callable[[], None],
    clock: StageClock,
) -> Iterator[Path]:
    """Write a model under a temporary name, let the caller check it, and put it in place.

    Args:
        model: The model; left with its weights external if they were written so.
        output: Where it goes when the block ends without an exception.
        types: Types to write for values of these names: the interface as promised, and what onnx-ir cannot hold.
        annotated: Inner values whose types are written; of others a reader infers them.
        external: Whether the weights go into files beside it.
        shard_size: Most bytes of such a file; None for one file.
        data_format: What such a file is, see `halfconv.weight_files.DATA_FORMATS`.
        unchanged: Raises if an input file has changed since it was read.
        clock: Told how much is written, and times the waiting for the disk as ``sync``.

    Yields:
        The temporary file, in the output's folder, which loads like the final one.

    Raises:
        EnvironmentProblem: The disk is full or the folder cannot be written.
        UsageError: The model does not fit a single file, and none beside it is wanted.
    """
    output = output.absolute()
    folder = output.parent
    size = weight_bytes(model)
    if not external and size > INLINE_LIMIT:
        raise UsageError(f"{size:,} bytes of weights do not fit one .onnx file (2 GB)", "--external-data auto")
    try:
        with claimed(output) as claim:
            room_for(size, folder)
            files = []
            if external and external_weights(model):
                files = write_weights(model, folder, claim.stem, shard_size, _teller(clock), data_format)
            _write(model, claim, types, annotated)
            unchanged()
            yield claim.temporary
            with clock.stage("sync"):
                for file in (*files, claim.temporary):
                    _sync(file)
            claim.replace()
    except OSError as error:
        raise disk_problem(error, folder) from None


def _teller(clock: StageClock) -> Callable[[int, int], None] | None:
    listener = clock.listener
    if listener is None:
        return None
    return lambda done, total: listener(Progress("write", "weights", done, total, "bytes"))


def _write(model: ir.Model, claim: Claim, types: Mapping[str, onnx.TypeProto], annotated: frozenset[str]) -> None:
    streamed: dict[str, ir.TensorProtocol] = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or (isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(claim.stem)):
                continue
            if graph is model.graph and tensor.nbytes >= STREAMED and tensor.dtype != ir.DataType.STRING:
                streamed[name] = tensor
            elif isinstance(tensor, ir.ExternalTensor):  # of the input
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=name)
    try:
        for name in streamed:  # what is left is a message without them
            none = ir.ExternalTensor("-", 0, 0, ir.DataType.FLOAT, shape=ir.Shape([0]), name=name)
            model.graph.initializers[name].const_value = none
        proto = ir.to_proto(model)
    finally:
        for name, tensor in streamed.items():
            model.graph.initializers[name].const_value = tensor
    kept = onnx.GraphProto(initializer=[tensor for tensor in proto.graph.initializer if tensor.name not in streamed])
    proto.graph.ClearField("initializer")
    proto.graph.MergeFrom(kept)
    for graph in graphs_of(proto.graph):
        noted = [value for value in graph.value_info if value.name in annotated]
        del graph.value_info[:]
        graph.value_info.extend(noted)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name in types and (graph is proto.graph or not value.HasField("type")):
                value.type.CopyFrom(types[value.name])
    with claim.temporary.open("wb") as file:
        write_inline(proto, streamed.items(), file)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
