"""Export the models of the GPU benchmarks that no package ships, with random weights: what they cost does not depend on these.

    python bench/gpu_models.py DIR [KEY…]

Needs torch with its exporter, timm and transformers. All have a free batch dimension; texts have 128 tokens unless the dimension is
free, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def bert_base() -> tuple[Any, tuple[Any, ...], dict[str, Any], list[str]]:
    """BERT-base: 12 layers, 768 wide."""
    import torch
    from transformers import BertConfig, BertModel

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel(BertConfig(attn_implementation="eager"))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(0, 30_000, (2, 128))
    return Wrapped(), (ids, torch.ones_like(ids)), {"input_ids": {0: "batch"}, "attention_mask": {0: "batch"}}, ["hidden"]


def _timm(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any], list[str]]:
    import timm
    import torch

    return timm.create_model(name), (torch.randn(2, 3, 224, 224),), {"x": {0: "batch"}}, ["logits"]


MODELS = {
    "bert_base": bert_base,
    "vit_b16": lambda: _timm("vit_base_patch16_224"),
    "convnext_t": lambda: _timm("convnext_tiny"),
    "resnet50": lambda: _timm("resnet50"),
}


def export(key: str, folder: Path) -> Path:
    """Write a model.

    Returns:
        Its file.
    """
    import torch

    torch.manual_seed(0)
    model, inputs, dynamic, outputs = MODELS[key]()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {name: {axis: batch for axis in axes} for name, axes in dynamic.items()}
    path = folder / f"{key}.onnx"
    torch.onnx.export(
        model.eval(), inputs, path, dynamo=True, input_names=list(dynamic), output_names=outputs, dynamic_shapes=shapes,
        opset_version=20, external_data=False, verbose=False,
    )  # fmt: skip
    return path


def main() -> None:
    """Run from the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for key in sys.argv[2:] or MODELS:
        path = export(key, folder)
        print(path, f"{path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
