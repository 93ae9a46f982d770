"""The doctor: what it concludes, what it says, and what it finds with other packages of ONNX Runtime."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.make_kernel_table import machine
from halfconv import doctor as module
from halfconv.cli import main
from halfconv.doctor import DoctorReport, Run, doctor, examine
from halfconv.errors import InputError, UsageError
from halfconv.graph.kernels import operators, table_source
from halfconv.report.doctor import show_doctor
from halfconv.runtime.driver import NO_LIBRARY, Driver
from halfconv.runtime.installation import NAMES, Facts, facts
from tests import environments
from tests.runtime.test_providers import CPU_ONLY, GOOD, P100, lost
from tests.test_schemas import validate

BOTH = (Run("fp16", True), Run("bf16", True))
NONE = (Run("fp16", False, "the session does not get it"), Run("bf16", False, "nor this"))


def played(monkeypatch: pytest.MonkeyPatch, found: Facts, runs: tuple[Run, ...]) -> None:
    """Let the doctor find these facts, and its runs end so."""
    monkeypatch.setattr(module, "facts", lambda: found)
    monkeypatch.setattr(module, "_runs", lambda provider: runs)
    monkeypatch.setattr(module, "_installed_kernels", lambda found: None)


def shown(report: DoctorReport) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    show_doctor(report, console)
    return console.export_text()


def test_a_run_disproves_what_seemed_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that some other way is found, say; but two packages in one folder stay a problem."""
    played(monkeypatch, lost("cuda", "libcublas.so.13"), BOTH)
    assert doctor().works and not doctor().asked.problems
    played(monkeypatch, lost("cuda", "libcublas.so.13"), NONE)
    assert not doctor().works and "libcublas.so.13" in doctor().asked.problems[0].found
    played(monkeypatch, replace(GOOD, wheels=(*GOOD.wheels, *CPU_ONLY.wheels)), BOTH)
    report = doctor()
    assert not report.works and report.asked.runs_fp16
    assert "cuda runs, but the installation is not sound" in shown(report)


def test_a_failure_without_a_cause_says_what_the_runtime_said(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, GOOD, NONE)
    (problem,) = doctor("cuda").asked.problems
    assert problem.found == "no session runs on it: the session does not get it" and "severity" in problem.advice


def test_fp16_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, GOOD, (Run("fp16", True), Run("bf16", False, "no kernel")))
    assert doctor().works and "note: BF16 does not run: no kernel" in shown(doctor())
    played(monkeypatch, GOOD, (Run("fp16", False, "no kernel"), Run("bf16", True)))
    assert not doctor().works


def test_the_default_is_what_the_package_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, GOOD, BOTH)
    assert doctor().provider == "cuda"
    played(monkeypatch, CPU_ONLY, BOTH)
    assert doctor().provider == "cpu"
    assert [state.runs for state in doctor().states] == [BOTH, (), ()], "what is not compiled in is not tried"


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'"):
        doctor("gpu")


@pytest.mark.parametrize(
    "found,words",
    [
        (GOOD, ["onnxruntime-gpu 1.31.1, made for CUDA 13.0", "580.159.04, serves CUDA 13.0", "cuda works",
                "GPU 0: NVIDIA H100 80GB HBM3, compute capability 9.0, 80 GiB; tensor cores for FP16 and BF16",
                "libcudnn.so.9", "/usr/lib/libcudnn.so.9"]),
        (replace(GOOD, driver=Driver("535.1", (12, 2), "", (P100,), 1)), ["Tesla P100", "tensor cores for neither format"]),
        (replace(GOOD, driver=Driver(error=NO_LIBRARY)), ["NVIDIA driver: none"]),
        (lost("cuda", "libcublas.so.13", others=("libcublas.so.12",)), ["not found (libcublas.so.12 is)"]),
        (CPU_ONLY, ["ONNX Runtime: onnxruntime 1.32.0", "not installed", "of 266     onnxruntime 1.32.0 (x86-64)"]),
        (Facts(), ["ONNX Runtime: none", "no ONNX Runtime is installed; try: pip install onnxruntime", "cpu does not work here"]),
        (replace(GOOD, error="bad \x1b[31m[red]file"), [r"bad \x1b[31m[red]file"]),
    ],
)  # fmt: skip
def test_the_report_says_what_was_found(monkeypatch: pytest.MonkeyPatch, found: Facts, words: list[str]) -> None:
    played(monkeypatch, found, BOTH)
    said = shown(doctor())
    assert all(word in said for word in words), said
    validate("doctor", json.loads(json.dumps(doctor().to_dict())))


@pytest.mark.parametrize("found,runs,code", [(GOOD, BOTH, 0), (GOOD, NONE, 1), (Facts(), (), 1)])
def test_the_exit_code_is_1_where_the_provider_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: Facts, runs: tuple[Run, ...], code: int
) -> None:
    played(monkeypatch, found, runs)
    for options in ([], ["--json"]):
        ended = 0
        try:
            main(["doctor", *options])
        except SystemExit as stop:
            ended = int(stop.code or 0)
        assert ended == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["works"] is not bool(code)


def test_the_cpu_provider_of_this_machine_computes_in_half() -> None:
    state = examine(facts(), "cpu")
    assert state.works and [run.passed for run in state.runs] == [True, False]
    assert "MatMul" in state.runs[1].problem, "no BF16"


def test_half_kernels_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts()
    kernels = examine(found, "cpu").kernels
    assert kernels is not None and kernels["package"] == f"{found.package} {found.version}, installed"
    assert {"Transpose", "Cast"} <= set(kernels["fp16"]) and "Abs" not in kernels["fp16"]
    assert len(kernels["fp16"]) < kernels["operators"]
    if table_source("cpu") == f"onnxruntime {found.version} ({machine()})":
        for name, dtype in module.DTYPES.items():
            assert kernels[name] == sorted(operators("cpu", dtype))
        assert kernels["operators"] == len(operators("cpu"))
    monkeypatch.setattr(module.RuntimeProcess, "kernels", lambda *_: (_ for _ in ()).throw(InputError("it crashed", "")))
    kernels = examine(found, "cpu").kernels
    assert kernels is not None and kernels["package"] == table_source("cpu")


def test_wrong_numbers_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def open(self, *_: object) -> Process:
            return self

        def get_providers(self) -> list[str]:
            return [NAMES["cpu"]]

        def run(self, names: list[str], feeds: dict[str, object]) -> list[object]:
            return [feeds["a"]]

    assert "comes out wrong, by" in module._run(Process(), "cpu", "fp16").problem  # type: ignore[arg-type]


# Other packages of ONNX Runtime


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environments.links(tmp_path_factory.mktemp("packages"))


@pytest.mark.slow
def test_the_gpu_package_alone_on_a_machine_without_a_gpu(tmp_path: Path, packages: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    python = environments.with_runtimes("doctor-gpu", ["onnxruntime-gpu"], tmp_path)
    done = environments.run(python, packages, "doctor", "--json")
    content = json.loads(done.stdout)
    validate("doctor", content)
    assert done.returncode == 1 and content["provider"] == "cuda" and not content["works"], done.stderr
    version = environments.pins()["onnxruntime-gpu"].partition("==")[2]
    assert content["runtime"]["wheels"] == [{"name": "onnxruntime-gpu", "version": version, "absent": 0}]
    cpu, cuda, tensorrt = content["providers"]
    assert cpu["works"] and cuda["available"] and tensorrt["available"]
    assert [run["passed"] for run in cuda["runs"] + tensorrt["runs"]] == [False] * 4
    driver, libraries = (problem["found"] for problem in cuda["problems"])
    assert "no NVIDIA driver" in driver
    major = content["runtime"]["cuda"].partition(".")[0]
    assert f"libcublas.so.{major}" in libraries and f"of CUDA {content['runtime']['cuda']}" in libraries
    assert "TensorRT" in tensorrt["problems"][-1]["found"]
    assert any(library["name"].startswith("libcudnn.so.") for library in content["runtime"]["libraries"])

    said = environments.run(python, packages, "doctor", "--provider", "cpu")
    assert said.returncode == 0 and "cpu works" in said.stdout, said.stderr


@pytest.mark.slow
def test_both_packages_in_one_folder(tmp_path: Path, packages: Path) -> None:
    """As after installing something that needs the CPU package into an environment for GPUs."""
    python = environments.with_runtimes("doctor-both", ["onnxruntime-gpu", "onnxruntime"], tmp_path)
    done = environments.run(python, packages, "doctor")
    both = "onnxruntime {onnxruntime} and onnxruntime-gpu {onnxruntime-gpu} are installed together and overwrite each other's files"
    versions = {name: pin.partition("==")[2] for name, pin in environments.pins().items()}
    assert done.returncode == 1, done.stderr
    assert f"problem: {both.format(**versions)}; as it is, onnxruntime" in " ".join(done.stdout.split())
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'" in " ".join(
        done.stdout.split()
    )
    cpu = environments.run(python, packages, "doctor", "--provider", "cpu", "--json")
    assert cpu.returncode == 1 and json.loads(cpu.stdout)["providers"][0]["runs"][0]["passed"]


@pytest.mark.slow
def test_no_runtime_at_all(tmp_path: Path, packages: Path) -> None:
    python = environments.with_runtimes("doctor-none", [], tmp_path)
    done = environments.run(python, packages, "doctor")
    assert done.returncode == 1 and "no ONNX Runtime is installed; try: pip install onnxruntime" in done.stdout, done.stderr
