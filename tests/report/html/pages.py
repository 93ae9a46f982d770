"""Models and pages that several tests look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from halfconv.cli import main
from tests.graph import model

ROOT = Path(__file__).parents[3]
#: What every command is asked for, in a folder that holds digits_cnn and what the commands before it wrote.
COMMANDS: dict[str, list[str]] = {
    "convert": ["convert", "digits_cnn.onnx", "--samples", "digits_cnn.npz", "--tolerance", "rel_l2=2e-4", "--html"],
    "failed": ["convert", "digits_cnn.onnx", "-o", "other.onnx", "--samples", "digits_cnn.npz", "--tolerance", "rel_l2=1e-9",
               "--no-repair", "--force-failed", "failed.onnx", "--html"],
    "validate": ["validate", "digits_cnn.onnx", "digits_cnn.fp16.onnx", "--samples", "digits_cnn.npz", "--html"],
    "bench": ["bench", "digits_cnn.onnx", "digits_cnn.fp16.onnx", "--batch", "1,4", "--seconds", "0.2", "--provider", "cpu",
              "--html"],
    "sweep": ["sweep", "fleet.toml", "--jobs", "2", "--html"],
    "train": ["train", "digits_mlp", "-o", "trained", "--epochs", "2", "--precision", "fp16", "--html"],
}  # fmt: skip

FLEET = """bench = true
models = [
  { path = "digits_cnn.onnx", samples = "digits_cnn.npz", to = ["fp16", "bf16"] },
  { path = "broken.onnx" },
]
"""


def write_pages(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Write the pages of some commands, each NAME.html, as the commands do."""
    for file in ("digits_cnn.onnx", "digits_cnn.npz"):
        shutil.copy(ROOT / "models" / file, folder / file)
    (folder / "fleet.toml").write_text(FLEET, "utf-8")
    (folder / "broken.onnx").write_bytes(b"no model")
    found = {}
    for name in names:
        run(*COMMANDS[name], f"{name}.html", "--json")
        found[name] = folder / f"{name}.html"
        assert found[name].is_file(), name
    return found


def run(*arguments: object) -> int:
    """Run a command; return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def save_large(path: Path, blocks: int) -> int:
    """Save a model of that many blocks of five nodes, named as exporters do; return the number of its nodes."""
    lines, value = [], "x"
    for block in range(blocks):
        at = f"layers_{block // 10}_block_{block % 10}"
        ops = ("MatMul({0}, {0})", "Tanh({0})", "Sqrt({0})", "Add({0}, x)", "Softmax <axis = 1> ({0})")
        for number, op in enumerate(ops):
            made = f"{at}_{number}"
            lines.append(f"[n_{at}_{number}] {made} = {op.format(value)}")
            value = made
    text = "(float[4,4] x) => (float[4,4] y) {\n" + "\n".join(lines) + f"\n[last] y = Identity({value}) }}"
    made = ir.to_proto(model(text))
    for node in made.graph.node:
        if node.name.startswith("n_layers"):
            _, layer, depth, _, block, kind = node.name.split("_")
            node.name = f"/model/layers.{depth}/block.{block}/part.{kind}/{node.op_type}"
            assert layer == "layers"
    onnx.save(made, path)
    return len(made.graph.node)


def samples(path: Path, **arrays: np.ndarray) -> Path:
    """Save one sample."""
    np.savez(path, **arrays)
    return path


Cli = Callable[..., int]
