"""A model whose weights lie in files of a bounded size: browsers and web hosts take no larger ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.external import without_links
from halfconv.weight_files import write_weights

__all__ = ["Chunked", "place_chunked"]

#: IR versions below it want weights among the inputs.
WEIGHTS_ARE_NO_INPUTS = 4


@dataclass(frozen=True, slots=True)
class Chunked:
    """A model that was placed.

    Attributes:
        file: Its file.
        data: Its files of weights, which are called so in the model; none if all is in one file.
    """

    file: Path
    data: tuple[Path, ...]

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""
        return max(path.stat().st_size for path in (self.file, *self.data))


def place_chunked(model: Path, data: Mapping[str, Path], folder: Path, stem: str, most: int) -> Chunked:
    """Copy a model: as one file where that is small enough, else with its weights in files beside it.

    Args:
        model: The model's file.
        data: Location in the model -> real path of its files of weights.
        folder: Where; it is made.
        stem: What its files are called, without ``.onnx``.
        most: Largest size of a file, in bytes, unless one tensor has more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.onnx"
    size = model.stat().st_size + sum(path.stat().st_size for path in set(data.values()))
    if size <= most and not data:
        shutil.copyfile(model, file)
        return Chunked(file, ())
    with without_links(model, data) as readable:
        loaded = ir.load(readable)
        files: list[Path] = []
        if size > most:
            common.LiftConstantsToInitializersPass(lift_all_constants=True)(loaded)
            loaded.ir_version = max(loaded.ir_version or 0, WEIGHTS_ARE_NO_INPUTS)
            files = write_weights(loaded, folder, stem, most)
        for graph in loaded.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) != folder:
                    value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
        ir.save(loaded, file)
    return Chunked(file, tuple(files))
