"""Convert the public zoo with its samples, and measure on a GPU what the simulation predicted.

Two steps, because the machine with the GPU may reach no package index:

    python bench/tuned.py prepare DIR KEY…     converts here; DIR gets models, samples, the FP32 model's outputs, and rows.json
    python bench/tuned.py bf16 DIR KEY…        the same to BF16 for CUDA, on the first 8 samples
    python bench/tuned.py run DIR JSON         runs them on the CUDA provider, and writes the committed result
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")
#: Samples of a model that travel.
SAMPLES = 40


def prepare(folder: Path, keys: list[str], *, to: str = "fp16") -> None:
    """Convert models of the zoo with their samples, and store what the GPU needs."""
    import halfconv
    from halfconv.drift.evaluate import evaluate_file
    from halfconv.model import load
    from halfconv.samples import open_samples
    from halfconv.synthetic import input_specs
    from tests import zoo
    from tests.labelled import labelled

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for key in keys:
        given: Any = labelled(key) if zoo.labels(key) is not None else zoo.samples(key)
        more: dict[str, Any] = {}
        if to == "bf16":
            given, more = zoo.samples(key)[:8], {"to": to, "target": "cuda"}
        begun = time.perf_counter()
        result = halfconv.convert(zoo.model(key), folder / f"{key}.onnx", samples=given, **more)
        assert result.drift is not None
        rows.append({
            "case": key, "batch": None, "who": "halfconv" if more else "halfconv-portable", "to": to,
            "seconds": round(time.perf_counter() - begun, 1),
            "values": dict(result.values), "casts": result.casts, "samples": result.drift.samples,
            "fp32_rules": dict(Counter(entry.rule for entry in result.fp32)),
            "runs": result.repair.runs if result.repair else None, "forced": list(result.repair.forced) if result.repair else [],
            "minimal": result.repair.minimal if result.repair else True,
            "simulated": {output.name: output.measures.rel_l2 for output in result.drift.outputs},
            "simulated_metrics": {metric.name: [metric.reference, metric.candidate] for metric in result.drift.metrics},
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        arrays: dict[str, np.ndarray] = {}
        with evaluate_file(zoo.model(key), {}) as reference:
            for number, sample in enumerate(open_samples(given, input_specs(load(zoo.model(key)).model))):
                if number == SAMPLES:
                    break
                answers = reference.run(sample.feeds, sample.name)
                floats = {n: v for n, v in answers.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
                for side, values in (("in", sample.feeds), ("out", floats), ("extra", sample.extras)):
                    arrays |= {f"{side}/{number}/{name}": np.asarray(value) for name, value in values.items()}
        np.savez_compressed(folder / f"{key}.npz", **arrays)
        (folder / "rows.json").write_text(json.dumps(rows))


def measure(model: Path, stored: Path) -> dict[str, Any]:
    """Measure one model on the CUDA provider, without TF32, against the stored outputs."""
    import onnxruntime

    session, problem, level = None, "", ""
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=providers)
            break
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
    if session is None or session.get_providers()[0] != "CUDAExecutionProvider":
        return {"error": problem or "CUDA was not used"}
    data = np.load(stored)
    samples: dict[int, dict[str, dict[str, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    for key in data.files:
        side, number, name = key.split("/", 2)
        samples[int(number)][side][name] = data[key]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    right, rows = {"fp32": 0, "gpu": 0}, 0
    for _, sample in sorted(samples.items()):
        names = sorted(sample["out"])
        given = dict(zip(names, session.run(names, dict(sample["in"])), strict=True))
        for name in names:
            wanted, got = sample["out"][name].astype(np.float64), given[name].astype(np.float64)
            sums[name][0] += float(((got - wanted) ** 2).sum())
            sums[name][1] += float((wanted**2).sum())
        labels = sample["extra"].get("labels")
        if labels is not None and len(names) == 1 and sample["out"][names[0]].ndim == 2:
            rows += len(labels)
            right["fp32"] += int((sample["out"][names[0]].argmax(1) == labels).sum())
            finite = np.isfinite(given[names[0]]).all(1)
            right["gpu"] += int((finite & (given[names[0]].argmax(1) == labels)).sum())
    found: dict[str, Any] = {"level": level, "rel_l2": {n: (a / b) ** 0.5 if b else a**0.5 for n, (a, b) in sums.items()}}
    if rows:
        found["accuracy"] = {who: count / rows for who, count in right.items()}
    return found


def run(folder: Path, target: Path) -> None:
    """Measure every prepared model, and write the result."""
    import onnxruntime

    onnxruntime.preload_dlls()
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    rows = json.loads((folder / "rows.json").read_text())
    for row in rows:
        row |= measure(folder / f"{row['case']}.onnx", folder / f"{row['case']}.npz")
        shown = {key: row.get(key) for key in ("case", "simulated", "rel_l2", "accuracy", "level", "error")}
        print(json.dumps(shown), flush=True)
    content = {
        "schema_version": 1, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"card": card}, "versions": {"onnxruntime-gpu": onnxruntime.__version__},
        "command": "python bench/tuned.py run", "rows": rows,
    }  # fmt: skip
    target.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1] == "bf16":
        prepare(Path(sys.argv[2]), sys.argv[3:], to="bf16")
    else:
        run(Path(sys.argv[2]), Path(sys.argv[3]))
