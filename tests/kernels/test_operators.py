"""Every operator of halfconv's own, at many sizes: what its definition gives in FP16 is what it gives in FP32, rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfconv.graph.rules import MS
from halfconv.kernels.operators import DOMAIN, OPERATORS, altered, define
from halfconv.runtime_process import RuntimeProcess
from tests.kernels import answers, widened


@dataclass(frozen=True)
class Case:
    """One node: dimensions of its inputs, its attributes; all inputs after the first are weights, but for `given`."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}{'x'.join(map(str, self.shapes[0]))}-{'x'.join(map(str, self.shapes[-1]))}"


def linear(name: str, rows: tuple[int, ...], width: int, out: int) -> Case:
    more = "Add" in name
    return Case(name, ((*rows, width), (width, out), (out,), *([(*rows, out)] if more else [])), given=("R",) * more)


def conv(name: str, image: tuple[int, int, int, int], out: int, kernel: tuple[int, int], **more: list[int]) -> Case:
    attributes = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], **more}
    pads, size = attributes["pads"], []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * attributes["dilations"][axis] + 1
        size.append((image[1 + axis] + pads[axis] + pads[axis + 2] - reach) // attributes["strides"][axis] + 1)
    rest = [(image[0], *size, out)] if "Add" in name else []
    return Case(name, (image, (out, *kernel, image[3]), (out,), *rest), attributes, ("R",) * bool(rest))


def depthwise(name: str, image: tuple[int, int, int, int], side: int, *pads: int) -> Case:
    channels = (image[3],)
    attributes: dict[str, Any] = {"pads": list(pads) or [side // 2] * 4, "group": image[3]}
    norm = "Norm" in name
    shapes = (image, (side, side, 1, image[3]), channels, *([channels, channels] if norm else []))
    return Case(name, shapes, attributes | ({"epsilon": 1e-6} if norm else {}))


def attention(batch: int, length: int, heads: int, size: int, *bias: int) -> Case:
    shapes = ((batch, length, 3 * heads * size), *([bias] if bias else []))
    name = "PackedAttentionBias" if bias else "PackedAttention"
    return Case(name, shapes, {"num_heads": heads, "scale": size**-0.5}, ("bias",) * bool(bias))


ROWS = ((1,), (3, 7), (2, 197), (2, 9, 11))
CASES = [
    *(linear(name, rows, 64, 96) for name in OPERATORS if name.startswith("Linear") for rows in ROWS),
    linear("Linear", (40,), 8, 8), linear("LinearGelu", (300,), 96, 384), linear("LinearAdd", (2, 128), 768, 1000),
    *(conv(name, (2, 9, 11, 16), 24, (3, 3), pads=[1, 1, 1, 1]) for name in OPERATORS if name.startswith("Conv")),
    conv("Conv", (1, 14, 14, 96), 192, (2, 2), strides=[2, 2]), conv("Conv", (3, 15, 8, 64), 128, (1, 1), strides=[2, 2]),
    conv("ConvRelu", (2, 12, 10, 8), 8, (3, 2), pads=[2, 0, 1, 1], dilations=[2, 1]),
    conv("ConvAddRelu", (1, 7, 7, 512), 64, (1, 3)),
    *(depthwise("DepthwiseConv", (2, *size, 24), side) for size in ((1, 1), (5, 30), (14, 14)) for side in (3, 5, 7)),
    depthwise("DepthwiseConv", (1, 9, 8, 16), 3, 2, 0, 0, 2),
    *(depthwise("DepthwiseConvNorm", (2, 8, 15, channels), 7) for channels in (8, 96, 104, 768, 1024)),
    *(Case("LayerNorm", ((*rows, width), (width,), (width,)), {"epsilon": 1e-6})
      for rows, width in zip((*ROWS, (), (5,), (33,)), (96, 192, 384, 768, 24, 1024, 4096), strict=True)),
    attention(2, 197, 3, 64), attention(1, 1, 2, 8), attention(3, 17, 2, 128), attention(2, 40, 4, 32, 2, 1, 40, 40),
    attention(2, 33, 2, 64, 2, 2, 33, 33), attention(2, 24, 2, 16, 1, 1, 24, 24),
    Case("GlobalAveragePool", ((3, 7, 5, 40),)), Case("GlobalAveragePool", ((1, 28, 28, 8),)),
]  # fmt: skip


def model(case: Case, random: Callable[..., np.ndarray]) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The node alone, and its inputs. Weights are small enough that results are about 1."""
    names = OPERATORS[case.op].inputs
    arrays = {name: random(*shape) for name, shape in zip(names, case.shapes, strict=True)}
    if "W" in arrays:
        last = case.op.startswith("Conv")
        fan = np.prod(case.shapes[1][1:] if last else case.shapes[1][:-1])
        arrays["W"] = (arrays["W"] / np.sqrt(fan)).astype(np.float16)
    fed = {name: arrays[name] for name in (names[0], *case.given)}
    graph = helper.make_graph(
        [helper.make_node(case.op, list(names), ["Y"], domain=DOMAIN, **case.attributes)], "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, array.shape) for name, array in fed.items()],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT16, [None] * len(case.shapes[0]))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in fed],
    )  # fmt: skip
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", 17), (MS, 1), (DOMAIN, 1))]
    made = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
    function = define(case.op, 17)
    made.functions[function.identifier()] = function
    return made, fed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_definition_holds_in_fp16(case: Case) -> None:
    random = np.random.default_rng(len(str(case)))
    made, feeds = model(case, lambda *shape: random.standard_normal(shape).astype(np.float16))
    want = answers(widened(made), {name: array.astype(np.float32) for name, array in feeds.items()})["Y"]
    with RuntimeProcess(120) as process:
        session = process.open(ir.to_proto(made).SerializeToString(), "ORT_ENABLE_ALL", "CPUExecutionProvider")
        (got,) = session.run(["Y"], feeds)
    assert got.shape == want.shape and got.dtype == np.float16
    assert np.linalg.norm(got.astype(np.float64) - want) <= 2e-3 * np.linalg.norm(want)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_nodes_of_a_definition_have_names_of_their_own(name: str) -> None:
    """ONNX Runtime 1.20 names what it fuses after them, and then refuses two nodes of one name."""
    names = [node.name for node in define(name, 17)]
    assert all(names) and len(set(names)) == len(names)


def test_the_definitions_pass_the_checker() -> None:
    for case in CASES:
        made, _ = model(case, lambda *shape: np.zeros(shape, np.float16))
        onnx.checker.check_model(ir.to_proto(made), full_check=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_definition_that_was_changed_is_told_from_ours(name: str, tmp_path: Path) -> None:
    made, _ = model(next(case for case in CASES if case.op == name), lambda *shape: np.zeros(shape, np.float16))
    proto = ir.to_proto(made)
    onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "same.onnx")
    assert altered(ir.load(tmp_path / "same.onnx")) == []
    proto.functions[0].node[-1].op_type = "Sub"
    assert altered(ir.from_proto(proto)) == [name]
