"""Kernels: what the target can run in half."""

from __future__ import annotations

import json
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.make_kernel_table import installed_cpu, machine, reduce, text
from halfconv.graph.kernels import (
    NO_CPU_HALF,
    PROVIDERS,
    Support,
    combining,
    has_kernel,
    on_any,
    on_cuda,
    operators,
    support,
    table_source,
)
from halfconv.graph.schema import signature
from tests.runtime_helpers import isolate

FP16, BF16, FP32 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT


def look(op: str, variables: str, *, opset: int = 17, to: ir.DataType = FP16, domain: str = "") -> Support:
    found = signature(domain, op, opset)
    assert found is not None
    return support(domain, op, found, frozenset(variables.split()), to)


def test_the_table_says_where_it_comes_from() -> None:
    assert "onnxruntime-gpu" in table_source()


@pytest.mark.parametrize("op", ["MatMul", "Conv", "Add", "Softmax", "Relu", "Gemm"])
def test_common_operators_have_a_half_kernel(op: str) -> None:
    found = look(op, "T")
    assert found.half == {"T"} and not found.missing


@pytest.mark.parametrize("op,variable", [("EyeLike", "T2"), ("Range", "T")])
def test_a_kernel_without_half_is_named(op: str, variable: str) -> None:
    found = look(op, variable)
    assert not found.half
    assert op in found.missing and "FLOAT16" in found.missing and table_source() in found.missing


def test_an_operator_without_any_kernel_is_named_with_its_version() -> None:
    found = look("Det", "T")
    assert not found.half and "no CUDA kernel for Det-" in found.missing


def test_an_operator_without_a_kernel_but_with_a_definition_may_be_half() -> None:
    found = look("MeanVarianceNormalization", "T")
    assert found.half == {"T"} and not found.mixed


def test_the_version_selects_the_kernel() -> None:
    assert look("Clip", "T", opset=11).missing, "Clip-11 has no half kernel"
    assert not look("Clip", "T", opset=12).missing


def test_bfloat16_has_fewer_kernels() -> None:
    assert not look("MaxPool", "T").missing
    assert look("MaxPool", "T", to=BF16, opset=22).missing


@pytest.mark.parametrize(
    "op,opset",
    [("Clip", 13), ("BatchNormalization", 15), ("Reciprocal", 13), ("Resize", 19), ("Pad", 21), ("LSTM", 22), ("GRU", 22)],
)
def test_what_has_an_fp16_kernel_may_have_none_of_bfloat16(op: str, opset: int) -> None:
    assert not look(op, "T" if op != "Resize" else "T1", opset=opset).missing
    missing = look(op, "T" if op != "Resize" else "T1", opset=opset, to=BF16).missing
    assert "BFLOAT16" in missing and op in missing


def test_bfloat16_never_counts_on_the_cpu_provider() -> None:
    """A kernel of another version, or a definition by operators without kernels, would run nowhere."""
    assert look("Dropout", "T", opset=13, to=BF16).half == {"T"}
    assert look("Dropout", "T", opset=22, to=BF16).missing and not look("Dropout", "T", opset=22).missing
    assert look("Mish", "T", opset=22, to=BF16).half == {"T"}, "Softplus, Tanh and Mul have kernels"
    assert look("AffineGrid", "T1", opset=20, to=BF16).missing


def test_what_cuda_leaves_to_the_cpu() -> None:
    assert on_any("MaxPool", 12) and not on_any("MaxPool", 22)
    assert on_any("Conv", 22) and on_any("Det", 22), "of which CUDA has never had a kernel"


@pytest.mark.parametrize("op", sorted(NO_CPU_HALF))
def test_what_the_cpu_cannot_make_in_half(op: str) -> None:
    assert "CPU" in look(op, "T").missing


@pytest.mark.parametrize(
    "op,reduction,fixed",
    [
        ("ScatterND", None, False), ("ScatterND", "none", False), ("ScatterND", "add", True), ("ScatterElements", "max", True),
        ("GatherND", None, False),
    ],
)  # fmt: skip
def test_scattering_that_combines_is_not_for_half(op: str, reduction: str | None, fixed: bool) -> None:
    node = ir.node(op, [], {"reduction": reduction} if reduction else {})
    assert bool(combining(node)) is fixed
    if fixed:
        assert str(reduction) in combining(node) and op in combining(node)


def test_a_foreign_operator_of_the_same_name_is_not_meant() -> None:
    assert not combining(ir.node("ScatterND", [], {"reduction": "add"}, domain="my.domain"))


def test_a_kernel_without_an_upper_version_serves_its_first_version_only() -> None:
    """Seen on an H100: ELU of opset 6 runs on CUDA, ELU of opset 22 on the CPU provider."""
    assert on_cuda("", "Elu", 6, ir.DataType.FLOAT16)
    assert not on_cuda("", "Elu", 22, ir.DataType.FLOAT16)
    assert on_cuda("", "LeakyRelu", 6, ir.DataType.FLOAT16)
    assert not on_cuda("", "Elu", 6, ir.DataType.BFLOAT16)
    assert not on_cuda("", "GridSample", 16, ir.DataType.FLOAT16)


def test_what_only_the_cpu_runs_may_be_half_all_the_same() -> None:
    """In either precision the CPU provider runs it, and half needs fewer Casts around it."""
    found = signature("", "MaxPool", 22)
    assert found is not None
    assert not on_cuda("", "MaxPool", 22, ir.DataType.FLOAT16)
    assert support("", "MaxPool", found, frozenset({"T"}), ir.DataType.FLOAT16).half == {"T"}


# The tables


def test_tables_are_what_the_script_makes(tmp_path: Path) -> None:
    """That of the CPU provider, where the package and the processor are those of the table."""
    written = (resources.files("halfconv.graph") / "data" / "cpu_kernels.json").read_text("utf-8")
    try:
        full = installed_cpu()
    except SystemExit as why:
        pytest.skip(str(why))
    if full["package"] != json.loads(written)["package"]:
        pytest.skip(f"{full['package']} is installed, the table is of another")
    assert text(reduce(full)) == written, (
        "python bench/make_kernel_table.py cpu halfconv/graph/data/cpu_kernels.json writes it again"
    )


def test_a_variable_for_other_types_only_is_kept_apart_from_one_without_limits() -> None:
    kernels = [
        {"domain": "", "op": "Norm", "versions": [1, 9], "types": {"T": [f"tensor({kind})"], "U": ["tensor(float)"]}}
        for kind in ("float", "double")
    ]
    made = reduce({"package": "p", "source": "s", "kernels": kernels})["kernels"]
    assert made == {"::Norm": [[1, 9, {"T": "f", "U": "f"}], [1, 9, {"T": "", "U": "f"}]]}


def test_a_cache_of_bytes_is_no_cache_of_floats() -> None:
    """A kernel for half queries and a quantised cache takes no FP32 cache: queries and cache go together."""
    found = look("GroupQueryAttention", "T T_CACHE", opset=1, domain="com.microsoft")
    assert found.half == {"T", "T_CACHE"} and not found.mixed


@pytest.mark.parametrize("provider", PROVIDERS)
def test_operators_of_a_provider(provider: str) -> None:
    halves = operators(provider, FP16)
    assert set(halves) <= set(operators(provider)) and list(halves) == sorted(halves)
    assert {"LayerNormalization", "Gather", "com.microsoft::SkipLayerNormalization"} <= set(halves)
    assert ("Conv" in halves) is (provider == "cuda")
    assert set(operators(provider, BF16)) - set(operators(provider)) == set()


def test_a_kernel_must_have_all_types_at_once() -> None:
    norm = ("", "LayerNormalization", 17)
    assert has_kernel("cuda", *norm, {"T": FP16, "U": FP32}) and not has_kernel("cuda", *norm, {"T": FP16, "U": FP16})
    assert has_kernel("cuda", "ai.onnx", "MatMul", 13, {"T": BF16}) and not has_kernel("cpu", "", "MatMul", 13, {"T": BF16})
    assert has_kernel("cuda", "", "Concat", 13, {"T": FP16})
    assert not has_kernel("cuda", "", "MaxPool", 22, {"T": FP16}) and has_kernel("cuda", "", "MaxPool", 12, {"T": FP16})
    assert not has_kernel("cuda", "my.domain", "MatMul", 13, {"T": FP16})


NATIVE = [
    ("Abs", 13, 1), ("Add", 14, 2), ("Clip", 12, 1), ("Clip", 13, 1), ("Concat", 13, 2), ("Gelu", 20, 1), ("Identity", 16, 1),
    ("LayerNormalization", 17, 2), ("MatMul", 13, 2), ("Max", 13, 2), ("Mod", 13, 2), ("Neg", 13, 1), ("Relu", 14, 1),
    ("Round", 11, 1), ("Round", 22, 1), ("Sign", 13, 1), ("Softmax", 13, 1), ("Sqrt", 13, 1), ("Transpose", 13, 1), ("Where", 9, 3),
]  # fmt: skip


@pytest.mark.parametrize("op,opset,inputs", NATIVE, ids=[f"{op}-{opset}" for op, opset, _ in NATIVE])
def test_the_cpu_provider_casts_around_what_the_table_lacks(op: str, opset: int, inputs: int, tmp_path: Path) -> None:
    """Asked of the runtime itself, which writes the graph that it runs."""
    if not table_source("cpu").startswith(f"onnxruntime {version('onnxruntime')} ({machine()})"):
        pytest.skip("the table is of another package")
    names = [f"x{i}" for i in range(inputs)]
    kinds = [TensorProto.BOOL if op == "Where" and not i else TensorProto.FLOAT16 for i in range(inputs)]
    values = [helper.make_tensor_value_info(name, kind, [4, 4]) for name, kind in zip(names, kinds, strict=True)]
    attributes = {"axis": 0} if op == "Concat" else {"fmod": 1} if op == "Mod" else {}
    node = helper.make_node(op, names, ["y"], **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    (ran,) = isolate(ran_operators, [(model.SerializeToString(), str(tmp_path / "ran.onnx"))], workers=1)
    found = signature("", op, opset)
    assert found is not None
    types = {found.input_variable(i): FP16 for i, kind in enumerate(kinds) if kind == TensorProto.FLOAT16}
    assert ("Cast" not in ran) is has_kernel("cpu", "", op, found.since, types), ran


def ran_operators(item: tuple[bytes, str]) -> list[str]:
    """The operators of the graph that a session runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = item[1]
    onnxruntime.InferenceSession(item[0], options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(item[1]).graph.node]
