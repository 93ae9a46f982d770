"""Conversion to BF16: its opset, its kernels, its rules, its checks; and that the results hold in simulation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import halfconv
from halfconv.cli import main
from halfconv.inspection import inspect
from halfconv.precision.rules import Rules
from tests import structure
from tests.runtime_helpers import full_check
from tests.test_schemas import strict
from tests.test_schemas import validate as fits

FLOAT, BF16 = TensorProto.FLOAT, TensorProto.BFLOAT16
CONV = "(float[n,3,12,12] x) => (float[n,4,10,10] y) { h = Conv(x, k)\n y = Relu(h) }"
MATMUL = "(float[n,16] x) => (float[n,16] y) { h = MatMul(x, w)\n y = Relu(h) }"


def save(path: Path, graph: str, opset: int, **weights: Any) -> Path:
    """A model from its graph as text; `w`, a matrix, and `k`, of a convolution, are weights unless given."""
    rng = np.random.default_rng(3)
    held = {"w": rng.normal(0, 0.25, (16, 16)), "k": rng.normal(0, 0.2, (4, 3, 3, 3)), **weights}
    proto = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}]> g {graph}')
    for name, value in held.items():
        if re.search(rf"\b{name}\b", graph):
            array = np.asarray(value)
            data = array.astype(np.float32) if array.dtype.kind == "f" else array
            proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    onnx.save(proto, path)
    return path


def kinds(path: Path) -> dict[str, int]:
    """Element type of what each node of the main graph makes first."""
    return {site.node.output[0]: site.outputs[0] for site in structure.sites(path)}


# --- opset and kernels -------------------------------------------------------------------------------------------------


def test_a_convolution_raises_the_opset(tmp_path: Path) -> None:
    result = halfconv.convert(save(tmp_path / "m.onnx", CONV, 13), to="bf16")
    made = onnx.load(result.output)
    full_check(result.output)
    assert result.output.name == "m.bf16.onnx" and result.to == "bf16"
    assert (result.opset, made.opset_import[0].version, made.ir_version) == (22, 22, 10)
    assert kinds(result.output)["h"] == BF16
    assert any("raised to opset 22" in text for text in result.warnings)
    assert {tensor.data_type for tensor in made.graph.initializer} == {BF16}
    assert [value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)] == [FLOAT, FLOAT]


@pytest.mark.parametrize("opset", [13, 17, 21, 22, 23])
def test_a_matrix_product_keeps_the_opset(opset: int, tmp_path: Path) -> None:
    result = halfconv.convert(save(tmp_path / "m.onnx", MATMUL, opset), to="bf16")
    full_check(result.output)
    assert result.opset == opset and kinds(result.output)["h"] == BF16
    assert not any("raised" in text for text in result.warnings)


def test_a_matrix_product_older_than_bf16_raises_it(tmp_path: Path) -> None:
    result = halfconv.convert(save(tmp_path / "m.onnx", MATMUL, 11), to="bf16")
    assert result.opset == 22 and kinds(result.output)["h"] == BF16


@pytest.mark.parametrize("options", [{"block_ops": ["Conv"]}, {"block_nodes": ["c"]}, {"block_scopes": ["c"]}])
def test_what_the_user_keeps_in_fp32_does_not_raise_it(options: dict[str, Any], tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", CONV, 17)
    proto = onnx.load(source)
    proto.graph.node[0].name = "c"
    onnx.save(proto, source)
    assert halfconv.convert(source, to="bf16", **options).opset == 17


def test_what_the_plan_leaves_in_fp32_after_all_does_not_raise_it(tmp_path: Path) -> None:
    """A Softplus between FP32 operators is not worth two Casts."""
    source = save(tmp_path / "m.onnx", BETWEEN.format("z = Softplus(a)"), 17)
    result = halfconv.convert(source, to="bf16", block_ops=["MatMul"])
    assert result.opset == 17 and result.values["half"] == 0
    assert not any("raised" in text for text in result.warnings)
    assert halfconv.convert(source, to="bf16").opset == 22


def test_half_io_raises_a_model_whose_cast_knows_no_bf16(tmp_path: Path) -> None:
    graph = "(float[4] x) => (float[4] y) { y = Shrink(x) }"
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 12), to="bf16", half_io=True)
    full_check(result.output)
    assert result.opset == 22 and structure.signature(result.output) != structure.signature(tmp_path / "m.onnx")
    assert [v.type.tensor_type.elem_type for v in onnx.load(result.output).graph.input] == [BF16]


def test_fp16_raises_nothing(tmp_path: Path) -> None:
    assert halfconv.convert(save(tmp_path / "m.onnx", CONV, 13)).opset == 13


@pytest.mark.parametrize("op", ["Clip(h, lo, hi)", "MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (h)", "LeakyRelu(h)"])
def test_an_operator_without_a_kernel_stays_fp32_and_says_so(op: str, tmp_path: Path) -> None:
    graph = f"(float[n,3,12,12] x) => (float[n,4,10,10] y) {{ h = Conv(x, k)\n c = {op}\n y = Conv(c, e) }}"
    weights = {"e": np.full((4, 4, 1, 1), 0.25), "lo": np.array(-1.0), "hi": np.array(1.0)}
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 17, **weights), to="bf16")
    full_check(result.output)
    (entry,) = [entry for entry in result.fp32 if entry.value == "c"]
    assert entry.rule == "kernel" and "no BFLOAT16 CUDA kernel" in entry.reason
    assert kinds(result.output)["h"] == BF16


def test_operators_that_leave_the_gpu_at_opset_22_are_named(tmp_path: Path) -> None:
    graph = "(float[n,3,12,12] x) => (float[n,4,9,9] y) { h = Conv(x, k)\n y = MaxPool <kernel_shape = [2, 2]> (h) }"
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 17), to="bf16")
    assert any("MaxPool of opset 22 on the CPU" in text for text in result.warnings)


def test_what_cannot_be_raised_is_one_line(tmp_path: Path) -> None:
    graph = (
        "(float[n,3,12,12] x) => (float[?,?,?,?] y) { h = Conv(x, k)\n"
        ' y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (h, none, s) }'
    )
    source = save(tmp_path / "m.onnx", graph, 11, s=np.array([1.0, 1, 2, 2]), none=np.zeros(0))
    with pytest.raises(halfconv.UnsupportedModel, match=r"opset 22.*Resize.*try: .*--to fp16") as refused:
        halfconv.convert(source, to="bf16")
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("target", ["cpu", "coreml", "xnnpack", "qnn", "web"])
def test_a_target_without_bf16_is_refused(target: str, tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", MATMUL, 17)
    with pytest.raises(halfconv.UsageError, match="no BF16 kernels; try: --target cuda"):
        halfconv.convert(source, to="bf16", target=target)


def test_converting_twice_changes_nothing(tmp_path: Path) -> None:
    first = halfconv.convert(save(tmp_path / "m.onnx", CONV, 13), to="bf16", block_ops=["Relu"])
    again = halfconv.convert(first.output, tmp_path / "again.onnx", to="bf16")
    assert again.casts == 0 and again.opset == 22
    assert kinds(first.output) == kinds(again.output)


# --- rules -------------------------------------------------------------------------------------------------------------


def floats(tmp_path: Path, graph: str, to: str, opset: int = 22, **weights: Any) -> dict[str, str]:
    """Value -> the rule that keeps it in FP32."""
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, opset, **weights), to=to, check=False)
    full_check(result.output)
    return {entry.value: entry.rule for entry in result.fp32}


BETWEEN = "(float[n,16] x) => (float[n,16] y) {{ a = MatMul(x, w)\n {}\n y = MatMul(z, w) }}"


@pytest.mark.parametrize(
    "body",
    [
        "z = Exp(a)",
        "s = ReduceSum <keepdims = 1> (a, last)\n z = Div(a, s)",
        "e = Add(a, tiny)\n z = Div(a, e)",
        "b = Mul(a, big)\n z = Sub(b, a)",
    ],
)
def test_rules_about_range_are_for_fp16_alone(body: str, tmp_path: Path) -> None:
    graph = BETWEEN.format(body)
    weights = {"last": np.array([-1]), "tiny": np.array(1e-8), "big": np.array(4096.0)}
    assert "z" in floats(tmp_path, graph, "fp16", **weights)
    assert set(floats(tmp_path, graph, "bf16", **weights)) <= {"x", "y"}


def test_a_weight_beyond_fp16s_range_is_none_for_bf16(tmp_path: Path) -> None:
    graph = BETWEEN.format("z = Mul(a, huge)")
    huge = np.full(16, 1e6)
    assert floats(tmp_path, graph, "fp16", huge=huge)["z"] == "constant-range"
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 22, huge=huge), to="bf16", check=False)
    assert not result.constants and {entry.value for entry in result.fp32} <= {"x", "y"}


def test_a_weight_that_bf16_saturates_is_reported_with_its_limit(tmp_path: Path) -> None:
    graph = BETWEEN.format("z = Mul(a, huge)")
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 22, huge=np.full(16, 3.4e38)), to="bf16", check=False)
    (entry,) = [entry for entry in result.fp32 if entry.value == "z"]
    assert entry.rule == "constant-range" and "3.38953e+38" in entry.reason


@pytest.mark.parametrize(
    "body,rule,words",
    [
        ("q = Mul(a, a)\n v = ReduceMean <keepdims = 1> (q, last)\n r = Sqrt(v)\n z = Div(a, r)", "norm", "8 bits"),
        ("e = Exp(a)\n s = ReduceSum <keepdims = 1> (e, last)\n z = Div(e, s)", "exp-sum", "percents"),
        ("z = Sin(a)", "block-list:Sin", "256"),
        ("s = Sigmoid(a)\n d = Sub(one, s)\n z = Log(d)", "kernel", ""),
        ("f = Floor(a)\n z = Sub(a, f)", "kernel", ""),
        ("m = Add(a, mask)\n z = Softmax <axis = -1> (m)", "mask-sum", "BF16"),
    ],
)
def test_rules_about_precision_hold_with_bf16s_numbers(body: str, rule: str, words: str, tmp_path: Path) -> None:
    weights = {"last": np.array([-1]), "one": np.array(1.0), "mask": np.where(np.arange(16) > 8, -10000.0, 0.0)}
    result = halfconv.convert(save(tmp_path / "m.onnx", BETWEEN.format(body), 22, **weights), to="bf16", check=False)
    rules = {entry.rule: entry.reason for entry in result.fp32}
    assert rule in rules and words in rules[rule]
    assert not any("2,048" in reason or "65,504" in reason for reason in rules.values())


def test_the_logarithm_of_one_minus_a_probability_takes_the_probability_along(tmp_path: Path) -> None:
    kept = floats(tmp_path, BETWEEN.format("s = Sigmoid(a)\n d = Sub(one, s)\n z = Log(d)"), "bf16", one=np.array(1.0))
    assert kept["d"] == kept["s"] == "log-sum"
    kept = floats(tmp_path, BETWEEN.format("s = Sigmoid(a)\n d = Max(s, s)\n z = Log(d)"), "bf16")
    assert not {"d", "s"} & set(kept)


def test_positions_are_exact_to_256(tmp_path: Path) -> None:
    graph = (
        "(float[n,16] x) => (float[n,16] y) { h = Shape(x)\n d = Gather(h, first)\n r = Range(zero, d, step)\n"
        " f = Cast <to = 1> (r)\n c = Unsqueeze(f, last)\n a = Add(x, c)\n y = MatMul(a, w) }"
    )
    weights = {"first": np.array(0), "zero": np.array(0), "step": np.array(1), "last": np.array([-1])}
    result = halfconv.convert(save(tmp_path / "m.onnx", graph, 22, **weights), to="bf16", check=False)
    (reason,) = {entry.reason for entry in result.fp32 if entry.rule == "shape-arithmetic"}
    assert "BF16 only to 256" in reason


def test_a_pattern_of_fp16_can_be_asked_for(tmp_path: Path) -> None:
    graph = BETWEEN.format("s = ReduceSum <keepdims = 1> (a, last)\n z = Div(a, s)")
    source = save(tmp_path / "m.onnx", graph, 22, last=np.array([-1]))
    result = halfconv.convert(source, to="bf16", block_patterns=["wide-sum"], check=False)
    assert {"s", "z"} <= {entry.value for entry in result.fp32}


# --- checks, reports ---------------------------------------------------------------------------------------------------


def test_without_a_gpu_checker_and_kernel_table_vouch_and_the_report_says_so(tmp_path: Path) -> None:
    result = halfconv.convert(save(tmp_path / "m.onnx", MATMUL, 17), to="bf16")
    assert result.check is not None
    assert result.check.checker and result.check.loaded is None
    (note,) = [text for text in result.warnings if "no session was tried" in text]
    assert "checker" in note and "kernel table" in note and "onnxruntime-gpu" in note


def test_a_result_without_bf16_is_loaded_as_ever(tmp_path: Path) -> None:
    result = halfconv.convert(save(tmp_path / "m.onnx", MATMUL, 17), to="bf16", block_ops=["MatMul", "Relu"])
    assert result.check is not None and result.check.loaded


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m.onnx", CONV, 13)
    main(["convert", "m.onnx", "--to", "bf16", "--json", "--save-plan", "plan.json"])
    content = strict(capsys.readouterr().out)
    fits("convert", content)
    fits("plan", json.loads(Path("plan.json").read_text("utf-8")))
    fits("profile", json.loads(Path("m.bf16.onnx.profile.json").read_text("utf-8")))
    assert (content["output"], content["to"], content["opset"], content["check"]["loaded"]) == ("m.bf16.onnx", "bf16", 22, None)
    main(["inspect", "m.onnx", "--to", "bf16", "--json"])
    looked = strict(capsys.readouterr().out)
    fits("inspect", looked)
    assert looked["to"] == "bf16" and looked["values"] == content["values"] and looked["fp32"] == content["fp32"]
    main(["convert", "m.onnx", "--to", "bf16"])
    shown = capsys.readouterr().out
    assert shown.startswith("m.bf16.onnx  bf16, opset 22, ") and "no session was tried" in " ".join(shown.split())
    main(["validate", "m.onnx", "m.bf16.onnx", "--json"])
    drift = strict(capsys.readouterr().out)
    assert drift["passed"] and drift["to"] == "bf16" and drift["tolerance"]["rel_l2"] == 5e-2


def test_inspect_agrees_with_convert(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", CONV, 13)
    report, result = inspect(source, to="bf16", rules=Rules()), halfconv.convert(source, to="bf16", check=False)
    assert (report.to, report.values, report.casts) == ("bf16", result.values, result.casts)
    assert report.opsets[""] == 13, "as declared in the file"


# --- families of operators in simulation ----------------------------------------------------------------------------------

FAMILIES = {
    "a convolutional block": (9, "(float[1,3,12,12] x) => (float[1,4] y)", """
        h = Conv(x, k)
        b = BatchNormalization(h, one, zero, zero, one)
        r = Relu(b)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        g = GlobalAveragePool(p)
        y = Flatten(g)"""),
    "upsampling": (9, "(float[1,3,12,12] x) => (float[1,4,?,?] y)", """
        h = Conv(x, k)
        u = Upsample <mode = "nearest"> (h, scales)
        y = Conv <kernel_shape = [1, 1]> (u, e)"""),
    "resizing": (11, "(float[1,3,12,12] x) => (float[1,4,?,?] y)", """
        h = Conv(x, k)
        u = Resize <mode = "linear"> (h, none, scales)
        y = Conv(u, e)"""),
    "attention": (13, "(float[2,5,16] x) => (float[2,5,16] y)", """
        q = MatMul(x, w)
        v = MatMul(x, w)
        t = Transpose <perm = [0, 2, 1]> (v)
        s = MatMul(q, t)
        d = Div(s, four)
        p = Softmax <axis = -1> (d)
        y = MatMul(p, q)"""),
    "a softmax over several axes": (11, "(float[2,5,16] x) => (float[2,5,16] y)", """
        q = MatMul(x, w)
        p = Softmax <axis = 1> (q)
        y = MatMul(p, w)"""),
    "a decomposed norm": (13, "(float[2,16] x) => (float[2,16] y)", """
        a = MatMul(x, w)
        m = ReduceMean <axes = [-1]> (a)
        d = Sub(a, m)
        q = Pow(d, two)
        v = ReduceMean <axes = [-1]> (q)
        c = Add(v, eps)
        r = Sqrt(c)
        n = Div(d, r)
        y = MatMul(n, w)"""),
    "activations": (17, "(float[4,16] x) => (float[4,16] y)", """
        a = MatMul(x, w)
        b = Sigmoid(a)
        c = Mul(a, b)
        d = Erf(c)
        f = Tanh(d)
        g = HardSwish(f)
        h = Elu(g)
        i = Softplus(h)
        j = Clip(i, low, six)
        y = MatMul(j, w)"""),
    "a recurrence": (14, "(float[3,1,16] x) => (float[3,1,1,16] y, float[1,1,16] z)", """
        y, z = GRU <hidden_size = 16> (x, gw, gr)"""),
    "padding and pooling": (10, "(float[1,3,12,12] x) => (float[1,4,?,?] y)", """
        p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)
        h = Conv(p, k)
        y = AveragePool <kernel_shape = [2, 2]> (h)"""),
    "reductions": (17, "(float[2,5,16] x) => (float[2,16] y)", """
        a = MatMul(x, w)
        m = ReduceMax <axes = [1], keepdims = 0> (a)
        n = ReduceMean <axes = [1], keepdims = 0> (a)
        s = Add(m, n)
        y = MatMul(s, w)"""),
    "a branch": (13, "(float[2,16] x, bool c) => (float[2,16] y)", """
        a = MatMul(x, w)
        b = If(c) <then_branch = g () => (float[2,16] t) { t = MatMul(a, w) },
                   else_branch = h () => (float[2,16] f) { f = Relu(a) }>
        y = MatMul(b, w)"""),
    "a loop": (13, "(float[2,16] x) => (float[2,16] y)", """
        y = Loop(three, , x) <body = g (int64 i, bool c, float[2,16] s) => (bool d, float[2,16] t) {
            d = Identity(c)
            u = MatMul(s, w)
            t = Tanh(u) }>"""),
    "cropping boxes": (12, "(float[1,3,12,12] x, float[2,4] boxes, int64[2] n) => (float[2,4,2,2] y)", """
        h = Conv(x, k)
        y = RoiAlign <output_height = 2, output_width = 2> (h, boxes, n)"""),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_operators_holds_in_simulation(name: str, tmp_path: Path) -> None:
    opset, sides, body = FAMILIES[name]
    rng = np.random.default_rng(1)
    weights = {
        "one": np.full(4, 1.5), "zero": np.zeros(4), "scales": np.array([1.0, 1, 2, 2]), "e": rng.normal(0, 0.5, (4, 4, 1, 1)),
        "none": np.zeros(0), "four": np.array(4.0), "two": np.array(2.0), "eps": np.array(1e-5), "low": np.array(0.0),
        "six": np.array(6.0), "gw": rng.normal(0, 0.2, (1, 48, 16)), "gr": rng.normal(0, 0.2, (1, 48, 16)), "three": np.array(3),
    }  # fmt: skip
    source = save(tmp_path / "m.onnx", f"{sides} {{ {body} }}", opset, **weights)
    result = halfconv.convert(source, to="bf16")
    full_check(result.output)
    feeds: dict[str, Any] = {}
    for value in onnx.load(source).graph.input:
        dims = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.normal(size=dims).astype(np.float32)
    feeds |= {name: value for name, value in {"c": np.array(True), "n": np.zeros(2, np.int64)}.items() if name in feeds}
    if "boxes" in feeds:
        feeds["boxes"] = np.array([[0, 0, 6, 6], [1, 2, 8, 9]], np.float32)
    drift = halfconv.validate(source, result.output, samples=[feeds], layers=True)
    assert drift.passed, drift.first_bad
    assert drift.to == ("bf16" if result.values["half"] else "fp16")
    assert all((output.measures.rel_l2 or 0) < 3e-2 for output in drift.outputs)
    if result.values["half"]:
        assert drift.layers
