"""Weights that lie in files beside the model: read when they are needed, never mapped into memory.

A process dies where a mapped file shrinks under it; a read fails instead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from halfconv.errors import InputError
from halfconv.graph.blocks import blocks

__all__ = ["StoredTensor", "store"]


class StoredTensor(ir.ExternalTensor):
    """A tensor in a file, which is read anew each time.

    Args:
        tensor: The same as onnx-ir holds it, checked before.
        file: The file's real path.
    """

    __slots__ = ()

    def __init__(self, tensor: ir.ExternalTensor, file: Path):
        super().__init__(
            file.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name,
            doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props), base_dir=file.parent,
        )  # fmt: skip

    def numpy(self) -> np.ndarray:
        """Read the tensor."""
        if self.dtype.bitwidth < 8:
            kind, dims = self.dtype.value, self.shape.numpy()
            return ir.TensorProtoTensor(onnx.TensorProto(data_type=kind, dims=dims, raw_data=self.tobytes())).numpy()
        whole = np.empty(self.size, self.dtype.numpy())
        start = 0
        for block in blocks(self):
            whole[start : start + block.size] = block
            start += block.size
        return whole.reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.numpy().astype(dtype) if dtype is not None else self.numpy()

    def tobytes(self) -> bytes:
        """Read the tensor's bytes."""
        return b"".join(block.view(np.uint8).tobytes() for block in blocks(self))

    def tofile(self, file: Any) -> None:
        """Copy the tensor's bytes to a binary file at its position.

        Raises:
            InputError: Its file is shorter than it was, or gone.
        """
        try:
            super().tofile(file)
        except OSError as error:
            if error.errno is None or error.filename == self.path:
                why = f"{self.path}: was cut off or removed while it was read"
                raise InputError(why, "let nothing write it, and try again") from None
            raise

    def _check_path_containment(self) -> None:
        pass  # `halfconv.external.data_file` has


def store(model: ir.Model, real: Callable[[str], Path]) -> None:
    """Replace all tensors in files, which onnx-ir would map.

    Args:
        model: A model that was just read.
        real: Location in the model -> the real path of that file, checked before.

    Raises:
        InputError: An attribute's tensor cannot be read; it is needed in memory.
    """
    inside = [graph for function in model.functions.values() for graph in (function.graph, *function.graph.subgraphs())]
    for graph in [*model.graphs(), *inside]:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = StoredTensor(value.const_value, real(str(value.const_value.location)))
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _read(attribute.value, real))
                elif attribute.type == ir.AttributeType.TENSORS:
                    held = [_read(t, real) if isinstance(t, ir.ExternalTensor) else t for t in attribute.as_tensors()]
                    node.attributes[name] = ir.AttrTensors(name, held)


def _read(tensor: ir.ExternalTensor, real: Callable[[str], Path]) -> ir.TensorProtocol:
    if tensor.dtype == ir.DataType.STRING:
        raise InputError(f"tensor '{tensor.name}' holds strings in another file", "export it again")
    return ir.Tensor(StoredTensor(tensor, real(str(tensor.location))).numpy(), dtype=tensor.dtype, name=tensor.name)
