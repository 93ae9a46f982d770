"""What the documentation's tables say, made from the code and from bench/results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halfconv.precision.formats import HalfFormat
from tests.documents import ROOT

RESULTS = ROOT / "bench" / "results" / "zoo_h100.json"
#: The tolerance for FP16 that the project works towards.
TOLERANCE = 1e-2


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def make_ops() -> str:
    from halfconv.precision.blocklist import DEFAULT_OPS
    from halfconv.precision.formats import FP16

    rows = (row(f"`{known.op}`", kinds(known.formats), FP16.word(known.why)) for known in sorted(DEFAULT_OPS, key=lambda r: r.op))
    return "\n".join([row("operator", "for", "why"), "|---|---|---|", *rows])


def kinds(formats: tuple[HalfFormat, ...]) -> str:
    return ", ".join(known.name.upper() for known in formats)


def make_patterns() -> str:
    from halfconv.precision.patterns import PATTERNS

    rows = (row(f"`{p.name}`", kinds(p.formats) if p.default else "no", p.why) for p in PATTERNS)
    return "\n".join([row("pattern", "by default", "why"), "|---|---|---|", *rows])


def make_gpu() -> str:
    content = json.loads(RESULTS.read_text("utf-8"))
    figures = {(entry["case"], entry["who"]): entry for entry in content["rows"]}
    ours, theirs = "halfconv-portable", "ort-float16"
    cases = sorted({case for case, who in figures if who == theirs} & {case for case, who in figures if who == ours})
    lines = [row("model", "halfconv", "`onnxruntime.transformers.float16`"), "|---|---|---|"]
    lines += [row(f"`{case}`", figure(figures[case, ours]), figure(figures[case, theirs])) for case in cases]
    halfconvs = [entry for (_, who), entry in sorted(figures.items()) if who == ours]
    good = [entry for entry in halfconvs if entry.get("rel_l2") is not None and entry["rel_l2"] <= TOLERANCE]
    rest = [f"`{entry['case']}` {figure(entry)}" for entry in halfconvs if entry not in good]
    run = f"{content['machine']['card'].split(',')[0]}, onnxruntime-gpu {content['versions']['onnxruntime-gpu']}, {content['date']}"
    lines += [
        "",
        f"The table has the models on which both were tried in that run ({run}; the figures are in",
        f"`{RESULTS.relative_to(ROOT).as_posix()}`). halfconv converted {len(halfconvs)} models; {len(good)} of them stay",
        f"within {TOLERANCE:g}, the others are: {', '.join(rest)}.",
    ]
    return "\n".join(lines)


def figure(entry: dict[str, object]) -> str:
    if "error" in entry:
        return "does not run"
    if entry["new_nan"] or entry["rel_l2"] is None:
        return f"NaN in {entry['new_nan']:,} elements"
    return f"{entry['rel_l2']:.3g}"


def make_tuned_gpu() -> str:
    content = json.loads((RESULTS.parent / "tuned_zoo_h100.json").read_text("utf-8"))
    lines = [row("model", "values in FP32", "model runs", "drift in simulation", "drift on the GPU"), "|---|---|---|---|---|"]
    for entry in sorted(content["rows"], key=lambda entry: str(entry["case"])):
        worst = max(entry["rel_l2"], key=lambda name: entry["rel_l2"][name])
        held = entry["values"]
        runs = entry["runs"] if entry["forced"] else "no search"
        lines.append(row(
            f"`{entry['case']}`", f"{held['float']} of {held['float'] + held['half']}", runs,
            f"{entry['simulated'][worst]:.3g}", f"{entry['rel_l2'][worst]:.3g}",
        ))  # fmt: skip
    known = next(entry["accuracy"] for entry in content["rows"] if "accuracy" in entry)
    lines += [
        "",
        f"Magika's accuracy is {known['fp32']:.1%} in FP32 and {known['gpu']:.1%} on the GPU",
        f"({content['machine']['card']}, onnxruntime-gpu {content['versions']['onnxruntime-gpu']}, {content['date'][:10]}; "
        "`bench/tuned.py`).",
    ]
    return "\n".join(lines)


def make_repair() -> str:
    content = json.loads((RESULTS.parent / "repair_cpu.json").read_text("utf-8"))
    tools = ("halfconv", "onnxconverter-common", "modelopt")
    lines = [row("model", *(f"{tool}: drift, FP32 nodes, Casts, s" for tool in tools)), "|---|---|---|---|"]
    found = {(entry["case"], entry["who"]): entry for entry in content["rows"]}
    for case in dict.fromkeys(entry["case"] for entry in content["rows"]):
        cells = []
        for tool in tools:
            entry = found[case, tool]
            if "meets" not in entry:
                cells.append("fails")
                continue
            drift = f"{entry['rel_l2']:.2e}" if entry["rel_l2"] is not None and not entry["new_nan"] else "NaN"
            mark = "" if entry["meets"] else " (too much)"
            cells.append(f"{drift}{mark}, {entry['fp32_nodes']}, {entry['casts']}, {entry['seconds']:.0f}")
        lines.append(row(f"`{case}`", *cells))
    return "\n".join([*lines, "", f"(One run each on 2 cores, {content['date'][:10]}; `bench/repair.py`.)"])


def make_fidelity() -> str:
    content = json.loads((RESULTS.parent / "simulation_zoo_h100.json").read_text("utf-8"))
    worst: dict[str, dict[str, dict[str, object]]] = {}
    for entry in content["rows"]:
        case, _, who = str(entry["case"]).partition("--")
        if "agree" in entry and who in ("halfconv-portable", "ort-float16"):
            known = worst.setdefault(case, {}).get(who)
            if known is None or (entry["gpu_rel_l2"] or math.inf) > (known["gpu_rel_l2"] or math.inf):
                worst[case][who] = entry
    lines = [row("model", "halfconv: GPU", "simulated", "ONNX Runtime's converter: GPU", "simulated"), "|---|---|---|---|---|"]
    for case, found in sorted(worst.items()):
        sides = [found.get(who, {}) for who in ("halfconv-portable", "ort-float16")]
        cells = [side.get(key, "") for side in sides for key in ("gpu_rel_l2", "rel_l2")]
        lines.append(row(f"`{case}`", *("NaN" if c is None else c if c == "" else f"{c:.3g}" for c in cells)))
    outputs = [entry for entry in content["rows"] if "agree" in entry]
    kernels = json.loads((RESULTS.parent / "simulation_fidelity_h100.json").read_text("utf-8"))["rows"]
    small = [entry for entry in kernels if "agree" in entry]
    lines += [
        "",
        f"{sum(bool(e['agree']) for e in outputs)} of {len(outputs)} outputs are within 1.25 times the GPU's drift, and of",
        f"{len(small):,} outputs of small cases, ONNX's node tests among them, {sum(bool(e['agree']) for e in small):,} agree",
        f"({content['machine']['card']}, onnxruntime-gpu {content['versions']['onnxruntime-gpu']}; `bench/README.md` says how).",
    ]
    return "\n".join(lines)


def make_conversion() -> str:
    content = results("convert_cpu")
    tools = ("halfconv", "onnxconverter-common", "ort-float16", "modelopt")
    found = {(entry["case"], entry["who"]): entry for entry in content["rows"]}
    lines = [row("model", *(f"`{tool}`: s, MB, Casts" for tool in tools)), "|---" * (len(tools) + 1) + "|"]
    for case in dict.fromkeys(entry["case"] for entry in content["rows"]):
        cells = []
        for tool in tools:
            entry = found[case, tool]
            if "casts" not in entry:
                cells.append("fails")
                continue
            wrong = [] if entry["checker"] else ["checker refuses it"]
            wrong += [] if entry["loads"] else ["does not load"]
            mark = f" ({', '.join(wrong)})" if wrong else ""
            cells.append(f"{entry['seconds']:.1f}, {entry['peak_rss_mb']:,.0f}, {entry['casts']}{mark}")
        lines.append(row(f"`{case}`", *cells))
    known = list(dict.fromkeys(case for case, _ in found))
    good = [sum(bool(found[case, tool].get("loads") and found[case, tool].get("checker")) for case in known) for tool in tools]
    first = [sum(quickest(found, tools, case) == tool for case in known) for tool in tools]
    lines += [
        "",
        f"The checker accepts and ONNX Runtime loads, of {len(known)}: {listed(tools, good)}. Quickest: {listed(tools, first)}.",
        f"(Seconds and peak memory of the process; 2 cores, {content['date'][:10]}; `bench/convert.py`.)",
    ]
    return "\n".join(lines)


def listed(names: Sequence[str], figures: Sequence[int]) -> str:
    return ", ".join(f"`{name}` {figure}" for name, figure in zip(names, figures, strict=True))


def quickest(found: Mapping[tuple[str, str], dict[str, Any]], tools: Sequence[str], case: str) -> str:
    return min((tool for tool in tools if "casts" in found[case, tool]), key=lambda tool: found[case, tool]["seconds"])


def make_large() -> str:
    content = results("large_cpu")
    tools = ("halfconv", "halfconv --no-check", "cp", "onnxconverter-common", "ort-float16", "olive")
    found = {(entry["case"], entry["who"]): entry for entry in content["rows"] if entry.get("reads", "memory") == "memory"}
    lines = [row("weights", *(f"`{tool}`" for tool in tools)), "|---" * (len(tools) + 1) + "|"]
    for case in dict.fromkeys(entry["case"] for entry in content["rows"]):
        cells = []
        for tool in tools:
            entry = found[case, tool]
            peak = f", {entry['peak_anon_mb']:,.0f} MB" if "peak_anon_mb" in entry else ""
            cells.append(f"{entry['seconds']:.1f} s{peak}" if "bytes_out" in entry or tool == "cp" else "fails")
        lines.append(row(case, *cells))
    said = f"(Time, and memory that is the process's own; read from memory, within 8 GB; {content['date'][:10]}; `bench/large.py`.)"
    return "\n".join([*lines, "", said])


def results(name: str) -> dict[str, Any]:
    """A result file's content."""
    content: dict[str, Any] = json.loads((RESULTS.parent / f"{name}.json").read_text("utf-8"))
    return content


def make_session() -> str:
    content = json.loads((RESULTS.parent / "session_h200.json").read_text("utf-8"))
    found = {(e["case"], e["batch"], e["who"]): e["p50_ms"] for e in content["rows"] if "p50_ms" in e}
    who = {
        "session-run": "`InferenceSession.run`", "binding-loop": "binding loop", "binding-loop+graph": "loop with CUDA graph",
        "halfconv": "`Session.run`", "binding-device+graph": "graph, no copies", "halfconv-bind": "`Session.bind`",
        "halfconv-torch": "`run` on torch tensors there",
    }  # fmt: skip
    lines = [row("model", "batch", *who.values()), "|---|---|" + "---|" * len(who)]
    for case, batch in dict.fromkeys((case, batch) for case, batch, _ in found):
        name = re.sub(r"\.fp16|DynamicDimension\.", "", case).replace(" 1=", " ").replace(" 2=", " x ")
        lines.append(row(f"`{name}`", batch, *(f"{found[case, batch, one]:.3f}" for one in who)))
    stress = {e["case"].partition(": ")[2]: [] for e in content["rows"] if "p50_ms" not in e}
    for entry in content["rows"]:
        if "p50_ms" not in entry:
            stress[entry["case"].partition(": ")[2]].append(entry)
    threads, memory = stress["16 threads"], stress["memory"]
    host, device = (max(entry[f"{where}_growth_mb"] for entry in memory) for where in ("host", "device"))
    lines += [
        "",
        f"(Median ms; {content['machine']['card']}, onnxruntime-gpu {content['versions']['onnxruntime']}, {content['date'][:10]};",
        f"`bench/session.py`. 16 threads on one session made {sum(e['calls'] for e in threads):,} runs of which",
        f"{sum(e['different'] for e in threads)} differed from serial ones; over {memory[0]['calls']:,} runs memory grew by",
        f"{host:g} MB on the host and {device:g} MB on the GPU.)",
    ]
    return "\n".join(lines)


def make_cuda() -> str:
    from bench.cuda_table import markdown

    file = cuda_results()[-1]
    return markdown(json.loads(file.read_text("utf-8")), file.relative_to(ROOT).as_posix())


def make_cuda_zoo() -> str:
    from bench.cuda_table import zoo_markdown

    return zoo_markdown(json.loads(cuda_results()[-1].read_text("utf-8")))


def make_cuda_profile() -> str:
    from bench.cuda_profile import markdown

    return markdown(results("cuda_profile_h200"), "bench/results/cuda_profile_h200.json")


def make_digits() -> str:
    from bench import train_table

    return "\n".join(train_table.digits(results("digits_h200")))


def make_training() -> str:
    from bench import train_table

    measured = [name for name in ("train_h200", "train_cpu") if (RESULTS.parent / f"{name}.json").is_file()]
    return "\n\n".join("\n".join(train_table.training(results(name))) for name in measured)


def make_training_short() -> str:
    from bench import train_table

    return "\n".join(train_table.short(results("train_h200")))


def cuda_results() -> list[Path]:
    """Results of `bench/cuda.py`."""
    return sorted(RESULTS.parent.glob("cuda_h[0-9]*.json"))


def make_unmodelled() -> str:
    from halfconv.drift.kernels import UNMODELLED

    rows = (row(f"`{f'{domain}::' * bool(domain)}{op}`", why) for (domain, op), why in sorted(UNMODELLED.items()))
    return "\n".join([row("operator", "why"), "|---|---|", *rows])


def make_numbers() -> str:
    from halfconv.formats import FORMATS

    titles = ("format", "sign, exponent, fraction", "bias", "largest", "smallest normal", "smallest subnormal", "1 to the next")
    lines = [row(*titles), "|---" * len(titles) + "|"]
    for known in FORMATS:
        figures = f"{known.max:,.6g}", *(f"{part:.3g}" for part in (known.min_normal, known.min_subnormal, known.epsilon))
        lines.append(row(f"`{known.name}`", f"1, {known.exponent_bits}, {known.fraction_bits}", known.bias, *figures))
    return "\n".join(lines)


def make_recipes() -> str:
    from halfconv.recipes.catalog import NAMES, load_recipe

    lines = [row("recipe", "learns", "data", "labels that are derived", "metric on held-out data"), "|---|---|---|---|---|"]
    for name in NAMES:
        known = load_recipe(name)
        metric = f"`{known.metric_name.rpartition(':')[2]}` ≥ {known.threshold:g}"
        lines.append(row(f"`{name}`", known.title, known.source, known.derived or "none", metric))
    return "\n".join(lines)


def make_fusions() -> str:
    from halfconv.graph.fusions import FUSIONS

    lines = [row("fusion", "targets", "what it is good for"), "|---|---|---|"]
    for known in FUSIONS:
        targets = ", ".join(f"`{target}`" for target in sorted(known.targets)) if known.targets else "all"
        lines.append(row(f"{known.name}", targets, known.why))
    return "\n".join(lines)


def make_kernels() -> str:
    from halfconv.kernels.stage import RULES

    lines = [row("step", "what it is good for"), "|---|---|"]
    return "\n".join([*lines, *(row(known.name, known.why) for known in RULES)])


def make_nodes() -> str:
    from tests.graph.test_exported import ROWS

    lines = [row("model", "exporter", "nodes", "by default", "for CUDA", "fused for CUDA"), "|---|---|---|---|---|---|"]
    for name in ("bert", "vit", "timm_vit", "gpt2", "convnext", "resnet"):
        for exporter in ("ts", "dynamo"):
            _, *counts = ROWS[f"{name}_{exporter}"].split(maxsplit=4)
            lines.append(row(name, {"ts": "TorchScript"}.get(exporter, exporter), *counts[:3], *(counts[3:] or ["nothing"])))
    return "\n".join(lines)


def make_action() -> str:
    import yaml

    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    lines = [row("input", "default", "what it is"), "|---|---|---|"]
    for name, entry in action["inputs"].items():
        default = "required" if entry.get("required") else f"`{entry['default']}`" if entry["default"] else "empty"
        lines.append(row(f"`{name}`", default, entry["description"]))
    lines += ["", row("output", "what it is"), "|---|---|"]
    lines += [row(f"`{name}`", entry["description"]) for name, entry in action["outputs"].items()]
    return "\n".join(lines)


def make_versions() -> str:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["cpu"], *extras["gpu"], *extras["torch"]]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    lines = [row("package", "needs", "tests run with"), "|---|---|---|", row("Python", project["requires-python"], "3.11")]
    for text in needed:
        name, wanted = re.fullmatch(r"([\w-]+)(?:\[.*\])?(.*)", text).groups()  # type: ignore[union-attr]
        lines.append(row(f"`{name}`", wanted, tested.get(name, "not installed there")))
    return "\n".join(lines)


def make_api() -> str:
    import halfconv

    names = [name for name in halfconv.__all__ if name != "__version__"]
    groups = {
        "halfconv": [f"{halfconv._HOME[name]}.{name}" for name in sorted(names, key=lambda name: (name[0].isupper(), name))],
        "halfconv.train": [f"halfconv.train.{name}" for name in public("halfconv/train/__init__.py")],
        "halfconv.formats": [f"halfconv.formats.{name}" for name in public("halfconv/formats/__init__.py")],
    }
    return "\n\n".join(line for group, places in groups.items() for line in (f"## {group}", *(f"::: {place}" for place in places)))


def public(file: str) -> list[str]:
    """The functions and classes that a module exports, without importing it."""
    import ast

    tree = ast.parse((ROOT / file).read_text("utf-8"))
    (listed,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    return [name for name in ast.literal_eval(listed) if not name.isupper() and not re.fullmatch(r"[A-Z\d_]+", name)]


MAKERS: dict[str, Callable[[], str]] = {
    "ops": make_ops,
    "patterns": make_patterns,
    "gpu": make_gpu,
    "tuned_gpu": make_tuned_gpu,
    "repair": make_repair,
    "conversion": make_conversion,
    "large": make_large,
    "fidelity": make_fidelity,
    "session": make_session,
    "unmodelled": make_unmodelled,
    "fusions": make_fusions,
    "kernels": make_kernels,
    "recipes": make_recipes,
    "numbers": make_numbers,
    "nodes": make_nodes,
    "action": make_action,
    "versions": make_versions,
    "api": make_api,
    "cuda": make_cuda,
    "cuda_zoo": make_cuda_zoo,
    "cuda_profile": make_cuda_profile,
    "digits": make_digits,
    "training": make_training,
    "training_short": make_training_short,
}
