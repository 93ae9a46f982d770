"""Compile the CUDA kernels into a library that ONNX Runtime can register.

It needs nvcc, a C++ compiler, and the headers of CUDA, cuBLAS, cuDNN, cuDNN's frontend and CUTLASS, all of which come as Python's
packages. None of NVIDIA's libraries need be there: the result names those that ONNX Runtime's CUDA provider loads.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from halfconv.errors import EnvironmentProblem
from halfconv.runtime.kernels import cached

__all__ = ["SOURCES", "build"]

#: Where the sources lie, in the package.
SOURCES = Path(__file__).parent / "cuda"
#: The compute capability that they are written for, Hopper's, with its own instructions.
ARCHITECTURE = ("-gencode", "arch=compute_90a,code=sm_90a")
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-DCUDNN_FRONTEND_SKIP_JSON_LIB", "-cudart", "none", "--expt-relaxed-constexpr",
         "-Xcompiler", "-fPIC")  # fmt: skip
#: A header of each package -> what installs it; {} is CUDA's major version.
HEADERS = {
    "cuda_fp16.h": "nvidia-cuda-runtime",
    "cublasLt.h": "nvidia-cublas",
    "cudnn.h": "nvidia-cudnn-cu{}",
    "cudnn_frontend.h": "nvidia-cudnn-frontend",
    "cutlass/cutlass.h": "nvidia-cutlass",
    "cutlass/util/packed_stride.hpp": "nvidia-cutlass",
}
#: Folders of headers below one of packages, in which * stands for any name.
FOLDERS = ("include", "nvidia/*/include", "nvidia/*/include/cccl", "cutlass_library/source/include",
           "cutlass_library/source/tools/util/include")  # fmt: skip
#: Libraries that ONNX Runtime's provider has loaded; {} is CUDA's major version.
LIBRARIES = ("cudart.so.{}", "cublasLt.so.{}", "cudnn.so.9")
#: ONNX Runtime unloads a library with the last session that has it, and with it would go plans, timings and handles of cuDNN.
STAYS = ("-Xlinker", "-z", "-Xlinker", "nodelete")
#: How many lines of what the compiler said an error shows.
LINES = 3


def build(nvcc: Path | None = None, include: Sequence[Path] = (), output: Path | None = None) -> Path:
    """Compile the library.

    Args:
        nvcc: CUDA's compiler; None looks on the path, in ``CUDA_HOME``, and among Python's packages.
        include: Folders of headers to look in before others.
        output: Where the library goes; None for where sessions on CUDA look.

    Returns:
        The library, put in place at once when it is whole.

    Raises:
        EnvironmentProblem: The compiler or a header is missing, or it fails.
    """
    compiler = nvcc or _nvcc()
    version = re.search(r"release (\d+)\.", _run([str(compiler), "--version"]))
    if version is None:
        raise EnvironmentProblem(f"{compiler} is not nvcc: it does not say its release", "--nvcc PATH")
    major = version[1]
    folders = [*include, *(found for place in _packages() for pattern in FOLDERS for found in sorted(place.glob(pattern)))]
    own = compiler.resolve().parent.parent / "include"
    for header, package in HEADERS.items():
        if not any((folder / header).is_file() for folder in (*folders, own)):
            raise EnvironmentProblem(f"no folder has {header}", f"pip install {package.format(major)}, or --include FOLDER")
    try:
        target = output or cached()
    except RuntimeError:
        raise EnvironmentProblem("the user has no home, in which the library is kept", "HOME=FOLDER") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        work = Path(scratch)
        shared = [str(compiler), *FLAGS, *ARCHITECTURE, *(part for folder in folders for part in ("-I", str(folder)))]
        sources = sorted(SOURCES.glob("*.cu"))
        objects = [work / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[*shared, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)]
            list(pool.map(_run, commands))
        made = work / target.name
        stubs = [part for name in LIBRARIES for part in _stub(compiler, name.format(major), work)]
        _run([
            str(compiler), "-shared", "-cudart", "none", *map(str, objects), "-o", str(made), "-L", str(work),
            "-Xlinker", "--no-as-needed", *stubs, "-Xlinker", "--unresolved-symbols=ignore-all", *STAYS,
        ])  # fmt: skip
        made.replace(target)
    return target


def _nvcc() -> Path:
    home = os.environ.get("CUDA_HOME")
    named = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)
    if named is not None:
        return Path(named)
    for place in _packages():
        for found in sorted(place.glob("nvidia/*/bin/nvcc")):
            return found
    raise EnvironmentProblem("nvcc is missing", "pip install nvidia-cuda-nvcc, or --nvcc PATH")


def _packages() -> Iterator[Path]:
    """Go through the folders that packages are imported from, but for the current one, which ``python -m`` puts before them."""
    for place in dict.fromkeys(sys.path):
        if place and Path(place).is_dir() and not Path(place).samefile(Path.cwd()):
            yield Path(place)


def _stub(compiler: Path, name: str, work: Path) -> list[str]:
    """Make an empty library of a name, so that the linker enters it among those that are needed; returns how it is named there."""
    short = name.partition(".")[0]
    empty = work / "empty.cu"
    empty.touch()
    _run([str(compiler), "-shared", "-cudart", "none", "-Xlinker", f"-soname=lib{name}", str(empty), "-o",
          str(work / f"lib{short}.so")])  # fmt: skip
    return [f"-l{short}"]


def _run(command: Sequence[str]) -> str:
    """Run a compiler, and return what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        raise EnvironmentProblem(f"{command[0]} cannot be run: {error.strerror}", "--nvcc PATH") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        told = "; ".join(said[:LINES])[:600] or f"exit code {done.returncode}"
        raise EnvironmentProblem(f"nvcc failed: {told}", "the versions of CUDA, cuDNN and CUTLASS that docs/speed.md names")
    return done.stdout
