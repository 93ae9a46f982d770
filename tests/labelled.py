"""A real model's samples together with their labels."""

from __future__ import annotations

import numpy as np

from tests import zoo

__all__ = ["labelled"]


def labelled(key: str) -> list[dict[str, np.ndarray]]:
    """Return the samples, each with an entry ``labels``."""
    found, at = [], 0
    labels = zoo.labels(key)
    assert labels is not None
    for sample in zoo.samples(key):
        rows = len(next(iter(sample.values())))
        found.append({**sample, "labels": labels[at : at + rows]})
        at += rows
    assert at == len(labels)
    return found
