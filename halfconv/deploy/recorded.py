"""Recorded samples: inputs, and what the FP32 model gives for them, as plain files that any language reads.

``samples.json`` names the tensors; each lies in a file of its own, little-endian, in C order, without a header::

    {"schema_version": 1, "kind": "given", "to": "fp16", "tolerance": {"rel_l2": 0.01, …},
     "samples": [{"name": "s0.npz",
                  "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3], "file": "0.in.0.bin"}],
                  "outputs": [{"name": "y", …}]}]}

This module is copied into packages: it needs numpy and ``errors``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfconv.errors import InputError

__all__ = ["DTYPES", "FILE", "Recorded", "Recording", "read_samples", "write_samples"]

Array = NDArray[Any]
#: The file that names the tensors.
FILE = "samples.json"
#: Element types that can be recorded, in ONNX's words and numpy's; a bool is one byte, 0 or 1.
DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
#: Bytes of ``samples.json`` that are read, and of a tensor.
LONGEST, LARGEST = 16 << 20, 1 << 31
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One sample.

    Attributes:
        name: Where it comes from.
        inputs: Input -> array.
        outputs: Output -> what the FP32 model gives on ONNX Runtime's CPU provider.
    """

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Recording:
    """What `read_samples` finds.

    Attributes:
        samples: The samples.
        tolerance: ``METRIC`` or ``METRIC@OUTPUT`` -> bound of the drift from the recorded outputs.
        kind: ``given`` or ``synthetic``.
        to: The half format whose model is compared: ``fp16`` or ``bf16``.
    """

    samples: tuple[Recorded, ...]
    tolerance: dict[str, float]
    kind: str
    to: str


def write_samples(folder: Path, recording: Recording) -> None:
    """Write samples into a folder, which is made.

    Args:
        folder: Where.
        recording: The samples.

    Raises:
        InputError: An array has a type that cannot be recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, sample in enumerate(recording.samples):
        sides = {}
        for side, word, arrays in (("inputs", "in", sample.inputs), ("outputs", "out", sample.outputs)):
            sides[side] = [
                _write(folder / f"{number}.{word}.{place}.bin", name, array) for place, (name, array) in enumerate(arrays.items())
            ]
        entries.append({"name": sample.name, **sides})
    content = {
        "schema_version": 1, "kind": recording.kind, "to": recording.to, "tolerance": recording.tolerance, "samples": entries,
    }  # fmt: skip
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _write(file: Path, name: str, array: Array) -> dict[str, Any]:
    if array.dtype.name not in DTYPES:
        raise InputError(f"'{name}' is of type {array.dtype.name}, which cannot be recorded", f"one of {', '.join(DTYPES)}")
    file.write_bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": file.name}


def read_samples(folder: Path) -> Recording:
    """Read samples; nothing outside the folder is read, and no more than the files hold.

    Args:
        folder: The folder that holds ``samples.json``.

    Raises:
        InputError: A file is missing or damaged.
    """
    path = folder / FILE
    try:
        with path.open("rb") as stream:
            text = stream.read(LONGEST + 1)
        content = json.loads(text) if len(text) <= LONGEST else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", "the whole package again") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("schema_version") != 1:
        raise InputError(f"{path}: is no file of recorded samples of version 1", "the whole package again")
    try:
        samples = tuple(
            Recorded(str(entry["name"]), _side(folder, entry["inputs"]), _side(folder, entry["outputs"]))
            for entry in content["samples"]
        )
        tolerance = {str(key): float(value) for key, value in content["tolerance"].items()}
        kind, to = str(content["kind"]), str(content["to"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error})", "the whole package again") from None
    if not samples:
        raise InputError(f"{path}: holds no sample", "the whole package again")
    return Recording(samples, tolerance, kind, to)


def _side(folder: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    return {str(entry["name"]): _read(folder, entry) for entry in entries}


def _read(folder: Path, entry: Mapping[str, Any]) -> Array:
    name, word, shape, dtype = entry["name"], entry["file"], entry["shape"], entry["dtype"]
    if not isinstance(word, str) or not _PLAIN.fullmatch(word) or (file := folder / word).is_symlink():
        raise InputError(f"{folder / FILE}: '{name}' lies in {word!r}, which is no file of this folder", "the whole package again")
    if dtype not in DTYPES or any(not isinstance(dim, int) or isinstance(dim, bool) or dim < 0 for dim in shape):
        raise InputError(f"{folder / FILE}: '{name}' is a {dtype} of shape {shape}", "the whole package again")
    kind = np.dtype(dtype).newbyteorder("<")
    needed = math.prod(shape) * kind.itemsize
    try:
        held = file.stat().st_size
        if held != needed or needed > LARGEST:
            raise InputError(f"{file}: holds {held:,} bytes, and '{name}' needs {needed:,}", "the whole package again")
        return np.fromfile(file, kind).astype(dtype, copy=False).reshape(shape)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}", "the whole package again") from None
