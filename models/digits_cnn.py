"""Handwritten digits: a small convolutional network."""

from __future__ import annotations

import torch
from torch import nn

from halfconv.drift.task import accuracy
from halfconv.recipes.digits import FOLDS, SOURCE, digits, shifted
from halfconv.recipes.recipe import Recipe


class DigitsCnn(nn.Module):
    """Three convolutions, and a classifier: 19,178 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(32 * 16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, 10] of images [batch, 1, 8, 8] from 0 to 1."""
        scores: torch.Tensor = self.classifier(self.features(image).flatten(1))
        return scores


RECIPE = Recipe(
    title="which digit was written, by a convolutional network",
    source=SOURCE,
    derived="",
    data=digits,
    model=DigitsCnn,
    loss=nn.functional.cross_entropy,
    metric=accuracy,
    metric_name="accuracy",
    threshold=0.98,
    outputs=("logits",),
    epochs=40,
    batch=64,
    learning_rate=4e-3,
    folds=FOLDS,
    augment=shifted,
)
