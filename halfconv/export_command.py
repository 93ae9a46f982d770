"""The command ``export``."""

from __future__ import annotations

from pathlib import Path

import click

from halfconv.terminal import console, json_option, print_json, progress

__all__ = ["export"]


@click.command()
@click.argument("target")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
              help="Weights for the module: .safetensors, or a file of torch.save, of which nothing but tensors is loaded.")
@click.option("--trust", is_flag=True, help="Load a .pt2 program: parts of it are unpickled, which can run any code.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=TYPE[DIM,…]",
              help="An input to make up, as image=float32[batch,3,224,224]; a dimension that is a name stays free.")
@click.option("--example", type=click.Path(path_type=Path), metavar="FILE.npz", help="Real inputs, as arrays by name.")
@click.option("--dynamic", multiple=True, metavar="INPUT:AXIS=NAME", help="A dimension that stays free, as image:0=batch.")
@click.option("--output-names", default="", metavar="NAME,…", help="Names of the outputs.")
@click.option("--opset", type=click.IntRange(7), metavar="N", help="ONNX opset.  [default: the recipe's, or 20]")
@click.option("--exporter", type=click.Choice(["auto", "dynamo", "torchscript"]), default="auto", show_default=True,
              help="'auto' takes torch.export's, and where that fails the one that traces.")
@click.option("--external-data", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Store weights beside the model; 'auto' does so beyond 2 GB.")
@click.option("--tolerance", multiple=True, metavar="METRIC=VALUE[@OUTPUT]",
              help="A bound on the distance from PyTorch.  [default: rel_l2=1e-4]")
@click.option("--check/--no-check", default=True, show_default=True, help="Run the file, and compare it with PyTorch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is made up.")
@json_option  # fmt: skip
def export(
    target: str, output: Path, weights: Path | None, trust: bool, inputs: tuple[str, ...], example: Path | None,
    dynamic: tuple[str, ...], output_names: str, opset: int | None, exporter: str, external_data: str, tolerance: tuple[str, ...],
    check: bool, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Export a PyTorch model to ONNX, and compare the file with PyTorch; exit code 1 if they differ.

    TARGET is package.module:factory, a function of yours that returns a module, or (module, inputs), or (module, inputs, free
    dimensions): its code is imported and run. Or a .pt2 program; or a recipe of `halfconv train`, with --weights.
    """
    from halfconv.export.exporting import export as run

    with progress(as_json, f"exporting {target}") as on_progress:
        result = run(
            target, output, weights=weights, trust=trust, inputs=inputs, example=example, dynamic=dynamic,
            output_names=[name.strip() for name in output_names.split(",") if name.strip()], opset=opset, exporter=exporter,
            external_data=external_data, tolerance=tolerance, check=check, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
        return
    from halfconv.report.export import show_export

    show_export(result, console())
