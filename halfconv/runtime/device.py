"""A CUDA device's memory, through the CUDA runtime that ONNX Runtime has loaded: pinned buffers, and copies on a stream of our own.

`Host` is the same for the CPU's memory. It lets the binding run where there is no GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import numpy as np

from ..errors import EnvironmentProblem

__all__ = ["GATE", "Cuda", "Device", "Gate", "Host", "Stream"]

#: Names of the CUDA runtime, by platform; the versions that ONNX Runtime is built with.
_LIBRARIES = {
    "linux": ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"),
    "win32": ("cudart64_13.dll", "cudart64_12.dll", "cudart64_110.dll"),
}
#: CUDA's numbers of the ways of a copy: to the device, from it, and as the addresses tell.
_TO_DEVICE, _FROM_DEVICE, _ANY_WAY = 1, 2, 4
#: CUDA's number of a stream that does not wait for the default one.
_NON_BLOCKING = 1


class Gate:
    """Keeps other work with CUDA away while a graph is captured.

    CUDA's capture, as ONNX Runtime begins it, forbids the whole process to allocate device memory or to wait for a device
    meanwhile: both the capture and the other call would fail. So runs and loads of all sessions go through one gate per process,
    side by side, and a capture goes through it alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._inside = self._loads = 0
        self._alone = False

    def shared(self) -> Gate:
        """Go through beside others, for a run: ``with GATE.shared():``."""
        return self

    def __enter__(self) -> None:
        with self._lock:
            while self._alone:
                self._change.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._alone and not self._inside:
                self._change.notify_all()

    @property
    def loading(self) -> bool:
        """Whether a model is loaded now, for whose end a capture would wait."""
        return self._loads > 0

    @contextmanager
    def load(self) -> Iterator[None]:
        """Go through beside others, for long: runs go on beside it, and captures wait."""
        with self._change:
            while self._alone:
                self._change.wait()
            self._loads += 1
        try:
            yield
        finally:
            with self._change:
                self._loads -= 1
                self._change.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Go through alone, for a capture."""
        with self._change:
            while self._alone or self._loads:
                self._change.wait()
            self._alone = True  # no others come in from now on
            while self._inside:
                self._change.wait()
        try:
            yield
        finally:
            with self._change:
                self._alone = False
                self._change.notify_all()


#: The process's gate: not a setting, but what CUDA is.
GATE = Gate()


class Device(Protocol):
    """Memory that a model's inputs and outputs lie in.

    Attributes:
        name: ONNX Runtime's name of it.
        index: Which one.
        shared: Whether copies and runs follow each other on one stream, so that neither need wait for the other to end.
    """

    name: str
    index: int
    shared: bool

    def share(self, stream: Stream) -> None:
        """Copy on the stream that the model runs on, from now on."""

    def part(self) -> None:
        """No longer share the stream, on which a capture failed; the model is no longer on it."""

    def buffer(self, size: int) -> np.ndarray[Any, Any]:
        """Return bytes in the CPU's memory that copies from and to the device go through."""

    def release(self, buffer: np.ndarray[Any, Any]) -> None:
        """Free a buffer."""

    def enter(self) -> None:
        """Make the device the calling thread's own; before copies."""

    def copy(self, to: int, address: int, size: int) -> None:
        """Begin to copy bytes, from and to the device, a buffer or both."""

    def send(self, to: int, address: int, size: int) -> None:
        """Copy many bytes of the caller's memory to the device, for the next run; what runs on the device must have ended."""

    def fetch(self, to: int, address: int, size: int) -> None:
        """Copy many bytes from the device into the caller's memory, and wait; what runs on the device must have ended."""

    def wait(self) -> None:
        """Wait for all copies that began."""

    def close(self) -> None:
        """Free all that is left."""


class Host:
    """The CPU's memory as a device."""

    def __init__(self) -> None:
        self.name, self.index, self.shared = "cpu", 0, False

    def share(self, stream: Stream) -> None:
        """Do nothing."""

    def part(self) -> None:
        """Do nothing."""

    def buffer(self, size: int) -> np.ndarray[Any, Any]:
        """Return bytes."""
        return np.empty(size, np.uint8)

    def release(self, buffer: np.ndarray[Any, Any]) -> None:
        """Do nothing: numpy frees its memory."""

    def enter(self) -> None:
        """Do nothing."""

    def copy(self, to: int, address: int, size: int) -> None:
        """Copy bytes."""
        ctypes.memmove(to, address, size)

    send = fetch = copy

    def wait(self) -> None:
        """Do nothing: copies are done at once."""

    def close(self) -> None:
        """Do nothing."""


class Stream:
    """A CUDA stream that does not wait for the default one. It is destroyed when nothing holds it any more.

    Args:
        index: The device.

    Attributes:
        library: The CUDA runtime.
        handle: CUDA's own.

    Raises:
        EnvironmentProblem: No CUDA runtime is loaded, or it fails.
    """

    def __init__(self, index: int):
        self.library, self.handle = _loaded(), ctypes.c_void_p()
        _call(self.library, "cudaSetDevice", ctypes.c_int(index))
        _call(self.library, "cudaStreamCreateWithFlags", ctypes.byref(self.handle), ctypes.c_uint(_NON_BLOCKING))

    @property
    def address(self) -> int:
        """The handle as a number."""
        return self.handle.value or 0

    def __del__(self) -> None:
        """Destroy it."""
        if not sys.is_finalizing() and getattr(self, "handle", None):
            with contextlib.suppress(EnvironmentProblem):
                _call(self.library, "cudaStreamDestroy", self.handle)


class Cuda:
    """A CUDA device's memory.

    Args:
        index: The device.

    Raises:
        EnvironmentProblem: No CUDA runtime is loaded, or it fails.
    """

    def __init__(self, index: int):
        self.name, self.index, self.shared = "cuda", index, False
        self._number = ctypes.c_int(index)
        self._owner: Stream | None = Stream(index)
        self._library, self._stream = self._owner.library, self._owner.handle
        self._set, self._memcpy = self._library.cudaSetDevice, self._library.cudaMemcpyAsync
        self._synchronize, self._memcpy_now = self._library.cudaStreamSynchronize, self._library.cudaMemcpy
        self._memcpy_now.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._memcpy.argtypes = [*self._memcpy_now.argtypes, ctypes.c_void_p]
        self._pinned: dict[int, int] = {}
        self._lock = threading.Lock()

    def share(self, stream: Stream) -> None:
        """Copy on the stream that the model runs on, from now on."""
        self._owner, self._stream, self.shared = stream, stream.handle, True

    def part(self) -> None:
        """No longer share the stream, on which a capture failed; the model is no longer on it."""
        if self.shared:
            self._owner = Stream(self.index)
            self._stream, self.shared = self._owner.handle, False

    def _call(self, name: str, *arguments: Any) -> None:
        _call(self._library, name, *arguments)

    def enter(self) -> None:
        """Make the device the thread's own, as ONNX Runtime does in each run."""
        code = self._set(self._number)
        if code:
            _fail(self._library, "cudaSetDevice", code)

    def buffer(self, size: int) -> np.ndarray[Any, Any]:
        """Return pinned bytes; ordinary ones if there are no more."""
        if not size:
            return np.empty(0, np.uint8)
        pointer = ctypes.c_void_p()
        self.enter()
        try:
            self._call("cudaHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), ctypes.c_uint(0))
        except EnvironmentProblem:
            return np.empty(size, np.uint8)
        address = int(pointer.value or 0)
        with self._lock:
            self._pinned[address] = size
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def release(self, buffer: np.ndarray[Any, Any]) -> None:
        """Free a buffer."""
        with self._lock:
            known = self._pinned.pop(buffer.ctypes.data, None)
        if known is not None:
            self._call("cudaFreeHost", ctypes.c_void_p(buffer.ctypes.data))

    def copy(self, to: int, address: int, size: int) -> None:
        """Begin to copy bytes; addresses tell CUDA which way."""
        code = self._memcpy(to, address, size, _ANY_WAY, self._stream)
        if code:
            _fail(self._library, "cudaMemcpyAsync", code)

    def send(self, to: int, address: int, size: int) -> None:
        """Copy many bytes of the caller's memory to the device, for the next run.

        Nothing is staged in memory of our own: CUDA's own staging takes two thirds of the time (one H200, 19 MB: 1.44 ms, staged
        2.33 ms, in pieces 2.10 ms). On the stream that the model runs on there is nothing to wait for either.
        """
        if self.shared:
            self.copy(to, address, size)
        else:
            self._copy_now(to, address, size, _TO_DEVICE)
            self._settle(None)  # the last bytes may be on their way

    def fetch(self, to: int, address: int, size: int) -> None:
        """Copy many bytes from the device into the caller's memory; all are there when it returns."""
        self._copy_now(to, address, size, _FROM_DEVICE)

    def _copy_now(self, to: int, address: int, size: int, way: int) -> None:
        code = self._memcpy_now(to, address, size, way)
        if code:
            _fail(self._library, "cudaMemcpy", code)

    def wait(self) -> None:
        """Wait for the stream."""
        self._settle(self._stream)

    def _settle(self, stream: ctypes.c_void_p | None) -> None:
        code = self._synchronize(stream)
        if code:
            _fail(self._library, "cudaStreamSynchronize", code)

    def __del__(self) -> None:
        """Free what a session that nobody closed has left."""
        if not sys.is_finalizing() and hasattr(self, "_pinned"):
            with contextlib.suppress(EnvironmentProblem):
                self.close()

    def close(self) -> None:
        """Free all buffers, and the stream unless the model runs on it."""
        with self._lock:
            left, self._pinned = list(self._pinned), {}
        if left:
            self.enter()
            for address in left:
                self._call("cudaFreeHost", ctypes.c_void_p(address))
        self._owner, self._stream = None, ctypes.c_void_p()


def _call(library: Any, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        _fail(library, name, code)


def _fail(library: Any, name: str, code: int) -> NoReturn:
    library.cudaGetErrorString.restype = ctypes.c_char_p
    text = (library.cudaGetErrorString(ctypes.c_int(code)) or b"").decode(errors="replace")
    library.cudaGetLastError()  # takes the error back, which the next kernel's launch would be blamed for
    raise EnvironmentProblem(f"CUDA failed: {name}: {text} ({code})", "a smaller batch, another device, or provider='cpu'")


def _loaded() -> Any:
    """Return the CUDA runtime that this process has loaded, of ONNX Runtime's own major version if there are several."""
    import onnxruntime

    names = _LIBRARIES.get(sys.platform, ())
    major = str(getattr(onnxruntime, "cuda_version", "")).partition(".")[0]
    mode = (os.RTLD_NOLOAD | os.RTLD_NOW) if hasattr(os, "RTLD_NOLOAD") else ctypes.DEFAULT_MODE
    for name in sorted(names, key=lambda name: not (major and major in name)):
        try:
            return ctypes.CDLL(name, mode=mode)
        except OSError:
            continue
    raise EnvironmentProblem("no CUDA runtime is loaded", "pip install 'onnxruntime-gpu[cuda,cudnn]'")
