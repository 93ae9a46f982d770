"""Real models go through every kind of package, each verifies itself in its real runtime, and tells what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from halfconv import deploy_command, planning
from halfconv.deploy.kinds import KINDS
from halfconv.deploy.manifest import check
from halfconv.deploy.recorded import read_samples
from tests.deploy.packages import MODELS, make, real_samples, sign_again, source, verify
from tests.test_schemas import validate

ALL = ("edge", "mobile", "node")


def test_the_command_offers_every_kind_and_target() -> None:
    assert tuple(kind.name for kind in KINDS) == deploy_command.PACKAGES
    assert deploy_command.TARGETS == planning.TARGETS


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("key", MODELS)
def test_a_real_model_verifies_itself(kind: str, key: str, converted: Callable[[str], Path], tmp_path: Path) -> None:
    result = make(kind, key, tmp_path, converted(key))
    assert result.verified.ran and result.verified.passed
    package = result.output
    content = check(package)
    validate("manifest", content)
    validate("deploy", json.loads(json.dumps(result.to_dict())))
    recording = read_samples(package / "samples")
    assert (recording.kind, len(recording.samples), recording.tolerance["rel_l2"]) == ("given", 2, 1e-2)
    for sample, given in zip(recording.samples, real_samples(key), strict=True):
        assert sample.inputs.keys() == given.keys()
        assert all(np.array_equal(sample.inputs[name], given[name]) for name in given)
    halved = content["sizes"]["half"] / content["sizes"]["reference"]
    assert 0.45 < halved < 0.6
    # The runtime's own environment gives the same verdict, and leaves the package as it was.
    done = verify(kind, package, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify: passed" in done.stdout
    assert check(package) == content


@pytest.mark.parametrize("kind", ALL)
def test_the_shipped_weights_are_half(kind: str, made: Path) -> None:
    package = made / f"{kind}-digits_cnn"
    shipped = onnx.load(package / "model" / "digits_cnn.fp16.onnx")
    kinds = [weight.data_type for weight in shipped.graph.initializer if weight.data_type != TensorProto.INT64]
    assert set(kinds) == {TensorProto.FLOAT16}
    weights = [w for w in onnx.load(source("digits_cnn")).graph.initializer if w.data_type == TensorProto.FLOAT]
    assert len(kinds) == len(weights)


@pytest.fixture(params=ALL)
def broken(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> tuple[str, Path]:
    """A copy of a package, to be broken."""
    kind: str = request.param
    package = shutil.copytree(made / f"{kind}-digits_cnn", tmp_path / kind)
    if kind == "node":
        (tmp_path / "node_modules").symlink_to((made / "node_modules").resolve())
    return kind, package


def told(broken: tuple[str, Path], tmp_path: Path) -> str:
    """What verification says in its one line, with exit code 2."""
    kind, package = broken
    done = verify(kind, package, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("verify: ") and "; try: " in line
    return line


def model_of(package: Path) -> Path:
    return package / "model" / "digits_cnn.fp16.onnx"


def test_a_tampered_model_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    model = model_of(broken[1])
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    line = told(broken, tmp_path)
    assert "digits_cnn.fp16.onnx" in line and "was changed" in line


def test_a_truncated_model_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    model = model_of(broken[1])
    model.write_bytes(model.read_bytes()[:-1])
    assert "was changed" in told(broken, tmp_path)


@pytest.mark.parametrize("name", ["model/digits_cnn.fp16.onnx", "samples/0.in.0.bin", "samples/samples.json"])
def test_a_missing_file_is_told(broken: tuple[str, Path], tmp_path: Path, name: str) -> None:
    (broken[1] / name).unlink()
    line = told(broken, tmp_path)
    assert name in line and "is missing" in line


def test_a_file_that_is_not_of_the_package_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    (broken[1] / "model" / "other.onnx").write_bytes(b"")
    line = told(broken, tmp_path)
    assert "other.onnx" in line and "no file of this package" in line


def test_a_missing_manifest_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    (broken[1] / "manifest.json").unlink()
    assert "manifest.json" in told(broken, tmp_path)


def test_a_model_outside_of_the_package_is_not_loaded(broken: tuple[str, Path], tmp_path: Path) -> None:
    path = broken[1] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "model": "../../digits.onnx"}), "utf-8")
    assert "cannot be called '../../digits.onnx'" in told(broken, tmp_path)


def test_an_old_runtime_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    path = broken[1] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "min_ort": "99.1"}), "utf-8")
    line = told(broken, tmp_path)
    assert "too old" in line and "99.1" in line


def test_an_operator_that_the_runtime_lacks_is_told(broken: tuple[str, Path], tmp_path: Path) -> None:
    package = broken[1]
    model = onnx.load(model_of(package))
    model.graph.node[0].domain, model.graph.node[0].op_type = "nobody", "Unheard"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(model, model_of(package))
    sign_again(package)
    line = told(broken, tmp_path)
    assert "Unheard" in line


def test_other_weights_fail_with_exit_code_1(broken: tuple[str, Path], tmp_path: Path) -> None:
    kind, package = broken
    model = onnx.load(model_of(package))
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            array = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float16(1.05), weight.name))
    onnx.save(model, model_of(package))
    sign_again(package)
    done = verify(kind, package, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "logits: FAILED: rel_l2" in done.stdout and "verify: FAILED" in done.stdout
