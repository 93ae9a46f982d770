"""Read a tensor block by block, in bounded memory.

A tensor in an external file is read, not mapped: where a file shrinks while it is mapped, the process dies.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.errors import InputError

__all__ = ["BLOCK", "BlockTensor", "blocks"]

#: Elements of a block.
BLOCK = 1 << 20


class BlockTensor(ir.LazyTensor):
    """A tensor that is computed from another one, block by block, when it is written, and never kept.

    Args:
        source: The other one, of the same shape.
        dtype: The element type.
        name: The name.

    Attributes:
        source: The other one.
    """

    __slots__ = ("source",)

    def __init__(self, source: ir.TensorProtocol, dtype: ir.DataType, name: str):
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(source.shape.numpy()), name=name, cache=False)
        self.source = source

    @abstractmethod
    def compute(self, block: np.ndarray) -> np.ndarray:
        """Compute the elements of one block of the source; the result is valid until the next call."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the elements; see `blocks`."""
        return map(self.compute, blocks(self.source))

    def _whole(self) -> ir.Tensor[np.ndarray]:
        whole = np.empty(tuple(self.source.shape.numpy()), self.dtype.numpy())
        flat, start = whole.reshape(-1), 0
        for block in self.blocks():
            flat[start : start + block.size] = block
            start += block.size
        return ir.Tensor(whole, dtype=self.dtype, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the elements to a binary file at its position."""
        for block in self.blocks():
            file.write(block.view(np.uint8))


def blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Yield a tensor's elements in order, 1-D, up to `BLOCK` at a time; each array is valid until the next.

    Args:
        tensor: A tensor; of an element type smaller than a byte, bytes are yielded.

    Raises:
        InputError: Its file is shorter than it was when the model was loaded, or cannot be read.
    """
    if isinstance(tensor, BlockTensor):
        yield from tensor.blocks()
        return
    dtype = tensor.dtype.numpy() if tensor.dtype.bitwidth >= 8 else np.dtype(np.uint8)
    if not isinstance(tensor, ir.ExternalTensor):
        flat = np.ascontiguousarray(tensor.numpy()).reshape(-1)
        flat = flat if tensor.dtype.bitwidth >= 8 else np.frombuffer(tensor.tobytes(), np.uint8)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
        return
    path, left = Path(tensor.path), tensor.nbytes
    buffer = bytearray(min(left, BLOCK * dtype.itemsize))
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset or 0)
            while left:
                view = memoryview(buffer)[: min(left, len(buffer))]
                read = 0
                while read < len(view):
                    got = file.readinto(view[read:])
                    if not got:
                        raise InputError(f"{path}: was cut off while it was read", "let nothing write it, and try again")
                    read += got
                left -= read
                yield np.frombuffer(view, dtype)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", "check the file, and try again") from None
