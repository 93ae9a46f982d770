"""What NVIDIA's driver says: its version, the CUDA version that it serves, and the devices that this process may use.

Asked of the driver's own libraries (libcuda, and NVML for the version), which come with it; no package is needed. Nothing is
allocated on a device. libcuda lists what a session would see: CUDA_VISIBLE_DEVICES hides devices from it, but not from NVML.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Device", "Driver", "read_driver"]

CUDA = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
NVML = {"linux": "libnvidia-ml.so.1", "win32": "nvml.dll"}
#: Attributes of a device that hold its compute capability.
MAJOR, MINOR = 75, 76
NO_LIBRARY = "no library"

Load = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, major and minor.
        memory: Bytes of its memory.
    """

    name: str
    capability: tuple[int, int]
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """Return the device as JSON data."""
        return {"name": self.name, "capability": ".".join(map(str, self.capability)), "memory": self.memory}


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver on this machine.

    Attributes:
        version: Its version; empty if not known.
        cuda: The CUDA version that it serves, such as (13, 0); (0, 0) if not known.
        error: Why it gives no devices: `NO_LIBRARY` where it is not installed, else its own name of the error; empty if it does.
        devices: The devices that this process may use.
        total: How many devices there are, hidden ones included.
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    error: str = ""
    devices: tuple[Device, ...] = ()
    total: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the driver as JSON data."""
        return {
            "version": self.version,
            "cuda": ".".join(map(str, self.cuda)) if self.cuda[0] else "",
            "error": self.error,
            "devices": [device.to_dict() for device in self.devices],
            "total": self.total,
        }


def read_driver(load: Load = ctypes.CDLL) -> Driver:
    """Ask the driver.

    Args:
        load: Opens a library by its name, or raises OSError.
    """
    version, total = _management(_open(NVML, load))
    library = _open(CUDA, load)
    if library is None:
        return Driver(version, error=NO_LIBRARY, total=total)
    served = ctypes.c_int(0)
    cuda = (0, 0)
    if library.cuDriverGetVersion(ctypes.byref(served)) == 0:
        cuda = (served.value // 1000, served.value % 1000 // 10)
    count = ctypes.c_int(0)
    code = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return Driver(version, cuda, _error(library, code), total=total)
    devices = tuple(_device(library, index) for index in range(count.value))
    return Driver(version, cuda, "", devices, max(total, len(devices)))


def _open(names: Mapping[str, str], load: Load) -> Any:
    """Return the library of this system; None if it does not open."""
    try:
        return load(names[sys.platform])
    except (OSError, KeyError):
        return None


def _management(library: Any) -> tuple[str, int]:
    """Return the driver's version and the number of all devices."""
    if library is None or library.nvmlInit_v2() != 0:
        return "", 0
    text, count = ctypes.create_string_buffer(96), ctypes.c_uint(0)
    known = library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    library.nvmlShutdown()
    return text.value.decode("ascii", "replace") if known else "", count.value


def _error(library: Any, code: int) -> str:
    """Return the driver's name of an error: ``CUDA_ERROR_NO_DEVICE``."""
    text = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(text)) != 0 or not text.value:
        return f"error {code}"
    return text.value.decode("ascii", "replace")


def _device(library: Any, index: int) -> Device:
    handle, major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(handle), index)
    library.cuDeviceGetName(name, len(name), handle)
    library.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle)
    library.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    return Device(name.value.decode("utf-8", "replace"), (major.value, minor.value), memory.value)
