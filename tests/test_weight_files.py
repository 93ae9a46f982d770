"""Files of weights: they hold what the plan says, equal weights once, in shards and formats as asked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv.graph.protos import graphs_of

RNG = np.random.default_rng(0)
#: Name -> weight; `tied` and `again` are the same numbers.
WEIGHTS = {
    "a": RNG.normal(0, 0.3, (64, 64)).astype(np.float32), "tied": RNG.normal(0, 0.3, (64, 64)).astype(np.float32),
    "b": RNG.normal(0, 0.3, (64, 64)).astype(np.float32), "bias": RNG.normal(0, 1, 64).astype(np.float32),
}  # fmt: skip
WEIGHTS["again"] = WEIGHTS["tied"].copy()


def source(folder: Path, *, external: bool = True, name: str = "m.onnx") -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h0"]), helper.make_node("MatMul", ["h0", "tied"], ["h1"]),
        helper.make_node("MatMul", ["h1", "b"], ["h2"]), helper.make_node("MatMul", ["h2", "again"], ["h3"]),
        helper.make_node("Add", ["h3", "bias"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 64]) for end in "xy"]
    weights = [numpy_helper.from_array(array, key) for key, array in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / name
    onnx.save(model, path, save_as_external_data=external, location=f"{name}.bin", size_threshold=100)
    return path


def held(model: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}


def places(model: Path) -> dict[str, tuple[str, int]]:
    """Weight -> (file, offset)."""
    found = {}
    for graph in graphs_of(onnx.load(model, load_external_data=False).graph):
        for tensor in graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                found[tensor.name] = entries["location"], int(entries["offset"])
    return found


def check(output: Path) -> None:
    import onnxruntime

    for name, array in held(output).items():
        assert array.dtype == np.float16 and np.array_equal(array, WEIGHTS[name].astype(np.float16)), name
    onnx.checker.check_model(output, full_check=True)
    onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"external_data": "always"}, {"external_data": "never"}, {"shard_size": 9000}, {"shard_size": 1},
     {"data_format": "safetensors"}, {"data_format": "safetensors", "shard_size": 9000}],
    ids=str,
)  # fmt: skip
def test_every_form_holds_the_same_weights(external: bool, options: dict[str, Any], tmp_path: Path) -> None:
    result = halfconv.convert(source(tmp_path, external=external), **options)
    check(result.output)
    wanted = options.get("external_data", "auto")
    outside = wanted == "always" or (wanted == "auto" and (external or bool(options)))
    assert bool(places(result.output)) == outside
    others = {path.name for path in tmp_path.iterdir()} - {"m.onnx", "m.onnx.bin", "m.fp16.onnx", "m.fp16.onnx.profile.json"}
    assert others == {file for file, _ in places(result.output).values()}


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    result = halfconv.convert(source(tmp_path))
    found = places(result.output)
    assert found["tied"] == found["again"] and len({*found.values()}) == len(found) - 1
    (file,) = {file for file, _ in found.values()}
    assert (tmp_path / file).stat().st_size < 4 * 64 * 64 * 2


def test_shards_keep_their_size(tmp_path: Path) -> None:
    result = halfconv.convert(source(tmp_path), shard_size=2 * 64 * 64 + 100)
    files = sorted({file for file, _ in places(result.output).values()})
    assert [name[-20:] for name in files] == [f"-{n:05}-of-00003.data" for n in (1, 2, 3)]
    assert all((tmp_path / file).stat().st_size <= 2 * 64 * 64 + 100 for file in files)
    again = halfconv.convert(source(tmp_path))
    left = {path.name for path in tmp_path.glob("m.fp16.*.data")}
    assert left == {file for file, _ in places(again.output).values()}, "stale shards are removed"


def test_a_safetensors_file_says_what_it_holds(tmp_path: Path) -> None:
    result = halfconv.convert(source(tmp_path), data_format="safetensors")
    ((name, _), *_) = places(result.output).values()
    content = (tmp_path / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 4096 == 0 and header.pop("__metadata__") == {"format": "onnx"}
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(content) - 8 - length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends)), "no gaps"
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(content[8 + length + begin : 8 + length + end], np.float16).reshape(entry["shape"])
        assert entry["dtype"] == "F16" and np.array_equal(array, WEIGHTS[key].astype(np.float16))


def test_weights_can_come_from_a_safetensors_file(tmp_path: Path) -> None:
    first = halfconv.convert(source(tmp_path), data_format="safetensors", block_ops=["MatMul", "Add"]).output  # FP32 throughout
    model = onnx.load(first, load_external_data=False)
    del model.metadata_props[:]  # which say that it was converted
    onnx.save(model, first)
    second = halfconv.convert(first, tmp_path / "half.onnx")
    check(second.output)


@pytest.mark.parametrize(
    "options",
    [{"shard_size": 0}, {"shard_size": 100, "external_data": "never"}, {"data_format": "zip"},
     {"data_format": "safetensors", "external_data": "never"}],
    ids=str,
)  # fmt: skip
def test_contradictions_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    path = source(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(halfconv.UsageError, match="try: "):
        halfconv.convert(path, **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("500kb", 500_000)])
def test_sizes_have_units(text: str, size: int) -> None:
    from halfconv.terminal import Size

    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "4 TB", "0", "1e9"])
def test_what_is_no_size_says_so(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from halfconv.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source(tmp_path)), "--shard-size", text])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "try: 500MB" in said
