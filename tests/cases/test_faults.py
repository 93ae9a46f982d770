"""What goes wrong while a model is converted: the disk, the input, another run, a kill (cases.md, Files).

After each: the input is as it was, nothing partial lies under a final name, and no temporary file is left.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

import halfconv
from tests.cases.checks import normal
from tests.cases.test_files import ROOT, state
from tests.runtime_helpers import rel_l2, run
from tests.simulation import FLOAT

SIZE = 256
LAYERS = 3
WAYS = {
    "inline": {"external_data": "never"},
    "external": {"external_data": "always"},
    "shards": {"shard_size": SIZE * SIZE * 2 + 1024},
    "safetensors": {"data_format": "safetensors"},
}
X = normal(2, SIZE)


def cases(names: str, *axes: Iterable[Any], quick: Iterable[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """All combinations; those that are not quick are slow."""
    found = list(itertools.product(*axes))
    assert set(quick) <= set(found)
    return pytest.mark.parametrize(names, [pytest.param(*one, marks=[] if one in quick else pytest.mark.slow) for one in found])


def model(seed: int = 0, size: int = SIZE, layers: int = LAYERS) -> onnx.ModelProto:
    """A chain of products with square weights."""
    weights = [onnx.numpy_helper.from_array(normal(size, size, seed=seed + k, scale=size**-0.5), f"w{k}") for k in range(layers)]
    nodes = [helper.make_node("MatMul", [f"v{k}", f"w{k}"], [f"v{k + 1}"]) for k in range(layers)]
    ends = [helper.make_tensor_value_info(name, FLOAT, [2, size]) for name in ("v0", f"v{layers}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def source_in(folder: Path, *, external: bool, **of: int) -> Path:
    path = folder / "model.onnx"
    more: dict[str, Any] = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save(model(**of), path, **more)
    return path


def answers(path: Path) -> np.ndarray:
    """What a model gives; it must load, so its data is all there."""
    found = run(path, [{"v0": X}])
    assert found.loads, found.failure
    return next(iter(found.outputs[0].values()))


def is_whole(output: Path, source: Path, *, also: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """The output and its data fit together, and beside them lies nothing but what was there."""
    assert rel_l2(answers(output), answers(source)) < 5e-3
    used = {entry.value for t in onnx.load(output, load_external_data=False).graph.initializer for entry in t.external_data
            if entry.key == "location"}  # fmt: skip
    found = {path.name for path in output.parent.iterdir()}
    profile = json.loads((output.parent / f"{output.name}.profile.json").read_text("utf-8"))
    assert profile["model_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    expected = {output.name, f"{output.name}.profile.json", *used, *also}
    assert found == expected, found ^ expected


#: Stops at a place, says so, and goes on when a line comes.
_PAUSE = """
import sys, pathlib, threading
import halfconv.pipeline as pipeline, halfconv.model_writer as writer, halfconv.claims as claims, halfconv.tuning as tuning
import halfconv.drift.evaluate, halfconv.model, halfconv.precision.weights as weights, halfconv.safetensors_file as safetensors

def pause(once=[], together=threading.Lock()):
    with together:  # other threads wait, too
        if not once:
            once.append(1)
            print("here", flush=True)
            sys.stdin.readline()

def before(holder, name):
    inner = getattr(holder, name)
    def outer(*a, **k):
        pause()
        return inner(*a, **k)
    setattr(holder, name, outer)

def after(holder, name):
    inner = getattr(holder, name)
    def outer(*a, **k):
        found = inner(*a, **k)
        pause()
        return found
    setattr(holder, name, outer)

place = sys.argv[1]
if place == "planned":
    after(pipeline, "plan_model")
elif place == "read":
    after(halfconv.model, "_read")
elif place == "simulation":
    after(tuning, "open_reference")
elif place == "weights":
    before(weights.HalfTensor, "tofile")
    before(safetensors, "blocks")
elif place == "model":
    def write(proto, held, file, inner=writer.write_inline):
        file.write(proto.SerializeToString()[:20])
        file.flush()
        pause()
        file.seek(0)
        inner(proto, held, file)
    writer.write_inline = write
elif place == "check":
    before(pipeline, "check_file")
elif place == "replace":
    before(claims.Claim, "replace")
elif place == "plan":
    inner_replace = pathlib.Path.replace
    def replace(self, target):
        if self.name.startswith(".plan.json."):
            pause()
        return inner_replace(self, target)
    pathlib.Path.replace = replace
elif place == "replaced":
    inner_replace = pathlib.Path.replace
    def replace(self, target):
        found = inner_replace(self, target)
        if self.name.endswith(".tmp.onnx"):
            pause()
        return found
    pathlib.Path.replace = replace
"""

_RUN = """
import json
from halfconv.errors import HalfconvError
try:
    halfconv_result = pipeline.convert(sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]))
except HalfconvError as error:
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""
_COMMAND = """
from halfconv.cli import main
main(["convert", sys.argv[2], "-o", sys.argv[3], "--external-data", "always"])
"""


def _interruptible() -> None:
    """Undo what a shell does to processes in the background: they ignore interruptions, and so do all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Paused:
    """A conversion in a process of its own that stopped at a place."""

    def __init__(self, place: str, source: Path, output: Path, *, body: str = _RUN, setup: str = "", **options: Any):
        self.process = subprocess.Popen(
            [sys.executable, "-c", setup + _PAUSE + body, place, str(source), str(output), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
            preexec_fn=_interruptible,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "here\n", self.process.communicate()[1]

    def go_on(self) -> tuple[int, str]:
        """Let it go on; return its exit code and what it said."""
        _, said = self.process.communicate("go\n", timeout=120)
        return self.process.returncode, said

    def kill(self, number: int = signal.SIGKILL) -> tuple[int, str]:
        """End it, and everything that it started."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)  # as a terminal does
        else:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, "a process was left behind"
        return self.process.returncode, said


def refused(done: tuple[int, str]) -> str:
    code, said = done
    assert code == 2, said
    assert said.count("\n") == 1 and "try:" in said, said
    return said


# --- the disk is full ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB: the weights, 128 KB each in half, do not fit beside a file that somebody else writes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@cases("way, external", WAYS, [False, True], quick=[("inline", False), ("shards", True)])
def test_a_disk_that_fills_up_while_weights_are_written(way: str, external: bool, small: Path, folder: Path) -> None:
    source = source_in(folder, external=external)
    before = state(folder)
    paused = Paused("model" if way == "inline" else "weights", source, small / "out.onnx", **WAYS[way])
    with (small / "filler").open("wb") as file:
        file.write(b"x" * (450 << 10))
    assert "space" in refused(paused.go_on())
    assert set(state(small)) == {"filler"}
    assert state(folder) == before
    (small / "filler").unlink()
    is_whole(halfconv.convert(source, small / "out.onnx", **WAYS[way]).output, source)


@cases("way, limit", WAYS, [1000, 100_000, 200_000], quick=[("external", 100_000), ("shards", 200_000)])
def test_a_limit_of_file_size(way: str, limit: int, folder: Path, tmp_path: Path) -> None:
    """It ends the write in the middle, as a full disk does, without a mount."""
    source = source_in(folder, external=True)
    before = state(folder)
    output = tmp_path / "out"
    output.mkdir()
    paused = Paused("planned", source, output / "out.onnx", **WAYS[way])
    psutil.Process(paused.process.pid).rlimit(psutil.RLIMIT_FSIZE, (limit, limit))
    if way == "shards" and limit == 200_000:  # a shard has 131,072
        code, said = paused.go_on()
        assert code == 0, said
        is_whole(output / "out.onnx", source)
    else:
        refused(paused.go_on())
        assert state(output) == {}
    assert state(folder) == before


def test_a_full_disk_leaves_the_old_output(small: Path, folder: Path) -> None:
    source = source_in(folder, external=False)
    output = halfconv.convert(source, small / "out.onnx", external_data="always").output
    old = state(small)
    with pytest.raises(halfconv.EnvironmentProblem, match="free"):
        halfconv.convert(source, output, external_data="always")
    assert state(small) == old
    is_whole(output, source)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@cases(
    "way, place, old", WAYS, ["weights", "model", "check", "replace", "replaced"], [False, True],
    quick=[("shards", "weights", False), ("inline", "model", True), ("external", "check", False), ("external", "replaced", True)],
)  # fmt: skip
def test_a_kill_in_the_middle(way: str, place: str, old: bool, folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    before = state(folder)
    place_out = tmp_path / "out"
    place_out.mkdir()
    output = place_out / "out.onnx"
    if old:
        halfconv.convert(source, output, **WAYS[way], block_ops=["MatMul"])
    first = state(place_out)
    paused = Paused(place, source, output, **WAYS[way])
    code, _ = paused.kill()
    assert code == -signal.SIGKILL
    assert state(folder) == before
    if place == "replaced":
        assert rel_l2(answers(output), answers(source)) < 5e-3
    elif old:
        assert output.read_bytes() == first["out.onnx"], "what was there is as it was"
        answers(output)
    else:
        assert not output.exists(), "nothing partial lies under the final name"
        assert not output.with_name("out.onnx.profile.json").exists()
    result = halfconv.convert(source, output, **WAYS[way])
    is_whole(result.output, source)
    assert state(folder) == before


def test_a_live_runs_files_are_left_alone(folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    place_out = tmp_path / "out"
    place_out.mkdir()
    output = place_out / "out.onnx"
    for place in ("weights", "check", "replace"):
        paused = Paused(place, source, output, external_data="always")
        during = set(state(place_out))
        halfconv.convert(source, output, external_data="always")
        assert {name for name in during if ".part" in name or ".tmp" in name} <= set(state(place_out))
        code, said = paused.go_on()
        assert code == 0, said
        is_whole(output, source)


def test_a_kill_while_a_plan_is_written(folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=False)
    place_out = tmp_path / "out"
    place_out.mkdir()
    plan = place_out / "plan.json"
    plan.write_text("old")
    assert Paused("plan", source, place_out / "out.onnx", save_plan=str(plan)).kill()[0] == -signal.SIGKILL
    assert plan.read_text() == "old"
    others = [place_out / ".other.json.01234567.tmp", place_out / ".plan.json.0123.tmp"]
    for other in others:
        other.write_text("somebody else's")
    halfconv.convert(source, place_out / "out.onnx", save_plan=plan)
    is_whole(place_out / "out.onnx", source, also={plan.name, *(other.name for other in others)})
    assert json.loads(plan.read_text("utf-8"))["to"] == "fp16"


def test_leftovers_of_another_output_are_left_alone(folder: Path) -> None:
    source = source_in(folder, external=False)
    ours = folder / ".other.onnx.0123456789ab.part"
    ours.write_text("")
    likeness = folder / "out.0123456789ab.data"
    likeness.write_bytes(b"mine")
    halfconv.convert(source, folder / "out.onnx")
    assert ours.exists() and likeness.read_bytes() == b"mine"


# --- the input changes -----------------------------------------------------------------------------------------------

PLACES = ["planned", "simulation", "weights"]


@cases(
    "left, way, place", [0, 1000, SIZE * SIZE * 4 + 8, SIZE * SIZE * 4 * LAYERS - 1], WAYS, PLACES,
    quick=[(0, "inline", "simulation"), (1000, "external", "planned"), (SIZE * SIZE * 4 + 8, "shards", "weights")],
)  # fmt: skip
def test_weights_that_are_cut_off_during_the_run(left: int, way: str, place: str, folder: Path, tmp_path: Path) -> None:
    """An error, never SIGBUS."""
    source = source_in(folder, external=True)
    paused = Paused(place if way != "inline" or place != "weights" else "model", source, tmp_path / "out.onnx", **WAYS[way])
    os.truncate(folder / "weights.bin", left)
    refused(paused.go_on())
    assert not list(tmp_path.glob("*out*"))
    assert set(state(folder)) == {"model.onnx", "weights.bin"}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_large_weights_that_are_cut_off_during_the_run(place: str, folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime maps these into its memory."""
    source = source_in(folder, external=True, size=3000, layers=2)
    paused = Paused(place, source, tmp_path / "out.onnx", external_data="always")
    os.truncate(folder / "weights.bin", 5000)
    refused(paused.go_on())
    assert not list(tmp_path.glob("*out*"))


def test_a_model_that_is_cut_off_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=False)
    paused = Paused("read", source, tmp_path / "out.onnx")
    os.truncate(source, 0)
    assert "changed while it was read" in refused(paused.go_on())
    assert not list(tmp_path.glob("*out*"))


def test_weights_that_are_cut_off_before_validation(folder: Path) -> None:
    source = source_in(folder, external=True)
    output = halfconv.convert(source).output
    os.truncate(folder / "weights.bin", 1000)
    with pytest.raises(halfconv.InputError, match=r"weights\.bin"):
        halfconv.validate(source, output)


@cases("place", PLACES, quick=[("weights",)])
def test_weights_that_go_missing_during_the_run(place: str, folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    paused = Paused(place, source, tmp_path / "out.onnx", external_data="always")
    (folder / "weights.bin").unlink()
    assert "weights.bin" in refused(paused.go_on())
    assert not list(tmp_path.glob("*out*"))


HOWS = ["written", "touched", "renamed", "the model"]


@cases("how, place", HOWS, PLACES, quick=[("written", "planned"), ("renamed", "weights"), ("the model", "simulation")])
def test_an_input_that_changes_during_the_run(how: str, place: str, folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    paused = Paused(place, source, tmp_path / "out.onnx", external_data="always")
    data = source if how == "the model" else folder / "weights.bin"
    if how in ("written", "the model"):
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        with data.open("r+b") as file:
            file.write(content)
    elif how == "touched":
        os.utime(data)
    else:
        shutil.copy(data, folder / "new")
        (folder / "new").replace(data)
    assert "changed while it was read" in refused(paused.go_on())
    assert not list(tmp_path.glob("*out*"))


def test_an_input_that_changes_once_it_was_read(folder: Path, tmp_path: Path) -> None:
    """What was read is what is written."""
    source = source_in(folder, external=True)
    wanted = answers(source)
    paused = Paused("check", source, tmp_path / "out.onnx", external_data="always")
    os.truncate(folder / "weights.bin", 0)
    assert paused.go_on()[0] == 0
    assert rel_l2(answers(tmp_path / "out.onnx"), wanted) < 5e-3


# --- two at once -----------------------------------------------------------------------------------------------------


PAIRS = [("weights", "weights"), ("check", "weights"), ("replace", "replace"), ("replaced", "replace")]


@cases("way, places", WAYS, PAIRS, quick=[("external", PAIRS[0]), ("shards", PAIRS[2]), ("external", PAIRS[3])])
def test_two_runs_to_one_output(way: str, places: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    before = state(folder)
    place_out = tmp_path / "out"
    place_out.mkdir()
    output = place_out / "out.onnx"
    first = Paused(places[0], source, output, **WAYS[way])
    if places[0] == "replaced":  # it holds the folder's lock, for which the other waits
        second = subprocess.Popen(
            [sys.executable, "-m", "halfconv", "convert", str(source), "-o", str(output)],
            stderr=subprocess.PIPE, cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(2)
        assert first.go_on()[0] == 0
        said = second.communicate(timeout=60)[1]
        assert second.returncode == 0, said
    else:
        other = Paused(places[1], source, output, **WAYS[way])
        codes = {first.go_on()[0], other.go_on()[0]}
        assert codes <= {0, 2} and 0 in codes
    is_whole(output, source)
    assert state(folder) == before


@pytest.mark.slow
def test_many_runs_to_one_output(folder: Path, tmp_path: Path) -> None:
    """Some with weights inside, some beside, some in shards; unsynchronised."""
    source = source_in(folder, external=True)
    place_out = tmp_path / "out"
    place_out.mkdir()
    output = place_out / "out.onnx"
    ways = [["--external-data", "never"], ["--external-data", "always"], ["--shard-size", "140kB"]] * 2
    for _ in range(2):
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "halfconv", "convert", str(source), "-o", str(output), *way], cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for way in ways
        ]  # fmt: skip
        for one in runs:
            said = one.communicate(timeout=120)[1]
            assert one.returncode in (0, 2) and (one.returncode == 0 or said.count("\n") == 1), said
        is_whole(output, source)


# --- a folder that cannot be written, an interruption ----------------------------------------------------------------


def test_a_read_only_file_system(small: Path, tmp_path: Path) -> None:
    source = small / "model.onnx"
    onnx.save(model(layers=1), source)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(halfconv.EnvironmentProblem) as caught:
        halfconv.convert(source)
    assert "\n" not in str(caught.value) and "try:" in str(caught.value)
    result = halfconv.convert(source, tmp_path / "out.onnx")
    assert rel_l2(answers(result.output), answers(source)) < 5e-3


@cases("place", ["planned", "simulation", "weights", "model", "check", "replace"], quick=[("simulation",), ("check",)])
def test_an_interruption(place: str, folder: Path, tmp_path: Path) -> None:
    source = source_in(folder, external=True)
    before = state(folder)
    place_out = tmp_path / "out"
    place_out.mkdir()
    paused = Paused(place, source, place_out / "out.onnx", body=_COMMAND)
    code, said = paused.kill(signal.SIGINT)
    assert (code, said.strip()) == (130, "halfconv: interrupted")
    assert state(place_out) == {}
    assert state(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_side_file_that_cannot_be_written_leaves_nothing(small: Path, folder: Path, tmp_path: Path) -> None:
    """The plan comes last: the model and its profile do not stay behind without it."""
    source = source_in(folder, external=False)
    (small / "filler").write_bytes(b"x" * shutil.disk_usage(small).free)
    place_out = tmp_path / "out"
    place_out.mkdir()
    with pytest.raises(halfconv.EnvironmentProblem):
        halfconv.convert(source, place_out / "out.onnx", save_plan=small / "plan.json")
    assert state(place_out) == {}
    assert set(state(small)) == {"filler"}
