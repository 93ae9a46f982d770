"""Inputs as the command line names them: ``image=float32[batch,3,height:64,width:64]`` and ``image:0=batch``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halfconv.errors import InputError, UsageError
from halfconv.sample_files import npz_file

if TYPE_CHECKING:
    import torch

__all__ = ["TYPES", "ExampleInput", "parse_dynamic", "parse_inputs", "read_example"]

TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_INPUT = re.compile(r"([^\W\d]\w*)=(\w*)\[([^\[\]]*)\]")
_DIM = re.compile(r"(?:([^\W\d]\w*)(?::(\d+))?|(\d+))")
_DYNAMIC = re.compile(r"([^\W\d]\w*):(\d+)=([^\W\d]\w*)")
#: Sizes of a free dimension that no size is given for: of the first axis, and of others.
_FREE = (2, 8)
#: The most elements that an input is made up with.
_MOST = 1 << 28


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """An input to be made up.

    Attributes:
        name: Its name.
        dtype: One of `TYPES`.
        shape: Its size in the example.
        dims: Axis -> name of a dimension that stays free.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: Mapping[int, str]

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        """Make it up: normal numbers; of integers 0 and 1; of booleans True."""
        import torch

        dtype = getattr(torch, self.dtype)
        if dtype is torch.bool:
            return torch.ones(self.shape, dtype=dtype)
        if not dtype.is_floating_point:
            return torch.randint(0, 2, self.shape, generator=generator, dtype=dtype)
        return torch.randn(self.shape, generator=generator).to(dtype)


def parse_inputs(texts: Iterable[str]) -> dict[str, ExampleInput]:
    """Read inputs.

    Args:
        texts: ``NAME=TYPE[DIM,…]``; the type is ``float32`` if it is left out, a dimension is a number, or the name of one that
            stays free, with or without its size in the example (``height:64``).

    Returns:
        Name -> input.

    Raises:
        UsageError: A text is not of that form.
    """
    found: dict[str, ExampleInput] = {}
    for text in texts:
        match = _INPUT.fullmatch(re.sub(r"\s", "", text))
        if match is None:
            raise UsageError(f"--input '{text}' is not of the form NAME=TYPE[DIM,…]", "image=float32[batch,3,224,224]")
        name, dtype, inner = match[1], match[2] or "float32", match[3]
        if dtype not in TYPES:
            raise UsageError(f"--input '{text}': there is no type '{dtype}'", f"one of {', '.join(TYPES)}")
        if name in found:
            raise UsageError(f"--input names '{name}' twice", "one --input for each input")
        shape, dims = [], {}
        for axis, part in enumerate(inner.split(",") if inner else ()):
            dim = _DIM.fullmatch(part)
            if dim is None:
                raise UsageError(f"--input '{text}': '{part}' is no dimension", "a number, a name, or both: height:64")
            if dim[1]:
                dims[axis] = dim[1]
            shape.append(int(dim[3] or dim[2] or _FREE[axis > 0]))
        count = 1
        for size in shape:
            count *= size
        if not 0 < count <= _MOST:
            raise UsageError(f"--input '{text}' has {count:,} elements in the example", f"from 1 to {_MOST:,}")
        found[name] = ExampleInput(name, dtype, tuple(shape), dims)
    return found


def parse_dynamic(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """Read free dimensions.

    Args:
        texts: ``INPUT:AXIS=NAME``.

    Returns:
        Input -> axis -> name.

    Raises:
        UsageError: A text is not of that form.
    """
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        match = _DYNAMIC.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--dynamic '{text}' is not of the form INPUT:AXIS=NAME", "image:0=batch")
        found.setdefault(match[1], {})[int(match[2])] = match[3]
    return found


def read_example(path: Path) -> dict[str, torch.Tensor]:
    """Read the arrays of an ``.npz`` file as tensors.

    Raises:
        InputError: It cannot be read, or holds what PyTorch has no type for.
    """
    import torch

    found = {}
    for name, stored in npz_file(path, str(path)).items():
        array = stored.read()
        try:
            found[name] = torch.from_numpy(array.copy())
        except TypeError:
            raise InputError(f"{path}: array '{name}' is of type {array.dtype}, which PyTorch lacks", "numbers") from None
    return found
