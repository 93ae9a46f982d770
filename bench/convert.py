"""Converts the same models with halfconv and with other converters, and compares time, memory and results.

    python bench/convert.py                                  all cases, all tools, the file that is committed
    python bench/convert.py --case magika --who halfconv     some of them, only printed

Tools (``--who``): ``halfconv``; ``onnxconverter-common`` (``float16.convert_float_to_float16``); ``ort-float16``
(``onnxruntime.transformers.float16.convert_float_to_float16``); ``modelopt`` (NVIDIA Model Optimizer's AutoCast). Each
runs in its own process and, halfconv aside, in its own virtual environment (see ``peers/environments.py``). All are
told to keep the model's inputs and outputs in FP32 (``keep_io_types=True``; halfconv does by default) and else have
their default settings. None is given samples. halfconv's defaults include checking its own output (onnx's full checker
and a session in a child process), which no other tool does; that time and memory count, and ``stages`` has them apart.

Figures of a row:

* ``seconds``: the whole process, interpreter start and imports included; of halfconv, ``python -m halfconv convert``;
* ``call_seconds``: the call alone, from the source's file to the written result, imports left out; of halfconv,
  ``halfconv.convert`` in a process of its own;
* ``peak_rss_mb``, ``peak_anon_mb``: the process that gave ``seconds`` with all its children; see ``machine.py``;
* ``nodes``, ``casts``, ``fp32_nodes``, ``checker``, ``io_kept``, ``loads``, ``runs``: see ``judge.py``, which gives
  their exact meaning; ``checker_error`` and so on hold the first line of what went wrong;
* ``bytes_in``, ``bytes_out``: model and external data.

Times are medians of ``--runs`` runs (``seconds_runs`` holds each), memory is the largest of them. Runs are interleaved:
every tool once, then every tool again in another order; a tool that needs more than ``--slow`` seconds for a model
converts it once. The source is read once beforehand, so that no tool pays for a cold disk. A tool that fails gets a row
with ``error`` and no figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script, only bench/ is there

from bench import models, record  # noqa: E402
from bench.machine import machine  # noqa: E402
from bench.peers.environments import HALFCONV, TOOLS, Tool  # noqa: E402
from bench.tools import TEMPORARY, Failed, Row, interpreters, judge, measured, model_bytes  # noqa: E402

RESULT = ROOT / "bench" / "results" / "convert_cpu.json"


def convert_once(tool: Tool, python: str, source: Path, folder: Path, timeout: float) -> Row:
    """Convert once with one tool.

    Args:
        tool: The tool.
        python: Its interpreter.
        source: The model to convert.
        folder: An empty folder; the result becomes ``result/model.onnx`` in it.
        timeout: Seconds after which the tool is given up.

    Returns:
        ``seconds``, ``call_seconds``, peaks, and halfconv's ``stages``.

    Raises:
        Failed: It did not convert.
    """
    output, report = folder / "result" / "model.onnx", folder / "report.json"
    output.parent.mkdir()
    usage, _ = measured(tool.call(python, source, output, report), folder, timeout)
    call = json.loads(report.read_text(encoding="utf-8"))["call_seconds"]
    row: Row = {}
    if tool.who == HALFCONV:
        for path in output.parent.iterdir():
            path.unlink()
        command = [python, "-m", "halfconv", "convert", str(source), "-o", str(output), "--json"]
        usage, said = measured(command, folder, timeout)
        row["stages"] = json.loads(said)["seconds"]
    if not output.is_file():
        raise Failed("it ended well but wrote no model")
    return row | {
        "seconds": usage.seconds,
        "call_seconds": call,
        "peak_rss_mb": usage.peak_rss_mb,
        "peak_anon_mb": usage.peak_anon_mb,
    }


def summarise(runs: Sequence[Row]) -> Row:
    """Make one row's figures of several runs: medians of times, the largest of memory peaks."""
    row: Row = {name: round(statistics.median(run[name] for run in runs), 3) for name in ("seconds", "call_seconds")}
    row["seconds_runs"] = [round(run["seconds"], 3) for run in runs]
    row |= {name: round(max(run[name] for run in runs), 1) for name in ("peak_rss_mb", "peak_anon_mb")}
    stages = [run["stages"] for run in runs if "stages" in run]
    if stages:
        row["stages"] = {name: round(statistics.median(run[name] for run in stages), 3) for name in stages[0]}
    return row


def compare(case: models.Case, pythons: dict[str, str], runs: int, slow: float, timeout: float) -> list[Row]:
    """Convert one model with every tool, several times in turns, and judge each tool's last result.

    Args:
        case: The model.
        pythons: The interpreter of each tool.
        runs: How often each tool converts.
        slow: Seconds; a tool whose conversion takes longer does it once.
        timeout: Seconds that one conversion may take.

    Returns:
        One row per tool.
    """
    for path in case.model.parent.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
    found: dict[str, list[Row]] = {who: [] for who in pythons}
    judged: dict[str, Row] = {}
    errors: dict[str, str] = {}
    for turn in range(runs):
        order = [*pythons][turn % len(pythons) :] + [*pythons][: turn % len(pythons)]
        for who in order:
            if who in errors or (found[who] and found[who][0]["seconds"] > slow):
                continue
            print(f"{case.key}: {who}, run {turn + 1} of {runs}", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
                try:
                    found[who].append(convert_once(TOOLS[who], pythons[who], case.model, Path(folder), timeout))
                except Failed as error:
                    errors[who] = str(error)
                    continue
                if turn == runs - 1 or found[who][0]["seconds"] > slow:
                    output = Path(folder) / "result" / "model.onnx"
                    judged[who] = judge(case, output, timeout) | {
                        "bytes_in": model_bytes(case.model),
                        "bytes_out": model_bytes(output),
                    }
    rows: list[Row] = []
    for who in pythons:
        figures = {"error": errors[who]} if who in errors else summarise(found[who]) | judged[who]
        rows.append({"case": case.key, "batch": None, "who": who} | figures)
    return rows


def report(options: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark.

    Args:
        options: The parsed command line.

    Returns:
        The content of the benchmark file.
    """
    pythons, broken = interpreters([TOOLS[who] for who in dict.fromkeys(options.who)], options.here)
    before = machine()
    rows: list[Row] = []
    for key in dict.fromkeys(options.case):
        try:
            case = models.case(key, options.zoo)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            rows += [{"case": key, "batch": None, "who": who, "error": str(error)} for who in pythons]
            continue
        rows += compare(case, pythons, options.runs, options.slow, options.timeout)
        rows += [{"case": key, "batch": None, "who": who, "error": error} for who, error in broken.items()]
    return record.content(options.command, before, pythons, rows, runs=options.runs, slow=options.slow)


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    columns = {
        "process s": ("seconds", ".2f"),
        "call s": ("call_seconds", ".2f"),
        "RSS MB": ("peak_rss_mb", ",.0f"),
        "anon MB": ("peak_anon_mb", ",.0f"),
        "casts": ("casts", "+d"),
        "FP32 nodes": ("fp32_nodes", "d"),
        "nodes": ("nodes", "d"),
        "size": ("size", ".0%"),
        "checker": ("checker", ""),
        "I/O kept": ("io_kept", ""),
        "loads": ("loads", ""),
        "runs": ("runs", ""),
    }
    notes = []
    for row in rows:
        if "stages" in row:
            stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items())
            notes.append(f"{row['case']}, {row['who']}: stages in seconds: {stages}")
    record.show(record.sized(rows), columns, notes)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench/convert.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", action="append", metavar="KEY", help="a model; may be repeated (default: all)")
    parser.add_argument("--who", action="append", choices=[*TOOLS], help="a tool; may be repeated (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="conversions per model and tool (default: 3)")
    parser.add_argument(
        "--slow", type=float, default=120, help="convert once if it takes longer (default: %(default)s)"
    )
    parser.add_argument("--zoo", type=Path, metavar="DIR", help="folder of zoo models (default: the tests' zoo)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per conversion (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help="run all tools in this interpreter, build no environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write here (default: bench/results, if all is run)")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if not (options.case or options.who or options.json or options.here):
        options.json = RESULT
    options.case, options.who = options.case or [*models.DEFAULT], options.who or [*TOOLS]
    options.command = shlex.join(["python", "bench/convert.py", *arguments])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, write its file and print the table.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0, whatever the tools did.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    result = report(options)
    if options.json:
        record.write(options.json, result)
    show(result["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
