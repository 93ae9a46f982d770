"""A client of the Open Inference Protocol that tries again: for Triton, KServe and the Ray package.

A server that is killed, restarted or full loses requests that were under way. A model keeps nothing between requests, so the same
request may be sent again: this client does so, a bounded number of times, and waits longer each time. urllib3 does the work.

This module is copied into packages: it needs numpy, urllib3 and ``errors``.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import urllib3
from numpy.typing import NDArray

from halfconv.deploy.oip import LENGTH_HEADER, pack, unpack
from halfconv.errors import EnvironmentProblem, InputError

__all__ = ["Client"]

Array = NDArray[Any]
#: Answers after which the same request is sent again: too many requests, and what servers and proxies say when a replica is gone.
AGAIN = (429, 500, 502, 503, 504)


class _Policy(urllib3.Retry):
    """Waits no longer than it was told, whatever a server asks for in ``Retry-After``."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Return the seconds to wait; None if the server does not say."""
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, self.backoff_max)


class Client:
    """Sends requests to one model of a server. Many threads may share it.

    Args:
        url: The server: ``http://127.0.0.1:8000``.
        model: The model's name there.
        timeout: Seconds that one attempt may take.
        retries: How often a request is sent again.
        backoff: Seconds before the second retry (the first comes at once); they double each time, and up to `backoff` is added at
            random.
        longest: Most seconds between two attempts, also where the server asks for more.
        connections: Connections that are kept open.

    Attributes:
        retried: How many attempts had to be repeated so far.
    """

    def __init__(
        self, url: str, model: str, *, timeout: float = 30.0, retries: int = 8, backoff: float = 0.1, longest: float = 5.0,
        connections: int = 16,
    ):  # fmt: skip
        self._server, self._model = url.rstrip("/"), f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}"
        policy = _Policy(
            total=retries, backoff_factor=backoff, backoff_jitter=backoff, backoff_max=longest, status_forcelist=AGAIN,
            allowed_methods=None, redirect=0, raise_on_status=False,
        )  # fmt: skip
        self._pool = urllib3.PoolManager(maxsize=connections, retries=policy, timeout=urllib3.Timeout(timeout))
        self._lock = threading.Lock()
        self.retried = 0

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Input -> array.
            outputs: Names of the outputs wanted; empty for all.

        Returns:
            Output -> array.

        Raises:
            InputError: The server refuses the request; it is not sent again.
            EnvironmentProblem: The server cannot be reached, or fails at every attempt.
        """
        more: dict[str, Any] = {"id": uuid.uuid4().hex, "parameters": {"binary_data_output": True}}
        if outputs:
            more["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        body, length = pack("inputs", {name: np.asarray(array) for name, array in inputs.items()}, {"": True}, **more)
        headers = {"Content-Type": "application/octet-stream"} | ({} if length is None else {LENGTH_HEADER: str(length)})
        answer = self._send("POST", f"{self._model}/infer", body, headers)
        return unpack("outputs", answer.data, answer.headers.get(LENGTH_HEADER)).arrays

    def metadata(self) -> dict[str, Any]:
        """Return what the server says of the model: its name, inputs and outputs.

        Raises:
            InputError: It does not know the model.
            EnvironmentProblem: It cannot be reached.
        """
        return dict(json.loads(self._send("GET", self._model).data))

    def ready(self) -> bool:
        """Tell whether the model can be used now; this is not tried again."""
        try:
            return bool(self._pool.request("GET", f"{self._model}/ready", retries=False).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        try:
            answer = self._pool.request(method, url, body=body, headers=dict(headers or {}))
        except urllib3.exceptions.HTTPError as error:
            raise EnvironmentProblem(f"{self._server} cannot be reached: {error}", "its address, or whether it runs") from None
        with self._lock:
            self.retried += len(answer.retries.history) if answer.retries else 0
        if answer.status == 200:
            return answer
        words = f"{self._server} answers {answer.status}: {_reason(answer.data)}"
        if answer.status in AGAIN:
            raise EnvironmentProblem(words, "later, or look at the server's log")
        raise InputError(words, "a request that the model takes")


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return data[:200].decode("utf-8", "replace")
