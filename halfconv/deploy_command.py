"""The command ``deploy``."""

from __future__ import annotations

from pathlib import Path

import click

from halfconv.terminal import Size, console, json_option, print_json, progress

__all__ = ["PACKAGES", "deploy"]

#: Names of `halfconv.deploy.kinds.KINDS`, which is not imported for the help.
PACKAGES = ("edge", "mobile", "node", "ray", "triton", "web")
TARGETS = ("portable", "cuda", "tensorrt", "cpu", "coreml", "xnnpack", "qnn", "web")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-p", "--package", type=click.Choice(PACKAGES), required=True, help="What it is for.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="The folder; a package of halfconv that lies there is replaced.")
@click.option("--half", type=click.Path(path_type=Path), metavar="FILE",
              help="A model that halfconv converted from MODEL, in place of a conversion.")
@click.option("--to", type=click.Choice(["fp16", "bf16"]), default="fp16", show_default=True, help="Half-precision format.")
@click.option("--target", type=click.Choice(TARGETS), help="What the model is converted for.  [default: what the package needs]")
@click.option("--samples", metavar="PATH|MODULE:FUNCTION",
              help="Real inputs: .npz, a folder of .npz or .npy, Polygraphy JSON, or a function.  [default: synthetic]")
@click.option("--tolerance", multiple=True, metavar="METRIC=VALUE[@OUTPUT]", help="A bound of drift, such as rel_l2=1e-2.")
@click.option("--tolerance-file", type=click.Path(path_type=Path), help="Bounds in a TOML file.")
@click.option("--block-op", multiple=True, metavar="OP", help="Keep this operator in FP32.")
@click.option("--block-node", multiple=True, metavar="REGEX", help="Keep nodes in FP32 whose whole id matches.")
@click.option("--block-scope", multiple=True, metavar="PREFIX", help="Keep a part of the model in FP32, by name prefix.")
@click.option("--fix", multiple=True, metavar="NAME=SIZE",
              help="Give a free dimension a size, by its name or as INPUT:AXIS=SIZE.")
@click.option("--record", type=click.IntRange(1), default=4, show_default=True, help="Samples that it verifies itself with.")
@click.option("--chunk-size", type=Size(), metavar="SIZE", help="Largest file of a model in the package web.  [default: 64MB]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="A setting of the package triton: instances, max_batch (rows; 0 for no batching), queue_delay (microseconds).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of samples that are made up.")
@click.option("--allow-links", type=click.Path(path_type=Path), metavar="ROOT",
              help="Read data files that are links if their real path lies below this folder.")
@json_option  # fmt: skip
def deploy(
    model: Path, package: str, output: Path, half: Path | None, to: str, target: str | None, samples: str | None,
    tolerance: tuple[str, ...], tolerance_file: Path | None, block_op: tuple[str, ...], block_node: tuple[str, ...],
    block_scope: tuple[str, ...], fix: tuple[str, ...], record: int, chunk_size: int | None,
    settings: tuple[str, ...], seed: int, allow_links: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a folder that runs MODEL, an FP32 model, in half precision elsewhere, and proves that it gives the same answers.

    The folder holds the converted model, examples, and recorded samples with what the FP32 model gives for them; its own
    verification runs before it is put in place, where its runtime is here.
    """
    from halfconv.deploy.packaging import deploy as run
    from halfconv.precision.rules import Rules

    rules = Rules(block_ops=block_op, block_nodes=block_node, block_scopes=block_scope)
    if half is not None and rules != Rules():
        raise click.UsageError("--block-op, --block-node and --block-scope are for a conversion, which --half leaves out; try: one")
    with progress(as_json, f"packing {model.name}") as on_progress:
        result = run(
            model, package, output, half=half, samples=samples, tolerance=tolerance, tolerance_file=tolerance_file, to=to,
            target=target, rules=rules, fix=fix, record=record, chunk_bytes=chunk_size, seed=seed, allow_links=allow_links,
            settings=_pairs(settings), on_progress=on_progress,
        )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
        return
    from halfconv.report.deploy import show_deploy

    show_deploy(result, console())


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Read ``NAME=VALUE``."""
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--set {text} has no value; try: --set {text}=1")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}
