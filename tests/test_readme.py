"""The documentation: its commands work, its output is real, its tables and figures come from the code and from bench/results.

``python -m tests.test_readme [PAGE…]`` writes the parts of all pages, or of these, between ``<!-- generated: … -->`` and
``<!-- end -->`` again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import pytest

import halfconv
from tests.documents import (
    BLOCK,
    PART,
    README,
    ROOT,
    block,
    blocks,
    environment,
    fenced,
    folder_of,
    here,
    installs,
    is_ours,
    name_of,
    pages,
    parts,
    plain,
    printed,
    remove_scratch,
    shell,
    text,
)
from tests.generated import MAKERS, RESULTS, TOLERANCE

#: (language, words of the snippet) -> the test that runs it.
SNIPPETS = {
    ("bash", "halfconv train digits_cnn"): "tests/test_readme.py::test_script_from_training_to_measuring_runs",
    ("bash", "mypackage.models:make_net"): "tests/test_readme.py::test_a_module_of_ones_own_is_exported",
    ("python", 'convert("magika.onnx", "magika.half.onnx"'): "tests/test_readme.py::test_library_example_runs",
    ("python", "assert_drift"): "tests/test_readme.py::test_pytest_example_runs",
    ("python", "halfconv.formats"): "tests/test_readme.py::test_formats_example_runs",
    ("python", "halfconv.train import fit"): "tests/test_readme.py::test_training_example_runs",
    ("yaml", "on: [push, pull_request]"): "tests/test_ci_files.py::test_the_workflow_of_the_documentation",
    ("yaml", "id: halfconv-drift"): "tests/test_ci_files.py::repository",
    ("yaml", "image: python"): "tests/test_ci_files.py::test_the_gitlab_job",
    ("groovy", "pipeline {"): "tests/test_ci_files.py::test_the_jenkins_pipeline_runs_what_gitlab_runs",
    ("toml", "[[waivers]]"): "tests/test_ci_files.py::test_the_waiver_of_the_documentation",
    ("bash", "_HALFCONV_COMPLETE"): "tests/test_terminal.py::test_shells_complete_commands",
    ("zsh", "_HALFCONV_COMPLETE"): "tests/test_terminal.py::test_shells_complete_commands",
    ("fish", "_HALFCONV_COMPLETE"): "tests/test_terminal.py::test_shells_complete_commands",
    ("toml", "[convert]"): "tests/test_readme.py::test_configuration_example_is_read",
}
#: Parts that show what the packages of constraints.txt make of a model.
PINNED = ("demo", "convert", "validate", "tuned")


def pinned() -> bool:
    """Whether the packages that the examples depend on have the versions of constraints.txt."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    try:
        return all(version(name) == pins[name] for name in ("magika", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy"))
    except PackageNotFoundError:
        return False


def page_id(value: object) -> str | None:
    return name_of(value) if isinstance(value, Path) else None


@pytest.fixture(scope="module", autouse=True)
def clean_up() -> Iterator[None]:
    yield
    remove_scratch()


# What is generated

GENERATED = [(page, name) for page in pages() for name in parts(page)]


def made(page: Path, name: str) -> str:
    """What a part should be."""
    return MAKERS[name]() if name in MAKERS else fenced(printed(page)[parts(page)[name][1]])


@pytest.mark.parametrize(("page", "name"), GENERATED, ids=page_id)
def test_generated_parts_are_current(page: Path, name: str) -> None:
    if name in PINNED and not pinned():
        pytest.skip("other package versions than constraints.txt has")
    written, _ = parts(page)[name]
    assert plain(written) == plain(made(page, name)), "python -m tests.test_readme writes it again"


def test_pictures_are_current(tmp_path: Path) -> None:
    if not pinned():
        pytest.skip("other package versions than constraints.txt has")
    script = ROOT / "docs" / "images" / "make.py"
    code = f"import runpy, pathlib; runpy.run_path({str(script)!r})['main'](pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr

    def seen(file: Path) -> list[str]:
        return re.findall(r">([^<>]+)</text>", re.sub(r"\d+\.\d&#160;s", "0.0&#160;s", file.read_text("utf-8")))

    for file in sorted(tmp_path.glob("*.svg")):
        assert seen(file) == seen(script.with_name(file.name)), "python docs/images/make.py writes it again"
        assert file.stat().st_size < 50_000


def test_everything_that_is_made_is_shown() -> None:
    assert set(MAKERS) <= {name for _, name in GENERATED}


def test_figures_in_sentences_are_those_of_the_tables() -> None:
    """The two cases that the text is about, so that a change of the generator cannot hide one."""
    rows = {(entry["case"], entry["who"]): entry for entry in json.loads(RESULTS.read_text("utf-8"))["rows"]}
    magika = rows["magika", "halfconv-portable"]["rel_l2"], rows["magika", "ort-float16"]["rel_l2"]
    assert magika[0] < TOLERANCE < 1 < magika[1]
    assert f"| `magika` | {magika[0]:.3g} | {magika[1]:.3g} |" in text()
    front = " ".join(README.read_text("utf-8").split())
    assert f"drift {magika[1]:.3g} where halfconv's file has {magika[0]:.3g} " in front
    assert rows["dnsmos_sig_bak_ovr", "ort-float16"]["new_nan"] > 0
    said = re.search(r"Magika's (\d+) values, (\d+) go half in place of (\d+)", front)
    assert said is not None
    before, _ = parts(README)["convert"]
    after, _ = parts(ROOT / "docs" / "precision-search.md")["tuned"]
    assert f"{said[3]} of {said[1]} values in half" in before and f"{said[2]} of {said[1]} values in half" in after
    assert re.search(r"right type, GPU simulated +\d+ of 247 = [\d.]+% +0 of 247", parts(README)["demo"][0])


# Commands


@pytest.mark.parametrize("page", [page for page in pages() if blocks("sh", page) and is_ours(page)], ids=page_id)
def test_commands_run_here(page: Path) -> None:
    pytest.importorskip("magika")
    assert printed(page)


def test_commands_leave_what_they_say() -> None:
    pytest.importorskip("magika")
    profiled = {f"magika.{kind}.onnx{more}" for kind in ("fp16", "tuned") for more in ("", ".profile.json")}
    for page, more in ((README, set()), (ROOT / "docs" / "precision-search.md", profiled)):
        assert printed(page)
        names = {path.name for path in folder_of(page).iterdir()}
        assert names == {"magika.onnx", "magika.fp16.onnx", "magika.fp16.onnx.profile.json", *more}


def test_every_snippet_is_run_by_a_test() -> None:
    used = set()
    for page in filter(is_ours, pages()):
        for language, body in BLOCK.findall(page.read_text("utf-8")):
            if language in ("sh", "text"):
                continue
            found = [key for key in SNIPPETS if key[0] == language and key[1] in body]
            assert len(found) == 1, f"{name_of(page)}: {len(found)} tests run this {language} snippet:\n{body}"
            used.add(found[0])
    assert used == set(SNIPPETS)
    for test in SNIPPETS.values():
        file, _, function = test.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text("utf-8"), test


def test_text_blocks_are_generated_or_close() -> None:
    """Output that no command made would be out of date one day."""
    for page in filter(is_ours, pages()):
        kept = PART.sub("", page.read_text("utf-8"))
        assert not [body for language, body in BLOCK.findall(kept) if language == "text"], name_of(page)


def test_library_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("magika")
    from halfconv.demo.magika import find_model

    shutil.copy(find_model().path, tmp_path / "magika.onnx")
    script = block("python", 'convert("magika.onnx", "magika.half.onnx"')
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("magika.half.onnx ")
    assert re.search(r"\n(cpu|cuda) \d+\n$", done.stdout)
    assert done.stderr == ""


def test_pytest_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("magika")
    script = block("python", "assert_drift")
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

    example = block("toml", "[convert]")
    assert tomllib.loads(example)
    (tmp_path / "halfconv.toml").write_text(example, "utf-8")
    known = {name: frozenset(option.name or "" for option in command.params) for name, command in cli.commands.items()}
    options = find_options(tmp_path, known)
    assert options["convert"] == {"block_op": ["Tanh"], "target": "cuda"}
    assert options["inspect"] == {"block_op": ["Tanh"]}


@pytest.mark.slow
def test_script_from_training_to_measuring_runs(tmp_path: Path) -> None:
    script = block("bash", "halfconv train digits_cnn")
    output = shell(here(script), tmp_path, 600)
    for words in ("accuracy on held-out data 0.9", "reached", "as PyTorch: logits", "PASSED", "p50"):
        assert words in output
    made = {path.name for path in (tmp_path / "digits").iterdir()}
    assert {"model.onnx", "weights.safetensors", "samples.npz", "metrics.json", "exported.onnx", "half.onnx"} <= made


def test_formats_example_runs() -> None:
    script = block("python", "halfconv.formats")
    exec(compile(script, "README.md", "exec"), {})


def test_training_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script = block("python", "halfconv.train import fit")
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)
    assert names["result"].metrics["accuracy"] > 0.88  # type: ignore[attr-defined]
    assert capsys.readouterr().out.endswith("0 [] []\n")


MODULE = """import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, 2)

    def forward(self, image):
        return self.conv(image).relu()


def make_net():
    return Net()
"""


@pytest.mark.slow
def test_a_module_of_ones_own_is_exported(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "models.py").write_text(MODULE)
    torch.manual_seed(0)
    save_file({"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, tmp_path / "net.safetensors")
    shell(here(block("bash", "mypackage.models:make_net")), tmp_path)
    assert onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


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
    activated = {"PATH": os.pathsep.join((str(clone / ".venv" / "bin"), os.environ["PATH"])), "PYTHONPATH": ""}
    first, second = (script for script in blocks("sh", README) if installs(script))
    shell(first, clone, 1200, **activated)
    outputs = {script: shell(script, clone, 1200, **activated) for script in blocks("sh", README) if not installs(script)}
    if pinned():
        for name in ("demo", "convert", "validate"):
            written, script = parts(README)[name]
            assert plain(fenced(outputs[script])) == plain(written)
    tested = shell(second, clone, 2400, **activated, PYTEST_ADDOPTS="-q -k test_public")
    assert re.search(r"^\d+ passed, \d+ deselected", tested, re.MULTILINE)


# What it says


def test_ci_runs_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    _, second = (block for block in blocks("sh", README) if installs(block))
    for wanted in ("-c constraints.txt -e '.[cpu,demo,docs,test]'", '-m "not gpu and not big"'):
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
    commands = [part for command in cli.commands.values() for part in (command, *getattr(command, "commands", {}).values())]
    known = {name for command in commands for option in command.params for name in (*option.opts, *option.secondary_opts)}
    ours = "\n".join(page.read_text("utf-8") for page in filter(is_ours, pages()))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", ours))
    others = {"--halfconv-update", "--ignore-scripts", "--nproc-per-node", "--help"}  # of pytest's plugin, npm, torchrun and click
    assert named <= known | others
    anywhere = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", readme))
    assert {name for name in known if name.startswith(("--block", "--allow", "--half", "--keep"))} <= anywhere


def test_exit_codes_are_those_of_the_errors() -> None:
    from halfconv import errors
    from halfconv.cli import INTERNAL_ERROR

    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page.partition("## Exit codes")[2], re.MULTILINE)}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert listed == {0, INTERNAL_ERROR, *(kind.exit_code for kind in kinds if issubclass(kind, errors.HalfconvError))}


def test_files_it_names_are_here() -> None:
    ours = "\n".join(page.read_text("utf-8") for page in filter(is_ours, pages()))
    for name in re.findall(r"`([\w./]+(?:\.md|\.json|\.txt)|bench/|halfconv/schemas/)`", ours):
        if not name.startswith(("magika", "pyproject", "metrics")):
            assert (ROOT / name).exists(), name


def test_it_names_no_index_and_no_place_of_one_machine() -> None:
    for path in (*pages(), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        found = re.findall(r"pypi|index-url|/work/|/root/|/home/", path.read_text("utf-8"), re.IGNORECASE)
        assert found == [], name_of(path)


def test_the_front_page_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 300


def test_every_page_is_found_from_the_front_page_the_overview_and_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    overview = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in pages()[1:]:
        assert f"{page.name}\n" in site, f"{page.name} is not in the nav of mkdocs.yml"
        if page.name != "index.md":
            assert f"(docs/{page.name}" in README.read_text("utf-8"), f"{page.name} is not in the README's tour"
            assert f"({page.name}" in overview, f"{page.name} is not in docs/index.md"


def test_links_between_pages_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text("utf-8"))):
            file, _, anchor = target.partition("#")
            if file.startswith(("http://", "https://")):
                continue
            linked = (page.parent / file) if file else page
            assert linked.is_file(), f"{name_of(page)}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
                assert anchor in slugs, f"{name_of(page)}: {target}"


def write(chosen: list[Path]) -> None:
    """Write the generated parts of pages again."""
    for page in chosen:
        made_parts = {name: made(page, name) for name in parts(page)}
        content = page.read_text("utf-8")
        page.write_text(PART.sub(lambda part: f"{part[1]}{made_parts[part[2]]}\n{part[4]}", content), "utf-8")  # noqa: B023
    remove_scratch()


if __name__ == "__main__":
    write([Path(name).resolve() for name in sys.argv[1:]] or pages())
