"""What a recipe is: data, a model, a loss, and a metric on data that the model has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfconv.drift.task import Metric

if TYPE_CHECKING:
    import torch

__all__ = ["Recipe", "Split", "batches", "predict", "tensors"]

Array = NDArray[Any]
#: Rows that are predicted at once.
ROWS = 256


@dataclass(frozen=True, slots=True)
class Split:
    """Part of a recipe's data.

    Attributes:
        inputs: The model's inputs by the names of its parameters, one row per example.
        labels: What is right, by name, as many rows. What the loss wants may be more than the metric does.
    """

    inputs: Mapping[str, Array]
    labels: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def rows(self, chosen: Any) -> Split:
        """Return some rows, as an index or a slice of numpy has them."""
        return Split(
            {name: array[chosen] for name, array in self.inputs.items()},
            {name: array[chosen] for name, array in self.labels.items()},
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A small model and how it is trained.

    Attributes:
        title: What it does.
        source: Where the data comes from.
        derived: How the labels were derived; "" if they come with the data.
        data: Returns (training data, held-out data) of a fold; the same at every call.
        model: Makes the model with fresh weights.
        loss: ``loss(outputs, target)``; the target is the labels' tensor, or a dictionary of them.
        metric: ``f(outputs, extras)`` as `halfconv validate --metric` takes it; higher is better.
        metric_name: How that option names it.
        threshold: What the metric reaches on held-out data.
        outputs: Names of the outputs.
        epochs: How often the training data is gone through.
        batch: Examples per step.
        learning_rate: At its highest; it rises, and falls to 0 at the end.
        weight_decay: Of the optimizer, AdamW.
        folds: How many ways of holding data out there are.
        opset: Of the exported model.
        dims: Free dimensions, beside the first of every input, which is the batch.
        augment: Changes a batch of training data at random.
        deployed: Makes of the trained model what is exported and evaluated, with what belongs behind it.
        translations: Operators of its own -> how they are written in ONNX, as torch.onnx.export takes it.
    """

    title: str
    source: str
    derived: str
    data: Callable[[int], tuple[Split, Split]]
    model: Callable[[], torch.nn.Module]
    loss: Callable[[Any, Any], torch.Tensor]
    metric: Metric
    metric_name: str
    threshold: float
    outputs: tuple[str, ...]
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    folds: int = 1
    opset: int = 20
    dims: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    augment: Callable[[Split, np.random.Generator], Split] | None = None
    deployed: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    translations: Callable[[], Mapping[Any, Any]] | None = None

    def free_dims(self, inputs: Iterable[str]) -> dict[str, dict[int, str]]:
        """Return all free dimensions, by input."""
        return {name: {0: "batch", **self.dims.get(name, {})} for name in inputs}

    def final(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return what is exported of a trained model, on the model's device."""
        return self.deployed(model).to(_device(model)) if self.deployed else model


def batches(recipe: Recipe, data: Split, seed: int, epoch: int) -> Iterator[tuple[dict[str, torch.Tensor], Any]]:
    """Yield the batches of an epoch, in an order that depends on the seed and the epoch alone."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(data))
    for start in range(0, len(data), recipe.batch):
        part = data.rows(order[start : start + recipe.batch])
        if recipe.augment is not None:
            part = recipe.augment(part, random)
        labels = tensors(part.labels)
        yield tensors(part.inputs), next(iter(labels.values())) if len(labels) == 1 else labels


def tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def predict(recipe: Recipe, model: torch.nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a model gives for inputs, by the outputs' names."""
    import torch

    device = _device(model)
    rows = len(next(iter(inputs.values())))
    parts: list[list[Array]] = [[] for _ in recipe.outputs]
    with torch.no_grad():
        for start in range(0, rows, ROWS):
            given = tensors({name: array[start : start + ROWS] for name, array in inputs.items()})
            returned = model(**{name: tensor.to(device) for name, tensor in given.items()})
            for part, value in zip(parts, returned if isinstance(returned, tuple) else (returned,), strict=True):
                part.append((value.float() if value.is_floating_point() else value).cpu().numpy())
    return {name: np.concatenate(part) for name, part in zip(recipe.outputs, parts, strict=True)}


def _device(model: torch.nn.Module) -> torch.device:
    import torch

    return next((weight.device for weight in model.parameters()), torch.device("cpu"))
