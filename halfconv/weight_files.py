"""Write a model's weights into files beside it: rounded on the way, aligned, equal ones once, in shards if asked for.

onnx-ir's writer places and writes the tensors, on two threads; `halfconv.precision.weights.HalfTensor` rounds them block by block,
so memory does not grow with a weight.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.errors import EnvironmentProblem
from halfconv.graph.blocks import blocks
from halfconv.precision.weights import HalfTensor
from halfconv.safetensors_file import write_safetensors

__all__ = ["DATA_FORMATS", "EXTERNAL_THRESHOLD", "external_weights", "room_for", "weight_bytes", "write_weights"]

#: ONNX Runtime refuses small initializers (shapes, scales) in external files.
EXTERNAL_THRESHOLD = 1024
#: Where a large tensor may begin, so that any system can map it into memory: Windows maps in units of 64 KiB.
ALIGNMENT = 1 << 16
WORKERS = 2
#: What a file of weights may be: bytes that only the model makes sense of, or a safetensors file.
DATA_FORMATS = ("onnx", "safetensors")
#: Tensors are streamed, so none of their bytes counts as held in memory.
UNBOUNDED = 1 << 62


def external_weights(model: ir.Model) -> list[ir.Value]:
    """Return the initializers, of all scopes, that are large enough for an external file."""
    return [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes > EXTERNAL_THRESHOLD
        and value.const_value.dtype != ir.DataType.STRING
    ]


def weight_bytes(model: ir.Model) -> int:
    """Return how many bytes a model's initializers have, of all scopes."""
    return sum(v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value is not None)


def room_for(size: int, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        size: Bytes to write.
        folder: Where.

    Raises:
        EnvironmentProblem: There is less free space than that.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise EnvironmentProblem(
            f"cannot write in {folder}: the model needs {size:,} bytes and {free:,} are free", "free space there, or another -o"
        )


def write_weights(
    model: ir.Model, folder: Path, stem: str, shard_size: int | None = None, on_bytes: Callable[[int, int], None] | None = None,
    form: str = DATA_FORMATS[0],
) -> list[Path]:  # fmt: skip
    """Write the weights of a model, and let it refer to the files.

    Args:
        model: The model.
        folder: Where it will lie.
        stem: What the files' names begin with; nothing in the folder has such a name.
        shard_size: Most bytes of a file, unless one tensor has more; None for one file.
        on_bytes: Called with the bytes done, and their number in all.
        form: One of `DATA_FORMATS`.

    Returns:
        The files.

    Raises:
        UsageError: The format lacks an element type.
        OSError: The disk is full, or cannot be written.
        InputError: A weight cannot be read.
    """
    values = external_weights(model)
    unique = _unique([value.const_value for value in values if value.const_value is not None])
    tensors = list(dict.fromkeys(unique.values()))
    sizes = {id(tensor): tensor.nbytes for tensor in tensors}
    names = {id(unique[id(value.const_value)]): value.name or "" for value in reversed(values)}
    shards = _shards(tensors, shard_size)
    total, done = sum(sizes.values()), 0

    def tell(tensor: Any, _: Any) -> None:
        nonlocal done
        if on_bytes is not None:
            on_bytes(done, total)
        done += sizes[id(tensor)]

    written: dict[int, ir.ExternalTensor] = {}
    files = []
    for number, shard in enumerate(shards, 1):
        ending = "data" if form == DATA_FORMATS[0] else "data.safetensors"
        name = f"{stem}.{ending}" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.{ending}"
        files.append(folder / name)
        try:
            if form == DATA_FORMATS[0]:
                made = ir.external_data.convert_tensors_to_external(
                    shard, folder, name, callback=tell, max_workers=WORKERS, max_in_flight_bytes=UNBOUNDED, alignment=ALIGNMENT
                )
            else:
                made = write_safetensors([(names[id(tensor)], tensor) for tensor in shard], folder, name, WORKERS, tell)
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            raise
        written |= {id(tensor): external for tensor, external in zip(shard, made, strict=True)}
    if on_bytes is not None:
        on_bytes(total, total)
    for value in values:
        assert value.const_value is not None
        one = written[id(unique[id(value.const_value)])]
        value.const_value = ir.ExternalTensor(
            one.location, one.offset, one.length, one.dtype, shape=one.shape, name=value.name or "", base_dir=folder
        )
    return files


def _unique(tensors: Sequence[ir.TensorProtocol]) -> dict[int, ir.TensorProtocol]:
    """Return id of each tensor -> the first of those that hold the same."""
    chosen: dict[int, ir.TensorProtocol] = {}
    places: dict[Hashable, ir.TensorProtocol] = {}
    alike: dict[Hashable, list[ir.TensorProtocol]] = defaultdict(list)
    for tensor in tensors:
        shape = tuple(tensor.shape)
        first = places.setdefault((_place(tensor), shape), tensor)
        if first is tensor:
            look = (tensor.dtype, shape, bytes(next(_content(tensor), b"")[:64]))
            first = next((other for other in alike[look] if _equal(other, tensor)), tensor)
            if first is tensor:
                alike[look].append(tensor)
            else:
                places[_place(tensor), shape] = first
        chosen[id(tensor)] = first
    return chosen


def _place(tensor: ir.TensorProtocol) -> Hashable:
    if isinstance(tensor, HalfTensor):
        return tensor.dtype, _place(tensor.source)
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.dtype, os.fspath(tensor.path), tensor.offset
    return id(tensor)


def _content(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """Yield what a tensor holds, before rounding, in blocks."""
    source = tensor.source if isinstance(tensor, HalfTensor) else tensor
    for block in blocks(source):
        yield block.view("uint8").data


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if isinstance(a, HalfTensor) != isinstance(b, HalfTensor):
        return False
    return all(x == y for x, y in zip(_content(a), _content(b), strict=True))


def _shards(tensors: Sequence[ir.TensorProtocol], most: int | None) -> list[list[ir.TensorProtocol]]:
    shards: list[list[ir.TensorProtocol]] = [[]]
    size = 0
    for tensor in tensors:
        begin = -(-size // ALIGNMENT) * ALIGNMENT
        if most is not None and shards[-1] and begin + tensor.nbytes > most:
            shards.append([])
            begin = 0
        shards[-1].append(tensor)
        size = begin + tensor.nbytes
    return shards
