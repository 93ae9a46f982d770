"""Write the terminal pictures of the documentation: ``python docs/images/make.py``. The models are made here."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console

import halfconv
from halfconv.report.console import show_convert
from halfconv.report.validation import show_validation

FOLDER = Path(__file__).parent
WIDTH = 104
#: A norm of large numbers, which overflows when all of it is cast to half.
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
norm (float[n, 64] x) => (float[n, 64] scores) <float eps = {1e-5}> {
    h = MatMul(x, weight)
    squares = Mul(h, h)
    axis = Constant <value_ints = [-1]> ()
    mean = ReduceMean <axes = [-1]> (squares)
    lifted = Add(mean, eps)
    root = Sqrt(lifted)
    normal = Div(h, root)
    scaled = Mul(normal, gain)
    scores = Softmax(scaled)
}"""
#: Without loading a font from elsewhere.
FONT = "font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;"


def picture(title: str, command: str, show: object, *arguments: object) -> str:
    """Show something on a recorded console, and return the picture."""
    console = Console(record=True, width=WIDTH, highlight=False, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold green]$[/] {command}")
    show(*arguments, console)  # type: ignore[operator]
    text = console.export_svg(title=title, unique_id=title.replace(" ", "-"))
    fonts, styles = text.index("@font-face"), text.index(f".{title.replace(' ', '-')}-matrix")
    return (text[:fonts] + text[styles:]).replace("font-family: Fira Code, monospace;", FONT)


def main(where: Path = FOLDER) -> None:
    """Convert and validate, and write what that looks like.

    Args:
        where: The folder of the pictures.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model = onnx.parser.parse_model(MODEL)
        weights = {"gain": np.ones(64, np.float32), "weight": rng.standard_normal((64, 64)).astype(np.float32)}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
        onnx.save(model, "norm.onnx")
        np.savez("inputs.npz", x=60 * rng.standard_normal((4, 8, 64)).astype(np.float32))
        converted = halfconv.convert("norm.onnx", samples="inputs.npz")
        halfconv.convert("norm.onnx", "all-half.onnx", block_list="none", fuse=False, check=False)
        report = halfconv.validate("norm.onnx", "all-half.onnx", samples="inputs.npz", layers=True)
    command = "halfconv convert norm.onnx --samples inputs.npz"
    (where / "convert.svg").write_text(picture("halfconv convert", command, show_convert, converted), "utf-8")
    command = "halfconv validate norm.onnx all-half.onnx --samples inputs.npz --layers"
    (where / "validate.svg").write_text(picture("halfconv validate", command, show_validation, report), "utf-8")


if __name__ == "__main__":
    main()
