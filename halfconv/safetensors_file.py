"""Write a file of weights that is a safetensors file and ONNX external data at once.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors one behind the other,
without gaps, as its own documentation says. ONNX refers to a tensor by file, offset and length, so the same bytes serve both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.errors import UsageError
from halfconv.graph.blocks import blocks

__all__ = ["file_start", "write_safetensors"]

#: ONNX's element types -> those of safetensors.
TYPES = {
    ir.DataType.BFLOAT16: "BF16", ir.DataType.BOOL: "BOOL", ir.DataType.DOUBLE: "F64", ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16", ir.DataType.FLOAT8E4M3FN: "F8_E4M3", ir.DataType.FLOAT8E5M2: "F8_E5M2", ir.DataType.INT16: "I16",
    ir.DataType.INT32: "I32", ir.DataType.INT64: "I64", ir.DataType.INT8: "I8", ir.DataType.UINT16: "U16",
    ir.DataType.UINT32: "U32", ir.DataType.UINT64: "U64", ir.DataType.UINT8: "U8",
}  # fmt: skip
#: Where the tensors may begin, so that a system can map them into memory.
ALIGNMENT = 4096


def file_start(
    entries: Iterable[tuple[str, str, list[int], int]], alignment: int, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[int]]:
    """Return what a file begins with, and where each tensor lies behind that.

    Args:
        entries: (name, safetensors' type, shape, bytes) of the tensors, one behind the other.
        alignment: The first tensor begins at a multiple of so many bytes.
        metadata: Texts to keep with them.

    Returns:
        The length and the header; the places.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = [], 0
    for name, kind, shape, size in entries:
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        places.append(end)
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return len(text).to_bytes(8, "little") + text, places


def write_safetensors(
    tensors: Sequence[tuple[str, ir.TensorProtocol]], folder: Path, name: str, workers: int, tell: Callable[[Any, Any], None]
) -> list[ir.ExternalTensor]:  # fmt: skip
    """Write tensors.

    Args:
        tensors: (name, tensor).
        folder: Where the file goes.
        name: Its name.
        workers: Number of threads.
        tell: Called with each tensor as its writing begins.

    Returns:
        The tensors in the file, for ONNX.

    Raises:
        UsageError: safetensors has no such element type.
        OSError: The disk is full, or cannot be written.
    """
    entries = []
    for wanted, tensor in tensors:
        if tensor.dtype not in TYPES:
            raise UsageError(f"safetensors has no type {tensor.dtype.name}, which '{wanted}' has", "--data-format onnx")
        entries.append((wanted, TYPES[tensor.dtype], [int(size) for size in tensor.shape.numpy()], tensor.nbytes))
    start, places = file_start(entries, ALIGNMENT, {"format": "onnx"})
    begin = len(start)
    path = folder / name
    with path.open("wb") as file:
        file.write(start)
        file.truncate(begin + sum(tensor.nbytes for _, tensor in tensors))

    def write(number: int) -> None:
        tensor = tensors[number][1]
        tell(tensor, None)
        with path.open("r+b") as part:
            part.seek(begin + places[number])
            for block in blocks(tensor):
                part.write(block.view("uint8").data)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(len(tensors))))
    return [
        ir.ExternalTensor(
            name, begin + place, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=wanted, base_dir=folder
        )
        for (wanted, tensor), place in zip(tensors, places, strict=True)
    ]
