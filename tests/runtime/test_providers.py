"""Why a provider cannot be used: each cause from faked facts, and the facts of the machine at hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import halfconv
from halfconv.errors import UsageError
from halfconv.runtime.driver import NO_LIBRARY, Device, Driver
from halfconv.runtime.installation import NAMES, Facts, Wheel, facts
from halfconv.runtime.libraries import Library
from halfconv.runtime.providers import Problem, installation_problems, limits_of, own_provider, problems, problems_of

H100 = Device("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
T4 = Device("Tesla T4", (7, 5), 16 << 30)
V100 = Device("Tesla V100", (7, 0), 16 << 30)
P100 = Device("Tesla P100", (6, 0), 16 << 30)
CPU, CUDA, TENSORRT = NAMES["cpu"], NAMES["cuda"], NAMES["tensorrt"]
FOUND = "/usr/lib/{}"


def libraries(*names: str) -> tuple[Library, ...]:
    return tuple(Library(name, FOUND.format(name)) for name in names)


GOOD = Facts(
    wheels=(Wheel("onnxruntime-gpu", "1.31.1"),),
    package="onnxruntime-gpu",
    version="1.31.1",
    built=(TENSORRT, CUDA, CPU),
    cuda="13.0",
    libraries={
        "cuda": libraries("libcublasLt.so.13", "libcublas.so.13", "libcudart.so.13", "libcudnn.so.9"),
        "tensorrt": libraries("libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13"),
    },
    driver=Driver("580.159.04", (13, 0), "", (H100,), 1),
)
CPU_ONLY = replace(
    GOOD, wheels=(Wheel("onnxruntime", "1.32.0"),), package="onnxruntime", version="1.32.0", built=(CPU,), cuda="", libraries={}
)


def lost(provider: str, *names: str, others: tuple[str, ...] = (), optional: bool = False) -> Facts:
    """The good facts without some libraries."""
    kept = [Library(lib.name, others=others, optional=optional) if lib.name in names else lib for lib in GOOD.libraries[provider]]
    return replace(GOOD, libraries={**GOOD.libraries, provider: tuple(kept)})


def with_driver(**changes: object) -> Facts:
    return replace(GOOD, driver=replace(GOOD.driver, **changes))


@pytest.mark.parametrize("provider", NAMES)
def test_nothing_is_wrong_where_all_is_there(provider: str) -> None:
    assert problems_of(GOOD, provider) == [] and limits_of(GOOD, provider) == []


CAUSES = {
    "nothing installed": (
        Facts(driver=GOOD.driver), "cuda", ["no ONNX Runtime is installed"], "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    "nothing installed for the CPU": (Facts(), "cpu", ["no ONNX Runtime is installed"], "pip install onnxruntime"),
    "CPU package": (
        CPU_ONLY, "cuda", ["onnxruntime 1.32.0 has no CUDA provider"],
        "pip uninstall -y onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    "CPU package for TensorRT": (CPU_ONLY, "tensorrt", ["has no TensorRT provider"], "onnxruntime-gpu[cuda,cudnn]"),
    "both packages, the CPU's files": (
        replace(CPU_ONLY, wheels=(*CPU_ONLY.wheels, *GOOD.wheels)), "cuda",
        ["onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed together", "overwrite", "no CUDA provider"],
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    "both packages, the GPU's files": (
        replace(GOOD, wheels=(*CPU_ONLY.wheels, *GOOD.wheels)), "cuda", ["are installed together"], "pip uninstall -y"),
    "both packages, for the CPU": (
        replace(GOOD, wheels=(*CPU_ONLY.wheels, *GOOD.wheels)), "cpu", ["are installed together"], "then pip install onnxruntime"),
    "files gone": (
        replace(Facts(driver=GOOD.driver), wheels=(Wheel("onnxruntime-gpu", "1.31.1", 312),), error="its files are gone"), "cuda",
        ["312 files of onnxruntime-gpu 1.31.1 are gone"], "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1"),
    "import fails": (
        Facts(wheels=GOOD.wheels, error="ImportError: no symbol", driver=GOOD.driver), "cuda",
        ["cannot be imported: ImportError: no symbol"], "pip uninstall -y onnxruntime-gpu, then"),
    "a package that pip does not know": (
        replace(CPU_ONLY, wheels=()), "cuda", ["has no CUDA provider"], "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    "no driver": (with_driver(error=NO_LIBRARY, devices=()), "cuda", ["no NVIDIA driver"], "--gpus all"),
    "driver out of step": (
        with_driver(error="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", devices=()), "cuda", ["DRIVER_MISMATCH"], "reboot"),
    "driver fails": (with_driver(error="CUDA_ERROR_UNKNOWN", devices=()), "cuda", ["does not start", "UNKNOWN"], "nvidia-smi"),
    "no device": (with_driver(error="CUDA_ERROR_NO_DEVICE", devices=(), total=0), "cuda", ["finds no GPU"], "nvidia-smi -L"),
    "devices hidden": (
        replace(with_driver(error="CUDA_ERROR_NO_DEVICE", devices=(), total=2), visible=""), "cuda",
        ["CUDA_VISIBLE_DEVICES='' hides all 2 GPUs"], "unset it"),
    "driver too old": (
        with_driver(version="535.183.01", cuda=(12, 2)), "cuda",
        ["driver 535.183.01 serves CUDA 12.2, and onnxruntime-gpu 1.31.1 needs CUDA 13.0"], "version 580 or newer"),
    "device too old": (
        with_driver(devices=(P100,)), "cuda", ["Tesla P100 has compute capability 6.0, and CUDA 13 begins at 7.5"], "older CUDA"),
    "first device too old": (with_driver(devices=(P100, H100), total=2), "cuda", ["Tesla P100"], "CUDA_VISIBLE_DEVICES=1"),
    "libraries missing": (
        lost("cuda", "libcublasLt.so.13", "libcublas.so.13"), "cuda",
        ["libcublasLt.so.13, libcublas.so.13 of CUDA 13.0 are not found"], "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'"),
    "library of another CUDA": (
        lost("cuda", "libcudart.so.13", others=("libcudart.so.12",)), "cuda",
        ["libcudart.so.13 of CUDA 13.0 is not found; what is found is libcudart.so.12, of another version"], "LD_LIBRARY_PATH"),
    "no cuDNN": (lost("cuda", "libcudnn.so.9"), "cuda", ["libcudnn.so.9 of cuDNN is not found"], "[cuda,cudnn]"),
    "no TensorRT": (
        lost("tensorrt", "libnvinfer.so.10", "libnvonnxparser.so.10"), "tensorrt",
        ["libnvinfer.so.10, libnvonnxparser.so.10 of TensorRT 10 are not found"], "pip install 'tensorrt-cu13-libs==10.*'"),
    "macOS": (replace(CPU_ONLY, system="darwin"), "cuda", ["macOS has no CUDA"], "--provider cpu"),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_the_only_problem_and_has_its_advice(cause: str) -> None:
    found, provider, words, advice = CAUSES[cause]
    (problem,) = problems_of(found, provider)
    assert all(word in problem.found for word in words), problem.found
    assert advice in problem.advice


def test_the_most_basic_cause_comes_first() -> None:
    bad = replace(
        lost("cuda", "libcudnn.so.9", "libcublas.so.13"),
        wheels=(*CPU_ONLY.wheels, *GOOD.wheels),
        driver=Driver("535.1", (12, 2), "", (P100,), 1),
    )
    listed = [problem.found for problem in problems_of(bad, "cuda")]
    for found, word in zip(listed, ("together", "driver", "capability", "cublas", "cudnn"), strict=True):
        assert word in found


def test_a_driver_for_a_newer_cuda_serves_an_older_one() -> None:
    assert not problems_of(replace(GOOD, cuda="12.8"), "cuda")
    assert not problems_of(replace(with_driver(cuda=(12, 2)), cuda="12.8"), "cuda"), "any driver of the same major version does"
    assert not problems_of(with_driver(devices=(T4,)), "cuda")


@pytest.mark.parametrize("device,words", [(P100, ["FP16", "BF16"]), (V100, ["BF16"]), (T4, ["BF16"]), (H100, [])])
def test_tensor_cores_are_a_limit(device: Device, words: list[str]) -> None:
    limits = limits_of(with_driver(devices=(device,)), "cuda")
    assert [word for limit in limits for word in ("FP16", "BF16") if f"tensor cores for {word}" in limit.found] == words
    assert limits_of(with_driver(devices=(device,)), "cpu") == []


@pytest.mark.parametrize("name,word", [("libcudnn.so.9", "cuDNN"), ("libcudart.so.13", "")])
def test_what_a_provider_loads_without_is_a_limit(name: str, word: str) -> None:
    found = lost("cuda", name, optional=bool(word))
    assert bool(problems_of(found, "cuda")) is not bool(word)
    assert [limit.found for limit in limits_of(found, "cuda") if word and word in limit.found] == (
        [f"{name} is not found, without which operators that need cuDNN are refused when they run"] if word else []
    )


def test_the_provider_that_a_package_is_for() -> None:
    assert own_provider(GOOD) == "cuda" and own_provider(CPU_ONLY) == "cpu" and own_provider(Facts()) == "cpu"
    assert own_provider(replace(CPU_ONLY, wheels=(*CPU_ONLY.wheels, *GOOD.wheels))) == "cuda"


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'; try: one of cpu, cuda, tensorrt"):
        problems("gpu")


def test_facts_of_this_machine() -> None:
    found = facts()
    if found.package != "onnxruntime":
        pytest.skip("another package of ONNX Runtime")
    assert [wheel.name for wheel in found.wheels] == ["onnxruntime"] and not found.wheels[0].absent
    assert found.version == found.wheels[0].version and CPU in found.built and not found.error
    assert problems("cpu") == []
    assert problems("cuda")[0].found == f"onnxruntime {found.version} has no CUDA provider"


def test_the_runtime_can_be_vendored_alone(tmp_path: Path) -> None:
    """In another package, with halfconv out of reach: its folder runtime and errors.py."""
    home = Path(halfconv.__file__).parent
    vendored = tmp_path / "app" / "vendored"
    (vendored / "runtime").mkdir(parents=True)
    for path in (home / "errors.py", *(home / "runtime").glob("*.py")):
        (vendored / path.relative_to(home)).write_text(path.read_text("utf-8"), "utf-8")
    for folder in (tmp_path / "app", vendored):
        (folder / "__init__.py").touch()
    script = (
        "import sys; sys.modules['halfconv'] = None\n"
        "from app.vendored.runtime.providers import problems\n"
        "print([problem.found for problem in problems('cpu')], 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] False"


def test_problems_are_pairs() -> None:
    found, advice = Problem("found", "advice")
    assert (found, advice) == ("found", "advice") and installation_problems(GOOD, "cuda") == []
