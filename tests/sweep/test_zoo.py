"""Ten real models: a sweep of them survives the death of workers and of the driver, and nothing is done twice."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import zoo
from tests.sweep.fleets import results, save_fleet, stamps, start, unfinished, workers
from tests.test_schemas import validate

pytestmark = pytest.mark.slow

KEYS = (
    "rapidocr_cls", "skl_mlp_digits", "skl_rf_digits", "skl_logreg_zipmap", "skl_knn_scan", "light_resnet50",
    "light_shufflenet", "light_bvlc_alexnet", "dnsmos_p808", "silero_vad_16k_op15",
)  # fmt: skip
PATIENCE = 300


def test_ten_models_survive_killed_workers_and_a_killed_driver(folder: Path) -> None:
    models = [{"path": str(zoo.model(key)), "name": key, "samples": "{folder}/s0.npz"} for key in KEYS]
    (folder / "bad.onnx").write_bytes(zoo.model("rapidocr_cls").read_bytes()[:100_000])
    fleet = save_fleet(folder / "fleet.toml", *models, {"path": "bad.onnx"})
    out = folder / "fleet.sweep"
    end = time.monotonic() + PATIENCE
    killed: set[int] = set()

    driver = start(fleet, "--jobs", "2", cwd=folder)
    while len(results(out)) < 4:
        assert driver.poll() is None and time.monotonic() < end
        if len(killed) < 2:  # the first two workers that are seen at work
            for worker in workers(driver.pid):
                if worker.pid not in killed and worker.children():
                    killed.add(worker.pid)
                    worker.kill()
        time.sleep(0.05)
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    psutil.wait_procs(started, timeout=PATIENCE)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started)
    before = stamps(out)
    assert 4 <= len(before) < len(models) and killed
    for result in results(out).values():
        validate("sweep_result", result)

    again = start(fleet, "--jobs", "2", "--json", cwd=folder)
    text, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 1, err
    report = json.loads(text)
    validate("sweep", report)
    assert report["counts"]["kept"] == len(before)
    assert report["counts"]["ran"] == len(models) + 1 - len(before)
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    status = {job["name"]: job["result"]["status"] for job in report["jobs"]}
    assert status == {**dict.fromkeys(KEYS, "passed"), "bad": "failed"}
    assert not list(unfinished(out))
    assert sorted(path.parent.name for path in out.rglob("*.onnx")) == sorted(KEYS)
