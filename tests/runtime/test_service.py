"""What a service needs: deadlines, cancelling, asyncio, many threads, hot swap, shadow sampling, and memory that stays flat."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import halfconv
from halfconv.runtime.deadline import Ticket, Watchdog
from halfconv.runtime.shadow import Drift
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ONE = np.full((2, 2), 0.5, np.float32)


@pytest.fixture(scope="module")
def endless() -> halfconv.Session:
    return halfconv.Session(models.endless(), provider="cpu", threads=1)


# Deadlines


def test_a_run_that_takes_too_long_is_stopped(endless: halfconv.Session) -> None:
    begun = time.monotonic()
    with pytest.raises(halfconv.RunStopped, match=r"the run was stopped: it took more than 0.2 s; try: a longer timeout"):
        endless.run({"x": ONE}, timeout=0.2)
    assert 0.2 <= time.monotonic() - begun < 5


def test_the_deadline_counts_from_the_call(endless: halfconv.Session) -> None:
    """The one worker is busy, so the second request is late before it begins."""
    session = halfconv.Session(models.endless(), provider="cpu", threads=1, workers=1)
    first, second = session.run_async({"x": ONE}, timeout=0.4), session.run_async({"x": ONE}, timeout=0.2)
    for future in (first, second):
        with pytest.raises(halfconv.RunStopped):
            future.result(20)
    session.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1", True])
def test_a_timeout_is_positive(endless: halfconv.Session, timeout: Any) -> None:
    with pytest.raises(halfconv.UsageError, match=r"timeout=.*; try: seconds greater than 0"):
        endless.run({"x": ONE}, timeout=timeout)
    with halfconv.Pool(endless) as pool, pytest.raises(halfconv.UsageError, match=r"timeout=.*; try: seconds greater than 0"):
        pool.run({"x": ONE}, timeout=timeout)


def test_runs_in_time_are_not_disturbed() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    for _ in range(200):
        session.run({"x": X}, timeout=30)
    assert not session._watchdog._due


def test_the_watchdog_stops_what_is_due_in_order() -> None:
    dog = Watchdog()
    tickets = [Ticket(seconds) for seconds in (0.3, 0.1, 0.2, 60.0)]
    numbers = [dog.watch(ticket) for ticket in tickets]
    dog.forget(numbers[2])
    time.sleep(0.6)
    assert [bool(ticket.stopped) for ticket in tickets] == [True, True, False, False]
    for number in numbers:
        dog.forget(number)
    assert not dog._due


# Cancelling and asyncio


def test_cancelling_a_future_stops_its_run(endless: halfconv.Session) -> None:
    future = endless.run_async({"x": ONE})
    while not future.running():
        time.sleep(0.01)
    time.sleep(0.05)
    assert future.cancel() is False
    with pytest.raises(halfconv.RunStopped, match="it was cancelled"):
        future.result(20)
    assert future.cancel() is False


def test_cancelling_a_future_that_waits(endless: halfconv.Session) -> None:
    session = halfconv.Session(models.endless(), provider="cpu", threads=1, workers=1)
    first, second = session.run_async({"x": ONE}), session.run_async({"x": ONE})
    while not first.running():
        time.sleep(0.01)
    assert second.cancel() is True
    with pytest.raises(CancelledError):
        second.result(20)
    first.cancel()
    session.close()


def test_coroutines() -> None:
    async def main() -> list[float]:
        session = halfconv.Session(models.squares(), provider="cpu")
        found = await asyncio.gather(*(session.arun({"x": X + n}, ["s"]) for n in range(20)))
        with pytest.raises(halfconv.InputError):
            await session.arun({"z": X})
        return [float(entry["s"][0]) for entry in found]

    assert asyncio.run(main()) == [float(((X[0] + n) ** 2).sum()) for n in range(20)]


def test_cancelling_a_task_stops_its_run(endless: halfconv.Session) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(endless.arun({"x": ONE}), 0.2)

    asyncio.run(main())
    begun = time.monotonic()
    while any(endless._users.values()):  # the run itself ends, too
        assert time.monotonic() - begun < 20
        time.sleep(0.01)


# Threads


def test_16_threads_on_one_session_get_what_one_gets() -> None:
    session = halfconv.Session(models.squares(), provider="cpu", buckets=[4, 8])
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((random.integers(1, 10), 4)).astype(np.float32) for _ in range(64)]
    alone = [session.run({"x": x}) for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda x: session.run({"x": x}, timeout=60), inputs * 5))
    for index, found in enumerate(together):
        for name, value in alone[index % 64].items():
            np.testing.assert_array_equal(found[name], value)


def test_closing_lets_runs_end_and_refuses_further_ones() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    stop, errors, done = threading.Event(), [], []

    def work() -> None:
        while not stop.is_set():
            try:
                session.run({"x": X})
                done.append(1)
            except halfconv.UsageError:
                return
            except BaseException as error:
                errors.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    waiting = [session.run_async({"x": X}) for _ in range(50)]
    time.sleep(0.1)
    session.close()
    stop.set()
    for worker in workers:
        worker.join()
    assert not errors and done
    assert all(future.result()["s"].shape == (2,) for future in waiting)
    assert session._engine.loaded.session is None


# Hot swap


def scaled(factor: float) -> bytes:
    return models.model(f"g (float[n, 4] x) => (float[n, 4] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}")


def test_a_swap_drops_no_request(folder: Path) -> None:
    (folder / "new.onnx").write_bytes(scaled(3))
    session = halfconv.Session(scaled(2), provider="cpu")
    seen: list[float] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                y = session.run({"x": np.ones((1, 4))})["y"]
                assert (y == y[0, 0]).all()
                seen.append(float(y[0, 0]))
            except BaseException as error:
                errors.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    time.sleep(0.1)
    old = session._engine
    for source in (folder / "new.onnx", scaled(4), str(folder / "new.onnx")):
        session.swap(source)
    time.sleep(0.1)
    stop.set()
    for worker in workers:
        worker.join()
    assert not errors
    assert {2.0, 3.0} <= set(seen) <= {2.0, 3.0, 4.0}
    assert session.run({"x": np.ones((1, 4))})["y"][0, 0] == 3
    assert old.loaded.session is None  # it was released once its last request had ended
    session.close()


def test_a_request_ends_on_the_model_on_which_it_began(endless: halfconv.Session) -> None:
    session = halfconv.Session(models.endless(), provider="cpu", threads=1)
    old = session._engine
    future = session.run_async({"x": ONE}, timeout=1.0)
    while not future.running():
        time.sleep(0.01)
    session.swap(models.model("g (float[2, 2] x) => (float[2, 2] y) { y = Neg(x) }"))
    assert session.run({"x": ONE})["y"][0, 0] == -0.5  # at once
    assert old.loaded.session is not None
    with pytest.raises(halfconv.RunStopped):
        future.result(20)
    session.close()
    assert old.loaded.session is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"none", "cannot be read"),
        (
            models.model("g (float[n, 4] z) => (float[n, 4] y) { y = Neg(z) }"),
            r"the new model's inputs are \['z'\]; try: .*\['x'\]",
        ),
        (models.model("g (float[n, 4] x) => (float[n, 4] q) { q = Neg(x) }"), r"the new model's outputs are \['q'\]"),
        (models.model("g (float[n] x) => (float[n] y) { y = Neg(x) }"), r"the new model's 'x' is float32\[n\]"),
        (models.model("g (int64[n, 4] x) => (int64[n, 4] y) { y = Neg(x) }"), r"the new model's 'x' is int64\[n, 4\]"),
    ],
)
def test_a_model_that_does_not_fit_leaves_the_old_one(source: bytes, message: str) -> None:
    session = halfconv.Session(scaled(2), provider="cpu")
    with pytest.raises(halfconv.InputError, match=message):
        session.swap(source)
    assert session.run({"x": np.ones((1, 4))})["y"][0, 0] == 2
    with pytest.raises(halfconv.InputError):
        session.swap(scaled(3), warmup={"x": (1, 5)})
    assert session.run({"x": np.ones((1, 4))})["y"][0, 0] == 2
    session.swap(models.model("g (float16[n, 4] x) => (float16[n, 4] y) { y = Neg(x) }"), warmup={"x": (1, 4)})
    assert session.run({"x": np.ones((1, 4))})["y"][0, 0] == -1


# Shadow


def test_a_shadow_reports_live_drift() -> None:
    seen: list[tuple[Drift, ...]] = []
    with (
        halfconv.Session(models.squares(), provider="cpu") as half,
        halfconv.Session(models.squares("float"), provider="cpu") as full,
    ):
        with halfconv.Shadow(half, full, 1.0, seen.append, waiting=100) as shadow:
            random = np.random.default_rng(0)
            for _ in range(20):
                x = random.standard_normal((3, 4)).astype(np.float32)
                found = shadow.run({"x": x})
                assert found["y"].dtype == np.float16
                x[:] = 0  # the caller's own again
            shadow.wait()
            y, s = shadow.drift
            assert (shadow.compared, shadow.dropped, shadow.failed, len(seen)) == (20, 0, 0, 20)
        assert (y.output, s.output, y.requests, y.not_finite, y.agreement) == ("y", "s", 20, 0, None)
        assert 1e-5 < y.rel_l2 < 2e-3 and 0 < y.max_abs < 1e-2
        assert [drift.output for drift in seen[0]] == ["y", "s"] and seen[0][0].requests == 1
        assert set(y.to_dict()) == {"output", "rel_l2", "max_abs", "agreement", "not_finite", "requests"}
        half.run({"x": X})  # the sessions stay open


def test_a_shadow_counts_overflows_and_integers() -> None:
    source = "g ({0}[n] x) => ({0}[n] y, int64[1] i) {{ y = Mul(x, x) i = ArgMax(x) }}"
    half = halfconv.Session(models.model(source.format("float16")), provider="cpu")
    full = halfconv.Session(models.model(source.format("float")), provider="cpu")
    with halfconv.Shadow(half, full, 1.0) as shadow:
        shadow.run({"x": np.array([1.0, 300.0])})
        shadow.wait()
        y, i = shadow.drift
    assert (y.not_finite, i.agreement) == (1, 1.0)


def test_only_a_share_is_sampled_and_a_slow_reference_slows_nobody() -> None:
    session, slow = halfconv.Session(models.squares(), provider="cpu"), halfconv.Session(models.squares("float"), provider="cpu")
    with halfconv.Shadow(session, slow, 0.25, seed=1, waiting=10_000) as shadow:
        for _ in range(400):
            shadow.run({"x": X})
        shadow.wait()
        assert 60 < shadow.compared < 140
    gate = threading.Event()
    with halfconv.Shadow(session, slow, 1.0, lambda _: gate.wait(), waiting=2) as shadow:
        for _ in range(50):
            shadow.run({"x": X})
        gate.set()
        shadow.wait()
        assert shadow.dropped >= 40 and shadow.compared + shadow.dropped == 50
    with pytest.raises(halfconv.UsageError, match=r"share='1'; try: a number from 0 to 1"):
        halfconv.Shadow(session, slow, "1")  # type: ignore[arg-type]
    with pytest.raises(halfconv.UsageError, match=r"share=1\.5; try: a number from 0 to 1"):
        halfconv.Shadow(session, slow, 1.5)


def test_a_reference_that_fails_is_counted() -> None:
    session, other = halfconv.Session(models.squares(), provider="cpu"), halfconv.Session(models.endless(), provider="cpu")
    with halfconv.Shadow(session, other, 1.0) as shadow:
        assert shadow.run({"x": X})["s"].shape == (2,)
        shadow.wait()
        assert (shadow.failed, shadow.compared) == (1, 0) and shadow.error.startswith("InputError: ")


# Memory


def rss() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def grown(work: Any, first: int, then: int) -> int:
    for _ in range(first):
        work()
    before = rss()
    for _ in range(then):
        work()
    return rss() - before


def test_memory_is_flat_over_1000_runs() -> None:
    session = halfconv.Session(models.squares(), provider="cpu", buckets=[64])
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert grown(lambda: session.run({"x": x}, timeout=10), 300, 1000) < 4e6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "bound"])
def test_memory_is_flat_over_10000_runs(how: str) -> None:
    from halfconv.runtime.held import Request

    source = models.squares()
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((n, 4)).astype(np.float32) for n in range(1, 80)]
    order = iter(range(10**9))
    if how == "plain":
        session = halfconv.Session(source, provider="cpu", buckets=[16])
        work: Any = lambda: session.run({"x": inputs[next(order) % 79]}, timeout=60)  # noqa: E731
    else:
        engine = models.on_host(source, buckets=[16], cache=4)
        work = lambda: engine.run(Request({"x": inputs[next(order) % 79]}))  # noqa: E731
    assert grown(work, 2000, 10_000) < 4e6


@pytest.mark.slow
def test_sessions_come_and_go_without_a_leak() -> None:
    def work() -> None:
        with halfconv.Session(models.squares(), provider="cpu", threads=1) as session:
            session.run({"x": X}, timeout=60)
            session.swap(models.squares(), warmup={"x": (2, 4)})

    before = {thread.name for thread in threading.enumerate()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grown(work, 50, 200) < 8e6
    time.sleep(0.2)
    assert {thread.name for thread in threading.enumerate()} <= before
