"""A pool answers every caller with what its own request gives alone, whatever runs beside it."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv import Pool
from halfconv.runtime.arrays import Spec


class Fake:
    """A session of a function, which can be held up; it notes the batch sizes that it runs."""

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray] = lambda x: 2 * x, shape: Sequence[Any] = ("n", None)):
        self.input_specs = {"x": Spec("x", "tensor(float)", "float32", tuple(shape), 1, np.dtype(np.float32))}
        self.compute, self.batches = compute, []
        self.held, self.entered = threading.Event(), threading.Semaphore(0)
        self.held.set()

    def run(self, feeds: Mapping[str, Any], outputs: Any = None, *, timeout: float | None = None) -> dict[str, Any]:
        self.entered.release()
        assert self.held.wait(20)
        if timeout is not None and timeout < 1e-3:
            raise halfconv.RunStopped("late")
        self.batches.append(len(feeds["x"]))
        return {"y": self.compute(feeds["x"])}


def rows(count: int, seed: int = 0, width: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)}


def together(pool: Pool, fake: Fake, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Submit requests while the only worker is busy with another."""
    while fake.entered.acquire(blocking=False):
        pass
    fake.held.clear()
    first = pool.submit(rows(1, 99))
    assert fake.entered.acquire(timeout=20)
    futures = [pool.submit(feeds) for feeds in requests]
    fake.held.set()
    first.result(20)
    return [future.result(20) for future in futures]


SAMPLE = rows(4, 7)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([3, 5])), min_size=1, max_size=12), st.integers(1, 8), st.booleans())
def test_everybody_gets_his_own_rows(sizes: list[tuple[int, int]], most: int, given: bool) -> None:
    fake = Fake()
    with Pool(fake, max_batch=most, max_delay=0.001, sample=SAMPLE if given and most > 1 else None) as pool:
        requests = [rows(count, k, width) for k, (count, width) in enumerate(sizes)]
        found = together(pool, fake, requests)
        stats = pool.stats
    for feeds, outputs in zip(requests, found, strict=True):
        np.testing.assert_array_equal(outputs["y"], 2 * feeds["x"])
    alone = max(count for count, _ in sizes)
    shown = sum(count for count, _ in sizes) if not given else 4  # the check itself runs more rows
    assert max(fake.batches) <= max(most, alone, shown)
    assert stats.requests == len(sizes) + 1 and stats.waiting == 0 and not stats.why_not


def test_requests_that_wait_run_together() -> None:
    fake = Fake()
    with Pool(fake, max_batch=8, sample=SAMPLE) as pool:
        del fake.batches[:]
        together(pool, fake, [rows(1, k) for k in range(8)])
        assert pool.stats.batching
    assert fake.batches == [1, 8]


def test_a_request_waits_for_others_no_longer_than_it_should() -> None:
    fake = Fake()
    with Pool(fake, max_batch=8, max_delay=0.5, sample=SAMPLE) as pool:
        del fake.batches[:]
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda k: pool.run(rows(1, k)), range(4)))
        assert sum(fake.batches) == 4 and len(fake.batches) < 4
    with Pool(fake, max_batch=8, max_delay=600, sample=SAMPLE) as pool:
        assert pool.run(rows(8), timeout=60), "a full batch waits for nobody"
        pool.submit(rows(1))  # the end of the pool ends the wait, too


DEPENDENT = {
    "mean": lambda x: x - x.mean(axis=0, keepdims=True),
    "order": lambda x: np.sort(x, axis=0),
    "size": lambda x: x * len(x),
    "one answer": lambda x: x.sum(axis=0),
    "another row count": lambda x: np.concatenate([x, x]),
    "not finite": lambda x: x / np.float32(2 - len(x)) if len(x) != 2 else x * np.float32("inf"),
}


@pytest.mark.parametrize("kind", DEPENDENT)
@pytest.mark.parametrize("sampled", [False, True])
def test_rows_that_depend_on_each_other_are_not_put_together(kind: str, sampled: bool) -> None:
    compute = DEPENDENT[kind]
    fake = Fake(compute)
    with np.errstate(all="ignore"), Pool(fake, max_batch=8, sample=rows(2, 5) if sampled else None) as pool:
        requests = [rows(1, k) for k in range(4)]
        for _ in range(2):
            for feeds, outputs in zip(requests, together(pool, fake, requests), strict=True):
                np.testing.assert_array_equal(outputs["y"], compute(feeds["x"]))
        stats = pool.stats
    assert not stats.batching and stats.why_not.startswith("output 'y'")


def test_a_bad_request_does_not_fail_those_beside_it() -> None:
    def compute(x: np.ndarray) -> np.ndarray:
        if (x > 1e6).any():
            raise halfconv.InputError("too large")
        return x

    fake = Fake(compute)
    with Pool(fake, max_batch=8, sample=SAMPLE) as pool:
        while fake.entered.acquire(blocking=False):
            pass
        fake.held.clear()
        first = pool.submit(rows(1))
        assert fake.entered.acquire(timeout=20)
        bad = pool.submit({"x": np.full((1, 3), 1e7, np.float32)})
        good = [pool.submit(rows(1, k)) for k in range(3)]
        fake.held.set()
        first.result(20)
        with pytest.raises(halfconv.InputError, match="too large"):
            bad.result(20)
        for k, future in enumerate(good):
            np.testing.assert_array_equal(future.result(20)["y"], rows(1, k)["x"])


@pytest.fixture
def busy() -> Iterator[tuple[Fake, Pool]]:
    """A pool whose worker is held up, with room for two more requests."""
    fake = Fake()
    fake.held.clear()
    with Pool(fake, queue=2) as pool:
        pool.submit(rows(1))
        assert fake.entered.acquire(timeout=20)
        yield fake, pool
        fake.held.set()


def test_a_full_queue_refuses(busy: tuple[Fake, Pool]) -> None:
    fake, pool = busy
    kept = [pool.submit(rows(1, k)) for k in range(2)]
    with pytest.raises(halfconv.PoolFull, match=r"2 requests wait already; try: "):
        pool.submit(rows(1), block=False)
    with pytest.raises(halfconv.PoolFull):
        pool.submit(rows(1), timeout=0.05)
    assert pool.stats.refused == 2 and pool.stats.waiting == 2
    threading.Timer(0.1, fake.held.set).start()
    pool.run(rows(1), timeout=20)
    assert all(future.result(20) for future in kept)


def test_deadlines_count_the_wait(busy: tuple[Fake, Pool]) -> None:
    fake, pool = busy
    late = pool.submit(rows(1), timeout=0.05)
    with pytest.raises(halfconv.RunStopped, match=r"took more than 0\.05 s"):
        pool.run(rows(1), timeout=0.05)
    fake.held.set()
    with pytest.raises(halfconv.RunStopped, match="in the queue"):
        late.result(20)
    assert len(fake.batches) <= 1, "what is late does not run"


def test_cancelled_requests_do_not_run(busy: tuple[Fake, Pool]) -> None:
    fake, pool = busy
    cancelled = pool.submit(rows(1))
    assert cancelled.cancel()
    fake.held.set()
    pool.run(rows(1, 3))
    with pytest.raises(CancelledError):
        cancelled.result(20)
    assert len(fake.batches) == 2


def test_close_runs_what_waits_or_stops_it() -> None:
    for wait in (True, False):
        fake = Fake()
        fake.held.clear()
        pool = Pool(fake)
        pool.submit(rows(1))
        assert fake.entered.acquire(timeout=20)
        waiting = pool.submit(rows(1, 1))
        threading.Timer(0.1, fake.held.set).start()
        pool.close(wait=wait)
        if wait:
            assert waiting.done() and waiting.result()
        else:
            with pytest.raises(halfconv.RunStopped, match="closed"):
                waiting.result()
        with pytest.raises(halfconv.UsageError, match="closed"):
            pool.run(rows(1))
        pool.close()


@pytest.mark.parametrize("options", [{"workers": 0}, {"queue": 0}, {"max_batch": 0}, {"max_delay": -1}, {"max_batch": True},
                                     {"max_delay": "1"}, {"max_delay": float("nan")}])  # fmt: skip
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(halfconv.UsageError, match=next(iter(options))):
        Pool(Fake(), **options)


def test_models_without_a_batch_dimension_and_samples_without_rows() -> None:
    with pytest.raises(halfconv.UsageError, match="no common batch dimension"):
        Pool(Fake(shape=(4, None)), max_batch=2)
    for sample in (rows(1), {"z": np.zeros((2, 3))}, {"x": np.float32(1)}):
        with pytest.raises(halfconv.UsageError, match="two rows"):
            Pool(Fake(), max_batch=2, sample=sample)
    with pytest.raises(halfconv.UsageError, match="timeout"), Pool(Fake()) as pool:
        pool.run(rows(1), timeout=0)


# --- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network on rows of any number."""
    r = np.random.default_rng(0)
    weights = [numpy_helper.from_array(r.standard_normal((16, 16)).astype(np.float32) / 4, f"w{k}") for k in range(2)]
    steps = [("MatMul", "x", "w0", "a"), ("Max", "a", "a", "b"), ("MatMul", "b", "w1", "y")]
    nodes = [helper.make_node(op, [x, w], [y]) for op, x, w, y in steps]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = tmp_path_factory.mktemp("pool") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_many_threads_on_a_model(model: Path) -> None:
    requests = [rows(1 + k % 3, k, 16) for k in range(400)]
    with halfconv.Session(model, provider="cpu", profile=False) as session:
        alone = [session.run(feeds)["y"] for feeds in requests]
        with Pool(session, workers=2, max_batch=16) as pool, ThreadPoolExecutor(16) as callers:
            found = list(callers.map(lambda feeds: pool.run(feeds, timeout=60)["y"], requests))
            stats = pool.stats
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert stats.requests == len(requests) and stats.rows == sum(len(feeds["x"]) for feeds in requests)
    assert stats.batching and stats.runs < len(requests)


def test_coroutines_share_a_pool(model: Path) -> None:
    async def all_of_them(pool: Pool) -> list[dict[str, Any]]:
        return await asyncio.gather(*(pool.arun(rows(1, k, 16), timeout=60) for k in range(50)))

    with halfconv.Session(model, provider="cpu", profile=False) as session, Pool(session, queue=4, max_batch=8) as pool:
        found = asyncio.run(all_of_them(pool))
        for k, outputs in enumerate(found):
            np.testing.assert_allclose(outputs["y"], session.run(rows(1, k, 16))["y"], rtol=1e-4, atol=1e-5)


def _in_a_fork(pool: Pool, end: Any) -> None:
    try:
        pool.run(rows(1))
    except halfconv.EnvironmentProblem as error:
        end.send(str(error))


def test_a_fork_says_so() -> None:
    with Pool(Fake()) as pool:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(pool, theirs))
        child.start()
        assert ours.poll(20) and "after the fork" in ours.recv()
        child.join(20)
        assert child.exitcode == 0
        pool.run(rows(1))
