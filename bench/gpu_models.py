"""Models of the GPU benchmarks that no package ships, with random weights: what they cost does not depend on these.

    python bench/gpu_models.py DIR [KEY…]

Needs torch with its exporter, and timm or transformers. All have a free batch dimension; texts have 128 tokens. A tiny one of each
kind needs neither timm nor a GPU, and is for tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is made, and what it takes.

    Attributes:
        build: Makes the torch module; takes the attention, ``sdpa`` or ``eager``.
        feeds: Makes inputs of a batch size from a seed.
        output: Name of its output.
        optimizer: The type of model that ONNX Runtime's optimizer takes it for; also heads and width, where it must be told.
        convolutions: Whether it has any, for which the order of channels matters.
        attention: Whether it has any, of which torch has two kinds.
    """

    build: Callable[[str], Any]
    feeds: Callable[[int, int], Feeds]
    output: str
    optimizer: str
    convolutions: bool
    attention: bool


def _bert(attention: str, **sizes: int) -> Any:
    """BERT: 12 layers, 768 wide, unless sizes say otherwise."""
    import torch
    from transformers import BertConfig, BertModel

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel(BertConfig(attn_implementation=attention, **sizes))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Wrapped()


def _timm(name: str, attention: str, **options: Any) -> Any:
    import timm

    timm.layers.set_fused_attn(attention == "sdpa")  # read when a model is made
    return timm.create_model(name, **options)


def _small_cnn(_: str) -> Any:
    import torch

    layers = [torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, 2, 1)]
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10))


def _text(length: int, words: int) -> Callable[[int, int], Feeds]:
    """Token ids, and masks of which the last part is padding: a quarter of the tokens at least is none."""

    def make(batch: int, seed: int) -> Feeds:
        random = np.random.default_rng(seed)
        ends = random.integers(length // 4, length + 1, (batch, 1))
        mask = (np.arange(length) < ends).astype(np.int64)
        return {"input_ids": random.integers(1, words, (batch, length)) * mask, "attention_mask": mask}

    return make


def _images(size: int) -> Callable[[int, int], Feeds]:
    return lambda batch, seed: {"x": np.random.default_rng(seed).standard_normal((batch, 3, size, size), np.float32)}


_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 1000}
MODELS = {
    "bert_base": Recipe(_bert, _text(128, 30_000), "hidden", "bert", convolutions=False, attention=True),
    "vit_b16": Recipe(
        partial(_timm, "vit_base_patch16_224"), _images(224), "logits", "vit:12:768", convolutions=True, attention=True
    ),
    # The layer scale of 1e-6 that training begins with is below FP16's normal numbers; trained ones are not.
    "convnext_t": Recipe(
        partial(_timm, "convnext_tiny", ls_init_value=0.1), _images(224), "logits", "bert", convolutions=True, attention=False
    ),
    "resnet50": Recipe(partial(_timm, "resnet50"), _images(224), "logits", "bert", convolutions=True, attention=False),
    "tiny_bert": Recipe(partial(_bert, **_TINY), _text(16, 1000), "hidden", "bert", convolutions=False, attention=True),
    "tiny_cnn": Recipe(_small_cnn, _images(32), "logits", "bert", convolutions=True, attention=False),
}
DEFAULT = ("bert_base", "vit_b16", "convnext_t", "resnet50")


def module(key: str, attention: str = "eager") -> Any:
    """Make a model of torch, in evaluation mode; its weights are the same each time."""
    import torch

    torch.manual_seed(0)
    return MODELS[key].build(attention).eval()


def export(key: str, path: Path) -> None:
    """Write a model as ONNX."""
    import torch

    recipe = MODELS[key]
    feeds = {name: torch.from_numpy(array) for name, array in recipe.feeds(2, 0).items()}
    batch = torch.export.Dim("batch", min=1, max=4096)
    model = module(key, "sdpa" if recipe.convolutions else "eager")
    shapes = {name: {0: batch} for name in _arguments(model, feeds)}
    torch.onnx.export(
        model, tuple(feeds.values()), path, dynamo=True, input_names=list(feeds), output_names=[recipe.output],
        dynamic_shapes=shapes, opset_version=20, external_data=False, verbose=False,
    )  # fmt: skip


def _arguments(model: Any, feeds: Feeds) -> list[str]:
    """The names that the module itself gives its inputs, which may differ from the file's."""
    import inspect

    return list(inspect.signature(model.forward).parameters)[: len(feeds)]


def main() -> None:
    """Run from the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for key in sys.argv[2:] or DEFAULT:
        path = folder / f"{key}.onnx"
        export(key, path)
        print(path, f"{path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
