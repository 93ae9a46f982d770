"""Hold ONNX Runtime's sessions in a process of its own: ``python session_server.py``, requests on standard input.

A model may end the process that runs it (a crash, a mapped file that shrinks), run for ever, or ask for all memory: here, that
harms nobody else. `halfconv.runtime_process` asks. What a model did to this process must not reach the other side, so messages hold
data only: a JSON text, in which arrays are numbered, and the bytes of these arrays; before each its length, 8 bytes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from typing import IO, Any

import numpy as np

CPU = "CPUExecutionProvider"
#: Optimisation levels, from all to none.
LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def receive(stream: IO[bytes]) -> Any:
    """Read a message.

    Raises:
        EOFError: The other side is gone.
        ValueError: It is no message.
    """
    tree = json.loads(_read(stream))
    buffers = [_read(stream) for _ in range(tree["buffers"])]
    return _unpacked(tree["message"], buffers)


def send(stream: IO[bytes], message: Any) -> None:
    """Write a message.

    Args:
        stream: Where.
        message: None, truth values, numbers, texts, bytes and arrays; lists, tuples (which become lists) and dictionaries of them.

    Raises:
        TypeError: It holds something else.
    """
    buffers: list[bytes] = []
    tree = _packed(message, buffers)
    for part in (json.dumps({"message": tree, "buffers": len(buffers)}).encode(), *buffers):
        stream.write(struct.pack("<Q", len(part)))
        stream.write(part)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    head = stream.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    data = stream.read(size)
    if len(head) < 8 or len(data) < size:
        raise EOFError
    return data


def _packed(value: Any, buffers: list[bytes]) -> Any:
    """Return what JSON can hold of a value; the rest is added to the buffers."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"list": [_packed(item, buffers) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key, buffers), _packed(item, buffers)] for key, item in value.items()]}
    if isinstance(value, bytes):
        buffers.append(value)
        return {"bytes": len(buffers) - 1}
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(value).__name__} cannot be sent")
    array = np.asarray(value)
    shape = list(array.shape)
    if array.dtype.kind in "OSU":
        return {"texts": [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)], "shape": shape}
    buffers.append(np.ascontiguousarray(array).tobytes())
    return {"array": len(buffers) - 1, "dtype": array.dtype.name, "shape": shape}


def _unpacked(tree: Any, buffers: list[bytes]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "list" in tree:
        return [_unpacked(item, buffers) for item in tree["list"]]
    if "dict" in tree:
        return {_unpacked(key, buffers): _unpacked(item, buffers) for key, item in tree["dict"]}
    if "bytes" in tree:
        return buffers[tree["bytes"]]
    if "texts" in tree:
        return np.array(tree["texts"], object).reshape(tree["shape"])
    return np.frombuffer(bytearray(buffers[tree["array"]]), _dtype(tree["dtype"])).reshape(tree["shape"])


def _dtype(name: str) -> Any:
    """Return an element type; those that numpy lacks come from ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


class Server:
    """Sessions by number."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}

    def open(self, source: str | bytes, level: str, provider: str, mapped: bool, threads: int, library: str = "") -> list[Any]:
        """Open a session.

        Args:
            source: The model's file, or its bytes.
            level: A name of `LEVELS`.
            provider: Execution provider; CPU is always the fallback.
            mapped: Whether weights in external files stay there, mapped into memory: what would copy them is left out.
            threads: How many compute; 0 leaves it to the runtime.
            library: Kernels of operators of a library; empty for none.

        Returns:
            Its number, (name, type, shape) of inputs and of outputs, the providers that it has, ONNX Runtime's version, and why
            the library is not used, "" if it is, or there is none.
        """
        import onnxruntime

        if provider != CPU and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        if mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
        problem = ""
        if library:
            try:
                options.register_custom_ops_library(library)
            except Exception as error:
                problem = f"{library} cannot be registered: {' '.join(str(error).split())[:300]}"
        providers = list(dict.fromkeys([provider, CPU]))
        left_out = ["ConstantFolding"] if mapped else []
        try:
            session = onnxruntime.InferenceSession(source, options, providers=providers, disabled_optimizers=left_out)
        except Exception as error:
            if not library or problem:
                raise
            # a kernel beats what the file defines, which may be of another type
            why = f"with {library}, {' '.join(str(error).split())[:300]}"
            return [*self.open(source, level, provider, mapped, threads)[:-1], why]
        number = len(self._sessions)
        self._sessions[number] = session
        inputs, outputs = (
            [(value.name, value.type, value.shape) for value in side] for side in (session.get_inputs(), session.get_outputs())
        )
        return [number, inputs, outputs, session.get_providers(), onnxruntime.__version__, problem]

    def run(self, number: int, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Run a session."""
        values: list[Any] = self._sessions[number].run(names, feeds)
        return values

    def kernels(self, provider: str) -> list[Any]:
        """List an execution provider's kernels: domain, operator, and names of the types that they take."""
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

        return [
            [kernel.domain, kernel.op_name, sorted({kind for kinds in kernel.type_constraints.values() for kind in kinds})]
            for kernel in get_all_opkernel_def()
            if kernel.provider == provider
        ]

    def close(self, number: int) -> None:
        """Release a session."""
        self._sessions[number] = None


def limit_memory(most: int | None) -> None:
    """Let this process have so many bytes of its own; None: as many as there are."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = hard if most is None else most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def serve() -> None:
    """Answer requests until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the other side
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the runtime prints is no answer
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                requests.put(receive(sys.stdin.buffer))
        except BaseException:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    server = Server()
    while True:
        method, arguments, most = requests.get()
        try:
            limit_memory(most)
            answer = True, getattr(server, method)(*arguments)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}" if isinstance(error, MemoryError) else str(error)
        try:
            send(answers, answer)
        except (TypeError, UnicodeError, MemoryError) as error:
            send(answers, (False, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve()
