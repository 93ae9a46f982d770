"""Counters of the GPU that is used: of no other, and with a reason where nobody tells. NVML itself is made up here."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from halfconv import benchmark
from halfconv.nvml import Gauge

UUIDS = ("GPU-aa11", "GPU-bb22", "GPU-cc33")


class Nvml:
    """Three GPUs, of which each uses 2 W more than the one before it; the counter is in mJ."""

    def __init__(self) -> None:
        self.reads = 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return range(len(UUIDS))[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return UUIDS[handle].encode()

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return f"GPU {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Memory", (), {"free": 1000 + handle})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.reads += 1
        return self.reads * (500 + 1000 * handle)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.mark.parametrize(
    ("visible", "device", "name"),
    [
        (None, 0, "GPU 0"), (None, 2, "GPU 2"), ("1", 0, "GPU 1"), ("2, 0", 0, "GPU 2"), ("2, 0", 1, "GPU 0"),
        ("GPU-cc33", 0, "GPU 2"),
        ("0,GPU-bb", 1, "GPU 1"), ("MIG-dd44", 0, "GPU MIG-dd44"),
    ],
)  # fmt: skip
def test_the_device_is_the_one_that_cuda_means(
    nvml: Nvml, visible: str | None, device: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gauge = Gauge(device)
    assert (gauge.name, gauge.why_not) == (name, "")
    if name[4:].isdigit():
        assert gauge.free() == 1000 + int(name[4:])


@pytest.mark.parametrize("visible", ["", "0", "GPU-ee,GPU-ff"])
def test_a_device_that_is_hidden_is_not_known(nvml: Nvml, visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gauge = Gauge(1)
    assert (gauge.name, gauge.free(), gauge.joules()) == ("", 0, None)
    assert f"CUDA_VISIBLE_DEVICES={visible!r} has no device 1" in gauge.why_not and "; try: " in gauge.why_not


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    gauge = Gauge(0)
    assert (gauge.name, gauge.free(), gauge.joules()) == ("", 0, None)
    assert "; try: pip install nvidia-ml-py" in gauge.why_not


def test_energy_is_that_of_the_turns(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings around each turn, the second GPU's counter goes up by 1.5 J."""
    monkeypatch.setattr(benchmark, "warm_up", lambda worker: None)
    workers: Any = [lambda method, *_: [2.0] * 5 if method == "time" else [] for _ in range(2)]
    for found in benchmark._in_turns(workers, 2 * benchmark.TURN, Gauge(1), None, 1):
        assert (len(found.runs), found.joules) == (10, pytest.approx(2 * 1.5))
    assert [found.joules for found in benchmark._in_turns(workers, benchmark.TURN, None, None, 1)] == [None, None]
