"""Padding to buckets: right where rows are independent, refused where they are not; buffers and graphs for each shape."""

from __future__ import annotations

import functools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import halfconv
from halfconv.runtime import held
from halfconv.runtime.binding import Bound
from halfconv.runtime.buckets import Buckets
from halfconv.runtime.engine import Engine
from halfconv.runtime.held import Request, Settings
from halfconv.runtime.loading import Wishes
from halfconv.runtime.settings import Bucket, Profile
from tests.runtime import models

RANDOM = np.random.default_rng(0)


def rows(count: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal((count, 4)).astype(np.float32)


def check(engine: Engine, x: np.ndarray[Any, Any], **more: Any) -> Request:
    request = Request({"x": x}, **more)
    found = engine.run(request)
    half = x.astype(np.float16)
    np.testing.assert_array_equal(np.asarray(found["y"]), half * half)
    assert found["s"].shape == (len(x),)
    return request


# Fitting


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 45))
def test_the_smallest_size_that_fits_is_taken(sizes: list[int], count: int) -> None:
    engine = _squares()
    fit = Buckets(engine.inputs, (), sizes, None).fit({"x": (count, 4)})
    larger = [size for size in sizes if size >= count]
    if not larger or count == 0:
        assert fit is None
    else:
        assert fit is not None and (fit.size, fit.rows, dict(fit.shapes)) == (min(larger), count, {"x": (min(larger), 4)})


_CACHE: list[Engine] = []


def _squares() -> Engine:
    if not _CACHE:
        _CACHE.append(models.on_host(models.squares()))
    return _CACHE[0]


def test_profiles_buckets_fit_in_their_other_dimensions_too() -> None:
    source = models.model("g (float[n, k] x, float[k] w) => (float[n, k] y) { y = Mul(x, w) }")
    profile = Profile(buckets=(Bucket({"x": (8, 4), "w": (4,)}, True), Bucket({"x": (2, 4), "w": (4,)}, False)))
    engine = models.on_host(source, profile)
    fits = {count: engine.buckets.fit({"x": (count, 4), "w": (4,)}) for count in (1, 2, 3, 8, 9)}
    assert {count: fit and (fit.size, fit.graph) for count, fit in fits.items()} == {
        1: None, 2: (2, False), 3: None, 8: (8, True), 9: None,  # w's k is a batch like x's n, as far as one can tell
    }  # fmt: skip
    one = Buckets(_squares().inputs, (Bucket({"x": (8, 4)}, True), Bucket({"x": (2, 4)}, False)), None, None)
    found = [one.fit({"x": (count, 4)}) for count in (1, 2, 3, 8, 9)]
    assert [fit and (fit.size, fit.rows, fit.graph) for fit in found] == [
        (2, 1, False),
        (2, 2, False),
        (8, 3, True),
        (8, 8, True),
        None,
    ]
    assert one.fit({"x": (2, 5)}) is None


def test_sizes_need_a_common_batch_dimension() -> None:
    for text in ("g (float[2] x) => (float[2] y) { y = Neg(x) }", "g (float[n] x, float[m] z) => (float[n] y) { y = Neg(x) }"):
        with pytest.raises(
            halfconv.UsageError, match=r"buckets=\[4\]: the inputs have no common batch dimension .*; try: buckets=None"
        ):
            halfconv.Session(models.model(text), provider="cpu", buckets=[4])


def test_dimensions_without_a_name_may_be_the_same_batch() -> None:
    text = "g (float[unk__1] x, float[unk__2] z) => (float[unk__3] y) { y = Add(x, z) }"
    engine = _plain(models.model(text), buckets=[4])
    assert engine.run(Request({"x": [1.0, 2.0], "z": [1.0, 1.0]}))["y"].tolist() == [2, 3]


# Padding


@pytest.mark.parametrize("how", ["plain", "bound"])
def test_padded_results_are_cut(how: str) -> None:
    engine = models.on_host(models.squares(), buckets=[4, 16]) if how == "bound" else _plain(models.squares(), buckets=[4, 16])
    for count, bucket in ((3, 4), (1, 4), (4, 4), (5, 16), (16, 16), (17, None), (2, 4)):
        assert check(engine, rows(count)).bucket == bucket
    assert engine.run(Request({"x": rows(0)}))["y"].shape == (0, 4)


def _plain(source: bytes, **options: Any) -> Engine:
    return halfconv.Session(source, provider="cpu", **options)._engine


@pytest.mark.parametrize("how", ["plain", "bound"])
def test_rows_that_depend_on_each_other_are_not_padded(how: str) -> None:
    engine = models.on_host(models.mixed(), buckets=[4]) if how == "bound" else _plain(models.mixed(), buckets=[4])
    x = rows(3)
    for _ in range(2):
        with pytest.raises(halfconv.UsageError, match=r"batches of 3 cannot be padded to 4: output 'y' depends on the rows"):
            engine.run(Request({"x": x}))
    np.testing.assert_allclose(engine.run(Request({"x": rows(4)}))["y"].sum(0), 0, atol=1e-5)
    profile = Profile(buckets=(Bucket({"x": (4, 4)}, False),))
    engine = models.on_host(models.mixed(), profile)
    for _ in range(2):
        request = Request({"x": x})
        np.testing.assert_allclose(engine.run(request)["y"], x - x.mean(0), atol=1e-5)
        assert request.bucket is None
    assert [note for note in engine.notes if "padded" in note] == [
        note for note in engine.notes if note.startswith("batches are not padded to 4: output 'y' depends on the rows")
    ]


def test_an_output_over_the_whole_batch_is_no_reason_if_filling_cannot_change_it() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y, float[3] c) <float[3] k = {1, 2, 3}> { y = Neg(x) c = Identity(k) }"
    engine = _plain(models.model(text), buckets=[3])
    found = engine.run(Request({"x": rows(2)}))
    assert found["y"].shape == (2, 4) and found["c"].tolist() == [1, 2, 3]


def test_an_output_whose_shape_changes_otherwise_is_a_reason() -> None:
    text = "g (float[n, 4] x) => (float[4, n] y) { y = Transpose<perm = [1, 0]>(x) }"
    with pytest.raises(halfconv.UsageError, match=r"output 'y' has the shape \[4, 2\] alone and \[4, 3\] when padded"):
        _plain(models.model(text), buckets=[3]).run(Request({"x": rows(2)}))


def test_a_largest_over_the_batch_is_found_by_filling_with_zeros() -> None:
    """Copies of a row never change a maximum; zeros do."""
    text = "g (float[n, 4] x) => (float[n, 4] y) { m = ReduceMax<keepdims = 1>(x) y = Sub(x, m) }"
    with pytest.raises(halfconv.UsageError, match="depends on the rows that fill the batch"):
        _plain(models.model(text), buckets=[3]).run(Request({"x": -1 - abs(rows(2))}))


def test_integers_and_bf16_are_compared_too() -> None:
    text = "g (int64[n, 4] x) => (int64[n, 4] y) { m = ReduceSum<keepdims = 1>(x) y = Add(x, m) }"
    with pytest.raises(halfconv.UsageError, match=r"depends on the rows that fill the batch \(0% agree\)"):
        _plain(models.model(text), buckets=[3]).run(Request({"x": np.ones((2, 4), np.int64)}))
    engine = _plain(models.cast_only("bfloat16"), buckets=[3])
    found = engine.run(Request({"x": np.ones((2, 3), ml_dtypes.bfloat16)}))["y"]
    assert found.dtype == ml_dtypes.bfloat16 and found.tolist() == [[2.0] * 3] * 2


def test_a_model_that_cannot_take_zeros_is_checked_with_the_rest() -> None:
    text = """g (int64[n, 1] x) => (float[n, 2] y) <float[2, 2] t = {1, 2, 3, 4}, int64 four = {-4}, int64[1] ax = {1}> {
        i = Add(x, four)
        k = Squeeze(i, ax)
        y = Gather(t, k)
    }"""
    engine = _plain(models.model(text), buckets=[4])
    found = engine.run(Request({"x": np.array([[4], [5], [3]])}))["y"]  # 0 would be −4, which is no row
    assert found.tolist() == [[1, 2], [3, 4], [3, 4]]


# Buffers


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("to", ["numpy", "torch"])
def test_buffers_give_the_same_at_every_shape(monkeypatch: pytest.MonkeyPatch, graphs: bool, to: str) -> None:
    options: dict[str, Any] = {"buckets": [2, 4, 8], "cache": 4}
    engine = models.with_graphs(monkeypatch, models.squares(), **options) if graphs else models.on_host(models.squares(), **options)
    kept = []
    for count in (2, 3, 1, 8, 4, 9, 10, 11, 12, 13, 7, 2, 3):
        x = rows(count)
        value: Any = torch.from_numpy(x) if count % 2 else x
        found = engine.run(Request({"x": value}, to=to))
        half = x.astype(np.float16)
        kept.append((found["y"], half * half))
    for have, want in kept:  # nothing was written over
        np.testing.assert_array_equal(np.asarray(have), want)
    states = engine.graphs
    assert {state.inputs["x"][0] for state in states if state.captured} == ({2, 4, 8} if graphs else set())
    assert sum(not state.captured for state in states) <= 4
    assert all(state.reason == ("" if state.captured else "not asked for") for state in states)
    engine.close()


def test_outputs_that_were_not_asked_for_are_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in (models.on_host(models.squares()), models.with_graphs(monkeypatch, models.squares(), graph=True)):
        for names in (["s"], ["y"], ["s", "y"]):
            assert list(engine.run(Request({"x": rows(3)}, names))) == names


def test_casts_at_the_boundary_with_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (models.on_host, lambda *a, **k: models.with_graphs(monkeypatch, *a, graph=True, **k)):
        for edge, output in (("bfloat16", None), ("bfloat16", "float32"), ("float16", "bfloat16"), ("float16", "float64")):
            engine = make(models.cast_only(edge), output=output)
            for _ in range(3):
                found = engine.run(Request({"x": np.full((2, 3), 1.5)}))["y"]
                assert found.dtype.name == (output or edge) and found.tolist() == [[3.0] * 3] * 2
                tensor = engine.run(Request({"x": torch.full((2, 3), 1.5, dtype=torch.bfloat16)}, to="torch"))["y"]
                assert str(tensor.dtype) == f"torch.{output or edge}" and tensor.tolist() == [[3.0] * 3] * 2
            with pytest.raises(halfconv.InputError, match="finite numbers beyond float16") if edge == "float16" else nullcontext():
                engine.run(Request({"x": np.full((2, 3), 1e6)}))


def test_arrays_on_a_device_go_straight_into_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OrtValue stands for any library's array on a device: here its memory is the CPU's, but that is not looked at."""
    engine = models.on_host(models.cast_only("float16"))
    monkeypatch.setattr(onnxruntime.OrtValue, "device_name", lambda _: "cuda")
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.full((2, 3), 2, np.float16))
    assert engine.run(Request({"x": value}))["y"].tolist() == [[4.0] * 3] * 2
    wrong = onnxruntime.OrtValue.ortvalue_from_numpy(np.full((2, 3), 2, np.float32))
    with pytest.raises(
        halfconv.InputError, match=r"input 'x' is tensor\(float\) \[2, 3\] on a device; try: tensor\(float16\) \[2, 3\]"
    ):
        engine.run(Request({"x": wrong}))


def test_texts_and_sequences_are_run_without_buffers() -> None:
    text = "g (string[n] x) => (string[n] y) { y = Identity(x) }"
    engine = models.on_host(models.model(text))
    assert list(engine.run(Request({"x": ["a"]}))["y"]) == ["a"]
    assert [note for note in engine.notes if note.startswith("no I/O binding, ONNX Runtime copies by itself: the model has inputs")]


def test_more_shapes_than_the_cache_holds_run_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True, cache=3)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 1, 2):
        check(engine, rows(count))
    # the first run is the one that shows the placement, so its shape is captured at its second
    assert sum(state.captured for state in engine.graphs) == 3
    assert [note for note in engine.notes if "3 CUDA graphs are captured (cache=)" in note]


def test_a_capture_that_fails_goes_on_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True)
    check(engine, rows(2))
    replay = Bound.replay
    monkeypatch.setattr(Bound, "replay", _raise)
    old, alive = weakref.ref(engine.loaded.session), []
    load = held.load
    monkeypatch.setattr(held, "load", lambda *rest: (alive.append(old()), load(*rest))[1])
    request = check(engine, rows(2))
    assert not request.graph
    assert alive == [None]  # the old session is gone before the new one is made: its stream would still be capturing
    monkeypatch.setattr(Bound, "replay", replay)
    assert not check(engine, rows(2)).graph
    assert any(
        note.startswith("no CUDA graphs: the capture failed: operation not permitted when stream is capturing")
        for note in engine.notes
    )
    assert {state.reason for state in engine.graphs} == {"operation not permitted when stream is capturing"}
    engine.close()


def test_a_model_whose_file_changed_is_not_loaded_instead(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Without graphs the model is loaded again, and that must be the same one."""
    path = folder / "m.onnx"
    path.write_bytes(models.squares())
    engine = models.with_graphs(monkeypatch, path, graph=True)
    check(engine, rows(2))
    path.write_bytes(models.mixed())
    monkeypatch.setattr(Bound, "replay", _raise)
    with pytest.raises(halfconv.EnvironmentProblem, match=r"m\.onnx' changed since it was loaded"):
        engine.run(Request({"x": rows(2)}))


def _raise(*_: object) -> Any:
    raise RuntimeError("operation not permitted\n when stream is capturing")


def test_graphs_run_on_one_thread_whoever_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), buckets=[4])
    seen: list[int] = []
    launch = Bound.launch

    def watched(self: Bound, *rest: Any) -> Any:
        seen.append(threading.get_ident())
        return launch(self, *rest)

    monkeypatch.setattr(Bound, "launch", watched)
    for _ in range(3):
        check(engine, rows(3))
    assert set(seen) == {threading.get_ident()}
    seen.clear()
    workers = [threading.Thread(target=lambda: [check(engine, rows(n)) for n in (1, 2, 3, 4)]) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    check(engine, rows(3))
    assert len(seen) == 33 and len(set(seen)) == 1 and seen[0] != threading.get_ident()
    engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("halfconv-cuda")]


def test_16_threads_share_the_buffers() -> None:
    engine = models.on_host(models.squares(), buckets=[2, 4, 8], cache=2)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(60):
                x = random.standard_normal((random.integers(1, 12), 4)).astype(np.float32)
                half = x.astype(np.float16)
                found = engine.run(Request({"x": x}))
                np.testing.assert_array_equal(found["y"], half * half)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    check(engine, rows(1))
    assert len(engine.graphs) <= 2


# Routes: what requests take that have been there before


def arrays(kind: str, count: int, width: int) -> np.ndarray[Any, Any]:
    """Return rows of a layout: as the model wants them, every second column, or in Fortran's order."""
    wide = RANDOM.standard_normal((count, 2 * width))
    if kind == "strided":
        return wide[:, ::2]
    return np.asfortranarray(wide[:, :width]) if kind == "fortran" else np.ascontiguousarray(wide[:, :width])


@pytest.mark.parametrize("width", [4, 40_000])  # small arrays are staged, large ones are copied from and to the caller's memory
@pytest.mark.parametrize("output", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_request_that_was_there_before_gets_the_same(
    monkeypatch: pytest.MonkeyPatch, width: int, output: str | None, graphs: bool
) -> None:
    text = f"g (float16[n, {width}] x, float16[n, {width}] z) => (float16[n, {width}] y, float16[n] s) <int64[1] ax = {{1}}> {{\n"
    source = models.model(text + "y = Add(x, z)\n s = ReduceMax<keepdims = 0>(y, ax) }", 18)
    slow = Engine(source, Profile(), Settings(Wishes(("cpu",)), output=output))
    make = functools.partial(models.with_graphs, monkeypatch, graph=True) if graphs else models.on_host
    fast = make(source, output=output)
    assert slow._device is None and fast._device is not None
    kept = []
    for kind in ("plain", "strided", "fortran"):
        for element in (np.float16, np.float32, np.float64):
            for names in (None, ["s"], ["s", "y"]):
                for _ in range(4):
                    feeds = {"x": arrays(kind, 3, width).astype(element), "z": arrays(kind, 3, width).astype(np.float16)}
                    found = fast.again(feeds, names)
                    kept.append((found or fast.run(Request(feeds, names)), slow.run(Request(feeds, names))))
                assert (found is not None) == (graphs or names != ["s"])  # a graph makes all outputs anyway
    for have, want in kept:  # nothing was written over
        assert list(have) == list(want)
        for name, value in want.items():
            assert have[name].dtype == value.dtype
            np.testing.assert_array_equal(have[name].view(np.uint8), np.ascontiguousarray(value).view(np.uint8))
    fast.close()
    slow.close()


def test_a_route_refuses_what_does_not_fit_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True)
    for _ in range(3):
        check(engine, rows(3))
    (way,) = engine._ways.values()
    assert way.route is not None
    with pytest.raises(halfconv.InputError, match="finite numbers beyond float16"):
        engine.again({"x": np.full((3, 4), 1e6, np.float32)}, None)
    x = rows(3)
    found = engine.again({"x": x}, None)
    assert found is not None and (found["y"] == x.astype(np.float16) ** 2).all()
    engine.close()


@pytest.mark.parametrize("declared", ["m", "n"])  # with "n", the model says what is not so
def test_outputs_of_other_shapes_than_the_model_says(declared: str) -> None:
    text = f"g (float[n] x) => (float[{declared}] y) <float zero = {{0}}> {{ c = Greater(x, zero) y = Compress<axis = 0>(x, c) }}"
    engine = models.on_host(models.model(text))
    for count in (3, 3, 3, 3, 3, 2, 3, 3):
        x = np.array([1.0, 2.0, 3.0], np.float32) if count == 3 else np.array([-1.0, 2.0, 3.0], np.float32)
        found = engine.again({"x": x}, None) or engine.run(Request({"x": x}))
        assert found["y"].tolist() == x[x > 0].tolist()
    engine.close()


def test_a_route_waits_until_arrays_on_a_device_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.on_host(models.squares())
    for _ in range(3):
        check(engine, rows(3))
    (bound,) = engine._device._bounds.values()  # type: ignore[union-attr]
    bound._elsewhere.add("x")  # as after a run on memory of another library's
    assert engine.again({"x": rows(3)}, None) is None
    check(engine, rows(3))
    assert engine.again({"x": rows(3)}, None) is not None
    engine.close()


def test_padded_batches_take_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), buckets=[4])
    for count in (3, 4, 3, 4, 3, 4):
        check(engine, rows(count))
    routes = {signature[3]: way.route is not None for signature, way in engine._ways.items()}
    assert routes == {(3, 4): False, (4, 4): True}
    engine.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_an_output_that_is_an_input_is_returned(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """ONNX Runtime does not write it into a buffer that is bound to the output."""
    source = models.model("g (float[n] x) => (float[n] x, float[n] y) { y = Neg(x) }")
    engine = models.with_graphs(monkeypatch, source, graph=True) if graphs else models.on_host(source)
    for value in range(1, 7):
        x = np.full(3, value, np.float32)
        found = engine.again({"x": x}, None) or engine.run(Request({"x": x}))
        assert found["x"].tolist() == [value] * 3 and found["y"].tolist() == [-value] * 3
    with pytest.raises(halfconv.UsageError, match=r"output 'x' is an input, too.*try: run\(\)"):
        engine.bind({"x": x})
    engine.close()


def test_shapes_that_lose_their_buffers_find_a_route_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.on_host(models.squares(), cache=2)
    for _ in range(2):
        for _ in range(4):
            check(engine, rows(3))
        assert engine.again({"x": rows(3)}, None) is not None
        for count in (4, 5, 6):
            check(engine, rows(count))
    hot = rows(3)
    for _ in range(3):
        check(engine, rows(3))
    for count in (7, 8, 9, 10):  # a shape that is in use stays
        assert engine.again({"x": hot}, None) is not None
        check(engine, rows(count))
    engine.close()


def test_routes_of_buffers_that_are_gone_hold_no_memory() -> None:
    engine = models.on_host(models.squares(), cache=2)
    for count in range(1, 20):
        for _ in range(4):
            check(engine, rows(count))
    gone = [way.route for way in engine._ways.values() if way.route is not None and way.route.bound.closed]
    assert gone and not any(route._moves or route._small or route._large for route in gone)
    engine.close()


def test_outputs_that_are_no_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True)
    for wrong in (5, [["y"]], ["y", 3]):
        assert engine.again({"x": rows(3)}, wrong) is None  # type: ignore[arg-type]
        with pytest.raises(halfconv.InputError, match=r"outputs is a int|the model has no output"):
            engine.run(Request({"x": rows(3)}, wrong))  # type: ignore[arg-type]
    assert list(engine.run(Request({"x": rows(3)}, ["y", "y"]))) == ["y"]
    engine.close()


def test_buffers_that_callers_fill_end_with_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.with_graphs(monkeypatch, models.squares(), graph=True)
    bound = engine.bind({"x": rows(3).astype(np.float16)})
    engine.run_bound(bound, None)
    assert engine._device is not None
    engine._device._give_up("a capture failed")
    with pytest.raises(
        halfconv.UsageError, match=r"these buffers ended with the CUDA graphs: a capture failed; try: bind\(\) anew"
    ):
        engine.run_bound(bound, None)
    check(engine, rows(3))
    engine.unbind(bound)
    engine.close()


def test_routes_that_others_drop_do_not_break_a_run() -> None:
    """Many threads share a signature whose outputs have changing shapes, so that its route comes and goes."""
    text = "g (float[n] x) => (float[m] y) <float zero = {0}> { c = Greater(x, zero) y = Compress<axis = 0>(x, c) }"
    engine = models.on_host(models.model(text))

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(60):
            x = random.choice(np.array([-1, 1], np.float32), 3) * np.arange(1, 4, dtype=np.float32)
            found = engine.again({"x": x}, None) or engine.run(Request({"x": x}))
            assert found["y"].tolist() == x[x > 0].tolist()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    engine.close()
