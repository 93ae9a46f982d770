"""A package on the console, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.text import Text

from halfconv.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.deploy.packaging import Deployment

__all__ = ["show_deploy"]


def show_deploy(result: Deployment, console: Console) -> None:
    """Print what was packed, and what its verification said.

    Args:
        result: What `halfconv.deploy.packaging.deploy` returned.
        console: Where to print.
    """
    sizes = f"{decimal(result.reference_bytes)} → {decimal(result.half_bytes)}"
    words = f"  {result.kind} package: {result.files} files, {decimal(result.bytes)}; model {result.to}, {sizes}"
    console.print(Text.assemble((visible(str(result.output)), "bold"), words), overflow="fold")
    for kind, slots in (("input ", result.inputs), ("output", result.outputs)):
        for slot in slots:
            dims = ", ".join(str(dim) for dim in slot.dims)
            console.print(Text(f"  {kind} {visible(slot.name)}: {slot.dtype}[{visible(dims)}]"), overflow="fold")
    plural = "" if result.recorded == 1 else "s"
    said = f"{result.recorded} {'SYNTHETIC' if result.sample_kind == 'synthetic' else 'given'} sample{plural} recorded"
    console.print(Text(f"  {said}; needs ONNX Runtime {result.min_ort} or newer"), overflow="fold")
    if result.verified.ran:
        for line in result.verified.words.splitlines():
            console.print(Text(f"  {visible(line)}"), overflow="fold")
    else:
        console.print(Text(f"  not verified here: {visible(result.verified.words)}", "yellow"), overflow="fold")
    for note in result.notes:
        console.print(Text(f"note: {visible(note)}"), overflow="fold")
    for warning in result.warnings:
        console.print(Text(f"warning: {visible(warning)}", "yellow"), overflow="fold")
