"""The Open Inference Protocol: messages, the service behind it, and the client that tries again."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from halfconv.deploy.oip import LENGTH_HEADER, TYPES, pack, unpack
from halfconv.deploy.oip_client import Client
from halfconv.deploy.oip_server import Answer, Service
from halfconv.errors import EnvironmentProblem, InputError
from halfconv.runtime.session import Session
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)

# Messages


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_of_every_type_come_back_as_they_were(dtype: str, binary: bool) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (2, 0, 3) if binary else (2, 3))
    arrays = {"a": values.astype(dtype), "ü/b:0": np.array(1).astype(dtype)}
    body, length = pack("inputs", arrays, {"": binary}, id="7")
    found = unpack("inputs", body, None if length is None else str(length))
    assert found.id == "7" and (length is None) != binary
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype and found.arrays[name].shape == array.shape
        np.testing.assert_array_equal(found.arrays[name], array)


def test_large_integers_in_json_keep_every_digit() -> None:
    arrays = {"i": np.array([-(2**63), 2**63 - 1]), "u": np.array([2**64 - 1, 0], np.uint64)}
    body, _ = pack("inputs", arrays, {})
    found = unpack("inputs", body, None).arrays
    assert found["i"].tolist() == [-(2**63), 2**63 - 1] and found["u"].tolist() == [2**64 - 1, 0]


def test_what_json_cannot_hold_is_null_and_bytes_hold_it() -> None:
    array = np.array([1, np.nan, np.inf], np.float32)
    body, _ = pack("outputs", {"y": array}, {})
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None, None]
    body, length = pack("outputs", {"y": array}, {"y": True})
    np.testing.assert_array_equal(unpack("outputs", body, str(length)).arrays["y"], array)


def test_the_wishes_of_a_client() -> None:
    content = {
        "inputs": [], "parameters": {"binary_data_output": True},
        "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
    }  # fmt: skip
    found = unpack("inputs", json.dumps(content).encode(), None)
    assert found.wanted == ("a", "b") and found.binary == {"": True, "b": False}


def entry(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | changes]}).encode()


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"", None, "the body is no JSON object"),
        (b"[]", None, "no JSON object"),
        (b"\xff", None, "no JSON object"),
        (b"[" * 100_000, None, "no JSON object"),
        (b'{"inputs": 3}', None, "no JSON object"),
        (b"{}", "-1", "Content-Length is '-1'"),
        (b"{}", "3", "Content-Length is '3', and the body has 2 bytes"),
        (b"{}", "²", "Content-Length"),
        (b"{}", "9" * 5000, "Content-Length is '9999"),
        (b'{"inputs": []}more', "14", "4 bytes follow that belong to no tensor"),
        (b'{"inputs": [{"name": 1}]}', None, "no name of its own"),
        (entry(datatype="BYTES"), None, "the datatype 'BYTES'"),
        (entry(datatype=["FP32"]), None, "the datatype"),
        (entry(shape=[-1]), None, r"the shape \[-1\]"),
        (entry(shape=[2.0]), None, "the shape"),
        (entry(shape=[True]), None, "the shape"),
        (entry(shape="2"), None, "the shape"),
        (entry(shape=[1] * 65), None, "the shape"),
        (entry(shape=[2**30] * 64), None, "no list of"),
        (entry(shape=[0] + [2**31 - 1] * 4, data=[]), None, "no list of 0"),
        (entry(shape=[0] + [2**31 - 1] * 4, parameters={"binary_data_size": 0}), None, "which is too large"),
        (entry(data=[1]), None, "no list of 2 elements that fit FP32"),
        (entry(data=[[1], [2, 3]]), None, "no list of 2"),
        (entry(data=["a", "b"]), None, "no list of 2"),
        (entry(data=None), None, "no list of 2"),
        (entry(datatype="INT8", data=[1, 300]), None, "that fit INT8"),
        (entry(datatype="INT8", data=[1, 0.5]), None, "that fit INT8"),
        (entry(datatype="UINT8", data=[1, -1]), None, "that fit UINT8"),
        (entry(parameters=[]), None, "'parameters' is no object"),
        (entry(parameters={"binary_data_size": 8}), None, "has 8 bytes, and 0 are left"),
        (entry(parameters={"binary_data_size": -1}), None, "has -1 bytes"),
        (entry(parameters={"binary_data_size": True}), None, "has True bytes"),
        (entry(parameters={"binary_data_size": 0}), None, "has 0 bytes, and its shape needs 8"),
        (b'{"inputs": [], "outputs": [3]}', None, "an entry of 'outputs' has no name"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}', None, "parameter 'classification'"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(body: bytes, length: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as problem:
        unpack("inputs", body, length)
    assert "; try: " in str(problem.value) and "\n" not in str(problem.value)


def test_damaged_messages_are_refused_and_nothing_else() -> None:
    body, length = pack("inputs", {"x": X, "i": np.arange(3)}, {"x": True}, id="1", outputs=[{"name": "y"}])
    dice = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(body)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        cut = bytes(damaged[: dice.randint(0, len(damaged))] if dice.random() < 0.2 else damaged)
        try:
            unpack("inputs", cut, str(length))
        except InputError:
            refused += 1
    assert refused > 1000


# The service


def asked(service: Service, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    return asyncio.run(service.answer(method, path, headers or {}, body))


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service(Session(models.squares("float"), provider="cpu", threads=1), "sq uares")
    yield made
    made.close()


def test_a_request_in_json_and_in_bytes(service: Service) -> None:
    for binary in (True, False):
        body, length = pack("inputs", {"x": X}, {"": binary}, id="a1", parameters={"binary_data_output": binary})
        headers = {} if length is None else {LENGTH_HEADER.lower(): str(length)}
        answer = asked(service, "POST", "/v2/models/sq%20uares/infer", body, headers)
        assert answer.status == 200
        found = unpack("outputs", answer.body, answer.headers.get(LENGTH_HEADER))
        assert found.id == "a1"
        np.testing.assert_array_equal(found.arrays["y"], X * X)
        np.testing.assert_array_equal(found.arrays["s"], (X * X).sum(1))


def test_only_the_outputs_that_are_wanted(service: Service) -> None:
    body, _ = pack("inputs", {"x": X}, {}, outputs=[{"name": "s"}])
    answer = asked(service, "POST", "/v2/models/sq%20uares/versions/1/infer", body)
    assert [entry["name"] for entry in json.loads(answer.body)["outputs"]] == ["s"]


def test_what_a_server_says_of_itself(service: Service) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/sq%20uares/ready"):
        assert asked(service, "GET", path).status == 200
    assert json.loads(asked(service, "GET", "/v2").body)["extensions"] == ["binary_tensor_data"]
    told = json.loads(asked(service, "GET", "/v2/models/sq%20uares").body)
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [entry["name"] for entry in told["outputs"]] == ["y", "s"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("GET", "/", b"", {}, 404, "there is no GET /; try: POST"),
        ("GET", "/v2/models/other", b"", {}, 404, "there is no model 'other'; try: sq uares"),
        ("GET", "/v2/models/sq%20uares/infer", b"", {}, 404, "there is no GET"),
        ("POST", "/v2/models/sq%20uares/versions/2/infer", b"", {}, 404, "there is no POST"),
        ("POST", "/v2/models/sq%20uares/infer", b"{", {}, 400, "no JSON object"),
        ("POST", "/v2/models/sq%20uares/infer", entry(), {}, 400, "'x'"),
        ("POST", "/v2/models/sq%20uares/infer", entry(name="z"), {}, 400, "no input 'z'"),
        ("POST", "/v2/models/sq%20uares/infer", b'{"inputs": [], "outputs": [{"name": "q"}]}', {}, 400, "no output 'q'; try: y, s"),
        ("POST", "/v2/models/sq%20uares/infer", b"", {"content-encoding": "gzip"}, 415, "compressed"),
    ],
)
def test_what_cannot_be_answered(
    service: Service, method: str, path: str, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = asked(service, method, path, body, headers)
    assert answer.status == status and words in json.loads(answer.body)["error"]


def test_a_full_queue_and_a_late_run_are_worth_another_try() -> None:
    endless = Service(Session(models.endless(), provider="cpu", threads=1), "e", queue=1, timeout=0.3)
    body, _ = pack("inputs", {"x": np.ones((2, 2), np.float32)}, {})

    async def many() -> list[Answer]:
        return await asyncio.gather(*(endless.answer("POST", "/v2/models/e/infer", {}, body) for _ in range(4)))

    found = asyncio.run(many())
    assert {answer.status for answer in found} <= {503, 504} and 503 in {answer.status for answer in found}
    assert all(answer.headers["Retry-After"] == "1" for answer in found if answer.status == 503)
    endless.close()


def test_inputs_without_a_common_batch_run_alone() -> None:
    alone = Service(Session(models.model("g (float[2, 2] x) => (float[2, 2] y) { y = Neg(x) }"), provider="cpu"), "n", max_batch=8)
    body, _ = pack("inputs", {"x": np.ones((2, 2), np.float32)}, {})
    assert json.loads(asked(alone, "POST", "/v2/models/n/infer", body).body)["outputs"][0]["data"] == [-1.0] * 4
    alone.close()


# The client

#: What a server does with one request; True if it has answered.
Fault = Callable[[BaseHTTPRequestHandler], None]


def drops(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def says(status: int, body: bytes = b'{"error": "not now"}', **headers: str) -> Fault:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


@contextmanager
def server(service: Service, faults: list[Fault]) -> Iterator[tuple[str, list[bytes]]]:
    """The service over HTTP; the first requests meet the faults. Yields its address and the bodies that came."""
    came: list[bytes] = []
    left = list(faults)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(body)
            if left:
                left.pop(0)(self)
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = asked(service, "POST", self.path, body, headers)
            says(answer.status, answer.body, **answer.headers)(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", came
        made.shutdown()
        thread.join()


FAULTS = [drops, breaks_off, says(500), says(502), says(503, Retry_After="0"), says(504), says(429)]


def test_requests_that_are_lost_are_sent_again_as_they_were(service: Service) -> None:
    with server(service, FAULTS) as (url, came), Client(url, "sq uares", backoff=0.001) as client:
        found = client.infer({"x": X}, ["y"])
        assert list(found) == ["y"]
        np.testing.assert_array_equal(found["y"], X * X)
        assert client.retried == len(FAULTS) and len(came) == len(FAULTS) + 1 and len(set(came)) == 1


def test_a_server_does_not_say_how_long_a_client_waits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with server(service, [says(503, Retry_After="86400")]) as (url, _), Client(url, "sq uares", longest=0.25) as client:
        np.testing.assert_array_equal(client.infer({"x": X})["y"], X * X)
    assert slept == [0.25]


def test_the_number_of_attempts_is_bounded(service: Service) -> None:
    for fault, words in ((says(503), "answers 503: not now; try: later"), (drops, "cannot be reached")):
        with server(service, [fault] * 9) as (url, came), Client(url, "sq uares", backoff=0.001, retries=3) as client:
            with pytest.raises(EnvironmentProblem, match=words):
                client.infer({"x": X})
            assert len(came) == 4


def test_a_request_that_is_wrong_is_not_sent_again(service: Service) -> None:
    with server(service, []) as (url, came), Client(url, "sq uares") as client:
        with pytest.raises(InputError, match=r"answers 400: .*'z'"):
            client.infer({"z": X})
        assert len(came) == 1
    with server(service, []) as (url, came), Client(url, "other") as client:
        with pytest.raises(InputError, match="answers 404: there is no model 'other'"):
            client.infer({"x": X})
        assert len(came) == 1
        with pytest.raises(InputError, match="which cannot be sent"):
            client.infer({"x": np.array(["text"])})


def test_no_server_at_all() -> None:
    with Client("http://127.0.0.1:9", "m", retries=1, backoff=0.001) as client:
        assert client.ready() is False
        with pytest.raises(EnvironmentProblem, match=r"http://127.0.0.1:9 cannot be reached"):
            client.infer({"x": X})
