"""Small problems to train on."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["classes", "network", "shuffled"]


def classes(count: int = 96, features: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of four classes that a small network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, features, generator=generator) * 2
    labels = torch.arange(count) % 4
    return centres[labels] + torch.randn(count, features, generator=generator), labels


def network(features: int = 12, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A network for them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


def shuffled(batch: int = 16) -> DataLoader[tuple[torch.Tensor, ...]]:
    """The data in an order that a generator of its own decides."""
    return DataLoader(TensorDataset(*classes()), batch, shuffle=True, generator=torch.Generator())
