"""Digits from training to conversion: five networks, each tested on the fifth of all 1,797 images that it has not seen.

    python bench/digits.py run JSON [--device cpu]     on the GPU if there is one
    python bench/digits.py show JSON                   prints the table

A row is a precision of training. ``trained`` is the share of images that PyTorch's FP32 weights get right, ``exported`` that of the
ONNX models, ``simulated`` that of their FP16 conversions with a GPU's rounding simulated, ``cuda`` that of these on the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record, session, train
from bench.tools import TEMPORARY

PRECISIONS = {"cuda": ("fp32", "fp16", "bf16"), "cpu": ("fp32", "bf16")}
COLUMNS = {name: (name, ".4f") for name in ("trained", "exported", "simulated", "cuda")} | {"images": ("images", "d")}


def measured(precision: str, device: str, folds: int, epochs: int | None) -> dict[str, Any]:
    """Train all folds in a precision, convert the models, and return the shares of images that each stage gets right.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
        folds: How many of the five.
        epochs: How often each goes through its data; None for the recipe's own number.
    """
    import halfconv
    from halfconv.recipes.training import train_recipe

    places = {"simulated": "simulate", **({"cuda": "cuda"} if device == "cuda" else {})}
    right = dict.fromkeys(("trained", "exported", *places), 0.0)
    images = 0
    for fold in range(folds):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
            report = train_recipe("digits_cnn", Path(scratch) / "out", precision=precision, device=device, fold=fold, epochs=epochs)
            model, samples = report.output / "model.onnx", report.output / "samples.npz"
            half = halfconv.convert(model, samples=samples).output
            rows = report.rows["test"]
            images += rows
            right["trained"] += report.value * rows
            for name, place in places.items():
                (metric,) = halfconv.validate(model, half, samples=samples, metrics=["accuracy"], on=place).metrics
                right[name] += metric.candidate * rows
            right["exported"] += metric.reference * rows
    return {"images": images, **{name: round(count / images, 6) for name, count in right.items()}}


def run(options: argparse.Namespace) -> None:
    """Measure all precisions, and write the result after each."""
    content = train.begin("digits.py", options.device)
    for precision in PRECISIONS[options.device]:
        found = measured(precision, options.device, options.folds, options.epochs)
        content["rows"].append({"case": "digits_cnn", "batch": None, "who": f"train-{precision}", **found})
        print(json.dumps(content["rows"][-1]), flush=True)
        record.write(options.json, content)
    record.show(content["rows"], COLUMNS)


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
