"""Small models with the structure of well-known ones and random weights, from both of PyTorch's exporters.

`make(key, folder)` writes ``KEY.onnx`` and returns its path with two samples, of different batch sizes and lengths where the model
has such axes. Keys are ``NAME_ts`` (TorchScript, eager attention) and ``NAME_dynamo`` (attention by PyTorch's own function).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["KEYS", "NAMES", "make"]

Sample = dict[str, np.ndarray]
WIDTH, HEADS, LAYERS, WORDS = 32, 4, 2, 50


@dataclass(frozen=True)
class Recipe:
    """A module made by `build`, its inputs and the names of their free axes."""

    build: Callable[[str], Any]
    samples: Callable[[], list[Sample]]
    axes: tuple[str, ...]
    attention: tuple[str, str] = ("eager", "sdpa")


def _tokens(*names: str) -> Callable[[], list[Sample]]:
    def samples() -> list[Sample]:
        random, found = np.random.default_rng(0), []
        for batch, length in ((2, 8), (3, 12)):
            made = {"input_ids": random.integers(1, WORDS, (batch, length))}
            if "attention_mask" in names:
                made["attention_mask"] = (np.arange(length) < random.integers(3, length, (batch, 1))).astype(np.int64)
            found.append(made)
        return found

    return samples


def _images() -> list[Sample]:
    random = np.random.default_rng(0)
    return [{"pixel_values": random.standard_normal((batch, 3, 32, 32)).astype(np.float32)} for batch in (2, 3)]


def _transformer(name: str, attention: str, **options: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")._from_config(config, attn_implementation=attention)


def _encoder(attention: str, name: str = "Bert", **options: Any) -> Any:
    return _transformer(
        name, attention, vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=32, **options,
    )  # fmt: skip


def _vectors() -> list[Sample]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((batch, length, WIDTH)).astype(np.float32)} for batch, length in ((2, 8), (2, 8))]


def _torch(attention: str) -> Any:
    """PyTorch's own encoder layers, whose attention folds heads into the batch."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.backends.mha.set_fastpath_enabled(False)  # which neither exporter knows
            layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 64, activation="gelu", batch_first=True)
            self.body = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

        def forward(self, x: Any) -> Any:
            return (self.body(x),)

    return Encoder()


def _vit(attention: str) -> Any:
    return _transformer(
        "ViT", attention, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip


def _packed_vit(attention: str) -> Any:
    """Blocks as in timm: one projection for queries, keys and values, a permutation to [3, batch, heads, length, size], a scale."""
    import torch
    from torch.nn import functional

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
            self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
            self.fc1, self.fc2 = torch.nn.Linear(WIDTH, 64), torch.nn.Linear(64, WIDTH)
            self.layer_scale = torch.nn.Parameter(torch.ones(WIDTH))

        def attend(self, x: Any) -> Any:
            batch, length, _ = x.shape
            qkv = self.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            if attention == "sdpa":
                answer = functional.scaled_dot_product_attention(q, k, v)
            else:
                answer = ((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
            return self.proj(answer.transpose(1, 2).reshape(batch, length, WIDTH))

        def forward(self, x: Any) -> Any:
            x = x + self.attend(self.norm1(x))
            return x + self.layer_scale * self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.blocks = torch.nn.Conv2d(3, WIDTH, 8, 8), torch.nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm = torch.nn.LayerNorm(WIDTH)

        def forward(self, pixel_values: Any) -> Any:
            return (self.norm(self.blocks(self.patch(pixel_values).flatten(2).transpose(1, 2))),)

    return Model()


def _convnext(attention: str) -> Any:
    return _transformer("ConvNext", "eager", hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=4)


def _resnet(attention: str) -> Any:
    return _transformer("ResNet", "eager", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])


def _gpt2(attention: str) -> Any:
    return _transformer(
        "GPT2", attention, vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=32, use_cache=False
    )  # fmt: skip


def _llama(attention: str) -> Any:
    return _encoder(attention, "Llama", num_key_value_heads=2, use_cache=False)


def _t5(attention: str) -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=LAYERS, num_heads=HEADS, use_cache=False
    )
    return transformers.T5EncoderModel._from_config(config, attn_implementation="eager")


RECIPES: dict[str, Recipe] = {
    "bert": Recipe(_encoder, _tokens("attention_mask"), ("batch", "sequence")),
    "bert_no_mask": Recipe(_encoder, _tokens(), ("batch", "sequence")),
    "bert_swapped": Recipe(_encoder, _tokens("attention_mask"), ("batch", "sequence"), ("sdpa", "eager")),
    "torch": Recipe(_torch, _vectors, ("batch", "sequence")),
    "timm_vit": Recipe(_packed_vit, _images, ("batch",)),
    "vit": Recipe(_vit, _images, ("batch",)),
    "convnext": Recipe(_convnext, _images, ("batch",)),
    "resnet": Recipe(_resnet, _images, ("batch",)),
    "gpt2": Recipe(_gpt2, _tokens("attention_mask"), ("batch", "sequence")),
    "llama": Recipe(_llama, _tokens("attention_mask"), ("batch", "sequence")),
    "t5": Recipe(_t5, _tokens("attention_mask"), ("batch", "sequence")),
}
NAMES = tuple(RECIPES)
KEYS = tuple(f"{name}_{exporter}" for name in RECIPES for exporter in ("ts", "dynamo"))


def make(key: str, folder: Path, *, opset: int | None = None) -> tuple[Path, list[Sample]]:
    """Export a model, unless the folder has it already."""
    name, _, exporter = key.rpartition("_")
    recipe = RECIPES[name]
    path, samples = folder / f"{key}{opset or ''}.onnx", recipe.samples()
    if not path.exists():
        with warnings.catch_warnings():  # of the exporters, about themselves
            warnings.simplefilter("ignore")
            _export(recipe, exporter, path, samples, opset)
    return path, samples


def _initialise(module: Any) -> None:
    """Change what fresh modules have as zeros and ones, which would hide mistakes, and make scores differ."""
    import torch

    for name, parameter in module.named_parameters():
        if "layer_scale" in name:
            parameter.data = 0.5 + torch.rand_like(parameter)
        elif parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "embed" not in name:
            parameter.data *= 5
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.data = 0.5 + torch.rand_like(buffer)


def _export(recipe: Recipe, exporter: str, path: Path, samples: Sequence[Sample], opset: int | None) -> None:
    import torch

    dynamo = exporter == "dynamo"
    torch.manual_seed(0)
    module = recipe.build(recipe.attention[dynamo]).eval()
    _initialise(module)

    class Plain(torch.nn.Module):
        """Takes arrays by position, returns one tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, *inputs: Any) -> Any:
            return self.body(**dict(zip(samples[0], inputs, strict=True)))[0]

    example = tuple(torch.tensor(array) for array in samples[0].values())
    axes = dict(enumerate(recipe.axes))
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": {name: axes for name in samples[0]}}
    if dynamo:
        dims = {index: torch.export.Dim(name, min=2, max=32) for index, name in axes.items()}
        options = {"dynamo": True, "dynamic_shapes": (tuple(dims for _ in example),), "verbose": False, "external_data": False}
    with torch.no_grad():
        torch.onnx.export(
            Plain().eval(), example, str(path), input_names=list(samples[0]), output_names=["y"],
            opset_version=opset or (18 if dynamo else 17), **options,
        )  # fmt: skip
