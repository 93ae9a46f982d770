"""Packages of real models, made once, and Python that has nothing but numpy and ONNX Runtime to run them with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfconv.deploy.manifest import write_manifest
from halfconv.deploy.node import ONNXRUNTIME_NODE
from halfconv.deploy.packaging import Deployment, deploy
from halfconv.profile import file_sha256
from tests import zoo
from tests.npm import npm_package

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits_cnn.onnx"
#: The real models that go through every kind of package.
MODELS = ("digits_cnn", *(pytest.param(key, marks=pytest.mark.slow) for key in ("magika", "rapidocr_det", "minilm_ts")))
KINDS = ("edge", "mobile", "node")


@cache
def source(key: str) -> Path:
    return DIGITS if key == "digits_cnn" else zoo.model(key)


@cache
def real_samples(key: str) -> tuple[dict[str, Any], ...]:
    if key == "digits_cnn":
        with np.load(DIGITS.with_suffix(".npz")) as held:
            return ({"image": held["image"][:3]}, {"image": held["image"][3:4]})
    names = {"magika": ["bytes"], "rapidocr_det": ["x"]}.get(key, ["input_ids", "attention_mask", "token_type_ids"])
    return tuple({name: sample[name] for name in names} for sample in zoo.samples(key)[:2])


def make(kind: str, key: str, folder: Path, half: Path | None = None) -> Deployment:
    """Pack a model, or what was converted from it, with two real samples."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "node":
        (folder / "node_modules").symlink_to(node_modules())
    return deploy(source(key), kind, folder / f"{kind}-{key}", half=half, samples=list(real_samples(key)), record=2)


def bare_python(folder: Path) -> dict[str, str]:
    """The environment of a Python that finds nothing but numpy and ONNX Runtime, if it is started with -S."""
    links = folder / "bare"
    if not links.exists():
        links.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if entry.name in ("numpy", "numpy.libs", "onnxruntime"):
                (links / entry.name).symlink_to(entry)
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PYTHONPATH": str(links), "PYTHONUTF8": "1"}


def run_bare(package: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a package there."""
    known = bare_python(folder)
    asked = [sys.executable, "-S", *command]
    return subprocess.run(asked, cwd=package, env=known, capture_output=True, text=True, timeout=300, check=False)


def verify(kind: str, package: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a package's own verification in its runtime."""
    if kind == "node":
        return subprocess.run(["node", "verify.mjs"], cwd=package, capture_output=True, text=True, timeout=300, check=False)
    return run_bare(package, folder, "verify.py")


def node_modules() -> Path:
    """Where npm installed onnxruntime-node."""
    return npm_package(f"onnxruntime-node@{ONNXRUNTIME_NODE}")


def sign_again(package: Path) -> None:
    """Write a manifest, and a profile, of what is there now."""
    content = json.loads((package / "manifest.json").read_text("utf-8"))
    model = package / "model" / content["model"]
    profile = model.with_name(model.name + ".profile.json")
    if profile.exists():
        changed = {**json.loads(profile.read_text("utf-8")), "model_sha256": file_sha256(model)}
        profile.write_text(json.dumps(changed), "utf-8")
    write_manifest(package, {key: value for key, value in content.items() if key not in ("schema_version", "files")})
