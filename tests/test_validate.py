"""`halfconv.validate` as a library: its verdict on real and on made-up models, and what it says went wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

import halfconv
from halfconv.errors import InputError
from tests import zoo
from tests.labelled import labelled

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SCHEMA = json.loads((Path(halfconv.__file__).parent / "schemas" / "validate.schema.json").read_text("utf-8"))


# Making models


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 10,
    **more: Any,
) -> Path:
    """Write a model; inputs and outputs are name -> (element type, shape), or a whole TypeProto."""
    infos = [
        [
            helper.make_value_info(name, kind) if isinstance(kind, onnx.TypeProto) else helper.make_tensor_value_info(name, *kind)
            for name, kind in side.items()
        ]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", *infos, constants, **more)
    opsets = [helper.make_opsetid("", opset)] + [
        helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes if node.domain})
    ]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def half_of(path: Path, to: Path | None = None, **options: Any) -> Path:
    """Convert a model with ONNX Runtime's converter, blocking nothing unless told."""
    options = {"keep_io_types": True, "op_block_list": [], **options}
    target = to or path.with_suffix(".half.onnx")
    onnx.save(convert_float_to_float16(onnx.load(path), **options), target)
    return target


def whole_half(path: Path, kind: int = HALF) -> Path:
    """Retype a model, inputs and outputs included, as hand-written converters do."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = kind
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    target = path.with_suffix(f".{kind}.onnx")
    onnx.save(model, target)
    return target


Unary = Callable[..., tuple[Path, Path]]


@pytest.fixture
def chain(folder: Path) -> Unary:
    """Make x → nodes → y, and its half."""

    def make(nodes: Sequence[onnx.NodeProto], shape: Sequence[Any] = ("n", 4), **weights: np.ndarray) -> tuple[Path, Path]:
        path = save(folder / "m.onnx", nodes, {"x": (FLOAT, list(shape))}, {"y": (FLOAT, None)}, weights)
        return path, half_of(path)

    return make


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), f"{op.lower()}_{outputs.split()[0]}", **attributes)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def to_json(report: halfconv.DriftReport) -> dict[str, Any]:
    """The report as its JSON, checked against the schema."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: clean(entry) for key, entry in value.items()}
        return [clean(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    content: dict[str, Any] = clean(report.to_dict())
    jsonschema.validate(content, SCHEMA)
    return content


# Real models


@pytest.fixture(scope="module")
def magika(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("magika") / "peer.onnx"
    onnx.save(convert_float_to_float16(onnx.load(zoo.model("magika")), keep_io_types=True), path)
    return zoo.model("magika"), path


@pytest.mark.slow
def test_magika_of_onnxruntimes_converter_fails_with_no_file_right(magika: tuple[Path, Path]) -> None:
    samples = labelled("magika")
    report = halfconv.validate(*magika, samples=samples)
    assert not report.passed
    assert report.on == "simulate"
    (accuracy,) = report.metrics
    assert accuracy.name == "accuracy"
    assert accuracy.reference == pytest.approx(208 / 228)
    assert accuracy.candidate == 0.0
    assert report.outputs[0].measures.rel_l2 == pytest.approx(1.03, abs=0.02)
    assert "overflows" in report.first_bad
    assert "> 65,504" in report.first_bad
    assert "(value 'jax2tf" in report.first_bad
    to_json(report)


@pytest.mark.slow
def test_magika_passes_on_the_cpu_provider_which_hides_rounding(magika: tuple[Path, Path]) -> None:
    report = halfconv.validate(*magika, samples=labelled("magika"), on="cpu")
    assert report.passed
    assert report.on == "cpu"
    assert report.metrics[0].candidate == pytest.approx(208 / 228)
    assert any("CPU provider" in warning and "can fail on a GPU" in warning for warning in report.warnings)
    assert report.first_bad == ""


@pytest.mark.slow
def test_magika_of_halfconv_passes(folder: Path) -> None:
    result = halfconv.convert(zoo.model("magika"), folder / "half.onnx")
    report = halfconv.validate(zoo.model("magika"), result.output, samples=labelled("magika"), tolerance={"accuracy": 0.0})
    assert report.passed
    assert report.metrics[0].candidate == pytest.approx(208 / 228)
    assert report.first_bad == ""


@pytest.mark.slow
def test_dnsmos_of_onnxruntimes_converter_fails_with_nan(folder: Path) -> None:
    path = folder / "peer.onnx"
    onnx.save(convert_float_to_float16(onnx.load(zoo.model("dnsmos_sig_bak_ovr")), keep_io_types=True), path)
    report = halfconv.validate(zoo.model("dnsmos_sig_bak_ovr"), path, samples=zoo.samples("dnsmos_sig_bak_ovr")[:3])
    assert not report.passed
    assert report.outputs[0].measures.new_nan > 0
    assert any("new NaN" in sentence for sentence in report.outputs[0].failures)
    assert "logarithm" in report.first_bad
    assert to_json(report)["outputs"][0]["rel_l2"] is None


def layernorm(path: Path) -> Path:
    return save(
        path,
        [
            node("ReduceMean", "x", "mean", axes=[-1]),
            node("Sub", "x mean", "centered"),
            node("Pow", "centered two", "square"),
            node("ReduceMean", "square", "variance", axes=[-1]),
            node("Add", "variance eps", "padded"),
            node("Sqrt", "padded", "deviation"),
            node("Div", "centered deviation", "y"),
        ],
        {"x": (FLOAT, ["n", 64])},
        {"y": (FLOAT, ["n", 64])},
        {"two": scalar(2), "eps": scalar(1e-5)},
    )


def test_a_decomposed_layernorm_of_large_inputs_collapses_to_zeros(folder: Path) -> None:
    reference = layernorm(folder / "norm.onnx")
    x = (np.random.default_rng(0).standard_normal((32, 64)) * 300).astype(np.float32)
    report = halfconv.validate(reference, half_of(reference), samples={"x": x}, layers=True)
    assert not report.passed
    measures = report.outputs[0].measures
    assert measures.zeroed == 1.0
    assert measures.new_nan == measures.new_inf == 0
    assert "zeroed 100 % > 50 %" in report.outputs[0].failures
    assert "pow_square overflows" in report.first_bad
    assert "'square'" in report.first_bad
    last = {layer.value: layer for layer in report.layers or ()}["y"]
    assert "gives zeros for 100%" in last.verdict


SELF = tuple(key for key in zoo.KEYS if not key.startswith("light_"))


@pytest.mark.parametrize("key", [key if key in SELF else pytest.param(key, marks=pytest.mark.slow) for key in zoo.KEYS])
def test_a_model_against_itself_does_not_drift(key: str) -> None:
    report = halfconv.validate(zoo.model(key), zoo.model(key), samples=zoo.samples(key)[:2])
    assert report.passed
    assert report.first_bad == ""
    for output in report.outputs:
        assert output.elements > 0
        assert output.measures.rel_l2 in (None, 0.0)
        assert output.measures.max_abs in (None, 0.0)
        assert output.measures.agreement in (None, 1.0)
        assert (output.measures.rel_l2 is None) != (output.measures.agreement is None) or output.dtype.startswith("float")
    to_json(report)


@pytest.mark.parametrize("key", ["skl_logreg_zipmap", "skl_knn_scan", "skl_rf_digits"])
def test_integers_strings_and_maps_are_compared(key: str) -> None:
    report = halfconv.validate(zoo.model(key), zoo.model(key), samples=zoo.samples(key)[:1])
    assert {output.measures.agreement for output in report.outputs} >= {1.0}
    assert all(output.elements for output in report.outputs)


# The values inside


def layers_of(report: halfconv.DriftReport) -> dict[str, Any]:
    assert report.layers is not None
    return {layer.value: layer for layer in report.layers}


def test_an_overflow_inside_is_named_with_its_reach(chain: Unary) -> None:
    models = chain(
        [node("Relu", "x", "r"), node("Mul", "r big", "m"), node("Div", "m big", "y")],
        big=scalar(1000),
    )
    report = halfconv.validate(*models, samples={"x": np.full((2, 4), 100, np.float32)}, layers=True)
    assert not report.passed
    assert report.first_bad == "mul_m overflows: its result reaches 100,000 (> 65,504) in FP32 (value 'm')"
    found = layers_of(report)
    assert list(found) == ["r", "m", "y"]
    assert found["r"].verdict == "" and found["r"].rel_l2 == 0 and found["r"].reference_absmax == 100
    assert found["m"].new_inf == 8 and found["m"].reference_absmax == 100_000
    assert found["y"].new_inf == 8 and "input 'm' already holds such" in found["y"].verdict
    assert report.outputs[0].measures.new_inf == 8


def test_an_underflow_inside_is_named(chain: Unary) -> None:
    models = chain([node("Mul", "x small", "m"), node("Mul", "m large", "y")], small=scalar(1e-4), large=scalar(1e4))
    report = halfconv.validate(*models, samples={"x": np.full((2, 4), 1e-4, np.float32)}, layers=True)
    assert not report.passed
    assert report.outputs[0].measures.zeroed == 1
    assert report.first_bad.startswith("mul_m underflows: its largest result, 1e-08")


def test_a_zero_collapse_inside_is_named(chain: Unary) -> None:
    models = chain([node("Add", "x big", "a"), node("Sub", "a big", "y")], big=scalar(4096))
    report = halfconv.validate(*models, samples={"x": np.full((2, 4), 0.5, np.float32)}, layers=True)
    assert not report.passed
    assert report.first_bad == "sub_y gives zeros for 100% of its results, which reach 0.5 in FP32 (value 'y')"


def test_a_division_by_what_half_rounds_to_zero_is_explained(chain: Unary) -> None:
    models = chain([node("Mul", "x small", "m"), node("Div", "one m", "y")], small=scalar(1e-5), one=scalar(1e-6))
    report = halfconv.validate(*models, samples={"x": np.full((2, 4), 1e-3, np.float32)}, layers=True)
    assert not report.passed
    assert report.outputs[0].measures.new_inf == 8
    assert "mul_m underflows" in report.first_bad or "rounds what it divides by to 0" in report.first_bad
    assert "rounds what it divides by to 0" in layers_of(report)["y"].verdict


def test_measures_inside_agree_with_numpy(chain: Unary) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((8, 8)).astype(np.float32)
    models = chain([node("MatMul", "x w", "h"), node("Tanh", "h", "t"), node("Exp", "t", "y")], ("n", 8), w=w)
    xs = [rng.standard_normal((n, 8)).astype(np.float32) for n in (1, 5, 3)]
    report = halfconv.validate(*models, samples=[{"x": x} for x in xs], layers=True)
    found = layers_of(report)
    x, f = np.concatenate(xs), np.float32

    def half(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float16).astype(f)

    want = {"h": x @ w, "t": np.tanh(x @ w), "y": np.exp(np.tanh(x @ w))}
    h = half(half(x) @ half(w))
    t = half(np.tanh(h))
    got = {"h": h, "t": t, "y": half(np.exp(t))}
    drift = {name: float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])) for name in want}
    for name, layer in found.items():
        assert layer.rel_l2 == pytest.approx(drift[name], rel=0.05)
        assert layer.reference_absmax == pytest.approx(np.abs(want[name]).max(), rel=1e-5)
        assert layer.candidate_absmax == pytest.approx(np.abs(got[name]).max(), rel=1e-3)
        assert layer.dtype == "float16"
    assert found["h"].added == pytest.approx(found["h"].rel_l2)
    assert found["t"].added == pytest.approx(max(0.0, found["t"].rel_l2 - found["h"].rel_l2))
    assert found["y"].added == pytest.approx(max(0.0, found["y"].rel_l2 - found["t"].rel_l2))
    to_json(report)


def test_the_worst_sample_is_where_a_failure_is_located(chain: Unary) -> None:
    models = chain([node("Mul", "x big", "m"), node("Div", "m big", "y")], big=scalar(1000))
    fine, bad = np.ones((1, 4), np.float32), np.full((1, 4), 80, np.float32)
    report = halfconv.validate(*models, samples=[{"x": fine}] * 9 + [{"x": bad}] + [{"x": fine}] * 5)
    assert "reaches 80,000" in report.first_bad
    assert report.layers is None
    once = halfconv.validate(*models, samples=({"x": x} for x in (fine, fine, bad, fine)))
    assert "reaches 80,000" in once.first_bad
    assert once.samples == 4


def test_samples_that_can_be_read_once_give_the_layers_of_the_worst(chain: Unary) -> None:
    models = chain([node("Mul", "x big", "m"), node("Div", "m big", "y")], big=scalar(1000))
    report = halfconv.validate(*models, samples=({"x": np.full((1, 4), v, np.float32)} for v in (1, 80, 2)), layers=True)
    assert layers_of(report)["m"].reference_absmax == 80_000
    assert any("read only once" in warning for warning in report.warnings)


def test_the_value_that_fails_late_is_found_among_many_that_drift(folder: Path) -> None:
    """More values drift than are looked at closely first, and only the last of them goes bad."""
    nodes = [node("Add", "x big", "v0")]
    nodes += [node("Mul" if i % 2 else "Div", f"v{i} two", f"v{i + 1}") for i in range(40)]
    nodes += [node("Sub", "v40 big", "d"), node("Mul", "d thousand", "m"), node("Mul", "m thousand", "y")]
    weights = {"big": scalar(1000), "two": scalar(2), "thousand": scalar(1000)}
    path = save(folder / "m.onnx", nodes, {"x": (FLOAT, [4])}, {"y": (FLOAT, [4])}, weights)
    report = halfconv.validate(path, half_of(path), samples={"x": np.array([0.3, 0.7, 1.2, 0.1], np.float32)})
    assert not report.passed
    assert report.first_bad


@pytest.mark.slow
def test_the_scope_of_an_exported_module_is_told(folder: Path) -> None:
    reference = zoo.model("minilm_dynamo")
    result = halfconv.convert(reference, folder / "half.onnx")
    report = halfconv.validate(reference, result.output, samples=zoo.samples("minilm_dynamo")[:1], layers=True)
    assert report.passed
    scopes = {layer.scope for layer in report.layers or ()}
    assert any("layer.0" in scope for scope in scopes)
    assert all("\n" not in scope for scope in scopes)


@pytest.mark.parametrize("name", ["[bold]x[/]", "a\x1b[31mb", "née/층.0:out", "tab\there", "{brace}%s"])
def test_values_of_any_name_are_compared(folder: Path, name: str) -> None:
    nodes = [helper.make_node("Mul", ["x", "big"], [name], name), helper.make_node("Div", [name, "big"], ["y"], "")]
    path = save(folder / "m.onnx", nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, {"big": scalar(1000)})
    report = halfconv.validate(path, half_of(path), samples={"x": np.array([100, 1], np.float32)}, layers=True)
    assert name in layers_of(report)
    assert name in report.first_bad
    to_json(report)


def test_a_passing_model_has_no_first_bad_value(chain: Unary) -> None:
    report = halfconv.validate(*chain([node("Tanh", "x", "y")]), layers=True)
    assert report.passed and report.first_bad == ""


def test_an_overflow_that_no_output_shows_is_no_failure(chain: Unary) -> None:
    """As the mask of an attention, or the inside of a Tanh."""
    models = chain([node("Mul", "x big", "m"), node("Tanh", "m", "y")], big=scalar(1000))
    report = halfconv.validate(*models, samples={"x": np.full((2, 4), 100, np.float32)}, layers=True)
    assert report.passed and report.first_bad == ""
    assert "overflows" in layers_of(report)["m"].verdict


# Bounds and metrics


def test_bounds_of_all_and_of_one_output(folder: Path) -> None:
    path = save(
        folder / "m.onnx", [node("Tanh", "x", "a"), node("Exp", "x", "b")], {"x": (FLOAT, [64])},
        {"a": (FLOAT, [64]), "b": (FLOAT, [64])},
    )  # fmt: skip
    half = half_of(path)
    report = halfconv.validate(path, half, tolerance={"rel_l2": 1.0, "rel_l2@b": 1e-9, "cosine": 0.9})
    assert [output.passed for output in report.outputs] == [True, False]
    assert report.tolerance["rel_l2@b"] == 1e-9
    assert report.outputs[1].failures[0].startswith("rel_l2 ")
    assert not halfconv.validate(path, half, tolerance=["max_abs=0@a"]).passed
    assert halfconv.validate(path, half, tolerance="rel_l2=1e-2").passed


def test_a_users_metric_is_a_mean_and_accuracy_a_share_of_rows(folder: Path) -> None:
    path = save(folder / "m.onnx", [node("Identity", "x", "y")], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])})
    rows = np.array([[0, 1], [0, 1], [0, 1], [0, 1]], np.float32)
    samples = [{"x": rows[:3], "labels": np.array([1, 1, 1])}, {"x": rows[:1], "labels": np.array([0])}]

    def mean(outputs: Any, extras: Any) -> float:
        return float(outputs["y"].mean()) * len(extras["labels"])

    report = halfconv.validate(path, path, samples=samples, metrics=[mean, "accuracy"], tolerance={"accuracy": 0.1, "mean": 1})
    assert {metric.name: metric.reference for metric in report.metrics} == {"mean": 1.0, "accuracy": 0.75}
    assert report.passed
    with pytest.raises(InputError, match=r"metric mean fails on sample 1: ZeroDivisionError"):
        halfconv.validate(path, path, samples=samples, metrics={"mean": lambda o, e: 1 / (len(e["labels"]) - 1)})


def test_labels_that_fit_no_output_are_ignored_unless_accuracy_is_bounded(folder: Path) -> None:
    path = save(folder / "m.onnx", [node("Identity", "x", "y")], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])})
    samples = [{"x": np.zeros((3, 2), np.float32), "labels": np.zeros(5)}]
    report = halfconv.validate(path, path, samples=iter(samples))
    assert report.passed and report.metrics == ()
    with pytest.raises(InputError, match="no output has 5 rows"):
        halfconv.validate(path, path, samples=samples, tolerance={"accuracy": 0.0})
    with pytest.raises(InputError, match="no output has 5 rows"):
        halfconv.validate(path, path, samples=samples, metrics=["accuracy"])


def test_a_metric_that_is_nan_fails_where_it_is_bounded(chain: Unary) -> None:
    models = chain([node("Tanh", "x", "y")])
    report = halfconv.validate(*models, metrics={"q": lambda o, e: math.nan})
    assert report.passed
    assert to_json(report)["metrics"]["q"]["drop"] is None
    assert not halfconv.validate(*models, metrics={"q": lambda o, e: math.nan}, tolerance={"q": 1}).passed


# Models of all kinds


@pytest.mark.parametrize(("ours", "theirs"), [(9, 17), (11, 18), (13, 21), (17, 18), (17, 22), (22, 17)])
def test_values_inside_are_compared_across_opsets(folder: Path, ours: int, theirs: int) -> None:
    new, w = max(ours, theirs), np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    old = min(ours, theirs)
    clip = node("Clip", "h", "c", min=-0.5, max=5.0) if old < 11 else node("Clip", "h lo hi", "c")
    nodes = [node("MatMul", "x w", "h"), clip, node("ReduceMean", "c", "m", axes=[0]), node("Tanh", "m", "y")]
    weights = {"w": w} | ({} if old < 11 else {"lo": scalar(-0.5), "hi": scalar(5)})
    low = save(folder / "low.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, None)}, weights, opset=old)
    high = folder / "high.onnx"
    onnx.save(onnx.version_converter.convert_version(onnx.load(low), new), high)
    reference, candidate = (low, high) if ours == old else (high, low)
    report = halfconv.validate(reference, half_of(candidate), layers=True)
    assert report.passed
    assert list(layers_of(report)) == ["h", "c", "m", "y"]


def test_weights_in_external_files_are_found(folder: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in "uvw"}
    nodes = [node("MatMul", "x u", "a"), node("MatMul", "a v", "b"), node("MatMul", "b w", "y")]
    path = save(folder / "m.onnx", nodes, {"x": (FLOAT, ["n", 64])}, {"y": (FLOAT, None)}, weights)
    mixed = half_of(path, node_block_list=["matmul_b"])
    assert {tensor.data_type for tensor in onnx.load(mixed).graph.initializer} == {FLOAT, HALF}
    found = []
    for source in (path, mixed):
        target = folder / f"{source.stem}.external.onnx"
        onnx.save(onnx.load(source), target, save_as_external_data=True, location=f"{target.stem}.data", size_threshold=100)
        source.unlink()
        found.append(target)
    report = halfconv.validate(*found, layers=True)
    assert report.passed
    assert list(layers_of(report)) == ["a", "b", "y"]


BRANCHES = tuple(
    helper.make_graph([node(op, "x", name)], name, [], [helper.make_tensor_value_info(name, FLOAT, [4])])
    for op, name in (("Exp", "t"), ("Tanh", "e"))
)
BODY = helper.make_graph(
    [node("Mul", "v k", "w"), node("Identity", "c", "co")], "body",
    [helper.make_tensor_value_info("it", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
     helper.make_tensor_value_info("v", FLOAT, [4])],
    [helper.make_tensor_value_info("co", TensorProto.BOOL, []), helper.make_tensor_value_info("w", FLOAT, [4])],
)  # fmt: skip
OPTIONAL = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [4]))
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [4]))
VECTOR = (FLOAT, [4])

#: Nodes, inputs, outputs, weights.
ODD: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], dict[str, Any], dict[str, np.ndarray]]] = {
    "unused output": ([node("Split", "x", "a b"), node("Exp", "a", "y")], {"x": VECTOR}, {"y": (FLOAT, [2])}, {}),
    "unused input": ([node("Exp", "x", "y")], {"x": VECTOR, "u": (FLOAT, [3])}, {"y": VECTOR}, {}),
    "shapes unknown": (
        [node("MatMul", "x w", "y")], {"x": (FLOAT, ["a", "b", 3])}, {"y": (FLOAT, None)}, {"w": np.ones((3, 2), np.float32)},
    ),
    "scalar": ([node("Exp", "x", "y")], {"x": (FLOAT, [])}, {"y": (FLOAT, [])}, {}),
    "float64 outside": (
        [node("Cast", "x", "c", to=FLOAT), node("Exp", "c", "e"), node("Cast", "e", "y", to=TensorProto.DOUBLE)],
        {"x": (TensorProto.DOUBLE, [4])}, {"y": (TensorProto.DOUBLE, [4])}, {},
    ),
    "float64 beside": (
        [node("Exp", "x", "y"), node("Exp", "d", "z")], {"x": VECTOR, "d": (TensorProto.DOUBLE, [4])},
        {"y": VECTOR, "z": (TensorProto.DOUBLE, [4])}, {},
    ),
    "complex numbers as pairs": ([node("DFT", "x", "y")], {"x": (FLOAT, [1, 8, 1])}, {"y": (FLOAT, None)}, {}),
    "strings": (
        [node("Identity", "s", "t"), node("Exp", "x", "y")], {"s": (TensorProto.STRING, [2]), "x": VECTOR},
        {"t": (TensorProto.STRING, [2]), "y": VECTOR}, {},
    ),
    "optional input": (
        [node("OptionalHasElement", "o", "h"), node("Exp", "x", "y")], {"o": OPTIONAL, "x": VECTOR},
        {"h": (TensorProto.BOOL, []), "y": VECTOR}, {},
    ),
    "overridable weight": (
        [node("Mul", "x w", "y")], {"x": VECTOR, "w": VECTOR}, {"y": VECTOR}, {"w": np.full(4, 3, np.float32)},
    ),
    "branches": (
        [helper.make_node("If", ["c"], ["i"], then_branch=BRANCHES[0], else_branch=BRANCHES[1]), node("Mul", "i i", "y")],
        {"x": VECTOR, "c": (TensorProto.BOOL, [])}, {"y": VECTOR}, {},
    ),
    "loop": (
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=BODY)], {"x": VECTOR, "n": (TensorProto.INT64, [])},
        {"y": VECTOR}, {"k": scalar(1.5)},
    ),
    "sequence input": (
        [node("SequenceAt", "s i", "t"), node("Exp", "t", "y")], {"s": SEQUENCE, "i": (TensorProto.INT64, [])}, {"y": VECTOR}, {},
    ),
    "sequence output": ([node("SequenceConstruct", "x x", "s")], {"x": VECTOR}, {"s": SEQUENCE}, {}),
}  # fmt: skip


@pytest.mark.parametrize("candidate", ["itself", "halfconv's"])
def test_an_output_that_is_an_input_or_a_weight_is_no_obstacle(folder: Path, candidate: str) -> None:
    outputs = {"y": VECTOR, "x": VECTOR, "w": VECTOR}
    path = save(folder / "m.onnx", [node("Mul", "x w", "y")], {"x": VECTOR}, outputs, {"w": np.full(4, 3, np.float32)})
    half = path if candidate == "itself" else halfconv.convert(path, folder / "h.onnx").output
    report = halfconv.validate(path, half, layers=True)
    assert report.passed and list(layers_of(report)) == ["y"]


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("case", list(ODD))
def test_odd_models_pass_as_they_are_and_in_half(folder: Path, case: str, layers: bool) -> None:
    path = save(folder / "m.onnx", *ODD[case])
    for candidate in (path, *(() if "sequence" in case else (half_of(path),))):
        report = halfconv.validate(path, candidate, layers=layers)
        assert report.passed, report.outputs
        assert all(output.elements for output in report.outputs)
        if candidate == path:
            assert all(output.measures.max_abs in (None, 0) for output in report.outputs)
        to_json(report)


def test_empty_tensors_have_no_drift(chain: Unary) -> None:
    report = halfconv.validate(*chain([node("Exp", "x", "y")]), samples={"x": np.zeros((0, 4), np.float32)}, layers=True)
    assert report.passed
    assert report.outputs[0].elements == 0 and report.outputs[0].measures.rel_l2 is None
    assert layers_of(report)["y"].rel_l2 == 0


def test_nan_and_infinities_of_the_reference_are_no_drift(chain: Unary) -> None:
    x = np.array([[-1, 0, 1, 2], [np.nan, np.inf, 3, 4]], np.float32)
    report = halfconv.validate(*chain([node("Log", "x", "y")]), samples={"x": x}, layers=True)
    assert report.passed
    assert report.outputs[0].measures.new_nan == 0
    to_json(report)


@pytest.mark.parametrize(("kind", "opset"), [(HALF, 17), (BF16, 22)])
def test_half_inputs_and_outputs_are_compared_with_fp32(folder: Path, kind: int, opset: int) -> None:
    path = save(
        folder / "m.onnx", [node("MatMul", "x w", "h"), node("Tanh", "h", "y")], {"x": (FLOAT, ["n", 4])},
        {"y": (FLOAT, ["n", 2])}, {"w": np.full((4, 2), 0.37, np.float32)}, opset=opset,
    )  # fmt: skip
    report = halfconv.validate(path, whole_half(path, kind), layers=True, tolerance_file=None)
    assert report.passed
    assert report.to == ("fp16" if kind == HALF else "bf16")
    assert report.tolerance["rel_l2"] == (1e-2 if kind == HALF else 5e-2)
    assert 0 < report.outputs[0].measures.rel_l2 < (1e-3 if kind == HALF else 1e-2)
    assert {layer.dtype for layer in report.layers or ()} == {"float16" if kind == HALF else "bfloat16"}


def test_types_that_the_file_does_not_declare_are_still_half(folder: Path) -> None:
    nodes = [node("Cast", "x", "c", to=HALF), node("Exp", "c", "e"), node("Cast", "e", "y", to=FLOAT)]
    path = save(folder / "h.onnx", nodes, {"x": VECTOR}, {"y": VECTOR})
    reference = save(folder / "m.onnx", [node("Exp", "x", "y")], {"x": VECTOR}, {"y": VECTOR})
    report = halfconv.validate(reference, path)
    assert not any("no half-precision value" in warning for warning in report.warnings)
    assert report.outputs[0].measures.rel_l2 > 0
    report = halfconv.validate(reference, reference)
    assert any("no half-precision value" in warning for warning in report.warnings)
    # A reference may round something itself, which its conversion leaves out.
    assert halfconv.validate(path, reference).passed


def test_models_the_wrong_way_round_are_refused(chain: Unary) -> None:
    reference, half = chain([node("MatMul", "x w", "y")], w=np.eye(4, dtype=np.float32))
    with pytest.raises(halfconv.UsageError, match="the wrong way round; try: halfconv validate"):
        halfconv.validate(half, reference)
    with pytest.raises(halfconv.UsageError, match="the wrong way round"):
        halfconv.validate(whole_half(reference), reference)


def test_a_half_model_does_not_drift_from_itself(chain: Unary) -> None:
    _, half = chain([node("Exp", "x", "y")])
    report = halfconv.validate(half, half, layers=True)
    assert report.passed and report.outputs[0].measures.max_abs == 0
    assert any("the reference holds half-precision values, too" in warning for warning in report.warnings)


def test_a_change_of_shape_fails(folder: Path) -> None:
    path = save(folder / "m.onnx", [node("Relu", "x", "y")], {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, None)})
    other = save(folder / "o.onnx", [node("Squeeze", "x", "y")], {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, None)})
    report = halfconv.validate(path, half_of(other))
    assert not report.passed
    assert report.outputs[0].failures[0] == "synthetic 0: shape (1, 4) became (4,)"
    to_json(report)


# Memory

PEAK = """
import resource, sys
import numpy as np
import halfconv

rows, count, layers = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "layers"
samples = lambda: ({"x": np.full((rows, 1024), 1 + i / count, np.float32)} for i in range(count))
report = halfconv.validate(sys.argv[1], sys.argv[2], samples=samples, layers=layers)
assert report.samples == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mb(models: tuple[Path, Path], rows: int, count: int, layers: str) -> float:
    command = [sys.executable, "-c", PEAK, *map(str, models), str(rows), str(count), layers]
    return float(subprocess.run(command, text=True, capture_output=True, check=True, timeout=300).stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_samples(chain: Unary) -> None:
    models = chain([node("Tanh", "x", "h"), node("Mul", "h k", "y")], ("n", 1024), k=scalar(0.5))
    for layers in ("outputs", "layers"):
        few, many = peak_mb(models, 8, 10, layers), peak_mb(models, 8, 1000, layers)
        assert many < few + 25, f"{layers}: {few:.0f} MB for 10 samples, {many:.0f} MB for 1,000"


@pytest.mark.slow
@pytest.mark.parametrize("overflows", [False, True])
def test_layers_keep_no_tensors(chain: Unary, overflows: bool) -> None:
    """Forty values of 16 MB in each of two models, of which but a few are alive at a time."""
    nodes = [node("Mul", "x k" if not overflows else "x big", "v0")]
    nodes += [node("Mul", f"v{i} k", f"v{i + 1}") for i in range(40)] + [node("ReduceMax", "v40", "y")]
    models = chain(nodes, ("n", 1024), k=scalar(0.97), big=scalar(65504))
    base, large = peak_mb(models, 1, 1, "layers"), peak_mb(models, 4096, 1, "layers")
    assert large < base + 25 * 16, f"{large:.0f} MB against {base:.0f} MB"
