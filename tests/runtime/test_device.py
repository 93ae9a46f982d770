"""The CUDA runtime behind a stand-in that keeps its memory on the CPU, and the gate around captures."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import halfconv
from halfconv.runtime import device
from halfconv.runtime.device import Cuda, Gate, Host
from halfconv.runtime.engine import Engine
from halfconv.runtime.held import Request, Settings
from halfconv.runtime.loading import Wishes
from halfconv.runtime.settings import Profile
from tests.runtime import models


class FakeCuda:
    """What `Cuda` calls of the CUDA runtime; every function returns CUDA's error number."""

    def __init__(self) -> None:
        self.pinned: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.devices: list[int] = []
        self.left = 1 << 30
        self.broken = self.last = 0
        for name in ("cudaMemcpy", "cudaMemcpyAsync", "cudaStreamSynchronize"):  # functions, which take argtypes
            method = getattr(self, f"_{name}")
            setattr(self, name, lambda *rest, method=method: method(*rest))

    def cudaSetDevice(self, index: ctypes.c_int) -> int:
        self.devices.append(index.value)
        return 0 if index.value < 2 else 101

    def cudaGetLastError(self) -> int:
        last, self.last = self.last, 0
        return last

    def cudaStreamCreateWithFlags(self, stream: Any, flags: ctypes.c_uint) -> int:
        stream._obj.value = 77
        self.streams.add(77)
        return 0

    def cudaStreamDestroy(self, stream: ctypes.c_void_p) -> int:
        self.streams.remove(stream.value or 0)
        return 0

    def cudaHostAlloc(self, pointer: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        if size.value > self.left:
            self.last = 2
            return 2
        memory = (ctypes.c_uint8 * size.value)()
        pointer._obj.value = ctypes.addressof(memory)
        self.pinned[ctypes.addressof(memory)] = memory
        return 0

    def cudaFreeHost(self, pointer: ctypes.c_void_p) -> int:
        del self.pinned[pointer.value or 0]
        return 0

    def _cudaMemcpyAsync(self, to: int, address: int, size: int, way: int, stream: ctypes.c_void_p) -> int:
        assert way == 4 and stream.value in self.streams
        if self.broken:
            return self.broken
        ctypes.memmove(to, address, size)
        return 0

    def _cudaMemcpy(self, to: int, address: int, size: int, way: int) -> int:
        assert way in (1, 2)
        if self.broken:
            return self.broken
        ctypes.memmove(to, address, size)
        return 0

    def _cudaStreamSynchronize(self, stream: ctypes.c_void_p | None) -> int:
        return 0

    class cudaGetErrorString:
        def __new__(cls, code: ctypes.c_int) -> Any:
            return {2: b"out of memory", 101: b"invalid device ordinal", 700: b"an illegal memory access"}[code.value]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    library = FakeCuda()
    monkeypatch.setattr(device, "_loaded", lambda: library)
    return library


def test_pinned_buffers_and_copies(fake: FakeCuda) -> None:
    cuda = Cuda(1)
    first, second = cuda.buffer(100), cuda.buffer(10)
    assert len(fake.pinned) == 2 and first.nbytes == 100 and cuda.buffer(0).nbytes == 0
    first[:10] = 7
    cuda.copy(second.ctypes.data, first.ctypes.data, 10)
    cuda.wait()
    assert second.tolist() == [7] * 10
    cuda.release(first)
    cuda.release(np.empty(3, np.uint8))  # not one of its own
    assert len(fake.pinned) == 1
    cuda.close()
    cuda.close()
    assert not fake.pinned and not fake.streams and set(fake.devices) == {1}


def test_without_pinned_memory_ordinary_memory_serves(fake: FakeCuda) -> None:
    fake.left = 0
    cuda = Cuda(0)
    assert cuda.buffer(5).nbytes == 5 and not fake.pinned
    assert not fake.last  # else the next kernel's launch would be blamed for it


def test_errors_say_what_cuda_says(fake: FakeCuda) -> None:
    with pytest.raises(halfconv.EnvironmentProblem, match=r"CUDA failed: cudaSetDevice: invalid device ordinal \(101\)"):
        Cuda(5)
    cuda = Cuda(0)
    fake.broken = 700
    with pytest.raises(halfconv.EnvironmentProblem, match=r"CUDA failed: cudaMemcpyAsync: an illegal memory access \(700\)"):
        cuda.copy(1, 2, 3)
    for copy in (cuda.send, cuda.fetch):
        with pytest.raises(halfconv.EnvironmentProblem, match=r"CUDA failed: cudaMemcpy: an illegal memory access \(700\)"):
            copy(1, 2, 3)


def test_a_model_runs_through_it_and_leaves_nothing(fake: FakeCuda) -> None:
    """The device is called ``cpu``, so that ONNX Runtime's CPU provider makes its memory."""

    class Named(Cuda):
        def __init__(self, index: int) -> None:
            super().__init__(index)
            self.name = "cpu"

    engine = Engine(models.squares(), Profile(), Settings(Wishes(("cpu",)), cache=2), device=Named)
    for count in (1, 2, 3, 4, 5, 1, 2):
        x = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float16)
        np.testing.assert_array_equal(engine.run(Request({"x": x}))["y"], x * x)
    assert 0 < len(fake.pinned) <= 2 * 3  # inputs, outputs, and those of routes
    engine.close()
    assert not fake.pinned and not fake.streams


def test_a_session_that_nobody_closes_leaves_nothing(fake: FakeCuda) -> None:
    cuda = Cuda(0)
    cuda.buffer(10)
    del cuda
    gc.collect()
    assert not fake.pinned and not fake.streams


def test_no_cuda_runtime_is_an_environment_problem() -> None:
    with pytest.raises(halfconv.EnvironmentProblem, match="no CUDA runtime is loaded"):
        Cuda(0)


def test_without_a_cuda_runtime_onnx_runtime_copies() -> None:
    engine = Engine(models.squares(), Profile(), Settings(Wishes(("cpu",))), device=Cuda)
    assert engine.run(Request({"x": np.ones((1, 4))}))["s"].tolist() == [4]
    assert any("no I/O binding, ONNX Runtime copies by itself: no CUDA runtime is loaded" in note for note in engine.notes)


def test_the_host_copies() -> None:
    host = Host()
    a, b = host.buffer(4), host.buffer(4)
    a[:] = 3
    host.enter()
    host.copy(b.ctypes.data, a.ctypes.data, 4)
    host.wait()
    host.release(a)
    host.close()
    assert b.tolist() == [3] * 4


# The gate


def test_a_capture_is_alone_and_runs_are_not() -> None:
    gate = Gate()
    inside, most, alone = 0, 0, []
    lock = threading.Lock()

    def run() -> None:
        nonlocal inside, most
        for _ in range(20):
            with gate.shared():
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with lock:
                    inside -= 1

    def capture() -> None:
        for _ in range(10):
            with gate.exclusive():
                alone.append(inside)
                time.sleep(0.001)
                alone.append(inside)

    workers = [threading.Thread(target=run) for _ in range(6)] + [threading.Thread(target=capture) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert alone == [0] * 40 and most > 1


def test_a_capture_that_waits_for_a_load_holds_up_no_run() -> None:
    gate = Gate()
    order: list[str] = []

    def capture() -> None:
        with gate.exclusive():
            order.append("capture")

    with gate.load():
        assert gate.loading
        waiting = threading.Thread(target=capture)
        waiting.start()
        time.sleep(0.05)
        with gate.shared():
            order.append("run")
        order.append("loaded")
    waiting.join(10)
    assert order == ["run", "loaded", "capture"] and not gate.loading


def test_the_gate_opens_again_after_an_error() -> None:
    gate = Gate()
    for enter in (gate.shared, gate.exclusive, gate.load):
        with pytest.raises(ValueError, match="x"), enter():
            raise ValueError("x")
    with gate.exclusive():
        pass
