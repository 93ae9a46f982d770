"""The command line: exit codes, messages, JSON, configuration, and what is left on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv.errors import CheckFailed
from tests.commands import Run, run_here

PROFILE = "m.fp16.onnx.profile.json"


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Run a command in `folder`, in this process."""
    monkeypatch.chdir(folder)

    return functools.partial(run_here, capfd)


@pytest.fixture
def model(folder: Path) -> Path:
    """x → MatMul → Relu → (y, Exp → z), with an integer input beside."""
    info, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "mm"),
            helper.make_node("Relu", ["h"], ["y"], "act"),
            helper.make_node("Exp", ["y"], ["e"], "grow"),
            helper.make_node("Gather", ["e", "i"], ["z"], "pick"),
        ],
        "g",
        [info("x", floats, ["n", 8]), info("i", TensorProto.INT64, [1])],
        [info("y", floats, ["n", 8]), info("z", floats, [1, 8])],
        [numpy_helper.from_array(np.full((8, 8), 0.25, np.float32), "w")],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content's digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def halves(path: Path) -> set[str]:
    """Names of the half inputs and outputs of a file."""
    graph = onnx.load(path).graph
    return {v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT16}


# Errors: one line, the right code, nothing left

MISSING = "no-such-folder"

ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "missing file": (["missing.onnx"], ["missing.onnx: no such file"]),
    "directory": (["sub"], ["is a directory"]),
    "empty file": (["empty.onnx"], ["the file is empty"]),
    "garbage": (["garbage.onnx"], ["not an ONNX model"]),
    "text": (["text.onnx"], ["not an ONNX model"]),
    "cut off": (["cut.onnx"], ["cut.onnx"]),
    "unknown operator": (["m.onnx", "--block-op", "Matmull"], ["--block-op 'Matmull' matches no node", "try: MatMul"]),
    "unknown allowed operator": (["m.onnx", "--allow-op", "Epx"], ["--allow-op 'Epx' matches no node", "try: Exp"]),
    "operator like none": (["m.onnx", "--block-op", "Zzz"], ["try: one of Exp, Gather, MatMul, Relu"]),
    "broken regex": (["m.onnx", "--block-node", "["], ["--block-node '['", "not a regular expression"]),
    "broken allowed regex": (["m.onnx", "--allow-node", "(a"], ["--allow-node '(a'", "not a regular expression"]),
    "regex without match": (["m.onnx", "--block-node", "grwo"], ["--block-node 'grwo' matches no node id", "try: grow"]),
    "regex that matches a part": (["m.onnx", "--block-node", "gro"], ["matches no node id", "grow"]),
    "unknown scope": (["m.onnx", "--block-scope", "grom"], ["--block-scope 'grom' matches no node", "grow"]),
    "unknown pattern": (["m.onnx", "--block-pattern", "nrom"], ["no such pattern", "try: norm"]),
    "pattern without match": (["m.onnx", "--block-pattern", "norm"], ["--block-pattern 'norm' matches nothing"]),
    "half and keep all": (["m.onnx", "--half-io", "--keep-io"], ["contradict each other"]),
    "half and keep one": (["m.onnx", "--half-io=y", "--keep-io=y"], ["'y' is named by both"]),
    "half-io of no name": (["m.onnx", "--half-io=q"], ["--half-io=q", "try: one of i, x, y, z"]),
    "keep-io of no name": (["m.onnx", "--half-io", "--keep-io=q"], ["--keep-io=q", "try: one of i, x, y, z"]),
    "half-io of an integer": (["m.onnx", "--half-io=i"], ["its type is not FP32", "try: one of x, y, z"]),
    "output is input": (["m.onnx", "-o", "m.onnx"], ["is the input itself"]),
    "output is input otherwise": (["m.onnx", "-o", "sub/../m.onnx"], ["is the input itself"]),
    "output is a link to the input": (["m.onnx", "-o", "link.onnx"], ["is the input itself"]),
    "output folder missing": (["m.onnx", "-o", f"{MISSING}/o.onnx"], [MISSING, "does not exist", "try: mkdir -p"]),
    "output is a directory": (["m.onnx", "-o", "sub"], ["is a directory", "m.fp16.onnx"]),
    "unknown option": (["m.onnx", "--nope"], ["--nope"]),
    "unknown format": (["m.onnx", "--to", "fp8"], ["fp8", "fp16", "bf16"]),
    "unknown target": (["m.onnx", "--target", "gpu"], ["'gpu'", "portable", "cuda"]),
    "unknown block list": (["m.onnx", "--block-list", "defualt"], ["'defualt'", "default"]),
    "unknown external data": (["m.onnx", "--external-data", "maybe"], ["'maybe'", "auto"]),
    "no model": ([], ["Missing argument 'MODEL'"]),
    "two models": (["m.onnx", "m.onnx"], ["m.onnx"]),
    "plan folder missing": (["m.onnx", "--save-plan", f"{MISSING}/p.json"], [MISSING]),
    "plan is a directory": (["m.onnx", "--save-plan", "sub"], ["sub"]),
    "plan is the input": (["m.onnx", "--save-plan", "m.onnx"], ["m.onnx"]),
    "plan is the output": (["m.onnx", "--save-plan", "m.fp16.onnx"], ["m.fp16.onnx"]),
    "plan is the profile": (["m.onnx", "--save-plan", PROFILE], [PROFILE]),
    "empty name": ([""], [""]),
    "output is no file": (["m.onnx", "-o", "pipe"], ["pipe"]),
}


@pytest.fixture
def bad_inputs(folder: Path, model: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "keep.txt").write_text("kept", "utf-8")
    (folder / "empty.onnx").touch()
    (folder / "garbage.onnx").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "text.onnx").write_text("this is no model\n" * 20, "utf-8")
    (folder / "cut.onnx").write_bytes(model.read_bytes()[:-60])
    (folder / "link.onnx").symlink_to(model.name)
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("as_json", [False, True], ids=["console", "json"])
def test_error_is_one_line_and_leaves_nothing(
    name: str, as_json: bool, bad_inputs: None, cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, wanted = ERRORS[name]
    before, kinds = listing_without_pipe(folder), (folder / "pipe").is_fifo()
    run = cli("convert", *arguments, *(["--json"] if as_json else []))
    assert run.code == 2
    assert run.out == ""
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    assert "Traceback" not in run.err
    for part in wanted:
        assert part in run.err
    assert listing_without_pipe(folder) == before
    assert (folder / "pipe").is_fifo() == kinds


READ = {"--samples": "samples.npz", "--tolerance-file": "bounds.toml", "--ranges": "ranges.json", "--plan": "plan.json"}
SAMPLE: dict[str, Any] = {"x": np.ones((1, 8), np.float32), "i": np.zeros(1, np.int64)}
WRITES = ["-o", "--force-failed", "--save-plan", "--save-ranges"]


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("write", WRITES)
def test_a_file_that_is_read_is_not_overwritten(read: str, write: str, cli: Any, model: Path, folder: Path) -> None:
    assert cli("convert", model, "--save-plan", "plan.json", "--save-ranges", "ranges.json").code == 0
    np.savez(folder / "samples.npz", **SAMPLE)
    (folder / "bounds.toml").write_text("rel_l2 = 1.0\n", "utf-8")
    before = listing(folder)
    run = cli("convert", model, read, READ[read], write, READ[read])
    if (read, write) in {("--plan", "--save-plan"), ("--ranges", "--save-ranges")}:  # brought up to date in place
        assert run.code == 0
        return
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    assert READ[read] in run.err and (write in run.err or read in run.err)
    assert listing(folder) == before


def test_a_file_of_a_folder_of_samples_is_not_overwritten(cli: Any, model: Path, folder: Path) -> None:
    (folder / "samples").mkdir()
    np.savez(folder / "samples" / "a.npz", **SAMPLE)
    before = (folder / "samples" / "a.npz").read_bytes()
    assert cli("convert", model, "--samples", "samples", "--save-plan", "samples/a.npz").code == 2
    assert (folder / "samples" / "a.npz").read_bytes() == before


def test_plan_and_ranges_do_not_share_a_file(cli: Any, model: Path, folder: Path) -> None:
    before = listing(folder)
    run = cli("convert", model, "--save-plan", "p.json", "--save-ranges", "p.json")
    assert run.code == 2 and "--save-ranges p.json is another file of this run" in run.err
    assert listing(folder) == before


def listing_without_pipe(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in listing(folder).items() if name != "pipe"}


@pytest.mark.parametrize("name", ["missing file", "directory", "empty file", "garbage", "text", "cut off", "unknown operator"])
def test_inspect_has_the_same_errors(name: str, bad_inputs: None, cli: Any, folder: Path) -> None:
    arguments, wanted = ERRORS[name]
    before = listing_without_pipe(folder)
    run = cli("inspect", *arguments)
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    assert all(part in run.err for part in wanted)
    assert listing_without_pipe(folder) == before


def test_failed_check_is_exit_1_and_leaves_nothing(cli: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CheckFailed("the model does\nnot load", "report it")

    monkeypatch.setattr("halfconv.pipeline.check_file", refuse)
    (folder / "m.fp16.onnx").write_text("old model", "utf-8")
    (folder / PROFILE).write_text("old profile", "utf-8")
    before = listing(folder)
    run = cli("convert", model, "--save-plan", "p.json")
    assert (run.code, run.out, run.err) == (1, "", "halfconv: the model does not load; try: report it\n")
    assert listing(folder) == before


def test_unexpected_error_is_exit_70_and_leaves_nothing(
    cli: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("halfconv.pipeline.check_file", break_down)
    before = listing(folder)
    run = cli("convert", model, "--json")
    assert (run.code, run.out) == (70, "")
    assert run.err == "halfconv: internal error: RuntimeError: two lines; try: report it with this model\n"
    assert listing(folder) == before


def test_interruption_leaves_nothing(cli: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("halfconv.pipeline.check_file", interrupt)
    before = listing(folder)
    assert cli("convert", model).code == 130
    assert listing(folder) == before


def test_failed_plan_leaves_the_old_output_and_its_profile(cli: Any, model: Path, folder: Path) -> None:
    cli("convert", model)
    before = listing(folder)
    run = cli("convert", model, "--target", "cuda", "--save-plan", f"{MISSING}/p.json")
    assert run.code == 2
    assert listing(folder) == before


def test_unknown_command_is_one_line(cli: Any) -> None:
    run = cli("convret")
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: No such command 'convret'[^\n]*; try: [^\n]+\n", run.err)


def test_no_command_shows_the_help(cli: Any) -> None:
    run = cli()
    assert run.code == 2
    assert "Usage: " in run.out + run.err
    assert "Traceback" not in run.err


def test_no_command_shows_the_help_as_it_is(cli: Any) -> None:
    run = cli()
    assert "try:" not in run.err


# A process of its own: what is imported, and what is on stdout


def process(*arguments: str, cwd: Path, **environment: str) -> Run:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    return Run(done.returncode, done.stdout, done.stderr)


HEAVY = ("ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxconverter_common", "onnxruntime", "onnxscript", "scipy", "torch")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["convert", "--help"], ["inspect", "-h"], ["demo", "--help"]], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: list[str], folder: Path) -> None:
    code = f"""
import sys
from halfconv.cli import main
try:
    main({arguments!r})
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    run = process("-c", code, cwd=folder)
    assert (run.code, run.err) == (0, "[]\n")
    assert run.out


def test_json_is_one_object_on_stdout_and_nothing_else(model: Path, folder: Path) -> None:
    run = process("-m", "halfconv", "convert", "m.onnx", "--json", cwd=folder)
    assert (run.code, run.err) == (0, "")
    assert run.out.count("\n") == 1
    content = json.loads(run.out)
    assert content["schema_version"] == 1
    assert content["output"] == "m.fp16.onnx"


def test_console_needs_no_terminal(model: Path, folder: Path) -> None:
    run = process("-m", "halfconv", "convert", "m.onnx", cwd=folder)
    assert (run.code, run.err) == (0, "")
    assert "\x1b" not in run.out
    assert run.out.startswith("m.fp16.onnx  fp16, opset 17, ")


@pytest.mark.parametrize("arguments", [["convert", "--json"], ["inspect"], ["inspect", "--json"]], ids=" ".join)
def test_terminal_without_unicode(arguments: list[str], model: Path, folder: Path) -> None:
    run = process("-m", "halfconv", *arguments, "m.onnx", cwd=folder, PYTHONIOENCODING="ascii")
    assert (run.code, run.err) == (0, "")


def test_convert_on_a_terminal_without_unicode(model: Path, folder: Path) -> None:
    assert process("-m", "halfconv", "convert", "m.onnx", cwd=folder, PYTHONIOENCODING="ascii").code == 0


def test_error_exit_code_reaches_the_shell(folder: Path) -> None:
    run = process("-m", "halfconv", "convert", "none.onnx", "--json", cwd=folder)
    assert (run.code, run.out) == (2, "")
    assert run.err == "halfconv: none.onnx: no such file; try: check the path\n"


def test_reader_that_stops_early_is_no_error(model: Path, folder: Path) -> None:
    shell = f"{sys.executable} -m halfconv inspect m.onnx --json | head -c 5; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == '{"sch0\n'
    assert "Traceback" not in done.stderr


def test_nan_and_infinities_become_null(capfd: pytest.CaptureFixture[str]) -> None:
    from halfconv.terminal import print_json

    print_json({"a": float("nan"), "b": [float("inf"), (-float("inf"), 1.5)], "c": {"d": float("nan"), "e": "é", "f": None}})
    text = capfd.readouterr().out
    assert text == '{"a": null, "b": [null, [null, 1.5]], "c": {"d": null, "e": "é", "f": null}}\n'


# Output


def test_output_lies_beside_the_model_by_default(cli: Any, model: Path, folder: Path) -> None:
    (folder / "sub").mkdir()
    inner = folder / "sub" / "v1.2.onnx"
    shutil.copy(model, inner)
    run = cli("convert", inner)
    assert (run.code, run.err) == (0, "")
    assert {path.name for path in inner.parent.iterdir()} == {"v1.2.onnx", "v1.2.fp16.onnx", "v1.2.fp16.onnx.profile.json"}
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "sub"}


def test_names_with_spaces_dashes_and_other_letters(cli: Any, model: Path, folder: Path) -> None:
    shutil.copy(model, folder / "-ö b.onnx")
    run = cli("convert", "--json", "-o", "ü c", "--", "-ö b.onnx")
    assert run.code == 0
    assert json.loads(run.out)["output"] == "ü c"
    onnx.checker.check_model(onnx.load(folder / "ü c"), full_check=True)


def test_metadata_names_version_plan_and_source(cli: Any, model: Path, folder: Path) -> None:
    run = cli("convert", model, "--json", "--save-plan", "p.json")
    held = {entry.key: entry.value for entry in onnx.load(folder / "m.fp16.onnx").metadata_props}
    plan = halfconv.PrecisionPlan.from_dict(json.loads((folder / "p.json").read_text("utf-8")))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert held == {
        "halfconv.version": halfconv.__version__,
        "halfconv.to": "fp16",
        "halfconv.plan": plan.fingerprint(),
        "halfconv.source_sha256": digest,
    }
    assert json.loads(run.out)["plan_fingerprint"] == plan.fingerprint()
    assert plan.source_sha256 == digest


def test_profile_names_the_output(cli: Any, model: Path, folder: Path) -> None:
    cli("convert", model, "--target", "cpu")
    profile = json.loads((folder / PROFILE).read_text("utf-8"))
    assert profile["model_sha256"] == hashlib.sha256((folder / "m.fp16.onnx").read_bytes()).hexdigest()
    assert [entry["name"] for entry in profile["providers"]] == ["CPUExecutionProvider"]
    assert profile["graph_optimization"] == "ORT_ENABLE_ALL"


def test_input_is_not_touched(cli: Any, model: Path) -> None:
    content, state = model.read_bytes(), model.stat()
    assert cli("convert", model).code == 0
    assert model.read_bytes() == content
    assert (model.stat().st_mtime_ns, model.stat().st_ino) == (state.st_mtime_ns, state.st_ino)


def test_input_named_like_the_profile_is_not_touched(cli: Any, model: Path, folder: Path) -> None:
    named = model.rename(folder / "o.onnx.profile.json")
    content = named.read_bytes()
    cli("convert", named, "-o", "o.onnx")
    assert named.read_bytes() == content


def test_converted_twice_changes_nothing(cli: Any, model: Path, folder: Path) -> None:
    cli("convert", model, "-o", "once.onnx")
    run = cli("convert", "once.onnx", "-o", "twice.onnx", "--json")
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()
    content = json.loads(run.out)
    assert content["casts"] == 0
    assert any(text.startswith("already converted to fp16 by halfconv") for text in content["warnings"])


def test_same_model_gives_the_same_bytes(cli: Any, model: Path, folder: Path) -> None:
    cli("convert", model, "-o", "a.onnx")
    cli("convert", model, "-o", "b.onnx")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_existing_output_is_replaced_by_rename(cli: Any, model: Path, folder: Path) -> None:
    old = folder / "m.fp16.onnx"
    old.write_text("old model", "utf-8")
    with old.open("rb") as reader:
        assert cli("convert", model).code == 0
        assert reader.read() == b"old model"  # who reads the old file keeps the whole old file
    onnx.checker.check_model(onnx.load(old), full_check=True)
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "m.fp16.onnx", PROFILE}


def test_external_data_lies_beside_and_stale_data_goes(cli: Any, folder: Path) -> None:
    weight = numpy_helper.from_array(np.full((64, 64), 0.25, np.float32), "w")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    for _ in range(2):
        assert cli("convert", "m.onnx", "--external-data", "always").code == 0
        data = [path.name for path in folder.glob("m.fp16.*.data")]
        assert len(data) == 1
        assert {path.name for path in folder.iterdir()} == {"m.onnx", "m.fp16.onnx", PROFILE, *data}
    onnx.checker.check_model(folder / "m.fp16.onnx", full_check=True)


def test_without_check_no_session_is_opened(cli: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr("halfconv.pipeline.check_file", refuse)
    monkeypatch.setattr("halfconv.pipeline.require_runtime", refuse)
    run = cli("convert", model, "--no-check", "--json")
    assert run.code == 0
    assert json.loads(run.out)["check"] is None


# Inputs, outputs and rules


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], set()),
        (["--keep-io"], set()),
        (["--half-io"], {"x", "y", "z"}),
        (["--half-io=y"], {"y"}),
        (["--half-io=x,z"], {"x", "z"}),
        (["--half-io=x", "--half-io=z"], {"x", "z"}),
        (["--half-io", "--keep-io=z"], {"x", "y"}),
        (["--half-io", "--keep-io=z,y", "--keep-io=x"], set()),
        (["--half-io=y", "--keep-io"], {"y"}),
    ],
)
def test_half_and_kept_inputs_and_outputs(options: list[str], expected: set[str], cli: Any, model: Path, folder: Path) -> None:
    run = cli("convert", model, *options)
    assert (run.code, run.err) == (0, "")
    assert halves(folder / "m.fp16.onnx") == expected


@pytest.mark.parametrize(
    ("options", "value", "dtype", "rule"),
    [
        ([], "h", "float16", ""),
        ([], "e", "float", "block-list:Exp"),
        (["--block-op", "MatMul"], "h", "float", "user-block"),
        (["--block-node", "m+"], "h", "float", "user-block"),
        (["--block-scope", "mm"], "h", "float", "user-block"),
        (["--block-op", "MatMul", "--allow-op", "MatMul"], "h", "float", "user-block"),
        (["--allow-op", "Exp"], "e", "float16", ""),
        (["--allow-node", "gr.w"], "e", "float16", ""),
        (["--block-list", "none"], "e", "float16", ""),
        (["--block-list", "onnxconverter-common"], "e", "float16", ""),
    ],
)
def test_rules_reach_the_plan(options: list[str], value: str, dtype: str, rule: str, cli: Any, model: Path, folder: Path) -> None:
    run = cli("convert", model, "--half-io", "--save-plan", "p.json", *options)
    assert (run.code, run.err) == (0, "")
    plan = json.loads((folder / "p.json").read_text("utf-8"))
    (found,) = (entry for entry in plan["values"] if entry["id"] == value)
    assert (found["dtype"], found["rule"]) == (dtype, rule)


def test_allow_rule_that_beats_the_block_list_is_a_warning(cli: Any, model: Path) -> None:
    run = cli("convert", model, "--allow-op", "Exp", "--json")
    (text,) = json.loads(run.out)["warnings"]
    assert text == "--allow-op Exp beats: Exp: overflows for arguments beyond 11.09 (node 'grow')"


def test_inspect_and_convert_agree(cli: Any, model: Path) -> None:
    looked, done = (json.loads(cli(command, model, "--json", "--block-op", "MatMul").out) for command in ("inspect", "convert"))
    assert all(looked[key] == done[key] for key in ("values", "fp32", "casts", "fusions"))


# Configuration


def test_options_come_from_the_nearest_file_and_the_flag_wins(
    cli: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def target(*flags: str) -> str:
        run = cli("convert", model, "--json", *flags)
        assert run.code == 0, run.err
        return str(json.loads(run.out)["target"])

    (folder.parent / "pyproject.toml").write_text('[tool.halfconv]\ntarget = "cuda"\n', "utf-8")
    assert target() == "cuda"
    (folder / "pyproject.toml").write_text('[tool.other]\ntarget = "x"\n', "utf-8")
    assert target() == "cuda"  # a file without our table is none of ours
    (folder / "pyproject.toml").write_text('[tool.halfconv.convert]\ntarget = "coreml"\n', "utf-8")
    assert target() == "coreml"
    (folder / "halfconv.toml").write_text('target = "web"\n[convert]\ntarget = "cpu"\n[inspect]\nfuse = false\n', "utf-8")
    assert target() == "cpu"
    assert target("--target", "tensorrt") == "tensorrt"
    (folder / "deeper").mkdir()
    monkeypatch.chdir(folder / "deeper")
    assert target() == "cpu"


def test_lists_and_switches_in_the_configuration(cli: Any, model: Path, folder: Path) -> None:
    (folder / "halfconv.toml").write_text('block-op = ["MatMul"]\ncheck = false\nhalf_io = ["*"]\n', "utf-8")
    run = cli("convert", model, "--json", "--save-plan", "p.json")
    assert run.code == 0
    assert json.loads(run.out)["check"] is None
    assert json.loads((folder / "p.json").read_text("utf-8"))["options"]["block_ops"] == ["MatMul"]
    assert halves(folder / "m.fp16.onnx") == {"x", "y", "z"}
    cli("convert", model, "--block-op", "Relu", "--save-plan", "p.json")
    assert json.loads((folder / "p.json").read_text("utf-8"))["options"]["block_ops"] == ["Relu"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nope = 1\n", "no command has an option 'nope'"),
        ("[convert]\nnope = 1\n", "'convert' has no option 'nope'"),
        ("[demo]\ntarget = 'cuda'\n", "'demo' has no option 'target'"),
        ("[convret]\nto = 'fp16'\n", "no command has an option 'convret'"),
        ("model = 'm.onnx'\n", "no command has an option 'model'"),
        ("to = 'fp8'\n", "'fp8'"),
        ("to = 3\n", "--to"),
        ("fuse = 'perhaps'\n", "'perhaps'"),
        ("block-op = ['Nope']\n", "--block-op 'Nope' matches no node"),
        ("to = \n", "halfconv.toml"),
    ],
)
def test_wrong_configuration_is_one_line(text: str, wanted: str, cli: Any, model: Path, folder: Path) -> None:
    (folder / "halfconv.toml").write_text(text, "utf-8")
    before = listing(folder)
    run = cli("convert", model)
    assert (run.code, run.out) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", run.err), run.err
    assert wanted in run.err
    assert listing(folder) == before


@pytest.mark.parametrize(("name", "text"), [("halfconv.toml", "output = 5\n"), ("pyproject.toml", "tool = 3\n")])
def test_odd_configuration_is_no_internal_error(name: str, text: str, cli: Any, model: Path, folder: Path) -> None:
    (folder / name).write_text(text, "utf-8")
    assert cli("convert", model).code in (0, 2)


def test_keep_io_on_the_command_line_beats_half_io_in_the_file(cli: Any, model: Path, folder: Path) -> None:
    (folder / "halfconv.toml").write_text('half-io = ["y"]\n', "utf-8")
    assert cli("convert", model, "--keep-io").code == 0
    assert halves(folder / "m.fp16.onnx") == set()


def test_broken_pyproject_is_another_tools_business(cli: Any, model: Path, folder: Path) -> None:
    (folder / "pyproject.toml").write_text("= broken", "utf-8")
    assert cli("convert", model).code == 0


# Configuration as people write it


@pytest.mark.parametrize("text", ['block-op = "Tanh"\n', 'block-op = ["Tanh"]\n', '[convert]\nblock-op = "Tanh"\n'])
def test_one_value_of_a_list_may_stand_alone(text: str, cli: Any, model: Path, folder: Path) -> None:
    kind = onnx.load(model).graph.node[0].op_type
    (folder / "halfconv.toml").write_text(text.replace("Tanh", kind), "utf-8")
    run = cli("convert", model, "--json")
    assert run.code == 0, run.err
    assert any(entry["rule"] == "user-block" for entry in json.loads(run.out)["fp32"])


def test_json_may_be_the_default(cli: Any, model: Path, folder: Path) -> None:
    (folder / "halfconv.toml").write_text("json = true\n", "utf-8")
    assert json.loads(cli("inspect", model).out)["schema_version"] == 1


def test_help_is_there_whatever_the_file_says(cli: Any, folder: Path) -> None:
    (folder / "halfconv.toml").write_text("nonsense = 1\n", "utf-8")
    assert cli("convert", "--help").code == 0


def test_a_full_standard_output_is_no_internal_error(model: Path, folder: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    shell = f"{sys.executable} -m halfconv inspect {model} > /dev/full"
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
