"""Recorded samples and the manifest: what is written is read again, and nothing outside of the folder is touched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfconv.deploy.manifest import check, read_manifest, require_version, write_manifest
from halfconv.deploy.recorded import DTYPES, Recorded, Recording, read_samples, write_samples
from halfconv.deploy.templates import FILES
from halfconv.deploy.verifying import compare
from halfconv.drift.metrics import Accumulator
from halfconv.errors import EnvironmentProblem, InputError
from tests.deploy.packages import node_modules

RANDOM = np.random.default_rng(0)


def recording(*pairs: tuple[np.ndarray, np.ndarray], tolerance: dict[str, float] | None = None) -> Recording:
    samples = tuple(Recorded(f"s{place}", {"x": given}, {"y": wanted}) for place, (given, wanted) in enumerate(pairs))
    return Recording(samples, tolerance or {"rel_l2": 1e-2}, "given", "fp16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_arrays_of_every_type_are_read_again(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = (RANDOM.random(shape) * 100).astype(dtype)
    write_samples(tmp_path, recording((array, array), (array, array)))
    found = read_samples(tmp_path)
    assert (found.kind, found.to, found.tolerance, len(found.samples)) == ("given", "fp16", {"rel_l2": 1e-2}, 2)
    read = found.samples[1].inputs["x"]
    assert (read.dtype, read.shape) == (np.dtype(dtype), shape) and np.array_equal(read, array)


def test_foreign_byte_order_and_layout_are_stored_as_all_others(tmp_path: Path) -> None:
    array = np.asfortranarray(RANDOM.random((3, 4)).astype(">f4"))
    write_samples(tmp_path, recording((array, array)))
    assert (tmp_path / "0.in.0.bin").read_bytes() == np.ascontiguousarray(array, "<f4").tobytes()


def test_objects_are_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be recorded"):
        write_samples(tmp_path, recording((np.array(["a"], object), np.zeros(1))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../secret.bin"}, "no file of this folder"),
        ({"file": "/etc/passwd"}, "no file of this folder"),
        ({"file": "a/b.bin"}, "no file of this folder"),
        ({"file": 3}, "no file of this folder"),
        ({"file": "gone.bin"}, "cannot be read"),
        ({"shape": [1000000, 1000000]}, "needs 4,000,000,000,000"),
        ({"shape": [-1]}, "of shape"),
        ({"shape": ["n"]}, "of shape"),
        ({"dtype": "object"}, "of shape"),
    ],
    ids=str,
)
def test_hostile_entries_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4)
    folder = tmp_path / "samples"
    write_samples(folder, recording((np.zeros(1, np.float32), np.zeros(1, np.float32))))
    content = json.loads((folder / "samples.json").read_text("utf-8"))
    content["samples"][0]["inputs"][0] |= change
    (folder / "samples.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match=words):
        read_samples(folder)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    write_samples(folder, recording((np.zeros(1, np.float32), np.zeros(1, np.float32))))
    (folder / "0.in.0.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "0.in.0.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(InputError, match="no file of this folder"):
        read_samples(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 1}', "[" * 100000], ids=range(6))
def test_damaged_lists_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"samples\.json"):
        read_samples(tmp_path)


# The manifest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "m.onnx").write_bytes(b"model")
    (folder / "a file.txt").write_text("text", "utf-8")
    content = {"halfconv": "0", "kind": "edge", "name": "m", "model": "m.onnx", "to": "fp16", "min_ort": "1.17"}
    write_manifest(folder, {**content, "inputs": [], "outputs": [], "profile": None, "tolerance": {"rel_l2": 0.01}})
    return folder


def test_a_package_is_as_its_manifest_says(package: Path) -> None:
    assert [entry["path"] for entry in check(package)["files"]] == ["a file.txt", "model/m.onnx"]
    for tool in ("__pycache__", "node_modules", ".venv"):  # what tools make in it is none of it
        (package / tool).mkdir()
        (package / tool / "x").write_bytes(b"")
    (package / "package-lock.json").write_text("{}", "utf-8")
    check(package)


def test_links_are_no_files_of_a_package(package: Path) -> None:
    (package / "model" / "m.onnx").rename(package.parent / "m.onnx")
    (package / "model" / "m.onnx").symlink_to(package.parent / "m.onnx")
    with pytest.raises(InputError, match="is a link"):
        check(package)


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "", "a//b", "C:\\x", "a\\..\\..\\b", "./a", "x\0"])
def test_paths_out_of_the_package_are_refused(path: str, package: Path) -> None:
    content = json.loads((package / "manifest.json").read_text("utf-8"))
    content["files"][0]["path"] = path
    (package / "manifest.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match="outside of the package"):
        read_manifest(package)


@pytest.mark.parametrize("key", ["kind", "name", "model", "to", "min_ort", "inputs", "outputs", "profile", "tolerance"])
def test_what_packages_read_must_be_there(key: str, package: Path) -> None:
    """Else an example or the service in the package would end with a KeyError."""
    content = json.loads((package / "manifest.json").read_text("utf-8"))
    for changed in ({name: value for name, value in content.items() if name != key}, {**content, key: 5}):
        (package / "manifest.json").write_text(json.dumps(changed), "utf-8")
        if key != "tolerance" or key not in changed:
            with pytest.raises(InputError, match=f"'{key}' is missing or damaged; try: copy or download"):
                read_manifest(package)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no package of halfconv"):
        check(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "files": []}', "utf-8")  # such as a browser extension's
    with pytest.raises(InputError, match="no manifest of halfconv"):
        check(tmp_path)


def test_versions_are_compared_as_numbers() -> None:
    for found in ("1.20", "1.20.1", "1.100.0", "2.0", "1.20.0.dev1"):
        require_version({"min_ort": "1.20"}, found)
    for found in ("1.9.1", "1.19.9", "0.30", "1"):
        with pytest.raises(EnvironmentProblem, match="too old"):
            require_version({"min_ort": "1.20"}, found)


# Judged in Python and in JavaScript

ROWS = RANDOM.normal(size=(6, 40)).astype(np.float32)
NEAR = (ROWS * (1 + RANDOM.normal(size=ROWS.shape) * 1e-3)).astype(np.float32)
BROKEN = NEAR.copy()
BROKEN[0, 0], BROKEN[1, 1] = np.nan, np.inf
CASES = {
    "near": (ROWS, NEAR),
    "equal": (ROWS, ROWS),
    "broken": (ROWS, BROKEN),
    "zeros": (ROWS, np.zeros_like(ROWS)),
    "of zeros": (np.zeros_like(ROWS), NEAR),
    "infinite reference": (BROKEN, NEAR),
    "swapped rows": (ROWS, ROWS[::-1].copy()),
    "integers": (np.arange(12, dtype=np.int64).reshape(3, 4), np.arange(12, dtype=np.int64).reshape(3, 4) // 2 * 2),
    "scalars": (np.array(2.0, np.float32), np.array(2.5, np.float32)),
    "float64": (ROWS.astype(np.float64), NEAR.astype(np.float64)),
    "float16": (ROWS.astype(np.float16), NEAR.astype(np.float16)),
}
MEASURES = (
    "rel_l2", "max_abs", "max_rel", "cosine", "sqnr_db", "ulp_p99", "argmax_agreement", "agreement", "new_nan", "new_inf",
    "mismatched", "zeroed",
)  # fmt: skip
SCRIPT = """
import { readFile } from "node:fs/promises";
import { judge, readSamples } from "./samples.mjs";
const load = (folder) => async (file) => {
  const bytes = await readFile(`${folder}/${file}`);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
};
const recording = await readSamples(load(process.argv[2]));
const given = (await readSamples(load(process.argv[3]))).samples.map((sample) => sample.outputs);
const words = (key, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value);
console.log(JSON.stringify(judge(recording, given), words));
"""


@pytest.mark.parametrize("name", CASES)
def test_javascript_measures_as_validate_does(name: str, tmp_path: Path) -> None:
    node_modules()  # skips where there is no Node.js
    reference, candidate = CASES[name]
    parts = [..., (..., slice(2))] if reference.shape else [...]
    wanted, given = [(reference[part], reference[part]) for part in parts], [candidate[part] for part in parts]
    known = recording(*wanted, tolerance={"rel_l2": 1e-2, "agreement": 0.99, "max_abs@y": 1e9, "new_nan": 0, "max_abs@z": 0})
    write_samples(tmp_path / "wanted", known)
    write_samples(tmp_path / "given", recording(*((value, value) for value in given)))
    (tmp_path / "run.mjs").write_text(SCRIPT, "utf-8")
    (tmp_path / "samples.mjs").write_bytes((FILES / "javascript" / "samples.mjs").read_bytes())
    done = subprocess.run(["node", "run.mjs", "wanted", "given"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    accumulator = Accumulator("fp16")
    for (_, left), right in zip(wanted, given, strict=True):
        accumulator.update(left, right)
    measures = accumulator.result("y").measures
    theirs = found["outputs"][0]["measures"]
    for measure in MEASURES:
        ours, other = getattr(measures, measure), theirs.get(measure)
        assert (ours is None) == (other is None), measure
        if ours is not None:
            number = float(other)
            assert number == ours or number == pytest.approx(ours, rel=5e-3), measure  # two are histograms in Python
    values = iter(given)
    bounds = {"rel_l2": 1e-2, "agreement": 0.99, "new_nan": 0.0}
    assert found["passed"] == compare(recording(*wanted, tolerance=bounds), lambda feeds: {"y": next(values)}).passed


@pytest.mark.parametrize(("value", "words"), [(np.zeros((3, 3), np.float32), "shape"), (None, "no such output")], ids=str)
def test_other_shapes_and_missing_outputs_fail(value: np.ndarray | None, words: str) -> None:
    known = recording((ROWS, ROWS))
    if value is None:
        with pytest.raises(InputError, match="gives no output 'y'"):
            compare(known, lambda feeds: {})
        return
    outcome = compare(known, lambda feeds: {"y": value})
    assert not outcome.passed and words in outcome.lines[0]
