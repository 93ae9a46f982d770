"""Train a recipe, and write the model, its weights, labelled samples and what was measured into a folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halfconv.check import require_runtime
from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.export.exporting import ExportResult, export_source
from halfconv.export.sources import Source, from_module
from halfconv.export.weights import load_weights, safetensors_bytes
from halfconv.progress import Progress
from halfconv.recipes.catalog import load_recipe, needing_packages
from halfconv.recipes.fitting import fit_recipe, fresh, held_out
from halfconv.recipes.recipe import Recipe, Split, tensors
from halfconv.storage import disk_problem

if TYPE_CHECKING:
    import torch

    from halfconv.train import Result

__all__ = ["FILES", "TrainReport", "recipe_source", "train_recipe"]

#: What is written, in that order.
FILES = ("weights.safetensors", "samples.npz", "model.onnx", "metrics.json")
#: Examples with which a model is exported.
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was trained.

    Attributes:
        recipe: The recipe's name.
        title: What it does.
        output: The folder.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``pure-fp16``.
        device: Where it was trained.
        seed: The seed.
        fold: Which part of the data was held out.
        epochs: How often the training data was gone through.
        rows: Examples to train with, and held out.
        parameters: Number of weights.
        metric: The metric's name.
        value: The metric on held-out data, of the FP32 weights.
        threshold: What the recipe promises.
        seconds: What the training took.
        result: What `halfconv.train.fit` returned.
        exported: What `halfconv.export` returned.
    """

    recipe: str
    title: str
    output: Path
    precision: str
    device: str
    seed: int
    fold: int
    epochs: int
    rows: Mapping[str, int]
    parameters: int
    metric: str
    value: float
    threshold: float
    seconds: float
    result: Result
    exported: ExportResult

    @property
    def passed(self) -> bool:
        """Whether the metric is what the recipe promises."""
        return self.value >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {
            "schema_version": 1,
            "recipe": self.recipe,
            "title": self.title,
            "output": str(self.output),
            "files": list(FILES),
            "precision": self.precision,
            "device": self.device,
            "seed": self.seed,
            "fold": self.fold,
            "epochs": self.epochs,
            "rows": dict(self.rows),
            "parameters": self.parameters,
            "metric": {"name": self.metric, "value": self.value, "threshold": self.threshold, "passed": self.passed},
            "seconds": self.seconds,
            "history": self.result.history,
            "scales": [list(entry) for entry in self.result.scales],
            "skipped": self.result.skipped,
            "steps": self.result.steps,
            "export": self.exported.to_dict(),
        }


def train_recipe(
    name: str, output: str | os.PathLike[str], *, precision: str = "fp32", device: str = "auto", epochs: int | None = None,
    seed: int = 0, fold: int = 0, on_progress: Callable[[Progress], None] | None = None,
) -> TrainReport:  # fmt: skip
    """Train a recipe, export it, and write the `FILES`.

    Args:
        name: The recipe.
        output: The folder; files of these names in it are replaced, all together at the end.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``pure-fp16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        epochs: How often the training data is gone through; None for the recipe's number.
        seed: Of the weights and of the order of the data.
        fold: Which part of the data is held out, where the recipe has several.
        on_progress: Told what is being done.

    Returns:
        What was trained.

    Raises:
        UsageError: There is no such recipe or fold, the folder is a file, or ``torchrun`` started several processes.
        EnvironmentProblem: A package, the device or its half precision is missing, or the disk refuses the files.
        CheckFailed: The exported model does not give what PyTorch gives.
    """
    recipe, folder = load_recipe(name), Path(output).absolute()
    _check_folder(folder)
    if not 0 <= fold < recipe.folds:
        raise UsageError(f"recipe {name} has no fold {fold}", f"0 to {recipe.folds - 1}" if recipe.folds > 1 else "fold 0")
    if epochs is not None and epochs < 1:
        raise UsageError(f"{epochs} epochs train nothing", "1 or more")
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        words = "torchrun started several processes, and a recipe is trained by one"
        raise UsageError(words, "without torchrun; halfconv.train.fit trains with several")
    require_runtime()  # which compares the exported model, in the end
    with needing_packages(name):
        train, test = recipe.data(fold)
        begin = time.perf_counter()
        module, result = fit_recipe(
            recipe, (train, test), precision=precision, device=device, epochs=epochs, seed=seed, on_progress=on_progress
        )
    seconds, place = time.perf_counter() - begin, str(next(module.parameters()).device)
    module = module.float().cpu().eval()
    with tempfile.TemporaryDirectory(prefix="halfconv-train-") as scratch:
        made = Path(scratch)
        exported = export_source(
            _source(recipe, module, test, name), made / "model.onnx", opset=recipe.opset, output_names=recipe.outputs
        )
        value = held_out(recipe, module, test)
        report = TrainReport(
            name, recipe.title, folder, precision, place, seed, fold, epochs or recipe.epochs,
            {"train": len(train), "test": len(test)}, sum(weight.numel() for weight in module.parameters()), recipe.metric_name,
            value, recipe.threshold, seconds, result, replace(exported, output=folder / "model.onnx"),
        )  # fmt: skip
        (made / "weights.safetensors").write_bytes(safetensors_bytes(module.state_dict()))
        (made / "samples.npz").write_bytes(_samples(test))
        (made / "metrics.json").write_text(json.dumps(_finite(report.to_dict()), indent=1) + "\n", "utf-8")
        _put(made, folder)
    return report


def recipe_source(name: str, weights: Path | None) -> tuple[Source, Recipe]:
    """Return a recipe's model, to be exported.

    Args:
        name: The recipe.
        weights: What `train_recipe` wrote; None for the fresh weights of seed 0.
    """
    recipe = load_recipe(name)
    with needing_packages(name):
        module, (_, test) = fresh(recipe, 0), recipe.data(0)
    if weights is not None:
        load_weights(module, weights)
    source = _source(recipe, module, test, name)
    if weights is None:
        source = replace(source, notes=(f"the weights are fresh: halfconv train {name} trains them, and --weights takes them",))
    return source, recipe


def _source(recipe: Recipe, module: torch.nn.Module, test: Split, name: str) -> Source:
    inputs = tensors(test.rows(slice(0, EXAMPLES)).inputs)
    source = from_module(recipe.final(module), inputs, recipe.free_dims(inputs), name)
    return replace(source, translations=recipe.translations() if recipe.translations else {})


def _samples(test: Split) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {**test.inputs, **test.labels}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output {folder} is a file, and a folder is needed", "another -o")
    parent = folder if folder.is_dir() else folder.parent
    if not parent.is_dir():
        raise EnvironmentProblem(f"output folder {parent} does not exist", f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK):
        raise EnvironmentProblem(f"no permission to write in {parent}", "another -o, or chmod")
    for file in FILES:
        if (folder / file).is_dir():
            raise UsageError(f"{folder / file} is a directory, where a file is to be written", "another -o")


def _put(made: Path, folder: Path) -> None:
    """Copy the files beside their places, then rename all."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".train-") as beside:
            for file in FILES:
                shutil.copyfile(made / file, Path(beside, file))
            for file in FILES:
                Path(beside, file).replace(folder / file)
    except OSError as error:
        raise disk_problem(error, folder) from None


def _finite(value: Any) -> Any:
    """Return JSON data in which NaN and infinities are null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value
