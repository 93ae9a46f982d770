"""Damage small models at random, and convert them: what the fuzz test and longer runs share.

``python -m tests.fuzzing SECONDS [SEED]`` runs for so long, each model in a process that may die, and prints what it found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[1]
#: Seconds that one model may take.
LIMIT = 90.0
#: Numbers that code tends to get wrong.
ODD = (0, 1, -1, 2, 7, 127, 128, 255, 65504, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))


def _value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(graph: onnx.GraphProto, opset: int, **more: Any) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


def _weight(name: str, *shape: int) -> TensorProto:
    numbers = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(numbers, name)


@lru_cache(maxsize=1)
def seeds() -> tuple[bytes, ...]:
    """Small models of different kinds: layers, a convolution, control flow, functions, weights outside, positions, sequences."""
    node = helper.make_node
    dense = helper.make_graph(
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Softmax", ["c"], ["y"], axis=-1)],
        "dense", [_value("x", ["n", 4])], [_value("y", ["n", 4])], [_weight("w", 4, 4), _weight("b", 4)],
    )  # fmt: skip
    norm = helper.make_graph(
        [
            node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"]), node("Pow", ["d", "two"], ["p"]),
            node("ReduceMean", ["p"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["s"]),
            node("Div", ["d", "s"], ["q"]), node("Mul", ["q", "g"], ["y"]),
        ],
        "norm", [_value("x", [2, 8])], [_value("y", [2, 8])],
        [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.float32(1e-6), "eps"), _weight("g", 8)],
    )  # fmt: skip
    conv = helper.make_graph(
        [
            node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c", "b", "b", "b", "v"], ["n"]), node("Relu", ["n"], ["r"]),
            node("GlobalAveragePool", ["r"], ["g"]), node("Flatten", ["g"], ["y"]),
        ],
        "conv", [_value("x", [1, 2, 6, 6])], [_value("y", [1, 3])],
        [_weight("w", 3, 2, 3, 3), _weight("b", 3), numpy_helper.from_array(np.ones(3, np.float32), "v")],
    )  # fmt: skip
    then = helper.make_graph([node("Mul", ["x", "w"], ["t"])], "then", [], [_value("t", [2, 3])])
    other = helper.make_graph([node("Neg", ["x"], ["o"])], "else", [], [_value("o", [2, 3])])
    body = helper.make_graph(
        [node("Add", ["v", "w"], ["vo"]), node("Identity", ["k"], ["ko"]), node("Exp", ["vo"], ["so"])], "body",
        [_value("i", [], TensorProto.INT64), _value("k", [], TensorProto.BOOL), _value("v", [2, 3])],
        [_value("ko", [], TensorProto.BOOL), _value("vo", [2, 3]), _value("so", [2, 3])],
    )  # fmt: skip
    flow = helper.make_graph(
        [
            node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"]),
            node("If", ["c"], ["z"], then_branch=then, else_branch=other), node("Loop", ["times", "", "z"], ["y", "ys"], body=body),
        ],
        "flow", [_value("x", [2, 3])], [_value("y", [2, 3]), _value("ys", [3, 2, 3])],
        [_weight("w", 2, 3), numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.int64(3), "times")],
    )  # fmt: skip
    shapes = helper.make_graph(
        [
            node("Gather", ["table", "ids"], ["e"]), node("Shape", ["ids"], ["sh"]), node("ConstantOfShape", ["sh"], ["f"]),
            node("Cast", ["f"], ["g"], to=TensorProto.INT64), node("Unsqueeze", ["g", "ax"], ["h"]),
            node("Cast", ["h"], ["hf"], to=TensorProto.FLOAT), node("Add", ["e", "hf"], ["k"]),
            node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32(0.5))), node("Mul", ["k", "half"], ["y"]),
        ],
        "shapes", [_value("ids", ["n"], TensorProto.INT64)], [_value("y", ["n", 4])],
        [_weight("table", 10, 4), numpy_helper.from_array(np.array([1]), "ax")],
    )  # fmt: skip
    called = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )  # fmt: skip
    calls = helper.make_graph(
        [node("Twice", ["x"], ["t"], domain="own"), node("Tanh", ["t"], ["y"])], "calls", [_value("x", [3])], [_value("y", [3])]
    )
    with_function = _model(calls, 17, functions=[called])
    with_function.opset_import.add(domain="own", version=1)
    outside = _model(dense, 13)
    for tensor, offset in zip(outside.graph.initializer, (0, 64), strict=True):
        for key, value in {"location": "weights.bin", "offset": offset, "length": len(tensor.raw_data)}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    lstm = helper.make_graph(
        [node("LSTM", ["x", "w", "r"], ["y", "", "c"], hidden_size=2)], "lstm", [_value("x", [3, 1, 2])],
        [_value("y", [3, 1, 1, 2]), _value("c", [1, 1, 2])], [_weight("w", 1, 8, 2), _weight("r", 1, 8, 2)],
    )  # fmt: skip
    made = [_model(dense, 17), _model(norm, 13), _model(conv, 11), _model(flow, 17), _model(shapes, 21), with_function, outside,
            _model(lstm, 14)]  # fmt: skip
    return tuple(model.SerializeToString() for model in made)


def damaged(r: random.Random) -> bytes:
    """Damage one of the models, in its bytes or in its fields."""
    content = r.choice(seeds())
    if r.random() < 0.5:
        model = onnx.ModelProto.FromString(content)
        for _ in range(r.choice((1, 1, 2, 3))):
            try:
                _change(r, model)
            except (ValueError, TypeError, OverflowError, IndexError):
                continue  # the library refuses that change
        return model.SerializeToString()
    data = bytearray(content)
    for _ in range(r.choice((1, 1, 2, 3, 8))):
        at = r.randrange(len(data)) if data else 0
        kind = r.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << r.randrange(8)
        elif kind == 1 and data:
            data[at] = r.choice((0, 1, 2, 7, 10, 11, 16, 127, 128, 255))
        elif kind == 2:
            del data[at : at + r.choice((1, 2, 4, 30))]
        elif kind == 3:
            data[at:at] = bytes(r.randrange(256) for _ in range(r.choice((1, 2, 4, 10))))
        elif kind == 4:
            end = at + r.choice((1, 4, 20, 60))
            data[at:at] = data[at:end]
        else:
            del data[at:]
    return bytes(data)


def _change(r: random.Random, model: onnx.ModelProto) -> None:
    """Change one field."""
    graphs = [model.graph]
    for node in model.graph.node:
        graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    graph = r.choice(graphs)
    node = r.choice(graph.node) if graph.node else None
    names = [*(v.name for v in graph.input), *(t.name for t in graph.initializer), *(o for n in graph.node for o in n.output), ""]
    kind = r.randrange(12)
    if kind == 0 and node is not None:
        node.op_type = r.choice([schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain])
    elif kind == 1 and node is not None and node.input:
        node.input[r.randrange(len(node.input))] = r.choice(names)
    elif kind == 2 and node is not None:
        (node.input if r.random() < 0.5 else node.output).append(r.choice(names))
    elif kind == 3 and node is not None:
        del (node.input if r.random() < 0.5 else node.output)[-1:]
    elif kind == 4 and node is not None and node.attribute:
        attribute = r.choice(node.attribute)
        if attribute.type == onnx.AttributeProto.INT:
            attribute.i = r.choice(ODD)
        elif attribute.type == onnx.AttributeProto.INTS:
            attribute.ints[:] = [r.choice(ODD) for _ in range(r.choice((0, 1, len(attribute.ints), 5)))]
        else:
            attribute.type = r.randrange(15)
    elif kind == 5 and node is not None:
        node.attribute.append(helper.make_attribute(r.choice(("axis", "to", "axes", "perm", "epsilon")), r.choice(ODD)))
    elif kind == 6 and graph.initializer:
        tensor = r.choice(graph.initializer)
        tensor.dims[:] = [r.choice(ODD) for _ in range(r.choice((0, 1, len(tensor.dims), 5)))]
        if r.random() < 0.7:  # with the bytes for it
            size = int(np.prod([float(dim) for dim in tensor.dims]))
            tensor.raw_data = b"\x3f" * (4 * size if 0 <= size < 1000 else 0)
    elif kind == 7 and graph.initializer:
        r.choice(graph.initializer).data_type = r.randrange(-1, 26)
    elif kind == 8:
        value = r.choice([*graph.input, *graph.output])
        value.type.tensor_type.elem_type = r.randrange(0, 24)
    elif kind == 9:
        value = r.choice([*graph.input, *graph.output])
        del value.type.tensor_type.shape.dim[:]
        for _ in range(r.randrange(5)):
            value.type.tensor_type.shape.dim.add(dim_value=r.choice(ODD))
    elif kind == 10:
        r.choice(model.opset_import).version = r.choice((1, 6, 7, 9, 11, 13, 17, 18, 21, 22, 23, 24, 25, 99))
    elif kind == 11 and node is not None:
        graph.node.remove(node) if r.random() < 0.5 else graph.node.append(node)


def attempt(content: bytes, *, check: bool = True) -> str:
    """Inspect and convert what may be a model; an exception outside halfconv's own comes through.

    Returns:
        How it ended, in a word or two.

    Raises:
        AssertionError: A message has more lines than one, or a file was left behind.
    """
    import halfconv

    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        folder = Path(made)
        source = folder / "model.onnx"
        source.write_bytes(content)
        (folder / "weights.bin").write_bytes(b"\x3f" * 80)
        ends = []
        for call in (lambda: halfconv.inspect(source), lambda: halfconv.convert(source, folder / "out.onnx", check=check)):
            try:
                call()
                ends.append("done")
            except halfconv.HalfconvError as error:
                assert "\n" not in str(error), f"not one line: {error}"
                ends.append(type(error).__name__)
        found = {path.name for path in folder.iterdir()}
        wanted = {"model.onnx", "weights.bin"}
        if ends[1] == "done":
            wanted |= {"out.onnx", "out.onnx.profile.json"}
            found = {name for name in found if not (name.startswith("out.") and name.endswith(".data"))}
        assert found == wanted, f"left behind: {found ^ wanted}"
        assert source.read_bytes() == content
    return " ".join(ends)


class Victim:
    """A process that attempts one model after the other, and may die of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.mkdtemp(prefix="fuzz-victim-")

    def attempt(self, content: bytes) -> tuple[bool, str]:
        """Attempt a model.

        Returns:
            Whether it ended as it should, and how.
        """
        if self._process is None:
            code = "import sys; from tests import fuzzing; fuzzing.serve()"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
                env={**os.environ, "TMPDIR": self._folder},
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(LIMIT, process.kill)
        late.start()
        try:
            process.stdin.write(len(content).to_bytes(8, "little") + content)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            late.cancel()
        if not line:
            code = process.wait()
            self.close()
            for path in Path(self._folder).glob("fuzz-*"):
                shutil.rmtree(path)
            return False, f"the process died or took over {LIMIT:g} s (exit code {code})"
        ok, words = json.loads(line)
        return ok, words

    def leftovers(self) -> list[str]:
        """Names of temporary files that are still there, but for one that ONNX Runtime writes."""
        return [path.name for path in Path(self._folder).iterdir() if path.name != ".ses"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End the process, and remove its temporary files."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def serve() -> None:
    """Attempt what comes on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while len(head := sys.stdin.buffer.read(8)) == 8:
        content = sys.stdin.buffer.read(int.from_bytes(head, "little"))
        try:
            ok, words = True, attempt(content)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-4:]
            places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
            ok, words = False, f"{type(error).__name__}: {error} ({places})"
        answers.write(json.dumps([ok, words]) + "\n")
        answers.flush()


def main() -> None:
    """Run for some seconds, and say what was found; models that failed are kept in a folder."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    kept = Path(tempfile.gettempdir()) / f"halfconv-fuzz-{seed}"
    kept.mkdir(exist_ok=True)
    r, victim = random.Random(seed), Victim()
    ends: Counter[str] = Counter()
    slowest, begun = 0.0, time.monotonic()
    while time.monotonic() - begun < seconds:
        content = damaged(r)
        at = time.monotonic()
        ok, words = victim.attempt(content)
        slowest = max(slowest, time.monotonic() - at)
        ends[words if ok else f"FAILED {words[:300]}"] += 1
        if not ok:
            name = kept / f"{hashlib.sha256(content).hexdigest()[:12]}.onnx"
            name.write_bytes(content)
            print(f"{name}: {words}", flush=True)
    left = victim.leftovers()
    victim.remove()
    print(f"{sum(ends.values()):,} models in {time.monotonic() - begun:.0f} s; the slowest took {slowest:.1f} s")
    for words, count in ends.most_common():
        print(f"{count:7,}  {words}")
    print(f"temporary files left: {left}")


if __name__ == "__main__":
    main()
