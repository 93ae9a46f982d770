"""Handwritten digits: a perceptron with two hidden layers."""

from __future__ import annotations

import torch
from torch import nn

from halfconv.drift.task import accuracy
from halfconv.recipes.digits import FOLDS, SOURCE, digits, shifted
from halfconv.recipes.recipe import Recipe


class DigitsMlp(nn.Module):
    """64 pixels, twice 128 hidden units, 10 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, 10] of images [batch, 1, 8, 8] from 0 to 1."""
        scores: torch.Tensor = self.layers(image.flatten(1))
        return scores


RECIPE = Recipe(
    title="which digit was written, by a perceptron",
    source=SOURCE,
    derived="",
    data=digits,
    model=DigitsMlp,
    loss=nn.functional.cross_entropy,
    metric=accuracy,
    metric_name="accuracy",
    threshold=0.96,
    outputs=("logits",),
    epochs=60,
    batch=64,
    learning_rate=4e-3,
    folds=FOLDS,
    augment=shifted,
)
