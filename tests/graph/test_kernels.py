"""Kernels: what the target can run in half."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from halfconv.graph.kernels import NO_CPU_HALF, Support, combining, on_any, on_cuda, support, table_source
from halfconv.graph.schema import signature

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


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
