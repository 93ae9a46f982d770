"""Files on disk: external data, broken input, nothing to do (cases.md, Files)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import halfconv
from tests import structure
from tests.cases.checks import Converted, close, convert, normal, proto, runs, text, tidy, with_weights
from tests.runtime_helpers import full_check, run
from tests.simulation import FLOAT, HALF

X = normal(2, 40)
BIG = {"w1": normal(40, 40, seed=1), "w2": normal(40, 40, seed=2)}
ROOT = Path(__file__).parents[2]


def network() -> onnx.ModelProto:
    """Two layers, whose weights of 6,400 bytes are large enough for external data."""
    body = "(float[2,40] x) => (float[2,40] y) { a = MatMul(x, w1)\n b = Relu(a)\n y = MatMul(b, w2) }"
    return with_weights(text(body), BIG)


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(source: Path, kind: type[halfconv.HalfconvError] = halfconv.InputError, **options: object) -> str:
    """Convert, and make sure of one line with advice, exit code 2, and an untouched folder."""
    folder = source.parent
    before = state(folder)
    with pytest.raises(kind) as caught:
        halfconv.convert(source, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message and "\n" not in message and "try:" in message, message
    assert state(folder) == before, "something was left behind, or the input was touched"
    return message


# --- 18. external data ---------------------------------------------------------------------------------------------


def save_external(folder: Path, *, one_file: bool = True, name: str = "model.onnx") -> Path:
    path = folder / name
    options = {"location": "weights.bin"} if one_file else {}
    onnx.save(
        network(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        size_threshold=0,
        convert_attribute=False,
        **options,
    )
    return path


@pytest.mark.parametrize("one_file", [True, False])
@pytest.mark.parametrize("external_data", ["auto", "always", "never"])
def test_external_data_in_one_file_or_many(one_file: bool, external_data: str, folder: Path) -> None:
    source = save_external(folder, one_file=one_file)
    before = state(folder)
    result = halfconv.convert(source, external_data=external_data)
    after = state(folder)
    assert {name: after[name] for name in before} == before, "the input was touched"
    new = set(after) - set(before)
    new.discard("model.fp16.onnx.profile.json")
    if external_data == "never":
        assert new == {"model.fp16.onnx"}
    elif external_data == "always":
        assert len(new) == 2
        assert sum(len(after[name]) for name in new) < sum(map(len, before.values()))
    runs(Converted(source, result), {"x": X})


def test_external_data_at_offsets_in_a_shared_file(folder: Path) -> None:
    source = folder / "model.onnx"
    model = network()
    blob = b""
    for tensor in model.graph.initializer:
        blob += b"\0" * (4096 - len(blob) % 4096)
        onnx.external_data_helper.set_external_data(tensor, "all.bin", offset=len(blob), length=len(tensor.raw_data))
        blob += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    (folder / "all.bin").write_bytes(blob + b"tail")
    onnx.save(model, source)
    runs(Converted(source, halfconv.convert(source)), {"x": X})


def test_external_data_below_the_models_folder(folder: Path) -> None:
    source = save_external(folder)
    (folder / "data").mkdir()
    (folder / "weights.bin").rename(folder / "data" / "weights.bin")
    _relocate(source, "data/weights.bin")
    runs(Converted(source, halfconv.convert(source)), {"x": X})


def _relocate(source: Path, location: str) -> None:
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, source)


def test_external_data_that_is_missing(folder: Path) -> None:
    source = save_external(folder)
    (folder / "weights.bin").unlink()
    assert "weights.bin" in refused(source)


@pytest.mark.parametrize("left", [0, 1, 6400, 12799])
def test_external_data_that_is_cut_off(left: int, folder: Path) -> None:
    source = save_external(folder)
    data = folder / "weights.bin"
    data.write_bytes(data.read_bytes()[:left])
    assert "weights.bin" in refused(source)


@pytest.mark.parametrize("form", ["../secret.bin", "data/../../secret.bin", "absolute"])
def test_external_data_outside_the_models_folder(form: str, folder: Path, tmp_path: Path) -> None:
    source = save_external(folder)
    secret = tmp_path / "secret.bin"
    (folder / "weights.bin").rename(secret)
    (folder / "data").mkdir()
    _relocate(source, str(secret) if form == "absolute" else form)
    refused(source)


def test_external_data_behind_a_symbolic_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    source = save_external(folder)
    secret = tmp_path / "secret.bin"
    (folder / "weights.bin").rename(secret)
    (folder / "weights.bin").symlink_to(secret)
    refused(source)


def test_external_data_with_a_hard_link(folder: Path, tmp_path: Path) -> None:
    """A hard link may lead out of the folder, as a symbolic one does: refused and said, or read; never overwritten."""
    source = save_external(folder)
    os.link(folder / "weights.bin", tmp_path / "twin.bin")
    before = (tmp_path / "twin.bin").read_bytes()
    try:
        result = halfconv.convert(source)
    except halfconv.InputError as error:
        assert "link" in str(error) and "\n" not in str(error) and "try:" in str(error)
        assert set(state(folder)) == {"model.onnx", "weights.bin"}
    else:
        full_check(result.output)
    assert (tmp_path / "twin.bin").read_bytes() == before


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "99999999999", "x"])
def test_external_data_with_a_nonsensical_place(key: str, value: str, folder: Path) -> None:
    source = save_external(folder)
    model = onnx.load(source, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
            break
    else:
        model.graph.initializer[0].external_data.add(key=key, value=value)
    onnx.save(model, source)
    refused(source)


def test_converting_again_replaces_the_output_and_its_data(folder: Path) -> None:
    source = save_external(folder)
    first = halfconv.convert(source, external_data="always")
    names = set(state(folder))
    second = halfconv.convert(source, external_data="always")
    assert first.output == second.output
    assert len(state(folder)) == len(names), "stale data is removed"
    runs(Converted(source, second), {"x": X})
    halfconv.convert(source, external_data="never")
    assert len(state(folder)) == len(names) - 1, "stale data is removed"


def test_the_output_goes_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    source = save_external(folder)
    target = tmp_path / "elsewhere"
    target.mkdir()
    result = halfconv.convert(source, target / "out.onnx", external_data="always")
    assert result.output == target / "out.onnx"
    assert len(state(target).keys() - {"out.onnx.profile.json"}) == 2
    # External data travels with the model.
    moved = tmp_path / "moved"
    target.rename(moved)
    assert run(moved / "out.onnx", [{"x": X}]).loads


# --- 19. over 2 GB -------------------------------------------------------------------------------------------------


def _huge(path: Path, layers: int, *, external: bool) -> Path:
    """Write a chain of square MatMuls, 256 MiB each in FP32, without holding it in memory."""
    size = 8192
    nodes, tensors = [], []
    block = (np.random.default_rng(0).standard_normal((size, size), np.float32) / np.sqrt(size)).astype(np.float32)
    with (path.parent / "huge.bin").open("wb") as data:
        for index in range(layers):
            block[0, 0] = index / size  # equal weights would be stored once
            tensor = TensorProto(name=f"w{index}", data_type=FLOAT, dims=[size, size])
            if external:
                for key, value in {"location": "huge.bin", "offset": data.tell(), "length": block.nbytes}.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensor.data_location = TensorProto.EXTERNAL
                block.tofile(data)
            else:
                tensor.raw_data = block.tobytes()
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"v{index + 1}"]))
    if not external:
        (path.parent / "huge.bin").unlink()
    graph = helper.make_graph(
        nodes,
        "huge",
        [helper.make_tensor_value_info("v0", FLOAT, [1, size])],
        [helper.make_tensor_value_info(f"v{layers}", FLOAT, [1, size])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder that is emptied at once: pytest would keep gigabytes for days."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.big
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "external"),
    [(7, False), (12, True), (20, True)],
    ids=["1.8 GB in the file", "3 GB in, 1.5 GB out", "5 GB in, 2.5 GB out"],
)
def test_models_around_and_over_two_gigabytes(layers: int, external: bool, roomy: Path) -> None:
    source = _huge(roomy / "model.onnx", layers, external=external)
    result = halfconv.convert(source)
    full_check(result.output)
    assert result.values["half"] > 0
    written = [path for path in roomy.iterdir() if path.name not in ("model.onnx", "huge.bin")]
    half_bytes = layers * 8192 * 8192 * 2
    assert half_bytes <= sum(path.stat().st_size for path in written) <= half_bytes * 1.01
    assert result.output.stat().st_size < 2**31
    feeds = {"v0": normal(1, 8192)}
    if layers < 20:
        outcome = run(result.output, [feeds])
        assert outcome.loads and np.isfinite(outcome.outputs[0][f"v{layers}"]).all()


@pytest.mark.big
@pytest.mark.slow
def test_over_two_gigabytes_in_one_file_is_refused_or_said(roomy: Path) -> None:
    source = _huge(roomy / "model.onnx", 20, external=True)
    before = set(state_names(roomy))
    with pytest.raises(halfconv.HalfconvError) as caught:
        halfconv.convert(source, external_data="never")
    assert "\n" not in str(caught.value) and "external" in str(caught.value)
    assert set(state_names(roomy)) == before


def state_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- 20. bad input and bad places ----------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    content = network().SerializeToString()
    path.write_bytes(content[: len(content) // 2])


def _ir_of_the_future(path: Path) -> None:
    model = network()
    model.ir_version = 99
    path.write_bytes(model.SerializeToString())


def _unknown_opset(path: Path) -> None:
    model = network()
    model.opset_import[0].version = 999
    path.write_bytes(model.SerializeToString())


def _no_opset(path: Path) -> None:
    model = network()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())


def _unknown_op(path: Path) -> None:
    model = network()
    model.graph.node[1].op_type = "Relux"
    path.write_bytes(model.SerializeToString())


def _undefined_input(path: Path) -> None:
    model = network()
    model.graph.node[1].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())


def _cycle(path: Path) -> None:
    model = network()
    model.graph.node[0].input[0] = "b"
    path.write_bytes(model.SerializeToString())


def _defined_twice(path: Path) -> None:
    model = network()
    model.graph.node[1].output[0] = "a"
    path.write_bytes(model.SerializeToString())


def _short_tensor(path: Path) -> None:
    model = network()
    model.graph.initializer[0].raw_data = b"\0" * 12
    path.write_bytes(model.SerializeToString())


_BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no model\n" * 50),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
    "cut off": _cut,
    "no graph": lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()),
    "a tensor": lambda path: path.write_bytes(onnx.numpy_helper.from_array(X, "t").SerializeToString()),
    "IR of the future": _ir_of_the_future,
    "unknown opset": _unknown_opset,
    "no opset": _no_opset,
    "unknown operator": _unknown_op,
    "undefined input": _undefined_input,
    "cycle": _cycle,
    "defined twice": _defined_twice,
    "short tensor": _short_tensor,
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_a_broken_model_is_refused_in_one_line(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = folder / "model.onnx"
    _BROKEN[kind](source)
    caplog.clear()
    assert "model.onnx" in refused(source)
    assert not caplog.records  # a library's log would be a second line on stderr


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert "gone.onnx" in refused(folder / "gone.onnx")


def test_a_directory(folder: Path) -> None:
    source = folder / "model.onnx"
    source.mkdir()
    assert "model.onnx" in refused(source)


def test_a_pipe_or_device_is_refused_and_does_not_hang(folder: Path) -> None:
    source = folder / "model.onnx"
    os.mkfifo(source)
    done = _convert_in_process(source, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") <= 1


_SCRIPT = """
import sys, halfconv
try:
    result = halfconv.convert(sys.argv[1], *sys.argv[2:3], check=False)
except halfconv.HalfconvError as error:
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_code)
print(result.output)
"""


def _convert_in_process(
    source: Path, target: Path | None = None, *, before: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Convert in a process of its own, after the code that sets its limits."""
    arguments = [str(source)] if target is None else [str(source), str(target)]
    return subprocess.run(
        [sys.executable, "-c", before + _SCRIPT, *arguments],
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_nothing_behind(external: bool, folder: Path) -> None:
    """The file-size limit stops the write as a full disk does: part of the output is written, then an error comes."""
    source = save_external(folder) if external else folder / "model.onnx"
    if not external:
        onnx.save(network(), source)
    before = state(folder)
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import halfconv.pipeline, onnx, onnx_ir\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    )
    done = _convert_in_process(source, before=limit)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "try:" in done.stderr, done.stderr
    assert state(folder) == before


def test_a_device_without_space(folder: Path) -> None:
    """A file system of 16 KiB, where mounting is allowed: the output of 13 KB and its parts do not fit."""
    small = folder / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        source = folder / "model.onnx"
        onnx.save(network(), source)
        with pytest.raises(halfconv.EnvironmentProblem) as caught:
            halfconv.convert(source, small / "out.onnx")
        assert "\n" not in str(caught.value) and "try:" in str(caught.value)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, other than pytest's own."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


def _as_nobody(source: Path, target: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Convert without rights; a root process gives its own up once everything is imported."""
    drop = "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n" if os.geteuid() == 0 else ""
    return _convert_in_process(source, target, before=f"import halfconv.pipeline, onnx, onnx_ir, os\n{drop}")


def test_input_without_permission(open_folder: Path) -> None:
    source = open_folder / "model.onnx"
    onnx.save(network(), source)
    source.chmod(0)
    done = _as_nobody(source)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "try:" in done.stderr
    assert [path.name for path in open_folder.iterdir()] == ["model.onnx"]


def test_an_output_folder_without_permission(open_folder: Path) -> None:
    source = open_folder / "model.onnx"
    onnx.save(network(), source)
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    done = _as_nobody(source, closed / "out.onnx")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "try:" in done.stderr
    assert list(closed.iterdir()) == []


def test_an_output_folder_that_is_not_there(folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    refused(source, halfconv.HalfconvError, output=folder / "no" / "such" / "out.onnx")


def test_an_output_that_is_a_directory(folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    (folder / "out.onnx").mkdir()
    refused(source, halfconv.HalfconvError, output=folder / "out.onnx")


@pytest.mark.parametrize("form", ["same", "relative", "symbolic link", "hard link"])
def test_an_output_that_is_the_input(form: str, folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    target = folder / "model.onnx"
    if form == "relative":
        target = folder / ".." / folder.name / "model.onnx"
    elif form != "same":
        target = folder / "other.onnx"
        target.symlink_to(source) if form == "symbolic link" else os.link(source, target)
    refused(source, halfconv.HalfconvError, output=target)


def test_an_output_that_is_the_inputs_data(folder: Path) -> None:
    source = save_external(folder)
    refused(source, halfconv.HalfconvError, output=folder / "weights.bin")


def test_an_existing_output_is_replaced(folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    (folder / "model.fp16.onnx").write_bytes(b"old")
    runs(Converted(source, halfconv.convert(source)), {"x": X})
    assert {path.suffix for path in folder.iterdir()} <= {".onnx", ".json"}


def test_an_existing_output_survives_a_failure(folder: Path) -> None:
    source = folder / "model.onnx"
    source.write_bytes(b"no model")
    (folder / "model.fp16.onnx").write_bytes(b"old")
    refused(source)


def test_unwieldy_file_names(folder: Path) -> None:
    for name in ("mödel 值.onnx", "two words.onnx", "no-suffix", "dots.v1.2.onnx", "-dash.onnx"):
        source = folder / name
        onnx.save(network(), source, format="protobuf")
        result = halfconv.convert(source)
        assert result.output.parent == folder and result.output != source
        full_check(result.output)


@pytest.mark.parametrize(
    "options",
    [
        {"to": "fp8"},
        {"target": "abacus"},
        {"block_list": "mine"},
        {"external_data": "maybe"},
    ],
)
def test_options_with_unknown_values(options: dict[str, str], folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    refused(source, halfconv.UsageError, **options)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset_from_7(opset: int, folder: Path) -> None:
    ir = 3 if opset < 9 else 8 if opset < 19 else 10
    body = (
        "(float[1,2,6,6] x) => (float[1,3,1,1] y) { c = Conv(x, k)\n r = Relu(c)\n p = GlobalAveragePool(r)\n"
        " t = Tanh(p)\n y = Mul(t, s) }"
    )
    weights = {"k": normal(3, 2, 3, 3), "s": normal(1, 3, 1, 1)}
    converted = convert(with_weights(text(body, opset=opset, ir=ir), weights), folder)
    runs(converted, {"x": normal(1, 2, 6, 6)})
    assert converted.all_half("Conv")
    assert converted.result.opset == opset, "the source's opset is kept"


@pytest.mark.parametrize("opset", [1, 6])
def test_opsets_before_7_are_converted_or_refused(opset: int, folder: Path) -> None:
    source = folder / "model.onnx"
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", opset=opset, ir=3), {})
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(4, 4), "w"))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 4]))
    onnx.save(model, source)
    try:
        result = halfconv.convert(source)
    except halfconv.UnsupportedModel as error:
        assert "opset" in str(error) and "try:" in str(error)
    else:
        full_check(result.output)


# --- 21. nothing to do, or done already ----------------------------------------------------------------------------


def _said(converted: Converted, *words: str) -> bool:
    return any(word in line.lower() for line in converted.result.warnings for word in words)


def test_converting_twice_changes_nothing(folder: Path) -> None:
    first = convert(network(), folder)
    again = halfconv.convert(first.path)
    assert again.values["half"] == 0 or not structure.casts(first.path) or again.casts == 0
    a, b = onnx.load(first.path), onnx.load(again.output)
    assert [n.op_type for n in a.graph.node] == [n.op_type for n in b.graph.node]
    assert {t.name: t.data_type for t in a.graph.initializer} == {t.name: t.data_type for t in b.graph.initializer}
    assert again.bytes_after <= again.bytes_before * 1.01
    assert again.warnings, "that the model is half already is said"
    runs(Converted(first.path, again), {"x": X})


def test_converting_twice_with_half_io_changes_nothing(folder: Path) -> None:
    first = convert(network(), folder, half_io=True)
    again = halfconv.convert(first.path, half_io=True)
    a, b = onnx.load(first.path), onnx.load(again.output)
    assert [(n.op_type, list(n.input), list(n.output)) for n in a.graph.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in b.graph.node
    ]


def _half_network() -> onnx.ModelProto:
    body = "(float16[2,40] x) => (float16[2,40] y) { a = MatMul(x, w1)\n b = Relu(a)\n y = MatMul(b, w2) }"
    return with_weights(text(body), {name: array.astype(np.float16) for name, array in BIG.items()})


@pytest.mark.parametrize("half_io", [False, True])
def test_a_model_that_is_half_already(half_io: bool, folder: Path) -> None:
    converted = convert(_half_network(), folder, half_io=half_io)
    assert _said(converted, "half", "fp16", "float16", "nothing")
    assert [n.op_type for n in converted.model.graph.node] == ["MatMul", "Relu", "MatMul"]
    full_check(converted.path)
    x = X.astype(np.float16)
    got, want = run(converted.path, [{"x": x}], fit=True), run(converted.source, [{"x": x}])
    close(got.outputs, want.outputs, 0.0)


def test_a_model_that_is_mixed_already(folder: Path) -> None:
    body = (
        "(float[2,40] x) => (float[2,40] y) { h = Cast<to=10>(x)\n a = MatMul(h, w1)\n f = Cast<to=1>(a)\n"
        " r = Sigmoid(f)\n y = MatMul(r, w2) }"
    )
    model = with_weights(text(body), {"w1": BIG["w1"].astype(np.float16), "w2": BIG["w2"]})
    converted = convert(model, folder)
    runs(converted, {"x": X})
    assert converted.all_half("MatMul")


def test_a_bfloat16_model(folder: Path) -> None:
    body = "(bfloat16[2,40] x) => (float[2,40] y) { f = Cast<to=1>(x)\n y = MatMul(f, w1) }"
    converted = convert(with_weights(text(body), {"w1": BIG["w1"]}), folder)
    tidy(converted)


@pytest.mark.parametrize("half_io", [False, True])
def test_a_model_with_float64(half_io: bool, folder: Path) -> None:
    """Somebody wanted double: it stays, and its neighbours are converted."""
    body = (
        "(float[2,40] x, double[2,40] u) => (double[2,40] v, float[2,40] y)"
        " { a = MatMul(x, w1)\n d = Cast<to=11>(a)\n v = Add(d, u)\n f = Cast<to=1>(v)\n y = MatMul(f, w2) }"
    )
    converted = convert(with_weights(text(body), BIG), folder, half_io=half_io)
    runs(converted, {"x": X, "u": X.astype(np.float64)}, keep_io=not half_io)
    (site,) = converted.ops("Add")
    assert site.outputs == (TensorProto.DOUBLE,)


@pytest.mark.parametrize(
    "graph",
    [
        "(int64[2,4] x) => (int64[2,4] y) { y = Neg(x) }",
        "(double[2,4] x) => (double[2,4] y) { y = Neg(x) }",
        "(bool[2,4] x) => (bool[2,4] y) { y = Not(x) }",
        "(string[2] x) => (string[2] y) { y = Identity(x) }",
        "(float[2,4] x) => (int64[2] y) { y = Shape(x) }",
    ],
    ids=["integers", "double", "bool", "strings", "shape"],
)
def test_a_model_with_nothing_to_convert_is_said_plainly(graph: str, folder: Path) -> None:
    converted = convert(text(graph), folder)
    full_check(converted.path)
    assert _said(converted, "nothing", "no float")
    assert structure.casts(converted.model) == []


def test_a_model_whose_nodes_are_all_blocked(folder: Path) -> None:
    converted = convert(network(), folder, block_ops=["MatMul", "Relu"])
    runs(converted, {"x": X}, drift=1e-6)
    assert converted.result.values["half"] == 0 and converted.result.casts == 0
    assert converted.result.warnings


def test_an_identity_graph(folder: Path) -> None:
    runs(convert(text("(float[2,4] x) => (float[2,4] y) { y = Identity(x) }"), folder), {"x": normal(2, 4)})


# --- 22. unusual tensors and shapes --------------------------------------------------------------------------------


def test_sparse_initializers(folder: Path) -> None:
    model = with_weights(text("(float[2,3] x) => (float[2,3] y) { a = MatMul(x, s)\n y = Relu(a) }"), {})
    values = helper.make_tensor("s", FLOAT, [3], [0.5, -2, 4])
    places = helper.make_tensor("s_places", TensorProto.INT64, [3], [0, 4, 8])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3, 3]))
    _runs_like_the_source(model, folder, {"x": normal(2, 3)})


def test_a_sparse_constant(folder: Path) -> None:
    values = helper.make_tensor("v", FLOAT, [2], [0.5, -2])
    places = helper.make_tensor("i", TensorProto.INT64, [2], [0, 4])
    model = proto(text("(float[2,3] x) => (float[2,3] y) { c = Constant<value_float=1.0>()\n y = MatMul(x, c) }"))
    model.graph.node[0].CopyFrom(
        helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, places, [3, 3]))
    )
    _runs_like_the_source(model, folder, {"x": normal(2, 3)})


def _runs_like_the_source(model: onnx.ModelProto, folder: Path, feeds: dict[str, np.ndarray]) -> None:
    """For what the checker and the simulation know little of: loads wherever the source does, with its answers."""
    source = folder / "model.onnx"
    onnx.save(model, source)
    want = run(source, [feeds])
    converted = Converted(source, halfconv.convert(source))
    got = run(converted.path, [feeds])
    assert got.loads or not want.loads, got.failure
    if want.loads:
        close(got.outputs, want.outputs, 5e-3)


@pytest.mark.parametrize("attribute", ["value_float=0.3", "value_floats=[0.3, 0.1, 0.2, 0.4]"])
def test_constants_given_as_attributes(attribute: str, folder: Path) -> None:
    model = text(f"(float[2,4] x) => (float[2,4] y) {{ c = Constant<{attribute}>()\n y = Mul(x, c) }}")
    runs(convert(model, folder), {"x": normal(2, 4)})


def test_strings_beside_floats(folder: Path) -> None:
    model = with_weights(
        text("(float[2,40] x, string[2] s) => (float[2,40] y, string[2] t) { y = MatMul(x, w1)\n t = Identity(s) }"),
        {"w1": BIG["w1"]},
    )
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]))
    runs(convert(model, folder), {"x": X, "s": np.array(["p", "q"], object)})


@pytest.mark.parametrize("half_io", [False, True])
@pytest.mark.parametrize(
    ("graph", "feeds"),
    [
        ("(float[0,4] x) => (float[0,4] y) { y = MatMul(x, w) }", {"x": np.zeros((0, 4), np.float32)}),
        ("(float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", {"x": np.zeros((0, 4), np.float32)}),
        ("(float[2,4] x) => (float[2,4] y) <float[0,4] e> { z = Concat<axis=0>(x, e)\n y = MatMul(z, w) }", None),
        ("(float x) => (float y) { a = Exp(x)\n y = Neg(a) }", {"x": np.array(0.7, np.float32)}),
        ("(float[2,4] x) => (float y) { a = ReduceMean<keepdims=0>(x)\n y = Tanh(a) }", None),
        ("(float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", None),
        ("(float[?,4] x) => (float[?,?] y) { y = MatMul(x, w) }", None),
        ("(float[batch,4] x) => (float[batch,seq] y) { y = MatMul(x, w) }", None),
    ],
    ids=["empty", "empty batch", "empty weight", "scalar", "scalar result", "symbolic", "unknown", "named"],
)
def test_empty_scalar_and_open_shapes(graph: str, feeds: dict[str, np.ndarray] | None, half_io: bool, folder: Path) -> None:
    weights = {"w": normal(4, 4)} if ", w)" in graph else {}
    if "<float[0,4] e>" in graph:
        graph, weights["e"] = graph.replace("<float[0,4] e>", ""), np.zeros((0, 4), np.float32)
    converted = convert(with_weights(text(graph), weights), folder, half_io=half_io)
    runs(converted, feeds or {"x": normal(2, 4)}, keep_io=not half_io)


@pytest.mark.parametrize("half_io", [False, True])
def test_unknown_rank_inside(half_io: bool, folder: Path) -> None:
    model = with_weights(
        text(
            "(float[2,4] x, int64[N] shape) => (float[M,4] y) { a = MatMul(x, w)\n b = Reshape(a, shape)\n"
            " c = Tanh(b)\n d = Reshape(c, back)\n y = MatMul(d, w) }"
        ),
        {"w": normal(4, 4), "back": np.array([-1, 4])},
    )
    converted = convert(model, folder, half_io=half_io)
    runs(converted, {"x": normal(2, 4), "shape": np.array([2, 2, 2])}, keep_io=not half_io)
    assert converted.all_half("MatMul", "Tanh")


@pytest.mark.parametrize("half_io", [False, True])
def test_unknown_rank_at_the_interface(half_io: bool, folder: Path) -> None:
    """onnx's checker refuses such a source, ONNX Runtime runs it: converted right, or refused as an input."""
    model = with_weights(text("(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w)\n y = Relu(a) }"), {"w": normal(4, 4)})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    source = folder / "model.onnx"
    onnx.save(model, source)
    try:
        converted = Converted(source, halfconv.convert(source, half_io=half_io))
    except halfconv.InputError as error:
        assert "shape" in str(error) and "try:" in str(error)
        return
    want, got = run(source, [{"x": normal(2, 4)}]), run(converted.path, [{"x": normal(2, 4)}], fit=True)
    assert got.loads, got.failure
    close(got.outputs, want.outputs, 5e-3)
    assert converted.all_half("MatMul")


def test_a_model_without_inputs(folder: Path) -> None:
    model = text("() => (float[2] y) { c = Constant<value = float[2] {0.1, 0.2}>()\n y = Exp(c) }")
    runs(convert(model, folder), {})


def test_metadata_and_documentation_survive(folder: Path) -> None:
    model = network()
    model.producer_name, model.doc_string, model.graph.doc_string = "trainer", "a net", "its graph"
    model.metadata_props.add(key="classes", value="cat,dog")
    model.graph.node[0].name = "first"
    model.graph.node[0].metadata_props.add(key="module", value="/net/first")
    converted = convert(model, folder)
    after = converted.model
    assert {p.key: p.value for p in after.metadata_props}["classes"] == "cat,dog"
    assert after.doc_string == "a net" and after.graph.name == model.graph.name
    (first,) = [node for node in after.graph.node if node.name == "first"]
    assert [(p.key, p.value) for p in first.metadata_props if p.key == "module"] == [("module", "/net/first")]
    recorded = " ".join(f"{p.key}={p.value}" for p in after.metadata_props)
    assert halfconv.__version__ in recorded
    import hashlib

    assert hashlib.sha256(converted.source.read_bytes()).hexdigest() in recorded


def test_the_result_is_the_same_every_time(folder: Path) -> None:
    source = folder / "model.onnx"
    onnx.save(network(), source)
    first = halfconv.convert(source, folder / "one.onnx").output.read_bytes()
    assert halfconv.convert(source, folder / "two.onnx").output.read_bytes() == first


def test_the_result_counts_what_is_in_the_file(folder: Path) -> None:
    converted = convert(network(), folder, block_ops=["Relu"])
    result = converted.result
    assert result.nodes == len(converted.model.graph.node)
    assert result.casts == len(structure.casts(converted.model))
    assert result.values == {"half": 2, "float": 2} or sum(result.values.values()) == 4
    assert result.weights == {"half": 2, "float": 0, "both": 0}
    assert result.to == "fp16" and result.target == "portable" and result.opset == 17
    assert result.bytes_before == converted.source.stat().st_size
    assert result.bytes_after == converted.path.stat().st_size
    assert all(seconds >= 0 for seconds in result.seconds.values())
    entries = result.to_dict()
    assert entries["values"] == result.values and entries["output"] == str(result.output)
    assert HALF in {t.data_type for t in converted.model.graph.initializer}


# --- damaged graphs -------------------------------------------------------------------------------------------------


def _damaged(change: str) -> onnx.ModelProto:
    """A small valid model with one thing wrong."""
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> main (float[2] x, bool c) => (float[2] y)'
        " { f = Cast<to = 1>(x)\n q = Sqrt(f)\n y = If(c) <then_branch = t () => (float[2] o) { o = Neg(q) },"
        " else_branch = e () => (float[2] p) { p = Abs(q) }> }"
    )
    cast, root, branch = made.graph.node
    if change == "no input":
        del root.input[:]
    elif change == "an empty input":
        root.input[0] = ""
    elif change == "attribute kind":
        cast.attribute[0].CopyFrom(onnx.helper.make_attribute("to", "float"))
    elif change == "attribute without type":
        cast.attribute[0].type = onnx.AttributeProto.UNDEFINED
    elif change == "missing attribute":
        del cast.attribute[:]
    elif change == "outer result":
        branch.attribute[0].g.output[0].name = "q"
    elif change == "too many results":
        branch.attribute[0].g.output.append(branch.attribute[0].g.output[0])
    elif change == "undefined result of a foreign body":
        branch.domain = "foreign"
        branch.attribute[0].g.output[0].name = "nowhere"
        made.opset_import.append(onnx.helper.make_opsetid("foreign", 1))
    elif change == "untyped input":
        made.graph.input[0].ClearField("type")
    elif change.startswith("constant"):
        value = onnx.helper.make_node("Constant", [], ["k"], value_float=1.0)
        made.graph.node.extend([value, onnx.helper.make_node("Add", ["x", "k"], ["unread"])])
        value = made.graph.node[-2]
        if change == "constant without value":
            del value.attribute[:]
        elif change == "constant of no name":
            value.attribute[0].name = ""
        else:
            value.attribute[0].CopyFrom(onnx.helper.make_attribute("sparse_value", _sparse(change)))
    return made


def _sparse(change: str) -> onnx.SparseTensorProto:
    """A sparse tensor with one thing wrong."""
    values = onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "k")
    indices = onnx.numpy_helper.from_array(np.array([0, 3]), "i")
    made = onnx.helper.make_sparse_tensor(values, indices, [2, 3])
    if change == "constant of no type":
        made.values.data_type = TensorProto.UNDEFINED
    elif change == "constant of an unknown type":
        made.values.data_type = 99
    elif change == "constant with negative dimensions":
        made.dims[:] = [-2, -3]
    elif change == "constant in another file":
        made.values.data_location = TensorProto.EXTERNAL
        made.values.external_data.add(key="location", value="model.onnx")
    elif change == "constant with too few values":
        made.values.raw_data = b"\0" * 4
    elif change == "constant with an index outside":
        made.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 6]), "i"))
    return made


@pytest.mark.parametrize(
    "change",
    [
        "no input",
        "an empty input",
        "attribute kind",
        "attribute without type",
        "missing attribute",
        "outer result",
        "too many results",
        "undefined result of a foreign body",
        "untyped input",
        "constant without value",
        "constant of no name",
        "constant of no type",
        "constant of an unknown type",
        "constant with negative dimensions",
        "constant in another file",
        "constant with too few values",
        "constant with an index outside",
    ],
)
def test_a_damaged_graph_is_refused_in_one_line(change: str, folder: Path) -> None:
    source = folder / "model.onnx"
    source.write_bytes(_damaged(change).SerializeToString())
    with pytest.raises(halfconv.InputError) as caught:
        halfconv.convert(source)
    assert "try:" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx"]


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    source = folder / "model.onnx"
    source.write_bytes(_damaged("").SerializeToString().replace(b"Sqrt", b"Sq\xff\xfe"))
    with pytest.raises(halfconv.InputError, match="not UTF-8"):
        halfconv.convert(source)


def _bomb(levels: int, leaf: int) -> onnx.ModelProto:
    """Functions of which each calls the one below twice; the lowest has some nodes."""
    chain = "".join(f"v{i} = Relu({f'v{i - 1}' if i else 'x'})\n " for i in range(leaf))
    body = "".join(
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]>\nf{i} (x) => (y) {{ a = f.f{i - 1}(x)\n y = f.f{i - 1}(a) }}\n'
        for i in range(1, levels)
    )
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]>\nmain (float[2] x) => (float[2] y) {{ y = f.f{levels - 1}(x) }}\n'
        f'<domain: "f", opset_import: ["" : 17]>\nf0 (x) => (y) {{ {chain}y = Relu(v{leaf - 1}) }}\n{body}'
    )


@pytest.mark.parametrize(("levels", "leaf"), [(40, 1), (200, 1), (16, 1), (14, 1), (12, 50), (10, 2000), (6, 20000)])
def test_functions_that_explode_are_refused_at_once(levels: int, leaf: int, folder: Path) -> None:
    onnx.save(_bomb(levels, leaf), folder / "model.onnx")
    begun = time.monotonic()
    with pytest.raises(halfconv.UnsupportedModel, match="too many to inline"):
        halfconv.convert(folder / "model.onnx")
    assert time.monotonic() - begun < 20


def test_functions_that_call_each_other_deep_down_are_refused(folder: Path) -> None:
    model = _bomb(3000, 1)
    for function in model.functions[1:]:
        del function.node[1:]
        function.node[0].output[0] = "y"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(halfconv.UnsupportedModel, match="too deep"):
        halfconv.convert(folder / "model.onnx")


def test_many_calls_of_a_function_are_no_explosion(folder: Path) -> None:
    onnx.save(_bomb(10, 4), folder / "model.onnx")
    assert convert(folder / "model.onnx", folder).result.nodes == 512 * 5
