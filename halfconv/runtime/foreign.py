"""Arrays of torch, CuPy and others on a device. Their libraries are never imported: who gives such an array has done so."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from .arrays import ELEMENTS, FLOATS, Feed, Spec, finish, narrow

__all__ = ["CONTAINERS", "checked", "direct", "from_device", "from_host", "put", "to_host"]

#: What outputs may be returned in.
CONTAINERS = ("numpy", "torch", "cupy", "ort")
#: Kernels read so many bytes at once, from the beginning of a tensor on; a part of an array may begin elsewhere.
ALIGNED = 16


def checked(to: str) -> str:
    """Return the container of outputs that was asked for.

    Raises:
        UsageError: It is unknown, or its library is not imported.
    """
    if to not in CONTAINERS:
        raise UsageError(f"to={to!r}", ", ".join(map(repr, CONTAINERS)))
    if to in ("torch", "cupy") and to not in sys.modules:
        raise UsageError(f"to={to!r}, but {to} is not imported", f"import {to}, or to='numpy'")
    return to


def _library(value: Any) -> str:
    name = type(value).__module__.partition(".")[0]
    return name if name in ("torch", "cupy") else ""


def to_host(value: Any, name: str) -> Any:
    """Copy an array from its device.

    Raises:
        InputError: Nobody knows how.
    """
    library = _library(value)
    if library == "torch":
        return value.cpu()
    if library == "cupy":
        return value.get()
    raise InputError(f"input {name!r} is a {type(value).__name__} on a device, and the model reads it on the CPU", "a numpy array")


def direct(feed: Feed, shape: tuple[int, ...], index: int) -> int | None:
    """Return the address of an array that a model can read where it is; None if it must be copied or cast."""
    if feed.element != feed.spec.element or feed.shape != shape:
        return None
    value, library, address = feed.given, _library(feed.given), None
    if library == "torch" and value.is_contiguous() and value.device.index == index:
        address = int(value.data_ptr())
    if library == "cupy" and value.flags.c_contiguous and value.device.id == index:
        address = int(value.data.ptr)
    return address if address is None or address % ALIGNED == 0 else None


def wait(value: Any) -> None:
    """Wait until an array is written: for the stream on which its library works now, in the calling thread."""
    library = _library(value)
    if library == "torch" and getattr(value, "is_cuda", False):
        sys.modules["torch"].cuda.current_stream(value.device).synchronize()
    elif library == "cupy":
        sys.modules["cupy"].cuda.get_current_stream().synchronize()


def drain(libraries: Iterable[str], index: int) -> None:
    """Wait for libraries that got outputs on a device: what they read there may be memory that ONNX Runtime uses again."""
    for library in libraries:
        if library == "torch":
            if sys.modules["torch"].cuda.is_initialized():
                sys.modules["torch"].cuda.current_stream(index).synchronize()
        elif library == "cupy":
            sys.modules["cupy"].cuda.get_current_stream().synchronize()


def put(value: Any, target: Any, name: str, copy: Callable[[int, int, int], None], views: dict[str, Any]) -> None:
    """Copy an array on a device into a buffer there, cast by its own library, and wait for it.

    Args:
        value: The array; its batch may be smaller than the buffer's, whose last rows then repeat its last.
        target: The buffer, an OrtValue.
        name: The input's name.
        copy: Copies bytes on the device; for arrays of other libraries.
        views: Buffers as arrays of other libraries, which this keeps for the next time.

    Raises:
        InputError: It cannot be copied.
    """
    library = _library(value)
    if library:
        view = views.get(f"{library} {name}")
        if view is None:
            view = views[f"{library} {name}"] = share(target, library)
        rows = value.shape[0] if value.ndim else 0
        if not value.ndim or rows == view.shape[0]:
            view[...] = value
        else:
            view[:rows] = value
            view[rows:] = value[rows - 1 : rows]
        wait(view)
        return
    source = _value(value, name)
    if source.data_type() != target.data_type() or tuple(source.shape()) != tuple(target.shape()):
        found = f"{source.data_type()} {list(source.shape())}"
        raise InputError(
            f"input {name!r} is {found} on a device", f"{target.data_type()} {list(target.shape())}, or a torch tensor"
        )
    copy(target.data_ptr(), source.data_ptr(), source.tensor_size_in_bytes())


def _value(value: Any, name: str) -> Any:
    import onnxruntime

    if isinstance(value, onnxruntime.OrtValue):
        return value
    try:
        return onnxruntime.OrtValue.from_dlpack(value)
    except Exception as error:
        raise InputError(
            f"input {name!r}, a {type(value).__name__} on a device, cannot be read: {error}", "a torch tensor"
        ) from None


def share(value: Any, to: str) -> Any:
    """Return an OrtValue as another library's array of the same memory.

    Torch's can be written at any time, whatever mode the thread is in now: who made it in inference mode could not outside.

    Raises:
        UsageError: This ONNX Runtime has no DLPack, and the memory is not a GPU's.
    """
    if to == "ort":
        return value
    module = sys.modules[to]
    with module.inference_mode(False) if to == "torch" else contextlib.nullcontext():
        if hasattr(value, "__dlpack__"):
            return module.from_dlpack(value)
        if value.device_name() != "cuda":
            raise UsageError(f"to={to!r} needs an ONNX Runtime with DLPack here", "to='numpy', or a newer ONNX Runtime")
        array = module.as_tensor(_Interface(value), device="cuda") if to == "torch" else module.asarray(_Interface(value))
        return array.view(module.bfloat16) if to == "torch" and "bfloat16" in value.data_type() else array


class _Interface:
    """The memory of an OrtValue as older libraries exchange it; BF16, which they do not know, as int16."""

    def __init__(self, value: Any):
        self._value = value
        inner = str(value.data_type())[len("tensor(") : -1]
        kind = np.dtype(np.int16 if inner == "bfloat16" else ELEMENTS[inner][0])
        self.__cuda_array_interface__ = {
            "shape": tuple(value.shape()), "typestr": kind.str, "data": (value.data_ptr(), False), "version": 2
        }  # fmt: skip


def from_device(value: Any, spec: Spec, to: str, rows: int | None, wanted: str | None, fresh: bool) -> Any:
    """Return an output on a device as the caller wants it.

    Args:
        value: The OrtValue.
        spec: Which output.
        to: ``torch``, ``cupy`` or ``ort``.
        rows: How many rows are the caller's; None for all.
        wanted: A float's name; None for the model's own.
        fresh: Whether the memory is this run's own, so that it may be handed out as it is.

    Raises:
        UsageError: ``ort`` was asked for with another type or a padded batch.
    """
    if to == "ort":
        if rows is not None or wanted not in (None, spec.element) or not fresh:
            raise UsageError("to='ort' gives the model's own buffers: no other type, no padded batch, no CUDA graph", "to='torch'")
        if not hasattr(type(value), "from_dlpack"):  # then it is the binding's, and gone with the next run
            raise UsageError("to='ort' needs ONNX Runtime 1.27 or newer on a device", "to='torch', or a newer ONNX Runtime")
        return value
    array, fresh = share(value, to), fresh and hasattr(value, "__dlpack__")  # which keeps the memory
    if spec.element == "bool" and "bool" not in str(array.dtype):  # DLPack had no bool once
        array = array.view(sys.modules[to].bool if to == "torch" else bool)
    array = array if rows is None else array[:rows]
    if wanted not in (None, spec.element) and spec.element in FLOATS:
        fresh = False
        array = array.to(getattr(sys.modules[to], wanted)) if to == "torch" else array.astype(wanted)
    elif not fresh:
        array = array.clone() if to == "torch" else array.copy()
    if not fresh:
        wait(array)  # before ONNX Runtime writes into the buffer again
    return array


def from_host(array: Any, spec: Spec, to: str, wanted: str | None) -> Any:
    """Return an output in the CPU's memory as the caller wants it; what is no tensor, or a text, as it was."""
    if to == "numpy" or not isinstance(array, np.ndarray) or spec.element == "string":
        return finish(array, spec, wanted)
    target = wanted if wanted is not None and spec.element in FLOATS else spec.element
    if to == "torch" and target == "bfloat16":
        torch = sys.modules["torch"]
        bits = array if spec.element == "bfloat16" else narrow(array)
        return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16)).view(torch.bfloat16)
    if to == "torch":
        return sys.modules["torch"].from_numpy(finish(array, spec, target))
    if to == "cupy":
        return sys.modules["cupy"].asarray(finish(array, spec, target if target != "bfloat16" else "float32"))
    import onnxruntime

    if target == "bfloat16":
        bits = array if spec.element == "bfloat16" else narrow(array)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(bits), ELEMENTS["bfloat16"][1])
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(finish(array, spec, target)))
