"""The commands of docs/deploy-web.md and docs/deploy-servers.md work, one after the other, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.deploy.ray_cluster import free_port

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(name: str) -> list[str]:
    return BLOCK.findall((ROOT / "docs" / name).read_text("utf-8"))


@pytest.fixture
def place(folder: Path) -> Path:
    """A folder with the model that the pages speak of, and commands that run this checkout."""
    shutil.copy(ROOT / "models/digits_cnn.onnx", folder)
    (folder / "bin").mkdir()
    for name, arguments in (("halfconv", " -m halfconv"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


def environment(place: Path) -> dict[str, str]:
    path = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def shell(place: Path, script: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def background(place: Path, script: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs until it is interrupted."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    known = environment(place) | more
    with subprocess.Popen(
        command, cwd=place, env=known, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            below = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for one in below:
                with suppress(psutil.NoSuchProcess):  # it may end with the one before it
                    one.terminate()
            for one in psutil.wait_procs(below, 15)[1]:
                one.kill()


@pytest.mark.slow
def test_the_page_on_browsers(place: Path) -> None:
    (script,) = blocks("deploy-web.md")
    assert script.endswith("npm start\n")
    shell(place, script.removesuffix("npm start\n"))
    with background(place, "cd digits-web && npm start -- 0") as process:
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if line.startswith("http"))
        with urllib.request.urlopen(address) as answer:
            assert "Verify" in answer.read().decode()


@pytest.mark.slow
def test_the_page_on_servers(place: Path) -> None:
    triton, ray, serve, verify = blocks("deploy-servers.md")
    assert "verify: passed" in shell(place, triton)
    assert "count: 2" in (place / "digits-triton/model_repository/digits_cnn/config.pbtxt").read_text("utf-8")
    assert "verify: passed" in shell(place, ray)
    port = free_port()
    copy = place / "own.yaml"
    copy.write_text((place / "digits-ray/serve_config.yaml").read_text("utf-8").replace("8000", str(port)), "utf-8")
    serve = serve.replace("serve_config.yaml", f"--app-dir . {copy}")
    temporary = f"/tmp/hc-{port}"  # a socket's path is short
    more = {"RAY_ADDRESS": "local", "RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    Path(temporary).mkdir()
    try:
        with background(place, f"({serve}) >&2", **more) as process:
            end = time.monotonic() + 120
            while time.monotonic() < end and process.poll() is None and not ready(port):
                time.sleep(0.3)
            assert "verify: passed" in shell(place, verify.replace("8000", str(port)))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
            return True
    except OSError:
        return False
