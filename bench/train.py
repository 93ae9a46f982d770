"""Training in FP32, TF32, FP16 and BF16: time of a step, memory, and what the trained model is worth.

    python bench/train.py run JSON [CASE…]                 on the GPU if there is one
    python bench/train.py run JSON --device cpu            FP32 against BF16
    python bench/train.py show JSON                        prints the table

A case is a recipe of ``models/``, trained as ``halfconv train`` does, or a model of `gpu_models.py` with a batch size, such as
``resnet50@64``, trained on random numbers of real shape. On a GPU a case has a process for all precisions, in which the peak of
memory is counted anew for each; on a CPU, where that cannot be, each precision has its own.

* ``step_ms``: median over epochs of an epoch's time by its steps, data included, without the first epoch where there are more;
* ``peak_mb``: memory that torch held on the GPU at most, or of the whole process on a CPU (with what imports take);
* ``metric``: on data that the model has not seen, of the FP32 weights; null for random numbers.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import gpu_models, record, session
from bench.machine import machine
from bench.peers.environments import HALFCONV, versions
from bench.tools import ROOT, TEMPORARY, Failed, measured
from halfconv.recipes.catalog import NAMES

PRECISIONS = {"cuda": ("fp32", "tf32", "fp16", "bf16"), "cpu": ("fp32", "bf16")}
SYNTHETIC = ("resnet50@64", "bert_base@32")
#: Steps of an epoch, and epochs, on random numbers.
STEPS, EPOCHS = 20, 4
#: Trains in a precision, on a device, for so many epochs.
Training = Callable[[str, str, int | None], dict[str, Any]]
COLUMNS = {"step ms": ("step_ms", ".2f"), "peak MB": ("peak_mb", ",.0f"), "metric": ("metric", ".4f"), "skipped": ("skipped", "d")}


def train(case: str, precisions: Sequence[str], device: str, epochs: int | None) -> Iterator[dict[str, Any]]:
    """Train a case in this process, and yield what it cost in each precision, or the ``error``.

    Args:
        case: A recipe, or ``KEY@BATCH``.
        precisions: Of ``fp32``, ``tf32``, ``fp16`` and ``bf16``.
        device: ``cpu`` or ``cuda``.
        epochs: How often the data is gone through; None for the case's own number.
    """
    import torch

    trained = _synthetic(case) if "@" in case else _recipe(case)
    for precision in precisions:
        # IEEE products in FP32 unless TF32 is asked for; cuDNN's convolutions take TF32 by default.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = {"who": f"train-{precision}"}
        try:
            row |= trained("fp32" if precision == "tf32" else precision, device, epochs)
        except Exception as error:  # so that the other precisions have a row
            row["error"] = f"{type(error).__name__}: {error}"[:240]
        if device == "cuda":
            row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
        else:
            row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
        yield row


def _recipe(name: str) -> Training:
    from halfconv.recipes.catalog import load_recipe
    from halfconv.recipes.fitting import fit_recipe, held_out

    recipe = load_recipe(name)
    data = recipe.data(0)

    def trained(precision: str, device: str, epochs: int | None) -> dict[str, Any]:
        module, result = fit_recipe(recipe, data, precision=precision, device=device, epochs=epochs)
        return {
            **figures(result.history, result.steps), "skipped": result.skipped,
            "metric": round(held_out(recipe, module.float().cpu().eval(), data[1]), 5), "metric_name": recipe.metric_name,
        }  # fmt: skip

    return trained


def _synthetic(case: str) -> Training:
    import torch

    from halfconv.train import fit

    key, _, batch = case.partition("@")

    def trained(precision: str, device: str, epochs: int | None) -> dict[str, Any]:
        module = gpu_models.module(key, "sdpa").train().to(device)
        inputs = tuple(torch.from_numpy(array).to(device) for array in gpu_models.MODELS[key].feeds(int(batch), 0).values())
        with torch.no_grad():
            target = torch.randn_like(module(*inputs))
        data = [(inputs if len(inputs) > 1 else inputs[0], target)] * STEPS
        result = fit(module, data, loss=torch.nn.functional.mse_loss, epochs=epochs or EPOCHS, precision=precision, device=device)
        return {**figures(result.history, result.steps), "skipped": result.skipped, "metric": None}

    return trained


def figures(history: Sequence[dict[str, float]], steps: int) -> dict[str, Any]:
    """Return the time of a step from what each epoch took."""
    each = steps / len(history)
    warm = history[1:] or history
    return {"step_ms": round(statistics.median(entry["seconds"] for entry in warm) * 1e3 / each, 3), "steps": steps}


def begin(script: str, device: str) -> dict[str, Any]:
    """Return a result without rows; `bench/digits.py` begins so, too."""
    return {
        "schema_version": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"card": session.card() if device == "cuda" else "cpu", **machine()},
        "versions": versions(HALFCONV, sys.executable), "command": f"python bench/{script} " + " ".join(sys.argv[1:]), "rows": [],
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Train all cases in all precisions, and write the result after each process."""
    content = begin("train.py", options.device)
    for case in options.cases or (*NAMES, *SYNTHETIC):
        wanted = options.precisions or PRECISIONS[options.device]
        for together in [wanted] if options.device == "cuda" else [[precision] for precision in wanted]:
            for row in alone(case, together, options):
                content["rows"].append({"case": case, "batch": None, **row})
                print(json.dumps(content["rows"][-1]), flush=True)
            record.write(options.json, content)
    record.show(content["rows"], COLUMNS)


def alone(case: str, precisions: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a case in a process of its own; precisions that it did not come to have the ``error`` that ended it."""
    command = [sys.executable, str(ROOT / "bench" / "train.py"), "one", case, options.device, *precisions]
    more = [] if options.epochs is None else ["--epochs", str(options.epochs)]
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
        why = "printed nothing"
        try:
            measured([*command, *more], Path(scratch), options.timeout)
        except Failed as error:
            why = str(error)
        said = Path(scratch, "stdout.txt").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in said if line.startswith('{"who"') and line.endswith("}")]
    return rows + [{"who": f"train-{precision}", "error": why} for precision in precisions[len(rows) :]]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def case(text: str) -> str:
        key, at, batch = text.partition("@")
        if text in NAMES or (at and key in gpu_models.MODELS and batch.isdigit() and int(batch)):
            return text
        raise argparse.ArgumentTypeError(f"unknown case {text!r}; try: {', '.join((*NAMES, *SYNTHETIC))}")

    parser = argparse.ArgumentParser(description="Compare precisions of training.")
    steps = parser.add_subparsers(dest="step", required=True)
    all_of, one, show = (steps.add_parser(name) for name in ("run", "one", "show"))
    for step in (all_of, show):
        step.add_argument("json", type=Path, metavar="JSON")
    all_of.add_argument("cases", type=case, nargs="*", metavar="CASE", help="default: all recipes, " + ", ".join(SYNTHETIC))
    all_of.add_argument("--device", choices=sorted(PRECISIONS), default=None, help="default: cuda if there is a GPU")
    all_of.add_argument("--precisions", nargs="*", choices=PRECISIONS["cuda"], metavar="PRECISION")
    all_of.add_argument("--timeout", type=float, default=1200.0, help="seconds for a process")
    one.add_argument("case", type=case)
    one.add_argument("device", choices=sorted(PRECISIONS))
    one.add_argument("precisions", choices=PRECISIONS["cuda"], nargs="+")
    for step in (all_of, one):
        step.add_argument("--epochs", type=int, default=None, help="default: each case's own number")
    options = parser.parse_args(arguments)
    if options.step == "run" and options.device is None:
        options.device = "cpu" if session.card() == "cpu" else "cuda"
    return options


def main() -> None:
    """Run from the command line."""
    options = parsed()
    if options.step == "run":
        run(options)
    elif options.step == "one":
        for row in train(options.case, options.precisions, options.device, options.epochs):
            print(json.dumps(row), flush=True)
    else:
        record.show(json.loads(options.json.read_text("utf-8"))["rows"], COLUMNS)


if __name__ == "__main__":
    main()
