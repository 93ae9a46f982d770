"""Results on the console, with rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfconv.graph.kernels import table_source
from halfconv.precision.formats import FORMATS
from halfconv.report.text import figure, metric_sentence, sampled, visible, waived

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport
    from halfconv.inspection import InspectReport
    from halfconv.result import ConvertResult, FloatValue

__all__ = ["show_convert", "show_inspect"]

#: Values named per reason before "and N more".
SHOWN = 3


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _plain(text: str) -> str:
    """Return a text from a model or a plan as text: no markup, and nothing that drives a terminal."""
    return escape(visible(text))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _fp32_table(entries: Iterable[FloatValue], limit: int) -> Table:
    """Group the FP32 values by rule and reason, most first."""
    rows: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        key = (entry.rule, entry.reason)
        rows[key] += 1
        names.setdefault(key, []).append(entry.value)
    table = Table(title="Values that stay FP32", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column, options in (("values", {"justify": "right"}), ("rule", {}), ("reason", {}), ("which", {})):
        table.add_column(column, **options)  # type: ignore[arg-type]  # rich types each option apart
    for key, count in rows.most_common(limit):
        which = ", ".join(names[key][:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
        table.add_row(str(count), _plain(key[0]), _plain(key[1]), _plain(which))
    if len(rows) > limit:
        table.add_row("…", "", f"{len(rows) - limit} more reasons; --json lists them all", "")
    return table


def _warn(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]note:[/] {_plain(warning)}")


def _pairs(counts: Mapping[str, int], limit: int = 12) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:limit]]
    return ", ".join(shown) + (f", … ({len(counts)} in all)" if len(counts) > limit else "")


def show_convert(result: ConvertResult, console: Console) -> None:
    """Print what a conversion did."""
    half, total = result.values["half"], sum(result.values.values())
    console.print(f"[bold]{_plain(str(result.output))}[/]  {result.to}, opset {result.opset}, {result.nodes:,} nodes")
    console.print(
        f"  {half:,} of {total:,} values in half ({_share(half, total)}), {result.casts} casts; "
        f"{_bytes(result.bytes_before)} → {_bytes(result.bytes_after)}; {sum(result.seconds.values()):.1f} s"
    )
    weights = result.weights
    console.print(
        f"  weights: {weights['half']} half, {weights['float']} FP32, {weights['both']} both"
        + (f"; fused: {_pairs(result.fusions)}" if result.fusions else "")
    )
    if result.kernels is not None:
        console.print(f"  operators of halfconv's own: {_pairs(result.kernels.operators) or 'none'}")
        for (name, reason), count in Counter((refusal.fusion, refusal.reason) for refusal in result.kernels.refused).most_common(4):
            console.print(f"  no {name}{f' at {count} nodes' if count > 1 else ''}: {_plain(reason)}")
    if result.check is None:
        console.print("  not checked")
    elif result.check.loaded:
        console.print(
            f"  checked: onnx checker, inputs and outputs, loads in ONNX Runtime {result.check.ort_version} "
            f"({result.check.provider.removesuffix('ExecutionProvider')}, {result.check.level})"
        )
    else:
        console.print("  checked: onnx checker, inputs and outputs")
    if result.drift is not None:
        _drift(result.drift, console)
    if result.repair is not None:
        found = result.repair
        stopped = {"time": "; stopped by --time-limit", "runs": "; stopped after its last run"}.get(found.stopped, "")
        proof = "; none of them can be half" if found.minimal else ""
        console.print(
            f"  repaired: {len(found.forced)} values forced to FP32{proof}; {found.runs} model runs, {found.seconds:.1f} s{stopped}"
        )
    for constant in result.constants[:8]:
        console.print(
            f"  constant {_plain(constant.name)}: {constant.saturated} of {constant.size} saturated, "
            f"{constant.flushed} flushed to zero (largest {constant.absmax:.4g})"
        )
    if len(result.constants) > 8:
        console.print(f"  … and {len(result.constants) - 8} more constants changed; --json lists them all")
    if result.fp32:
        console.print(_fp32_table(result.fp32, 12))
    _warn(console, result.warnings)


def _drift(report: DriftReport, console: Console) -> None:
    """Print the worst drift of a conversion, and its metrics."""
    measured = [output for output in report.outputs if output.measures.rel_l2 is not None]
    worst = max(measured, key=lambda output: output.measures.rel_l2 or 0.0, default=None)
    if worst is not None:
        console.print(
            f"  drift on {sampled(report)}, in simulation: rel_l2 {figure(worst.measures.rel_l2)} ({escape(visible(worst.name))})"
        )
    for metric in report.metrics:
        said = metric_sentence(metric.name, metric.reference, metric.candidate, metric.drop, metric.limit)
        console.print(f"  {escape(said)}")
    for sentence in waived(report):
        console.print(f"  {escape(sentence)}", style="yellow")


def _placement(report: InspectReport, console: Console) -> None:
    """Print how many nodes would run where they should, and which would not."""
    for provider, where, wanted, others in (
        ("cuda", "CUDA", "nodes with floating-point numbers have a kernel", "on the CPU instead"),
        ("cpu", "the CPU", "half nodes run in half", "in FP32 between Casts"),
    ):
        asked = [p for p in report.placement if p.provider == provider and (provider == "cuda" or p.dtype != "float")]
        total, native = sum(p.nodes for p in asked), sum(p.nodes for p in asked if p.runs == "native")
        if not total:
            continue
        line = f"  on {where} ({table_source(provider)}), {native:,} of {total:,} {wanted}"
        for runs, words in (("cpu" if provider == "cuda" else "casts", others), ("nowhere", "no kernel is known for")):
            names: Counter[str] = Counter()
            for p in asked:
                names.update({f"{p.op}-{p.version}": p.nodes if p.runs == runs else 0})
            if left := dict((+names).most_common()):
                line += f"; {words}: {_pairs(left, 6)}"
        console.print(_plain(line))


def show_inspect(report: InspectReport, console: Console) -> None:
    """Print what a model holds."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in report.opsets.items())
    console.print(f"[bold]{_plain(str(report.model))}[/]  {_bytes(report.bytes)}, IR {report.ir_version}, {opsets}")
    for side, values in (("in", report.inputs), ("out", report.outputs)):
        for name, kind in values:
            console.print(f"  {side:3} {_plain(name)}: {_plain(kind)}")
    console.print(f"  {report.nodes:,} nodes: {_pairs(report.ops)}")
    weights = ", ".join(f"{kind} {_bytes(size)}" for kind, size in report.dtypes.items())
    console.print(f"  weights: {weights or 'none'}")
    half, total = report.values["half"], sum(report.values.values())
    console.print(
        f"  converted, {half:,} of {total:,} values would be half ({_share(half, total)}), with {report.casts} casts"
        + (f"; fused: {_pairs(report.fusions)}" if report.fusions else "")
    )
    _placement(report, console)
    if report.weights:
        table = Table(title="Weights that half changes by more than rounding", title_justify="left", box=None, pad_edge=False)
        for column in ("weight", "elements", "largest", f"beyond {FORMATS[report.to].max:,.6g}", "flushed to zero", "inf or NaN"):
            table.add_column(column, justify="left" if column == "weight" else "right")
        for odd in report.weights[:12]:
            table.add_row(
                _plain(odd.name), f"{odd.size:,}", f"{odd.absmax:.4g}", f"{odd.saturated:,}", f"{odd.flushed:,}",
                f"{odd.nonfinite:,}",
            )  # fmt: skip
        if len(report.weights) > 12:
            table.add_row(f"… and {len(report.weights) - 12} more; --json lists them all")
        console.print(table)
    if report.fp32:
        console.print(_fp32_table(report.fp32, 20))
    _warn(console, report.warnings)
