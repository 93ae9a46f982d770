"""Answers requests of the Open Inference Protocol with a `Pool`; any web framework may sit in front of it.

This module is copied into packages: it needs numpy, onnxruntime, halfconv's runtime and ``errors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from halfconv.deploy.oip import LENGTH_HEADER, TYPES, pack, unpack
from halfconv.errors import HalfconvError, InputError, PoolFull, RunStopped
from halfconv.runtime.arrays import Spec
from halfconv.runtime.pool import Pool
from halfconv.runtime.rows import batched
from halfconv.runtime.session import Session

__all__ = ["Answer", "Service"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back.

    Attributes:
        status: HTTP's status.
        body: The body.
        headers: Its headers.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Service:
    """One model behind the protocol.

    Args:
        session: The model; it is closed with the service.
        name: What clients call it.
        max_batch: Rows that may run together, where the inputs have a batch dimension.
        max_delay: Seconds that a request may wait for others to run with.
        queue: Requests that may wait.
        timeout: Seconds that a request may take, the wait included.
    """

    def __init__(
        self, session: Session, name: str, *, max_batch: int = 8, max_delay: float = 0.002, queue: int = 256, timeout: float = 30.0
    ):  # fmt: skip
        self._session, self._name, self._timeout = session, name, timeout
        together = max_batch if batched(session.input_specs) else 1
        self._pool = Pool(session, max_batch=together, max_delay=max_delay, queue=queue)

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request.

        Args:
            method: ``GET`` or ``POST``.
            path: ``/v2/models/NAME/infer``, …
            headers: The request's, of which names are found in any case.
            body: All of it.
        """
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            if parts[2] != self._name:
                return _error(404, f"there is no model '{parts[2]}'; try: {self._name}")
            rest = parts[5:] if parts[3:5] == ["versions", "1"] else parts[3:]
            if method == "POST" and rest == ["infer"]:
                return await self._infer(headers, body)
            if method == "GET" and rest == ["ready"]:
                return Answer(200, b"")
            if method == "GET" and not rest:
                return _json(self._metadata())
        elif method == "GET" and parts in (["v2", "health", "live"], ["v2", "health", "ready"]):
            return Answer(200, b"")
        elif method == "GET" and parts == ["v2"]:
            return _json({"name": "halfconv", "version": "2", "extensions": ["binary_tensor_data"]})
        return _error(404, f"there is no {method} {path}; try: POST /v2/models/{self._name}/infer")

    async def _infer(self, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            if headers.get("content-encoding", "identity") != "identity":
                return _error(415, "the body is compressed; try: send it as it is")
            message = unpack("inputs", body, headers.get(LENGTH_HEADER.lower()))
            if unknown := set(message.wanted) - self._session.outputs.keys():
                raise InputError(f"there is no output '{min(unknown)}'", ", ".join(self._session.outputs))
            found = await self._pool.arun(message.arrays, message.wanted or None, timeout=self._timeout)
        except InputError as error:
            return _error(400, str(error))
        except PoolFull as error:
            return _error(503, str(error), {"Retry-After": "1"})
        except RunStopped as error:
            return _error(504, str(error))
        except HalfconvError as error:
            return _error(500, str(error))
        more = {"model_name": self._name, "model_version": "1", **({"id": message.id} if message.id else {})}
        data, length = pack("outputs", found, message.binary, **more)
        if length is None:
            return Answer(200, data, {"Content-Type": "application/json"})
        return Answer(200, data, {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(length)})

    def _metadata(self) -> dict[str, Any]:
        sides = {"inputs": self._session.input_specs, "outputs": self._session.output_specs}
        return {
            "name": self._name, "versions": ["1"], "platform": "onnxruntime_onnx",
            **{side: [_described(spec) for spec in specs.values()] for side, specs in sides.items()},
        }  # fmt: skip

    def close(self) -> None:
        """Let what was accepted end, then release the model."""
        self._pool.close()
        self._session.close()


def _described(spec: Spec) -> dict[str, Any]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": TYPES.get(spec.element, spec.element), "shape": dims}


def _json(content: Mapping[str, Any]) -> Answer:
    return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _error(status: int, words: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps({"error": words}).encode(), {"Content-Type": "application/json", **(headers or {})})
