"""Results in memory that is lent: nothing writes into it as long as anything holds it, and no more is kept than said."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from halfconv.runtime import binding
from halfconv.runtime.held import Request
from halfconv.runtime.lending import _KEPT, _KEPT_BYTES, Lender
from tests.runtime import models

HOLDERS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "itself": lambda array: array,
    "a slice": lambda array: array[3:4, ::2],
    "views of views": lambda array: array.reshape(-1)[5:].view(np.uint8)[::3].T,
    "a memoryview": lambda array: memoryview(array)[2:],
    "a buffer's array": lambda array: np.frombuffer(array, np.uint8),
    "an iterator": lambda array: array.flat,
    "DLPack": np.from_dlpack,
    "a strided view": lambda array: np.lib.stride_tricks.as_strided(array, (3, 3), (4, 4)),
    "a masked array": np.ma.masked_array,
    "a cycle": lambda array: (cycle := [array], cycle.append(cycle), cycle)[2],
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_memory_is_lent_again_when_nothing_holds_it(hold: Callable[[Any], Any]) -> None:
    lender = Lender((10, 20), np.dtype(np.float32))
    array = lender.take()
    address = array.ctypes.data
    assert array.shape == (10, 20) and array.dtype == np.float32 and array.flags.writeable and array.flags.c_contiguous
    held = hold(array)
    del array
    second = lender.take()
    assert second.ctypes.data != address
    del held
    gc.collect()
    assert lender.take().ctypes.data == address


def test_torch_holds_what_it_shares() -> None:
    torch = pytest.importorskip("torch")
    lender = Lender((10, 20), np.dtype(np.float32))
    tensor = torch.from_numpy(lender.take())
    tensor[:] = 3
    part = tensor[2:].T
    del tensor
    lender.take()[:] = 4
    assert part.unique().tolist() == [3]


@pytest.mark.parametrize("kind", ["<f2", ">f4", "f8", "u1", "?", "i8", "u2", "c8"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 0, 5), (7, 4099)])
def test_any_type_and_shape(kind: str, shape: tuple[int, ...]) -> None:
    array = Lender(shape, np.dtype(kind)).take()
    assert array.shape == shape and array.dtype == np.dtype(kind)
    array[...] = 1
    assert (array == 1).all()


def test_what_outlives_the_lender_ends_with_its_last_array() -> None:
    lender = Lender((1000,), np.dtype(np.float16))
    arrays = [lender.take() for _ in range(3)]
    for index, array in enumerate(arrays):
        array[:] = index
    ends = [weakref.ref(array.base._block) for array in arrays]
    del lender, array
    gc.collect()
    assert [float(array.sum()) for array in arrays] == [0.0, 1000.0, 2000.0]
    for count in range(3):
        arrays.pop()
        gc.collect()
        assert sum(end() is None for end in ends) == count + 1


@pytest.mark.parametrize(("size", "kept"), [(1 << 20, _KEPT), (_KEPT_BYTES // 2, 2), (_KEPT_BYTES + 1, 1)])
def test_only_so_much_is_kept(size: int, kept: int) -> None:
    lender = Lender((size,), np.dtype(np.uint8))
    held = [lender.take() for _ in range(_KEPT + 3)]
    ends = [weakref.ref(array.base._block) for array in held]
    held.clear()
    gc.collect()
    assert sum(end() is not None for end in ends) == kept


def test_results_may_end_on_any_thread() -> None:
    lender = Lender((100, 100), np.dtype(np.float32))
    wrong: list[int] = []

    def check(array: np.ndarray[Any, Any], value: int) -> None:
        wrong.extend(value for _ in range(20) if not (array == value).all())

    with ThreadPoolExecutor(4) as pool:
        for value in range(500):
            array = lender.take()
            array[:] = value
            pool.submit(check, array, value)
            del array
    assert not wrong


def test_the_interpreter_ends_in_peace_with_results_in_its_hands() -> None:
    code = """
import numpy as np, sys, threading
from halfconv.runtime.lending import Lender
lender = Lender((10,), np.dtype(np.float32))
kept = [lender.take()]
np.kept = lender.take()
sys.kept = lender.take()
kept.append(kept)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("direct", [1, 1 << 20], ids=["fetched", "staged"])
@pytest.mark.parametrize("output", [None, "float32"])
def test_runs_write_into_no_result_that_is_held(direct: int, output: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DIRECT", 16)
    monkeypatch.setattr(binding, "DIRECT_RESULT", direct)
    engine = models.on_host(models.squares(), output=output)
    held, routed = [], 0
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float16)
        found = engine.again({"x": x}, None)
        routed += found is not None
        result = (found or engine.run(Request({"x": x})))["y"]
        assert result.dtype == np.dtype(output or np.float16)
        if seed % 3:
            held.append((x, result))
        if seed == 15:
            held.clear()
    assert routed > 35
    for x, y in held:
        np.testing.assert_array_equal(y, x * x)
    engine.close()
    gc.collect()
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


def test_many_threads_share_a_session_and_keep_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DIRECT", 16)
    engine = models.on_host(models.squares())
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        held = []
        for index in range(300):
            x = random.standard_normal((4 + index % 3, 4)).astype(np.float16)
            held.append((x, (engine.again({"x": x}, None) or engine.run(Request({"x": x})))["y"]))
            del held[: -(1 + seed)]
            wrong.extend(index for x, y in held if not np.array_equal(y, x * x))

    models.in_threads(work, 4)
    engine.close()
    assert not wrong
