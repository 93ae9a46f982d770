"""What docs/report.md shows does what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from halfconv.cli import cli
from tests.report.html.pages import FLEET, ROOT, run

TEXT = (ROOT / "docs" / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_every_command_writes_its_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for file in ("digits_cnn.onnx", "digits_cnn.npz"):
        shutil.copy(ROOT / "models" / file, folder)
    (folder / "fleet.toml").write_text(FLEET.replace('  { path = "broken.onnx" },\n', ""), "utf-8")
    monkeypatch.chdir(folder)
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "halfconv" and run(*words) == 0, line
        assert (folder / words[-1]).read_text("utf-8").startswith("<!doctype html>")


def test_every_command_with_a_page_is_named() -> None:
    with_page = {name for name, command in cli.commands.items() if any(p.name == "html" for p in command.params)}
    assert with_page == {"bench", "convert", "sweep", "train", "validate"}
    assert all(f"halfconv {name} " in TEXT for name in with_page)


def test_pictures_are_there_and_small() -> None:
    images = ROOT / "docs" / "images"
    shown = re.findall(r"\(images/([^)]+)\)", TEXT)
    assert shown
    for name in shown:
        assert (images / name).is_file()
    pictures = sorted(images.glob("report-*.png"))
    assert {picture.stem.rpartition("-")[2] for picture in pictures} == {"1280", "390"}
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
