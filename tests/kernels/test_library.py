"""The library of CUDA kernels: where it is looked for, who registers it, and that nothing fails without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

import halfconv
from halfconv.cli import main
from halfconv.drift.evaluate import evaluate_file
from halfconv.errors import EnvironmentProblem
from halfconv.kernels import KERNELS_VERSION, library
from halfconv.runtime import loading
from halfconv.runtime.kernels import VARIABLE, cached, register
from halfconv.runtime_process import RuntimeProcess
from tests.runtime import models
from tests.test_schemas import validate

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a library."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A library that ONNX Runtime loads, and that registers nothing."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, made = tmp_path / "empty.c", tmp_path / "libempty.so"
    source.write_text("void *RegisterCustomOps(void *options, const void *api) { return 0; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return made


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions on CUDA run on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setitem(loading.PROVIDERS, "cuda", ("CPUExecutionProvider",))


def test_the_variable_beats_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is None
    cached().parent.mkdir(parents=True)
    cached().write_bytes(b"")
    assert library() == home / ".cache/halfconv/kernels" / f"libhalfconv_cuda-{KERNELS_VERSION}.so"
    monkeypatch.setenv(VARIABLE, "/elsewhere/lib.so")
    assert library() == Path("/elsewhere/lib.so")
    monkeypatch.setenv(VARIABLE, "")
    assert library() is None


def test_a_library_named_from_here_is_found_from_everywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader would look for a bare name in the system's folders."""
    monkeypatch.chdir(home)
    monkeypatch.setenv(VARIABLE, "lib.so")
    assert library() == home / "lib.so"


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), RuntimeError("Could not determine home directory.")])
def test_no_home_of_ones_own_is_no_library(problem: Exception, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is in containers whose user is a mere number."""

    def fail(*arguments: object) -> Path:
        raise problem

    monkeypatch.setattr(Path, "is_file" if isinstance(problem, OSError) else "home", fail)
    assert library() is None and register(onnxruntime.SessionOptions()) == ""


def test_a_library_is_registered(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert register(onnxruntime.SessionOptions()) == ""
    monkeypatch.setenv(VARIABLE, str(empty))
    assert register(onnxruntime.SessionOptions()) == ""


@pytest.mark.parametrize(("content", "said"), [(None, "there is no such file"), (b"no library", "cannot be registered: ")])
def test_a_library_that_cannot_be_used_is_a_note(
    content: bytes | None, said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "lib.so"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(file))
    told = register(onnxruntime.SessionOptions())
    assert told.startswith(f"halfconv's CUDA kernels are not used: {file} cannot be registered: ") and said in told
    stand_in(monkeypatch)
    loaded = loading.load(models.squares(), loading.Wishes(("cuda",)))
    assert [note for note in loaded.notes if "CUDA kernels" in note] == [told]
    loaded.close()
    loaded = loading.load(models.squares(), loading.Wishes(("cpu",)))
    assert not loaded.notes
    loaded.close()


def test_sessions_on_cuda_register_it_and_others_do_not(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(loading, "register", lambda options: calls.append(options) or register(options))
    monkeypatch.setenv(VARIABLE, str(empty))
    stand_in(monkeypatch)
    loaded = loading.load(models.squares(), loading.Wishes(("cuda",)))
    assert len(calls) == 2 and not loaded.notes  # the first tells whether it can be
    loaded.close()
    halfconv.Session(models.squares(), provider="cpu").close()
    assert len(calls) == 2


def test_a_process_of_its_own_registers_it_too(empty: Path, home: Path) -> None:
    (home / "broken.so").write_bytes(b"no library")
    with RuntimeProcess(60) as process:
        session = process.open(models.squares(), "ORT_ENABLE_ALL", "CPUExecutionProvider", library=empty)
        assert session.problem == ""
        session = process.open(models.squares(), "ORT_ENABLE_ALL", "CPUExecutionProvider", library=home / "broken.so")
        assert session.problem.startswith(f"{home / 'broken.so'} cannot be registered: ")
        (answer,) = session.run(["y"], {"x": X.astype(np.float16)})
    np.testing.assert_array_equal(answer, (X * X).astype(np.float16))


def test_evaluation_on_the_cpu_needs_no_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(home / "none.so"))
    (home / "m.onnx").write_bytes(models.squares())
    with evaluate_file(home / "m.onnx", {}) as model:
        assert model.problem == ""


# --- the command ----------------------------------------------------------------------------------------------------


def answer(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    try:
        main(list(arguments))
        found = 0
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == code
    out, err = capfd.readouterr()
    return out if code == 0 else err


def test_info_says_where_it_is(capfd: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(capfd, "kernels", "info") == "CUDA kernels: none; halfconv kernels build makes them\n"
    content = json.loads(answer(capfd, "kernels", "info", "--json"))
    validate("kernels", content)
    assert content["library"] is None and not content["named"] and content["runtime"].startswith("onnxruntime")
    monkeypatch.setenv(VARIABLE, "/none.so")
    assert answer(capfd, "kernels", "info") == f"CUDA kernels: /none.so, named by {VARIABLE}: there is no such file\n"
    monkeypatch.setenv(VARIABLE, "")
    assert answer(capfd, "kernels", "info") == f"CUDA kernels: none, named by {VARIABLE}\n"


def built(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    module = ModuleType("halfconv.kernels.build")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "halfconv.kernels.build", module)


def test_build_compiles_and_says_where(capfd: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path | None] = []

    def build(nvcc: Path | None = None, include: Sequence[Path] = ()) -> Path:
        asked.append(nvcc)
        cached().parent.mkdir(parents=True, exist_ok=True)
        cached().write_bytes(b"")
        return cached()

    built(monkeypatch, build)
    content = json.loads(answer(capfd, "kernels", "build", "--nvcc", "/opt/nvcc", "--json"))
    validate("kernels", content)
    assert content["library"] == str(cached()) and content["exists"] and asked == [Path("/opt/nvcc")]
    assert answer(capfd, "kernels", "build").replace("\n", "") == f"CUDA kernels: {cached()}"


def test_build_that_lacks_something_is_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(nvcc: Path | None = None, include: Sequence[Path] = ()) -> Path:
        raise EnvironmentProblem("no nvcc is found", "--nvcc PATH")

    built(monkeypatch, build)
    assert answer(capfd, "kernels", "build", code=2) == "halfconv: no nvcc is found; try: --nvcc PATH\n"


def test_doctor_says_whether_it_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(answer(capfd, "doctor", "--provider", "cpu", "--json"))
    assert content["kernels"] == {"version": KERNELS_VERSION, "library": None, "exists": False}
    assert "CUDA kernels: none; halfconv kernels build makes them" in answer(capfd, "doctor", "--provider", "cpu")
