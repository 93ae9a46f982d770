"""What CI systems run: the action's steps, the hook, and the snippets of docs/ci.md, on a real model, passing and failing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import halfconv
from halfconv.hook import pairs
from tests.documents import ROOT, block, environment, shell
from tests.generated import make_versions

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")
#: Bounds that the recipe's model meets, and one that no half model meets.
GOOD, BAD = "rel_l2=1e-2\naccuracy=0.005\n", "rel_l2=1e-9"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's model, its samples and its conversion."""
    folder = tmp_path_factory.mktemp("models")
    for ending in ("onnx", "npz"):
        shutil.copy(ROOT / "models" / f"digits_cnn.{ending}", folder)
    halfconv.convert(folder / "digits_cnn.onnx", check=False)
    return folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "models")
    return tmp_path


@dataclass
class Job:
    """Runs the steps of the action as a runner does: conditions, expressions in `env`, files for outputs and the summary."""

    workspace: Path
    inputs: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    code: int = 0
    log: str = ""

    def value(self, expression: str) -> str:
        for choice in expression.split(" || "):
            kind, _, name = choice.strip().partition(".")
            if kind == "inputs":
                found = self.inputs[name]
            elif kind == "steps":
                step, _, key = name.partition(".outputs.")
                found = self.outputs.get(step, {}).get(key, "")
            else:
                assert choice == "github.action_path", choice
                found = str(ROOT)
            if found:
                return found
        return ""

    def holds(self, condition: str) -> bool:
        """Whether a step runs: one that does not say `always()` not after a failure."""
        parts = condition.split(" && ")
        for part in parts:
            if part in ("", "always()"):
                continue
            left, sign, right = re.fullmatch(r"(\S+) (==|!=) '(.*)'", part).groups()  # type: ignore[union-attr]
            if (self.value(left) == right) is not (sign == "=="):
                return False
        return "always()" in parts or not self.code

    @property
    def summary(self) -> str:
        file = self.workspace / "summary"
        return file.read_text("utf-8") if file.exists() else ""

    def run(self) -> Job:
        for step in STEPS:
            if "run" not in step or not self.holds(step.get("if", "")):
                continue
            if "pip install" in step["run"]:
                continue
            output = self.workspace / "output"
            output.write_text("")
            named = {key: EXPRESSION.sub(lambda found: self.value(found[1]), text) for key, text in step["env"].items()}
            files = {"GITHUB_STEP_SUMMARY": str(self.workspace / "summary"), "GITHUB_OUTPUT": str(output)}
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as a runner calls bash
            done = subprocess.run(
                command, cwd=self.workspace, env=environment(**named, **files, GITHUB_ACTIONS="true", CI="true"),
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            self.log += done.stdout + done.stderr
            pairs = (line.partition("=") for line in output.read_text("utf-8").splitlines())
            self.outputs[step["id"]] = {key: text for key, _, text in pairs}
            self.code = self.code or done.returncode
        return self


@pytest.fixture
def act(workspace: Path) -> Callable[..., Job]:
    def run(**given: str) -> Job:
        inputs = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()}
        named = {"model": "models/digits_cnn.onnx", "samples": "models/digits_cnn.npz", **given}
        assert set(named) <= set(inputs)
        return Job(workspace, {**inputs, **{key.replace("_", "-"): value for key, value in named.items()}}).run()

    return run


# The action


def test_inputs_and_outputs_are_described_and_used() -> None:
    text = (ROOT / "action.yml").read_text("utf-8")
    for name, entry in ACTION["inputs"].items():
        assert entry["description"].endswith("."), name
        assert f"inputs.{name}" in text
        assert entry.get("required", False) is (name == "model")
    assert all(EXPRESSION.fullmatch(entry["value"]) and entry["description"] for entry in ACTION["outputs"].values())


def test_no_expression_is_code() -> None:
    for step in STEPS:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) is ("shell" in step)


def test_what_an_artifact_holds_is_what_the_steps_write() -> None:
    (upload,) = (step for step in STEPS if "uses" in step)
    assert upload["if"].startswith("always()")
    assert EXPRESSION.findall(upload["with"]["path"]) == ["inputs.reports", "steps.convert.outputs.candidate"]


def test_the_action_converts_and_passes(act: Callable[..., Job], workspace: Path) -> None:
    job = act(tolerance=GOOD, output="out dir.onnx")
    assert job.code == 0, job.log
    assert job.outputs["validate"] == {"candidate": "out dir.onnx", "passed": "true", "junit": "halfconv-reports/junit.xml"}
    assert (workspace / "out dir.onnx").is_file()
    assert job.summary.startswith("### ✅ halfconv validate: PASSED")
    assert "::notice title=halfconv validate::PASSED" in job.log
    assert (workspace / "halfconv-reports" / "report.html").is_file()
    suite = ElementTree.parse(workspace / "halfconv-reports" / "junit.xml").getroot()
    assert suite.get("failures") == "0" and int(suite.get("tests") or 0) >= 2


def test_the_action_fails_where_a_committed_model_drifts(act: Callable[..., Job], workspace: Path) -> None:
    job = act(tolerance=BAD, candidate="models/digits_cnn.fp16.onnx")
    assert job.code == 1
    assert job.outputs == {"validate": {
        "candidate": "models/digits_cnn.fp16.onnx", "passed": "false", "junit": "halfconv-reports/junit.xml"
    }}  # fmt: skip
    assert job.summary.startswith("### ❌ halfconv validate: FAILED")
    assert "::error title=" in job.log
    assert ElementTree.parse(workspace / "halfconv-reports" / "junit.xml").getroot().get("failures") == "1"


def test_a_conversion_that_fails_is_in_the_summary(act: Callable[..., Job], workspace: Path) -> None:
    (workspace / "broken.onnx").write_bytes(b"no model")
    job = act(model="broken.onnx", samples="")
    assert job.code == 2 and "validate" not in job.outputs
    assert job.summary.startswith("### ❌ halfconv convert\n\n    halfconv: ")


def test_a_validation_that_cannot_be_done_shows_no_summary_of_another(act: Callable[..., Job], workspace: Path) -> None:
    assert act(tolerance=GOOD, candidate="models/digits_cnn.fp16.onnx").code == 0
    job = act(tolerance=GOOD, candidate="none.onnx")
    assert job.code == 2 and job.outputs["validate"]["passed"] == "false"
    assert job.summary.count("PASSED") == 1 and job.summary.endswith("It could not be done; the log says why.\n")
    assert not list((workspace / "halfconv-reports").glob("*.*"))


def test_names_are_data(act: Callable[..., Job], workspace: Path) -> None:
    """A name that is a command, or an option, is a name."""
    evil = "$(touch owned) `touch owned`; touch owned #"
    job = act(model=f"--help {evil}.onnx", samples=evil, tolerance=f"{evil}\n--json", reports="-r")
    assert job.code == 2 and not (workspace / "owned").exists()
    assert "Usage:" not in job.log


def test_nothing_of_the_workspace_is_imported(act: Callable[..., Job], workspace: Path) -> None:
    (workspace / "click.py").write_text("open('owned', 'w')")
    job = act(tolerance=GOOD, candidate="models/digits_cnn.fp16.onnx")
    assert job.code == 0 and not (workspace / "owned").exists(), job.log
    assert not [step["name"] for step in STEPS if re.search(r"python (?!-P )", step.get("run", ""))]


def test_the_workflow_of_the_documentation(workspace: Path, act: Callable[..., Job]) -> None:
    workflow = yaml.safe_load(block("yaml", "on: [push, pull_request]"))
    (job,) = workflow["jobs"].values()
    step = job["steps"][-1]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert act(**step["with"]).code == 0


# pre-commit


@pytest.fixture
def repository(workspace: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A repository with the hook of this one, run by pre-commit from this environment."""
    pytest.importorskip("pre_commit")
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert hook["entry"].startswith("python ")
    documented = yaml.safe_load(block("yaml", "id: halfconv-drift"))
    local = {**hook, "language": "system", "entry": hook["entry"].replace("python", sys.executable, 1)}
    local.pop("additional_dependencies")

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=workspace, check=True, capture_output=True)

    def run(files: str, args: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        (used,) = documented["repos"][0]["hooks"]
        assert used["id"] == hook["id"]
        given = {**local, "args": used["args"] if args is None else args}
        (workspace / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": [given]}]}))
        git("init", "-q")
        git("add", "-f", files, ".pre-commit-config.yaml")
        command = [sys.executable, "-m", "pre_commit", "run", "--color", "never", "--verbose"]
        environ = environment(PRE_COMMIT_HOME=str(workspace / "cache"))
        return subprocess.run(command, cwd=workspace, env=environ, capture_output=True, text=True, check=False, timeout=300)

    return run


def test_the_manifest_is_one() -> None:
    pytest.importorskip("pre_commit")
    command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hook_passes_and_uses_the_samples_beside_the_model(repository: Callable[..., Any], workspace: Path) -> None:
    (workspace / "click.py").write_text("raise SystemExit('imported from the workspace')")
    done = repository("models/digits_cnn.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout and "SYNTHETIC" not in done.stdout


def test_the_hook_stops_a_commit_that_drifts(repository: Callable[..., Any]) -> None:
    done = repository("models/digits_cnn.fp16.onnx", ["--tolerance=rel_l2=1e-9"])
    assert done.returncode == 1
    assert "FAILED  models/digits_cnn.fp16.onnx" in done.stdout


def test_pairs_are_found_from_either_side_once(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.fp16.onnx", "a.bf16.onnx", "b.onnx", "c.fp16.onnx"):
        (tmp_path / name).touch()
    a, half, brain, b, c = (tmp_path / name for name in ("a.onnx", "a.fp16.onnx", "a.bf16.onnx", "b.onnx", "c.fp16.onnx"))
    assert pairs([half, a]) == [(a, half), (a, brain)]
    assert pairs([brain]) == [(a, brain)]
    assert pairs([b, c]) == []


# Other systems


def run_lines(lines: list[str], folder: Path, **environ: str) -> None:
    installing, *rest = lines
    assert installing == "pip install 'halfconv[cpu]'"
    for line in rest:
        shell(line, folder, **environ)


def test_the_gitlab_job(workspace: Path) -> None:
    (job,) = yaml.safe_load(block("yaml", "image: python")).values()
    run_lines(job["script"], workspace, CI="true", GITLAB_CI="true")
    for name in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (workspace / name).is_file()


def test_the_jenkins_pipeline_runs_what_gitlab_runs(workspace: Path) -> None:
    pipeline = block("groovy", "pipeline {")
    assert pipeline.count("{") == pipeline.count("}")
    commands = [found[2] for found in re.finditer(r"""^\s*sh (["'])(.*)\1$""", pipeline, re.MULTILINE)]
    (job,) = yaml.safe_load(block("yaml", "image: python")).values()
    assert commands == job["script"]
    assert "junit 'junit.xml'" in pipeline


def test_the_waiver_of_the_documentation(made: Path, tmp_path: Path) -> None:
    import datetime

    from halfconv.drift.gate import make_gate

    (tmp_path / "gate.toml").write_text(block("toml", "[[waivers]]"), "utf-8")
    (waiver,) = make_gate("fp16", ["target_label"], None, tmp_path / "gate.toml").waivers
    assert (waiver.output, waiver.metric, waiver.up_to) == ("target_label", "rel_l2", 0.05)
    assert waiver.expires == datetime.date(2027, 1, 31)


def test_the_environment_of_a_step_is_what_it_reads() -> None:
    """A variable that a script reads and no step sets would be empty."""
    given: Mapping[str, Any] = os.environ
    assert "MODEL" not in given
    for step in STEPS:
        if "run" in step:
            read = set(re.findall(r"\$\{?([A-Z_]+)", step["run"])) - {"GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"}
            assert read == set(step["env"]), step["name"]


def test_snippets_use_the_python_that_the_tests_run_with() -> None:
    text = (ROOT / "docs" / "ci.md").read_text("utf-8")
    tested = re.search(r"^\| Python \| \S+ \| ([\d.]+) \|$", make_versions(), re.MULTILINE)
    assert tested is not None
    assert re.findall(r"""python(?:-version: "|:)([\d.]+)""", text) == [tested[1]] * 3
