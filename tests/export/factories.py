"""Modules that the tests of `halfconv export` export; each function is a factory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Net(nn.Module):
    """A block in a block, so that scopes have levels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image).flatten(1))


def net() -> nn.Module:
    return Net()


def with_example() -> Any:
    return Net(), torch.rand(2, 1, 8, 8), {"image": {0: "batch"}}


class Several(nn.Module):
    """Two inputs of different types; a dictionary, a list and None come out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        rows = self.table(ids) * scale
        return {"rows": rows, "nothing": None, "parts": [rows.sum(1), ids + 1]}


def several() -> nn.Module:
    return Several()


class Fixed(nn.Module):
    """Knows one batch size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(3.0)[:, None]


def fixed() -> nn.Module:
    return Fixed()


class Branch(nn.Module):
    """Goes one way or the other, as the data have it: torch.export refuses it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool((x > 1e9).any()) else x - 1


def branch() -> nn.Module:
    return Branch()


class Chance(nn.Module):
    """Gives something else at every call: no file can give the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def chance() -> nn.Module:
    return Chance()


class Impossible(nn.Module):
    """No exporter knows what to do with it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.T) if bool((x > 1e9).any()) else torch.linalg.eigvalsh(x.T @ x)


def impossible() -> nn.Module:
    return Impossible()


def broken() -> nn.Module:
    raise RuntimeError("no such file:\nweights")


def number() -> int:
    return 3


class Varied(nn.Module):
    """Takes any number of inputs."""

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.stack([part * index for index, part in enumerate(parts, 1)]).sum(0)


def varied() -> Any:
    return Varied(), (torch.rand(2, 3), torch.rand(2, 3))
