"""A session's creation, placement, lifetime, and what it tells."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import halfconv
from halfconv.errors import EnvironmentProblem
from halfconv.runtime import loading
from halfconv.runtime.hooks import RunRecord
from halfconv.runtime.providers import Problem
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)

no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")


def test_three_lines(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(models.squares())
    session = halfconv.Session(folder / "m.onnx")
    outputs = session.run({"x": X})
    np.testing.assert_array_equal(outputs["y"], (X * X).astype(np.float16))
    assert list(outputs) == ["y", "s"]
    assert list(session.run({"x": X}, ["s"])) == ["s"] == list(session.run({"x": X}, "s"))
    assert session.inputs == {"x": "float16[n, 4]"} and session.outputs == {"y": "float16[n, 4]", "s": "float16[n]"}


def test_the_path_may_be_relative_and_a_string(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m.onnx").write_bytes(models.squares())
    monkeypatch.chdir(folder)
    assert halfconv.Session("m.onnx").provider in ("cpu", "cuda")


def test_placement_is_data() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    before = session.placement
    assert (before.measured, before.memcpy, before.casts, before.cuda) == (False, None, None, False)
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert before.nodes == {"CPUExecutionProvider": 2} and before.on_cpu == {"Mul": 1, "ReduceSum": 1}
    session.run({"x": X})
    after = session.placement
    assert (after.measured, after.memcpy, after.cuda) == (True, 0, False)
    assert after.casts and after.on_cpu["Cast"] == after.casts  # the CPU provider has no FP16 kernels
    assert after.providers == ("CPUExecutionProvider",)
    assert set(after.to_dict()) == {"providers", "cuda", "nodes", "on_cpu", "memcpy", "casts", "measured"}
    assert halfconv.Session(models.squares("float"), provider="cpu").run({"x": X})


def test_the_first_run_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with halfconv.Session(models.squares(), provider="cpu") as session:
        session.run({"x": X})
        assert list(folder.iterdir()) == []
    with halfconv.Session(models.squares(), provider="cpu"):
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []
    with pytest.raises(halfconv.InputError):
        halfconv.Session(b"none", provider="cpu")
    assert list(folder.iterdir()) == []


def test_without_a_temporary_folder_the_placement_is_the_assigned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    session = halfconv.Session(models.squares(), provider="cpu")
    session.run({"x": X})
    assert not session.placement.measured
    assert any("no temporary folder (Read-only file system)" in note for note in session.notes)


@no_cuda
def test_cuda_that_is_not_there_is_an_error_with_a_remedy() -> None:
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(EnvironmentProblem, match=rf"{provider} cannot be used: .*has no .*; try: .*onnxruntime-gpu"):
            halfconv.Session(models.squares(), provider=provider)


@no_cuda
def test_auto_says_why_it_is_not_cuda() -> None:
    session = halfconv.Session(models.squares())
    assert session.provider == "cpu"
    assert any(note.startswith("cuda cannot be used: ") for note in session.notes)


def test_cuda_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `get_available_providers` lists may still be missing in the session: a library that CUDA needs, say."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("noise"), raising=False)
    made = loading._session
    from halfconv.runtime import providers

    monkeypatch.setattr(providers, "problems", lambda provider: [])
    cpu = ("CPUExecutionProvider",)
    monkeypatch.setattr(loading, "_session", lambda ort, source, wishes, names, *rest: made(ort, source, wishes, cpu, *rest))
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(EnvironmentProblem, match=r"did not load CUDAExecutionProvider, only CPUExec"):
        halfconv.Session(models.squares(), provider="cuda")
    assert printed.getvalue() == ""
    assert halfconv.Session(models.squares()).provider == "cpu"
    monkeypatch.setattr(providers, "problems", lambda provider: [Problem(f"{provider} needs cuDNN 9", "install it")])
    with pytest.raises(EnvironmentProblem, match="cuda cannot be used: cuda needs cuDNN 9; try: install it"):
        halfconv.Session(models.squares(), provider="cuda")


def test_a_level_that_fails_is_left_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loading._session

    def failing(ort: Any, source: Any, wishes: loading.Wishes, *rest: Any) -> Any:
        if wishes.level in ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED"):
            raise RuntimeError("LayerNormFusion")
        return made(ort, source, wishes, *rest)

    monkeypatch.setattr(loading, "_session", failing)
    session = halfconv.Session(models.squares(), provider="cpu")
    assert any("loaded at ORT_ENABLE_BASIC: at ORT_ENABLE_ALL ONNX Runtime failed: LayerNormFusion" in n for n in session.notes)


def test_options_that_this_runtime_does_not_know_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loading._session

    def failing(ort: Any, source: Any, wishes: loading.Wishes, *rest: Any) -> Any:
        if wishes.options:
            raise RuntimeError('Unknown provider option: "sdpa_kernel".')
        return made(ort, source, wishes, *rest)

    monkeypatch.setattr(loading, "_session", failing)
    loaded = loading.load(models.squares(), loading.Wishes(("cpu",), options={"CUDAExecutionProvider": {"sdpa_kernel": "1"}}))
    assert loaded.notes == [
        'the profile\'s provider options are left out, as this ONNX Runtime refuses them: Unknown provider option: "sdpa_kernel".'
    ]


@pytest.mark.parametrize(("text", "kind", "message"), [
    ("This session cannot use the graph capture feature", None, "no CUDA graphs: This session cannot use the graph capture"),
    ("CUDA failure 101: invalid device ordinal", EnvironmentProblem, "cannot use the device: CUDA failure 101.*another device_id"),
    ("graph nodes are assigned to the CPU EP, but fallback to CPU EP has been explicitly disabled by the user.", EnvironmentProblem,
     "nodes of the model would run on the CPU"),
    ("out of luck", EnvironmentProblem, "CUDAExecutionProvider cannot load the model: out of luck"),
])  # fmt: skip
def test_failures_on_cuda_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception] | None, message: str
) -> None:
    monkeypatch.setattr("halfconv.runtime.providers.problems", lambda _: [])
    made = loading._session

    def failing(ort: Any, source: Any, wishes: loading.Wishes, names: Any, *rest: Any) -> Any:
        if wishes.graph:
            raise RuntimeError(text)
        return made(ort, source, wishes, ("CPUExecutionProvider",), *rest)

    monkeypatch.setattr(loading, "_session", failing)
    wishes = loading.Wishes(("cuda",), graph=True)
    notes: list[str] = []
    names = ("CUDAExecutionProvider", "CPUExecutionProvider")
    if kind is None:
        _, graph = loading._create(onnxruntime, models.squares(), wishes, names, notes, None)
        assert not graph and notes[0].startswith(message)
    else:
        with pytest.raises(kind, match=message):
            loading._create(onnxruntime, models.squares(), wishes, names, notes, None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "cannot load the model"), (b"123", "cannot be read"), ("none.onnx", "there is no model .*none.onnx"),
        (".", "there is no model"), (3, "the model is a int; try: a path"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_an_input_error(model: Any, message: str) -> None:
    with pytest.raises(halfconv.InputError, match=message):
        halfconv.Session(model, provider="cpu")


def test_a_bf16_model_on_the_cpu_says_that_there_is_no_kernel() -> None:
    source = models.model("g (bfloat16[2] x) => (bfloat16[2] y) { y = Softmax(x) }", 22)
    with pytest.raises(EnvironmentProblem, match="CPUExecutionProvider has no kernel for a node of the model"):
        halfconv.Session(source, provider="cpu")


@pytest.mark.parametrize("options", [
    {"provider": "gpu"}, {"device_id": -1}, {"memory_limit": 0}, {"threads": 0}, {"threads": 1.5}, {"cache": 0}, {"workers": True},
    {"buckets": [0]}, {"buckets": [2.0]}, {"buckets": 4}, {"buckets": ["4", 2]}, {"on_run": 3}, {"on_run": [print, 3]},
    {"cuda_graph": "no"}, {"strict": 1}, {"strict": True, "provider": "cpu"},
])  # fmt: skip
def test_wrong_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(halfconv.UsageError, match=rf"{next(iter(options))}="):
        halfconv.Session(models.squares(), **options)


@pytest.mark.parametrize("options", [{"memory_limit": 1}, {"cuda_graph": True}])
def test_what_only_a_gpu_has_is_noted_on_the_cpu(options: dict[str, Any]) -> None:
    notes = halfconv.Session(models.squares(), provider="cpu", **options).notes
    assert f"{next(iter(options))} is a GPU's, and has no effect on the CPU" in notes


def test_strict_leaves_auto_no_cpu_to_fall_back_to() -> None:
    with pytest.raises(EnvironmentProblem, match=r"^cuda cannot be used: .*; try: "):
        halfconv.Session(models.squares(), strict=True)


def test_threads_reach_the_runtime() -> None:
    session = halfconv.Session(models.squares(), provider="cpu", threads=1)
    assert session._engine.loaded.session.get_session_options().intra_op_num_threads == 1


def test_a_run_that_fails_is_an_environment_problem() -> None:
    source = models.model("g (float[n] x, int64[1] i) => (float[m] y) { y = Gather(x, i) }")
    session = halfconv.Session(source, provider="cpu")
    with pytest.raises(EnvironmentProblem, match=r"the run failed on cpu: .*out of.*bounds.*; try: inputs of other"):
        session.run({"x": [1.0, 2.0], "i": [5]})


def test_closing() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    with session:
        session.run({"x": X})
    session.close()
    for use in (lambda: session.run({"x": X}), lambda: session.run_async({"x": X}), session.warmup, lambda: session.swap(b"")):
        with pytest.raises(halfconv.UsageError, match="the session is closed; try: a new Session"):
            use()
    assert repr(session) == "<halfconv.Session on cpu, closed>"


def test_a_session_that_is_dropped_is_freed() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    session.run({"x": X}, timeout=60)
    session.run_async({"x": X}).result()
    seen = weakref.ref(session), weakref.ref(session._engine)
    del session
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_warmup() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    with pytest.raises(halfconv.UsageError, match=r"the model's shapes vary: 'x': float16\[n, 4\]; try: warmup\("):
        session.warmup()
    for wrong in (5, "x", [(3, 4)]):
        with pytest.raises(halfconv.UsageError, match=r"shapes=.*; try: warmup\("):
            session.warmup(wrong)  # type: ignore[arg-type]
    with pytest.raises(halfconv.InputError, match=r"the shape \[-1, 4\] of 'x' has a negative dimension; try: float16\[n, 4\]"):
        session.warmup({"x": (-1, 4)})
    session.warmup({"x": (3, 4)})
    session.warmup([{"x": (1, 4)}, {"x": X}])
    assert session.placement.measured
    fixed = models.model("g (float[2] x, string[2] t, int64[1] i) => (float[2] y) { y = Identity(x) }")
    halfconv.Session(fixed, provider="cpu").warmup()
    halfconv.Session(models.squares(), provider="cpu", buckets=[1, 2]).warmup()


def test_hooks() -> None:
    seen: list[RunRecord] = []
    session = halfconv.Session(models.squares(), provider="cpu", buckets=[4], on_run=seen.append)
    session.run({"x": X})
    with pytest.raises(halfconv.InputError):
        session.run({"x": X[:, :2]})
    session.run_async({"x": np.ones((9, 4))}).result()
    good, bad, other = seen
    assert (good.batch, good.bucket, good.provider, good.graph, good.error) == (2, 4, "cpu", False, None)
    assert 0 < good.seconds < 10
    assert (bad.error, bad.bucket) == ("InputError", None)
    assert (other.batch, other.bucket) == (9, None)
    assert good.to_dict()["batch"] == 2


def test_a_hook_that_fails_is_a_note_and_not_the_runs_end() -> None:
    def broken(record: RunRecord) -> None:
        raise ValueError("no disk")

    seen: list[RunRecord] = []
    session = halfconv.Session(models.squares(), provider="cpu", on_run=[broken, seen.append])
    for _ in range(3):
        session.run({"x": X})
    assert len(seen) == 3
    assert [note for note in session.notes if "hook" in note] == ["the hook 'broken' failed: ValueError: no disk"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_child_is_told_and_ends() -> None:
    """A child has none of ONNX Runtime's threads: a run there, or the session's end, would wait for them for ever.

    It ends by `os._exit`, as multiprocessing's children do: the common exit waits for threads that the import of ONNX Runtime 1.32
    starts.
    """
    code = f"""
import os, sys, gc, warnings, numpy as np, halfconv
warnings.simplefilter("ignore")
session = halfconv.Session({models.squares()!r}, provider="cpu", threads=2)
session.run({{"x": np.ones((2, 4))}})
session.run_async({{"x": np.ones((2, 4))}}).result()
child = os.fork()
if child == 0:
    try:
        session.run({{"x": np.ones((2, 4))}})
    except halfconv.EnvironmentProblem as problem:
        print(problem, flush=True)
    session.close()
    del session
    gc.collect()
    own = halfconv.Session({models.squares()!r}, provider="cpu", threads=1)
    print(own.run({{"x": np.ones((1, 4))}})["s"], flush=True)
    own.close()
    os._exit(0)
print(os.waitpid(child, 0)[1], session.run({{"x": np.ones((1, 4))}})["s"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told, child, parent = done.stdout.splitlines()
    assert "made in another process, of which this one is a fork, without its threads; try: make a session in each process" in told
    assert (child, parent) == ("[4.]", "0 [4.]")


def test_starting_costs_little_beside_onnx_runtime(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(models.squares())
    code = f"""
import time, numpy, onnxruntime
begun = time.perf_counter()
onnxruntime.InferenceSession({str(folder / "m.onnx")!r}, providers=["CPUExecutionProvider"])
middle = time.perf_counter()
import halfconv
session = halfconv.Session({str(folder / "m.onnx")!r}, provider="cpu")
print(time.perf_counter() - middle - (middle - begun))
"""
    best = 9.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        best = min(best, float(done.stdout))
        time.sleep(0.1)
    assert best < 0.3
