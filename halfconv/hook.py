"""The hook for pre-commit: validate the half-precision models of changed files.

``python -m halfconv.hook FILES…`` pairs every ``MODEL.onnx`` with ``MODEL.fp16.onnx`` and ``MODEL.bf16.onnx`` beside it, whichever
of them changed, and validates each pair, on ``MODEL.npz`` if that lies there too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from halfconv.cli import main

__all__ = ["hook", "pairs"]

ENDINGS = (".fp16.onnx", ".bf16.onnx")


def pairs(files: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of reference and candidate that changed files belong to, each once.

    Args:
        files: Changed files; those that are neither, or whose other half is missing, belong to none.
    """
    found: dict[tuple[Path, Path], None] = {}
    for file in files:
        ending = next((known for known in ENDINGS if file.name.endswith(known)), None)
        stem = file.name.removesuffix(ending or ".onnx")
        reference = file.with_name(f"{stem}.onnx")
        candidates = [file] if ending else [file.with_name(f"{stem}{known}") for known in ENDINGS]
        found |= {(reference, known): None for known in candidates if known.is_file() and reference.is_file()}
    return list(found)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--tolerance", multiple=True, metavar="METRIC=VALUE[@OUTPUT]", help="A bound of drift.")
@click.option("--tolerance-file", metavar="FILE", help="Bounds and waivers in a TOML file.")
@click.option("--samples", metavar="PATH|MODULE:FUNCTION", help="Inputs of all models.  [default: MODEL.npz, else synthetic]")
def hook(files: tuple[Path, ...], tolerance: tuple[str, ...], tolerance_file: str | None, samples: str | None) -> None:
    """Validate the half-precision models that FILES belong to."""
    worst = 0
    for reference, candidate in pairs(files):
        options = [f"--tolerance={bound}" for bound in tolerance]
        options += [f"--tolerance-file={tolerance_file}"] if tolerance_file is not None else []
        beside = reference.with_suffix(".npz")
        given = samples if samples is not None else str(beside) if beside.is_file() else None
        options += [f"--samples={given}"] if given is not None else []
        try:
            main(["validate", *options, "--", str(reference), str(candidate)])
        except SystemExit as stop:
            worst = max(worst, int(stop.code or 0))
    sys.exit(worst)


if __name__ == "__main__":
    hook()
