"""The README: its commands work, its output is real, its tables and figures come from the code and from bench/results.

``python -m tests.test_readme`` writes the parts of README.md between ``<!-- generated: … -->`` and ``<!-- end -->`` again.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import pytest

import halfconv
from halfconv.precision.formats import HalfFormat

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "zoo_h100.json"
WIDTH = "100"
PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: The tolerance for FP16 that the project works towards.
TOLERANCE = 1e-2


def text() -> str:
    return README.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(text()) if kind == language]


def environment() -> dict[str, str]:
    """The environment without what would change commands or their output."""
    dropped = ("PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV", "FORCE_COLOR", "PYTEST_CURRENT_TEST")
    return {**{key: value for key, value in os.environ.items() if key not in dropped}, "COLUMNS": WIDTH, "PYTHONUTF8": "1"}


def shell(script: str, cwd: Path, timeout: int = 120, **more: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={**environment(), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def here(script: str) -> str:
    """A command of the README for the environment that runs the tests."""
    return script.replace(".venv/", f"{sys.prefix}/")


def installs(script: str) -> bool:
    return "pip install" in script


# What is generated


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


@functools.cache
def example_folder() -> Path:
    """A folder in which the README's example was prepared."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="halfconv-readme-"))


def example_scripts() -> tuple[str, str]:
    demo, example = (next(b for b in blocks("sh") if word in b) for word in ("halfconv demo", "halfconv convert"))
    return demo.rpartition("&& ")[2], example


def make_demo() -> str:
    return fenced(shell(here(example_scripts()[0]), example_folder()))


def make_convert() -> str:
    return fenced(shell(here(example_scripts()[1]), example_folder()))


def make_validate() -> str:
    shell(here(example_scripts()[1]), example_folder())
    script = next(b for b in blocks("sh") if "halfconv validate" in b)
    return fenced(shell(here(script), example_folder()))


def make_tuned() -> str:
    shell(here(example_scripts()[1]), example_folder())
    script = next(b for b in blocks("sh") if "halfconv.demo:samples" in b)
    return fenced(shell(here(script), example_folder()))


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


def make_session() -> str:
    content = json.loads((RESULTS.parent / "session_h200.json").read_text("utf-8"))
    found = {(e["case"], e["batch"], e["who"]): e["p50_ms"] for e in content["rows"] if "p50_ms" in e}
    who = {
        "session-run": "`InferenceSession.run`", "binding-loop": "binding loop", "binding-loop+graph": "loop with CUDA graph",
        "halfconv": "`Session.run`", "binding-device+graph": "graph, no copies", "halfconv-bind": "`Session.bind`",
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


def cuda_results() -> list[Path]:
    """Results of `bench/cuda.py`: none until there is one."""
    return sorted(RESULTS.parent.glob("cuda_h[0-9]*.json"))


def make_unmodelled() -> str:
    from halfconv.drift.kernels import UNMODELLED

    rows = (row(f"`{f'{domain}::' * bool(domain)}{op}`", why) for (domain, op), why in sorted(UNMODELLED.items()))
    return "\n".join([row("operator", "why"), "|---|---|", *rows])


def example(words: str) -> str:
    (script,) = (block for block in blocks("sh") if words in block)
    return fenced(shell(here(script), example_folder()))


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


def make_nodes() -> str:
    from tests.graph.test_exported import ROWS

    lines = [row("model", "exporter", "nodes", "by default", "for CUDA", "fused for CUDA"), "|---|---|---|---|---|---|"]
    for name in ("bert", "vit", "timm_vit", "gpt2", "convnext", "resnet"):
        for exporter in ("ts", "dynamo"):
            _, *counts = ROWS[f"{name}_{exporter}"].split(maxsplit=4)
            lines.append(row(name, {"ts": "TorchScript"}.get(exporter, exporter), *counts[:3], *(counts[3:] or ["nothing"])))
    return "\n".join(lines)


def fenced(output: str) -> str:
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


MAKERS: dict[str, Callable[[], str]] = {
    "ops": make_ops,
    "patterns": make_patterns,
    "gpu": make_gpu,
    "demo": make_demo,
    "convert": make_convert,
    "validate": make_validate,
    "tuned": make_tuned,
    "tuned_gpu": make_tuned_gpu,
    "repair": make_repair,
    "fidelity": make_fidelity,
    "session": make_session,
    "unmodelled": make_unmodelled,
    "fusions": make_fusions,
    "recipes": make_recipes,
    "formats": lambda: example("formats 3.14159"),
    "steps": lambda: example("--add 0.2"),
    "numbers": make_numbers,
    "nodes": make_nodes,
    **({"cuda": make_cuda} if cuda_results() else {}),
}


def plain(part: str) -> str:
    """A part without what differs from run to run: times, and the blanks that a time's width moves."""
    return re.sub(r"[ ─]+", " ", re.sub(r"\d+\.\d s\b", "0.0 s", part)).strip()


def pinned() -> bool:
    """Whether the packages that the examples depend on have the versions of constraints.txt."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    try:
        return all(version(name) == pins[name] for name in ("magika", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy"))
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module", autouse=True)
def remove_example_folder() -> Iterator[None]:
    yield
    if example_folder.cache_info().currsize:
        shutil.rmtree(example_folder())
        example_folder.cache_clear()


@pytest.mark.parametrize("name", MAKERS)
def test_generated_parts_are_current(name: str) -> None:
    if name in ("demo", "convert", "validate") and not pinned():
        pytest.skip("other package versions than constraints.txt has")
    written = {key: body for _, key, body, _ in PART.findall(text())}
    assert sorted(written) == sorted(MAKERS)
    assert plain(written[name]) == plain(MAKERS[name]()), "python -m tests.test_readme writes it again"


def test_figures_of_the_table_are_those_of_the_file() -> None:
    """The two cases that the text is about, so that a change of the generator cannot hide one."""
    rows = {(entry["case"], entry["who"]): entry for entry in json.loads(RESULTS.read_text("utf-8"))["rows"]}
    magika = rows["magika", "halfconv-portable"]["rel_l2"], rows["magika", "ort-float16"]["rel_l2"]
    assert magika[0] < TOLERANCE < 1 < magika[1]
    assert f"| `magika` | {magika[0]:.3g} | {magika[1]:.3g} |" in text()
    assert rows["dnsmos_sig_bak_ovr", "ort-float16"]["new_nan"] > 0


# Commands


def test_examples_run_here(tmp_path: Path) -> None:
    pytest.importorskip("magika")
    for script in blocks("sh"):
        if not installs(script):
            shell(here(script), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    made = {f"magika.{kind}.onnx{more}" for kind in ("fp16", "tuned") for more in ("", ".profile.json")}
    assert names == {"magika.onnx", "magika.plan.json", "tanh.plan.json", *made}


def test_library_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("magika")
    from halfconv.demo.magika import find_model

    shutil.copy(find_model().path, tmp_path / "magika.onnx")
    script = next(block for block in blocks("python") if "import halfconv" in block)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("magika.half.onnx ")
    assert done.stderr == ""


def test_pytest_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("magika")
    script = next(block for block in blocks("python") if "assert_drift" in block)
    graph = onnx.parser.parse_graph("g (float[2,3] x) => (float[2,3] y) { y = Tanh(x) }")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    halfconv.convert(tmp_path / "model.onnx", tmp_path / "model.fp16.onnx", block_list="none", check=False)
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3), np.float32))
    (tmp_path / "test_it.py").write_text(script, "utf-8")
    for option in ("--halfconv-update", "-q"):
        command = [sys.executable, "-m", "pytest", "test_it.py", option]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "drift.json").exists()


def test_configuration_example_is_read(tmp_path: Path) -> None:
    from halfconv.cli import cli
    from halfconv.config import find_options

    (example,) = blocks("toml")
    assert tomllib.loads(example)
    (tmp_path / "halfconv.toml").write_text(example, "utf-8")
    known = {name: frozenset(option.name or "" for option in command.params) for name, command in cli.commands.items()}
    options = find_options(tmp_path, known)
    assert options["convert"] == {"block_op": ["Tanh"], "target": "cuda"}
    assert options["inspect"] == {"block_op": ["Tanh"]}


@pytest.mark.slow
def test_script_from_training_to_measuring_runs(tmp_path: Path) -> None:
    script = next(block for block in blocks("bash") if "halfconv train" in block)
    output = shell(here(script), tmp_path, 600)
    for words in ("accuracy on held-out data 0.9", "reached", "as PyTorch: logits", "PASSED", "p50"):
        assert words in output
    made = {path.name for path in (tmp_path / "digits").iterdir()}
    assert {"model.onnx", "weights.safetensors", "samples.npz", "metrics.json", "exported.onnx", "half.onnx"} <= made


def test_formats_example_runs() -> None:
    (script,) = (block for block in blocks("python") if "halfconv.formats" in block)
    exec(compile(script, "README.md", "exec"), {})


def test_training_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = (block for block in blocks("python") if "halfconv.train" in block)
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)
    assert names["result"].metrics["accuracy"] > 0.88  # type: ignore[attr-defined]
    assert capsys.readouterr().out.endswith("0 [] []\n")


@pytest.mark.slow
def test_commands_run_in_a_fresh_clone(tmp_path: Path) -> None:
    """Every command of the README, in order and as written; of the tests, only what is quick."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a clone")
    clone = tmp_path / "clone"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    outputs = {}
    first, second = (script for script in blocks("sh") if installs(script))
    for script in (first, *(s for s in blocks("sh") if not installs(s))):
        outputs[script] = shell(script, clone, 1200)
    if pinned():
        written = {key: body for _, key, body, _ in PART.findall(text())}
        demo = outputs[first][outputs[first].index("halfconv demo: ") :]
        assert plain(fenced(demo)) == plain(written["demo"])
        assert plain(fenced(outputs[example_scripts()[1]])) == plain(written["convert"])
    tested = shell(second, clone, 2400, PYTEST_ADDOPTS="-q -k test_public")
    assert re.search(r"^\d+ passed, \d+ deselected", tested, re.MULTILINE)


# What it says


def test_ci_runs_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    _, second = (block for block in blocks("sh") if installs(block))
    for wanted in ("-c constraints.txt -e '.[cpu,demo,test]'", '-m "not gpu and not big"'):
        assert wanted in second
        assert wanted in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_rules_and_options_are_named() -> None:
    from halfconv.cli import cli

    pytest.importorskip("magika")
    from halfconv.demo.magika import find_model
    from halfconv.planning import plan_model

    readme = text()
    for rule in {value.rule.partition(":")[0] for value in plan_model(find_model().path).plan.fp32()}:
        assert f"`{rule}" in readme, rule
    known = {
        name for command in cli.commands.values() for option in command.params for name in (*option.opts, *option.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", readme))
    assert named <= known | {"--halfconv-update", "--ignore-scripts", "--nproc-per-node"}  # of pytest's plugin, npm and torchrun
    assert {name for name in known if name.startswith(("--block", "--allow", "--half", "--keep"))} <= named


def test_exit_codes_are_those_of_the_errors() -> None:
    from halfconv import errors
    from halfconv.cli import INTERNAL_ERROR

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text(), re.MULTILINE)}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert listed == {0, INTERNAL_ERROR, *(kind.exit_code for kind in kinds if issubclass(kind, errors.HalfconvError))}


def test_files_it_names_are_here() -> None:
    for name in re.findall(r"`([\w./]+(?:\.md|\.json|\.txt)|bench/|halfconv/schemas/)`", text()):
        if not name.startswith(("magika", "pyproject", "metrics")):
            assert (ROOT / name).exists(), name


def test_it_names_no_index_and_no_place_of_one_machine() -> None:
    for path in (README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        found = re.findall(r"pypi|index-url|/work/|/root/|/home/", path.read_text("utf-8"), re.IGNORECASE)
        assert found == [], path.name


def write() -> None:
    """Write the generated parts of the README again."""
    README.write_text(PART.sub(lambda part: f"{part[1]}{MAKERS[part[2]]()}\n{part[4]}", text()), "utf-8")
    shutil.rmtree(example_folder(), ignore_errors=True)


if __name__ == "__main__":
    write()
