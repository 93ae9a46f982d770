"""Metrics of the recipes, ``f(outputs, extras) -> float``, as ``halfconv validate --metric`` takes them. Higher is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["mean_iou", "neg_rmse"]


def neg_rmse(outputs: Mapping[str, Any], extras: Mapping[str, Any]) -> float:
    """Return the root of the mean squared error, negative.

    Args:
        outputs: ``rating`` [rows].
        extras: The right ``rating`` [rows].
    """
    error = np.asarray(outputs["rating"], np.float64) - np.asarray(extras["rating"], np.float64)
    return -float(np.sqrt(np.mean(error**2)))


def mean_iou(outputs: Mapping[str, Any], extras: Mapping[str, Any]) -> float:
    """Return the overlap of predicted and right areas over their union, pooled over all pixels, as the mean over the classes.

    Args:
        outputs: ``scores`` [rows, classes, height, width].
        extras: ``mask`` [rows, height, width], the right class of every pixel.
    """
    scores, right = np.asarray(outputs["scores"]), np.asarray(extras["mask"])
    found = np.where(np.isfinite(scores).all(1), scores.argmax(1), -1)  # a pixel without scores belongs to no class
    overlaps = []
    for known in range(scores.shape[1]):
        union = np.count_nonzero((found == known) | (right == known))
        if union:
            overlaps.append(np.count_nonzero((found == known) & (right == known)) / union)
    return float(np.mean(overlaps))
