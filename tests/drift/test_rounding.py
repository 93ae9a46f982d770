"""The rounding of the simulation is that of the format, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from halfconv.drift.builder import rounded
from tests.drift.simulating import TYPES, Array, run

IR = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
#: The first FP32 number that rounds to infinity: the midpoint between the largest half and the power of two above it.
OVERFLOW = {"fp16": 65520.0, "bf16": 3.3961775e38}


def pair(to: str) -> onnx.ModelProto:
    """The two Casts that the simulation puts behind a value."""
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TYPES[to][0]), helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def reference(x: Array, to: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # invalid: a signalling NaN
        return x.astype(TYPES[to][1]).astype(np.float32)


def halves(to: str) -> Array:
    """All 65,536 halves, in FP32."""
    with np.errstate(invalid="ignore"):
        return np.arange(65536, dtype=np.uint16).view(TYPES[to][1]).astype(np.float32)


def boundaries(to: str) -> Array:
    """The midpoint of each pair of neighbours, and the FP32 numbers just below and just above it; of both signs."""
    ordered = np.sort(halves(to)[np.isfinite(halves(to))].astype(np.float64))
    ordered = np.unique(ordered)
    middle = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    assert len(middle) > 63000
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])


def check(x: Array, to: str) -> None:
    """The pair on ONNX Runtime's CPU provider, and `rounded`, against numpy and ml_dtypes: bits, but for NaNs' payload."""
    want = reference(x, to)
    for got in (run(pair(to), {"x": x})["y"], rounded(x, IR[to])):
        assert got.dtype == np.float32
        nan = np.isnan(want)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_every_half_is_kept(to: str) -> None:
    x = halves(to)
    assert np.array_equal(reference(x, to), x, equal_nan=True)
    check(x, to)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_every_rounding_boundary_goes_where_the_format_says(to: str) -> None:
    check(boundaries(to), to)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_midpoints_go_to_the_even_neighbour(to: str) -> None:
    """Checked against bits, not against another library."""
    ordered = np.unique(halves(to)[np.isfinite(halves(to))].astype(np.float64))
    ordered = ordered[ordered >= 0]
    middle = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    got = run(pair(to), {"x": middle})["y"].astype(TYPES[to][1]).view(np.uint16)
    assert (got % 2 == 0).all()


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_infinities_nan_and_signed_zeros(to: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    check(x, to)
    got = rounded(x, IR[to])
    assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2]) and np.signbit(got[4]) and not np.signbit(got[3])


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_overflow_starts_half_a_step_above_the_largest_number(to: str) -> None:
    first = np.float32(OVERFLOW[to])
    below = np.nextafter(first, np.float32(0))
    largest = np.float32(ml_dtypes.finfo(TYPES[to][1]).max)
    x = np.array([largest, below, first, -largest, -below, -first, np.finfo(np.float32).max], np.float32)
    check(x, to)
    inf = np.float32(np.inf)
    np.testing.assert_array_equal(rounded(x, IR[to]), [largest, largest, inf, -largest, -largest, -inf, inf])


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_numbers_below_the_smallest_half_become_zero_or_the_smallest(to: str) -> None:
    smallest = float(ml_dtypes.finfo(TYPES[to][1]).smallest_subnormal)
    middle = np.float32(smallest / 2)
    x = np.array([middle, np.nextafter(middle, np.float32(1)), -middle, -np.nextafter(middle, np.float32(1))], np.float32)
    check(x, to)
    np.testing.assert_array_equal(rounded(x, IR[to]), np.array([0, smallest, 0, -smallest], np.float32))


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_denormals_of_fp32(to: str) -> None:
    bits = np.concatenate([np.arange(1, 4096), 1 << np.arange(23), (1 << 23) - np.arange(1, 4096)]).astype(np.uint32)
    x = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    check(x, to)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@settings(max_examples=20, derandomize=True, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2000))
def test_any_bit_pattern(to: str, bits: list[int]) -> None:
    check(np.array(bits, np.uint32).view(np.float32), to)


@given(x=st.floats(width=32), to=st.sampled_from(["fp16", "bf16"]))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_rounding_is_idempotent_and_monotone(x: float, to: str) -> None:
    once = rounded(x, IR[to])
    assert once.shape == ()
    np.testing.assert_array_equal(rounded(once, IR[to]), once)
    if np.isfinite(x):
        with np.errstate(over="ignore"):
            above = np.nextafter(np.float32(x), np.float32(np.inf))
        assert rounded(above, IR[to]) >= once


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3)])
def test_rounded_keeps_shapes(shape: tuple[int, ...]) -> None:
    given_array: Any = np.full(shape, 0.1, np.float64)
    assert rounded(given_array, IR["fp16"]).shape == shape
