"""Whether a provider of ONNX Runtime can be used here, and if not, why.

The functions only read what `installation` gathers, so each cause can be tried without the machine that has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import UsageError
from .driver import NO_LIBRARY
from .installation import CPU_PACKAGE, GPU_PACKAGE, NAMES, Facts, facts
from .libraries import Library

__all__ = [
    "NAMES", "TENSOR_CORES", "Problem", "installation_problems", "limits_of", "own_provider", "problems", "problems_of",
]  # fmt: skip

_TITLES = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}
#: Libraries that a provider loads without -> what is refused then.
_WITHOUT = {
    "libcudnn.so": "operators that need cuDNN are refused when they run",
    "libcufft.so": "Fourier transforms (Rfft, Irfft) are refused",
    "libnvrtc.so": "kernels that are compiled when they are needed are refused",
}
#: Major version of CUDA -> the oldest compute capability, and the oldest driver, that it serves.
_OLDEST = {12: ((5, 0), 525), 13: ((7, 5), 580)}
#: Compute capability from which there are tensor cores for a format.
TENSOR_CORES = {"fp16": (7, 0), "bf16": (8, 0)}
_NO_DEVICE = "CUDA_ERROR_NO_DEVICE"
#: Errors of the driver -> what to do.
_DRIVER_ADVICE = {
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "reboot: the driver was updated, and the kernel still has the old one",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "take CUDA's folder compat out of LD_LIBRARY_PATH",
}


class Problem(NamedTuple):
    """Why something does not work, and what to do."""

    found: str
    advice: str


def problems(provider: str) -> list[Problem]:
    """Return why a provider cannot be used here, the most basic cause first.

    Args:
        provider: ``cpu``, ``cuda`` or ``tensorrt``.

    Returns:
        Nothing if no cause is found, which is no proof that it works.

    Raises:
        UsageError: There is no such provider.
    """
    return problems_of(facts(), provider)


def own_provider(found: Facts) -> str:
    """Return the provider that the installed package is for: ``cuda`` or ``cpu``."""
    gpu = found.package == GPU_PACKAGE or NAMES["cuda"] in found.built or any(w.name == GPU_PACKAGE for w in found.wheels)
    return "cuda" if gpu else "cpu"


def problems_of(found: Facts, provider: str) -> list[Problem]:
    """Return why a provider cannot be used, the most basic cause first.

    Raises:
        UsageError: There is no such provider.
    """
    if provider not in NAMES:
        raise UsageError(f"unknown provider {provider!r}", "one of " + ", ".join(NAMES))
    listed = installation_problems(found, provider)
    if provider == "cpu":
        return listed
    if found.system == "darwin":
        return [Problem(f"macOS has no {_TITLES[provider]}", "--provider cpu")]
    return [*listed, *_driver_problems(found), *_library_problems(found, provider)]


def installation_problems(found: Facts, provider: str) -> list[Problem]:
    """Return what is wrong with the packages of ONNX Runtime."""
    wanted = CPU_PACKAGE if provider == "cpu" else f"'{GPU_PACKAGE}[cuda,cudnn]'"
    names = [f"{wheel.name} {wheel.version}" for wheel in found.wheels]
    anew = f"pip install {wanted}"
    if names:
        anew = f"pip uninstall -y {' '.join(wheel.name for wheel in found.wheels)}, then {anew}"
    if provider == "tensorrt":
        anew = f"{anew}, and the libraries of TensorRT that halfconv doctor --provider tensorrt then names"
    lacks = f"{found.package} {found.version} has no {_TITLES[provider]} provider" if NAMES[provider] not in found.built else ""
    if not names and not found.package and not found.error:
        return [Problem("no ONNX Runtime is installed", f"pip install {wanted}")]
    if len(names) > 1:
        words = f"{' and '.join(names)} are installed together and overwrite each other's files"
        left = f": {found.error}" if found.error else f"; as it is, {lacks}" if lacks else ""
        return [Problem(words + left, anew)]
    if names and found.wheels[0].absent:
        again = f"pip install --force-reinstall --no-deps {names[0].replace(' ', '==')}"
        words = f"{found.wheels[0].absent} files of {names[0]} are gone, as after removing another package of ONNX Runtime"
        return [Problem(words, again)]
    if found.error:
        return [Problem(f"onnxruntime cannot be imported: {found.error}", anew)]
    return [Problem(lacks, anew)] if lacks else []


def _driver_problems(found: Facts) -> list[Problem]:
    """Return what is wrong with the driver, or with the GPU that a session would use."""
    driver, container = found.driver, "in a container, give it the GPU (docker run --gpus all)"
    if driver.error == NO_LIBRARY:
        return [Problem("no NVIDIA driver is installed: its library libcuda is not found", f"install the driver; {container}")]
    if driver.error not in ("", _NO_DEVICE):
        advice = _DRIVER_ADVICE.get(driver.error, "nvidia-smi, whose message says more")
        return [Problem(f"the NVIDIA driver does not start ({driver.error})", advice)]
    if not driver.devices:
        if found.visible is not None:
            hidden = f"all {driver.total} GPUs" if driver.total > 1 else "the GPU" if driver.total else "every GPU"
            return [Problem(f"CUDA_VISIBLE_DEVICES={found.visible!r} hides {hidden}", "unset it, or name one, as in 0")]
        return [Problem("the NVIDIA driver finds no GPU", f"nvidia-smi -L, which lists them; {container}")]
    listed, made_for = [], _major(found.cuda)
    capability, oldest_driver = _OLDEST.get(made_for, ((0, 0), 0))
    if 0 < driver.cuda[0] < made_for:
        serves = f"driver {driver.version} serves CUDA {_dotted(driver.cuda)}".replace("  ", " ")
        update = f"a driver of version {oldest_driver} or newer" if oldest_driver else "a newer driver"
        listed.append(Problem(f"the NVIDIA {serves}, and {found.package} {found.version} needs CUDA {found.cuda}", update))
    first = driver.devices[0]
    if first.capability < capability:
        able = [i for i, device in enumerate(driver.devices) if device.capability >= capability]
        begins = f"CUDA {made_for} begins at {_dotted(capability)}"
        words = f"{first.name} has compute capability {_dotted(first.capability)}, and {begins}"
        other = f"CUDA_VISIBLE_DEVICES={able[0]}, which is {driver.devices[able[0]].name}" if able else ""
        listed.append(Problem(words, other or f"a release of {GPU_PACKAGE} that is made for an older CUDA"))
    return listed


def _library_problems(found: Facts, provider: str) -> list[Problem]:
    """Return which libraries are missing, together where one package brings them."""
    missing = [library for library in found.libraries.get(provider, ()) if not library.path and not library.optional]
    cudnn = [library for library in missing if library.name.startswith("libcudnn")]
    tensorrt = [library for library in missing if library.name.startswith("libnv") and not library.name.startswith("libnvrtc")]
    toolkit = [library for library in missing if library not in (*cudnn, *tensorrt)]
    package = f"pip install '{GPU_PACKAGE}[cuda,cudnn]=={found.version}'"
    elsewhere = "or the folder that has {} on LD_LIBRARY_PATH"
    listed = []
    for title, libraries in ((f"CUDA {found.cuda}".strip(), toolkit), ("cuDNN", cudnn)):
        if libraries:
            listed.append(Problem(_missing(title, libraries), f"{package}, {elsewhere.format(_it(libraries))}"))
    if tensorrt:
        trt = next((library.name for library in tensorrt), "").partition(".so.")[2]
        advice = f"pip install 'tensorrt-cu{_major(found.cuda)}-libs=={trt}.*', and its folder tensorrt_libs on LD_LIBRARY_PATH"
        listed.append(Problem(_missing(f"TensorRT {trt}", tensorrt), advice))
    return listed


def _missing(title: str, libraries: Iterable[Library]) -> str:
    names = [library.name for library in libraries]
    others = [other for library in libraries for other in library.others]
    besides = f"; what is found is {', '.join(others)}, of another version" if others else ""
    return f"{', '.join(names)} of {title} {'is' if len(names) == 1 else 'are'} not found{besides}"


def _it(libraries: list[Library]) -> str:
    return "it" if len(libraries) == 1 else "them"


def limits_of(found: Facts, provider: str) -> list[Problem]:
    """Return what a provider that can be used does not do here."""
    listed: list[Problem] = []
    if provider == "cpu":
        return listed
    package = f"pip install '{GPU_PACKAGE}[cuda,cudnn]=={found.version}'"
    for library in found.libraries.get(provider, ()):
        if library.optional and not library.path:
            without = next(words for stem, words in _WITHOUT.items() if library.name.startswith(stem))
            listed.append(Problem(f"{library.name} is not found, without which {without}", package))
    for device in found.driver.devices[:1]:
        for name, capability in TENSOR_CORES.items():
            if device.capability < capability:
                words = f"{device.name} (compute capability {_dotted(device.capability)}) has no tensor cores for {name.upper()}"
                advice = f"a GPU of {_dotted(capability)} or newer" + ("; or --to fp16" if name == "bf16" else "")
                listed.append(Problem(f"{words}, which begin at {_dotted(capability)}", advice))
    return listed


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
