"""A training run on the console, with rich."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.text import Text

from halfconv.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from halfconv.recipes.training import TrainReport

__all__ = ["show_training"]


def show_training(report: TrainReport, console: Console) -> None:
    """Print what was trained, how well it does, and what to do next.

    Args:
        report: What `halfconv.recipes.training.train_recipe` returned.
        console: Where to print.
    """
    name = report.metric.rpartition(":")[2]
    sign, verdict = ("≥", "reached") if report.passed else ("<", "not reached")
    lost = next((epoch for epoch, entry in enumerate(report.result.history, 1) if not math.isfinite(entry["loss"])), None)
    drifts = [drift.measures.rel_l2 for drift in report.exported.compared or ()]
    known = [drift for drift in drifts if drift is not None]
    compared = f"as PyTorch within rel_l2 {max(known):.1e}" if known else "as PyTorch, which gives no numbers"
    lines = [
        f"  {report.title}",
        f"  {report.rows['train']:,} examples, {report.rows['test']:,} held out; {report.parameters:,} weights; "
        f"{report.precision} on {report.device}, {report.epochs} epochs, {report.seconds:.1f} s, {report.result.skipped} of "
        f"{report.result.steps:,} steps skipped",
        f"  {name} on held-out data {report.value:.4f} {sign} {report.threshold:g}: {verdict}",
        f"  exported: opset {report.exported.opset}, {decimal(report.exported.weight_bytes)} of weights, {compared}",
    ]
    if lost is not None:
        words = f"  the loss is NaN or infinite from epoch {lost} on, and the weights are of no use"
        lines.insert(2, f"{words}: fp16 keeps FP32 weights and scales the loss" if report.precision == "pure-fp16" else words)
    console.print(Text.assemble((visible(f"{report.recipe} → {report.output}"), "bold")), overflow="fold")
    for line in lines:
        console.print(Text(visible(line)), overflow="fold")
