"""A GPU's own counters, by NVML: its name, its free memory, and the energy that it took."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["Gauge"]


class Gauge:
    """The counters of the GPU that a session uses. Nothing is raised: what NVML does not tell is not known.

    Args:
        device: Its number, as CUDA counts those that CUDA_VISIBLE_DEVICES leaves. NVML counts all, in the order of the bus, which
            is CUDA's, too, unless GPUs of different speeds are in one machine.

    Attributes:
        name: The GPU's name; "" if it is not known.
        why_not: Why nothing is known, and what to do; "" if something is.
    """

    def __init__(self, device: int):
        self.name = self.why_not = ""
        self._nvml: Any = None
        self._handle: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = _handle(pynvml, device)
            name = pynvml.nvmlDeviceGetName(handle)
        except ImportError:
            self.why_not = "nvidia-ml-py is not installed, which reads a GPU's memory and energy; try: pip install nvidia-ml-py"
        except Exception as error:
            self.why_not = f"NVML does not tell the GPU's memory and energy: {error or type(error).__name__}; try: nvidia-smi"
        else:
            self.name = name.decode() if isinstance(name, bytes) else str(name)
            self._nvml, self._handle = pynvml, handle

    def joules(self) -> float | None:
        """Return joules since the driver was loaded; None for GPUs before Volta, and parts of one, which do not count."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except Exception:
            return None

    def free(self) -> int:
        """Return the bytes of its memory that are free; 0 if they are not known."""
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).free)
        except Exception:
            return 0


def _handle(nvml: Any, device: int) -> Any:
    """Return NVML's handle of one of CUDA's devices.

    Raises:
        LookupError: CUDA_VISIBLE_DEVICES names no such device.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(device)
    names = [name.strip() for name in visible.split(",")]
    name = names[device] if device < len(names) else ""
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    for index in range(nvml.nvmlDeviceGetCount() if name else 0):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        if (uuid.decode() if isinstance(uuid, bytes) else str(uuid)).startswith(name):  # which may be shortened
            return handle
    raise LookupError(f"CUDA_VISIBLE_DEVICES={visible!r} has no device {device}")
