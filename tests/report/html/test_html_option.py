"""The option --html: what cannot be is refused before any work is done, and what is written says what was measured."""

from __future__ import annotations

import functools
import hashlib
import html
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import halfconv
from tests.commands import Run, run_here
from tests.graph import model

GRAPH = "(float[4,4] x) => (float[4,4] y) { [mm] a = MatMul(x, x)\n [sum] s = ReduceSum(a)\n [div] y = Div(a, s) }"


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Run]:
    monkeypatch.chdir(folder)
    ir.save(model(GRAPH), folder / "m.onnx")
    run = functools.partial(run_here, capfd)
    assert run("convert", "m.onnx", "--json").code == 0
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


COMMANDS = {
    "convert": ["convert", "m.onnx", "-o", "n.onnx"],
    "validate": ["validate", "m.onnx", "m.fp16.onnx"],
    "bench": ["bench", "m.onnx"],
    "train": ["train", "digits_mlp", "-o", "out"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("bad", ["no folder", "folder", "no package"])
def test_refused_before_any_work(
    name: str, bad: str, cli: Callable[..., Run], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    if bad == "no package":
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "jinja2" else found(name, *more))
    before = files(folder)
    run = cli(*COMMANDS[name], "--html", {"no folder": "none/r.html", "folder": ".", "no package": "r.html"}[bad])
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    wanted = {"no folder": "mkdir -p", "folder": "--html .: is no file", "no package": "pip install 'halfconv[report]'"}
    assert wanted[bad] in run.err and files(folder) == before and not (folder / "out").exists()


def test_a_model_or_another_output_is_never_overwritten(cli: Callable[..., Run], folder: Path) -> None:
    np.savez(folder / "s.npz", x=np.ones((4, 4), np.float32))
    ir.save(model(GRAPH), folder / "n.onnx")
    before = files(folder)
    for arguments in (
        ["convert", "m.onnx", "--html", "m.onnx"], ["convert", "m.onnx", "-o", "o.onnx", "--html", "o.onnx"],
        ["validate", "m.onnx", "m.fp16.onnx", "--html", "m.fp16.onnx"],
        ["validate", "m.onnx", "m.fp16.onnx", "--junit", "r", "--html", "r"], ["bench", "m.onnx", "--html", "m.onnx"],
        ["convert", "n.onnx", "--html", "n.fp16.onnx"], ["convert", "n.onnx", "--html", "n.fp16.onnx.profile.json"],
        ["convert", "m.onnx", "-o", "o.onnx", "--samples", "s.npz", "--html", "s.npz"],
        ["validate", "m.onnx", "m.fp16.onnx", "--samples", "s.npz", "--html", "s.npz"],
        ["validate", "m.onnx", "m.fp16.onnx", "--samples", "s.npz", "--junit", "s.npz"],
        ["bench", "m.onnx", "--markdown", "m.onnx"],
    ):  # fmt: skip
        assert cli(*arguments).code == 2
        assert files(folder) == before


def text_of(path: Path) -> str:
    """Return what a reader sees."""
    content = re.sub(r"<(style|script|svg).*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


def test_convert_says_what_it_did_and_how_to_repeat_it(cli: Callable[..., Run], folder: Path) -> None:
    assert cli("convert", "m.onnx", "-o", "n.onnx", "--block-node", "d.v", "--seed", "7", "--html", "my page.html").code == 0
    text = text_of(folder / "my page.html")
    assert "Passed n.onnx stays within rel_l2" in text
    assert "halfconv convert m.onnx -o n.onnx --block-node d.v --seed 7 --html 'my page.html'" in text
    for file in ("m.onnx", "n.onnx"):
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() in text
    assert f"halfconv {halfconv.__version__}" in text and "seed of made-up samples 7" in text
    assert "user-block" in text and "the samples are synthetic" in text
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_options_of_a_file_are_told(cli: Callable[..., Run], folder: Path) -> None:
    (folder / "halfconv.toml").write_text('[convert]\nblock-op = "Div"\n', "utf-8")
    assert cli("convert", "m.onnx", "-o", "n.onnx", "--no-check", "--html", "r.html").code == 0
    text = text_of(folder / "r.html")
    assert "from the configuration file block_op = ['Div']" in text and "was not simulated" in text


def test_a_conversion_that_fails_has_a_page_that_says_why(cli: Callable[..., Run], folder: Path) -> None:
    run = cli("convert", "m.onnx", "-o", "n.onnx", "--tolerance", "rel_l2=1e-12", "--no-repair", "--html", "r.html")
    assert run.code == 1 and "tolerance is not met" in run.err and not (folder / "n.onnx").exists()
    text = text_of(folder / "r.html")
    assert "Failed No model was left: the tolerance is not met on synthetic samples: y: rel_l2" in text
    assert "beyond" in text and "rel_l2 ≤ 1e-12" in text


def test_validate_compares_the_values_inside(cli: Callable[..., Run], folder: Path) -> None:
    run = cli("validate", "m.onnx", "m.fp16.onnx", "--tolerance", "rel_l2=1e-12", "--html", "r.html")
    assert run.code == 1
    text = text_of(folder / "r.html")
    assert "Failed The candidate drifts too far on 4 synthetic samples" in text and "Drift along the network" in text
    assert "First to go wrong" in text


@pytest.mark.parametrize("fails", [False, True])
def test_a_page_can_do_without_the_values_inside(
    fails: bool, cli: Callable[..., Run], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The model is in place by then: that they cannot be compared is no reason to end with an error."""

    def refuse(*_: object, **__: object) -> None:
        raise halfconv.InputError("m.onnx: ONNX Runtime <died>", "less of it")

    monkeypatch.setattr("halfconv.html_pages.validate", refuse)
    more = ["--tolerance", "rel_l2=0", "--no-repair", "--force-failed", "f.onnx"] if fails else []
    run = cli("convert", "m.onnx", "-o", "o.onnx", "--html", "c.html", "--quiet", *more)
    assert run.code == (1 if fails else 0) and (folder / ("f.onnx" if fails else "o.onnx")).is_file()
    assert "the values inside could not be compared: m.onnx: ONNX Runtime <died>" in text_of(folder / "c.html")


def test_a_bound_may_be_infinite(cli: Callable[..., Run], folder: Path) -> None:
    run = cli("validate", "m.onnx", "m.fp16.onnx", "--tolerance", "rel_l2=inf", "--html", "v.html", "--quiet")
    assert (run.code, run.err) == (0, "") and "inf is allowed" not in (folder / "v.html").read_text("utf-8")


def test_the_same_run_gives_the_same_charts(cli: Callable[..., Run], folder: Path) -> None:
    drawn = []
    for name in ("a.html", "b.html"):
        assert cli("convert", "m.onnx", "-o", "n.onnx", "--html", name).code == 0
        drawn.append(re.findall(r"<svg.*?</svg>", (folder / name).read_text("utf-8"), re.DOTALL))
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6  # three charts, wide and narrow
