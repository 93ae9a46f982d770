"""Converts models of any size with halfconv and with other converters, each within a limit of memory.

    python bench/large.py --save                    0.4, 1.5, 3 and 12 GB; needs 45 GB of disk
    python bench/large.py --sizes 0.4 1.5           some of them, only printed

The models are made here: layers of MatMul, LayerNormalization and Relu with weights of random numbers, in an external file. A
tool runs in a process of its own whose data (anonymous memory) is limited to ``--memory`` GB: what needs more ends with an error,
which is a result, too. ``cp`` copies the model and then the model that halfconv wrote, on the same disk: what a program that only
read and wrote would take. Nobody waits for what it wrote to reach the disk but halfconv, which does once before it puts the model
in place; ``sync`` has that time, which is not part of ``seconds``.

halfconv and ``cp`` run twice: ``disk`` has dropped what the system keeps of their files in memory, so that both read the disk;
``memory`` has just read them, as far as they fit, which is when ``cp`` only copies memory. The peers run from memory alone.

Figures of a row: ``seconds`` of the whole process; ``peak_rss_mb`` and ``peak_anon_mb`` of it and its children (``machine.py``);
``gb_per_second`` of FP32 weights. ``halfconv`` is ``halfconv convert`` as it is: up to 1 GB that includes the simulation on made-up
samples, and always the checks; ``halfconv --no-check`` is the conversion alone, which is all that the others do.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script, only bench/ is there

from bench import record  # noqa: E402
from bench.machine import machine, measure  # noqa: E402
from bench.peers.environments import LARGE, TOOLS  # noqa: E402
from bench.tools import Failed, Row, interpreters, reason  # noqa: E402

RESULT = ROOT / "bench" / "results" / "large_cpu.json"
SIZES = (0.4, 1.5, 3.0, 12.0)
WIDTH = 2048
COLUMNS = {
    "from": ("reads", "s"), "seconds": ("seconds", ".1f"), "sync s": ("sync", ".1f"), "GB/s": ("gb_per_second", ".2f"),
    "peak RSS MB": ("peak_rss_mb", ",.0f"), "peak anonymous MB": ("peak_anon_mb", ",.0f"), "bytes out": ("bytes_out", ",d"),
}  # fmt: skip


def make(folder: Path, size: float) -> Path:
    """Write a model of about `size` GB of FP32 weights, all of them random numbers."""
    import numpy as np
    from onnx import TensorProto, helper, save

    rng, nodes, tensors, offset = np.random.default_rng(0), [], [], 0
    layers = max(1, round(size * 1e9 / (4 * WIDTH * (WIDTH + 2))))
    with (folder / "model.data").open("wb") as file:

        def add(name: str, shape: list[int], scale: float) -> None:
            nonlocal offset
            array = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
            place = {"location": "model.data", "offset": offset, "length": array.nbytes}
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            array.tofile(file)
            offset += array.nbytes

        value = "x"
        for layer in range(layers):
            add(f"w{layer}", [WIDTH, WIDTH], WIDTH**-0.5)
            add(f"gamma{layer}", [WIDTH], 1)
            add(f"beta{layer}", [WIDTH], 1)
            nodes += [
                helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]),
                helper.make_node("LayerNormalization", [f"m{layer}", f"gamma{layer}", f"beta{layer}"], [f"n{layer}"]),
                helper.make_node("Relu", [f"n{layer}"], [f"r{layer}"]),
            ]
            value = f"r{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return folder / "model.onnx"


def limited(command: Sequence[str], memory: float) -> list[str]:
    """Return a command that may have so many GB of data."""
    return ["prlimit", f"--data={int(memory * 1e9)}", *command]


def convert(who: str, python: str, source: Path, folder: Path, memory: float, timeout: float) -> Row:
    """Convert once.

    Raises:
        Failed: It did not.
    """
    output = folder / "out" / "model.onnx"
    output.parent.mkdir()
    if who.startswith("halfconv"):
        command = [python, "-m", "halfconv", "convert", str(source), "-o", str(output), "--json", *who.split()[1:]]
    else:
        tool = {**TOOLS, **LARGE}[who]
        command = tool.call(python, source, output, folder / "report.json")
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    env = {"PYTHONPATH": str(ROOT)} if who.startswith("halfconv") else {}
    usage = measure(limited(command, memory), stdout=out, stderr=err, timeout=timeout, cwd=ROOT, env=env)
    if usage.timed_out or usage.returncode:
        raise Failed(reason(usage, err.read_text(errors="replace")))
    if not output.is_file():
        raise Failed("it wrote no model")
    sync = json.loads(out.read_text())["seconds"].get("sync", 0.0) if who.startswith("halfconv") else 0.0
    return {
        "seconds": round(usage.seconds - sync, 2), "sync": round(sync, 2), "peak_rss_mb": round(usage.peak_rss_mb, 1),
        "peak_anon_mb": round(usage.peak_anon_mb, 1), "bytes_out": sum(path.stat().st_size for path in output.parent.iterdir()),
    }  # fmt: skip


def copy(source: Path, output: Path, folder: Path) -> Row:
    """Copy a model and its conversion, without waiting for the disk."""
    begin = time.perf_counter()
    for number, part in enumerate((source.parent, output)):
        subprocess.run(["cp", "-r", str(part), str(folder / f"copy{number}")], check=True)
    return {"seconds": round(time.perf_counter() - begin, 2)}


def read(files: Sequence[Path], where: str) -> None:
    """Let files be in memory, as far as they fit, or not at all.

    Args:
        files: The files; nothing of them may wait to be written.
        where: ``memory`` or ``disk``.
    """
    for path in files:
        if where == "memory":
            with path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass
        else:
            number = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(number)


def empty(folder: Path) -> None:
    """Remove what a run left."""
    subprocess.run(["rm", "-rf", *map(str, folder.iterdir())], check=True)


def run(size: float, pythons: dict[str, str], broken: dict[str, str], options: argparse.Namespace) -> list[Row]:
    """Convert one model with every tool."""
    case, rows = f"{size:g} GB", []
    with tempfile.TemporaryDirectory(prefix="halfconv-bench-", dir=options.folder) as name:
        model, work, kept = (Path(name) / part for part in ("model", "work", "kept"))
        for folder in (model, work):
            folder.mkdir()
        source = make(model, size)
        weights = (model / "model.data").stat().st_size
        ours = ("halfconv", "halfconv --no-check", "cp")
        for who, where in [(who, where) for where in ("disk", "memory") for who in ours] + [(who, "memory") for who in options.who]:
            os.sync()  # or else a tool would share the disk with what is still to be written
            read([path for folder in (model, kept) if folder.is_dir() for path in folder.iterdir()], where)
            row: Row = {"case": case, "batch": None, "who": who, "reads": where, "bytes_in": weights}
            try:
                if who == "cp":
                    row |= copy(source, kept, work)
                elif who in broken:
                    raise Failed(broken[who])
                else:
                    row |= convert(who, pythons.get(who, sys.executable), source, work, options.memory, options.timeout)
                row["gb_per_second"] = round(weights / 1e9 / float(str(row["seconds"])), 3)
            except Failed as problem:
                row["error"] = str(problem)
            if who == "halfconv --no-check" and (work / "out").is_dir() and not kept.exists():
                (work / "out").rename(kept)
            empty(work)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Read the command line, run everything, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    peers = ["onnxconverter-common", "ort-float16", *LARGE]
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES), metavar="GB")
    parser.add_argument("--who", nargs="*", default=peers, choices=peers, help="the other tools")
    parser.add_argument("--memory", type=float, default=8.0, metavar="GB", help="limit of a process's data")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S")
    parser.add_argument("--folder", type=Path, default=None, help="where there is space")
    parser.add_argument("--save", type=Path, nargs="?", const=RESULT, default=None)
    options = parser.parse_args()
    facts = machine()
    pythons, broken = interpreters([{**TOOLS, **LARGE}[who] for who in options.who], here=False)
    rows = [row for size in options.sizes for row in run(size, pythons, broken, options)]
    command = shlex.join(["python", "bench/large.py", *sys.argv[1:]])
    if options.save:
        pythons["halfconv"] = sys.executable
        record.write(options.save, record.content(command, facts, pythons, rows, memory_gb=options.memory))
    record.show(rows, COLUMNS)


if __name__ == "__main__":
    main()
