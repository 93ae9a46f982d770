"""Does the simulation round as a GPU does?

Three steps, because the machine with the GPU may reach no package index:

    python bench/gpu_simulation.py prepare DIR [--zoo ZOO | --exported]     writes half-precision models, inputs and FP32 answers
    python bench/gpu_simulation.py run DIR OUT                 runs each on CUDA, keeps the outputs and what ran where
    python bench/gpu_simulation.py compare DIR OUT JSON        simulates each on this machine's CPU, compares with the outputs
    python bench/gpu_simulation.py truth DIR OUT NPZ           keeps the small outputs for a test

Without --zoo the cases are ONNX's node tests in half and those of `bench/simulation_cases.py`; with it they are the public zoo's
models (FOLDER/KEY/model.onnx and s*.npz), converted by halfconv and by ONNX Runtime's own converter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
#: Share of the elements that may differ, by the order of sums, where simulation and GPU round alike.
DIFFER = 0.05
#: How far the simulated drift may be from the GPU's.
RATIO = 1.25
#: Elements of an output that a test keeps.
TRUTH = 1000


def _store(folder: Path, name: str, model: bytes | None, feeds: list[dict[str, np.ndarray]]) -> None:
    if model is not None:
        (folder / f"{name}.onnx").write_bytes(model)
    np.savez_compressed(folder / f"{name}.npz", **{f"{i}/{k}": v for i, feed in enumerate(feeds) for k, v in feed.items()})


def prepare(folder: Path) -> None:
    """Write the small cases: NAME.onnx, NAME.npz with the feeds as INDEX/INPUT, and cases.json."""
    from bench.simulation_cases import made_cases, node_test_cases
    from bench.simulation_fused_cases import fused_cases

    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for make in (made_cases, fused_cases, node_test_cases):
        for case in make():
            _store(folder, case.name, case.model, case.feeds)
            listed.append({"name": case.name, "op": case.op, "runs": len(case.feeds), "source": make.__name__})
    (folder / "cases.json").write_text(json.dumps(listed))
    print(len(listed), "cases")


def prepare_zoo(folder: Path, zoo: Path, keys: list[str], samples: int) -> None:
    """Write the zoo's models in half, by both converters, with inputs and the FP32 answers (NAME.reference.npz)."""
    import onnx
    import onnxruntime
    from onnxruntime.transformers.float16 import convert_float_to_float16

    import halfconv

    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for source in sorted(zoo.glob("*/model.onnx")):
        key = source.parent.name
        if keys and key not in keys:
            continue
        feeds = [dict(np.load(file)) for file in sorted(source.parent.glob("s*.npz"))[:samples]]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        answers = [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]
        arrays = [{k: v for k, v in answer.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"} for answer in answers]
        for who in ("halfconv-portable", "ort-float16"):
            name = f"{key}--{who}"
            try:
                if who == "ort-float16":
                    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), folder / f"{name}.onnx")
                else:
                    values = halfconv.convert(source, folder / f"{name}.onnx", check=False).values
                    if not values["half"]:  # the FP32 model itself
                        (folder / f"{name}.onnx").rename(folder / f"{key}--fp32.onnx")
                        name = f"{key}--fp32"
            except Exception as error:
                print("not converted", name, " ".join(str(error).split())[:120])
                continue
            for profile in folder.glob("*.profile.json"):
                profile.unlink()
            _store(folder, name, None, feeds)
            _store(folder, f"{name}.reference", None, arrays)
            listed.append({"name": name, "op": "model", "runs": len(feeds), "source": "zoo"})
    (folder / "cases.json").write_text(json.dumps(listed))
    print(len(listed), "models")


def prepare_exported(folder: Path, layers: int | None) -> None:
    """Export BERT-base, ViT-B/16 and ResNet-50 of transformers with random weights, and convert each with both converters.

    Args:
        folder: Where to write.
        layers: Number of layers of BERT and ViT; None for their own, 12.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    depth = {} if layers is None else {"num_hidden_layers": layers}
    eager = {"attn_implementation": "eager"}
    zoo = folder / "zoo"
    random = np.random.default_rng(0)
    image = random.standard_normal((2, 3, 224, 224)).astype(np.float32)
    words = random.integers(0, 30000, (2, 128))
    wanted: dict[str, tuple[Any, dict[str, np.ndarray]]] = {
        "bert_base": (
            transformers.BertModel(transformers.BertConfig(**depth, **eager)),
            {"input_ids": words, "attention_mask": np.ones_like(words)},
        ),
        "vit_b16": (transformers.ViTModel(transformers.ViTConfig(**depth, **eager)), {"pixel_values": image}),
        "resnet50": (
            transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)),
            {"pixel_values": image},
        ),
    }

    class Plain(torch.nn.Module):
        """A model of transformers with named inputs and one output."""

        def __init__(self, model: torch.nn.Module, names: list[str]):
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(self.names, values, strict=True)), return_dict=False)[0]

    for key, (model, feeds) in wanted.items():
        (zoo / key).mkdir(parents=True, exist_ok=True)
        inputs = tuple(torch.from_numpy(value) for value in feeds.values())
        torch.onnx.export(
            Plain(model, list(feeds)).eval(),
            inputs,
            zoo / key / "model.onnx",
            input_names=list(feeds),
            opset_version=17,
            dynamo=False,
        )
        np.savez(zoo / key / "s0.npz", **feeds)
    prepare_zoo(folder, zoo, [], 1)


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
    names, kept = [o.name for o in session.get_outputs()], {}
    for index, feed in enumerate(feeds_of(file.with_suffix(".npz"), runs)):
        for name, value in zip(names, session.run(None, feed), strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                kept[f"{index}/{name}"] = value
    np.savez(out / f"{file.stem}.npz", **kept)
    return answer


def _machine() -> dict[str, str]:
    import onnxruntime

    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if shutil.which(query[0]) else "none"
    return {"date": date.today().isoformat(), "card": card, "onnxruntime-gpu": onnxruntime.__version__}


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
    (out / "machine.json").write_text(json.dumps(_machine()))
    failed = [row for row in rows if "error" in row]
    print(
        level, f"tf32={tf32}", len(rows), "run", len(failed), "failed", Counter(row["error"][:60] for row in failed).most_common(5)
    )


def _rel(c: np.ndarray, r: np.ndarray) -> float:
    fine = np.isfinite(r)
    if not np.isfinite(c[fine]).all():
        return float("inf")
    norm = float(np.linalg.norm(r[fine]))
    error = float(np.linalg.norm(c[fine] - r[fine]))
    return error / norm if norm else error


def _runner(model: Any) -> Any:
    """A session of an FP32 model without optimisation, as the simulation is run."""
    import onnx_ir as ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _answers(session: Any, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    ready = [{k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in f.items() if k in wanted} for f in feeds]
    return [dict(zip(names, session.run(None, feed), strict=True)) for feed in ready]


def _unrounded(path: Path) -> Any:
    """The model in FP32 without any rounding: what the half model would give with exact arithmetic."""
    from halfconv.drift.widen import WidenPass
    from halfconv.graph.prepare import prepare as prepare_graph
    from halfconv.model import load

    model = load(path).model
    prepare_graph(model, fuse=False)
    values = [output for graph in model.graphs() for node in graph for output in node.outputs]
    WidenPass(values)(model)
    model.ir_version = min(model.ir_version, 10)
    return model


def compare_one(folder: Path, out: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the GPU's outputs of one case with the simulation's; one row per floating-point output."""
    from halfconv.drift.simulate import simulate
    from halfconv.model import load

    path = folder / f"{row['name']}.onnx"
    feeds = feeds_of(folder / f"{row['name']}.npz", row["runs"])
    simulated = _answers(_runner(simulate(load(path)).model), feeds)
    stored = folder / f"{row['name']}.reference.npz"
    exact = feeds_of(stored, row["runs"]) if stored.exists() else _answers(_runner(_unrounded(path)), feeds)
    gpu = feeds_of(out / f"{row['name']}.npz", row["runs"])
    rows = []
    for name in exact[0]:
        if (
            name not in gpu[0]
            or gpu[0][name].dtype.kind != "f"
            or any(g[name].shape != s[name].shape for g, s in zip(gpu, simulated, strict=True))
        ):
            continue
        g, s, r = (np.concatenate([np.ravel(a[name]).astype(np.float64) for a in side]) for side in (gpu, simulated, exact))
        if not g.size:
            continue
        both = np.isfinite(g) & np.isfinite(s)
        ulp = 2.0 ** (np.clip(np.floor(np.log2(np.maximum(np.abs(g), 2.0**-14))), -14, 15) - 10)
        distance = np.abs(g - s)[both] / ulp[both]
        differ = float((distance > 0).mean()) if distance.size else 0.0
        gpu_drift, drift = _rel(g, r), _rel(s, r)
        same = bool((np.isfinite(g) == np.isfinite(s)).all())
        close = gpu_drift == drift or (gpu_drift > 0 and 1 / RATIO <= drift / gpu_drift <= RATIO)
        rows.append({
            "case": row["name"], "batch": None, "who": "simulation", "op": row["op"], "output": name, "elements": int(g.size),
            "differ": differ, "ulp_p99": float(np.percentile(distance, 99)) if distance.size else 0.0,
            "gpu_rel_l2": gpu_drift, "rel_l2": drift, "same_nonfinite": same,
            "agree": same and (close or (row["op"] != "model" and differ <= DIFFER)),
            "on_cpu": sorted(k.removeprefix("CPU:") for k in row["placed"] if k.startswith("CPU:")),
        })  # fmt: skip
    return rows


def compare(folder: Path, out: Path, target: Path) -> None:
    """Compare all cases and write the result, in the order of the cases."""
    import onnxruntime

    import halfconv

    ran = json.loads((out / "rows.json").read_text())
    rows, failed = [], []
    for row in ran:
        if "error" in row:
            failed.append({"case": row["name"], "batch": None, "who": "gpu", "op": row["op"], "error": row["error"]})
            continue
        try:
            rows += compare_one(folder, out, row)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            failed.append({"case": row["name"], "batch": None, "who": "simulation", "op": row["op"], "error": words})
    machine = json.loads((out / "machine.json").read_text())
    content = {
        "schema_version": 1, "date": machine.pop("date"), "machine": {"card": machine.pop("card")},
        "versions": {**machine, "onnxruntime": onnxruntime.__version__, "halfconv": halfconv.__version__},
        "command": "python bench/gpu_simulation.py prepare DIR; … run DIR OUT; … compare DIR OUT JSON", "rows": rows + failed,
    }  # fmt: skip
    if target.exists():  # the zoo does not travel in one load
        known = {row["case"] for row in content["rows"]}
        content["rows"] = [row for row in json.loads(target.read_text())["rows"] if row["case"] not in known] + content["rows"]
    text = json.dumps(_rounded(content)).replace('}, {"case"', '},\n {"case"')
    target.write_text(text.replace("Infinity", "null").replace("NaN", "null") + "\n")
    agree = sum(row["agree"] for row in rows)
    print(f"{agree} of {len(rows)} outputs agree; {len(failed)} cases were not compared")
    for row in rows:
        if not row["agree"]:
            print(f"  {row['case'][:60]:60} {row['output'][:16]:16} differ {row['differ']:.3f} gpu {row['gpu_rel_l2']:.2e} "
                  f"simulation {row['rel_l2']:.2e} {row['on_cpu']}")  # fmt: skip


def store_truth(folder: Path, out: Path, target: Path) -> None:
    """Keep the GPU's outputs of the small made cases, for a test: CASE/OUTPUT, each of at most `TRUTH` elements."""
    kept = {}
    for row in json.loads((out / "rows.json").read_text()):
        if row["source"] in ("made_cases", "fused_cases") and "error" not in row:
            for name, value in feeds_of(out / f"{row['name']}.npz", 1)[0].items():
                if value.size <= TRUTH and value.dtype.kind == "f":
                    kept[f"{row['name']}/{name}"] = value.astype(np.float32 if "bf16" in row["name"] else np.float16)
    np.savez_compressed(target, **kept)
    print(len(kept), "outputs kept,", target.stat().st_size, "bytes")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["prepare", "run", "serve", "compare", "truth"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--keys", default="")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--exported", action="store_true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--level", default="ENABLE_ALL")
    parser.add_argument("--tf32", type=int, default=1)
    options = parser.parse_args()
    if options.step == "prepare" and options.exported:
        prepare_exported(options.folder, options.layers)
    elif options.step == "prepare" and options.zoo:
        prepare_zoo(options.folder, options.zoo, [key for key in options.keys.split(",") if key], options.samples)
    elif options.step == "prepare":
        prepare(options.folder)
    elif options.step == "truth":
        store_truth(options.folder, options.out, options.target)
    elif options.step == "compare":
        compare(options.folder, options.out, options.target)
    else:
        (run if options.step == "run" else serve)(options.folder, options.out, options.level, options.tf32)


if __name__ == "__main__":
    main()
