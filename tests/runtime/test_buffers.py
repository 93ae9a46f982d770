"""Buffers that the caller fills: no copy between the caller's arrays and the model."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch

import halfconv
from halfconv.runtime.binding import Bound
from tests.runtime import models


def test_torch_writes_and_reads_the_models_own_memory() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    with session.bind({"x": (3, 4)}) as buffers:
        x, y = torch.from_dlpack(buffers.inputs["x"]), torch.from_dlpack(buffers.outputs["y"])
        assert (x.dtype, tuple(x.shape), y.dtype) == (torch.float16, (3, 4), torch.float16)
        for value in (1.0, 2.0, 3.0):
            x[:] = value
            assert buffers.run() is buffers.outputs
            assert y.tolist() == [[value * value] * 4] * 3
        assert session.run({"x": np.full((3, 4), 5.0)})["y"][0, 0] == 25  # beside them
        assert y[0, 0] == 9
        del x, y
    session.close()


def test_they_begin_with_an_array() -> None:
    session = halfconv.Session(models.cast_only("bfloat16"), provider="cpu")
    buffers = session.bind({"x": np.full((1, 3), 2.0)})
    assert torch.from_dlpack(buffers.outputs["y"]).tolist() == [[4.0] * 3]
    assert not buffers.graph


def test_with_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares())
    seen: list[int] = []
    replay = Bound.replay
    monkeypatch.setattr(Bound, "replay", lambda self, *rest: (seen.append(threading.get_ident()), replay(self, *rest))[1])
    bound = engine.bind({"x": np.ones((2, 4), np.float32)})
    assert bound.graph == 1 and bound.captured == threading.get_ident()
    given, found = bound.buffers
    torch.from_dlpack(given["x"])[:] = 3
    worker = threading.Thread(target=lambda: engine.run_bound(bound, None))
    worker.start()
    worker.join()
    assert torch.from_dlpack(found["s"]).tolist() == [36.0, 36.0]
    assert len(set(seen)) == 2  # captured again on the thread that all runs are on from now on
    engine.unbind(bound)
    engine.close()


def test_a_capture_that_fails_binds_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares())
    replay = Bound.replay

    def failing(self: Bound, *rest: Any) -> Any:
        if self.graph is not None:
            raise RuntimeError("operation not permitted")
        return replay(self, *rest)

    monkeypatch.setattr(Bound, "replay", failing)
    bound = engine.bind({"x": np.full((1, 4), 2.0)})
    assert bound.graph is None and torch.from_dlpack(bound.buffers[1]["s"]).tolist() == [16.0]
    assert any("the capture failed: operation not permitted" in note for note in engine.notes)
    engine.unbind(bound)
    engine.close()


def test_closing() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    first, second, third = (session.bind({"x": (1, 4)}) for _ in range(3))
    first.close()
    first.close()
    with pytest.raises(halfconv.UsageError, match="the buffers are closed; try: bind"):
        first.run()
    del third
    gc.collect()
    session.run({"x": np.ones((1, 4))})
    assert sum(session._users.values()) == 1
    session.close()
    with pytest.raises(halfconv.UsageError, match="the buffers are closed"):
        second.run()
    with pytest.raises(halfconv.UsageError, match="the session is closed"):
        session.bind({"x": (1, 4)})


def test_they_stay_with_their_model_after_a_swap() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    old = session._engine
    buffers = session.bind({"x": np.full((1, 4), 3.0)})
    session.swap(models.squares("float"))
    buffers.run()
    assert torch.from_dlpack(buffers.outputs["y"])[0, 0] == 9
    assert old.loaded.session is not None
    buffers.close()
    assert old.loaded.session is None
    session.close()


def test_a_run_that_takes_too_long() -> None:
    """The first run, which shows the outputs' shapes, must end: so the loop is one that an input makes long."""
    source = models.model("""g (int64 times, float[2, 2] x) => (float[2, 2] y) <bool go = {1}> {
        y = Loop(times, go, x) <body = b (int64 i, bool c, float[2, 2] a) => (bool d, float[2, 2] e) {
            d = Identity(c)
            e = MatMul(a, a)
        }>
    }""")
    session = halfconv.Session(source, provider="cpu", threads=1)
    buffers = session.bind({"times": np.int64(1), "x": (2, 2)})
    torch.from_dlpack(buffers.inputs["times"]).fill_(10**8)
    with pytest.raises(halfconv.RunStopped):
        buffers.run(timeout=0.2)


@pytest.mark.parametrize(("source", "shapes", "kind", "message"), [
    (models.squares(), {"x": (2, 5)}, halfconv.InputError, "has the shape"),
    (models.squares(), {}, halfconv.InputError, "an input is missing"),
    (models.model("g (string[n] x) => (string[n] y) { y = Identity(x) }"), {"x": (2,)}, halfconv.UsageError, "no tensors"),
])  # fmt: skip
def test_what_cannot_be_bound(source: bytes, shapes: Any, kind: type[Exception], message: str) -> None:
    session = halfconv.Session(source, provider="cpu")
    with pytest.raises(kind, match=message):
        session.bind(shapes)
    session.close()
