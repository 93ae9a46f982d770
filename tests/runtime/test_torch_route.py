"""Torch tensors through a graph without a wait: the order of streams is kept by torch's events. Streams are stand-ins here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halfconv.errors import InputError
from halfconv.runtime import binding, foreign, torch_route
from halfconv.runtime import engine as engine_module
from halfconv.runtime.arrays import Feed
from halfconv.runtime.engine import Engine
from halfconv.runtime.held import Held, Request
from halfconv.runtime.session import Session
from tests.runtime import models

torch = pytest.importorskip("torch")


class FakeStream:
    """Writes down who waits for whom."""

    def __init__(self, name: str, log: list[str]):
        self.name, self.log = name, log

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name} waits for {event.stream}")


class FakeEvent:
    """Knows the stream that it was recorded on last."""

    stream = "nobody"

    def record(self, stream: FakeStream) -> None:
        self.stream = stream.name


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        found.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda address, device: FakeStream(f"graph's {address}", found))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: FakeStream("torch's", found))
    monkeypatch.setattr(torch_route, "_is_on", lambda value, index: True)
    return found


def shared(monkeypatch: pytest.MonkeyPatch, source: bytes, **settings: Any) -> Engine:
    """Return an engine that believes it has graphs, on a stream of its own."""
    engine = models.with_graphs(monkeypatch, source, graph=True, **settings)
    assert engine._device is not None
    engine._device._device.shared = True
    engine.loaded.stream = SimpleNamespace(address=7)  # type: ignore[assignment]
    return engine


def ask(engine: Engine, x: Any, outputs: Any = None) -> tuple[bool, dict[str, Any]]:
    found = engine.again_torch({"x": x}, outputs)
    return found is not None, found or engine.run(Request({"x": x}, outputs, "torch"))


def test_every_request_gets_its_own_by_the_route(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares(), buckets=[2, 4])
    kept, routed = [], 0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2 + 2 * (seed % 2), 4, generator=generator).to((torch.float16, torch.float32)[seed // 2 % 2])
        taken, found = ask(engine, x, [None, ["y"], "s"][seed % 3])
        assert list(found) == [["y", "s"], ["y"], ["s"]][seed % 3]
        routed += taken
        kept.append((x.to(torch.float16), found))
    assert routed >= 12
    for x, found in kept:
        if "y" in found:
            assert torch.equal(found["y"], x * x) and not found["y"].requires_grad
    engine.close()
    assert all(torch.equal(found["y"], x * x) for x, found in kept if "y" in found)


def test_streams_follow_each_other(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares())
    x = torch.ones(2, 4)
    assert any(ask(engine, x)[0] for _ in range(5))
    log.clear()
    assert ask(engine, x)[0]
    assert log == ["on torch's", "graph's 7 waits for torch's", "on graph's 7", "torch's waits for graph's 7"]
    engine.close()


def test_other_requests_wait_for_runs_that_nobody_waited_for(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would write into inputs that a run still reads, on another stream than that."""
    engine = shared(monkeypatch, models.squares(), buckets=[4])
    assert engine._device is not None
    waits: list[int] = []
    monkeypatch.setattr(engine._device._device, "wait", lambda: waits.append(1))
    x = torch.ones(4, 4)
    assert any(ask(engine, x)[0] for _ in range(5))
    waits.clear()
    assert ask(engine, x)[0] and not waits
    begun: list[int] = []
    fill = binding.Bound.fill
    monkeypatch.setattr(binding.Bound, "fill", lambda self, feeds: begun.append(len(waits)) or fill(self, feeds))
    ask(engine, torch.ones(3, 4))
    assert begun[0] >= 1
    engine.close()


def test_torch_waits_for_the_copies_also_when_a_run_fails(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares())
    x = torch.ones(2, 4)
    assert any(ask(engine, x)[0] for _ in range(5))
    (route,) = engine._torch_ways.values()
    monkeypatch.setattr(type(route.bound), "launch", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    log.clear()
    with pytest.raises(Exception, match="no memory"):
        engine.again_torch({"x": x}, None)
    assert log[-1] == "torch's waits for graph's 7"
    engine.close()


def test_the_type_that_was_chosen_and_tensors_with_gradients(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares(), output="float32")
    x = torch.full((2, 4), 3.0, requires_grad=True)
    for _ in range(5):
        taken, found = ask(engine, x)
        assert found["y"].dtype == torch.float32 and found["y"].tolist() == [[9.0] * 4] * 2 and not found["y"].requires_grad
    assert taken
    engine.close()


@pytest.mark.parametrize("first", [True, False])
def test_inference_mode_may_begin_and_end_between_requests(first: bool, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made in it may not be written outside, and a route is made once."""
    engine = shared(monkeypatch, models.squares())
    for inside in (first, not first, first):
        for number in range(1, 5):
            with torch.inference_mode(inside):
                taken, found = ask(engine, torch.full((2, 4), float(number)))
            assert found["y"].tolist() == [[number**2] * 4] * 2
        assert taken
    engine.close()


def test_a_buffer_takes_tensors_of_any_mode() -> None:
    """On the long way."""
    import onnxruntime

    buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 4), np.float32))
    views: dict[str, Any] = {}
    for inside in (True, False, True):
        with torch.inference_mode(inside):
            for rows, number in ((2, 2.0), (1, 3.0)):
                foreign.put(torch.full((rows, 4), number), buffer, "x", lambda *_: None, views)
                assert buffer.numpy().tolist() == [[number] * 4] * 2


def test_padded_batches_and_shapes_without_a_graph_take_the_long_way(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares(), buckets=[4], cache=2)
    for _ in range(4):
        taken, found = ask(engine, torch.full((3, 4), 2.0))
        assert not taken and found["y"].tolist() == [[4.0] * 4] * 3
    assert any(ask(engine, torch.ones(5, 4))[0] for _ in range(5))
    for _ in range(4):  # two graphs there may be
        taken, found = ask(engine, torch.full((6, 4), 3.0))
        assert not taken and found["y"].tolist() == [[9.0] * 4] * 6
    engine.close()
    (route,) = engine._torch_ways.values()
    assert not route.ready


def test_other_threads_are_served_with_their_own_streams(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shared(monkeypatch, models.squares(), buckets=[2])
    wrong: list[int] = []

    def work(seed: int) -> None:
        for index in range(30):
            x = torch.full((2, 4), float(seed * 30 + index) / 10)
            y = ask(engine, x)[1]["y"]
            wrong.extend([index] * (not torch.equal(y, x.half() * x.half())))

    models.in_threads(work, 4)
    engine.close()
    assert not wrong


@pytest.mark.parametrize(
    "feeds",
    [{"x": np.ones((2, 4))}, [("x", 1)], {"x": torch.ones(2, 4).to_sparse()}, {"x": torch.nn.Parameter(torch.ones(2, 4))}],
)
def test_what_is_no_plain_tensor_has_no_signature(feeds: Any, log: list[str]) -> None:
    assert torch_route.signature(feeds, None, 0) is None
    assert torch_route.signature({"x": torch.ones(2, 4)}, [1], 0) is None  # type: ignore[list-item]
    assert torch_route.signature({"x": torch.ones(2, 4)}, ["y"], 0) is not None


def test_a_route_is_made_once_also_for_requests_that_do_not_take_it(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A session with hooks sends each request the long way."""
    engine = shared(monkeypatch, models.squares())
    made: list[Any] = []
    make = binding.Bound.torch_route
    monkeypatch.setattr(binding.Bound, "torch_route", lambda *given: made.append(make(*given)) or made[-1])
    for _ in range(8):
        engine.run(Request({"x": torch.ones(2, 4)}, None, "torch"))
    assert len(made) == 1 and list(engine._torch_ways.values()) == made
    engine.close()


@pytest.fixture
def waits(log: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take tensors for such on a GPU; returns the threads whose streams were waited for."""
    found: list[int] = []
    monkeypatch.setattr(foreign, "wait", lambda value: found.append(threading.get_ident()))
    monkeypatch.setattr(engine_module, "look", lambda value, spec: Feed(spec, None, "float16", tuple(value.shape), value))
    monkeypatch.setattr(torch_route, "signature", lambda *_: None)
    return found


def test_inputs_are_there_before_another_thread_reads_them(waits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is a thread's own: that of the thread which runs graphs knows nothing of what the caller's has still to write."""
    engine = shared(monkeypatch, models.squares())
    assert engine._device is not None and engine._device._lane is not None
    engine._device._lane.threaded = True
    read: list[int] = []
    fill = binding.Bound.fill

    def filled(self: binding.Bound, feeds: Any) -> Any:
        read.append(len(waits))
        assert threading.get_ident() != threading.main_thread().ident
        return fill(self, feeds)

    monkeypatch.setattr(binding.Bound, "fill", filled)
    _, found = ask(engine, torch.full((2, 4), 3.0, dtype=torch.float16))
    assert found["y"].tolist() == [[9.0] * 4] * 2
    assert read and threading.main_thread().ident in waits[: read[0]]
    engine.close()


def test_inputs_are_there_before_a_thread_of_the_sessions_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Any]] = []
    monkeypatch.setattr(foreign, "wait", lambda value: seen.append((threading.get_ident(), value)))
    x = torch.ones(2, 4)
    with Session(models.squares(), provider="cpu") as session:
        assert session.run_async({"x": x}).result()["y"].tolist() == [[1.0] * 4] * 2
        assert seen[0][0] == threading.get_ident() and seen[0][1] is x
        with pytest.raises(InputError):
            session.run_async([("x", x)]).result()  # type: ignore[arg-type]


def test_buffers_are_filled_before_another_thread_runs_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True)
    assert engine._device is not None and engine._device._lane is not None
    bound = engine.bind({"x": np.ones((2, 4), np.float32)})
    engine._device._lane.threaded = True
    seen: list[tuple[str, int]] = []
    launch = binding.Bound.launch
    monkeypatch.setattr(foreign, "drain", lambda libraries, index: seen.append(("drain", threading.get_ident())))
    monkeypatch.setattr(
        binding.Bound, "launch", lambda self, *more: seen.append(("launch", threading.get_ident())) or launch(self, *more)
    )
    monkeypatch.setattr(Held, "provider", "cuda")
    engine.run_bound(bound, None)
    monkeypatch.undo()
    assert seen[0] == ("drain", threading.get_ident())
    assert seen[1][0] == "launch" and seen[1][1] != threading.get_ident()
    engine.unbind(bound)
    engine.close()


@pytest.mark.parametrize("start", [0, 1, 2, 4, 7, 8, 16])
def test_a_part_that_kernels_could_not_read_at_once_is_copied(start: int) -> None:
    """Its memory is contiguous, but does not begin where 16 bytes may be read together."""
    part = torch.zeros(64, dtype=torch.float16)[start : start + 8].view(2, 4)
    (spec,) = (s for s in models.on_host(models.squares()).inputs.values() if s.needed)
    address = foreign.direct(Feed(spec, None, "float16", (2, 4), part), (2, 4), None)  # type: ignore[arg-type]
    assert address == (part.data_ptr() if start % 8 == 0 else None)
