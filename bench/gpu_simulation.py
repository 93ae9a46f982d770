"""Does the simulation round as a GPU does? Three steps, because the machine with the GPU may reach no package index:

    python bench/gpu_simulation.py prepare DIR [--zoo]     writes half-precision models and inputs
    python bench/gpu_simulation.py run DIR OUT             runs each on CUDA, keeps the outputs and what ran where
    python bench/gpu_simulation.py compare DIR OUT JSON    simulates each here, and writes how far the two are apart
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def prepare(folder: Path) -> None:
    """Write the small cases: NAME.onnx, NAME.npz with the feeds as INDEX/INPUT, and cases.json."""
    from bench.simulation_cases import made_cases, node_test_cases

    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for make in (made_cases, node_test_cases):
        for case in make():
            (folder / f"{case.name}.onnx").write_bytes(case.model)
            np.savez(folder / f"{case.name}.npz", **{f"{i}/{k}": v for i, feed in enumerate(case.feeds) for k, v in feed.items()})
            listed.append({"name": case.name, "op": case.op, "runs": len(case.feeds)})
    (folder / "cases.json").write_text(json.dumps(listed))
    print(len(listed), "cases")


def feeds_of(file: Path, runs: int) -> list[dict[str, np.ndarray]]:
    """Read a case's feeds."""
    with np.load(file) as stored:
        return [{k.split("/", 1)[1]: stored[k] for k in stored.files if k.startswith(f"{i}/")} for i in range(runs)]


def run_one(file: Path, runs: int, out: Path, level: str, tf32: int) -> dict[str, Any]:
    """Run one model on CUDA; keep its outputs as OUT/NAME.npz, and say which nodes ran where."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    optimized = out / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    cuda = ("CUDAExecutionProvider", {"use_tf32": tf32})
    providers = [cuda] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []
    session = onnxruntime.InferenceSession(file, options, providers=[*providers, "CPUExecutionProvider"])
    placed: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        placed.update(f"{part.ep_name.removesuffix('ExecutionProvider')}:{node.op_type}" for node in part.get_nodes())
    after = onnx.load(optimized, load_external_data=False).graph
    optimized.unlink()
    answer: dict[str, Any] = {"placed": dict(placed), "optimized": dict(Counter(f"{n.domain}:{n.op_type}" for n in after.node))}
    answer["kept"] = [[n.domain, n.op_type, list(n.output)] for n in after.node][:400]
    names, kept = [o.name for o in session.get_outputs()], {}
    for index, feed in enumerate(feeds_of(file.with_suffix(".npz"), runs)):
        for name, value in zip(names, session.run(None, feed), strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                kept[f"{index}/{name}"] = value
    np.savez(out / f"{file.stem}.npz", **kept)
    return answer


def serve(folder: Path, out: Path, level: str, tf32: int) -> None:
    """Run the cases named on standard input, one answer a line."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    for line in sys.stdin:
        case = json.loads(line)
        try:
            answer = run_one(folder / f"{case['name']}.onnx", case["runs"], out, level, tf32)
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print("@" + json.dumps({**case, **answer}), flush=True)


def run(folder: Path, out: Path, level: str, tf32: int) -> None:
    """Run every case; a process that dies is started again at the next case."""
    out.mkdir(parents=True, exist_ok=True)
    todo, rows = json.loads((folder / "cases.json").read_text()), []
    command = [sys.executable, __file__, "serve", str(folder), str(out), "--level", level, "--tf32", str(tf32)]
    while todo:
        text = "".join(json.dumps(case) + "\n" for case in todo)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=1200)
        answers = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]
        rows += answers
        todo = todo[len(answers) :]
        if todo:
            rows.append({**todo.pop(0), "error": f"the process ended with exit code {done.returncode}"})
    (out / "rows.json").write_text(json.dumps(rows))
    failed = [row for row in rows if "error" in row]
    print(level, f"tf32={tf32}", len(rows), "run", len(failed), "failed", Counter(row["error"][:60] for row in failed).most_common(5))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["prepare", "run", "serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--level", default="ENABLE_ALL")
    parser.add_argument("--tf32", type=int, default=1)
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.folder)
    else:
        (run if options.step == "run" else serve)(options.folder, options.out, options.level, options.tf32)


if __name__ == "__main__":
    main()
