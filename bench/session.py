"""What a session costs and stands: against ONNX Runtime's plain call and hand-written binding loops, and under 16 threads.

Two steps, because the machine with the GPU may have no onnx:

    python bench/session.py prepare DIR                              writes small models, half inside and FP32 at the edge
    python bench/session.py run JSON CASE… [--provider cuda] [--quick]

A case is ``MODEL.onnx@BATCHES[:NAME=SIZE,…]``, with the sizes of dimensions that vary: ``bert.onnx@1,32:sequence=128``. Each
model's first case is also run by 16 threads.

`run` needs onnxruntime, numpy and halfconv/runtime only; with torch it also measures tensors that stay on the GPU. All contenders
get the same arrays, have the same options, and are timed in turns, call by call. It ends with 1 if outputs differ.

| who | is |
|---|---|
| ``halfconv`` | `Session.run` with a bucket of the batch, and a CUDA graph on a GPU |
| ``halfconv-plain`` | the same without bucket and graph |
| ``halfconv-torch`` | with a graph, torch tensors on the GPU in and out, until the results are there |
| ``halfconv-torch-plain`` | torch tensors that the model reads and writes where they are, without a graph |
| ``halfconv-bind`` | `Session.bind`: a graph on buffers that the caller fills; no copy |
| ``session-run`` | ``InferenceSession.run`` |
| ``binding-loop`` | fixed buffers, ``update_inplace``, ``run_with_iobinding``, ``numpy()`` |
| ``binding-loop+graph`` | the same with a CUDA graph |
| ``binding-device+graph`` | a graph on fixed buffers, without any copy: the least there is |
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Call = Callable[[], dict[str, Any]]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
THREADS = 16
#: Batch sizes of the session that they share.
BUCKETS = (4, 16)
#: Drift (rel_l2) between a request alone and in a batch.
TOLERANCE = 1e-2


# Models


def prepare(folder: Path) -> None:
    """Write three small models: one that is all overhead, one of products, one of convolutions."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 2 else shape[0] ** -0.5
        return onnx.numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float16), name)

    def save(name: str, dims: list[int], nodes: list[onnx.NodeProto], last: str, weights: list[onnx.TensorProto]) -> None:
        nodes = [
            onnx.helper.make_node("Cast", ["x"], ["h"], to=10), *nodes, onnx.helper.make_node("Cast", [last], ["y"], to=1)
        ]  # fmt: skip
        side = [
            onnx.helper.make_tensor_value_info(value, 1, ["batch", *shape])
            for value, shape in (("x", dims), ("y", [None] * len(dims)))
        ]
        graph = onnx.helper.make_graph(nodes, name, side[:1], side[1:], weights)
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, folder / f"{name}.onnx")

    node = onnx.helper.make_node
    save("tiny", [64], [node("Mul", ["h", "h"], ["a"]), node("Sigmoid", ["a"], ["b"])], "b", [])
    nodes, weights, last = [], [], "h"
    for index in range(8):
        weights.append(weight(f"w{index}", 1024, 1024))
        nodes += [node("MatMul", [last, f"w{index}"], [f"m{index}"]), node("Relu", [f"m{index}"], [f"r{index}"])]
        last = f"r{index}"
    save("products", [1024], nodes, last, weights)
    nodes, weights, last, channels = [], [], "h", 3
    for index, (out, stride) in enumerate([(32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)]):
        weights.append(weight(f"k{index}", out, channels, 3, 3))
        nodes += [
            node("Conv", [last, f"k{index}"], [f"c{index}"], pads=[1] * 4, strides=[stride] * 2, kernel_shape=[3, 3]),
            node("Relu", [f"c{index}"], [f"v{index}"]),
        ]
        last, channels = f"v{index}", out
    save("convolutions", [3, 224, 224], nodes, last, weights)
    print(*sorted(path.name for path in folder.glob("*.onnx")))


def made_up(session: Any, batch: int, dims: Mapping[str, int]) -> Feeds:
    """Return inputs of a batch size: floats around zero, integers 0 to 99."""
    random = np.random.default_rng(batch)
    kinds = {
        "float": np.float32,
        "double": np.float64,
        "float16": np.float16,
        "int64": np.int64,
        "int32": np.int32,
        "bool": np.bool_,
    }
    feeds: Feeds = {}
    for value in session.get_inputs():
        shape = [
            dim if isinstance(dim, int) else dims.get(dim or "", batch if index == 0 else 0)
            for index, dim in enumerate(value.shape)
        ]
        if 0 in shape:
            raise SystemExit(f"{value.name}: {value.shape}: give its dimensions by --dim NAME=SIZE")
        kind = kinds[value.type[len("tensor(") : -1]]
        made = random.integers(0, 100, shape) if np.dtype(kind).kind in "ib" else random.standard_normal(shape)
        feeds[value.name] = made.astype(kind)
    return feeds


# Contenders


def plain_session(
    model: Path, provider: str, graph: bool, more: Mapping[str, str] | None = None, level: str = "ORT_ENABLE_ALL", *,
    kernels: bool = False,
) -> Any:  # fmt: skip
    """Return ONNX Runtime's session, with the options that a halfconv session has, and more of the provider's.

    Args:
        model: The model.
        provider: ``cpu`` or ``cuda``.
        graph: Whether it captures a CUDA graph.
        more: More options of the provider.
        level: Optimisation level.
        kernels: Whether halfconv's library of CUDA kernels is registered, if there is one.
    """
    import onnxruntime

    from halfconv.runtime.kernels import register

    if provider == "cuda":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if kernels and provider == "cuda" and (problem := register(options)):
        raise SystemExit(problem)
    cuda = (CUDA, {"device_id": "0", **(more or {}), **({"enable_cuda_graph": "1"} if graph else {})})
    made = onnxruntime.InferenceSession(
        str(model), options, providers=[cuda, (CPU, {})] if provider == "cuda" else [(CPU, {})], enable_fallback=0
    )
    if provider == "cuda" and made.get_providers()[0] != CUDA:
        raise SystemExit("CUDA was not used")
    return made


def binding_loop(model: Path, provider: str, feeds: Feeds, graph: bool, copies: bool) -> Call:
    """Return what people write by hand: fixed buffers on the device."""
    import onnxruntime

    session = plain_session(model, provider, graph)
    names = [output.name for output in session.get_outputs()]
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, provider, 0) for name, array in feeds.items()}
    first = dict(zip(names, plain_session(model, provider, False).run(names, feeds), strict=True))
    results = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, provider, 0) for name, array in first.items()}
    binding = session.io_binding()
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in results.items():
        binding.bind_ortvalue_output(name, value)

    def call() -> dict[str, Any]:
        if copies:
            for name, array in feeds.items():
                given[name].update_inplace(array)
        session.run_with_iobinding(binding)
        return {name: value.numpy() for name, value in results.items()} if copies else {}

    return call


def contenders(model: Path, provider: str, batch: int, feeds: Feeds) -> dict[str, Call]:
    """Return the ways to run a model on these inputs, by name."""
    from halfconv.runtime.session import Session

    gpu = provider == "cuda"
    mine = Session(model, provider=provider, buckets=[batch], cuda_graph=gpu)
    plain = Session(model, provider=provider, cuda_graph=False)
    peer = plain_session(model, provider, False)
    names = [output.name for output in peer.get_outputs()]
    calls: dict[str, Call] = {
        "halfconv": lambda: mine.run(feeds),
        "halfconv-plain": lambda: plain.run(feeds),
        "session-run": lambda: dict(zip(names, peer.run(names, feeds), strict=True)),
        "binding-loop": binding_loop(model, provider, feeds, False, True),
    }
    if gpu:
        calls["binding-loop+graph"] = binding_loop(model, provider, feeds, True, True)
        calls["binding-device+graph"] = binding_loop(model, provider, feeds, True, False)
        try:
            import torch
        except ImportError:
            return calls
        if torch.cuda.is_available():
            tensors = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
            # A session that has handed out torch tensors waits for torch before each run; one for numpy need not.
            torchs = Session(model, provider=provider, buckets=[batch], cuda_graph=True)

            def awaited(session: Session) -> dict[str, Any]:
                """Run, and wait for the results: `run` itself may return before they are there."""
                results = session.run(tensors, to="torch")
                torch.cuda.current_stream().synchronize()
                return results

            calls["halfconv-torch"] = lambda: awaited(torchs)
            bound = mine.bind(feeds)
            calls["halfconv-bind"] = lambda: bound.run() and {}
            torch_plain = Session(model, provider=provider, cuda_graph=False)
            calls["halfconv-torch-plain"] = lambda: awaited(torch_plain)
    return calls


def measure(model: Path, provider: str, batch: int, dims: Mapping[str, int], rounds: int) -> list[dict[str, Any]]:
    """Time all contenders in turns, and compare what they give."""
    case = model.stem + "".join(f" {name}={size}" for name, size in dims.items())
    feeds = made_up(plain_session(model, "cpu", False), batch, dims)
    calls = contenders(model, provider, batch, feeds)
    found, rows = {}, []
    for who, call in calls.items():
        for _ in range(5):  # warm: buffers, algorithms, graphs
            result = call()
        found[who] = {name: np.asarray(getattr(value, "cpu", lambda value=value: value)()) for name, value in result.items()}
    times: dict[str, list[float]] = {who: [] for who in calls}
    order, random = list(calls.items()), np.random.default_rng(0)
    for _ in range(rounds):
        random.shuffle(order)  # a predecessor may leave the inputs in the CPU's cache
        for who, call in order:
            for _ in range(10):
                begun = time.perf_counter()
                call()
                times[who].append(time.perf_counter() - begun)
    for who, seconds in times.items():
        far = max(
            (float(np.abs(a.astype(np.float64) - found["session-run"][n]).max()) for n, a in found[who].items()), default=None
        )
        p50, p90 = np.percentile(np.array(seconds) * 1e3, [50, 90])
        rows.append({
            "case": case, "batch": batch, "who": who, "p50_ms": round(float(p50), 4), "p90_ms": round(float(p90), 4),
            "calls": len(seconds), "max_abs": far,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


# Stress


def device_mb() -> float | None:
    """Return the GPU memory in use, in MB; None without a GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout) * 1.048576
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def host_mb() -> float:
    """Return this process's resident memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def stress(model: Path, provider: str, dims: Mapping[str, int], seconds: float, runs: int) -> list[dict[str, Any]]:
    """Share one session among threads, with results bit-equal to serial runs; then see whether memory grows over many runs."""
    from halfconv.runtime.session import Session

    session = Session(model, provider=provider, buckets=BUCKETS, cuda_graph=provider == "cuda")
    probe = plain_session(model, "cpu", False)
    inputs = [made_up(probe, batch, dims) for batch in (1, 2, 3, 4, 7, 16)]
    alone = [session.run(feeds) for feeds in inputs for _ in range(3)][2::3]
    ended, wrong, errors, counts = time.monotonic() + seconds, [0] * THREADS, [""] * THREADS, [0] * THREADS

    def work(thread: int) -> None:
        try:
            while time.monotonic() < ended:
                index = (counts[thread] + thread) % len(inputs)
                found = session.run(inputs[index], timeout=60)
                wrong[thread] += any(not np.array_equal(found[name], value, equal_nan=True) for name, value in alone[index].items())
                counts[thread] += 1
        except Exception as error:
            errors[thread] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows: list[dict[str, Any]] = [{
        "case": f"{model.stem}: {THREADS} threads", "batch": None, "who": "halfconv", "seconds": seconds, "calls": sum(counts),
        "different": sum(wrong), "errors": [error for error in errors if error], "notes": list(session.notes),
        "graphs": [[dict(state.inputs), state.captured, state.reason] for state in session.graphs],
        "placement": session.placement.to_dict(),
    }]  # fmt: skip
    rows.append({"case": f"{model.stem}: pool", "batch": None, "who": "halfconv", **pooled(session, inputs, alone, seconds)})
    for index in range(runs // 5):
        session.run(inputs[index % len(inputs)])
    before = host_mb(), device_mb()
    for index in range(runs):
        session.run(inputs[index % len(inputs)])
    after = host_mb(), device_mb()
    device = None if before[1] is None or after[1] is None else round(after[1] - before[1], 2)
    rows.append({
        "case": f"{model.stem}: memory", "batch": None, "who": "halfconv", "calls": runs,
        "host_growth_mb": round(after[0] - before[0], 2), "device_growth_mb": device,
    })  # fmt: skip
    session.close()
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def everywhere(session: Any, feeds: Feeds, bucket: int) -> list[dict[str, Any]]:
    """Return the results of a request at each place in a batch of a bucket's size."""
    (count,) = {len(array) for array in feeds.values()}
    found = []
    for first in range(bucket - count + 1):
        full = {name: np.resize(array, (bucket, *array.shape[1:])) for name, array in feeds.items()}
        for name, array in feeds.items():
            full[name][first : first + count] = array
        found.append({name: value[first : first + count] for name, value in session.run(full).items()})
    return found


def pooled(session: Any, inputs: list[Feeds], alone: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Share a pool among threads.

    A request may run in a larger batch than alone: its result is near that of a serial run, and equal to the bit to one in the same
    bucket and place, as rounding may follow the place in memory. ``different`` counts those equal to none.
    """
    from halfconv.runtime.pool import Pool

    serial = [[result for bucket in BUCKETS for result in everywhere(session, feeds, bucket)] for feeds in inputs]
    ended, drifts, wrong = time.monotonic() + seconds, [0.0] * THREADS, [0] * THREADS
    errors, counts = [""] * THREADS, [0] * THREADS

    def same(found: Mapping[str, Array], index: int) -> bool:
        return any(all(np.array_equal(value, one[name], equal_nan=True) for name, value in found.items()) for one in serial[index])

    def work(thread: int) -> None:
        try:
            while time.monotonic() < ended:
                index = (counts[thread] + thread) % len(inputs)
                found = pool.run(inputs[index], timeout=60)
                wrong[thread] += not same(found, index)
                for name, value in found.items():
                    wanted = alone[index][name].astype(np.float64)
                    far = float(np.linalg.norm(value - wanted)) / (float(np.linalg.norm(wanted)) or 1.0)
                    drifts[thread] = max(drifts[thread], far)
                counts[thread] += 1
        except Exception as error:
            errors[thread] = f"{type(error).__name__}: {error}"

    with Pool(session, workers=2, max_batch=16) as pool:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = pool.stats
    far = [f"drift {drift:.3g}" for drift in drifts if drift > TOLERANCE]
    return {
        "seconds": seconds, "calls": sum(counts), "runs": stats.runs, "rows": stats.rows, "batching": stats.batching,
        "why_not": stats.why_not, "max_rel_l2": max(drifts), "different": sum(wrong),
        "errors": [error for error in (*errors, *far) if error],
    }  # fmt: skip


def card() -> str:
    """Return the GPU's name; "cpu" without one."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, IndexError, subprocess.SubprocessError):
        return "cpu"


def versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    import onnxruntime

    import halfconv

    found = {"halfconv": halfconv.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].__version__
    return found


def case_of(text: str) -> tuple[Path, list[int], dict[str, int]]:
    """Read a case: a model, its batch sizes, and the sizes of its dimensions."""
    model, _, rest = text.partition("@")
    batches, _, dims = (rest or "1").partition(":")
    sizes = (entry.partition("=") for entry in dims.split(",") if entry)
    return Path(model), [int(batch) for batch in batches.split(",")], {name: int(size) for name, _, size in sizes}


def run(options: argparse.Namespace) -> int:
    """Measure, write the result, and return the exit code."""
    from bench.machine import machine

    facts = {"card": card(), **machine()}
    rows: list[dict[str, Any]] = []
    for model, batches, dims in options.cases:
        for batch in batches:
            rows += measure(model, options.provider, batch, dims, 5 if options.quick else options.rounds)
            write(options.json, facts, rows)  # what is measured stays, if a machine is taken away
    stressed = {model: dims for model, _, dims in reversed(options.cases) if not options.stress or model.stem in options.stress}
    stressed = stressed if options.seconds else {}
    for model, dims in stressed.items():
        rows += stress(model, options.provider, dims, 2 if options.quick else options.seconds, 500 if options.quick else 10_000)
        write(options.json, facts, rows)
    return int(any(row.get("different") or row.get("errors") for row in rows))


def write(path: Path, facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the result so far."""
    content = {
        "schema_version": 1, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": facts,
        "versions": versions(), "command": "python bench/session.py " + " ".join(sys.argv[1:]), "rows": rows,
    }  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure halfconv.Session.")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("prepare").add_argument("folder", type=Path)
    measured = steps.add_parser("run")
    measured.add_argument("json", type=Path)
    measured.add_argument("cases", type=case_of, nargs="+", metavar="CASE")
    measured.add_argument("--provider", default="cuda", choices=("cpu", "cuda"))
    measured.add_argument("--seconds", type=float, default=20.0, help="of 16 threads, and of a pool; 0 for neither")
    measured.add_argument("--stress", nargs="*", metavar="NAME", help="models of the threads and the pool; default: all")
    measured.add_argument("--rounds", type=int, default=100, help="of 10 calls each")
    measured.add_argument("--quick", action="store_true", help="few calls, to try it")
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.folder)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
