"""The demo's report on a console, in one screen of 100 columns and 40 lines."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from halfconv.demo import DemoReport

CPU_NOTE = (
    "ONNX Runtime's CPU provider casts most FP16 values up and computes in FP32, so a check on the CPU passes both files. "
    "The simulation rounds where a GPU's kernels round; `halfconv validate` uses it."
)
_MOST_RULES = 6
_MOST_WARNINGS = 3
_RULE_WIDTH = 24


def render(report: "DemoReport", console: "Console") -> None:
    """Print what the demo did.

    Args:
        report: What `halfconv.demo.run_demo` returned.
        console: Where to print.
    """
    from rich.text import Text

    files = report.files
    console.print(Text(f"halfconv demo: {report.model}, which tells a file's type from its bytes", style="bold"))
    console.print(
        Text(f"{files['used']} of {files['listed']} listed files used; {files['missing']} missing")
        + Text(f", {files['differ']} differ (other package versions)")
    )
    console.print(Text("  " + ", ".join(f"{label} {n['files']}" for label, n in report.types.items()), style="dim"))
    console.print(_compared(report))
    if report.first_bad:
        console.print(Text(f"ONNX Runtime's own conversion: {report.first_bad}"), overflow="fold")
    if report.conversion.fp32:
        console.print(_reasons(report))
    warnings = [*report.warnings, *report.conversion.warnings]
    for warning in warnings[:_MOST_WARNINGS]:
        console.print(Text(f"warning: {warning}", style="yellow"), overflow="ellipsis", no_wrap=True)
    if len(warnings) > _MOST_WARNINGS:
        console.print(Text(f"and {len(warnings) - _MOST_WARNINGS} more warnings (--json has them)", style="yellow"))
    console.print(Text(CPU_NOTE, style="italic"))
    console.print(Text(f"FP16 model: {report.kept or 'not kept (-o DIR keeps it)'}"), overflow="fold")


def _compared(report: "DemoReport") -> "Table":
    """The two models side by side."""
    from rich import box
    from rich.table import Table

    done, used = report.conversion, report.files["used"]
    half, single = done.values["half"], done.values["float"]
    seconds = sum(done.seconds.values())
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("FP32 model", justify="right")
    table.add_column(f"halfconv FP16 ({seconds:.1f} s)", justify="right")
    table.add_column("ONNX Runtime's own", justify="right")
    share = done.bytes_after / done.bytes_before
    table.add_row("bytes", f"{done.bytes_before:,}", f"{done.bytes_after:,} ({share:.0%})", "")
    table.add_row("values in half / FP32", f"0 / {half + single}", f"{half} / {single}, {done.casts} casts", "")
    right = {name: f"{report.correct[name]} of {used} = {report.accuracy[name]:.1%}" for name in report.correct}
    table.add_row("right type, on the CPU", right["fp32"], right["fp16_cpu"], right["other_cpu"])
    table.add_row("right type, GPU simulated", "", right["fp16_simulated"], right["other_simulated"])
    none = report.no_answer
    table.add_row("no answer, GPU simulated", "", str(none["fp16_simulated"]), str(none["other_simulated"]))
    table.add_row("as FP32, GPU simulated", "", f"{report.agreement:.1%}", "")
    return table


def _reasons(report: "DemoReport") -> "Table":
    """Why values stayed FP32, one row for each rule, the most frequent first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    groups: dict[str, list[str]] = defaultdict(list)
    for kept in report.conversion.fp32:
        groups[kept.rule].append(f"{kept.node or kept.value}: {kept.reason}")
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    table = Table(title="Why values stayed in FP32", title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    rest = ordered[_MOST_RULES:]
    more = f"{len(rest)} more rules"
    names = [rule for rule, _ in ordered[:_MOST_RULES]] + [more] * bool(rest)
    width = min(_RULE_WIDTH, max(map(len, names), default=0))
    table.add_column("rule", no_wrap=True, overflow="ellipsis", width=width)
    table.add_column("values", justify="right", no_wrap=True, width=len("values"))
    table.add_column("for example", no_wrap=True, overflow="ellipsis", ratio=1)
    for rule, examples in ordered[:_MOST_RULES]:
        table.add_row(Text(rule), str(len(examples)), Text(examples[0]))
    if rest:
        table.add_row(more, str(sum(len(examples) for _, examples in rest)), "--json has them")
    return table
