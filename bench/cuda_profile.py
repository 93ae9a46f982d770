"""Where the time of halfconv's files goes on a GPU, and the least that the card allows: kernels, FLOPs, bytes, measured rates.

    python bench/cuda_profile.py DIR JSON [CASE…]     DIR as `bench/cuda.py prepare` left it; cases are its too

A row of the result is a case's file, in a plain session on buffers of the device, without a CUDA graph:

* ``kernels``: microseconds per call and launches per call of each kernel, the longest first, as CUPTI counts them (read through
  `torch.profiler`, which sees every kernel of the process); ``kernel_ms`` is their sum;
* ``groups``: the same, by what the kernel is for;
* ``gflop``: floating-point operations of the module, by `torch.utils.flop_counter`: two for each multiply-add of matrix products,
  convolutions and attention, nothing else;
* ``mb``: weights, inputs and outputs, each moved once;
* ``bound_ms``: the longer of both at the card's measured rates: no program can be faster that computes the same in this way.

The rates: a product of FP16 matrices of 8,192 x 8,192, and a copy of 1 GiB, which reads and writes each byte.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record
from bench.cuda import begin
from bench.cuda_contenders import BindingLoop
from bench.cuda_prepare import DEFAULT, KERNELS, Case, case_of

#: What a kernel is for, and what its name has then; the first that fits.
GROUPS = (
    ("attention", r"attention|sdpa|flash|fmha|bmm_softmax|softmax"),
    ("depthwise convolution", r"depthwise"),
    ("convolution", r"fprop|conv|implicit"),
    ("matrix product", r"gemm|cutlass|cublas|splitK|matmul|nvjet"),
    ("normalisation", r"layer_?norm|rms_?norm|batch_?norm"),
    ("pooling, reduction", r"pool|reduce"),
    ("layout", r"transpose|nchw|nhwc|permute|concat|split"),
    ("embedding", r"embed|gather"),
    ("copies", r"memcpy|memset"),
)
OTHER = "elementwise, other"
CALLS = 20
KEPT = 12


def rates(size: int = 8192, nbytes: int = 2**30, repeats: int = 20) -> dict[str, float]:
    """Measure the device: TFLOP/s of FP16 products of two matrices, and GB/s of a copy, both counted as read and written."""
    import torch

    left, right = (torch.randn(size, size, dtype=torch.float16, device="cuda") for _ in range(2))
    source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product = median_ms(lambda: torch.mm(left, right), repeats)
    copy = median_ms(lambda: target.copy_(source), repeats)
    return {"fp16_tflops": round(2 * size**3 / product / 1e9, 1), "copy_gb_s": round(2 * nbytes / copy / 1e6, 1)}


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median milliseconds of a call between events of the device."""
    import torch

    found = []
    for _ in range(3):
        call()
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last))
    return statistics.median(found)


def flops(case: Case) -> int:
    """Count a module's floating-point operations at a case's batch size; attention is written out, so that each product counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bench import gpu_models

    assert case.recipe is not None, "a model of the zoo has no module"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = gpu_models.module(case.key, "eager").to(device)
    given = [torch.from_numpy(array).to(device) for array in case.recipe.feeds(case.batch or 1, 0).values()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*given)
    return counter.get_total_flops()


def group_of(kernel: str) -> str:
    """Return what a kernel is for."""
    return next((group for group, pattern in GROUPS if re.search(pattern, kernel, re.IGNORECASE)), OTHER)


def short(kernel: str, length: int = 100) -> str:
    """Return a kernel's name without its return type, template arguments' namespaces and parameters."""
    name = re.sub(r"^void |\(anonymous namespace\)::|\b(?:onnxruntime|cuda|contrib|cutlass|device|kernel)::", "", kernel)
    return name.partition("(")[0][:length] or kernel[:length]


def profiled(run: Callable[[], None], calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Return kernel -> microseconds and launches per call, while something runs."""
    import torch

    for _ in range(10):
        run()
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(calls):
                run()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            times[event["name"]].append(event["dur"])
    return {name: (sum(found) / calls, len(found) / calls) for name, found in times.items()}


def row_of(case: Case, folder: Path, rate: dict[str, float]) -> dict[str, Any]:
    """Profile halfconv's file of one case, and compute its bound."""
    feeds = case.feeds(folder, 1)
    path = folder / case.key / f"{KERNELS}.onnx"
    loop = BindingLoop(path, "cuda", feeds, None, kernels=True)
    kernels = profiled(loop.run)
    groups: dict[str, float] = defaultdict(float)
    for name, (micros, _) in kernels.items():
        groups[group_of(name)] += micros
    moved = path.stat().st_size + sum(array.nbytes for array in (*feeds.values(), *loop.outputs().values()))
    count = flops(case)
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:KEPT]
    return {
        "case": case.key, "batch": case.batch, "who": KERNELS,
        "kernel_ms": round(sum(micros for micros, _ in kernels.values()) / 1e3, 4),
        "launches": round(sum(launches for _, launches in kernels.values()), 1),
        "gflop": round(count / 1e9, 2), "mb": round(moved / 1e6, 2),
        "bound_ms": round(max(count / rate["fp16_tflops"] / 1e9, moved / rate["copy_gb_s"] / 1e6), 4),
        "groups": {name: round(micros, 1) for name, micros in sorted(groups.items(), key=lambda item: -item[1])},
        "kernels": [[short(name), round(micros, 1), round(launches, 1)] for name, (micros, launches) in longest],
    }  # fmt: skip


def show(content: dict[str, Any]) -> None:
    """Print a line for each row, and its groups and longest kernels."""
    print(content["rates"])
    for row in content["rows"]:
        print(f"{row['case']}@{row['batch']}: kernels {row['kernel_ms']:.3f} ms in {row['launches']:.0f} launches, bound "
              f"{row['bound_ms']:.3f} ms ({row['gflop']:,} GFLOP, {row['mb']:,} MB)")  # fmt: skip
        print("  " + ", ".join(f"{name} {micros / row['kernel_ms'] / 10:.0f} %" for name, micros in row["groups"].items()))
        for name, micros, launches in row["kernels"][:5]:
            print(f"  {micros:8.1f} us {launches:4.0f} x {name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Profile halfconv's files on a GPU.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("json", type=Path, metavar="JSON")
    parser.add_argument("cases", type=case_of, nargs="*", metavar="CASE")
    options = parser.parse_args(arguments)
    content = {**begin(options.json, "cuda"), "command": "python bench/cuda_profile.py", "rates": rates(), "rows": []}
    for case in options.cases or DEFAULT:
        try:
            content["rows"].append(row_of(case, options.folder, content["rates"]))
        except (Exception, SystemExit) as error:  # one case's failure leaves the others
            print(f"{case}: {type(error).__name__}: {error}"[:300], flush=True)
        record.write(options.json, content)
    show(content)


if __name__ == "__main__":
    main()
