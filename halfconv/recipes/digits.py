"""The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels each."""

from __future__ import annotations

import numpy as np

from halfconv.recipes.recipe import Split

__all__ = ["FOLDS", "SOURCE", "digits", "shifted"]

FOLDS = 5
SOURCE = "scikit-learn's digits (UCI, 1,797 images)"


def digits(fold: int) -> tuple[Split, Split]:
    """Return four fifths of the digits to train with, and one to test with.

    Args:
        fold: Which fifth is held out; each digit is in one of the five.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold

    images, labels = load_digits(return_X_y=True)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    train, test = list(folds.split(images, labels))[fold]
    everything = Split(
        {"image": (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)}, {"labels": labels.astype(np.int64)}
    )
    return everything.rows(np.sort(train)), everything.rows(np.sort(test))


def shifted(part: Split, random: np.random.Generator) -> Split:
    """Shift every image by up to one pixel each way; what comes in is empty."""
    images = np.pad(part.inputs["image"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    down, right = random.integers(0, 3, (2, len(images)))
    moved = [image[:, y : y + 8, x : x + 8] for image, y, x in zip(images, down, right, strict=True)]
    return Split({"image": np.stack(moved)}, part.labels)
