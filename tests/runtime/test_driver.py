"""NVIDIA's driver, played by objects and by compiled stubs."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import halfconv
from halfconv.runtime.driver import NO_LIBRARY, Device, Driver, read_driver
from tests.runtime.test_libraries import compile_library

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the names of Linux's libraries")

STUB = r"""
#include <stdlib.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
int cuInit(unsigned f) { const char *hidden = getenv("CUDA_VISIBLE_DEVICES"); return hidden && !*hidden ? 100 : 0; }
int cuGetErrorName(int code, const char **name) { *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return *name ? 0 : 1; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d ? "Tesla P100" : "NVIDIA H100", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? (d ? 6 : 9) : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *v, int d) { *v = (size_t)80 << 30; return 0; }
"""
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.159.04", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
"""
SCRIPT = "import json; from halfconv.runtime.driver import read_driver; print(json.dumps(read_driver().to_dict()))"


def ask(folder: Path, **environment: str) -> Any:
    """What is read in a process that has the stubs."""
    known = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(halfconv.__file__).parents[1]), **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=known, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_a_driver_answers_through_its_libraries(tmp_path: Path) -> None:
    compile_library(tmp_path / "libcuda.so.1", source=STUB)
    assert ask(tmp_path)["version"] == "", "NVML is not there"
    compile_library(tmp_path / "libnvidia-ml.so.1", source=NVML)
    devices = [
        {"name": "NVIDIA H100", "capability": "9.0", "memory": 80 << 30},
        {"name": "Tesla P100", "capability": "6.0", "memory": 80 << 30},
    ]
    whole = {"version": "580.159.04", "cuda": "13.2", "error": "", "devices": devices, "total": 2}
    assert ask(tmp_path) == whole
    assert ask(tmp_path, CUDA_VISIBLE_DEVICES="") == {**whole, "error": "CUDA_ERROR_NO_DEVICE", "devices": []}


def test_no_library_means_no_driver() -> None:
    def load(name: str) -> Any:
        raise OSError(name)

    assert read_driver(load) == Driver(error=NO_LIBRARY)


class Broken:
    """A library whose functions all fail with one code."""

    def __init__(self, code: int):
        self.code = code

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.code


def test_an_error_without_a_name_has_its_number() -> None:
    assert read_driver(lambda name: Broken(999)) == Driver(error="error 999")


def test_a_device_is_written_as_people_do() -> None:
    assert Device("GPU", (12, 0), 1).to_dict()["capability"] == "12.0"
    assert ctypes.sizeof(ctypes.c_size_t) == 8
