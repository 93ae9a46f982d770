"""The digits: accuracy on all 1,797 images, each predicted by a model that has not seen it, before and after conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import halfconv  # noqa: E402
from halfconv.recipes.digits import FOLDS, digits, shifted  # noqa: E402
from halfconv.recipes.training import train_recipe  # noqa: E402


def test_each_digit_is_held_out_once_and_never_trained_with() -> None:
    folds = [digits(fold) for fold in range(FOLDS)]
    assert sum(len(test) for _, test in folds) == 1797
    everything = np.concatenate([test.inputs["image"].reshape(-1, 64) for _, test in folds])
    assert len(np.unique(everything, axis=0)) == 1797
    for train, test in folds:
        assert len(train) + len(test) == 1797
        both = np.concatenate([part.inputs["image"].reshape(-1, 64) for part in (train, test)])
        assert len(np.unique(both, axis=0)) == 1797
        assert np.bincount(test.labels["labels"]).min() >= 34


def test_shifting_moves_images_by_a_pixel_and_keeps_labels() -> None:
    part = digits(0)[1]
    moved = shifted(part, np.random.default_rng(0))
    assert moved.inputs["image"].shape == part.inputs["image"].shape
    assert moved.labels is part.labels
    same = (moved.inputs["image"] == part.inputs["image"]).all((1, 2, 3)).mean()
    assert 0.05 < same < 0.2


def predicted(precision: str, folder: Path) -> dict[str, float]:
    """Train on all folds; return the share of all digits that are right, as trained, as exported, and as converted to FP16."""
    right = {"trained": 0.0, "reference": 0.0, "candidate": 0.0}
    for fold in range(FOLDS):
        report = train_recipe("digits_cnn", folder / f"{precision}{fold}", precision=precision, device="cpu", fold=fold)
        model, samples = report.output / "model.onnx", report.output / "samples.npz"
        half = halfconv.convert(model, samples=samples).output
        drift = halfconv.validate(model, half, samples=samples, metrics=["accuracy"])
        assert drift.passed
        (metric,) = drift.metrics
        rows = report.rows["test"]
        right["trained"] += report.value * rows
        right["reference"] += metric.reference * rows
        right["candidate"] += metric.candidate * rows
    return {name: count / 1797 for name, count in right.items()}


@pytest.mark.slow
def test_five_folds_reach_98_percent_in_fp32_and_bf16_and_conversion_costs_at_most_0_2_points(tmp_path: Path) -> None:
    shares = {precision: predicted(precision, tmp_path) for precision in ("fp32", "bf16")}
    for share in shares.values():
        assert share["reference"] >= 0.98
        assert share["reference"] == pytest.approx(share["trained"], abs=1e-9)
        assert abs(share["candidate"] - share["reference"]) <= 0.002
    assert abs(shares["fp32"]["reference"] - shares["bf16"]["reference"]) <= 0.005
