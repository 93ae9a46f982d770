"""Rounding of weights: exact for every half, at every boundary between two of them, and counted right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from halfconv.graph.blocks import BLOCK
from halfconv.precision import weights
from halfconv.precision.weights import HALF_MAX, HalfTensor, RoundingStats, rounding_stats, to_half

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
NUMPY: dict[ir.DataType, Any] = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
BOTH = pytest.mark.parametrize("to", [FP16, BF16], ids=["fp16", "bf16"])


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16)


def every(to: ir.DataType) -> np.ndarray:
    """All 65,536 bit patterns of a format, as float32."""
    with np.errstate(invalid="ignore"):
        return np.arange(2**16, dtype=np.uint16).view(NUMPY[to]).astype(np.float32)


def ladder(to: ir.DataType) -> np.ndarray:
    """All finite non-negative numbers of a format, ascending, as float64."""
    with np.errstate(invalid="ignore"):
        numbers = np.arange(2**15, dtype=np.uint16).view(NUMPY[to]).astype(np.float64)
    return numbers[np.isfinite(numbers)]


# --- to_half --------------------------------------------------------------------------------------------------------


@BOTH
def test_every_half_number_comes_back_as_it_is(to: ir.DataType) -> None:
    """Infinities, NaN and both zeros included."""
    numbers = every(to)
    back = to_half(numbers, to)
    assert back.dtype == NUMPY[to]
    real = ~np.isnan(numbers)
    assert np.array_equal(bits(back)[real], np.arange(2**16)[real])
    assert np.isnan(back[~real].astype(np.float32)).all()
    assert np.array_equal(np.signbit(back.astype(np.float32)), np.signbit(numbers))


@BOTH
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_to_nearest_even_at_every_boundary(to: ir.DataType, sign: int) -> None:
    """Between two neighbours: just below the middle goes down, just above goes up, the middle to the even one."""
    numbers = ladder(to)
    below, above = numbers[:-1], numbers[1:]
    middle = ((below + above) / 2).astype(np.float32)
    exact = middle.astype(np.float64) == (below + above) / 2  # bfloat16's lowest middle, 2⁻¹³⁴, is still a float32
    assert exact.all()
    even = np.where(np.arange(len(below)) % 2 == 0, below, above)
    for number, want in (
        (np.nextafter(middle, np.float32(0)), below),
        (middle, even),
        (np.nextafter(middle, np.float32(np.inf)), above),
        (below.astype(np.float32), below),
    ):
        got = to_half(sign * number, to)
        assert np.array_equal(got.astype(np.float64), sign * want)
        assert np.array_equal(np.signbit(got.astype(np.float32)), np.full(len(got), sign < 0))


@BOTH
def test_it_rounds_as_numpy_does_wherever_nothing_saturates(to: ir.DataType) -> None:
    patterns = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32).view(np.float32)
    patterns = patterns[~(np.abs(patterns) > HALF_MAX[to])]
    with np.errstate(invalid="ignore"):
        want = patterns.astype(NUMPY[to])
    got = to_half(patterns, to)
    real = ~np.isnan(patterns)
    assert np.array_equal(bits(got)[real], bits(want)[real])
    assert np.isnan(got[~real].astype(np.float32)).all()


@BOTH
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_numbers_beyond_the_largest_saturate_with_their_sign(to: ir.DataType, sign: int) -> None:
    largest = HALF_MAX[to]
    step = largest - float(ladder(to)[-2])
    greatest = float(np.finfo(np.float32).max)
    numbers = np.array([largest, largest + step / 2, min(largest + step, greatest), greatest], np.float32)
    numbers = np.concatenate([numbers, np.nextafter(numbers, np.float32(0))])
    numbers = numbers[numbers >= np.float32(largest)]
    got = to_half(sign * numbers, to).astype(np.float64)
    assert np.array_equal(got, np.full(len(numbers), sign * largest))


@BOTH
def test_infinities_and_nan_stay(to: ir.DataType) -> None:
    got = to_half(np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38], np.float32), to).astype(np.float32)
    assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2])
    assert np.isfinite(got[3:]).all() and got[3] > 0 > got[4]


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4)])
def test_shapes_stay(to: ir.DataType, shape: tuple[int, ...]) -> None:
    for number in (0.5, 1e39 if to == FP16 else 3.4e38, np.nan):
        array = np.full(shape, np.float32(min(number, 3.4e38)))
        got = to_half(array, to)
        assert isinstance(got, np.ndarray) and got.shape == shape and got.dtype == NUMPY[to]


@BOTH
def test_the_input_is_not_touched(to: ir.DataType) -> None:
    array = np.array([1e30, -3.4e38, 1e-30, 0.1], np.float32)
    array.setflags(write=False)
    before = array.copy()
    to_half(array, to)
    to_half(array[::2], to)
    to_half(array.reshape(2, 2).T, to)
    assert np.array_equal(array, before)


@BOTH
def test_a_lazy_tensor_gives_the_same_numbers_under_its_name(to: ir.DataType) -> None:
    array = np.array([[1e39 if to == FP16 else 1.0, -0.1], [1e-9, -0.0]], np.float64).clip(-3e38, 3e38).astype(np.float32)
    lazy = HalfTensor(ir.Tensor(array, name="w"), to, "w_half")
    assert (lazy.name, lazy.dtype, tuple(lazy.shape)) == ("w_half", to, (2, 2))
    assert np.array_equal(bits(lazy.numpy()), bits(to_half(array, to)))


@BOTH
@pytest.mark.parametrize("size", [0, 1, weights.CHUNK - 1, weights.CHUNK + 1, BLOCK, BLOCK + weights.CHUNK + 3])
def test_a_file_holds_the_same_numbers_block_by_block(to: ir.DataType, size: int, tmp_path: Path) -> None:
    array = np.random.default_rng(size).normal(0, 1, size).astype(np.float32)
    array[size // 2 : size // 2 + 1] = 1e6  # one block saturates
    with (tmp_path / "w").open("wb") as file:
        file.write(b"head")
        HalfTensor(ir.Tensor(array), to, "w").tofile(file)
    assert (tmp_path / "w").read_bytes() == b"head" + to_half(array, to).tobytes()


# --- rounding_stats -------------------------------------------------------------------------------------------------


def reference(array: np.ndarray, to: ir.DataType) -> RoundingStats:
    """The straightforward way, in float64."""
    flat = array.reshape(-1).astype(np.float64)
    finite = np.isfinite(flat)
    numbers = flat[finite]
    with np.errstate(over="ignore"):
        half = array.reshape(-1)[finite].astype(NUMPY[to]).astype(np.float64)
    saturated = np.isinf(half)
    numbers, half = numbers[~saturated], half[~saturated]
    error = np.abs(half - numbers)
    top = float(np.abs(numbers).max(initial=0.0)) or 1.0
    energy = float(((numbers / top) ** 2).sum())
    return RoundingStats(
        size=flat.size,
        absmax=float(np.abs(flat[finite]).max(initial=0.0)),
        saturated=int(saturated.sum()),
        flushed=int(((half == 0) & (numbers != 0)).sum()),
        nonfinite=int((~finite).sum()),
        rel_l2=math.sqrt(float(((error / top) ** 2).sum()) / energy) if energy else 0.0,
        lossy=int((error > 0.01 * np.abs(numbers)).sum()),
    )


def agree(array: np.ndarray, to: ir.DataType) -> None:
    got, want = rounding_stats(ir.Tensor(array), to), reference(array, to)
    for name in ("size", "absmax", "saturated", "flushed", "nonfinite"):
        assert getattr(got, name) == getattr(want, name), name
    assert got.rel_l2 == pytest.approx(want.rel_l2, rel=1e-3, abs=1e-9)
    # A number whose loss is 1 % to within FP32's own rounding may count either way.
    edge = np.abs(array[np.isfinite(array)].astype(np.float64))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        loss = np.abs(edge.astype(np.float32).astype(NUMPY[to]).astype(np.float64) - edge) / edge
    assert abs(got.lossy - want.lossy) <= int((np.abs(loss - 0.01) < 1e-7).sum())


FLOATS = st.one_of(
    st.floats(width=32),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 65504.0, 65519.996, 65520.0, -65520.0, 2.0**-24, 2.0**-25, -(2.0**-25), 2.0**-14, 1e-40, 3.4e38])
    .map(np.float32)
    .map(float),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), elements=FLOATS),
    st.sampled_from([FP16, BF16]),
)
def test_the_figures_are_those_of_a_plain_computation(array: np.ndarray, to: ir.DataType) -> None:
    agree(array, to)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 2**31), st.floats(-44, 38), st.integers(1, 200), st.sampled_from([FP16, BF16]))
def test_the_figures_hold_at_every_magnitude(seed: int, exponent: float, size: int, to: ir.DataType) -> None:
    rng = np.random.default_rng(seed)
    array = np.clip(rng.standard_normal(size) * 10.0**exponent, -3.4e38, 3.4e38).astype(np.float32)
    agree(array, to)


@BOTH
def test_the_figures_of_all_half_numbers(to: ir.DataType) -> None:
    numbers = every(to)
    agree(numbers[np.isfinite(numbers)], to)
    stats = rounding_stats(ir.Tensor(numbers), to)
    assert (stats.saturated, stats.flushed, stats.lossy, stats.rel_l2) == (0, 0, 0, 0.0)
    assert stats.nonfinite == int((~np.isfinite(numbers)).sum())
    assert stats.absmax == HALF_MAX[to]


def test_what_flushes_to_zero_is_counted() -> None:
    """2⁻²⁵ is the middle between zero and the smallest half, and goes to zero, the even one."""
    edge = np.float32(2.0**-25)
    numbers = np.array([edge, -edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(1)), 1e-45, 0.0], np.float32)
    assert rounding_stats(ir.Tensor(numbers), FP16).flushed == 4
    assert int((to_half(numbers, FP16) == 0).sum()) == 5


@pytest.mark.parametrize(
    "array", [np.float32(0.1), np.zeros((0, 3), np.float32), np.full(3, np.nan, np.float32), np.zeros(4, np.float32)]
)
def test_scalars_and_arrays_without_numbers(array: np.ndarray) -> None:
    agree(np.asarray(array), FP16)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_the_figures_do_not_depend_on_the_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large weight is read piece by piece."""
    array = np.array([1e-9, 2e5, np.inf, -0.1, 0.3, np.nan, -7e4, 3e-6, 0.0, 65504.0], np.float32)
    whole = rounding_stats(ir.Tensor(array), FP16)
    monkeypatch.setattr(weights, "CHUNK", chunk)
    pieces = rounding_stats(ir.Tensor(array), FP16)
    for name in ("size", "absmax", "saturated", "flushed", "nonfinite", "lossy"):
        assert getattr(pieces, name) == getattr(whole, name), name
    assert pieces.rel_l2 == pytest.approx(whole.rel_l2, rel=1e-4)


def test_pieces_of_very_different_size_do_not_hide_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK", 4)
    array = np.array([0.1] * 4 + [1e-7] * 4, np.float32)
    assert rounding_stats(ir.Tensor(array), FP16).rel_l2 == pytest.approx(reference(array, FP16).rel_l2, rel=1e-4)


@BOTH
@pytest.mark.parametrize("runtime", [True, False])
def test_large_weights_round_as_small_ones_do(to: ir.DataType, runtime: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runtime:
        monkeypatch.setattr(weights, "runtime_cast", lambda: None)
    patterns = np.random.default_rng(1).integers(0, 2**32, 3 * BLOCK + 5, np.uint32).view(np.float32)
    numbers = np.where(np.abs(patterns) < 60000, patterns, np.float32(0.1))  # blocks without a number that is out of range
    numbers[BLOCK + 7] = 1e9
    with np.errstate(over="ignore"):
        want = numbers.astype(NUMPY[to])
    want[BLOCK + 7] = min(1e9, HALF_MAX[to])
    assert np.array_equal(bits(to_half(numbers, to)), bits(want))


@BOTH
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_a_sample_of_a_large_weight_tells_what_rounding_costs(to: ir.DataType, scale: float) -> None:
    size = (weights.SAMPLED + 3) * weights.CHUNK + 11
    array = (np.random.default_rng(2).normal(0, scale, size)).astype(np.float32)
    array[5] = 3e38
    found, want = rounding_stats(ir.Tensor(array), to), reference(array, to)
    exact = ("size", "absmax", "saturated", "flushed", "nonfinite", "lossy")
    assert [getattr(found, name) for name in exact] == [getattr(want, name) for name in exact]
    if to == FP16:  # in BF16 the one large number is all that counts
        assert found.rel_l2 == pytest.approx(want.rel_l2, rel=0.01)
