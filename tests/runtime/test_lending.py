"""Results in memory that is lent: nothing writes into it as long as anything of the caller's holds it, and none is lost."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from halfconv.errors import EnvironmentProblem
from halfconv.runtime import binding, lending
from halfconv.runtime.device import Cuda
from halfconv.runtime.held import Request
from halfconv.runtime.lending import Lender
from tests.runtime import models
from tests.runtime.test_device import FakeCuda, fake

__all__ = ["fake"]  # the fixture


class Locks:
    """Counts what is locked."""

    def __init__(self, most: int = 1000) -> None:
        self.locked: dict[int, int] = {}
        self.most = most

    def page_lock(self, address: int, size: int) -> Callable[[], None]:
        if len(self.locked) == self.most:
            raise EnvironmentProblem("no more")
        assert address % 4096 == 0 and address not in self.locked
        self.locked[address] = size
        return lambda: self.locked.pop(address) and None


def taken(lender: Lender) -> tuple[int, np.ndarray[Any, Any]]:
    found = lender.take()
    assert found is not None
    return found


HOLDERS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "itself": lambda array: array,
    "a slice": lambda array: array[3:4, ::2],
    "views of views": lambda array: array.reshape(-1)[5:].view(np.uint8)[::3].T,
    "a memoryview": lambda array: memoryview(array)[2:],
    "a buffer's array": lambda array: np.frombuffer(array, np.uint8),
    "an iterator": lambda array: array.flat,
    "DLPack": np.from_dlpack,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_block_is_lent_again_when_nothing_holds_it(hold: Callable[[Any], Any]) -> None:
    device = Locks()
    lender = Lender(device, (10, 20), np.dtype(np.float32))
    address, array = taken(lender)
    assert array.shape == (10, 20) and array.dtype == np.float32 and array.flags.writeable and array.ctypes.data == address
    held = hold(array)
    del array
    other, _second = taken(lender)
    assert other != address
    del held
    gc.collect()
    again, _third = taken(lender)
    assert again == address and len(device.locked) == 2


def test_blocks_outlive_their_lender_and_are_unlocked_with_the_last_array() -> None:
    device = Locks()
    lender = Lender(device, (1000,), np.dtype(np.float16))
    arrays = [taken(lender)[1] for _ in range(3)]
    for index, array in enumerate(arrays):
        array[:] = index
    del lender
    gc.collect()
    assert len(device.locked) == 3 and [float(array.sum()) for array in arrays] == [0.0, 1000.0, 2000.0]
    ended = threading.Thread(target=arrays.clear)
    del array
    ended.start()
    ended.join()
    gc.collect()
    assert not device.locked


def test_only_so_much_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LENT_BYTES", 1000)
    lender = Lender(Locks(), (100,), np.dtype(np.float32))
    held = [lender.take() for _ in range(4)]
    assert [bool(found) for found in held] == [True, True, False, False]
    held.pop(0)
    assert lender.take() is not None and lender.take() is None
    assert Lender(Locks(), (1001,), np.dtype(np.uint8)).take() is None


def test_where_no_memory_can_be_locked_none_is_lent() -> None:
    lender = Lender(Locks(most=1), (100,), np.dtype(np.float32))
    held = [lender.take(), lender.take()]
    assert held[0] is not None and held[1] is None
    held.clear()
    assert lender.take() is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns of forks beside threads from 3.12 on")
def test_a_forked_child_has_its_own_copy() -> None:
    lender = Lender(Locks(), (5000,), np.dtype(np.float32))
    _, array = taken(lender)
    array[:] = 7
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.read(reading, 1)  # until the parent has written
        os._exit(0 if (array == 7).all() else 1)
    array[:] = 9
    os.write(writing, b"x")
    _, status = os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert status == 0 and (array == 9).all()


def test_runs_write_into_no_result_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DIRECT", 16)
    monkeypatch.setattr(lending, "LENT_BYTES", 3 * 8 * 4 * 2)  # three results
    engine = models.on_host(models.squares())
    held, routed = [], 0
    for seed in range(30):
        x = np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float16)
        found = engine.again({"x": x}, None)
        routed += found is not None
        result = (found or engine.run(Request({"x": x})))["y"]
        if seed % 3:
            held.append((x, result))
        if seed == 15:
            held.clear()
    assert routed > 25
    for x, y in held:
        np.testing.assert_array_equal(y, x * x)
    engine.close()
    for x, y in held:
        np.testing.assert_array_equal(y, x * x)


def test_results_let_go_of_use_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DIRECT", 16)
    engine = models.on_host(models.squares())
    x = np.ones((8, 4), np.float16)
    for _ in range(3):
        engine.run(Request({"x": x}))
    addresses = set()
    for _ in range(20):
        result = engine.again({"x": x}, None)
        assert result is not None
        addresses.add(result["y"].ctypes.data)
    assert len(addresses) <= 2  # the last result is held while the next is made
    engine.close()


def test_cuda_locks_pages_until_the_last_view_ends(fake: FakeCuda) -> None:
    cuda = Cuda(1)
    lender = Lender(cuda, (300,), np.dtype(np.float32))
    _, array = taken(lender)
    assert list(fake.locked.values()) == [1200]
    cuda.close()
    del lender, cuda
    gc.collect()
    assert fake.locked
    fake.device = 0
    view = array[5:]
    del array
    gc.collect()
    assert fake.locked
    del view
    gc.collect()
    assert not fake.locked and fake.device == 0 and fake.modes == [2, 0]


def test_a_child_of_a_fork_unlocks_nothing(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    unlock = Cuda(0).page_lock(4096, 100)
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    unlock()
    assert fake.locked
    monkeypatch.undo()


def test_memory_that_cuda_cannot_lock_is_not_lent(fake: FakeCuda) -> None:
    fake.left = 100
    assert Lender(Cuda(0), (1000,), np.dtype(np.float32)).take() is None and not fake.locked
