"""Metrics of the recipes, ``f(outputs, extras) -> float``, as ``halfconv validate --metric`` takes them. Higher is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["balanced_frames", "detection_f1", "mean_iou", "neg_rmse"]


def balanced_frames(outputs: Mapping[str, Any], extras: Mapping[str, Any]) -> float:
    """Return the share of right frames, as the mean over frames of speech and others.

    Args:
        outputs: ``scores`` [rows, frames, 2].
        extras: ``speech`` [rows, frames], 1 for speech.
    """
    scores, speech = np.asarray(outputs["scores"]), np.asarray(extras["speech"])
    right = np.isfinite(scores).all(-1) & (scores.argmax(-1) == speech)
    return float(np.mean([right[speech == known].mean() for known in (0, 1)]))


def detection_f1(outputs: Mapping[str, Any], extras: Mapping[str, Any]) -> float:
    """Return the harmonic mean of the share of boxes that are right, and of the share of things that are found.

    A box is right if it shares at least half of its union with a thing of the same class that no surer box has found.

    Args:
        outputs: ``boxes`` [rows, boxes, 4] as left, top, right, bottom; ``confidence`` [rows, boxes], 0 for no box; ``digits``
            [rows, boxes], their classes.
        extras: ``box`` [rows, things, 4], ``digit`` [rows, things]; −1 for no thing.
    """
    right = boxes = things = 0
    found = (np.asarray(outputs["boxes"], np.float64), np.asarray(outputs["confidence"]), np.asarray(outputs["digits"]))
    for places, sure, classes, truth, known in zip(*found, np.asarray(extras["box"]), np.asarray(extras["digit"]), strict=True):
        open_things = known >= 0
        things += int(open_things.sum())
        boxes += int((sure > 0).sum())
        for box in np.argsort(-sure, kind="stable")[: int((sure > 0).sum())]:
            place, kind = places[box], classes[box]
            shared = np.clip(np.minimum(place[2:], truth[:, 2:]) - np.maximum(place[:2], truth[:, :2]), 0, None).prod(1)
            union = (place[2:] - place[:2]).prod() + (truth[:, 2:] - truth[:, :2]).prod(1) - shared
            overlap = np.where(open_things & (known == kind), shared / np.maximum(union, 1e-9), 0)
            if overlap.max() >= 0.5:
                open_things[overlap.argmax()] = False
                right += 1
    return 2 * right / (boxes + things) if boxes + things else 1.0


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
