"""Photos, speech, text and files that packages ship, in the form that models read."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo.packages import package, packages

Array = np.ndarray

PHOTOS = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "china.jpg",
    "flower.jpg",
    "motorcycle_left.png",
    "retina.jpg",
)


def installed(name: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed: use the extra `test`"
    return Path(spec.origin).parent


# --- images --------------------------------------------------------------------------------------------------------


def image(name: str, mode: str = "RGB") -> Any:
    """A Pillow image from scikit-image's or scikit-learn's data."""
    from PIL import Image

    path = package("skimage") / "skimage" / "data" / name
    return Image.open(path if path.exists() else installed("sklearn") / "datasets" / "images" / name).convert(mode)


def resized(picture: Any, width: int, height: int, *, filtered: str = "BILINEAR") -> Array:
    """The picture as float32 (height, width, 3), from 0 to 255."""
    from PIL import Image

    return np.asarray(picture.resize((width, height), Image.Resampling[filtered]), np.float32)


def batch(pixels: Array) -> Array:
    """(height, width, channels) to (1, channels, height, width), float32."""
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def text_lines() -> list[Array]:
    """Grey text lines, cut out of two scanned pages where rows hold ink."""
    from scipy.ndimage import gaussian_filter

    lines = []
    for name in ("page.png", "text.png"):
        page = np.asarray(image(name, "L"), np.float32)
        inked = ((gaussian_filter(page, 15) - page) > 25).sum(1) > 4
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inked, [False]]).astype(int)))
        lines += [page[max(0, a - 3) : b + 3] for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= 8]
    return lines


# --- speech --------------------------------------------------------------------------------------------------------


def recordings(language: str = "*") -> list[Path]:
    """Spoken sentences, sorted by path."""
    return sorted((package("pytest_audioeval") / "pytest_audioeval/samples/audio").glob(f"{language}/*.wav"))


def waveform(path: Path, rate: int = 16000) -> Array:
    """Mono float32 samples from -1 to 1 at the given rate."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    found, x = wavfile.read(path)
    if x.dtype.kind == "i":
        x = x / float(np.iinfo(x.dtype).max + 1)
    elif x.dtype == np.uint8:
        x = (x - 128.0) / 128
    x = x.astype(np.float64)
    x = x.mean(1) if x.ndim > 1 else x
    if found != rate:
        common = math.gcd(found, rate)
        x = resample_poly(x, rate // common, found // common)
    return np.clip(x, -1, 1).astype(np.float32)


def speech(count: int) -> list[Array]:
    """Recordings spread over all languages, at 16 kHz."""
    paths = recordings()
    return [waveform(path) for path in paths[:: max(1, len(paths) // count)][:count]]


def at_least(x: Array, length: int) -> Array:
    """The recording, said again until it is long enough, and cut to the length."""
    while len(x) < length:
        x = np.concatenate([x, x])
    return x[:length]


def mel_spectrogram(y: Array, n_fft: int, hop: int, n_mels: int) -> Array:
    """Power mel spectrogram (frames, mels), Slaney scale and norm, centred Hann windows; as librosa's defaults."""
    from scipy.signal.windows import hann
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=0,
        max_frequency=8000.0,
        sampling_rate=16000,
        norm="slaney",
        mel_scale="slaney",
    )
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(y.astype(np.float64), n_fft // 2), n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * hann(n_fft, sym=False))) ** 2
    return np.maximum(power @ bank, 0)


def decibel(power: Array) -> Array:
    """Decibels below the loudest, cut at -80."""
    level = 10 * np.log10(np.maximum(power, 1e-10))
    return np.maximum(level - level.max(), -80)


# --- text and files ------------------------------------------------------------------------------------------------

_MODULES = (
    "sklearn.cluster",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.ensemble",
    "numpy",
    "scipy.signal",
    "scipy.stats",
    "scipy.optimize",
)


def sentences(count: int) -> list[str]:
    """First paragraphs of the documentation of scientific packages, in a fixed random order."""
    found = []
    for name in _MODULES:
        module = importlib.import_module(name)
        for member in sorted(dir(module)):
            text = getattr(getattr(module, member), "__doc__", None)
            if isinstance(text, str) and not member.startswith("_") and len(text) > 200:
                sentence = " ".join(text.strip().split("\n\n")[0].split())
                if 30 < len(sentence) < 300:
                    found.append(sentence)
    found = list(dict.fromkeys(found))
    return [found[i] for i in np.random.RandomState(0).permutation(len(found))[:count]]


def tokens(folder: Path, count: int) -> list[dict[str, Array]]:
    """Tokenised sentences, four to a batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = sentences(count)
    batches = []
    for start in range(0, count, 4):
        encoded = tokenizer(texts[start : start + 4], padding=True, truncation=True, max_length=128, return_tensors="np")
        batches.append({name: encoded[name].astype(np.int64) for name in TOKEN_INPUTS})
    return batches


TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# True type of a file by its ending, in Magika's words.
FILE_TYPES = {
    ".py": "python", ".png": "png", ".jpg": "jpeg", ".csv": "csv", ".json": "json", ".html": "html", ".css": "css",
    ".md": "markdown", ".h": "c", ".cpp": "cpp", ".so": "elf", ".gz": "gzip", ".pdf": "pdf", ".docx": "docx",
    ".mp3": "mp3", ".wav": "wav", ".mp4": "mp4", ".onnx": "onnx", ".rst": "rst", ".yaml": "yaml", ".xml": "xml",
    ".ogg": "ogg", ".bmp": "bmp", ".gif": "gif", ".epub": "epub", ".rtf": "rtf", ".avi": "avi", ".mkv": "mkv",
    ".flv": "flv",
}  # fmt: skip


def typed_files(known: list[str]) -> list[tuple[Path, str]]:
    """Up to 25 files of every type that the list knows, from the zoo's packages, scikit-learn and torch."""
    by_ending: dict[str, list[Path]] = {}
    for root in (*packages(), installed("sklearn"), installed("torch")):
        for path in _walk(root):
            ending = path.suffix.lower()
            if FILE_TYPES.get(ending) in known and path.stat().st_size > 64:
                by_ending.setdefault(ending, []).append(path)
    return [
        (paths[i], FILE_TYPES[ending])
        for ending, paths in sorted(by_ending.items())
        for i in np.random.RandomState(0).permutation(len(paths))[:25]
    ]


def _walk(root: Path) -> list[Path]:
    """Files of a folder first, then its sub-folders, all in the order of their names."""
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        found += [Path(folder, name) for name in sorted(names)]
    return found
