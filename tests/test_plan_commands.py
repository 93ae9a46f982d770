"""The commands on plans: exit codes, what they print, their JSON, and what they load."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from tests.commands import Run, run_here
from tests.graph import model
from tests.renaming import renamed
from tests.test_schemas import strict, validate

GRAPH = (
    "(float[64,64] x) => (float[64,64] y, int64[64,1] best) { [mm] a = MatMul(x, x)\n [sum] s = ReduceSum(a)\n"
    " [div] d = Div(a, s)\n [th] t = Tanh(d)\n [most] best = ArgMax <axis = 1> (a)\n [out] y = MatMul(t, x) }"
)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Run]:
    """Run a command in a folder that holds a model and two plans of it."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")

    run = functools.partial(run_here, capfd)
    ir.save(model(GRAPH), "m.onnx")
    for name, options in (("a", ()), ("b", ("--block-op", "Tanh", "--block-op", "ArgMax", "--target", "cuda"))):
        assert run("convert", "m.onnx", "-o", f"{name}.onnx", "--no-check", "--save-plan", f"{name}.json", *options).code == 0
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_convert_replays_a_plan(cli: Callable[..., Run], folder: Path) -> None:
    run = cli("convert", "m.onnx", "-o", "c.onnx", "--no-check", "--plan", "b.json", "--save-plan", "c.json", "--json")
    assert (run.code, run.err) == (0, "")
    content = strict(run.out)
    validate("convert", content)
    assert content["target"] == "cuda"
    assert (folder / "c.json").read_bytes() == (folder / "b.json").read_bytes()
    assert (folder / "c.onnx").read_bytes() == (folder / "b.onnx").read_bytes() != (folder / "a.onnx").read_bytes()


BAD: dict[str, tuple[list[str], list[str]]] = {
    "no plan": (["convert", "m.onnx", "--plan", "none.json"], ["none.json: no such plan"]),
    "model as plan": (["convert", "m.onnx", "--plan", "m.onnx"], ["m.onnx: not a plan"]),
    "folder as plan": (["convert", "m.onnx", "--plan", "."], ["is a directory"]),
    "another rule": (["convert", "m.onnx", "--plan", "a.json", "--block-op", "Tanh"], ["--block-op Tanh contradicts the plan"]),
    "another structure": (["convert", "other.onnx", "--plan", "a.json"], ["other.onnx: the plan was made for a model of another"]),
    "inspect another structure": (["inspect", "other.onnx", "--plan", "a.json"], ["another structure"]),
    "inspect no plan": (["inspect", "m.onnx", "--plan", "none.json"], ["none.json: no such plan"]),
    "diff of one": (["diff", "a.json"], ["Missing argument 'PLAN'"]),
    "diff with nothing": (["diff", "a.json", "none.json"], ["none.json: no such plan"]),
    "diff with a model": (["diff", "m.onnx", "a.json"], ["m.onnx: not a plan"]),
    "diff with a part": (["diff", "a.json", "cut.json"], ["cut.json", "truncated?"]),
    "explain without plan": (["explain", "a"], ["Missing option '--plan'"]),
    "explain no value": (["explain", "tt", "--plan", "a.json"], ["no value 'tt'", "try: 't'"]),
    "explain in no plan": (["explain", "a", "--plan", "cut.json"], ["truncated?"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_json", [False, True], ids=["console", "json"])
def test_error_is_one_line_and_leaves_nothing(name: str, as_json: bool, cli: Callable[..., Run], folder: Path) -> None:
    ir.save(model(GRAPH.replace("Tanh(d)", "Sigmoid(d)")), folder / "other.onnx")
    (folder / "cut.json").write_text((folder / "a.json").read_text("utf-8")[:-300], "utf-8")
    arguments, wanted = BAD[name]
    before = files(folder)
    run = cli(*arguments, *(["--json"] if as_json else []))
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    assert all(part in run.err for part in wanted), run.err
    assert files(folder) == before


def test_diff_says_what_changed_and_why(cli: Callable[..., Run]) -> None:
    run = cli("diff", "a.json", "b.json")
    assert (run.code, run.err) == (0, "")
    lines = [" ".join(line.split()) for line in run.out.splitlines()]
    assert lines[0] == "a.json → b.json"
    assert "target: portable → cuda" in lines and 'options.block_ops: - → ["Tanh", "ArgMax"]' in lines
    assert "t half → FP32 --block-op Tanh (user-block, Tanh th)" in lines
    assert "added t half" in lines
    assert "most, input 0 half FP32" in lines


def test_diff_of_equal_plans(cli: Callable[..., Run]) -> None:
    run = cli("diff", "a.json", "a.json")
    assert (run.code, run.err) == (0, "")
    assert run.out == "a.json → a.json\n  both give 6 values the same types, with the same Casts\n"


def test_diff_and_explain_print_what_their_schemas_say(cli: Callable[..., Run], folder: Path) -> None:
    ir.save(model(GRAPH.replace("[th] t = Tanh(d)", "[th] q = Exp(d)\n [neg] t = Neg(q)")), folder / "other.onnx")
    cli("convert", "other.onnx", "--no-check", "--save-plan", "c.json")
    for pair in (("a", "a"), ("a", "b"), ("b", "c"), ("c", "a")):
        run = cli("diff", *(f"{name}.json" for name in pair), "--json")
        assert (run.code, run.err) == (0, "")
        validate("diff", strict(run.out))
    for value in ("x", "a", "s", "t", "y"):
        content = strict(cli("explain", value, "--plan", "b.json", "--json").out)
        validate("explain", content)
        assert content["value"] == value


def test_diff_has_a_limit_and_says_so(cli: Callable[..., Run], folder: Path) -> None:
    chain = "\n".join(f" v{i} = Tanh(v{i - 1})" for i in range(1, 41))
    ir.save(model(f"(float[64,64] v0) => (float[64,64] v40) {{{chain} }}"), folder / "long.onnx")
    for name, options in (("p", ()), ("q", ("--block-op", "Tanh"))):
        cli("convert", "long.onnx", "--no-check", "--save-plan", f"{name}.json", *options)
    assert "… and 10 more; --json lists them all" in cli("diff", "p.json", "q.json").out
    assert len(strict(cli("diff", "p.json", "q.json", "--json").out)["changed"]) == 40


def test_explain_says_all_that_is_known(cli: Callable[..., Run]) -> None:
    run = cli("explain", "d", "--plan", "a.json")
    assert (run.code, run.err) == (0, "")
    words = " ".join(run.out.split())
    assert words.startswith("d stays in FP32 why the sum may pass 65,504 before it is divided rule wide-sum: this pattern")
    assert "because of node 'sum' (ReduceSum) cast to half, once, for all readers in half made by node 'div' (Div)" in words
    assert "(Div), [64, 64] " in words
    assert "range not measured: --save-plan with the simulation knows it reads a (MatMul) in FP32, s (ReduceSum) in FP32" in words
    assert "read by th (Tanh) in half in half 1 Cast added, 1 removed; −8.2 kB of values plan to fp16" in words
    assert "rule block-list:ReduceSum: the block list keeps" in " ".join(cli("explain", "s", "--plan", "a.json").out.split())
    assert words.endswith("plan to fp16, for target portable")
    assert "in FP32 1 Cast added" in " ".join(cli("explain", "t", "--plan", "a.json").out.split())
    words = " ".join(cli("explain", "t", "--plan", "a.json").out.split())
    assert words.startswith("t is held in half (float16): no rule asks for FP32 cast none: all its readers take it as it is")
    assert "input 'x' of the model" in cli("explain", "x", "--plan", "a.json").out


def test_inspect_tells_what_a_plan_keeps(cli: Callable[..., Run], folder: Path) -> None:
    onnx.save(renamed(onnx.load(folder / "m.onnx"))[0], folder / "n.onnx")
    before = files(folder)
    run = cli("inspect", "n.onnx", "--plan", "b.json")
    assert (run.code, run.err) == (0, "")
    words = " ".join(run.out.split())
    assert words.startswith("b.json fits n.onnx 2 of 6 values in half, 4 in FP32, ")
    assert "1 user-block --block-op Tanh Tanh Tanh#3" in words and "1 io model input keeps its type Input anew.0" in words
    assert "note: the plan was made from another file of the same structure; 0 of 6 values found by name, 6 by structure" in words
    content = strict(cli("inspect", "m.onnx", "--plan", "b.json", "--json").out)
    validate("inspect", content)
    assert content["values"] == {"half": 2, "float": 4} and content["warnings"] == []
    assert files(folder) == before


def test_names_in_a_plan_cannot_drive_the_terminal(cli: Callable[..., Run], folder: Path) -> None:
    content: Any = json.loads((folder / "a.json").read_text("utf-8"))
    for entry in content["values"]:
        if entry["rule"]:
            entry |= {"reason": "\x1b[2J[bold]why", "rule": "\x1b]0;x\x07", "node": "\u202enode"}
    (folder / "evil.json").write_text(json.dumps(content), "utf-8")
    starts = (["explain", "s"], ["inspect", "m.onnx"], ["convert", "m.onnx"])
    for arguments in (["diff", "a.json", "evil.json"], *([*start, "--plan", "evil.json"] for start in starts)):
        run = cli(*arguments)
        assert run.code == 0
        assert "[bold]why" in run.out
        assert all(character.isprintable() or character == "\n" for character in run.out), arguments


HEAVY = ("ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy")


READERS = [["diff", "a.json", "b.json"], ["explain", "a", "--plan", "a.json"], ["diff", "-h"]]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_plans_are_read_without_a_model(arguments: list[str], cli: Callable[..., Run], folder: Path) -> None:
    code = (
        f"import sys\nfrom halfconv.cli import main\ntry:\n    main({arguments!r})\n"
        f"finally:\n    print([n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout
