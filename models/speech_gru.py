"""Speech or not, frame by frame: a GRU."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from halfconv.recipes.metrics import balanced_frames
from halfconv.recipes.recipe import Recipe, Split
from halfconv.recipes.wheels import Wheel, unpacked

Array = NDArray[Any]
RECORDINGS = Wheel(
    "pytest-audioeval==0.1.3",
    ("pytest_audioeval/samples/audio/",),
    (".wav",),
    "7f20b3ada501612238ce6e2b5fe588fa33c42e92e90a44e2143e0bc37e27b4ec",
)
SILERO = Wheel(
    "silero-vad==6.2.3",
    ("silero_vad/data/silero_vad_16k_op15.onnx",),
    (".onnx",),
    "d5b4013123128913ad3ac52e675e85098f79c34f6b82926e37a9dabaf4ac7a1a",
)
RATE = 16000
#: Samples of a frame, and those before it that the teacher looks at, too.
FRAME, CONTEXT = 512, 64
#: Frames of an example, and from one to the next; frequency bands.
FRAMES, STRIDE, BANDS = 48, 12, 24


class SpeechGru(nn.Module):
    """A linear layer, a GRU, and two scores for each frame."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(BANDS, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.scores = nn.Linear(width, 2)

    def forward(self, bands: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, frames, 2] of silence and speech, of log energies [batch, frames, 24]."""
        states, _ = self.gru(torch.relu(self.first(bands)))
        scores: torch.Tensor = self.scores(states)
        return scores


def waveform(path: Path) -> Array:
    """Return a recording as float32 at 16 kHz, from -1 to 1."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of notes in the files
        rate, sound = wavfile.read(path)
    if sound.dtype.kind == "i":
        sound = sound / (np.iinfo(sound.dtype).max + 1)
    sound = sound.astype(np.float64).reshape(len(sound), -1).mean(1)
    if rate != RATE:
        common = int(np.gcd(rate, RATE))
        sound = resample_poly(sound, RATE // common, rate // common)
    clipped: Array = np.clip(sound, -1, 1).astype(np.float32)
    return clipped


def noisy(sound: Array, random: np.random.Generator) -> Array:
    """Put pauses around a recording, and noise of a random loudness below all of it."""
    pauses = random.integers(RATE // 2, RATE, 2)
    padded = np.concatenate([np.zeros(pauses[0]), sound, np.zeros(pauses[1])])
    level = np.abs(sound).max() * 10 ** random.uniform(-3, -1.5)
    mixed: Array = (padded + level * random.standard_normal(len(padded))).astype(np.float32)
    return mixed


def energies(sound: Array) -> Array:
    """Return the log energies [frames, bands] of a sound, on bands that widen with frequency, scaled to about -1 to 1."""
    frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2
    edges = np.unique(np.round(np.geomspace(2, FRAME // 2, BANDS + 8)).astype(int))[-BANDS - 1 :]
    bands = np.stack([power[:, low:high].mean(1) for low, high in itertools.pairwise(edges)], 1)
    scaled: Array = ((np.log(bands + 1e-6) + 4) / 8).astype(np.float32)
    return scaled


def teacher(sound: Array) -> Array:
    """Return what Silero's model says of each frame: 1 for speech."""
    import onnxruntime

    session = onnxruntime.InferenceSession(next(unpacked(SILERO).rglob("*.onnx")), providers=["CPUExecutionProvider"])
    state, padded = np.zeros((2, 1, 128), np.float32), np.pad(sound, (CONTEXT, 0))
    fixed = {"sr": np.array(RATE, np.int64)} if "sr" in {entry.name for entry in session.get_inputs()} else {}
    found = []
    for start in range(0, len(sound) - FRAME + 1, FRAME):
        window = padded[start : start + CONTEXT + FRAME][None]
        score, state = session.run(None, {"input": window, "state": state, **fixed})[:2]
        found.append(int(score.reshape(-1)[0] > 0.5))
    return np.array(found, np.int64)


def frames(fold: int) -> tuple[Split, Split]:
    """Return pieces of 20 recordings, and of 7 others in other voices."""
    parts: tuple[list[tuple[Array, Array]], ...] = ([], [])
    for index, path in enumerate(sorted(unpacked(RECORDINGS).rglob("*.wav"))):
        random = np.random.default_rng(index)
        sound = noisy(waveform(path), random)
        bands, speech = energies(sound), teacher(sound)
        held = index % 4 == 3
        for start in range(0, len(bands) - FRAMES + 1, FRAMES if held else STRIDE):
            parts[held].append((bands[start : start + FRAMES], speech[start : start + FRAMES]))
    splits = [
        Split({"bands": np.stack([bands for bands, _ in part])}, {"speech": np.stack([speech for _, speech in part])})
        for part in parts
    ]
    return splits[0], splits[1]


def cross_entropy(outputs: torch.Tensor, target: Any) -> torch.Tensor:
    """Return the loss of all frames."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), target.flatten())


RECIPE = Recipe(
    title="which 32 ms of a recording are speech",
    source="27 recordings in 9 languages, shipped by pytest-audioeval, with noise and pauses added",
    derived="Silero's voice activity model, shipped by silero-vad, says which frames are speech",
    data=frames,
    model=SpeechGru,
    loss=cross_entropy,
    metric=balanced_frames,
    metric_name="halfconv.recipes.metrics:balanced_frames",
    threshold=0.95,
    outputs=("scores",),
    epochs=30,
    batch=32,
    learning_rate=5e-3,
    dims={"bands": {1: "frames"}},
)
