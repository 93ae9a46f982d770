"""The package ``ray``: real replicas on the CPU, one of which is killed under load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tritonclient.http

from halfconv.deploy.oip_client import Client
from halfconv.deploy.packaging import deploy
from halfconv.errors import InputError
from halfconv.runtime.session import Session
from tests.deploy.packing import REAL, deployed, real_samples
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ROOT = Path(__file__).parents[2]


class Cluster(NamedTuple):
    """Ray, its process, and the packages that it serves."""

    url: str
    process: psutil.Process
    folder: Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-B", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


# Without Ray


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "m.onnx").write_bytes(models.squares("float"))
    result = deploy(folder / "m.onnx", "ray", folder / "out", samples=[{"x": X}])
    assert result.verified.passed and "without Ray: passed on 1 given samples" in result.verified.words
    return folder / "out"


def test_a_file_that_was_changed_is_found_before_it_is_served(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "p")
    with (tmp_path / "p/model/m.fp16.onnx").open("ab") as stream:
        stream.write(b"\0")
    done = run(tmp_path / "p", "verify.py")
    assert done.returncode == 2 and "m.fp16.onnx: was changed: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_server_is_an_error_in_one_line(package: Path) -> None:
    code = """
import runpy, sys
sys.path.insert(0, ".")
sys.argv = ["verify.py", "--url", "http://127.0.0.1:9"]
from vendored.deploy.oip_client import Client
Client.__init__.__kwdefaults__["retries"] = 1
runpy.run_path("verify.py", run_name="__main__")
"""
    done = run(package, "-c", code)
    assert done.returncode == 2 and done.stderr.startswith("verify: http://127.0.0.1:9 cannot be reached")
    assert len(done.stderr.splitlines()) == 1


def test_arguments_of_the_application(package: Path) -> None:
    """Ray gives them as texts; an unknown one is refused."""
    code = """
import sys; sys.path.insert(0, ".")
import json, serve_app
app = serve_app.build({"replicas": "3", "num_gpus": "0.25", "gpu_memory": "1000", "max_delay": "0.01"})
d = app._bound_deployment
print(json.dumps([d.name, d.num_replicas, d.ray_actor_options, d.init_args[0]]))
try:
    serve_app.build({"replica": 2})
except ValueError as error:
    print(error)
"""
    done = run(package, "-c", code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    name, replicas, resources, settings = json.loads(first)
    assert (name, replicas, resources["num_gpus"]) == ("m", 3, 0.25)
    assert settings["gpu_memory"] == 1000 and settings["max_delay"] == 0.01 and settings["max_batch"] == 8
    assert second.startswith("there is no argument 'replica'; try: replicas, ")


def test_an_old_runtime_is_told_before_anything_is_served(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "p")
    manifest = json.loads((tmp_path / "p/manifest.json").read_text("utf-8"))
    (tmp_path / "p/manifest.json").write_text(json.dumps({**manifest, "min_ort": "99.1"}), "utf-8")
    done = run(tmp_path / "p", "-c", "import sys; sys.path.insert(0, '.'); import serve_app; serve_app.Replica(serve_app.DEFAULTS)")
    assert "too old for this package, which needs 99.1; try: pip install" in done.stderr.splitlines()[-1]


# With Ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, converted: Callable[[str], Path]) -> Iterator[Cluster]:
    """One cluster, with every real model as its own application of two replicas."""
    folder = tmp_path_factory.mktemp("cluster")
    for key in REAL:
        assert deployed(key, "ray", folder, half=converted(key)).verified.passed
    command = [sys.executable, "-m", "tests.deploy.ray_cluster", *(str(folder / key) for key in REAL)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    log = folder / "ray.log"
    with log.open("wb") as errors, subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        here = psutil.Process(process.pid)
        try:
            said = ""
            for said in process.stdout:
                if said.startswith("ready "):
                    break
            assert said.startswith("ready "), log.read_text("utf-8")[-4000:]
            yield Cluster(f"http://127.0.0.1:{int(said.split()[1])}", here, folder)
        finally:
            below = here.children(recursive=True) if here.is_running() else []
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            _, alive = psutil.wait_procs(below, 10)
            for left in alive:
                left.kill()


def replicas(cluster: Cluster, name: str) -> list[psutil.Process]:
    """The processes that serve a model."""
    found = []
    for process in cluster.process.children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(f"ray::ServeReplica:{name}:"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_models_pass_their_own_verification(key: str, cluster: Cluster) -> None:
    done = run(cluster.folder / key, "verify.py", "--url", f"{cluster.url}/{key}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{key} at {cluster.url}/{key}: passed on 2 given samples" in done.stdout


@pytest.mark.slow
def test_the_example_runs(cluster: Cluster) -> None:
    done = run(cluster.folder / "digits_cnn", "example.py", f"{cluster.url}/digits_cnn")
    assert done.returncode == 0 and "logits: float32[2, 10] begins with" in done.stdout, done.stderr


@pytest.mark.slow
def test_what_is_no_request_is_refused_and_not_sent_again(cluster: Cluster) -> None:
    with Client(f"{cluster.url}/digits_cnn", "digits_cnn") as client:
        assert client.ready() and client.metadata()["inputs"][0]["shape"] == [-1, 1, 8, 8]
        with pytest.raises(InputError, match=r"answers 400: .*image"):
            client.infer({"image": np.ones((1, 1, 8, 9), np.float32)})
        with pytest.raises(InputError, match="answers 413: the body has more than 64,000,000 bytes; try: a smaller batch"):
            client.infer({"image": np.ones((250_001, 1, 8, 8), np.float32)})
        assert client.retried == 0


@pytest.mark.slow
def test_tritons_own_client_understands_the_service(cluster: Cluster, folder: Path) -> None:
    """So does the verification of the package ``triton``, which is written for a Triton server."""
    sample = real_samples("digits_cnn")[0]["image"]
    client = tritonclient.http.InferenceServerClient(f"{cluster.url.removeprefix('http://')}/digits_cnn")
    assert client.is_server_live() and client.is_model_ready("digits_cnn")
    for binary in (True, False):
        given = tritonclient.http.InferInput("image", list(sample.shape), "FP32")
        given.set_data_from_numpy(sample, binary_data=binary)
        wanted = tritonclient.http.InferRequestedOutput("logits", binary_data=binary)
        found = client.infer("digits_cnn", [given], outputs=[wanted], request_id="7")
        assert found.get_response()["id"] == "7"
        with Session(cluster.folder / "digits_cnn/model/digits_cnn.fp16.onnx", provider="cpu") as session:
            np.testing.assert_allclose(found.as_numpy("logits"), session.run({"image": sample})["logits"], rtol=1e-3, atol=1e-3)
    client.close()
    deployed("digits_cnn", "triton", folder)
    done = run(folder / "digits_cnn", "verify.py", "--url", f"{cluster.url.removeprefix('http://')}/digits_cnn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits_cnn at" in done.stdout and "passed on 2 given samples" in done.stdout


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_request(cluster: Cluster) -> None:
    """1,200 different requests by eight threads: each gets its own right answer, although one of two processes is killed."""
    with np.load(ROOT / "models/digits_cnn.npz") as arrays:
        images = arrays["image"]
    requests = [images[k % 360 : k % 360 + 1] * np.float32(1 + k // 360) for k in range(1200)]
    with Session(cluster.folder / "digits_cnn/model/digits_cnn.fp16.onnx", provider="cpu", threads=1) as session:
        serial = [session.run({"image": image})["logits"] for image in requests]
    before = replicas(cluster, "digits_cnn")
    assert len(before) == 2
    begun, done, lock = threading.Event(), [0], threading.Lock()

    with Client(f"{cluster.url}/digits_cnn", "digits_cnn", timeout=20, retries=12) as client:

        def ask(image: Any) -> Any:
            found = client.infer({"image": image})["logits"]
            with lock:
                done[0] += 1
            if done[0] >= 300:
                begun.set()
            return found

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, image) for image in requests]
            assert begun.wait(120)
            before[0].send_signal(signal.SIGKILL)
            left = len(requests) - done[0]
            found = [answer.result(120) for answer in answers]
    assert left > 100
    for k, (have, want) in enumerate(zip(found, serial, strict=True)):
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-3, err_msg=f"request {k}")
    print(f"{len(found)} requests, {left} after the kill, {client.retried} attempts repeated")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        now = {process.pid for process in replicas(cluster, "digits_cnn")}
        if len(now) == 2 and before[0].pid not in now:
            break
        time.sleep(0.2)
    assert len(now) == 2 and before[0].pid not in now and before[1].pid in now
