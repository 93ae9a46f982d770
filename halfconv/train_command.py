"""The command ``train``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from halfconv.html_option import check_html, html_option, write_html
from halfconv.terminal import console, json_option, print_json, progress

__all__ = ["train"]


@click.command()
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
              help="Where model.onnx, weights.safetensors, samples.npz and metrics.json go.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "pure-fp16"]), default="fp32", show_default=True,
              help="fp16 and bf16 keep FP32 weights, and fp16 scales the loss; pure-fp16 does neither, and shows why.")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Times through the data.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights and the order of the data.")
@click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Which part of the data is held out.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where to train.")
@html_option
@json_option  # fmt: skip
def train(
    recipe: str, output: Path, precision: str, epochs: int | None, seed: int, fold: int, device: str, html: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Train RECIPE on real data that packages ship, export it, and measure it on held-out data.

    Recipes: digits_cnn, digits_mlp, movie_ratings, cells_unet, docstrings_bert, digit_detector, speech_gru. The exit code is 1 if
    the metric stays below what the recipe promises, unless --epochs is given.
    """
    from halfconv.recipes.training import train_recipe

    check_html(html, {}, ())
    with progress(as_json, f"training {recipe}") as on_progress:
        report = train_recipe(
            recipe, output, precision=precision, device=device, epochs=epochs, seed=seed, fold=fold, on_progress=on_progress
        )
    if html is not None:
        from halfconv.report.html.train import train_view

        files = {name: output / name for name in report.to_dict()["files"]}
        write_html(html, lambda origin: train_view(report.to_dict(), origin), files, {"weights and order of the data": seed})
    if as_json:
        print_json(report.to_dict())
    else:
        from halfconv.report.training import show_training

        show_training(report, console())
    if epochs is None and not report.passed:
        sys.exit(1)
