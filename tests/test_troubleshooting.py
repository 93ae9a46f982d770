"""docs/troubleshooting.md: every message that it quotes is one that the code can say, and some are said here."""

from __future__ import annotations

import ast
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.commands import run_here
from tests.documents import ROOT, name_of

PAGE = ROOT / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(.+?)` \|(.*)\|$", re.MULTILINE)
HEAD = re.compile(r"^\| message \|", re.MULTILINE)


def quoted() -> list[str]:
    return [match[1] for match in ROW.finditer(PAGE.read_text("utf-8"))]


def words(node: ast.expr) -> str | None:
    """What a text of the code always says, with … for each thing that it fills in; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(filled, node.values))
    return None


def filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "'…'" if isinstance(part, ast.FormattedValue) and part.conversion == ord("r") else "…"


@cache
def said_by_the_code() -> frozenset[str]:
    found = set()
    for file in (ROOT / "halfconv").rglob("*.py"):
        nodes = (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.expr))
        found |= {plain(text) for node in nodes if (text := words(node)) is not None}
    return frozenset(found)


def plain(message: str) -> str:
    """Several things filled in side by side are as one."""
    return re.sub(r"(… ?)+", "…", message)


@pytest.mark.parametrize("message", quoted())
def test_messages_are_those_of_the_code(message: str) -> None:
    assert plain(message) in said_by_the_code()


def test_rows_are_whole() -> None:
    """Each row has a message that is quoted, once, and a cause."""
    messages = quoted()
    assert len(messages) == len(set(messages)) > 60
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    heads = len(HEAD.findall(PAGE.read_text("utf-8")))
    assert len(rows) == heads + len(messages), name_of(PAGE)
    assert all(match[2].split("|")[0].strip() for match in ROW.finditer(PAGE.read_text("utf-8")))


@pytest.fixture
def folder_of_models(folder: Path) -> Path:
    import halfconv

    for ending in ("onnx", "npz"):
        shutil.copy(ROOT / "models" / f"digits_cnn.{ending}", folder / f"m.{ending}")
    halfconv.convert(folder / "m.onnx", folder / "half.onnx", check=False)
    (folder / "empty.onnx").touch()
    (folder / "page.onnx").write_text("<html>not found</html>")
    np.savez(folder / "names.npz", pixels=np.zeros((1, 1, 8, 8), np.float32))
    np.savez(folder / "objects.npz", image=np.array([None, 1], object))
    (folder / "waiver.toml").write_text('[[waivers]]\noutput = "logits"\nreason = "r"\n')
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["convert", "none.onnx"], "…: no such file"),
        (["convert", "empty.onnx"], "…: the file is empty"),
        (["inspect", "page.onnx"], "…: not an ONNX model (…)"),
        (["inspect", "."], "…: is a directory, not a model file"),
        (["convert", "m.onnx", "--block-op", "Tan"], "… '…' matches no node of the model"),
        (["convert", "m.onnx", "--block-node", "conv"], "… '…' matches no node id of the model"),
        (["convert", "m.onnx", "-o", "m.onnx"], "output … is the input itself, which is never touched"),
        (["convert", "m.onnx", "--half-io=x"], "…=…: the model has no input or output of that name"),
        (["convert", "m.onnx", "--samples", "names.npz"], "… is missing; found …"),
        (["convert", "m.onnx", "--samples", "objects.npz"],
         "… holds pickled Python objects, which are never loaded (they can run any code)"),
        (["validate", "half.onnx", "m.onnx"], "… holds half-precision values and … none: they are the wrong way round"),
        (["validate", "m.onnx", "half.onnx", "--tolerance", "rel_l2"], "… has no value"),
        (["validate", "m.onnx", "half.onnx", "--tolerance", "zeroed=1"], "…: looser than …, which always holds"),
        (["validate", "m.onnx", "half.onnx", "--tolerance-file", "waiver.toml"],
         "…: has no date, and a waiver without one would last for ever"),
        (["validate", "m.onnx", "half.onnx", "--baseline", "none.json"], "…: no such baseline"),
        (["inspect", "m.onnx", "-q", "-v"], "--quiet and --verbose contradict each other; try: one of them"),
    ],
)  # fmt: skip
def test_commands_say_them(
    folder_of_models: Path, command: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in quoted()
    monkeypatch.chdir(folder_of_models)
    run = run_here(capfd, *command)
    assert (run.code, run.out) == (2, "")
    wanted = ".+".join(re.escape(part) for part in message.partition("; try: ")[0].split("…"))
    assert re.match(f"halfconv: {wanted}[^\n]*; try: [^\n]+\n$", run.err), run.err
