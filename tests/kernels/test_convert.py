"""``convert --kernels``: what is asked for, what is reported, and that what is checked is what is written; on real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv.cli import main
from halfconv.errors import CheckFailed, UsageError
from halfconv.kernels.operators import DOMAIN
from halfconv.model import load
from halfconv.runtime_process import RuntimeProcess
from tests import zoo
from tests.test_schemas import validate

RNG = np.random.default_rng(5)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A residual block with a classifier, in FP32: all of it fits."""
    shapes = {"w1": (16, 8, 1, 1), "w2": (16, 16, 3, 3), "w3": (8, 16, 1, 1), "w4": (8, 8), "b4": (8,)}
    weights = [numpy_helper.from_array((RNG.standard_normal(s) * 0.2).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"]),
        helper.make_node("Add", ["c3", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w4"], ["m"]),
        helper.make_node("Add", ["m", "b4"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 8, 12, 10]), ("y", ["n", 8])))
    graph = helper.make_graph(nodes, "block", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=7), tmp_path / "block.onnx")
    return tmp_path / "block.onnx"


OPERATORS = {"Linear": 1, "LinearRelu": 1, "LinearAddRelu": 1, "ConvRelu": 1, "GlobalAveragePool": 1}


def test_the_file_and_the_report_agree_and_the_check_runs_what_is_written(block: Path) -> None:
    result = halfconv.convert(block, target="cuda", kernels=True)
    assert result.kernels is not None and result.kernels.operators == OPERATORS and not result.kernels.refused
    made = onnx.load(result.output)
    found = [node.op_type for node in made.graph.node if node.domain == DOMAIN]
    assert {name: found.count(name) for name in found} == OPERATORS
    assert {function.name for function in made.functions} == set(OPERATORS) and made.ir_version == 8
    assert result.check is not None and result.check.checker and result.check.loaded and not result.check.notes
    assert result.nodes == len(made.graph.node)
    onnx.checker.check_model(str(result.output), full_check=True)
    plain = halfconv.convert(block, block.with_name("plain.onnx"), target="cuda")
    assert plain.kernels is None and result.drift is not None and plain.drift is not None
    assert result.drift.outputs[0].measures.rel_l2 == pytest.approx(plain.drift.outputs[0].measures.rel_l2, rel=0.1)


def test_validate_says_that_a_file_defines_an_operator_of_ours_otherwise(block: Path) -> None:
    result = halfconv.convert(block, target="cuda", kernels=True, check=False)
    assert not [text for text in halfconv.validate(block, result.output).warnings if "com.halfconv" in text]
    made = onnx.load(result.output)
    (linear,) = [function for function in made.functions if function.name == "Linear"]
    linear.node[-1].op_type = "Sub"
    onnx.save(made, result.output)
    report = halfconv.validate(block, result.output)
    assert not report.passed and [text for text in report.warnings if "the candidate defines com.halfconv.Linear otherwise" in text]


def answer(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        assert not stop.code, capfd.readouterr().err
    return capfd.readouterr().out


def test_the_command_says_which_and_why_not(block: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(answer(capfd, "convert", block, "--target", "cuda", "--kernels", "--json"))
    validate("convert", content)
    assert content["kernels"] == {"operators": OPERATORS, "copies": 1, "refused": []}
    content = json.loads(answer(capfd, "convert", block, "--target", "cuda", "--no-check", "--json"))
    validate("convert", content)
    assert content["kernels"] is None
    model = onnx.load(block)
    model.graph.node[-1].input[1] = model.graph.node[-2].output[0]  # m + m
    del model.graph.initializer[-1]
    model.graph.node[4].attribute.append(helper.make_attribute("group", 2))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w3")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :8], "w3"))
    onnx.save(model, block)
    said = answer(capfd, "convert", block, "--target", "cuda", "--kernels", "--no-check")
    assert "no Conv: it has 2 groups" in said and "operators of halfconv's own: " in said


@pytest.mark.parametrize(
    "options",
    [{}, {"target": "portable"}, {"target": "cuda", "to": "bf16"}, {"target": "cuda", "to": "auto", "samples": [{}]},
     {"target": "tensorrt"}],
)  # fmt: skip
def test_kernels_are_for_fp16_on_cuda(block: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--kernels are for FP16 on CUDA, not for .*; try: --kernels --target cuda --to fp16"):
        halfconv.convert(block, kernels=True, **options)
    assert not list(block.parent.glob("*16*"))


def test_a_replayed_plan_decides_the_target(block: Path) -> None:
    for target in ("cuda", "portable"):
        halfconv.convert(block, target=target, check=False, save_plan=block.with_name(f"{target}.json"))
    result = halfconv.convert(block, plan=block.with_name("cuda.json"), check=False, kernels=True)
    assert result.kernels is not None and result.kernels.operators == OPERATORS
    with pytest.raises(UsageError, match="not for fp16 on portable"):
        halfconv.convert(block, plan=block.with_name("portable.json"), check=False, kernels=True)


def test_what_the_user_blocks_stays_fp32(block: Path) -> None:
    result = halfconv.convert(block, target="cuda", check=False, kernels=True, block_ops=["MatMul", "Add"])
    assert result.kernels is not None and result.kernels.operators == {"LinearRelu": 1, "Linear": 1, "ConvRelu": 1}


def test_repair_measures_what_is_written(block: Path) -> None:
    """A tolerance that FP16 throughout does not meet: what is forced to FP32 takes its operator with it."""
    samples = [{"x": RNG.standard_normal((2, 8, 12, 10)).astype(np.float32)} for _ in range(2)]
    whole = halfconv.convert(block, target="cuda", samples=samples, kernels=True)
    assert whole.drift is not None
    limit = (whole.drift.outputs[0].measures.rel_l2 or 0.0) * 0.7
    result = halfconv.convert(block, target="cuda", samples=samples, tolerance={"rel_l2": limit}, kernels=True)
    assert result.repair is not None and result.repair.forced and result.kernels is not None and result.drift is not None
    assert sum(result.kernels.operators.values()) < sum(OPERATORS.values())
    report = halfconv.validate(block, result.output, samples=samples, tolerance={"rel_l2": limit})
    assert report.passed
    assert report.outputs[0].measures.rel_l2 == pytest.approx(result.drift.outputs[0].measures.rel_l2, rel=1e-6)
    with pytest.raises(CheckFailed):
        halfconv.convert(block, target="cuda", samples=samples, tolerance={"rel_l2": limit}, kernels=True, repair=False)


def test_other_commands_read_the_file(block: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = halfconv.convert(block, target="cuda", kernels=True).output
    content = json.loads(answer(capfd, "inspect", made, "--json"))
    assert content["opsets"][DOMAIN] == 1 and content["values"]["half"] == 0
    content = json.loads(answer(capfd, "validate", block, made, "--layers", "--json"))
    assert content["passed"] and any(layer["value"] == "f" for layer in content["layers"])
    content = json.loads(answer(capfd, "bench", block, made, "--provider", "cpu", "--seconds", "0.05", "--json"))
    assert [Path(row["model"]).name for row in content["rows"]] == ["block.onnx", "block.fp16.onnx"]
    feeds = {"x": RNG.standard_normal((3, 8, 12, 10)).astype(np.float32)}
    with halfconv.Session(made, provider="cpu") as session, halfconv.Session(block, provider="cpu", profile=False) as reference:
        got, want = session.run(feeds)["y"], reference.run(feeds)["y"]
    assert np.linalg.norm(got - want) <= 2e-3 * np.linalg.norm(want)


def test_a_converted_file_is_converted_again_to_a_valid_one(block: Path) -> None:
    made = halfconv.convert(block, target="cuda", kernels=True).output
    for kernels in (False, True):
        again = halfconv.convert(made, block.with_name("again.onnx"), target="cuda", kernels=kernels)
        assert any("already converted" in warning for warning in again.warnings)
        assert again.check is not None and again.check.loaded
        assert bool(load(again.output).model.functions) == kernels
        assert not kernels or (again.kernels is not None and again.kernels.operators == OPERATORS)
        assert halfconv.validate(block, again.output).passed


# --- real models ----------------------------------------------------------------------------------------------------

#: Model -> operators that it gets at least, and Transposes that are added at most.
REAL: dict[str, tuple[dict[str, int], int]] = {
    "rapidocr_det": (
        {"Linear": 19, "LinearGelu": 13, "LinearAdd": 10, "LinearRelu": 9, "DepthwiseConv": 14, "ConvRelu": 1}, 18,
    ),
    "rapidocr_rec": ({"Linear": 11, "LinearGelu": 13, "LinearAdd": 11, "LinearRelu": 6, "DepthwiseConv": 11, "ConvRelu": 3}, 9),
    "rapidocr_cls": ({"LinearAdd": 5, "DepthwiseConv": 7}, 8),
    "minilm_dynamo": ({"Linear": 6, "LinearGelu": 6, "PackedAttentionBias": 6}, 0),
    "minilm_ts": ({"Linear": 6, "LinearGelu": 6, "PackedAttentionBias": 6}, 0),
    "efficientnet_lite0": ({"Linear": 16, "LinearAdd": 9, "DepthwiseConv": 12}, 9),
    "dnsmos_p808": ({"LinearRelu": 2, "ConvRelu": 1}, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_models_give_the_same_answers(key: str, tmp_path: Path) -> None:
    least, copies = REAL[key]
    sample = zoo.samples(key)[0]
    answers = []
    for kernels in (False, True):
        result = halfconv.convert(zoo.model(key), tmp_path / f"{kernels}.onnx", target="cuda", check=False, kernels=kernels)
        with RuntimeProcess(300) as process:
            session = process.open(result.output, "ORT_ENABLE_BASIC", "CPUExecutionProvider")
            names = [slot.name for slot in session.get_outputs()]
            answers.append(session.run(names, {slot.name: sample[slot.name] for slot in session.get_inputs()}))
    assert result.kernels is not None and result.kernels.copies <= copies
    assert all(result.kernels.operators.get(name, 0) >= count for name, count in least.items())
    onnx.checker.check_model(str(result.output), full_check=True)
    for before, after in zip(*answers, strict=True):
        assert np.linalg.norm(after - before) <= 2e-3 * np.linalg.norm(before)
