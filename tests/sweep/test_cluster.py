"""A sweep on a Ray cluster of this machine gives what it gives by processes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sweep.fleets import ROOT, calls, environment, results, save_evil, save_fleet, save_model, save_samples, start
from tests.test_schemas import strict, validate

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

PATIENCE = 120
#: What two runs of one job need not have in common.
OWN = ("seconds", "finished", "conversion", "model")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two processors; nobody else can reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's are too long for its sockets
    command = [
        Path(sysconfig.get_path("scripts")) / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    known = {**environment(), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    below: list[psutil.Process] = []
    try:
        end = time.monotonic() + PATIENCE
        while not list(Path(folder).glob("session_*/sockets/raylet*")):
            assert head.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        below = psutil.Process(head.pid).children(recursive=True)
        yield f"127.0.0.1:{port}"
    finally:
        below += psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        for process in (*below, head):
            try:
                process.kill()
            except psutil.Error:
                continue
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def open_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def run(folder: Path, *arguments: object) -> tuple[int, Any]:
    driver = start(*arguments, "--json", cwd=folder)
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode in (0, 1), err
    content = strict(out)
    validate("sweep", content)
    return driver.returncode, content


def comparable(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Outcomes without what two runs need not have in common, such as times and folders."""
    kept = {}
    for name, result in found.items():
        conversion = result["conversion"] and {key: value for key, value in result["conversion"].items() if key != "output"}
        kept[name] = {key: value for key, value in result.items() if key not in OWN} | {"conversion": conversion}
    return kept


def test_a_cluster_gives_what_processes_give(folder: Path, cluster: str) -> None:
    save_evil(folder)
    for number, name in enumerate(("a", "b", "crash", "once", "hang")):
        save_model(folder / f"{name}.onnx", number)
    (folder / "bad.onnx").write_bytes(b"no model")
    save_samples(folder / "a.npz")
    fleet = save_fleet(
        folder / "fleet.toml", {"path": "a.onnx", "samples": "a.npz", "to": ["fp16", "bf16"]}, {"path": "b.onnx"},
        {"path": "bad.onnx"}, {"path": "crash.onnx", "samples": "evil:crash"}, {"path": "once.onnx", "samples": "evil:crash_once"},
        {"path": "hang.onnx", "samples": "evil:hang", "timeout": 8},
    )  # fmt: skip
    code, there = run(folder, fleet, "--ray", cluster, "--out", folder / "there")
    (folder / "crash_once.calls").unlink()
    assert (code, run(folder, fleet, "--jobs", "2", "--out", folder / "here")[0]) == (1, 1)
    assert there["counts"] == {"passed": 4, "drifted": 0, "failed": 3, "ran": 7, "kept": 0, "planned": 0}
    assert comparable(results(folder / "there")) == comparable(results(folder / "here"))
    models = [{f.relative_to(top): f.read_bytes() for f in top.rglob("*.onnx")} for top in (folder / "there", folder / "here")]
    assert models[0] == models[1] and len(models[0]) == 4
    _, again = run(folder, fleet, "--out", folder / "there")
    assert again["counts"]["kept"] == 7, "what a cluster did need not be done here"


def test_a_killed_driver_ends_its_jobs_on_the_cluster(folder: Path, cluster: str) -> None:
    save_evil(folder)
    for number, name in enumerate(("a", "b")):
        save_model(folder / f"{name}.onnx", number)
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, {"path": "b.onnx", "samples": "evil:wait"})
    driver = start(fleet, "--ray", cluster, cwd=folder)
    end = time.monotonic() + PATIENCE
    while not (calls(folder, "wait") and len(results(folder / "fleet.sweep")) == 1):
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    job = psutil.Process(int((folder / "wait.calls").read_text().split()[0]))
    driver.kill()
    driver.communicate()
    psutil.wait_procs([job], timeout=PATIENCE)
    assert not job.is_running()
    (folder / "go").touch()
    code, report = run(folder, fleet, "--ray", cluster)
    assert code == 0
    assert [entry["state"] for entry in report["jobs"]] == ["kept", "ran"]


def test_what_no_machine_has_is_not_waited_for(folder: Path, cluster: str) -> None:
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"})
    driver = start(fleet, "--ray", cluster, "--gpus", "0.5", cwd=folder)
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 2 and not out
    assert "no machine of the cluster has 0.5 GPUs" in err and "Traceback" not in err
    assert [path.name for path in (folder / "fleet.sweep").iterdir()] == [".lock"]
