"""Packages of real models, for the tests of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from halfconv.deploy.packaging import Deployment, deploy
from tests import zoo

__all__ = ["REAL", "deployed", "real_model", "real_samples"]

#: Models that every kind of package must carry.
REAL = ("digits_cnn", "magika", "minilm_dynamo", "rapidocr_det")
DIGITS = Path(__file__).parents[2] / "models"


def real_model(key: str) -> Path:
    """The FP32 model."""
    return DIGITS / "digits_cnn.onnx" if key == "digits_cnn" else zoo.model(key)


def real_samples(key: str) -> list[dict[str, Any]]:
    """Two real inputs of it: small ones, since a browser emulates a GPU with them."""
    if key == "digits_cnn":
        with np.load(DIGITS / "digits_cnn.npz") as arrays:
            return [{"image": arrays["image"][start : start + 4]} for start in (0, 4)]
    samples = zoo.samples(key)[:2]
    if key == "rapidocr_det":
        return [{"x": sample["x"][:, :, 160:256, 320:480]} for sample in samples]
    return [{name: array[:2] for name, array in sample.items()} for sample in samples]


def deployed(key: str, kind: str, folder: Path, **options: Any) -> Deployment:
    """Make a package ``folder/key`` of a real model."""
    model = folder / f"{key}.onnx"
    model.write_bytes(real_model(key).read_bytes())
    return deploy(model, kind, folder / key, samples=real_samples(key), **options)
