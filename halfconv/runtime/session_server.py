"""Hold ONNX Runtime's sessions in a process of its own: ``python session_server.py``, requests on standard input.

A model may end the process that runs it (a crash, a mapped file that shrinks), run for ever, or ask for all memory: here, that
harms nobody else. `halfconv.drift.sessions` asks. A message is its length, 8 bytes, and a pickle.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import sys
import threading
from typing import Any, BinaryIO


def receive(stream: BinaryIO) -> Any:
    """Read a message.

    Raises:
        EOFError: The other side is gone.
    """
    head = stream.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    data = stream.read(size)
    if len(head) < 8 or len(data) < size:
        raise EOFError
    return pickle.loads(data)


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message."""
    data = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


class Server:
    """Sessions by number."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}

    def open(
        self, number: int, source: str | bytes, level: str, providers: list[str], settings: dict[str, str]
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
        """Open a session.

        Args:
            number: What it is called from now on.
            source: The model's file, or its bytes.
            level: A name of ONNX Runtime's optimisation levels.
            providers: Execution providers.
            settings: Entries of the session's configuration.

        Returns:
            (name, type) of inputs and of outputs, and the providers.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        session = onnxruntime.InferenceSession(source, options, providers=providers)
        self._sessions[number] = session
        sides = [[(value.name, value.type) for value in side] for side in (session.get_inputs(), session.get_outputs())]
        return sides[0], sides[1], session.get_providers()

    def run(self, number: int, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Run a session."""
        values: list[Any] = self._sessions[number].run(names, feeds)
        return values

    def close(self, *numbers: int) -> None:
        """Release sessions."""
        for number in numbers:
            self._sessions.pop(number, None)


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
        except (pickle.PicklingError, TypeError, MemoryError) as error:
            send(answers, (False, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve()
