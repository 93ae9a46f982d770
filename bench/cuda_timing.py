"""Times the contenders of one case in turns, and compares what they give, in a process of its own.

`bench/cuda.py` starts one for each case and reads what it writes to its file, a line of JSON each: ``{"begin": WHO}`` before
anything is done with a contender, so that a crash is known to be its, and rows.

* ``p50_ms``, ``p10_ms``, ``p90_ms``: from the start of a call until the device is done, inputs and outputs staying there;
* ``burst_ms``: milliseconds per call of many calls back to back that wait for the device once, the median of all rounds;
  ``throughput`` is rows per second in these;
* ``rel_l2``: drift of the worst output from ``fp32`` on the device, over several inputs together; null if not finite;
* ``gpu_rel_l2``: the same on the inputs that `bench/cuda.py predict` simulates.

Times come in turns of a tenth of a second, in another order each round, once a contender's median stays within 3 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cuda_contenders import REFERENCE, Array, BindingLoop, Contender, existing, lineup
from bench.cuda_prepare import KERNELS, TARGETS, Case, case_of
from halfconv.benchmark import STABLE, WARMUP_TURNS, drift_of

#: Seconds that one contender runs before the next has its turn.
TURN = 0.1
#: A turn has at least so many calls, a burst so many.
LEAST, BURST = 3, 20
#: Seeds of the inputs that drift is measured on; the first is also timed.
SEEDS = (1, 2, 3)
#: Batch size and seed of the inputs that are simulated, too: few rows, since a CPU computes them.
PREDICTED_BATCH, PREDICTED_SEED = 2, 100
#: What errors say after which nothing works in the process any more.
FATAL = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")
Say = Callable[[dict[str, Any]], None]


def timed(contender: Contender, seconds: float) -> list[float]:
    """Return the milliseconds of each call in a turn."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST or time.perf_counter() < end:
        begun = time.perf_counter()
        contender.run()
        found.append((time.perf_counter() - begun) * 1e3)
    return found


def warm_up(contender: Contender) -> None:
    """Run until two turns take about the same time."""
    known = statistics.median(timed(contender, TURN))
    for _ in range(WARMUP_TURNS):
        median = statistics.median(timed(contender, TURN))
        if abs(median - known) <= STABLE * known:
            return
        known = median


def answers(contender: Contender, feeds: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Return the outputs on several inputs, stacked; the last inputs stay."""
    found = []
    for arrays in feeds:
        contender.feed(arrays)
        contender.run()
        found.append(contender.outputs())
    return {name: np.stack([outputs[name] for outputs in found]) for name in found[0]}


def measure(case: Case, folder: Path, provider: str, rounds: int, without: Sequence[str], say: Say) -> None:
    """Measure all contenders of a case, and say their rows.

    Args:
        case: The model, and the batch size.
        folder: The folder that was prepared.
        provider: ``cuda`` or ``cpu``.
        rounds: How many turns each has.
        without: Contenders to leave out.
        say: Told what begins, and the rows.

    Raises:
        RuntimeError: There is no reference to compare with.
    """
    inputs = [case.feeds(folder, seed) for seed in (SEEDS if case.recipe else SEEDS[:1])]
    ready: dict[str, Contender] = {}
    rows: dict[str, dict[str, Any]] = {}
    wanted: dict[str, Array] = {}

    def attempt(who: str, do: Callable[[], object]) -> None:
        """Do something with a contender; what fails is out, with the reason in its row. If nothing works then, all end."""
        say({"begin": who})
        try:
            do()
        except (Exception, SystemExit) as error:
            if any(words in str(error) for words in FATAL):
                print(f"RuntimeError: {error}".replace("\n", " "), file=sys.stderr, flush=True)
                os._exit(1)
            rows[who] = {"error": " ".join(f"{error or type(error).__name__}".split())[:240]}
            ready.pop(who, None)

    def begin(who: str, make: Callable[[dict[str, Array] | None], Contender]) -> None:
        like = {name: array[0] for name, array in wanted.items()} or None
        ready[who] = make(like)
        found = answers(ready[who], inputs[::-1])
        if who == REFERENCE:
            wanted.update(found)
        rows[who] = {"rel_l2": drift_of(found, wanted)}
        warm_up(ready[who])

    for who, make in lineup(case, folder, provider, inputs[0]).items():
        if who not in without:
            attempt(who, lambda who=who, make=make: begin(who, make))
            if who == REFERENCE and who not in ready:
                raise RuntimeError(f"{case}: the FP32 model cannot be measured: {rows[who]['error']}")
    calls: dict[str, list[float]] = {who: [] for who in ready}
    bursts: dict[str, list[float]] = {who: [] for who in ready}
    gc.collect()
    gc.disable()
    for number in range(rounds):
        names = [*ready]
        for who in (*names[number % len(names) :], *names[: number % len(names)]):
            attempt(who, lambda who=who: calls[who].extend(timed(ready[who], TURN)))
            if who in ready:
                attempt(who, lambda who=who: bursts[who].append(_burst(ready[who])))
    gc.enable()
    for who, row in rows.items():
        if who in ready:
            row |= figures(calls[who], bursts[who], case.batch or 1)
        say({"case": case.key, "batch": case.batch, "who": who, **row})


def _burst(contender: Contender) -> float:
    begun = time.perf_counter()
    contender.burst(BURST)
    return (time.perf_counter() - begun) * 1e3 / BURST


def figures(calls: Sequence[float], bursts: Sequence[float], batch: int) -> dict[str, float | int]:
    """Return a row's figures from the milliseconds of calls, and those per call of bursts."""
    p10, p50, p90 = (round(float(value), 4) for value in np.percentile(calls, [10, 50, 90]))
    burst = statistics.median(bursts)
    return {
        "p50_ms": p50, "p10_ms": p10, "p90_ms": p90, "burst_ms": round(burst, 4), "throughput": round(batch * 1e3 / burst, 1),
        "calls": len(calls),
    }  # fmt: skip


def drift(case: Case, folder: Path, provider: str, say: Say) -> None:
    """Say the drift of halfconv's files, in plain sessions without TF32, on the inputs that are simulated, too."""
    batch = PREDICTED_BATCH if case.recipe else None
    feeds = case.feeds(folder, PREDICTED_SEED, batch)
    reference = BindingLoop(folder / case.key / "model.onnx", provider, feeds, None, options={"use_tf32": "0"})
    reference.run()
    wanted = reference.outputs()
    for who in TARGETS:
        say({"begin": who})
        path = folder / case.key / f"{who}.onnx"
        row: dict[str, Any] = {"case": case.key, "batch": batch, "who": who}
        try:
            existing(path, who)
            loop = BindingLoop(path, provider, feeds, wanted, options={"use_tf32": "0"}, kernels=who == KERNELS)
            loop.run()
            say({**row, "gpu_rel_l2": drift_of(loop.outputs(), wanted)})
        except (Exception, SystemExit) as error:
            say({**row, "gpu_error": " ".join(str(error).split())[:240]})


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure one case; bench/cuda.py calls this.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", type=case_of)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--without", nargs="*", default=[])
    options = parser.parse_args()
    with options.lines.open("w", encoding="utf-8", buffering=1) as stream:

        def say(said: dict[str, Any]) -> None:
            stream.write(json.dumps(said) + "\n")

        measure(options.case, options.folder, options.provider, options.rounds, options.without, say)
        drift(options.case, options.folder, options.provider, say)


if __name__ == "__main__":
    main()
