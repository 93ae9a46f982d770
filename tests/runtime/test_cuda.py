"""The session on a GPU: what the CPU cannot show."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfconv
from tests.runtime import models

pytestmark = pytest.mark.gpu


def _cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/dev/nvidiactl").exists()


needs_cuda = pytest.mark.skipif(not _cuda(), reason="needs a CUDA device and onnxruntime-gpu")
RANDOM = np.random.default_rng(0)


def rows(count: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal((count, 4)).astype(np.float32)


def wanted(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    half = x.astype(np.float16)
    return half * half


@needs_cuda
def test_cuda_is_proven() -> None:
    session = halfconv.Session(models.squares(), provider="cuda")
    assert session.provider == "cuda" and session.placement.cuda
    session.run({"x": rows(2)})
    assert session.placement.measured and session.placement.memcpy == 0 and session.placement.casts == 0
    assert session.placement.nodes["CUDAExecutionProvider"] == 2
    assert halfconv.Session(models.squares()).provider == "cuda"


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_results_are_those_of_numpy_at_every_shape(graph: bool) -> None:
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[2, 4, 8], cuda_graph=graph)
    for count in (2, 3, 1, 8, 4, 9, 10, 7, 2, 3, 9):
        x = rows(count)
        np.testing.assert_array_equal(session.run({"x": x})["y"], wanted(x))
    assert any(state.captured for state in session.graphs) is graph, (session.graphs, session.notes)
    session.close()


@needs_cuda
def test_a_graph_is_replayed_by_any_thread() -> None:
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[8])
    inputs = [rows(n) for n in (1, 3, 5, 8) * 40]
    session.warmup({"x": (8, 4)})
    with ThreadPoolExecutor(16) as pool:
        for x, found in zip(inputs, pool.map(lambda x: session.run({"x": x}), inputs), strict=True):
            np.testing.assert_array_equal(found["y"], wanted(x))
    assert all(state.captured for state in session.graphs), session.notes
    session.close()


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_large_results_stay_as_they_are_whatever_runs_or_ends_after(graph: bool) -> None:
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[20_000], cuda_graph=graph)
    inputs = [rows(20_000) for _ in range(300)]
    held = []
    for index, x in enumerate(inputs):
        y = session.run({"x": x})["y"]
        np.testing.assert_array_equal(y, wanted(x))
        if index % 2:
            held.append((x, y[::7]))
    session.close()
    for x, y in held:
        np.testing.assert_array_equal(y, wanted(x)[::7])
    other = halfconv.Session(models.squares(), provider="cuda", buckets=[20_000], cuda_graph=graph)
    clearing = threading.Thread(target=held.clear)
    clearing.start()
    np.testing.assert_array_equal(other.run({"x": inputs[0]})["y"], wanted(inputs[0]))
    clearing.join()
    other.close()


_FORK = """
import os, sys
import numpy as np
import halfconv
from tests.runtime import models
session = halfconv.Session(models.squares(), provider="cuda", buckets=[20_000])
x = np.full((20_000, 4), 3, np.float32)
results = [session.run({"x": x})["y"] for _ in range(6)]
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.read(reading, 1)
    os._exit(0 if all((y == 9).all() for y in results) else 1)
for y in results:
    y[:] = 0
del y
results.clear()
right = all((session.run({"x": x + 1})["y"] == 16).all() for _ in range(6))
os.write(writing, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (0 if right else 2))
"""


@needs_cuda
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_reads_the_results_that_it_inherits_and_the_parent_goes_on() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK], timeout=300, check=False)
    assert done.returncode == 0


@needs_cuda
def test_a_copy_that_torch_has_begun_is_whole_although_its_source_was_let_go() -> None:
    torch = pytest.importorskip("torch")
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[200_000])
    inputs = [rows(200_000) for _ in range(8)]
    for x in inputs[:3]:
        session.run({"x": x})
    busy = torch.randn(4096, 4096, device="cuda")
    copies = []
    for x in inputs:
        for _ in range(20):
            busy = (busy @ busy).tanh()  # what comes after on torch's stream waits
        copies.append(torch.from_numpy(session.run({"x": x})["y"]).to("cuda", non_blocking=True))
    for x, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(copy.cpu().numpy(), wanted(x))
    session.close()


@needs_cuda
def test_what_cannot_be_captured_runs_without_a_graph_and_says_so() -> None:
    text = "g (float[n, 4] x) => (int64[2, m] y) { y = NonZero(x) }"
    session = halfconv.Session(models.model(text), provider="cuda", cuda_graph=True)
    for _ in range(3):
        x = rows(3)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.stack(np.nonzero(x)))
    assert any(note.startswith("no CUDA graphs: ") for note in session.notes)
    assert not any(state.captured for state in session.graphs)
    assert all(state.reason for state in session.graphs)


@needs_cuda
def test_nodes_on_the_cpu_are_counted_or_refused() -> None:
    text = (
        'g (string[n] x, float[n] t) => (float[n] y) <string[1] to = {"a"}> { c = Equal(x, to) f = Cast<to = 1>(c) y = Mul(f, t) }'
    )
    source = models.model(text, 19)
    session = halfconv.Session(source, provider="cuda")
    found = session.run({"x": ["a", "b"], "t": np.ones(2, np.float32)})
    assert found["y"].tolist() == [1.0, 0.0]
    assert session.placement.on_cpu.get("Equal") == 1 and session.placement.memcpy
    with pytest.raises(halfconv.EnvironmentProblem, match="nodes of the model would run on the CPU"):
        halfconv.Session(source, provider="cuda", strict=True)


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_torch_tensors_stay_on_the_gpu(graph: bool) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    session = halfconv.Session(models.squares(), provider="cuda", cuda_graph=graph)
    kept = []
    for count in (4, 4, 4, 2, 4):
        for kind in (torch.float16, torch.float32, torch.bfloat16):
            x = torch.randn(count, 4, device="cuda").to(kind)
            y = session.run({"x": x}, to="torch")["y"]
            assert y.is_cuda and y.dtype == torch.float16
            kept.append((y, x.to(torch.float16) ** 2))
        x = torch.randn(4, count, device="cuda", dtype=torch.float16).t()
        kept.append((session.run({"x": x}, to="torch")["y"], x**2))
    for have, want in kept:
        torch.testing.assert_close(have, want, rtol=0, atol=0)
    host = session.run({"x": torch.ones(3, 4, device="cuda")})["y"]
    assert isinstance(host, np.ndarray) and host.tolist() == [[1.0] * 4] * 3


@needs_cuda
@pytest.mark.parametrize("graph", [False, True])
def test_cupy_arrays_stay_on_the_gpu(graph: bool) -> None:
    cupy = pytest.importorskip("cupy")
    session = halfconv.Session(models.squares(), provider="cuda", cuda_graph=graph)
    for count in (4, 4, 4, 2, 4):
        for kind in (np.float16, np.float32):
            x = cupy.asarray(rows(count)).astype(kind)
            y = session.run({"x": x}, to="cupy")["y"]
            assert isinstance(y, cupy.ndarray) and y.dtype == np.float16
            np.testing.assert_array_equal(y.get(), wanted(x.get()))
    assert session.run({"x": cupy.ones((3, 4))})["y"].tolist() == [[1.0] * 4] * 3


@needs_cuda
@pytest.mark.parametrize("graph", [None, False])
def test_buffers_that_torch_fills(graph: bool | None) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[8], cuda_graph=graph)
    with session.bind({"x": (8, 4)}) as buffers:
        assert buffers.graph is (graph is None), session.notes
        x, y = torch.from_dlpack(buffers.inputs["x"]), torch.from_dlpack(buffers.outputs["y"])
        assert x.is_cuda and y.is_cuda
        for value in (1.0, 2.0, 3.0):
            x.fill_(value)
            buffers.run()
            assert y.cpu().tolist() == [[value * value] * 4] * 8
            np.testing.assert_array_equal(session.run({"x": np.full((5, 4), 7.0)})["y"], np.full((5, 4), 49.0))
        worker = threading.Thread(target=lambda: buffers.run(timeout=60))
        x.fill_(5.0)
        worker.start()
        worker.join()
        assert y.cpu()[0, 0] == 25
        del x, y
    session.close()


@needs_cuda
def test_bf16_end_to_end() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    source = models.model("g (bfloat16[n, 4] x) => (bfloat16[n, 4] y) { y = Mul(x, x) }", 22)
    for graph in (False, True):
        session = halfconv.Session(source, provider="cuda", cuda_graph=graph)
        for _ in range(3):
            x = rows(3).astype(ml_dtypes.bfloat16)
            y = session.run({"x": x})["y"]
            assert y.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(y, x * x)
        if "torch" in sys.modules:
            import torch

            t = torch.full((2, 4), 1.5, dtype=torch.bfloat16, device="cuda")
            assert session.run({"x": t}, to="torch")["y"].tolist() == [[2.25] * 4] * 2


@needs_cuda
def test_a_swap_on_the_gpu_drops_no_request() -> None:
    session = halfconv.Session(models.squares(), provider="cuda", buckets=[4])
    session.warmup({"x": (4, 4)})
    stop, errors = threading.Event(), []

    def work() -> None:
        random = np.random.default_rng()
        while not stop.is_set():
            x = random.standard_normal((3, 4)).astype(np.float32)
            try:
                np.testing.assert_array_equal(session.run({"x": x})["y"], wanted(x))
            except BaseException as error:
                errors.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        session.swap(models.squares())
    stop.set()
    for worker in workers:
        worker.join()
    assert not errors
    for _ in range(3):  # the threads may have ended before the last model had its turn
        session.run({"x": rows(3)})
    assert any(state.captured for state in session.graphs), session.notes
    session.close()


@needs_cuda
def test_memory_limit_and_a_device_that_is_not_there() -> None:
    session = halfconv.Session(models.squares(), provider="cuda", memory_limit=64 << 20)
    options = session._engine.loaded.session.get_provider_options()["CUDAExecutionProvider"]
    assert options["gpu_mem_limit"] == str(64 << 20) and options["device_id"] == "0"
    with pytest.raises(halfconv.EnvironmentProblem, match="the run failed on cuda"):
        session.run({"x": np.zeros((16 << 20, 4), np.float16)})
    with pytest.raises(halfconv.EnvironmentProblem):
        halfconv.Session(models.squares(), provider="cuda", device_id=63)


@needs_cuda
def test_sessions_come_and_go() -> None:
    for _ in range(20):
        with halfconv.Session(models.squares(), provider="cuda", buckets=[4]) as session:
            for _ in range(3):
                session.run({"x": rows(3)})
    gc.collect()
