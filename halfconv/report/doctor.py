"""The doctor's report on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfconv.report.text import visible
from halfconv.runtime.providers import TENSOR_CORES

if TYPE_CHECKING:
    from halfconv.doctor import DoctorReport, ProviderState
    from halfconv.runtime.driver import Device
    from halfconv.runtime.installation import Facts

__all__ = ["show_doctor"]


def show_doctor(report: DoctorReport, console: Console) -> None:
    """Print what this machine can run, and what to do about the rest."""
    found = report.facts
    console.print(f"Python {report.python}, {_plain(report.system)}")
    wheels = " and ".join(f"{wheel.name} {wheel.version}" for wheel in found.wheels) or found.package or "none"
    made_for = f", made for CUDA {found.cuda}" if found.cuda else ""
    console.print(f"ONNX Runtime: {_plain(wheels)}{_plain(made_for)}")
    console.print(f"NVIDIA driver: {_plain(_driver(found))}")
    for index, device in enumerate(found.driver.devices):
        console.print(f"  GPU {index}: {_plain(_device(device))}")
    console.print(_plain(report.kernels.sentence()))
    if found.libraries:
        console.print(_libraries(found))
    console.print(_providers(report))
    asked = report.asked
    for problem in asked.problems:
        console.print(f"[red]problem:[/] {_plain(problem.found)}; try: {_plain(problem.advice)}")
    for limit in asked.limits:
        console.print(f"[yellow]note:[/] {_plain(limit.found)}; try: {_plain(limit.advice)}")
    for run in asked.runs:
        if asked.works and not run.passed:
            console.print(f"[yellow]note:[/] {run.dtype.upper()} does not run: {_plain(run.problem)}")
    if asked.works:
        console.print(f"[green]{asked.name} works[/]")
    elif asked.runs_fp16:
        console.print(f"[red]{asked.name} runs, but the installation is not sound[/]")
    else:
        console.print(f"[red]{asked.name} does not work here[/]")


def _plain(text: str) -> str:
    return escape(visible(text))


def _driver(found: Facts) -> str:
    driver = found.driver
    if not driver.version and not driver.cuda[0]:
        return "none"
    serves = f"serves CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda[0] else ""
    return ", ".join(part for part in (driver.version, serves, driver.error) if part)


def _device(device: Device) -> str:
    cores = [name.upper() for name, capability in TENSOR_CORES.items() if device.capability >= capability]
    capability = ".".join(map(str, device.capability))
    size = f"{device.memory / 2**30:.0f} GiB"
    return f"{device.name}, compute capability {capability}, {size}; tensor cores for {' and '.join(cores) or 'neither format'}"


def _libraries(found: Facts) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("library", "for", "version", "where"):
        table.add_column(column)
    rows: dict[str, tuple[list[str], str, str]] = {}
    for provider, libraries in found.libraries.items():
        for library in libraries:
            missing = "not found" + (f" ({', '.join(library.others)} is)" if library.others else "")
            users, _, _ = rows.setdefault(library.name, ([], library.version, library.path or missing))
            users.append(f"{provider} (when it runs)" if library.optional else provider)
    for name, (users, version, path) in rows.items():
        table.add_row(_plain(name), ", ".join(users), _plain(version), _plain(path))
    return table


def _providers(report: DoctorReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("provider", "FP16", "BF16", "FP16 kernels", "of package"):
        table.add_column(column)
    for state in report.states:
        kernels = state.kernels
        counts = (f"{len(kernels['fp16'])} of {kernels['operators']}", kernels["package"]) if kernels else ("", "")
        table.add_row(state.name, *_tried(state), *(_plain(text) for text in counts))
    return table


def _tried(state: ProviderState) -> list[str]:
    if not state.available:
        return ["not installed", ""]
    return ["runs" if run.passed else "fails" for run in state.runs]
