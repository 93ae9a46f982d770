"""docs/troubleshooting.md: every message that it quotes is one that the code can say, and some are said here."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.commands import run_here
from tests.documents import ROOT, name_of

PAGE = ROOT / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| (`[^`]+`(?:<br>`[^`]+`)*) \|(.*)\|$", re.MULTILINE)
HEAD = re.compile(r"^\| message \|", re.MULTILINE)
#: What says something to users -> which of its arguments is the message.
SAYERS = {
    "BadParameter": 0, "CheckFailed": 0, "EnvironmentProblem": 0, "InputError": 0, "PoolFull": 0, "Problem": 0, "Refused": 1,
    "RunStopped": 0, "UnsupportedModel": 0, "UsageError": 0, "Verified": 2, "_admit": 2, "_refuse": 1, "fail": 0, "warn": 0,
}  # fmt: skip
#: Lists of sentences that commands and sessions show.
LISTS = ("notes", "warnings")
#: Texts with fewer letters than that are what another program or function says.
LETTERS = 4
#: Messages that the page leaves out -> why.
LEFT_OUT = {
    "numbers of type … do not fit binary64": "for programmers: an argument of halfconv.formats",
    "an integer of 2^53 or more may not be a binary64 number": "for programmers: an argument of halfconv.formats",
    "patterns of type … are no integers": "for programmers: an argument of halfconv.formats",
    "a pattern does not fit the … bits of …": "for programmers: an argument of halfconv.formats",
    "rounding '…' is not known": "for programmers: an argument of halfconv.formats",
    "stochastic rounding needs a generator": "for programmers: an argument of halfconv.formats",
    "no CUDA graph was captured": "never leaves halfconv.profile_search",
    "sizes: FP32 …, … …, FP32 in ORT format …": "says what was made",
    "the Android and iOS projects were not built, and nothing was run on a device": "says what was made",
    "requests run together up to … rows": "says what was made",
    "… needs …": "quoted by what follows",
    "…: its data file '…' …": "quoted by what follows",
    "…: the plan …": "quoted by what follows",
    "…, which begin at …": "quoted by what stands before",
    "the file is empty": "quoted as a model's",
    "is no file": "quoted as a report's",
    "is a directory": "quoted as a model's",
    "cannot be read: …": "quoted as a model's",
}


def quoted() -> list[str]:
    return [message for match in ROW.finditer(PAGE.read_text("utf-8")) for message in re.findall("`([^`]+)`", match[1])]


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


@cache
def said_to_users() -> dict[str, str]:
    """Each message that an error, a finding of `halfconv doctor` or a note is made of -> a module that says it."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "halfconv").rglob("*.py")):
        module = file.relative_to(ROOT / "halfconv").as_posix()
        tree = ast.parse(file.read_text("utf-8"))
        functions = [(node, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for whole, scope in ((tree, ast.Module([], [])), *functions):  # names of one function are not those of another
            for expression in itertools.chain.from_iterable(map(said, ast.walk(whole))):
                texts = (plain(text) for text in texts_of(expression, scope))
                found |= {text: module for text in texts if sum(map(str.isalpha, text)) >= LETTERS}
    return found


def said(node: ast.AST) -> list[ast.expr]:
    """The expressions of a node that users are told."""
    if not isinstance(node, ast.Call):
        return []
    if isinstance(node.func, ast.Attribute) and node.func.attr == "append" and ast.unparse(node.func.value).endswith(LISTS):
        return node.args
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    place = SAYERS.get(name)
    return [] if place is None else node.args[place : place + 1]


def texts_of(expression: ast.expr, scope: ast.AST) -> list[str]:
    """The texts that an expression may have: its own, or those that its names are given in the scope."""
    if (text := words(expression)) is not None:
        return [text]
    if isinstance(expression, ast.IfExp):
        return [*texts_of(expression.body, scope), *texts_of(expression.orelse, scope)]
    if isinstance(expression, ast.BinOp):  # a text and what may follow it
        return texts_of(expression.left, scope)
    if isinstance(expression, ast.Subscript):  # text.partition(…)[0]
        return [text for node in ast.walk(expression) if isinstance(node, ast.JoinedStr) and (text := words(node))]
    if not isinstance(expression, ast.Name):
        return []
    given = [node for node in ast.walk(scope) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == expression.id]
    return [text for node in given if not isinstance(node.value, ast.Name) for text in texts_of(node.value, scope)]


def plain(message: str) -> str:
    """Without its advice, and with several things filled in side by side as one."""
    return re.sub(r"(… ?)+", "…", message.partition("; try: ")[0].replace("{}", "…"))


@pytest.mark.parametrize("message", quoted())
def test_messages_are_those_of_the_code(message: str) -> None:
    assert plain(message) in said_by_the_code()


def test_the_page_has_every_message() -> None:
    """A new message needs a row, or a reason to have none."""
    known = {plain(message) for message in (*quoted(), *LEFT_OUT)}
    missing = [f"{module}: {message}" for message, module in said_to_users().items() if message not in known]
    assert not missing, f"{name_of(PAGE)} lacks\n" + "\n".join(missing)


@pytest.mark.parametrize("message", LEFT_OUT)
def test_what_is_left_out_is_said_and_has_no_row(message: str) -> None:
    assert plain(message) in said_to_users()
    assert plain(message) not in {plain(entry) for entry in quoted()}


def test_messages_are_found_in_each_form_that_the_code_has() -> None:
    """By an error, by a finding, by a helper, in a variable, in either branch, in a list of notes, and by a warning."""
    for message in (
        "…: no such file",
        "the NVIDIA driver finds no GPU",
        "no such plan",
        "…: onnx's checker refuses the source itself: …",
        "…: has no path",
        "…: path is '…'",
        "no CUDA graphs: the capture failed: …",
        "… (profile=False says nothing)",
    ):
        assert plain(message) in said_to_users()


def test_rows_are_whole() -> None:
    """Each row has messages that are quoted, once on the page, and a cause; nothing else is a row of a table of messages."""
    messages = [plain(message) for message in quoted()]
    assert len(messages) == len(set(messages)) > 500
    tables = PAGE.read_text("utf-8").partition("\n## ")[2]
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    found = list(ROW.finditer(tables))
    assert len(rows) == len(HEAD.findall(tables)) + len(found), name_of(PAGE)
    assert all(match[2].count("|") == 1 and match[2].split("|")[0].strip() for match in found)


def test_the_contents_name_every_section() -> None:
    head, _, _ = (text := PAGE.read_text("utf-8")).partition("\n## ")
    assert re.findall(r"\[([^\]]+)\]\(#", head) == re.findall(r"^## (.+)$", text, re.MULTILINE)


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
        (["inspect", "m.onnx", "-q", "-v"], "--quiet and --verbose contradict each other"),
        (["convert", "m.onnx", "-o", "none/half.onnx"], "output folder … does not exist"),
        (["convert", "m.onnx", "--block-node", "("], "… '…': not a regular expression (…)"),
        (["convert", "m.onnx", "--samples", "none.npz"], "…: no such file or directory"),
        (["convert", "m.onnx", "--html", "m.npz"], "--html …: holds something else than a page, and is not overwritten"),
        (["convert", "m.onnx", "--shard-size", "1GB", "--external-data", "never"], "--shard-size … needs files of weights"),
        (["convert", "m.onnx", "--plan", "page.onnx"], "not a plan: no JSON (…)…"),
        (["convert", "m.onnx", "--ranges", "m.npz"], "…: is no JSON: …"),
        (["convert", "m.onnx", "--metric", "accuracy"], "samples to measure on"),
        (["validate", "m.onnx", "half.onnx", "--tolerance", "cosine=2"], "…: nothing can reach it, since … is at most 1"),
        (["validate", "m.onnx", "half.onnx", "--metric", "x"], "--metric …: is neither 'accuracy' nor MODULE:FUNCTION"),
        (["validate", "m.onnx", "half.onnx", "--metric", "none_such:f"], "…: cannot import …: …"),
        (["validate", "m.onnx", "half.onnx", "--baseline", "page.onnx"], "…: not a baseline: …"),
        (["deploy", "half.onnx", "--package", "edge", "-o", "p"], "… was already converted by halfconv"),
        (["deploy", "m.onnx", "--package", "edge", "-o", "p", "--fix", "rows=1"],
         "--fix …: no input has a free dimension '…'; there are: …"),
        (["sweep", "m.npz"], "…: is not UTF-8 text"),
        (["bench", "m.onnx", "--batch", "0"], "'…' has a number below 1"),
        (["formats", "abc"], "'…' is no number"),
        (["formats", "0x1ffff", "--bits", "binary16"], "'…' does not fit the … bits of …"),
    ],
)  # fmt: skip
def test_commands_say_them(
    folder_of_models: Path, command: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in quoted()
    monkeypatch.chdir(folder_of_models)
    run = run_here(capfd, *command)
    assert (run.code, run.out) == (2, "")
    wanted = ".+".join(re.escape(part) for part in message.split("…"))
    assert re.match(f"halfconv: (?:[^\n]+ )?{wanted}[^\n]*; try: [^\n]+\n$", run.err), run.err
