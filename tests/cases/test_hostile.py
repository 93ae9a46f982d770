"""Files made to do harm (cases.md, Files): refused in one line, or handled, in bounded time and memory.

Each is inspected and converted in a process of its own with a limit of memory; what that process starts has the limit, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfconv
from tests.cases.test_files import ROOT, save_external, state
from tests.simulation import FLOAT

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
#: What a process may have, of which interpreter, onnx and ONNX Runtime with their threads map 2 GiB.
ADDRESSES = 8 << 30
HUGE = 1 << 62
WEIGHT = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32), "w")

_SCRIPT = """
import json, resource, sys
import halfconv, halfconv.tuning
from halfconv.errors import HalfconvError
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
halfconv.tuning.UNASKED_SECONDS = 5
said = {}
calls = {"inspect": lambda: halfconv.inspect(sys.argv[1]), "convert": lambda: halfconv.convert(sys.argv[1], sys.argv[2])}
for name, call in calls.items():
    try:
        said[name] = ["", *call().warnings]
    except HalfconvError as error:
        said[name] = [f"{type(error).__name__}: {error}"]
said["peak"] = [1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))]
print(json.dumps(said))
"""


class Outcome(NamedTuple):
    """What came of a file: errors ("" for none) and warnings."""

    inspect: str
    convert: str
    warnings: tuple[str, ...]
    peak: int
    seconds: float


def meet(source: Path, *, seconds: float = 60, peak: int = 3 << 29) -> Outcome:
    """Inspect and convert, within a time and with so many bytes in memory at most."""
    before, begun = state(source.parent), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(source), str(source.parent / "out.onnx"), str(ADDRESSES)],
        capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, list[Any]] = json.loads(done.stdout)
    assert said["peak"][0] < peak, f"{said['peak'][0]:,} bytes"
    after = state(source.parent)
    assert {name: after[name] for name in before} == before
    for error in (said["inspect"][0], said["convert"][0]):
        assert "\n" not in error and (not error or "try:" in error), error
    if said["convert"][0]:
        assert after == before
    return Outcome(
        said["inspect"][0], said["convert"][0], tuple(said["convert"][1:]), said["peak"][0], time.monotonic() - begun
    )  # fmt: skip


def value(name: str, shape: Sequence[int] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def int64(name: str, *numbers: int, scalar: bool = False) -> TensorProto:
    return helper.make_tensor(name, INT64, [] if scalar else [len(numbers)], numbers)


def model(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto] = (), *, shape: Sequence[int] | None = (2, 4),
    outputs: Sequence[str] = ("y",), opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(nodes, "g", [value("x", shape)], [value(name, None) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(folder: Path, made: onnx.ModelProto | bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


# --- bytes that are no protobuf, or too much of it -------------------------------------------------------------------


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


PLAIN = model([helper.make_node("Relu", ["x"], ["y"])])
GRAPH = PLAIN.graph.SerializeToString()
HEAD = onnx.ModelProto(ir_version=8, opset_import=PLAIN.opset_import).SerializeToString()


def nested_ifs(depth: int) -> bytes:
    """An If in an If in an If: written by hand, since no library writes so deep a message."""
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["o0"])], "i", [], [value("o0", [2, 4])]).SerializeToString()
    for k in range(1, depth + 1):
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "e", [], [value("e", [2, 4])]).SerializeToString()
        branches = [
            field(5, field(1, name) + field(6, graph) + varint(20 << 3) + b"\x05")
            for name, graph in ((b"then_branch", inner), (b"else_branch", other))
        ]
        node = field(1, b"c") + field(2, f"o{k}".encode()) + field(4, b"If") + b"".join(branches)
        inner = field(1, node) + field(2, b"g") + field(12, value(f"o{k}", [2, 4]).SerializeToString())
    inputs = (value("x", [2, 4]), value("c", [], BOOL))
    return HEAD + field(7, inner + b"".join(field(11, one.SerializeToString()) for one in inputs))


def nested_types(depth: int) -> bytes:
    """An input that is a sequence of sequences of sequences."""
    kind = helper.make_tensor_type_proto(FLOAT, [2]).SerializeToString()
    for _ in range(depth):
        kind = field(4, field(1, kind))
    node = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [value("y", [2])]).SerializeToString()
    return HEAD + field(7, node + field(11, field(1, b"x") + field(2, kind)))


def deep_field(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = field(1000, content)
    return content


MANY = 200_000
RELU = helper.make_node("Relu", ["x"], ["q"]).SerializeToString()
BYTES = {
    "nothing but groups that begin": HEAD + field(7, GRAPH) + varint(1000 << 3 | 3) * 200_000,
    "groups in groups": HEAD + field(7, GRAPH) + varint(1000 << 3 | 3) * 50_000 + varint(1000 << 3 | 4) * 50_000,
    "an unknown field in an unknown field": HEAD + field(7, GRAPH) + deep_field(3000),
    "a varint without end": HEAD + field(7, GRAPH) + b"\x08" + b"\xff" * 1000,
    "the largest varint": HEAD + field(7, GRAPH) + b"\x08" + b"\xff" * 9 + b"\x01",
    "a graph that claims 4 GB": HEAD + b"\x3a\xff\xff\xff\xff\x0f",
    "sequences in sequences": nested_types(40),
    "thousands of sequences in sequences": nested_types(5000),
    "many empty nodes": HEAD + field(7, GRAPH + field(1, b"") * MANY),
    "many empty weights": HEAD + field(7, GRAPH + field(5, b"") * MANY),
    "many empty inputs": HEAD + field(7, GRAPH + field(11, b"") * MANY),
    "many empty functions": HEAD + field(7, GRAPH) + field(25, b"") * MANY,
    "many empty properties": HEAD + field(7, GRAPH) + field(14, b"") * MANY,
    "many empty attributes": HEAD + field(7, field(1, RELU + field(5, b"") * MANY) + GRAPH),
    "a thousand nested Ifs": nested_ifs(1000),
}  # fmt: skip
FEW = {"nothing but groups that begin", "the largest varint", "a graph that claims 4 GB", "a thousand nested Ifs"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in BYTES])
def test_bytes_that_are_no_model(name: str, folder: Path) -> None:
    outcome = meet(write(folder, BYTES[name]), seconds=120)
    if name in ("a thousand nested Ifs", "thousands of sequences in sequences"):
        assert "nested" in outcome.convert


@pytest.mark.parametrize("depth", [5, 30])
def test_nested_ifs_that_are_no_bomb(depth: int, folder: Path) -> None:
    outcome = meet(write(folder, nested_ifs(depth)))
    assert not outcome.inspect and not outcome.convert


# --- tensors that claim what is not there ----------------------------------------------------------------------------

CLAIMS = {
    "2^62 elements": ([HUGE], b"\0" * 4),
    "2^31 times 2^31": ([1 << 31, 1 << 31], b"\0" * 4),
    "2^62 times nothing": ([HUGE, 0], b""),
    "2^80 elements": ([1 << 40, 1 << 40], b""),
    "too many dimensions": ([1] * 100, b"\0" * 4),
    "negative": ([-1, -1], b"\0" * 4),
}


@pytest.mark.parametrize("where", ["initializer", "Constant", "ConstantOfShape", "float_data", "string_data"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_tensors_that_claim_too_much(claim: str, where: str, folder: Path) -> None:
    dims, content = CLAIMS[claim]
    tensor = TensorProto(name="c", data_type=FLOAT, dims=dims, raw_data=content)
    if where.endswith("_data"):
        tensor.ClearField("raw_data")
        if where == "float_data":
            tensor.float_data.extend([1.0] if content else [])
        else:
            tensor.data_type = TensorProto.STRING
            tensor.string_data.extend([b"a"] if content else [])
    add = helper.make_node("Add", ["x", "c"], ["y"])
    if where == "Constant":
        made = model([helper.make_node("Constant", [], ["c"], value=tensor), add])
    elif where == "ConstantOfShape":
        shape = helper.make_node("Shape", ["x"], ["s"])
        made = model([shape, helper.make_node("ConstantOfShape", ["s"], ["c"], value=tensor), add])
    else:
        made = model([add], [tensor])
    source = write(folder, made)
    with pytest.raises(halfconv.InputError) as caught:
        halfconv.inspect(source)
    assert "'c'" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(halfconv.InputError):
        halfconv.convert(source)


@pytest.mark.parametrize("entries", [
    {"offset": "12801"}, {"offset": str(HUGE)}, {"offset": "9" * 30}, {"length": str(HUGE)}, {"length": "9" * 30}, {"offset": "-1"},
    {"length": "-1"}, {"length": "0"}, {"length": "1"}, {"offset": "1e3"}, {"offset": "٣"}, {"offset": "9" * 5000}, {"offset": ""},
    {"location": ""}, {"location": "."}, {"location": "x" * 5000}, {"location": "a\0b"}, {"location": "weights.bin/"},
    {"location": "//weights.bin"}, {"location": "weights.bin/../weights.bin"}, {"location": "..\\weights.bin"},
])  # fmt: skip
def test_external_data_at_a_place_that_is_none(entries: dict[str, str], folder: Path) -> None:
    source = save_external(folder)
    made = onnx.load(source, load_external_data=False)
    tensor = made.graph.initializer[0]
    held = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, text in held.items():
        tensor.external_data.add(key=key, value=text)
    onnx.save(made, source)
    before = state(folder)
    with pytest.raises(halfconv.InputError) as caught:
        halfconv.convert(source)
    assert "\n" not in str(caught.value) and "try:" in str(caught.value)
    assert len(str(caught.value)) < 20_000
    assert state(folder) == before


FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data")


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {0, TensorProto.STRING}))
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_typed_fields_hold_what_the_type_says(kind: int, extra: int, folder: Path) -> None:
    """Elements in a field of another type, or too many of them or too few, are refused; onnx writes them as they should be."""
    name = helper.tensor_dtype_to_field(kind)
    zeros = helper.make_tensor("c", kind, [4], np.zeros(4, helper.tensor_dtype_to_np_dtype(kind)))
    made = model([helper.make_node("Relu", ["x"], ["y"])], [zeros])
    if extra:
        found = getattr(made.graph.initializer[0], name)
        found[:] = [*found, 0] if extra > 0 else found[:-1]
        refused = [made]
    else:
        halfconv.inspect(write(folder, made))
        refused = []
        for other in set(FIELDS) - {name}:
            wrong = onnx.ModelProto.FromString(made.SerializeToString())
            tensor = wrong.graph.initializer[0]
            tensor.ClearField(name)
            getattr(tensor, other).extend([0] * 4)
            refused.append(wrong)
    for bad in refused:
        with pytest.raises(halfconv.InputError, match="tensor 'c'"):
            halfconv.inspect(write(folder, bad))


@pytest.mark.parametrize("dims", [[HUGE], [1 << 31, 1 << 31], [HUGE, 0]])
def test_external_tensors_that_claim_too_much(dims: list[int], folder: Path) -> None:
    source = save_external(folder)
    made = onnx.load(source, load_external_data=False)
    made.graph.initializer[0].dims[:] = dims
    onnx.save(made, source)
    with pytest.raises(halfconv.InputError):
        halfconv.convert(source)


def test_a_data_file_whose_name_is_no_text(folder: Path) -> None:
    source = save_external(folder)
    source.write_bytes(source.read_bytes().replace(b"weights.bin", b"\xffeights.bin"))
    with pytest.raises(halfconv.InputError, match="UTF-8"):
        halfconv.convert(source)


def test_a_pipe_in_place_of_weights(folder: Path) -> None:
    source = save_external(folder)
    (folder / "weights.bin").unlink()
    os.mkfifo(folder / "weights.bin")
    with pytest.raises(halfconv.InputError, match=r"weights\.bin"):
        halfconv.convert(source)


# --- small graphs that compute much ----------------------------------------------------------------------------------


def grown(op: str, size: int) -> onnx.ModelProto:
    """A graph that makes a huge tensor of constants, or of its input, and adds its largest element to an honest product."""
    node = helper.make_node
    made = {
        "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["c"], value=helper.make_tensor("v", FLOAT, [1], [0.5]))],
                            [int64("s", size)]),
        "Expand": ([node("Expand", ["w", "s"], ["c"])], [int64("s", size // 16, 4, 4)]),
        "Range": ([node("Range", ["a", "b", "d"], ["r"]), node("Cast", ["r"], ["c"], to=FLOAT)],
                  [int64("a", 0, scalar=True), int64("b", size, scalar=True), int64("d", 1, scalar=True)]),
        "Tile": ([node("Tile", ["x", "s"], ["c"])], [int64("s", size // 8, 1)]),
        "Pad": ([node("Pad", ["x", "s"], ["c"])], [int64("s", size // 8, 0, 0, 0)]),
        "OneHot": ([node("OneHot", ["k", "s", "v"], ["c"])],
                   [int64("k", 0), int64("s", size), helper.make_tensor("v", FLOAT, [2], [0.0, 1.0])]),
        "Resize": ([node("Unsqueeze", ["x", "s"], ["u"]), node("Resize", ["u", "", "f"], ["c"])],
                   [int64("s", 0, 1), helper.make_tensor("f", FLOAT, [4], [1.0, 1.0, 1e5, float(size) / 1e6])]),
    }  # fmt: skip
    nodes, tensors = made[op]
    rest = [node("ReduceMax", ["c"], ["r0"], keepdims=0), node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "r0"], ["y"])]
    return model([*nodes, *rest], [*tensors, WEIGHT])


@pytest.mark.parametrize(
    ("op", "size"),
    [
        pytest.param(op, size, marks=[] if op == "ConstantOfShape" or (op, size) == ("Range", HUGE) else pytest.mark.slow)
        for op in ("ConstantOfShape", "Expand", "Range", "Tile", "Pad", "OneHot", "Resize")
        for size in (1 << 34, HUGE)
    ],
)
def test_small_graphs_with_huge_values(op: str, size: int, folder: Path) -> None:
    """Neither folding nor the simulation makes them; the product beside them is converted."""
    outcome = meet(write(folder, grown(op, size)), seconds=120)
    assert not outcome.inspect
    assert any(words.startswith("not simulated") for words in outcome.warnings) or outcome.convert, outcome


@pytest.mark.parametrize("shape", [[HUGE], [1 << 31, 1 << 31], [1 << 40, 0], [1 << 29]])
def test_inputs_that_are_huge(shape: list[int], folder: Path) -> None:
    meet(write(folder, model([helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Sqrt", ["e"], ["y"])], shape=shape)))


def test_a_norm_over_an_axis_that_is_said_to_be_huge(folder: Path) -> None:
    """A gamma of ones must not be made of what a file declares."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"]), node("Pow", ["d", "two"], ["p"]),
        node("ReduceMean", ["p"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["s"]),
        node("Div", ["d", "s"], ["y"]),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.float32(1e-6), "eps")]
    for size in (1 << 31, HUGE):
        outcome = meet(write(folder, model(nodes, tensors, shape=[1, size])))
        assert not outcome.inspect
        (folder / "out.onnx").unlink(missing_ok=True)
        (folder / "out.onnx.profile.json").unlink(missing_ok=True)


@pytest.mark.parametrize("collected", [False, True])
def test_a_loop_of_2_to_the_62_iterations(collected: bool, folder: Path) -> None:
    """The simulation that nobody asked for is abandoned; the model is converted."""
    node = helper.make_node
    ends = [value("co", [], BOOL), value("vo", [2, 4]), *([value("so", [2, 4])] if collected else [])]
    inner = [node("MatMul", ["v", "w"], ["vo"]), node("Identity", ["c"], ["co"]), node("Identity", ["vo"], ["so"])]
    body = helper.make_graph(inner, "b", [value("i", [], INT64), value("c", [], BOOL), value("v", [2, 4])], ends)
    outputs = ["y", "z"] if collected else ["y"]
    made = model([node("Loop", ["n", "", "x"], outputs, body=body)], [int64("n", HUGE, scalar=True), WEIGHT], outputs=outputs)
    outcome = meet(write(folder, made), peak=6 << 30)
    assert not outcome.inspect and not outcome.convert
    assert any(words.startswith("not simulated") for words in outcome.warnings)
    assert outcome.seconds < 40


@pytest.mark.slow
def test_a_chain_of_100_000_nodes(folder: Path) -> None:
    count = 100_000
    nodes = [helper.make_node("Relu" if k % 2 else "Sigmoid", [f"v{k}" if k else "x"], [f"v{k + 1}"]) for k in range(count)]
    made = model(nodes, outputs=[f"v{count}"])
    outcome = meet(write(folder, made), seconds=600, peak=4 << 30)
    assert not outcome.inspect and not outcome.convert
    assert any("not simulated" in words for words in outcome.warnings)


# --- the runtime dies ------------------------------------------------------------------------------------------------


def test_a_model_that_ends_the_runtimes_process_does_not_end_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some models do: here, the process that runs sessions kills itself on the first run."""
    from halfconv.runtime import session_server

    server = folder.parent / "dying_server.py"
    code = Path(session_server.__file__).read_text("utf-8")
    server.write_text(code.replace("values: list[Any] = ", "os.abort()\n        values: list[Any] = "))
    monkeypatch.setattr(session_server, "__file__", str(server))
    source = write(folder, model([helper.make_node("MatMul", ["x", "w"], ["y"])], [WEIGHT]))
    result = halfconv.convert(source)
    assert any(words.startswith("not simulated") and "SIGABRT" in words for words in result.warnings)
    with pytest.raises(halfconv.InputError, match="SIGABRT"):
        halfconv.convert(source, samples=[{"x": np.ones((2, 4), np.float32)}])
    with pytest.raises(halfconv.InputError, match="SIGABRT"):
        halfconv.validate(source, result.output)
