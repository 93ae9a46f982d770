"""Progress: shown where a person looks, and nowhere else."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

import halfconv
from halfconv.cli import cli
from halfconv.progress import Progress
from halfconv.terminal import progress
from tests.commands import run_here
from tests.documents import block
from tests.documents import shell as run_in_bash


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("now", "words", "amount"),
    [
        (Progress("simulation", "run 7 of at most 30: 4 of 81 values forced to FP32", 3, 8),
         "converting [b]m.onnx: simulation: run 7 of at most 30: 4 of 81 values forced to FP32", "3 of 8"),
        (Progress("write", "weights", 1_500_000_000, 3_000_000_000, "bytes"), "converting [b]m.onnx: write: weights",
         "1.5 GB of 3.0 GB"),
    ],
)  # fmt: skip
def test_a_person_sees_what_is_done_and_how_much(now: Progress, words: str, amount: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    with progress(False, "converting [b]m.onnx") as tell:
        assert tell is not None
        tell(now)
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert words in seen and amount in seen


@pytest.mark.parametrize("quiet", [True, False])
def test_nobody_is_told_where_nobody_looks(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO() if not quiet else Screen()
    monkeypatch.setattr(sys, "stderr", written)
    with progress(quiet, "converting") as tell:
        assert tell is None
    assert not written.getvalue()


def test_a_conversion_tells_its_stages_runs_and_samples(tmp_path: Path) -> None:
    graph = """(float[n, 4] x) => (float[n, 4] y) <float[4] big = {1000, 2000, 3000, 4000}> {
        a = Add(x, big) b = Relu(a) c = Sub(b, big) y = Tanh(c) }"""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {graph}'), tmp_path / "m.onnx")
    samples = [{"x": np.ones((1, 4), np.float32)}, {"x": np.full((1, 4), 0.3, np.float32)}]
    told: list[Progress] = []
    halfconv.convert(tmp_path / "m.onnx", samples=samples, on_progress=told.append)
    stages = [now.stage for now in told]
    assert list(dict.fromkeys(stages)) == [
        "load", "prepare", "weights", "plan", "tune", "ranges", "simulation", "rewrite", "write", "check", "sync"
    ]  # fmt: skip
    assert all(0 <= now.done <= now.total or not now.total for now in told)
    assert any(re.fullmatch(r"run \d+ of at most 30: \d+ of \d+ values forced to FP32", now.detail) for now in told)
    assert {now.done for now in told if now.stage == "ranges"} == {0, 1}


# --quiet and --verbose


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 4] x) => (float[n, 4] y) { h = Mul(x, x) y = Exp(h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


#: Commands, and those inside a group by its name and theirs.
COMMANDS = {
    " ".join(names): command
    for name, known in cli.commands.items()
    for names, command in ([((name, inner), part) for inner, part in known.commands.items()] if isinstance(known, click.Group)
                           else [((name,), known)])
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_them(name: str) -> None:
    named = {option for known in COMMANDS[name].params for option in known.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= named


def test_quiet_prints_errors_only(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half = model.with_name("m.fp16.onnx")
    convert = ("convert", model, "--block-list", "none", "--half-io")
    for command in (("inspect", model), convert, ("validate", model, half), ("formats", "1"), ("doctor", "--provider", "cpu")):
        assert run_here(capfd, *command, "--quiet") == (0, "", ""), command
    assert half.is_file()
    failed = run_here(capfd, "validate", model, half, "--quiet", "--tolerance", "max_abs=0")
    assert (failed.code, failed.out, failed.err) == (1, "", "")
    wrong = run_here(capfd, "convert", model, "-q", "--block-op", "Tan")
    assert wrong.code == 2 and wrong.err.startswith("halfconv: ")
    assert json.loads(run_here(capfd, "inspect", model, "-q", "--json").out)["nodes"] == 2


def test_a_quiet_sweep_tells_of_no_job(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfconv.sweep.driver import SweepReport

    told: list[bool] = []

    def swept(fleet: Path, *_: object, on_done: object, **__: object) -> SweepReport:
        told.append(on_done is not None)
        return SweepReport(str(fleet), "out", False, (), ())

    monkeypatch.setattr("halfconv.sweep.driver.sweep", swept)
    for options in ((), ("--quiet",)):
        cli.main(["sweep", str(model.with_name("fleet.toml")), *options], standalone_mode=False)
    assert told == [True, False]


def test_names_cannot_drive_the_terminal(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = model.rename(model.with_name("\x1b]0;owned\x07\n::error::x.onnx"))
    said = run_here(capfd, "inspect", evil, "--verbose", "--json").err
    said += run_here(capfd, "inspect", evil.with_name("\x1b[2Jno.onnx")).err
    said += run_here(capfd, "inspect", evil, "--\x1b[2J").err
    assert said and not [line for line in said.splitlines() if not line.isprintable() or line.startswith("::")]


def test_verbose_says_what_is_being_done(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_here(capfd, "convert", model, "--verbose", "--json")
    assert json.loads(run.out)["nodes"]
    lines = [re.fullmatch(r"\[ *\d+\.\d s\] converting m\.onnx(?:: (\w+).*)?", line) for line in run.err.splitlines()]
    assert all(lines)
    assert {line[1] for line in lines if line} >= {None, "load", "plan", "write", "check"}


def test_verbose_shows_where_an_internal_error_arose(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("halfconv.inspection.inspect", fail)
    said = "halfconv: internal error: RuntimeError: on purpose; try: report it with this model\n"
    assert run_here(capfd, "inspect", model).err == said
    run = run_here(capfd, "inspect", model, "-v")
    assert run.code == 70 and "Traceback" in run.err and "in fail" in run.err and run.err.endswith(said)


def test_both_at_once_are_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_here(capfd, "inspect", model, "-q", "-v")
    assert (run.code, run.out) == (2, "")
    assert run.err == "halfconv: --quiet and --verbose contradict each other; try: one of them\n"


def test_the_configuration_file_may_ask_for_quiet(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "halfconv.toml").write_text("quiet = true\n")
    monkeypatch.chdir(model.parent)
    assert run_here(capfd, "inspect", model).out == ""


# Terminals

COLOUR = re.compile(r"\x1b\[[\d;]*3[1-7]m")
BOLD = re.compile(r"\x1b\[[\d;]*1[;m]")


def on_a_terminal(model: Path, **environ: str) -> str:
    """What `halfconv validate` writes to a terminal."""
    import pty

    dropped = ("CI", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    main_end, end = pty.openpty()
    command = [sys.executable, "-m", "halfconv", "validate", str(model), str(model)]
    process = subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env={**kept, "TERM": "xterm-256color", "COLUMNS": "120", **environ}
    )
    os.close(end)
    written = b""
    try:
        while part := os.read(main_end, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(main_end)
    assert process.wait(60) == 0
    return written.decode("utf-8", "replace")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_colours_and_bars_are_for_people(model: Path) -> None:
    seen = on_a_terminal(model)
    assert COLOUR.search(seen) and "validating" in seen
    seen = on_a_terminal(model, NO_COLOR="1")
    assert not COLOUR.search(seen) and BOLD.search(seen) and "validating" in seen
    assert "\x1b" not in on_a_terminal(model, CI="true")
    assert COLOUR.search(on_a_terminal(model, CI="true", FORCE_COLOR="1"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str, tmp_path: Path) -> None:
    environ = {**os.environ, "_HALFCONV_COMPLETE": f"{shell}_source"}
    code = "from halfconv.cli import cli; cli.main(prog_name='halfconv')"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False, timeout=60)
    if shell == "bash" and not done.stdout:
        pytest.skip("no bash of version 4.4 or newer")
    assert "_HALFCONV_COMPLETE" in done.stdout and "halfconv" in done.stdout
    snippet = block(shell, "_HALFCONV_COMPLETE")
    assert f"_HALFCONV_COMPLETE={shell}_source halfconv" in snippet
    if shell == "bash":
        assert "complete" in run_in_bash(f"{snippet}\ncomplete -p halfconv", tmp_path)
