"""The library of kernels: how it is compiled, and that what it knows of ONNX Runtime's API is so."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from halfconv.errors import EnvironmentProblem
from halfconv.kernels.build import HEADERS, SOURCES, build
from halfconv.runtime.kernels import library
from tests.kernels.compiled import compiled

#: Uses all of ort.h: Y = factor * X, with sizes and attributes added in.
SCALED = """
struct Node {
  const ort::Api* api;
  float factor;
  std::vector<int64_t> shift;
  int64_t more;
  Node(const ort::Api* api, const ort::Attributes& known)
      : api(api), factor(known.number("factor")), shift(known.integers("shift")), more(known.integer("more")) {}
  void compute(const ort::Run& run) const {
    const auto x = run.input(0);
    if (x.last() == 1) throw std::runtime_error("one column is too few");
    const auto y = run.output(0, x.shape);
    for (int64_t i = 0; i < x.rows() * x.last(); ++i)
      static_cast<float*>(y.data)[i] = factor * static_cast<float*>(x.data)[i] + shift[0] + 10 * shift[1] + more;
  }
};
"""


def test_the_table_of_functions_is_onnx_runtimes(tmp_path: Path) -> None:
    """Attributes, sizes, data and errors go through the places that ort.h names, in the ONNX Runtime that is installed."""
    made = compiled(tmp_path, "test.ops", "Scaled", 1, onnx.TensorProto.FLOAT, SCALED)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "test.ops": 1]> g (float[a, b] x) => (float[a, b] y) '
        "{ y = test.ops.Scaled <factor = 3.0, shift = [1, 2], more = 100> (x) }"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(made))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(session.run(None, {"x": x})[0], 3 * x + 121)
    with pytest.raises(Exception, match="one column is too few"):
        session.run(None, {"x": x[:, :1]})


def fake(folder: Path, body: str) -> Path:
    """Make a compiler that is a script."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    release = 'case "$1" in --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0;; esac'
    path.write_text(f"#!/bin/sh\n{release}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


WRITES = 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo made > "$2"; fi; shift; done'


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A folder that has a file of each header's name."""
    for name in HEADERS:
        path = tmp_path / "headers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "headers"


def test_all_sources_are_compiled_and_the_library_is_put_where_sessions_look(
    tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HALFCONV_KERNELS", raising=False)
    log = tmp_path / "log"
    made = build(fake(tmp_path, f'echo "$@" >> {log}\n{WRITES}'), [headers])
    assert made == library() and made.read_text() == "made\n"
    commands = log.read_text().splitlines()
    for source in SOURCES.glob("*.cu"):
        assert sum(str(source) in command.split() for command in commands) == 1
    (link,) = [command for command in commands if "--no-as-needed" in command]
    assert all(f"-l{name}" in link for name in ("cudart", "cublasLt", "cudnn")) and "-Xlinker -z -Xlinker nodelete" in link
    assert {part.name for part in made.parent.iterdir()} == {made.name}  # nothing is left


def test_without_a_home_there_is_no_place_for_it(tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(EnvironmentProblem, match="the user has no home, in which the library is kept; try: HOME=FOLDER"):
        build(fake(tmp_path, WRITES), [headers])
    assert build(fake(tmp_path, WRITES), [headers], tmp_path / "library.so").is_file()


def test_a_compilers_error_is_told_and_the_old_library_stays(tmp_path: Path, headers: Path) -> None:
    target = tmp_path / "out" / "library.so"
    target.parent.mkdir()
    target.write_text("old")
    compiler = fake(tmp_path, 'echo "linear.cu(7): error: no such thing" >&2; exit 1')
    with pytest.raises(EnvironmentProblem, match=r"nvcc failed: linear.cu\(7\): error: no such thing"):
        build(compiler, [headers], target)
    assert target.read_text() == "old" and [path.name for path in target.parent.iterdir()] == ["library.so"]


@pytest.mark.parametrize("missing", HEADERS)
def test_a_missing_header_is_named_with_its_package(tmp_path: Path, headers: Path, missing: str) -> None:
    (headers / missing).unlink()
    with pytest.raises(EnvironmentProblem) as caught:
        build(fake(tmp_path, WRITES), [headers], tmp_path / "library.so")
    assert missing in str(caught.value) and f"pip install {HEADERS[missing].format(13)}" in str(caught.value)
    assert not (tmp_path / "library.so").exists()


def test_a_missing_compiler_is_named(tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr("halfconv.kernels.build._packages", lambda: iter(()))
    with pytest.raises(EnvironmentProblem, match="nvcc is missing"):
        build(None, [headers], tmp_path / "library.so")
    with pytest.raises(EnvironmentProblem, match="cannot be run"):
        build(tmp_path / "nowhere", [headers], tmp_path / "library.so")
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="is not nvcc"):
        build(other, [headers], tmp_path / "library.so")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    assert build(fake(tmp_path, WRITES), [headers], tmp_path / "library.so").is_file()


def test_what_lies_in_the_current_folder_is_no_package(tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m`` puts it first on the path: a compiler and headers there are not what was installed."""
    here, installed = tmp_path / "here", tmp_path / "installed"
    for folder in (here, installed):
        fake(folder / "nvidia" / "cu13", WRITES)
    (here / "include").mkdir()
    (installed / "include").symlink_to(headers)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr("sys.path", [str(here), str(installed)])
    commands: list[list[str]] = []
    monkeypatch.setattr("halfconv.kernels.build._run", lambda command: commands.append(list(command)) or done(command))
    build(None, (), tmp_path / "library.so")
    assert {command[0] for command in commands} == {str(installed / "nvidia" / "cu13" / "bin" / "nvcc")}
    assert not [part for command in commands for part in command if part.startswith(str(here))]


def done(command: Sequence[str]) -> str:
    """Say the release, or write what is asked for."""
    if "-o" in command:
        Path(command[list(command).index("-o") + 1]).write_text("made")
    return "release 13.0"
