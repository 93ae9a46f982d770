"""Write a file of weights that is a safetensors file and ONNX external data at once.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors one behind the other,
without gaps, as its own documentation says. ONNX refers to a tensor by file, offset and length, so the same bytes serve both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from halfconv.errors import UsageError
from halfconv.graph.blocks import blocks

__all__ = ["write_safetensors"]

#: ONNX's element types -> those of safetensors.
TYPES = {
    ir.DataType.BFLOAT16: "BF16", ir.DataType.BOOL: "BOOL", ir.DataType.DOUBLE: "F64", ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16", ir.DataType.FLOAT8E4M3FN: "F8_E4M3", ir.DataType.FLOAT8E5M2: "F8_E5M2", ir.DataType.INT16: "I16",
    ir.DataType.INT32: "I32", ir.DataType.INT64: "I64", ir.DataType.INT8: "I8", ir.DataType.UINT16: "U16",
    ir.DataType.UINT32: "U32", ir.DataType.UINT64: "U64", ir.DataType.UINT8: "U8",
}  # fmt: skip
#: Where the tensors may begin, so that a system can map them into memory.
ALIGNMENT = 4096


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
    header: dict[str, Any] = {"__metadata__": {"format": "onnx"}}
    places, end = [], 0
    for wanted, tensor in tensors:
        if tensor.dtype not in TYPES:
            raise UsageError(f"safetensors has no type {tensor.dtype.name}, which '{wanted}' has", "--data-format onnx")
        shape = [int(size) for size in tensor.shape.numpy()]
        header[wanted] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": [end, end + tensor.nbytes]}
        places.append(end)
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    begin = 8 + len(text)
    path = folder / name
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(begin + end)

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
