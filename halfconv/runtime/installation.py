"""What of ONNX Runtime, CUDA and the driver is installed here, as data. Nothing of CUDA is loaded, but for the driver's library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .driver import Driver, read_driver
from .libraries import Library, find, loaded, loader_cache, needed, package_versions, search_folders

__all__ = ["CPU_PACKAGE", "GPU_PACKAGE", "NAMES", "Facts", "Wheel", "facts", "runtime_version"]

#: What users call a provider -> ONNX Runtime's name.
NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
#: Files of NVIDIA's that a provider may need; the rest comes with every system, and libcuda with the driver.
_NVIDIA = re.compile(r"lib(cu(?!da\.so)|nv)")
#: Packages that the GPU package's extras name -> the library that they bring.
_EXTRAS = {"nvidia-cudnn": "libcudnn.so", "nvidia-cufft": "libcufft.so", "nvidia-cuda-nvrtc": "libnvrtc.so"}


@dataclass(frozen=True, slots=True)
class Wheel:
    """An installed package that owns the folder ``onnxruntime``.

    Attributes:
        name: Its name.
        version: Its version.
        absent: How many of its files are gone.
    """

    name: str
    version: str
    absent: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is installed here.

    Attributes:
        system: The system, as Python calls it: ``linux``, ``win32``, ``darwin``.
        wheels: Packages that own the folder ``onnxruntime`` which is imported.
        package: The package that its files say they are of; empty if it cannot be imported.
        version: The version that they say.
        error: Why it cannot be imported; empty if it can.
        built: Providers compiled in, by ONNX Runtime's names.
        cuda: The CUDA version that it is built for; empty if for none.
        libraries: Provider -> NVIDIA's libraries that it needs.
        driver: NVIDIA's driver.
        visible: CUDA_VISIBLE_DEVICES; None if it is not set.
    """

    system: str = "linux"
    wheels: tuple[Wheel, ...] = ()
    package: str = ""
    version: str = ""
    error: str = ""
    built: tuple[str, ...] = ()
    cuda: str = ""
    libraries: Mapping[str, tuple[Library, ...]] = field(default_factory=dict)
    driver: Driver = field(default_factory=Driver)
    visible: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON data."""
        return {
            "wheels": [{"name": wheel.name, "version": wheel.version, "absent": wheel.absent} for wheel in self.wheels],
            "package": self.package,
            "version": self.version,
            "error": self.error,
            "providers": list(self.built),
            "cuda": self.cuda,
            "libraries": [
                {"provider": provider, **library.to_dict()}
                for provider, libraries in self.libraries.items()
                for library in libraries
            ],
            "driver": self.driver.to_dict(),
            "cuda_visible_devices": self.visible,
        }


def facts() -> Facts:
    """Gather the facts of this installation."""
    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    wheels, visible = _wheels(folder), os.environ.get("CUDA_VISIBLE_DEVICES")
    if folder is None:
        error = "its files are gone" if wheels else ""
        return Facts(sys.platform, wheels, error=error, driver=read_driver(), visible=visible)
    try:
        import onnxruntime

        built = tuple(onnxruntime.get_available_providers())
    except Exception as problem:  # files of two packages may fail in any way
        text = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        return Facts(sys.platform, wheels, error=text, driver=read_driver(), visible=visible)
    return Facts(
        system=sys.platform,
        wheels=wheels,
        package=getattr(onnxruntime, "package_name", "") or (wheels[0].name if wheels else "onnxruntime"),
        version=onnxruntime.__version__,
        built=built,
        cuda=getattr(onnxruntime, "cuda_version", "") or "",
        libraries=_libraries(folder, built, hasattr(onnxruntime, "preload_dlls")),
        driver=read_driver(),
        visible=visible,
    )


def runtime_version() -> tuple[str, str]:
    """Return the package of ONNX Runtime that is installed, and its version, without importing it; both empty if none tells."""
    for name in (GPU_PACKAGE, CPU_PACKAGE):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "", ""


def _wheels(folder: Path | None) -> tuple[Wheel, ...]:
    """Return the packages that own the folder, or would if it were there."""
    found: dict[str, Wheel] = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name != CPU_PACKAGE and not name.startswith(("onnxruntime-", "ort-")):
            continue
        files = [file for file in distribution.files or () if file.parts[0] == "onnxruntime" and file.suffix != ".pyc"]
        if distribution.files is not None and not any(file.as_posix() == "onnxruntime/__init__.py" for file in files):
            continue  # a package beside it
        place = Path(str(distribution.locate_file("onnxruntime")))
        if folder is None or place.resolve() == folder.resolve():
            absent = sum(not Path(str(distribution.locate_file(file))).exists() for file in files)
            found.setdefault(name, Wheel(name, distribution.version, absent))
    return tuple(found[name] for name in sorted(found))


def _libraries(folder: Path, built: tuple[str, ...], preloads: bool) -> dict[str, tuple[Library, ...]]:
    """Look up what the providers need. What they ask for only when they run stands in the package's extras."""
    found: dict[str, tuple[Library, ...]] = {}
    for provider in ("cuda", "tensorrt"):
        if NAMES[provider] not in built:
            continue
        names, own = needed(folder / "capi" / f"libonnxruntime_providers_{provider}.so")
        if not names:
            continue
        folders = search_folders(folder if preloads else None, own)
        cache = {**loader_cache(), **loaded()}
        versions = package_versions(("nvidia-", "tensorrt"))
        wanted = [name for name in names if _NVIDIA.match(name)]
        extra = [name for name in _extra_libraries() if name.partition(".so")[0] not in {n.partition(".so")[0] for n in wanted}]
        found[provider] = (
            *(find(name, folders, cache, versions) for name in wanted),
            *(find(name, folders, cache, versions, optional=True) for name in extra if provider == "cuda"),
        )
    return found


def _extra_libraries() -> list[str]:
    """Return the libraries that the GPU package's extras bring and that a provider may ask for when it runs."""
    try:
        lines = importlib.metadata.requires(GPU_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        for package, stem in _EXTRAS.items():
            if match := re.match(rf"{package}(?:-cu\d+)?\s*\(?~=\s*(\d+)", line):
                found.append(f"{stem}.{match[1]}")
    return found
