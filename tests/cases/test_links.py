"""Weights behind links, as in the cache of a model hub: refused, or admitted below a folder that the user names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import halfconv
from halfconv.cli import cli
from tests.cases.checks import Converted, normal, runs
from tests.cases.test_files import network, save_external, state

X = normal(2, 40)


def cache(folder: Path, *, hard: bool = False, model_too: bool = True) -> Path:
    """A hub's cache: files by their hash in ``blobs``, and links to them in ``snapshots/x``."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "x"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_external(blobs)
    for name, blob in {"model.onnx": "1234", "weights.bin": "5678"}.items():
        (blobs / name).rename(blobs / blob)
        if name == "model.onnx" and not model_too:
            (snapshot / name).write_bytes((blobs / blob).read_bytes())
        elif hard:
            os.link(blobs / blob, snapshot / name)
        else:
            (snapshot / name).symlink_to(Path("../../blobs") / blob)
    return snapshot / "model.onnx"


KINDS = pytest.mark.parametrize(
    "form", [{}, {"hard": True}, {"model_too": False}], ids=["symbolic links", "hard links", "the weights alone"]
)


@KINDS
def test_links_are_refused_and_the_option_is_named(form: dict[str, bool], folder: Path) -> None:
    source = cache(folder, **form)
    before = state(folder)
    calls: list[Callable[[], object]] = [
        lambda: halfconv.convert(source), lambda: halfconv.inspect(source), lambda: halfconv.validate(source, source)
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(halfconv.InputError) as caught:
            call()
        assert "link" in str(caught.value) and "try: --allow-links " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert state(folder) == before


@KINDS
def test_links_below_the_root_are_admitted(form: dict[str, bool], folder: Path) -> None:
    source = cache(folder, **form)
    before = state(folder)
    report = halfconv.inspect(source, allow_links=folder)
    assert report.bytes == source.stat().st_size + (folder / "blobs" / "5678").stat().st_size
    result = halfconv.convert(source, folder / "out.onnx", allow_links=folder)
    assert result.drift is not None, result.warnings
    assert result.check is not None and result.check.loaded
    assert {name: content for name, content in state(folder).items() if name in before} == before
    judged = halfconv.validate(source, result.output, allow_links=folder)
    assert judged.passed
    plain = folder / "plain"
    plain.mkdir()
    runs(Converted(save_external(plain), result), {"x": X})


def test_a_source_that_the_runtime_refuses_is_blamed_through_links(folder: Path) -> None:
    source = cache(folder)
    blob = folder / "blobs" / "1234"
    model = onnx.load(blob, load_external_data=False)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 41
    onnx.save(model, blob)
    with pytest.raises(halfconv.InputError, match="source itself"):
        halfconv.convert(source, folder / "out.onnx", allow_links=folder)
    assert not (folder / "out.onnx").exists()


def test_links_that_end_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    source = cache(folder)
    for root in (folder / "snapshots", tmp_path / "models" / "snapshots" / "x"):
        with pytest.raises(halfconv.InputError, match="not below"):
            halfconv.convert(source, allow_links=root)
    with pytest.raises(halfconv.UsageError, match="is no folder"):
        halfconv.convert(source, allow_links=folder / "nowhere")
    with pytest.raises(halfconv.UsageError, match="is no folder"):
        halfconv.convert(source, allow_links="")


@pytest.mark.parametrize("form", ["../weights.bin", "data/../../weights.bin", "absolute"])
def test_a_path_in_the_model_that_leaves_its_folder_is_refused_whatever_the_root(form: str, folder: Path) -> None:
    inner = folder / "inner"
    (inner / "data").mkdir(parents=True)
    source = save_external(inner)
    (inner / "weights.bin").rename(folder / "weights.bin")
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder / "weights.bin") if form == "absolute" else form
    onnx.save(model, source)
    for root in (folder, Path("/")):
        with pytest.raises(halfconv.InputError, match="outside the model's folder"):
            halfconv.convert(source, allow_links=root)


def test_links_in_a_circle(folder: Path) -> None:
    source = save_external(folder)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("weights.bin")
    with pytest.raises(halfconv.InputError) as caught:
        halfconv.convert(source, allow_links=folder)
    assert "weights.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_line_has_the_option(folder: Path) -> None:
    source = cache(folder)
    out = str(folder / "out.onnx")
    runner = CliRunner()
    for arguments in (
        ["inspect", str(source)],
        ["convert", str(source), "-o", out],
        ["validate", str(source), out],
    ):
        done = runner.invoke(cli, [*arguments, "--allow-links", str(folder)])
        assert done.exit_code == 0, done.output


def test_equal_weights_behind_links_are_the_models(folder: Path) -> None:
    """What is read through a link is what lies there."""
    source = cache(folder)
    result = halfconv.convert(source, folder / "out.onnx", allow_links=folder, external_data="never", check=False)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(result.output).graph.initializer}
    for tensor in network().graph.initializer:
        assert np.array_equal(held[tensor.name], onnx.numpy_helper.to_array(tensor).astype(np.float16))


def test_a_folder_behind_a_link_is_not_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data lies beside the model all the same, and may be large."""
    save_external(folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setattr("shutil.copyfile", lambda *_: pytest.fail("copied"))
    source = tmp_path / "link" / "model.onnx"
    result = halfconv.convert(source)
    assert halfconv.validate(source, result.output).passed
