"""Half precision on a GPU: halfconv, other converters and torch, on the same models and inputs, in one run on one card.

    python bench/cuda.py prepare DIR [CASE…]      exports models, converts each with every tool
    python bench/cuda.py tune DIR [CASE…]         finds each model's session options: `halfconv bench --tune`
    python bench/cuda.py run DIR JSON [CASE…]     times all contenders in turns, writes the result after each case
    python bench/cuda.py predict DIR JSON [CASE…] adds the drift that the simulation predicts, on the CPU
    python bench/cuda.py show JSON                prints the table

A case is ``KEY@BATCH`` with a key of `gpu_models.py`, or ``zoo/NAME``; without any, the six rows that the result is about. What
each contender is says `cuda_contenders.py`, what each figure is `cuda_timing.py`. `run` and `predict` add to what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import cuda_table, record, session
from bench.cuda_prepare import DEFAULT, PEERS, TARGETS, WHO, ZOO, Case, case_of, prepare, total_mb
from bench.cuda_timing import PREDICTED_BATCH, PREDICTED_SEED
from bench.machine import machine
from bench.peers.environments import HALFCONV, versions
from bench.tools import ROOT, TEMPORARY, Failed, measured

#: How often a case is begun again, each time without the contender that ended its process.
RETRIES = 4


def begin(target: Path, provider: str) -> dict[str, Any]:
    """Return a result without rows, or the one that is there.

    Raises:
        SystemExit: That one is another card's, whose figures do not belong together with these.
    """
    facts = {"card": session.card() if provider == "cuda" else "cpu", **machine()}
    content: dict[str, Any] = {"rows": []}
    if target.is_file():
        content = json.loads(target.read_text("utf-8"))
        if content["machine"]["card"] != facts["card"]:
            raise SystemExit(f"{target} is of {content['machine']['card']}, this is {facts['card']}; try: another file")
    return {
        "schema_version": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts,
        "versions": {**versions(HALFCONV, sys.executable), **session.versions()},
        "command": "python bench/cuda.py " + " ".join(sys.argv[1:]),
        "rows": content["rows"],
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure cases one after another, each in a process of its own."""
    content = begin(options.json, options.provider)
    ends = time.monotonic() + options.limit
    for number, case in enumerate(options.cases):
        left = ends - time.monotonic()
        if left <= 0:
            print("no time left for", *map(str, options.cases[number:]), flush=True)
            break
        begun = time.monotonic()
        rows = measured_case(case, options, left)
        content["rows"] = cuda_table.merged(content["rows"], rows)
        record.write(options.json, content)
        for row in rows:
            print(json.dumps(row), flush=True)
        print(f"{case}: {time.monotonic() - begun:.0f} s", flush=True)
    cuda_table.show(content["rows"])


def measured_case(case: Case, options: argparse.Namespace, limit: float) -> list[dict[str, Any]]:
    """Measure a case; contenders that end the process are left out, with a row that says so."""
    without, failed = list(options.without), []
    for _ in range(RETRIES):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
            lines = Path(scratch) / "lines.jsonl"
            command = [sys.executable, str(ROOT / "bench" / "cuda_timing.py"), str(options.folder), str(case), str(lines)]
            command += ["--provider", options.provider, "--rounds", str(2 if options.quick else options.rounds)]
            problem = ""
            try:
                measured([*command, *(["--without", *without] if without else [])], Path(scratch), max(limit, 1.0))
            except Failed as error:
                problem = str(error)
            said = [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.is_file() else []
        rows = [row for row in said if "case" in row]
        last = next((row["begin"] for row in reversed(said) if "begin" in row), None)
        if not problem or rows:
            return failed + rows
        failed.append({"case": case.key, "batch": case.batch, "who": last or "fp32", "error": problem})
        if last is None or last == "fp32" or "timed out" in problem:
            break
        without.append(last)
    return failed


def tune(options: argparse.Namespace) -> None:
    """Search the session options of each model, at all its batch sizes together, on inputs like those that are timed."""
    from halfconv.errors import HalfconvError
    from halfconv.profile_search import search_profile
    from halfconv.report.bench import show_search
    from halfconv.terminal import console

    for key in dict.fromkeys(case.key for case in options.cases):
        cases = [case for case in options.cases if case.key == key]
        batches = [case.batch or 1 for case in cases]
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
            sample = Path(scratch) / "sample.npz"
            np.savez(sample, **cases[0].feeds(options.folder, 1, max(batches)))
            try:
                found = search_profile(
                    options.folder / key / "halfconv.onnx", batches=batches, samples=str(sample), provider=options.provider,
                    seconds=options.seconds,
                )  # fmt: skip
            except HalfconvError as error:
                print(key, error, flush=True)
                continue
        show_search(found, console())


def predict(options: argparse.Namespace) -> None:
    """Simulate halfconv's models on the CPU, and add the drift to the result."""
    content = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else begin(options.json, "cpu")
    pairs = [(key, who) for key in dict.fromkeys(case.key for case in options.cases) for who in TARGETS]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda pair: predicted(options.folder, *pair, options.timeout), pairs):
            print(json.dumps(row), flush=True)
            content["rows"] = cuda_table.merged(content["rows"], [row])
            record.write(options.json, content)


def predicted(folder: Path, key: str, who: str, timeout: float) -> dict[str, Any]:
    """Return a row with the drift of the worst output as ``halfconv validate`` predicts it."""
    case = Case(key, None)
    batch = PREDICTED_BATCH if case.recipe else None
    row: dict[str, Any] = {"case": key, "batch": batch, "who": who}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
        sample = Path(scratch) / "sample.npz"
        np.savez(sample, **case.feeds(folder, PREDICTED_SEED, batch))
        files = [str(folder / key / f"{name}.onnx") for name in ("model", who)]
        command = [sys.executable, "-m", "halfconv", "validate", *files, "--samples", str(sample), "--json"]
        try:
            _, said = measured(command, Path(scratch), timeout, fine=(0, 1))
        except Failed as error:
            return {**row, "predicted_error": str(error)}
    drifts = [output["rel_l2"] for output in json.loads(said)["outputs"]]
    return {**row, "predicted_rel_l2": None if None in drifts else max(drifts, default=None)}


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def case(text: str) -> Case:
        try:
            return case_of(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(description="Compare halfconv, other converters and torch on a GPU.")
    steps = parser.add_subparsers(dest="step", required=True)
    made = {name: steps.add_parser(name) for name in ("prepare", "tune", "run", "predict", "show")}
    for name, step in made.items():
        if name != "show":
            step.add_argument("folder", type=Path, metavar="DIR")
        if name in ("run", "predict", "show"):
            step.add_argument("json", type=Path, metavar="JSON")
        if name != "show":
            step.add_argument("cases", type=case, nargs="*", default=[], metavar="CASE")
            step.add_argument("--with-zoo", action="store_true", help=f"also {', '.join(ZOO)} of the zoo")
        if name in ("tune", "run"):
            step.add_argument("--provider", default="cuda", choices=("cpu", "cuda"))
        if name in ("prepare", "predict"):
            step.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="processes at a time")
            step.add_argument("--timeout", type=float, default=300.0, help="seconds for one process")
    made["prepare"].add_argument("--who", nargs="*", default=list(WHO), choices=WHO, help="which files to make (default: all)")
    made["prepare"].add_argument("--zoo", type=Path, help="folder of NAME/model.onnx and s0.npz (default: the tests' zoo)")
    made["prepare"].add_argument("--here", action="store_true", help="all tools in this interpreter, no environments")
    made["prepare"].add_argument("--imports", type=_imports, nargs="*", default=[], metavar="WHO=DIR", help="a tool's own packages")
    made["tune"].add_argument("--seconds", type=float, default=0.5, help="for one set of options at one batch size")
    made["run"].add_argument("--rounds", type=int, default=10, help="turns of each contender")
    made["run"].add_argument("--quick", action="store_true", help="few turns, to try it")
    made["run"].add_argument("--limit", type=float, default=3600.0, help="seconds after which no case is begun")
    made["run"].add_argument("--without", nargs="*", default=[], metavar="WHO", help="contenders to leave out")
    options = parser.parse_args(arguments)
    if options.step != "show":
        zoo = [Case(f"zoo/{name}", None) for name in ZOO] if options.with_zoo else []
        options.cases = [*(options.cases or ([] if options.with_zoo else DEFAULT)), *zoo]
    return options


def _imports(text: str) -> tuple[str, str]:
    who, _, folder = text.partition("=")
    if who not in PEERS or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}; try: modelopt=FOLDER")
    return who, folder


def main() -> None:
    """Run from the command line."""
    options = parsed()
    if options.step == "prepare":
        more = {name: getattr(options, name) for name in ("zoo", "here", "imports", "jobs", "timeout")}
        more["imports"] = dict(options.imports)
        found = prepare(options.folder, options.cases, options.who, **more)
        print(f"{total_mb(found):.0f} MB in {options.folder}")
    elif options.step == "show":
        cuda_table.show(json.loads(options.json.read_text("utf-8"))["rows"])
    else:
        {"tune": tune, "run": run, "predict": predict}[options.step](options)


if __name__ == "__main__":
    main()
