"""The package for Node.js: its example and its module in the real package, and what it says without it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from halfconv.deploy.node import ONNXRUNTIME_NODE, verify
from tests.deploy.packages import node_modules


@pytest.fixture(scope="module")
def package(made: Path) -> Path:
    return made / "node-digits_cnn"


def run(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["node", *command], cwd=package, capture_output=True, text=True, timeout=120, check=False)


def test_the_example_runs(package: Path) -> None:
    done = run(package, "example.mjs")
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("logits: float32[3,10] begins with ") and last.endswith(" ms")


def test_its_package_json_asks_for_what_the_tests_ran_with(package: Path) -> None:
    content = json.loads((package / "package.json").read_text("utf-8"))
    assert content["dependencies"] == {"onnxruntime-node": ONNXRUNTIME_NODE}
    installed = json.loads((node_modules() / "onnxruntime-node" / "package.json").read_text("utf-8"))
    assert installed["version"] == ONNXRUNTIME_NODE


def test_without_the_runtime_it_says_what_to_do(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "node")
    done = run(copy, "verify.mjs")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "onnxruntime-node cannot be loaded" in line and "npm install" in line
    found = verify(copy)
    assert not found.ran and not found.passed and "npm install" in found.words


def test_its_module_is_found_from_outside(package: Path) -> None:
    code = (
        "import { loadModel } from './node-digits_cnn/model.mjs';"
        "const model = await loadModel();"
        "const { logits } = await model.run({ image: new model.Tensor('float32', new Float32Array(64), [1, 1, 8, 8]) });"
        "console.log(logits.dims.join());"
    )
    done = run(package.parent, "--input-type=module", "-e", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1,10\n", "")
