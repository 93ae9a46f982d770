"""Schemas: what each slot may hold."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from halfconv.graph.schema import DTYPE_ATTRIBUTES, signature

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@pytest.mark.parametrize("version,since", [(7, 7), (12, 7), (13, 13), (14, 14), (17, 14)])
def test_the_models_opset_selects_the_version(version: int, since: int) -> None:
    found = signature("", "Add", version)
    assert found is not None and found.since == since


@pytest.mark.parametrize("op,index,half", [("Resize", 0, True), ("Resize", 1, True), ("Resize", 2, False), ("Resize", 3, False)])
def test_each_input_is_asked_by_itself(op: str, index: int, half: bool) -> None:
    found = signature("", op, 19)
    assert found is not None and found.may_hold(found.input_variable(index), FP16) is half


def test_bfloat16_came_later() -> None:
    old, new = signature("", "Conv", 21), signature("", "Conv", 22)
    assert old is not None and new is not None
    assert not old.may_hold("T", BF16) and new.may_hold("T", BF16) and old.may_hold("T", FP16)


def test_statistics_of_batch_normalization_have_a_type_of_their_own() -> None:
    found = signature("", "BatchNormalization", 15)
    assert found is not None
    assert [found.input_variable(i) for i in range(5)] == ["T", "T1", "T1", "T2", "T2"]


def test_a_variadic_input_has_one_type_or_one_for_each_slot() -> None:
    concat, loop = signature("", "Concat", 13), signature("", "Loop", 16)
    assert concat is not None and loop is not None
    assert concat.input_variable(0) == concat.input_variable(7) == concat.output_variable(0)
    assert len({loop.input_variable(i) for i in range(2, 6)} | {loop.output_variable(i) for i in range(4)}) == 8
    assert loop.may_hold(loop.input_variable(3), FP16)


def test_a_sequence_may_hold_halves() -> None:
    found = signature("", "SequenceAt", 11)
    assert found is not None and found.may_hold("S", FP16) and found.may_hold("T", FP16)


def test_a_plain_type_admits_only_itself() -> None:
    found = signature("", "Shape", 15)
    assert found is not None
    assert not found.may_hold(found.output_variable(0), FP16)


def test_a_double_is_no_half() -> None:
    """The names of types end alike: float is not in float16's place, nor the other way round."""
    found = signature("ai.onnx.ml", "Scaler", 1)
    assert found is not None and not found.may_hold("T", FP16) and found.may_hold("T", ir.DataType.FLOAT)


@pytest.mark.parametrize("op,defined", [("LayerNormalization", True), ("Softmax", True), ("MatMul", False)])
def test_operators_that_are_functions_of_others(op: str, defined: bool) -> None:
    found = signature("", op, 17)
    assert found is not None and found.is_function is defined


def test_ai_onnx_is_the_default_domain() -> None:
    assert signature("ai.onnx", "Relu", 17) == signature("", "Relu", 17)


@pytest.mark.parametrize("domain,op,version", [("", "Nothing", 17), ("my.domain", "Relu", 1), ("", "Gelu", 19)])
def test_unknown_operators_have_no_schema(domain: str, op: str, version: int) -> None:
    assert signature(domain, op, version) is None


def test_contrib_operators_come_from_the_runtime() -> None:
    found = signature("com.microsoft", "SkipLayerNormalization", 1)
    assert found is not None and found.may_hold("T", FP16)


@pytest.mark.parametrize("op,name", sorted(DTYPE_ATTRIBUTES.items()))
def test_attributes_that_hold_a_type_exist(op: str, name: str) -> None:
    assert name in onnx.defs.get_schema(op, 23).attributes


def test_no_attribute_that_holds_a_type_is_missing() -> None:
    """ONNX's operators whose floating-point output type comes from an attribute, found by the attribute's name."""
    named = {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == "" and {"dtype", "output_dtype", "output_datatype", "to"} & set(schema.attributes)
    }
    never_half = {"QuantizeLinear", "BitCast"}  # integers only; bits of a fixed width, and no kernel
    assert named - set(DTYPE_ATTRIBUTES) - never_half == set()
