"""The Open Inference Protocol (V2, REST) with its binary tensors: what Triton, KServe and the Ray package speak.

A message is JSON, followed by the elements of all tensors, little-endian in C order; the header ``Inference-Header-Content-Length``
says how long the JSON is. Source: https://github.com/kserve/open-inference-protocol and Triton's extension of binary tensor data.

This module is copied into packages: it needs numpy and ``errors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfconv.errors import InputError

__all__ = ["LENGTH_HEADER", "TYPES", "Message", "pack", "unpack"]

Array = NDArray[Any]
#: The header that tells the bytes of JSON.
LENGTH_HEADER = "Inference-Header-Content-Length"
#: numpy's name of an element type -> the protocol's.
TYPES: Mapping[str, str] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_NUMPY = {word: name for name, word in TYPES.items()}
#: Bytes of JSON that are parsed.
LONGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a response.

    Attributes:
        arrays: Name -> array.
        id: What the client calls the request; "" if it does not.
        wanted: Names of the outputs that are asked for; empty for all.
        binary: Whether the client wants the outputs as bytes, by name; the key "" holds what is not named.
    """

    arrays: dict[str, Array]
    id: str = ""
    wanted: tuple[str, ...] = ()
    binary: Mapping[str, bool] = field(default_factory=dict)


def pack(side: str, arrays: Mapping[str, Array], binary: Mapping[str, bool], **more: Any) -> tuple[bytes, int | None]:
    """Make the body of a message.

    Args:
        side: ``inputs`` or ``outputs``.
        arrays: Name -> array.
        binary: Name -> whether its elements are sent as bytes; the key "" holds what is not named.
        more: What else the JSON says.

    Returns:
        The body, and the bytes of its JSON; None if that is all of it.

    Raises:
        InputError: The protocol has no such type.
    """
    entries, tail = [], []
    for name, array in arrays.items():
        if array.dtype.name not in TYPES:
            raise InputError(f"'{name}' is of type {array.dtype.name}, which cannot be sent", ", ".join(TYPES))
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": TYPES[array.dtype.name]}
        if binary.get(name, binary.get("", False)):
            tail.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = _plain(array)
        entries.append(entry)
    head = json.dumps({**more, side: entries}, allow_nan=False).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def _plain(array: Array) -> list[Any]:
    """Return the elements as JSON holds them; NaN and infinities, which it does not hold, are null."""
    values = array.reshape(-1)
    if array.dtype.kind != "f" or np.isfinite(values).all():
        return list(values.tolist())
    return [value if math.isfinite(value) else None for value in values.tolist()]


def unpack(side: str, body: bytes, length: str | None) -> Message:
    """Read the body of a message.

    Args:
        side: ``inputs`` or ``outputs``.
        body: All of it.
        length: The value of `LENGTH_HEADER`; None if there is none.

    Raises:
        InputError: It is no such message, or a tensor does not have as many elements as its shape says.
    """
    end = len(body)
    if length is not None:
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > len(body):
            raise InputError(f"{LENGTH_HEADER} is {length[:40]!r}, and the body has {len(body):,} bytes", "the length of its JSON")
        end = int(length)
    try:
        content = json.loads(body[:end]) if end <= LONGEST else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get(side), list):
        raise InputError(f"the body is no JSON object with '{side}'", f'{{"{side}": [{{"name": …, "shape": …, "datatype": …}}]}}')
    arrays: dict[str, Array] = {}
    place = end
    for entry in content[side]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry["name"] in arrays:
            raise InputError(f"an entry of '{side}' has no name of its own", "one entry for each tensor")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            arrays[entry["name"]] = _from_json(entry)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - place:
            raise InputError(f"'{entry['name']}' has {size!r} bytes, and {len(body) - place:,} are left", "the bytes that follow")
        arrays[entry["name"]] = _from_bytes(entry, memoryview(body)[place : place + size])
        place += size
    if place != len(body):
        raise InputError(f"{len(body) - place:,} bytes follow that belong to no tensor", "binary_data_size of every tensor")
    return Message(arrays, str(content.get("id", "")), *_wishes(content))


def _wishes(content: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, bool]]:
    asked = content.get("outputs") if isinstance(content.get("inputs"), list) else None
    binary = {"": _parameters(content).get("binary_data_output") is True}
    names = []
    for entry in asked if isinstance(asked, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputError("an entry of 'outputs' has no name", "the name of an output")
        names.append(entry["name"])
        own = _parameters(entry)
        if unknown := own.keys() - {"binary_data"}:
            raise InputError(f"the output '{entry['name']}' has the parameter {min(unknown)!r}", "binary_data only")
        if "binary_data" in own:
            binary[entry["name"]] = own["binary_data"] is True
    return tuple(names), binary


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise InputError("'parameters' is no object", '{"binary_data_size": …}')
    return found


def _form(entry: Mapping[str, Any]) -> tuple[np.dtype[Any], Sequence[int], int]:
    name, shape, word = entry["name"], entry.get("shape"), entry.get("datatype")
    if not isinstance(word, str) or word not in _NUMPY:
        raise InputError(f"'{name}' has the datatype {word!r}", ", ".join(_NUMPY))
    whole = isinstance(shape, list) and len(shape) <= 64
    if not whole or any(not isinstance(dim, int) or isinstance(dim, bool) or not 0 <= dim < 1 << 31 for dim in shape or ()):
        raise InputError(f"'{name}' has the shape {str(shape)[:80]}", "a list of at most 64 whole numbers")
    dims: list[int] = shape or []
    return np.dtype(_NUMPY[word]), dims, math.prod(dims)


def _from_bytes(entry: Mapping[str, Any], data: memoryview) -> Array:
    dtype, shape, count = _form(entry)
    if len(data) != (needed := count * dtype.itemsize):
        raise InputError(f"'{entry['name']}' has {len(data):,} bytes, and its shape needs {needed:,}", "all of them")
    flat = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    try:
        return flat.reshape(shape)
    except ValueError:  # numpy counts the dimensions of an empty array, too
        raise InputError(f"'{entry['name']}' has the shape {str(shape)[:80]}, which is too large", "smaller dimensions") from None


def _from_json(entry: Mapping[str, Any]) -> Array:
    dtype, shape, count = _form(entry)
    data, name = entry.get("data"), entry["name"]
    try:
        raw = np.array(data, None if dtype.kind == "f" else object) if isinstance(data, list) else None
        if raw is None or raw.size != count or not _fits(raw, dtype):
            raise ValueError
        array = raw.astype(dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError, RecursionError):
        words = f"'{name}' has no list of {count:,} elements that fit {entry.get('datatype')}"
        raise InputError(words, "data of the shape given, or bytes") from None
    return array


def _fits(raw: Array, dtype: np.dtype[Any]) -> bool:
    """Tell whether elements that came as JSON are of a type; integers are Python's own, which have no limits."""
    if dtype.kind == "f" or not raw.size:
        return raw.dtype.kind in "fiub" or not raw.size
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return all(isinstance(value, int) and low <= value <= high for value in raw.reshape(-1))
