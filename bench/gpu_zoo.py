"""Do converted real models give the FP32 answers on a GPU?

Two steps, because the machine with the GPU may reach no package index:

    python bench/gpu_zoo.py prepare DIR     converts the public zoo, stores inputs and the FP32 answers of the CPU
    python bench/gpu_zoo.py run DIR OUT     runs every converted model on CUDA, compares, writes OUT/zoo_CARD.json

`who` is `halfconv-portable` (the default file in a plain session) or `ort-float16` (onnxruntime.transformers.float16, defaults,
FP32 interface). Figures per output: relative L2 against FP32, and NaN or infinite elements where FP32 has none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
#: Samples per model: enough to see a broken operator, few enough to travel.
SAMPLES = 4


def prepare(folder: Path, zoo: Path, keys: list[str]) -> None:
    """Convert each zoo model with halfconv and the peer, and store its FP32 answers."""
    import onnx
    import onnxruntime
    from onnxruntime.transformers.float16 import convert_float_to_float16

    import halfconv

    for source in sorted(zoo.glob("*/model.onnx")):
        key = source.parent.name
        if keys and key not in keys:
            continue
        target = folder / key
        target.mkdir(parents=True, exist_ok=True)
        halfconv.convert(source, target / "halfconv-portable.onnx")
        try:
            onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target / "ort-float16.onnx")
        except Exception as error:
            (target / "ort-float16.error").write_text(" ".join(str(error).split())[:200])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        for index, file in enumerate(sorted(source.parent.glob("s*.npz"))[:SAMPLES]):
            shutil.copy(file, target / f"s{index}.npz")
            answers = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(np.load(file))), strict=True))
            arrays = {name: value for name, value in answers.items() if isinstance(value, np.ndarray)}
            np.savez_compressed(target / f"r{index}.npz", **arrays)
        print("prepared", key, flush=True)


def _compare(file: Path, folder: Path) -> dict[str, Any]:
    """Run one converted model on CUDA and compare it with the stored answers."""
    import onnxruntime

    session = error = None
    for level in ("ALL", "EXTENDED", "BASIC"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        try:
            session = onnxruntime.InferenceSession(file, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
            break
        except Exception as problem:
            error = " ".join(str(problem).split())[:200]
    if session is None:
        return {"error": error}
    names = [output.name for output in session.get_outputs()]
    pooled: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for sample in sorted(folder.glob("s*.npz")):
        wanted = np.load(folder / f"r{sample.stem[1:]}.npz")
        try:
            answers = dict(zip(names, session.run(None, dict(np.load(sample))), strict=True))
        except Exception as problem:
            return {"error": " ".join(str(problem).split())[:200], "level": level}
        for name in wanted.files:
            pooled.setdefault(name, []).append((wanted[name], answers[name]))
    worst = {"rel_l2": 0.0, "new_nan": 0, "new_inf": 0}
    for pairs in pooled.values():
        r = np.concatenate([np.ravel(a).astype(np.float64) for a, _ in pairs])
        c = np.concatenate([np.ravel(b).astype(np.float64) for _, b in pairs])
        fine = np.isfinite(r)
        worst["new_nan"] += int(np.isnan(c[fine]).sum())
        worst["new_inf"] += int(np.isinf(c[fine]).sum())
        norm = float(np.linalg.norm(r[fine]))
        drift = float(np.linalg.norm(c[fine] - r[fine])) / norm if norm else float(np.abs(c[fine]).max(initial=0))
        worst["rel_l2"] = float(np.maximum(worst["rel_l2"], drift))  # NaN stays NaN, whichever output has it
    return {**worst, "level": level, "providers": session.get_providers()}


def run(folder: Path, out: Path) -> None:
    """Compare every prepared model on this machine's GPU; each in a process of its own, since a session may crash."""
    import subprocess

    import onnxruntime

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        sys.exit("no NVIDIA driver here; try: `run` on a machine with a GPU")
    card = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    for file in sorted(folder.glob("*/*.onnx")):
        command = [sys.executable, __file__, "one", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        figures = json.loads(lines[-1]) if lines else {"error": f"the process ended with exit code {done.returncode}"}
        rows.append({"case": file.parent.name, "batch": None, "who": file.stem, **figures})
        print(f"{file.parent.name:22} {file.stem:18} {figures}", flush=True)
    name = next((known for known in ("h100", "h200") if known in card.lower()), "gpu")
    content = {
        "schema_version": 1,
        "date": date.today().isoformat(),
        "machine": {"card": card},
        "versions": {"onnxruntime-gpu": onnxruntime.__version__, "numpy": np.__version__},
        "command": "python bench/gpu_zoo.py prepare DIR; python bench/gpu_zoo.py run DIR OUT",
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"zoo_{name}.json"
    known = json.loads(target.read_text())["rows"] if target.exists() else []
    content["rows"] = [row for row in known if row not in rows] + rows
    target.write_text(json.dumps(content, indent=1).replace("NaN", "null") + "\n")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["prepare", "run", "one"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache/halfconv-zoo/models")
    parser.add_argument("--keys", default="")
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.folder, options.zoo, [key for key in options.keys.split(",") if key])
    elif options.step == "run":
        run(options.folder, options.out)
    else:
        import onnxruntime

        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        print(json.dumps(_compare(options.folder, options.folder.parent)))


if __name__ == "__main__":
    main()
