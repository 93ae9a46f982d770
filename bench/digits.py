"""Digits from training to conversion: five networks, each tested on the fifth of all 1,797 images that it has not seen.

    python bench/digits.py run JSON [--device cpu] [--jobs N]     on the GPU if there is one
    python bench/digits.py show JSON                              prints the table

A row is a precision of training. ``trained`` is the share of images that PyTorch's FP32 weights get right, ``exported`` that of the
ONNX models, ``simulated`` that of their FP16 conversions with a GPU's rounding simulated, ``cuda`` that of these on the GPU.

Nothing is timed, so that ``--jobs`` networks may be trained at once, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record, session, train
from bench.tools import TEMPORARY

PRECISIONS = {"cuda": ("fp32", "fp16", "bf16"), "cpu": ("fp32", "bf16")}
COLUMNS = {name: (name, ".4f") for name in ("trained", "exported", "simulated", "cuda")} | {"images": ("images", "d")}


def measured(precision: str, device: str, fold: int, epochs: int | None) -> dict[str, float]:
    """Train with a fold held out, convert the model, and return how many of its images each stage gets right.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
        fold: Which of the five.
        epochs: How often it goes through the data; None for the recipe's own number.
    """
    import halfconv
    from halfconv.recipes.training import train_recipe

    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
        report = train_recipe("digits_cnn", Path(scratch) / "out", precision=precision, device=device, fold=fold, epochs=epochs)
        model, samples = report.output / "model.onnx", report.output / "samples.npz"
        half = halfconv.convert(model, samples=samples).output
        rows = report.rows["test"]
        right = {"images": rows, "trained": report.value * rows}
        for name, place in {"simulated": "simulate", **({"cuda": "cuda"} if device == "cuda" else {})}.items():
            (metric,) = halfconv.validate(model, half, samples=samples, metrics=["accuracy"], on=place).metrics
            right |= {"exported": metric.reference * rows, name: metric.candidate * rows}
    return right


def shares(folds: Sequence[Future[dict[str, float]]]) -> dict[str, float]:
    """Return the shares of all folds' images that each stage gets right, or the ``error`` of the first fold that failed."""
    try:
        right = [fold.result() for fold in folds]
    except Exception as error:  # so that the other precisions have a row
        return {"error": f"{type(error).__name__}: {error}"[:240]}
    total = {name: sum(fold[name] for fold in right) for name in right[0]}
    images = round(total.pop("images"))
    return {"images": images, **{name: round(count / images, 6) for name, count in total.items()}}


def run(options: argparse.Namespace) -> None:
    """Measure all precisions, and write the result after each."""
    content = train.begin("digits.py", options.device)
    precisions = PRECISIONS[options.device]
    spawned = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, spawned, _share_cores, (options.jobs,)) as pool:
        begun = {
            precision: [
                pool.submit(measured, precision, options.device, fold, options.epochs) for fold in range(options.folds)
            ]
            for precision in precisions
        }  # fmt: skip
        for precision, folds in begun.items():
            content["rows"].append({"case": "digits_cnn", "batch": None, "who": f"train-{precision}", **shares(folds)})
            print(json.dumps(content["rows"][-1]), flush=True)
            record.write(options.json, content)
    record.show(content["rows"], COLUMNS)


def _share_cores(jobs: int) -> None:
    """Let a process among others compute with its share of the cores."""
    import torch

    if jobs > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train, export, convert and validate a network for digits.")
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("run", "show"):
        step = steps.add_parser(name)
        step.add_argument("json", type=Path, metavar="JSON")
        if name == "run":
            step.add_argument("--device", choices=sorted(PRECISIONS), default=None, help="default: cuda if there is a GPU")
            step.add_argument("--folds", type=int, choices=range(1, 6), default=5, help="to try it, fewer")
            step.add_argument("--epochs", type=int, default=None, help="to try it, fewer")
            step.add_argument("--jobs", type=int, choices=range(1, 16), default=1, metavar="N", help="networks at once")
    options = parser.parse_args(arguments)
    if options.step == "run" and options.device is None:
        options.device = "cpu" if session.card() == "cpu" else "cuda"
    return options


def main() -> None:
    """Run from the command line."""
    options = parsed()
    if options.step == "run":
        run(options)
    else:
        record.show(json.loads(options.json.read_text("utf-8"))["rows"], COLUMNS)


if __name__ == "__main__":
    main()
