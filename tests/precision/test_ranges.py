"""Ranges: measured inside the graph, they are what numpy finds in the tensors; saved, they come back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from halfconv.errors import InputError
from halfconv.precision.range_run import measure_ranges
from halfconv.precision.ranges import Ranges, ValueRange, load_ranges
from halfconv.samples import Sample, Samples
from tests.test_schemas import validate

HALF = {ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: ml_dtypes.bfloat16}


def samples(*feeds: dict[str, Any]) -> Samples:
    return Samples(lambda: iter([Sample(f"s{number}", entry) for number, entry in enumerate(feeds)]))


def expected(x: np.ndarray, to: ir.DataType) -> dict[str, float | None]:
    with np.errstate(all="ignore"):
        half = x.astype(HALF[to]).astype(np.float64)
    wide = x.astype(np.float64)
    finite = np.isfinite(wide)
    there = finite & (wide != 0)
    fits = finite & np.isfinite(half)
    size, errors = float((wide[fits] ** 2).sum()), half[fits] - wide[fits]
    return {
        "absmax": float(np.abs(wide[finite]).max(initial=0)),
        "smallest": float(np.abs(wide[there]).min()) if there.any() else None,
        "overflow": float((finite & np.isinf(half)).mean()),
        "flush": float((there & (half == 0)).mean()),
        "rounding": float(np.sqrt((errors**2).sum() / size)) if size else 0.0,
    }


MODEL = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 17]> main (float[n] x) => (float[n] y) { y = Identity(x) }')
FLOATS = st.floats(width=32, allow_subnormal=True) | st.sampled_from(
    [0.0, -0.0, 65504.0, 65519.9, 65520.0, 3e-8, 2.9e-8, 1e30, 6.1e-5]
).map(np.float32).map(float)


@settings(derandomize=True, deadline=None, max_examples=60)
@example(ir.DataType.FLOAT16, np.array([np.finfo(np.float32).max], np.float32))
@given(st.sampled_from(list(HALF)), arrays.arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_ranges_are_those_of_the_tensor(to: ir.DataType, x: np.ndarray) -> None:
    found = measure_ranges(MODEL, samples({"x": x}), to, "m")[0].values["x"]
    want = expected(x, to)
    assert found.elements == x.size
    for name, value in want.items():
        got = getattr(found, name)
        nothing = 1e-12 if name == "rounding" else 1e-38  # squares of scaled numbers are summed in FP32
        assert (got is None) == (value is None) and (value is None or got == pytest.approx(value, rel=1e-4, abs=nothing)), name


def test_samples_are_pooled() -> None:
    xs = [np.array([1, 2, 3], np.float32), np.array([1e5], np.float32), np.array([1e-9, 0], np.float32)]
    found = measure_ranges(MODEL, samples(*({"x": x} for x in xs)), ir.DataType.FLOAT16, "m")[0]
    assert (found.samples, found.kind, found.to) == (3, "given", "fp16")
    known = found.values["y"]
    assert known.elements == 6 and known.absmax == 1e5 and known.smallest == pytest.approx(1e-9)
    assert known.overflow == pytest.approx(1 / 6) and known.flush == pytest.approx(1 / 6)


BODIES = """<ir_version: 8, opset_import: ["" : 17]>
main (float[2] x, int64 n, bool flag) => (float[2] y, float[2] z) <float[2] two = {2, 2}, bool yes = {1}> {
    [loop] y = Loop (n, yes, x) <body = g (int64 i, bool go, float[2] s) => (bool on, float[2] t) {
        t = Mul(s, two) on = Identity(go)
    }>
    [branch] z = If (flag) <then_branch = a () => (float[2] p) { p = Neg(x) }, else_branch = b () => (float[2] q) { q = Exp(x) }>
}"""


def test_values_inside_bodies_are_measured_at_every_iteration() -> None:
    model = ir.from_proto(onnx.parser.parse_model(BODIES))
    feeds = [{"x": np.array([1, 3], np.float32), "n": np.array(count), "flag": np.array(True)} for count in (0, 3)]
    found = measure_ranges(model, samples(*feeds), ir.DataType.FLOAT16, "m")[0].values
    assert found["loop.body/t"].absmax == 24 and found["loop.body/t"].smallest == 2 and found["loop.body/t"].elements == 6
    assert found["loop.body/s"].absmax == 12
    assert found["branch.then_branch/p"].elements == 4
    assert "branch.else_branch/q" not in found  # never run
    assert model.graph.outputs[0].name == "y" and len(model.graph) == 2  # the model is left as it is


def test_saved_ranges_come_back(tmp_path: Path) -> None:
    known = {"a": ValueRange(4, 1.5, 0.25, 0.0, 0.5, 2e-4), "weiß/b": ValueRange(1, 0.0, None, 0.0, 0.0, 0.0)}
    ranges = Ranges(known, "fp16", 3, "given")
    file = tmp_path / "r.json"
    file.write_text(ranges.to_json(), "utf-8")
    assert load_ranges(file) == ranges
    validate("ranges", json.loads(file.read_text("utf-8")))
    assert Ranges({}, "bf16", 0, "synthetic") == load_back(tmp_path, Ranges({}, "bf16", 0, "synthetic"))


def load_back(folder: Path, ranges: Ranges) -> Ranges:
    (folder / "other.json").write_text(ranges.to_json(), "utf-8")
    return load_ranges(folder / "other.json")


HEAD = '{"schema_version": 1, "to": "fp16", "kind": "given", "samples": 1, "values": '
ROW = '{"elements": 1, "absmax": 1, "smallest": null, "overflow": 0, "flush": 0, "rounding": 0}'


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "\x00", '{"schema_version": 2}', HEAD + "{}}".replace("}}", "}"), HEAD.replace("fp16", "fp8") + "{}}",
        HEAD + '{"a": {}}}', HEAD + "[1]}", HEAD + '{"a": ' + ROW.replace('"absmax": 1', '"absmax": -1') + "}}",
        HEAD + '{"a": ' + ROW.replace('"rounding": 0', '"rounding": "x"') + "}}",
        HEAD + '{"a": ' + ROW.replace('"elements": 1', '"elements": true') + "}}",
        HEAD + '{"a": ' + ROW.replace('"flush": 0', '"flush": NaN') + "}}",
    ],
)  # fmt: skip
def test_damaged_files_say_so_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_ranges(file)
    assert str(file) in str(caught.value) and "try: " in str(caught.value) and "\n" not in str(caught.value)


MEMORY = """
import resource, sys
import numpy as np, onnx, onnx_ir as ir
from halfconv.precision.range_run import measure_ranges
from halfconv.samples import Sample, Samples
count, size = int(sys.argv[1]), 4_000_000
body = " ".join(f"v{i + 1} = {'Relu' if i % 2 else 'Sin'}(v{i})" for i in range(count))
graph = f"(float[n] v0) => (float y) {{ {body} y = ReduceSum <keepdims = 0> (v{count}) }}"
text = f'<ir_version: 8, opset_import: ["" : 17]>\\nmain {graph}'
x = np.ones(size, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = Samples(lambda: iter([Sample("s", {"v0": x})]))
measure_ranges(ir.from_proto(onnx.parser.parse_model(text)), samples, ir.DataType.FLOAT16, "m")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / x.nbytes)
"""


def test_no_tensor_is_kept_for_its_range() -> None:
    """Memory is that of some copies of one value, however many values there are."""
    taken = [
        float(subprocess.run([sys.executable, "-c", MEMORY, str(count)], check=True, capture_output=True, text=True).stdout)
        for count in (8, 64)
    ]
    assert taken[1] < taken[0] + 3 < 16
