"""Packages of real models, for the tests of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfconv.deploy.packaging import Deployment, deploy
from tests.deploy.packages import real_samples as whole_samples
from tests.deploy.packages import source

__all__ = ["REAL", "deployed", "real_samples"]

#: Models that every kind of package must carry.
REAL = ("digits_cnn", "magika", "minilm_ts", "rapidocr_det")


def real_samples(key: str) -> list[dict[str, Any]]:
    """Two real inputs of it: small ones, since a browser emulates a GPU with them."""
    samples = whole_samples(key)
    if key == "rapidocr_det":
        return [{"x": sample["x"][:, :, 160:256, 320:480]} for sample in samples]
    return [{name: array[:2] for name, array in sample.items()} for sample in samples]


def deployed(key: str, kind: str, folder: Path, **options: Any) -> Deployment:
    """Make a package ``folder/key`` of a real model."""
    model = folder / f"{key}.onnx"
    model.write_bytes(source(key).read_bytes())
    return deploy(model, kind, folder / key, samples=real_samples(key), **options)
