"""Sweeps: what is done, what is kept, what becomes of bad models, and what survives the death of a worker or of the driver."""

from __future__ import annotations

import functools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest

from halfconv.locks import lock
from halfconv.sweep.driver import sweep
from tests.commands import Run, run_here
from tests.sweep.fleets import (
    calls,
    results,
    save_evil,
    save_fleet,
    save_model,
    save_samples,
    stamps,
    start,
    unfinished,
    workers,
)
from tests.test_schemas import strict, validate

#: Longer than anything here takes, so that a failure is no hang.
PATIENCE = 120


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Run]:
    monkeypatch.chdir(folder)
    return functools.partial(run_here, capfd, "sweep")


def wait_for(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_sweep_converts_validates_and_measures(folder: Path, cli: Callable[..., Run]) -> None:
    save_model(folder / "a.onnx")
    save_samples(folder / "a.npz")
    model = {"path": "a.onnx", "samples": "a.npz"}
    save_fleet(folder / "fleet.toml", model, to=["fp16", "bf16"], bench=True, seconds=0.05, batch=[1, 4])
    done = cli("fleet.toml", "--json", "--markdown", "table.md")
    assert done.code == 0, done
    assert done.err == ""
    content = strict(done.out)
    validate("sweep", content)
    assert content["counts"] == {"passed": 2, "drifted": 0, "failed": 0, "ran": 2, "kept": 0, "planned": 0}
    half, brain = (job["result"] for job in content["jobs"])
    model = onnx.load(half["conversion"]["output"])
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert half["drift"]["sample_kind"] == "given" and 0 < half["drift"]["rel_l2"] < 1e-2
    assert [row["batch"] for row in half["speed"]] == [1, 4]
    assert brain["speed"] is None and any("not measured" in note for note in brain["notes"])
    for found in results(folder / "fleet.sweep").values():
        validate("sweep_result", found)
    assert (folder / "table.md").read_text("utf-8").count("| a | portable |") == 2


@pytest.mark.slow
def test_what_is_done_is_not_done_again(folder: Path, cli: Callable[..., Run]) -> None:
    for number, name in enumerate(("a", "b")):
        save_model(folder / f"{name}.onnx", number)
    fleet = save_fleet(folder / "fleet.toml", {"path": "*.onnx"}, to=["fp16", "bf16"])
    out = folder / "results"
    planned = strict(cli(fleet, "--out", out, "--dry-run", "--json").out)
    validate("sweep", planned)
    assert planned["counts"]["planned"] == 4 and not out.exists()
    first = cli(fleet, "--out", out, "--jobs", "2")
    assert first.code == 0 and first.err.count("passed") == 4, first
    before = stamps(out)
    assert len(before) == 4
    again = strict(cli(fleet, "--out", out, "--json").out)
    validate("sweep", again)
    assert again["counts"]["kept"] == 4 and again["counts"]["ran"] == 0
    assert stamps(out) == before

    save_model(folder / "b.onnx", 7)
    assert strict(cli(fleet, "--out", out, "--dry-run", "--json").out)["counts"] | {"passed": 0} == {
        "passed": 0, "drifted": 0, "failed": 0, "ran": 0, "kept": 2, "planned": 2,
    }  # fmt: skip
    assert cli(fleet, "--out", out).code == 0
    changed = {name for name, stamp in stamps(out).items() if stamp != before[name]}
    assert changed == {"b.portable.fp16.result.json", "b.portable.bf16.result.json"}

    (out / "a" / "a.portable.fp16.onnx").unlink()  # what is lost is made again
    (out / "a" / "a.portable.bf16.result.json").write_text("{")
    assert strict(cli(fleet, "--out", out, "--json").out)["counts"]["ran"] == 2
    assert (out / "a" / "a.portable.fp16.onnx").exists()


def test_results_may_be_moved_with_their_fleet(folder: Path, tmp_path: Path) -> None:
    save_model(folder / "a.onnx")
    save_fleet(folder / "fleet.toml", {"path": "a.onnx"})
    sweep(folder / "fleet.toml")
    folder.rename(tmp_path / "elsewhere")
    (entry,) = sweep(tmp_path / "elsewhere" / "fleet.toml").entries
    assert entry.state == "kept" and entry.result is not None
    assert Path(entry.result["conversion"]["output"]).is_relative_to(tmp_path / "elsewhere")
    assert Path(entry.result["conversion"]["output"]).is_file()


@pytest.mark.slow
def test_a_bad_model_stops_no_other(folder: Path, cli: Callable[..., Run]) -> None:
    save_evil(folder)
    for name in ("good", "crash", "crash_once", "leave", "hang", "memory", "shout"):
        save_model(folder / f"{name}.onnx", len(name))
    (folder / "bad.onnx").write_bytes(b"no model")
    save_model(folder / "loud.onnx", scale=3000.0)
    save_samples(folder / "loud.npz")
    fleet = save_fleet(
        folder / "fleet.toml", {"path": "bad.onnx"}, {"path": "crash.onnx", "samples": "evil:crash"},
        {"path": "crash_once.onnx", "samples": "evil:crash_once"}, {"path": "leave.onnx", "samples": "evil:leave"},
        {"path": "hang.onnx", "samples": "evil:hang", "timeout": 8}, {"path": "memory.onnx", "samples": "evil:memory"},
        {"path": "shout.onnx", "samples": "evil:shout"},
        {"path": "loud.onnx", "samples": "loud.npz", "tolerance": {"rel_l2": 1e-9}, "repair": False}, {"path": "good.onnx"},
    )  # fmt: skip
    done = cli(fleet, "--jobs", "2")
    assert done.code == 1, done
    found = {name.partition(".")[0]: result for name, result in results(folder / "fleet.sweep").items()}
    for result in found.values():
        validate("sweep_result", result)
    assert {name for name, result in found.items() if result["status"] == "passed"} == {"good", "crash_once", "shout"}
    said = {name: (result["error"]["kind"], result["error"]["message"]) for name, result in found.items() if result["error"]}
    assert said["bad"][0] == "InputError" and "not an ONNX model" in said["bad"][1]
    assert said["crash"][0] == "ProcessEnded" and "SIGSEGV" in said["crash"][1]
    assert said["leave"][0] == "ProcessEnded" and "exit code 3" in said["leave"][1] and "no more wishes" in said["leave"][1]
    assert said["hang"][0] == "TimeOut" and "more than 8 s in stage" in said["hang"][1]
    assert said["memory"][0] in ("MemoryError", "InputError")
    assert said["loud"][0] == "CheckFailed" and found["loud"]["conversion"] is None
    assert {name: found[name]["attempts"] for name in ("crash", "crash_once", "hang", "bad")} == {
        "crash": 2, "crash_once": 2, "hang": 1, "bad": 1,
    }  # fmt: skip
    assert [calls(folder, name) for name in ("crash", "crash_once", "leave")] == [2, 2, 2]
    assert all(words in " ".join(done.out.split()) for words in ("SIGSEGV", "not an ONNX model"))
    assert not list(unfinished(folder / "fleet.sweep"))
    assert sorted(path.name for path in (folder / "fleet.sweep").rglob("*.onnx")) == [
        "crash_once.portable.fp16.onnx", "good.portable.fp16.onnx", "shout.portable.fp16.onnx",
    ]  # fmt: skip

    before = stamps(folder / "fleet.sweep")
    assert cli(fleet).code == 1, "failed jobs still count"
    assert stamps(folder / "fleet.sweep") == before
    assert calls(folder, "crash") == 2
    assert cli(fleet, "--retry-failed", "--dry-run").code == 0
    again = strict(cli(fleet, "--retry-failed", "--json").out)
    assert again["counts"]["ran"] == 6 and again["counts"]["kept"] == 3
    assert calls(folder, "crash") == 4

    save_model(folder / "bad.onnx", 9)  # it is mended
    mended = strict(cli(fleet, "--json").out)
    assert mended["counts"]["ran"] == 1 and mended["jobs"][0]["result"]["status"] == "passed"
    (folder / "bad.onnx").write_bytes(b"no model")
    assert cli(fleet).code == 1
    assert not list((folder / "fleet.sweep" / "bad").glob("*.onnx*")), "the model of an earlier file is no result of this one"


def test_what_is_not_the_models_fault_is_tried_again(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"no model")
    fleet = save_fleet(folder / "fleet.toml", {"path": "bad.onnx"})
    assert [entry.state for run in (1, 2) for entry in sweep(fleet).entries] == ["ran", "kept"]
    (file,) = (folder / "fleet.sweep").rglob("*.result.json")
    found = json.loads(file.read_text())
    for kind, state in (("EnvironmentProblem", "planned"), ("ProcessEnded", "kept")):
        file.write_text(json.dumps({**found, "error": {**found["error"], "kind": kind}}))
        assert [entry.state for entry in sweep(fleet, dry_run=True).entries] == [state]
    file.write_text(json.dumps({**found, "error": {**found["error"], "kind": "EnvironmentProblem"}}))
    assert [entry.state for entry in sweep(fleet).entries] == ["ran"]
    assert json.loads(file.read_text())["error"]["kind"] == "InputError"


def test_a_result_that_contradicts_itself_is_none(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"no model")
    fleet = save_fleet(folder / "fleet.toml", {"path": "bad.onnx"})
    sweep(fleet)
    (file,) = (folder / "fleet.sweep").rglob("*.result.json")
    found = json.loads(file.read_text())
    for change in ({"error": None}, {"status": "passed"}):
        file.write_text(json.dumps({**found, **change}))
        assert [entry.state for entry in sweep(fleet, dry_run=True).entries] == ["planned"]


def test_a_job_that_took_too_long_says_how_it_is_done_again(folder: Path) -> None:
    """A longer timeout alone does not: it is no part of the key, and what failed is kept."""
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, timeout=0.01)
    (entry,) = sweep(fleet).entries
    assert entry.result is not None and entry.result["error"]["kind"] == "TimeOut"
    assert entry.result["error"]["message"].endswith("; try: a larger timeout in the fleet file, and --retry-failed")
    save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, timeout=100)
    assert [entry.state for entry in sweep(fleet, dry_run=True).entries] == ["kept"]
    assert [(entry.state, entry.status) for entry in sweep(fleet, retry_failed=True).entries] == [("ran", "passed")]


def test_a_machine_that_starts_no_process_fails_its_jobs_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(folder / "a.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    (entry,) = sweep(save_fleet(folder / "fleet.toml", {"path": "a.onnx"})).entries
    assert entry.result is not None and entry.result["error"]["kind"] == "EnvironmentProblem"
    assert "its process cannot be started: No such file" in entry.result["error"]["message"]


def test_drift_is_told_from_failure(folder: Path, cli: Callable[..., Run]) -> None:
    model = onnx.parser.parse_model(
        '''<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 8] x) => (float[n, 8] y) <float c = {100.0}> { h = Add (x, c)  y = Sub (h, c) }'''
    )
    onnx.save(model, folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, block_list="none", allow_op=["Add", "Sub"])
    done = cli(fleet, "--json")
    content = strict(done.out)
    validate("sweep", content)
    assert done.code == 1
    (result,) = (job["result"] for job in content["jobs"])
    assert result["status"] == "drifted" and result["error"] is None
    assert "rel_l2" in result["drift"]["failures"][0]
    assert Path(result["conversion"]["output"]).is_file(), "it is kept for study"


def test_a_killed_worker_is_begun_again_with_all_that_it_started_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    save_evil(folder)
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx", "samples": "evil:wait"})
    driver = start(fleet, "--json", cwd=folder)
    wait_for(lambda: calls(folder, "wait") == 1)
    (worker,) = workers(driver.pid)
    below = worker.children(recursive=True)
    assert below, "it has ONNX Runtime in a process of its own"
    assert [path.name for path in scratch.rglob("left-*")] == ["left-1"]
    worker.kill()
    wait_for(lambda: calls(folder, "wait") == 2)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in below)
    (folder / "go").touch()
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, err
    result = json.loads(out)["jobs"][0]["result"]
    assert (result["status"], result["attempts"]) == ("passed", 2)
    assert [path.suffix for path in scratch.iterdir()] == [".lock"], "temporary files"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_a_killed_driver_leaves_what_is_done_and_nothing_half_done(
    folder: Path, tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    save_evil(folder)
    for number, name in enumerate(("a", "b", "c")):
        save_model(folder / f"{name}.onnx", number)
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, {"path": "b.onnx", "samples": "evil:wait"}, {"path": "c.onnx"})
    out = folder / "fleet.sweep"
    driver = start(fleet, "--jobs", "1", cwd=folder)
    wait_for(lambda: calls(folder, "wait"))
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 1
    before = stamps(out)
    assert before.keys() == {"a.portable.fp16.result.json"}
    driver.send_signal(how)
    _, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == {signal.SIGINT: 130}.get(how, -how)
    assert "Traceback" not in err
    psutil.wait_procs(started, timeout=PATIENCE)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started), "orphans"
    assert [path.suffix for path in scratch.iterdir()] == [".lock"], "temporary files"

    (folder / "go").touch()
    report = sweep(fleet)
    assert [entry.state for entry in report.entries] == ["kept", "ran", "ran"]
    assert report.passed
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    assert not list(unfinished(out))


def test_two_drivers_do_not_share_a_folder(folder: Path, cli: Callable[..., Run]) -> None:
    save_evil(folder)
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx", "samples": "evil:wait"})
    driver = start(fleet, cwd=folder)
    wait_for(lambda: calls(folder, "wait"))
    done = cli(fleet)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"halfconv: another sweep (process {driver.pid}) is using {folder / 'fleet.sweep'}; "
        "try: wait for its end, or another --out\n"
    )
    assert cli(fleet, "--dry-run").code == 0, "to look is allowed"
    (folder / "go").touch()
    assert driver.wait(PATIENCE) == 0
    driver.communicate()
    assert cli(fleet).code == 0


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(folder: Path, cli: Callable[..., Run]) -> None:
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"})
    before = sorted(folder.iterdir())
    for out in (folder / "a.onnx", folder / "a.onnx" / "below", Path("/proc/halfconv")):
        done = cli(fleet, "--out", out)
        assert done.code == 2 and done.err.count("\n") == 1 and "try: another --out" in done.err, done
    assert sorted(folder.iterdir()) == before


def test_a_result_that_cannot_be_written_ends_the_sweep(folder: Path, cli: Callable[..., Run]) -> None:
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"})
    (folder / "fleet.sweep").mkdir()
    (folder / "fleet.sweep" / "a").write_text("a file where the folder should be")
    done = cli(fleet)
    assert done.code == 2 and done.err.splitlines()[-1].startswith("halfconv: cannot write in"), done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0.5"], "--ray ADDRESS"),
        (["--jobs", "0"], "--jobs"),
        (["--markdown", "fleet.toml"], "never touched"),
        (["--markdown", "nowhere/x.md"], "mkdir"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_wrong_options_are_said_before_anything_is_done(
    folder: Path, cli: Callable[..., Run], arguments: list[str], words: str
) -> None:
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"})
    if "--ray" in arguments:
        pytest.importorskip("ray")
    done = cli(fleet, *arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1, done
    assert not results(folder / "fleet.sweep")


@pytest.mark.slow
def test_measuring_waits_for_a_quiet_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    save_model(folder / "a.onnx")
    fleet = save_fleet(folder / "fleet.toml", {"path": "a.onnx"}, bench=True, seconds=0.05, timeout=60)
    with (tmp_path / f"halfconv-sweep-{os.getuid()}.lock").open("w") as busy:
        assert lock(busy, wait=False, shared=True)  # another job converts
        driver = start(fleet, "--json", cwd=folder)
        wait_for(lambda: (folder / "fleet.sweep" / "a" / "a.portable.fp16.onnx").exists())
        with pytest.raises(Exception, match="timed out"):
            driver.wait(6)
        assert not results(folder / "fleet.sweep")
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, err
    assert json.loads(out)["jobs"][0]["result"]["speed"][0]["p50_ms"] > 0
