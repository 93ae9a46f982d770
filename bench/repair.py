"""Converts the same models with the same samples and tolerance, and compares what each tool's search finds and costs.

    python bench/repair.py --save                                all cases, all tools, the file that is committed
    python bench/repair.py --cases magika --who halfconv         some of them, only printed

Tools (``--who``), each in a process and, halfconv aside, a virtual environment of its own:

* ``halfconv``: ``convert --samples --tolerance rel_l2=0.01``, for the default target;
* ``onnxconverter-common``: ``auto_convert_mixed_precision``, which searches by running candidates on ONNX Runtime's CPU
  provider with one feed, and stops where a function of ours finds rel_l2 within the same tolerance;
* ``onnxconverter-common+simulation``: the same search, but that function asks halfconv's simulation with all samples;
* ``modelopt``: AutoCast with the samples as calibration data. It measures ranges once; it takes no tolerance.

All keep inputs and outputs in FP32. ``peers/sampled_*.py`` say how each is called. Samples are all those of the zoo's model.

Figures of a row:

* ``samples``: feeds in the samples;
* ``seconds``: the whole process, interpreter start and imports included; ``call_seconds``: the call alone. One run each;
* ``candidates``: converted models that the search tried;
* ``model_runs``: calls of ``InferenceSession.run``, FP32 model and probes for types included; ``passes``: the same per feed that
  the tool takes (``feeds``): how often it went through all that it was given. A candidate given up early counts in part;
* ``own_rel_l2``: what onnxconverter-common's last run showed it on the CPU;
* ``rel_l2``: drift of the worst output in ``halfconv validate``'s simulation of a GPU on all samples, null if NaN or infinite;
  ``new_nan``, ``new_inf`` in elements of all outputs; ``meets``: the verdict, rel_l2 of every output and no new NaN or infinity
  among its conditions, ``broken`` the bounds that do not hold; ``drift_error`` if it cannot be simulated;
* ``nodes``, ``casts``, ``fp32_nodes``, ``checker``, ``io_kept``, ``loads``, ``runs``: see ``judge.py``;
* ``loads_at``: the highest optimisation level at which ONNX Runtime's CPU provider loads it; null if it does at none. A session
  at the default level may end the process where it is not the highest, hence the child process of ``halfconv.check``;
* ``bytes_in``, ``bytes_out``: model and external data.

A tool that fails, or needs more than ``--timeout`` seconds, gets a row with ``error`` and no figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script, only bench/ is there

from bench import models, record  # noqa: E402
from bench.machine import machine  # noqa: E402
from bench.peers.environments import SAMPLED, Tool  # noqa: E402
from bench.tools import TEMPORARY, Failed, Row, interpreters, judge, measured, model_bytes  # noqa: E402

RESULT = ROOT / "bench" / "results" / "repair_cpu.json"
TOLERANCE = 1e-2
CASES = (
    "rapidocr_cls",
    "dnsmos_p808",
    "silero_vad_op18",
    "aecmos_16k",
    "magika",
    "dnsmos_sig_bak_ovr",
    "resemblyzer_lstm",
    "efficientnet_lite0",
    "minilm_ts",
)
HIGHEST = """
import pathlib, sys
from halfconv.check import load_in_child
from halfconv.runtime.session_server import CPU, LEVELS
model = pathlib.Path(sys.argv[1])
print(next((level for level in LEVELS if not load_in_child(model, level, CPU, model.stat().st_size)[0]), ""))
"""
COLUMNS = {
    "rel_l2": ("rel_l2", ".2e"),
    "meets": ("meets", ""),
    "new NaN": ("new_nan", "d"),
    "new Inf": ("new_inf", "d"),
    "FP32 nodes": ("fp32_nodes", "d"),
    "nodes": ("nodes", "d"),
    "casts": ("casts", "+d"),
    "candidates": ("candidates", "d"),
    "passes": ("passes", ".1f"),
    "seconds": ("seconds", ".1f"),
    "size": ("size", ".0%"),
    "loads": ("loads", ""),
    "loads at": ("loads_at", ""),
}


def convert(tool: Tool, python: str, case: models.Case, samples: Path, folder: Path, timeout: float) -> Row:
    """Convert with samples.

    Args:
        tool: The tool.
        python: Its interpreter.
        case: The model.
        samples: A folder of samples.
        folder: An empty folder; the result becomes ``result/model.onnx`` in it.
        timeout: Seconds after which the tool is given up.

    Returns:
        Time, and what the tool's script reports.

    Raises:
        Failed: It did not convert.
    """
    output, report = folder / "result" / "model.onnx", folder / "report.json"
    output.parent.mkdir()
    usage, _ = measured(tool.call(python, case.model, output, report, str(samples), str(TOLERANCE)), folder, timeout)
    if not output.is_file():
        raise Failed("it ended well but wrote no model")
    said = json.loads(report.read_text(encoding="utf-8"))
    said["call_seconds"] = round(said["call_seconds"], 3)
    return {"seconds": round(usage.seconds, 3), "passes": round(said["model_runs"] / said["feeds"], 2), **said}


def drift(case: models.Case, output: Path, samples: Path, folder: Path, timeout: float) -> Row:
    """Simulate a converted model on the samples, as ``halfconv validate`` does.

    Args:
        case: The model that was converted.
        output: The converted model.
        samples: A folder of samples.
        folder: Where the command's output is kept meanwhile.
        timeout: Seconds after which it is given up.

    Returns:
        ``rel_l2`` and so on; ``drift_error`` if there is no verdict.
    """
    command = [sys.executable, "-m", "halfconv", "validate", str(case.model), str(output), "--json"]
    command += ["--samples", str(samples), "--tolerance", f"rel_l2={TOLERANCE}"]
    try:
        _, said = measured(command, folder, timeout, fine=(0, 1))
        return verdict(json.loads(said))
    except (Failed, ValueError) as error:
        return {"meets": False, "drift_error": str(error)}


def highest_level(output: Path, folder: Path, timeout: float) -> str | None:
    """Find the highest optimisation level at which a model loads, each tried in a process of its own."""
    try:
        return measured([sys.executable, "-c", HIGHEST, str(output)], folder, timeout)[1].strip() or None
    except Failed:
        return None


def verdict(report: Mapping[str, object]) -> Row:
    """Take from ``halfconv validate --json`` what a row holds.

    Args:
        report: The object that it printed.

    Returns:
        ``rel_l2`` of the worst output, None if that is NaN or infinite, the counts, ``meets`` and ``broken``.
    """
    outputs = [output for output in report["outputs"] if output["agreement"] is None]
    drifts = [output["rel_l2"] for output in outputs]
    return {
        "rel_l2": None if None in drifts else max(drifts, default=0.0),
        "new_nan": sum(output["new_nan"] for output in outputs),
        "new_inf": sum(output["new_inf"] for output in outputs),
        "meets": report["passed"],
        "broken": [f"{output['name']}: {failure}" for output in report["outputs"] for failure in output["failures"]],
    }


def compare(case: models.Case, pythons: Mapping[str, str], timeout: float) -> list[Row]:
    """Convert one model with every tool, and judge the results.

    Args:
        case: The model.
        pythons: The interpreter of each tool.
        timeout: Seconds that one conversion, and one simulation, may take.

    Returns:
        One row per tool.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as kept:
        samples = Path(kept)
        files = sorted(case.model.parent.glob("s*.npz"))
        for file in files:
            shutil.copy(file, samples)  # a folder without the model and its labels
        for who, python in pythons.items():
            print(f"{case.key}: {who}", file=sys.stderr)
            row: Row = {"case": case.key, "batch": None, "who": who, "samples": len(files)}
            with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
                output = Path(folder) / "result" / "model.onnx"
                try:
                    row |= convert(SAMPLED[who], python, case, samples, Path(folder), timeout)
                    row |= judge(case, output, timeout)
                    row["loads_at"] = highest_level(output, Path(folder), timeout)
                    row |= {"bytes_in": model_bytes(case.model), "bytes_out": model_bytes(output)}
                    row |= drift(case, output, samples, Path(folder), timeout)
                except Failed as error:
                    row["error"] = str(error)
            rows.append(row)
    return rows


def report(options: argparse.Namespace) -> Row:
    """Run the benchmark.

    Args:
        options: The parsed command line.

    Returns:
        The content of the benchmark file.
    """
    pythons, broken = interpreters([SAMPLED[who] for who in dict.fromkeys(options.who)], options.here)
    before = machine()
    rows: list[Row] = []
    for key in dict.fromkeys(options.cases):
        try:
            rows += compare(models.case(key, options.zoo), pythons, options.timeout)
        except FileNotFoundError as error:
            rows += [{"case": key, "batch": None, "who": who, "error": str(error)} for who in pythons]
        rows += [{"case": key, "batch": None, "who": who, "error": error} for who, error in broken.items()]
    return record.content(
        options.command, before, pythons, rows, tolerance={"rel_l2": TOLERANCE}, timeout=options.timeout
    )  # fmt: skip


def losses(rows: Sequence[Row], ours: str = "halfconv") -> list[str]:
    """Say where another tool meets the tolerance and does better.

    Args:
        rows: Rows of any cases.
        ours: The tool that is compared with the others.

    Returns:
        One sentence per other tool and figure: more FP32 nodes, casts, passes, seconds or bytes than it.
    """
    held = {row["case"]: row for row in rows if row["who"] == ours and row.get("meets")}
    found = []
    for row in rows:
        mine = held.get(row["case"])
        if mine is None or row["who"] == ours or not row.get("meets"):
            continue
        found += [
            f"{row['case']}: {ours} {mine[key]:,} {key}, {row['who']} {row[key]:,}"
            for key in ("fp32_nodes", "casts", "passes", "seconds", "bytes_out")
            if None not in (mine[key], row[key]) and mine[key] > row[key]
        ]
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table, after what is worse than elsewhere."""
    record.show(record.sized(rows), COLUMNS, losses(rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench/repair.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", metavar="KEY", default=[*CASES], help="models (default: all)")
    parser.add_argument("--who", nargs="+", choices=[*SAMPLED], default=[*SAMPLED], help="tools (default: all)")
    parser.add_argument("--zoo", type=Path, metavar="DIR", help="folder of zoo models (default: the tests' zoo)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per conversion (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help="run all tools in this interpreter, build no environment")
    parser.add_argument("--save", type=Path, metavar="FILE", nargs="?", const=RESULT, help="write here (default: bench/results)")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "bench/repair.py", *arguments])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, write its file if asked, and print the table.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0, whatever the tools did.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    result = report(options)
    if options.save:
        record.write(options.save, result)
    show(result["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
