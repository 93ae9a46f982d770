"""Where the time of halfconv's files goes on a GPU, and the least that the card allows: kernels, FLOPs, bytes, measured rates.

    python bench/cuda_profile.py DIR JSON [CASE…]     DIR as `bench/cuda.py prepare` left it; cases are its too

A row of the result is a case's file, in a plain session on buffers of the device, without a CUDA graph:

* ``kernels``: name, microseconds and launches per call of the kernels that take longest, as CUPTI counts them (read through
  `torch.profiler`, which sees every kernel of the process); ``kernel_ms`` and ``launches`` are of all kernels;
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record
from bench.cuda import begin
from bench.cuda_contenders import BindingLoop
from bench.cuda_prepare import DEFAULT, KERNELS, Case, case_of

#: What a kernel is for, and what its name has then; the first that fits.
GROUPS = (
    ("attention", r"attention|sdpa|flash|fmha|softmax"),
    ("depthwise convolutions", r"depthwise"),
    ("convolutions", r"fprop|convolve|implicit"),
    ("matrix products", r"gemm|nvjet|splitK|matmul"),
    ("norms", r"layer_?norm|rms_?norm|batch_?norm"),
    ("pooling", r"pool"),
    ("elementwise", r"gelu|elementwise|generic_tensor"),
    ("changes of layout", r"transpose|nchw|nhwc|permute"),
)
OTHER = "other"
CALLS = 20
KEPT = 40


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


def shares(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what a row's kernels are for, and their share of all time, the largest first; those without a name are others."""
    found: dict[str, float] = defaultdict(float)
    for name, micros, _ in row["kernels"]:
        found[group_of(name)] += micros / row["kernel_ms"] / 1e3
    found[OTHER] += max(1 - sum(found.values()), 0.0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


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
    moved = path.stat().st_size + sum(array.nbytes for array in (*feeds.values(), *loop.outputs().values()))
    count = flops(case)
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:KEPT]
    return {
        "case": case.key, "batch": case.batch, "who": KERNELS,
        "kernel_ms": round(sum(micros for micros, _ in kernels.values()) / 1e3, 4),
        "launches": round(sum(launches for _, launches in kernels.values()), 1),
        "gflop": round(count / 1e9, 2), "mb": round(moved / 1e6, 2),
        "bound_ms": round(max(count / rate["fp16_tflops"] / 1e9, moved / rate["copy_gb_s"] / 1e6), 4),
        "kernels": [[short(name), round(micros, 1), round(launches, 1)] for name, (micros, launches) in longest],
    }  # fmt: skip


def said(row: Mapping[str, Any]) -> str:
    """Say the shares that are worth it."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares(row).items() if share >= 0.02)


def markdown(content: Mapping[str, Any], file: str) -> str:
    """Return the documentation's table.

    Args:
        content: A result.
        file: What it was read from, as the documentation names it.
    """
    lines = ["| model, batch | kernels | GFLOP | least | times the least | for what |", "|---|---|---|---|---|---|"]
    for row in content["rows"]:
        cells = (f"{row['kernel_ms']:.3g} ms, {row['launches']:.0f}", f"{row['gflop']:,.0f}", f"{row['bound_ms']:.2g} ms",
                 f"{row['kernel_ms'] / row['bound_ms']:.1f}", said(row))  # fmt: skip
        lines.append(f"| `{row['case']}`, {row['batch']} | " + " | ".join(cells) + " |")
    rate = content["rates"]
    lines += [
        "",
        "(Time and number of kernels in a call, without a CUDA graph; the least time that these operations, or moving weights,",
        f"inputs and outputs once, take at the rates measured beside it: {rate['fp16_tflops']:.0f} TFLOP/s of FP16 products,",
        f"{rate['copy_gb_s'] / 1e3:.1f} TB/s. {content['machine']['card']}, {content['date'][:10]}; `{file}`.)",
    ]  # fmt: skip
    return "\n".join(lines)


def show(content: dict[str, Any]) -> None:
    """Print a line for each row, and its groups and longest kernels."""
    print(content["rates"])
    for row in content["rows"]:
        print(f"{row['case']}@{row['batch']}: kernels {row['kernel_ms']:.3f} ms in {row['launches']:.0f} launches, bound "
              f"{row['bound_ms']:.3f} ms ({row['gflop']:,} GFLOP, {row['mb']:,} MB)")  # fmt: skip
        print("  " + said(row))
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
