"""The examples of apps in docs/embedding.md: each runs, and gives what the model gives."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfconv
from tests.documents import block, environment
from tests.npm import npm_package

pytest.importorskip("magika")

#: The package that the README installs for Node.js.
NODE_PACKAGE = "onnxruntime-node@1.30.0"
ROWS = np.random.default_rng(0).integers(0, 257, (40, 2048), dtype=np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the converted model lies."""
    from halfconv.demo.magika import find_model

    made = tmp_path_factory.mktemp("embedding")
    shutil.copy(find_model().path, made / "magika.onnx")
    halfconv.convert(made / "magika.onnx", check=False)
    return made


@pytest.fixture(scope="module")
def answers(folder: Path) -> np.ndarray:
    """What FP32 gives for the rows."""
    with halfconv.Session(folder / "magika.onnx", provider="cpu", profile=False) as session:
        return np.asarray(session.run({"bytes": ROWS})["target_label"])


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_session(folder: Path) -> None:
    said = run(block("python", "session.placement.nodes"), folder)
    assert "(1, 214)" in said and "ExecutionProvider" in said


def test_the_folder_of_inputs(folder: Path, answers: np.ndarray) -> None:
    (folder / "inputs").mkdir()
    for number, row in enumerate(ROWS):
        np.save(folder / "inputs" / f"{number:03}.npy", row)
    lines = run(block("python", 'Path("inputs")'), folder).splitlines()
    assert lines == [f"{number:03}.npy {row.argmax()}" for number, row in enumerate(answers)]


@pytest.fixture
def service(folder: Path) -> Iterator[str]:
    """The service in a process of its own; its address."""
    pytest.importorskip("uvicorn")
    (folder / "service.py").write_text(block("python", "FastAPI(lifespan"), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode in (0, -15)


def ask(address: str, rows: Any) -> tuple[int, Any]:
    request = urllib.request.Request(address, json.dumps(rows).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["detail"]


def test_the_service(service: str, answers: np.ndarray) -> None:
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda row: ask(service, [row.tolist()]), ROWS))
    assert found == [(200, [int(row.argmax())]) for row in answers]
    assert ask(service, ROWS[:5].tolist()) == (200, answers[:5].argmax(-1).tolist())
    status, words = ask(service, [[1, 2, 3]])
    assert status == 422 and "2048" in words
    assert ask(service, [[1], [2, 3]])[0] == 422


@pytest.mark.slow
def test_node(folder: Path, answers: np.ndarray) -> None:
    script = block("javascript", "onnxruntime-node")
    done = subprocess.run(
        ["node", "-e", script], cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "NODE_PATH": str(npm_package(NODE_PACKAGE))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(done.stdout))
    with halfconv.Session(folder / "magika.onnx", provider="cpu", profile=False) as session:
        wanted = session.run({"bytes": np.zeros((1, 2048), np.int32)})["target_label"][0]
    assert np.linalg.norm(found - wanted) <= 1e-2 * np.linalg.norm(wanted)
