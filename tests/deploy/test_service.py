"""The edge package's HTTP service, in a Python that has numpy and ONNX Runtime only."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from halfconv.deploy.recorded import Recorded, read_samples
from tests.deploy.packages import bare_python, run_bare, sign_again

JSON, NPZ = "application/json", "application/x-npz"


class Service:
    """A service in a process of its own."""

    def __init__(self, package: Path, folder: Path, *options: str):
        command = [sys.executable, "-S", "serve.py", "--port", "0", *options]
        self.process = subprocess.Popen(
            command, cwd=package, env=bare_python(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        self.port = int(found[1])

    def wait(self) -> Service:
        for _ in range(300):
            if self.ask("GET", "/ready")[0] == 200:
                return self
            time.sleep(0.1)
        raise AssertionError("the service does not become ready")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Type") or ""
        finally:
            connection.close()

    def predict(self, body: bytes, kind: str = JSON, **headers: str) -> tuple[int, Any]:
        status, answer, got = self.ask("POST", "/predict", body, Content_Type=kind, **headers)
        if got == NPZ:
            with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
                return status, dict(arrays)
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        status, text, kind = self.ask("GET", "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        said, problems = self.process.communicate(timeout=60)
        return self.process.returncode, said + problems


@pytest.fixture(scope="module")
def service(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(made / "edge-digits_cnn", tmp_path_factory.mktemp("bare"), "--max-body", "100KB", "--workers", "2").wait()
    yield running
    code, said = running.stop()
    assert (code, said.splitlines()) == (0, ["serve: ready on cpu", "serve: stopped"])


@pytest.fixture(scope="module")
def sample(made: Path) -> Recorded:
    return read_samples(made / "edge-digits_cnn" / "samples").samples[0]


def as_json(sample: Recorded) -> bytes:
    return json.dumps({"inputs": {name: array.tolist() for name, array in sample.inputs.items()}}).encode()


def as_npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def near(found: Any, sample: Recorded) -> bool:
    wanted = sample.outputs["logits"]
    return bool(np.linalg.norm(np.asarray(found) - wanted) <= 1e-2 * np.linalg.norm(wanted))


def test_json_and_npz_give_what_the_fp32_model_gave(service: Service, sample: Recorded) -> None:
    status, answer = service.predict(as_json(sample))
    assert status == 200 and near(answer["outputs"]["logits"], sample)
    for kind in (NPZ, "application/octet-stream"):
        status, answer = service.predict(as_npz(**sample.inputs), kind)
        assert status == 200 and near(answer["logits"], sample)
    status, answer = service.predict(as_json(sample), Accept=f"{NPZ}, */*")
    assert status == 200 and near(answer["logits"], sample)
    status, answer = service.predict(as_npz(**sample.inputs), NPZ, Accept=JSON)
    assert status == 200 and near(answer["outputs"]["logits"], sample)


def test_many_at_once_are_all_answered(service: Service, sample: Recorded) -> None:
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: service.predict(as_json(sample)), range(40)))
    assert all(status == 200 and near(answer["outputs"]["logits"], sample) for status, answer in answers)


def test_what_it_says_of_itself(service: Service, sample: Recorded) -> None:
    assert json.loads(service.ask("GET", "/health")[1]) == {"status": "ok"}
    model = json.loads(service.ask("GET", "/model")[1])
    assert model["inputs"] == [{"name": "image", "dtype": "float32", "dims": ["batch", 1, 8, 8]}]
    assert (model["to"], model["provider"]) == ("fp16", "cpu")
    before = service.metrics()
    assert before["halfconv_ready"] == 1
    service.predict(as_json(sample))
    service.predict(b"{}")
    after = service.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('halfconv_requests_total{status="200"}') == grown("halfconv_request_seconds_count") == 1
    assert grown('halfconv_requests_total{status="400"}') == 1
    assert after['halfconv_request_seconds_bucket{le="+Inf"}'] == after["halfconv_request_seconds_count"]
    buckets = [value for name, value in after.items() if name.startswith("halfconv_request_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert after["halfconv_in_flight"] == 0
    assert any(name.startswith('halfconv_model_info{name="digits_cnn",sha256="') for name in after)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, b"no json", JSON, "no JSON"),
        (400, b"[]", JSON, "no JSON"),
        (400, b'{"inputs": []}', JSON, "no JSON"),
        (400, b'{"inputs": {}}', JSON, "image"),
        (400, b'{"inputs": {"other": [1]}}', JSON, "no input 'other'"),
        (400, b'{"inputs": {"image": [1, 2]}}', JSON, "image"),
        (400, b'{"inputs": {"image": [[1], [2, 3]]}}', JSON, "no JSON"),
        (400, b'{"inputs": {"image": "text"}}', JSON, "no JSON"),
        (400, b"[" * 50_000, JSON, "no JSON"),
        (400, as_npz(image=np.zeros(1), other=np.zeros(1)), NPZ, "holds 2 arrays, and at most 1"),
        (400, b"no zip", NPZ, "cannot be read"),
        (400, as_npz(image=np.array([{}], object)), NPZ, "pickled"),
        (415, b"x", "text/plain", "content type"),
        (413, b"x" * 100_001, JSON, "100,000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_bad_requests(service: Service, status: int, body: bytes, kind: str, words: str) -> None:
    got, answer = service.predict(body, kind)
    assert got == status and words in answer["error"]
    assert service.ask("GET", "/health")[0] == 200


def test_an_archive_that_grows_is_refused(service: Service) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros((50_000, 1, 8, 8), np.float32))
    assert len(stream.getvalue()) < 100_000
    status, answer = service.predict(stream.getvalue(), NPZ)
    assert status == 413 and "100,000 bytes" in answer["error"]


def test_a_length_is_needed_and_a_body_that_ends_early_is_given_up(service: Service) -> None:
    for head, wanted in ((b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 411"), (b"Content-Length: -1\r\n", b"HTTP/1.1 411")):
        with socket.create_connection(("127.0.0.1", service.port), 30) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
            assert connection.recv(1 << 16).startswith(wanted)
    with socket.create_connection(("127.0.0.1", service.port), 30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16) == b""
    assert service.ask("GET", "/nowhere")[0] == 404
    assert service.ask("POST", "/nowhere", b"{}")[0] == 404


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\nContent-Length: 0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_no_body_passes_for_another_request(service: Service, request_head: bytes) -> None:
    """What follows may be read as a body by a proxy in front, whose next answer would then be another's."""
    with socket.create_connection(("127.0.0.1", service.port), 30) as connection:
        connection.sendall(request_head + b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                answers += part
    assert answers.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in answers


class Known(NamedTuple):
    """What `read_feeds` asks of an input's spec."""

    element: str


@pytest.fixture(scope="module")
def reader(made: Path) -> Iterator[Callable[..., Any]]:
    """The function that reads requests, for inputs of any types: (kind, body, budget, **types) -> arrays."""
    known = dict(sys.modules)
    path, written = list(sys.path), sys.dont_write_bytecode
    module = runpy.run_path(str(made / "edge-digits_cnn" / "serve.py"), run_name="serve")

    def read(kind: str, body: bytes, budget: int = 10**6, **types: str) -> Any:
        session = SimpleNamespace(input_specs={name: Known(word) for name, word in types.items()})
        service = SimpleNamespace(session=session, options=SimpleNamespace(max_body=10**5), budget=module["Budget"](budget))
        with contextlib.ExitStack() as taken:
            return module["read_feeds"](kind, body, service, taken)

    yield read
    sys.path[:], sys.dont_write_bytecode = path, written
    for name in sys.modules.keys() - known.keys():
        del sys.modules[name]


@pytest.mark.parametrize(
    ("element", "fits", "does_not"),
    [
        ("int64", [1, -(2**63), 2.0, True], [1.5, "1", None, 2**63, 1e30]),
        ("uint8", [0, 255], [256, -1]),
        ("bool", [True, 0], [2, "false", 0.5]),
        ("float32", [1, 1.5, None], ["text"]),
    ],
)
def test_json_gives_an_input_its_type_and_no_other_number(
    reader: Callable[..., Any], element: str, fits: list[Any], does_not: list[Any]
) -> None:
    for value in fits:
        found = reader(JSON, json.dumps({"inputs": {"x": [value]}}).encode(), x=element)["x"]
        assert found.dtype == element and (value is None or found[0] == value)
    for value in does_not:
        with pytest.raises(Exception, match="no JSON of the form") as refused:
            reader(JSON, json.dumps({"inputs": {"x": [value]}}).encode(), x=element)
        assert vars(refused.value)["status"] == 400


def test_arrays_count_as_bytes_in_work(reader: Callable[..., Any]) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros(20_000, np.float32))
    assert len(stream.getvalue()) < 1000
    assert reader(NPZ, stream.getvalue(), 80_000, x="float32")["x"].shape == (20_000,)
    with pytest.raises(Exception, match="too many bytes of requests are in work") as refused:
        reader(NPZ, stream.getvalue(), 79_999, x="float32")
    assert vars(refused.value)["status"] == 503


def test_one_connection_serves_many_requests(service: Service, sample: Recorded) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    for _ in range(3):
        connection.request("POST", "/predict", as_json(sample), {"Content-Type": JSON})
        answer = connection.getresponse()
        assert answer.status == 200 and near(json.loads(answer.read())["outputs"]["logits"], sample)
    connection.close()


def test_a_signal_ends_it_when_requests_are_answered(made: Path, sample: Recorded, tmp_path: Path) -> None:
    running = Service(made / "edge-digits_cnn", tmp_path).wait()
    idle = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    idle.request("GET", "/health")
    idle.getresponse().read()  # and it stays open
    answers, errors = [], []
    go_on = threading.Event()

    def call() -> None:
        while not go_on.is_set():
            try:
                answers.append(running.predict(as_json(sample)))
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)
                return

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    while len(answers) < 8:
        time.sleep(0.01)
    code, said = running.stop()
    go_on.set()
    for caller in callers:
        caller.join()
    idle.close()
    assert code == 0 and said.endswith("serve: stopped\n")
    assert {status for status, _ in answers} <= {200, 503}
    assert all(near(answer["outputs"]["logits"], sample) for status, answer in answers if status == 200)
    assert all(isinstance(error, (ConnectionError, http.client.RemoteDisconnected)) for error in errors)


def test_too_many_requests_are_told_to_come_again(made: Path, sample: Recorded, tmp_path: Path) -> None:
    running = Service(made / "edge-digits_cnn", tmp_path, "--connections", "1").wait()
    try:
        time.sleep(0.2)  # the last connection has ended
        held = socket.create_connection(("127.0.0.1", running.port), 30)
        held.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert held.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", running.port), 30) as second:
            assert second.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        held.close()
    finally:
        assert running.stop()[0] == 0


def test_a_damaged_package_is_not_served(made: Path, tmp_path: Path) -> None:
    package = shutil.copytree(made / "edge-digits_cnn", tmp_path / "edge")
    with (package / "model" / "digits_cnn.fp16.onnx").open("ab") as stream:
        stream.write(b"\0")
    done = run_bare(package, tmp_path, "serve.py", "--port", "0")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("serve: ") and "was changed" in line


def test_a_model_that_gives_other_outputs_here_never_becomes_ready(made: Path, tmp_path: Path) -> None:
    package = shutil.copytree(made / "edge-digits_cnn", tmp_path / "edge")
    outputs = package / "samples" / "0.out.0.bin"
    outputs.write_bytes((np.fromfile(outputs, "<f4") * 2).astype("<f4").tobytes())
    sign_again(package)
    done = run_bare(package, tmp_path, "serve.py", "--port", "0")
    assert done.returncode == 2 and "does not give the recorded outputs: logits: FAILED" in done.stderr


def test_the_example_runs(made: Path, tmp_path: Path) -> None:
    done = run_bare(made / "edge-digits_cnn", tmp_path, "example.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("logits: float32[3, 10] begins with [") and " on cpu; " in done.stdout


def test_missing_packages_are_told(made: Path, tmp_path: Path) -> None:
    for script in ("verify.py", "serve.py"):
        done = subprocess.run(
            [sys.executable, "-S", "-I", script], cwd=made / "edge-digits_cnn", capture_output=True, text=True, check=False
        )
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and "No module named" in line and "pip install -r requirements.txt" in line
