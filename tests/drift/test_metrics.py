"""The measures against plain numpy and scipy on whole arrays, and what makes them bounded."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import distance

from halfconv.drift import metrics
from halfconv.drift.metrics import Accumulator
from halfconv.drift.report import OutputDrift
from halfconv.drift.summaries import PeakRatio, Percentile
from halfconv.errors import UsageError

BF16 = np.dtype(ml_dtypes.bfloat16)
#: The documented bound of the histograms.
BOUND = 1 / 256


def drift(*pairs: tuple[Any, Any], to: str = "fp16") -> OutputDrift:
    accumulator = Accumulator(to)
    for r, c in pairs:
        accumulator.update(r, c)
    return accumulator.result("y")


def norm(numbers: np.ndarray) -> float:
    """Exact sum of squares, as a fraction, so that nothing overflows or underflows."""
    return sum((Fraction(float(x)) ** 2 for x in numbers), Fraction(0))


def root(ratio: Fraction) -> float:
    scaled = math.isqrt(ratio.numerator * ratio.denominator * 4**600)
    try:
        return float(Fraction(scaled, ratio.denominator * 2**600))
    except OverflowError:
        return math.inf


def ulp(r: float, to: str) -> Fraction:
    bits, low, high = {"fp16": (10, -14, 15), "bf16": (7, -126, 127)}[to]
    exponent = math.frexp(r)[1] - 1 if r else low
    return Fraction(2) ** (min(max(exponent, low), high) - bits)


def expected(r: np.ndarray, c: np.ndarray, to: str) -> dict[str, Any]:
    """The measures of two 1-D float64 arrays without NaN and infinities, by their definitions, in fractions."""
    rs, cs = ([Fraction(float(x)) for x in numbers] for numbers in (r, c))
    ds = [abs(b - a) for a, b in zip(rs, cs, strict=True)]
    top = max(abs(x) for x in rs)

    def number(x: Fraction) -> float:
        try:
            return float(x)
        except OverflowError:
            return math.inf

    ulps = np.array([number(d / ulp(float(x), to)) for d, x in zip(ds, r, strict=True)])
    squares, errors = sum(x * x for x in rs), sum(d * d for d in ds)
    visible = np.abs(r) >= 6.1e-5
    return {
        "rel_l2": root(errors / squares) if squares else number(max(ds)),
        "max_abs": number(max(ds)),
        "max_rel": number(max(d / max(abs(x), top * Fraction(1e-3)) if top else d for d, x in zip(ds, rs, strict=True))),
        "ulp_p99": float(np.percentile(ulps, 99, method="inverted_cdf")),
        "zeroed": float(((c == 0) & visible).sum() / visible.sum()) if visible.any() else None,
        "absmax": float(top),
    }


def assert_like(got: OutputDrift, want: dict[str, Any]) -> None:
    measures = got.measures
    assert measures.rel_l2 == pytest.approx(want["rel_l2"], rel=1e-9, abs=5e-324)
    assert measures.max_abs == pytest.approx(want["max_abs"], rel=1e-12, abs=1e-323)
    assert measures.absmax == want["absmax"] and measures.zeroed == want["zeroed"]
    if math.isinf(want["max_abs"]):
        assert measures.max_rel == math.inf
    elif want["absmax"] > 1e-300:
        assert measures.max_rel is not None and measures.max_rel >= want["max_rel"] * (1 - 1e-12) - 1e-323
        assert measures.max_rel == pytest.approx(want["max_rel"], rel=BOUND, abs=1e-323)
    assert measures.ulp_p99 is not None
    if want["ulp_p99"] < 2.0**-31:
        assert measures.ulp_p99 <= 2.0**-31
    elif want["ulp_p99"] < 2.0**159:
        assert measures.ulp_p99 == pytest.approx(want["ulp_p99"], rel=BOUND)
    if math.isfinite(want["rel_l2"]) and want["rel_l2"] > 0:
        assert measures.sqnr_db == pytest.approx(-20 * math.log10(want["rel_l2"]), abs=1e-6)


def floats(width: int, **limits: Any) -> st.SearchStrategy[float]:
    return st.floats(width=width, allow_nan=False, allow_infinity=False, **limits)  # type: ignore[arg-type]


@st.composite
def pairs(draw: Any, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Arrays with exact, close and wild candidates side by side."""
    width = np.dtype(dtype).itemsize * 8
    size = draw(st.integers(1, 12))
    r, wild = (draw(hnp.arrays(dtype, size, elements=floats(width))) for _ in range(2))
    with np.errstate(all="ignore"):
        close = (r * (1 + draw(st.sampled_from([0.0, 1e-4, 1e-2])))).astype(dtype)
    close = np.where(np.isfinite(close), close, r)
    return r, np.where(draw(hnp.arrays(bool, size)), wild, close)


@given(pairs(np.float64), st.sampled_from(["fp16", "bf16"]))
@settings(max_examples=80, deadline=None)
def test_float64_of_all_magnitudes(pair: tuple[np.ndarray, np.ndarray], to: str) -> None:
    assert_like(drift(pair, to=to), expected(*pair, to))


@given(pairs(np.float32), st.sampled_from(["fp16", "bf16"]))
@settings(max_examples=60, deadline=None)
def test_float32_with_denormals(pair: tuple[np.ndarray, np.ndarray], to: str) -> None:
    r, c = pair
    assert_like(drift(pair, to=to), expected(r.astype(np.float64), c.astype(np.float64), to))


@given(hnp.arrays(np.float64, (7, 5), elements=st.floats(-1e4, 1e4)), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_cosine_is_scipys(r: np.ndarray, seed: int) -> None:
    c = r + np.random.default_rng(seed).normal(size=r.shape)
    got = drift((r, c)).measures.cosine
    if norm(r.ravel()) == 0:
        assert got == 0.0
    else:
        small = np.ldexp(r, -math.frexp(float(np.abs(r).max()))[1])  # scipy's own squares underflow
        assert got == pytest.approx(1 - distance.cosine(small.ravel(), c.ravel()), abs=1e-12)


def alike(name: str, got: Any, want: Any) -> bool:
    """Equal up to the order of summation, to which cosine is sensitive near 0 and sqnr_db where rel_l2 is near 1."""
    near_zero = 1e-7 if name in ("cosine", "sqnr_db") else 0.0
    return bool(got == (pytest.approx(want, rel=1e-9, abs=near_zero) if isinstance(want, float) else want))


@given(st.lists(pairs(np.float32), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_pooling_is_concatenation(samples: list[tuple[np.ndarray, np.ndarray]]) -> None:
    whole = drift((np.concatenate([r for r, _ in samples]), np.concatenate([c for _, c in samples]))).measures.to_dict()
    pooled = drift(*samples).measures.to_dict()
    for name in whole.keys() - {"argmax_agreement"}:
        assert alike(name, pooled[name], whole[name]), name


@given(pairs(np.float32), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_chunk_boundaries_change_nothing(pair: tuple[np.ndarray, np.ndarray], chunk: int) -> None:
    whole = drift(pair, (pair[0][None], pair[1][None])).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        parts = drift(pair, (pair[0][None], pair[1][None])).to_dict()
    for name, value in whole.items():
        assert alike(name, parts[name], value), name


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1e307])
def test_scaling_both_changes_no_relative_measure(scale: float) -> None:
    r = np.array([1.0, 2.0, 4.0, 8.0])
    c = np.array([1.0, 2.0, 4.0, 6.0])
    got = drift((r * scale, c * scale)).measures
    assert got.rel_l2 == pytest.approx(math.sqrt(4 / 85), rel=1e-3)
    assert got.cosine == pytest.approx(69 / math.sqrt(85 * 57), rel=1e-3)
    assert got.max_rel == pytest.approx(0.25, rel=1e-3)


def test_samples_of_extreme_and_of_common_magnitude_pool() -> None:
    small, one, large = np.full(3, 1e-310), np.ones(3), np.full(3, 1e300)
    assert drift((small, small * 2), (one, one)).measures.rel_l2 == pytest.approx(1e-310, rel=1e-3)
    assert drift((one, one * 2), (large, large)).measures.rel_l2 == pytest.approx(1e-300, rel=1e-9)
    assert drift((large, -large)).measures.rel_l2 == pytest.approx(2.0)
    assert drift((large * 1e8, large * -1e8)).measures.rel_l2 == pytest.approx(2.0)
    assert drift((large * 1e8, large * -1e8)).measures.max_abs == math.inf


ODD = st.sampled_from([0.0, 1.0, -2.0, math.nan, math.inf, -math.inf])


@given(hnp.arrays(np.float32, (6, 4), elements=ODD), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_what_is_not_finite_is_counted(r: np.ndarray, seed: int) -> None:
    c = np.random.default_rng(seed).permutation(r.ravel()).reshape(r.shape)
    got = drift((r, c)).measures
    pairs = list(zip(r.ravel().tolist(), c.ravel().tolist(), strict=True))
    finite = [(a, b) for a, b in pairs if math.isfinite(a)]
    assert got.new_nan == sum(math.isnan(b) for _, b in finite)
    assert got.new_inf == sum(math.isinf(b) for _, b in finite)
    assert got.mismatched == sum(not (a == b or (math.isnan(a) and math.isnan(b))) for a, b in pairs if not math.isfinite(a))
    if not finite:
        assert got.rel_l2 is got.max_abs is got.max_rel is got.cosine is got.sqnr_db is got.ulp_p99 is got.absmax is None
    elif got.new_nan or got.new_inf:
        assert (got.rel_l2, got.max_abs, got.max_rel, got.cosine) == (math.inf, math.inf, math.inf, 0.0)
        assert got.sqnr_db == -math.inf
    else:
        a, b = np.array(finite).T
        assert_like(drift((r, c)), expected(a, b, "fp16"))
    rows = [(x, y) for x, y in zip(r, c, strict=True) if not np.isnan(x).any()]
    same = sum(not np.isnan(y).any() and x.argmax() == y.argmax() for x, y in rows)
    assert got.argmax_agreement == (same / len(rows) if rows else None)


def test_the_percentile_counts_what_was_lost() -> None:
    r = np.ones(100)
    c = r.copy()
    c[0] = math.nan
    assert drift((r, c)).measures.ulp_p99 == 0.0
    c[1] = math.inf
    assert drift((r, c)).measures.ulp_p99 == math.inf


@pytest.mark.parametrize("empty", [np.zeros((0, 4), np.float32), np.zeros(0, np.float16), np.zeros((3, 0)), np.zeros(0, int), []])
def test_empty(empty: Any) -> None:
    got = drift((empty, empty))
    assert got.elements == 0 and got.shape_change == ""
    assert {value for value in got.measures.to_dict().values() if value is not None} == {0}  # the counts


def test_nothing_at_all() -> None:
    assert drift().dtype == "unknown" and drift((None, None)).elements == 0


def test_zeros() -> None:
    zeros = np.zeros(4, np.float32)
    same = drift((zeros, zeros)).measures
    assert (same.rel_l2, same.max_abs, same.max_rel, same.cosine, same.sqnr_db, same.ulp_p99) == (0, 0, 0, 1, math.inf, 0)
    assert same.zeroed is None and same.absmax == 0
    other = drift((zeros, zeros + np.float32(0.5))).measures
    assert (other.rel_l2, other.max_abs, other.max_rel, other.cosine) == (0.5, 0.5, 0.5, 0)
    assert other.ulp_p99 == pytest.approx(0.5 * 2**24, rel=BOUND)  # subnormal spacing of FP16
    collapsed = drift((zeros + 1, zeros)).measures
    assert (collapsed.rel_l2, collapsed.zeroed, collapsed.cosine) == (1, 1, 0)


def test_a_model_against_itself_has_no_drift() -> None:
    x = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    got = drift((x, x.copy())).measures
    assert (got.rel_l2, got.max_abs, got.max_rel, got.ulp_p99, got.sqnr_db) == (0, 0, 0, 0, math.inf)
    assert got.cosine == pytest.approx(1.0) and got.argmax_agreement == 1 and got.zeroed == 0


@pytest.mark.parametrize(("to", "dtype"), [("fp16", np.float16), ("bf16", BF16)])
def test_rounding_to_a_half_type_costs_at_most_half_an_ulp(to: str, dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    got = drift((x, x.astype(dtype)), to=to)
    assert got.shape_change == "" and got.dtype == "float32"
    assert got.measures.ulp_p99 is not None and 0.48 < got.measures.ulp_p99 <= 0.5 * (1 + BOUND)


@pytest.mark.parametrize(("r", "one"), [(0.0, 2**-24), (2.0**-20, 2**-24), (1.0, 2**-10), (1.99, 2**-10), (65504.0, 32), (1e9, 32)])
def test_ulps_of_fp16(r: float, one: float) -> None:
    assert drift((np.array([r]), np.array([r + one]))).measures.ulp_p99 == pytest.approx(1, rel=BOUND)


def test_bfloat16_arrays_are_read() -> None:
    x = np.array([[1.0, 3.0, 2.0]], BF16)
    got = drift((x, x.T.T[:, ::1]), to="bf16")
    assert got.dtype == "bfloat16" and got.measures.rel_l2 == 0 and got.measures.argmax_agreement == 1


def test_complex_numbers_are_pairs() -> None:
    r, c = np.array([3 + 4j, 0j], np.complex64), np.array([3 + 3j, 0j], np.complex64)
    got = drift((r, c))
    assert got.dtype == "complex64" and got.elements == 2
    assert got.measures.rel_l2 == pytest.approx(1 / 5) and got.measures.argmax_agreement is None
    assert drift((r, np.array([3 + 4j, complex(0, math.nan)], np.complex64))).measures.new_nan == 1


@pytest.mark.parametrize(
    ("r", "c", "dtype"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), "int64"),
        (np.array([1, 2, 3, 4], np.uint8), np.array([1, 2, 3, 5], np.int32), "uint8"),
        (np.array([True, False, True, True]), np.array([True, False, True, False]), "bool"),
        (np.array(["a", "b", "c", "d"]), np.array(["a", "b", "c", "e"], object), "string"),
    ],
)
def test_agreement(r: np.ndarray, c: np.ndarray, dtype: str) -> None:
    got = drift((r, c))
    assert (got.dtype, got.elements, got.shape_change) == (dtype, 4, "")
    assert got.measures.to_dict() == {
        **drift().measures.to_dict(),
        "agreement": 0.75,
    }


def test_layouts() -> None:
    x = np.random.default_rng(0).normal(size=(6, 8, 10))
    y = x + 1e-3
    want = drift((np.ascontiguousarray(x.T), np.ascontiguousarray(y.T))).to_dict()
    for left, right in ((x.T, y.T), (x.T, np.ascontiguousarray(y.T)), (np.asfortranarray(x.T), y.T)):
        assert drift((left, right)).to_dict() == want
    assert drift((x.astype(BF16).T, y.astype(BF16).T)).elements == 480


def test_scalars() -> None:
    got = drift((np.float32(2.0), np.float32(1.0)))
    assert got.elements == 1 and got.measures.rel_l2 == 0.5 and got.measures.argmax_agreement is None


def test_a_row_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 4)
    rows = np.zeros((5, 11), np.float32)
    rows[np.arange(5), [0, 3, 4, 10, 7]] = 1
    other = rows.copy()
    other[1, 9] = 2  # another place
    other[2, 8] = math.nan  # disagrees
    rows[4, 2] = math.nan  # skipped
    assert drift((rows, other)).measures.argmax_agreement == 2 / 4


# --- sequences, maps, optionals ------------------------------------------------------------------------------------


def test_sequences_are_pooled() -> None:
    a, b = np.array([1.0, 2.0]), np.array([[3.0]])
    got = drift(([a, b], [a, b + 1]))
    assert got.elements == 3 and got.measures.rel_l2 == pytest.approx(math.sqrt(1 / 14))


def test_maps_of_numbers_are_rows() -> None:
    r = [{0: 0.1, 1: 0.9}, {0: 0.8, 1: 0.2}, {0: 0.6, 1: 0.4}]
    c = [{1: 0.9, 0: 0.1}, {0: 0.8, 1: 0.2}, {0: 0.4, 1: 0.6}]
    got = drift((r, c))
    assert got.elements == 6 and got.dtype == "float32"
    assert got.measures.argmax_agreement == pytest.approx(2 / 3) and got.measures.max_abs == pytest.approx(0.2)
    assert drift((r[0], c[0])).measures.rel_l2 == 0
    assert drift(({"n": 3, "m": 4}, {"n": 3, "m": 5})).measures.agreement == 0.5
    assert drift(({"x": np.ones(2)}, {"x": np.ones(2) * 2})).measures.rel_l2 == 1


@pytest.mark.parametrize(
    ("r", "c", "words"),
    [
        (np.zeros((1, 10)), np.zeros((1, 9)), "sample 1: shape (1, 10) became (1, 9)"),
        (np.zeros(2), np.zeros(2, np.int64), "sample 1: type float64 became int64"),
        (np.zeros(2, np.int64), np.zeros(2, bool), "sample 1: type int64 became bool"),
        (np.array(["a"]), np.zeros(1), "sample 1: type string became float64"),
        ([np.zeros(2)] * 3, [np.zeros(2)] * 2, "sample 1: length 3 became 2"),
        ([np.zeros(2), np.zeros(3)], [np.zeros(2), np.zeros(4)], "sample 1[1]: shape (3,) became (4,)"),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0}, "sample 1: key 'b' is gone, key 'c' is new"),
        ([{"a": 1.0}], [{"b": 1.0}], "sample 1[0]: key 'a' is gone, key 'b' is new"),
        ({"a": np.zeros(2)}, {"a": np.zeros(3)}, "sample 1['a']: shape (2,) became (3,)"),
        (np.zeros(2), None, "sample 1: a tensor became no value"),
        ([np.zeros(2)], np.zeros((1, 2)), "sample 1: a sequence became a tensor"),
    ],
)
def test_changes_of_shape(r: Any, c: Any, words: str) -> None:
    accumulator = Accumulator("fp16")
    accumulator.update(None, None)
    accumulator.update(r, c)
    accumulator.update(np.zeros(1), np.zeros(7))
    assert accumulator.result("y").shape_change == words


def test_a_change_names_the_sample() -> None:
    accumulator = Accumulator("fp16")
    accumulator.update(np.zeros(1), np.zeros(2), "photos.npz[7]")
    assert accumulator.result("y").shape_change == "photos.npz[7]: shape (1,) became (2,)"


def test_another_precision_is_no_change() -> None:
    assert drift((np.ones(2, np.float32), np.ones(2, np.float16))).shape_change == ""
    assert drift((np.ones(2, np.float32), np.ones(2, BF16))).shape_change == ""


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="'fp8' is no half format"):
        Accumulator("fp8")


# --- the summaries -------------------------------------------------------------------------------------------------


@given(st.lists(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e6)), min_size=1, max_size=6), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_peak_ratio_is_within_its_bound(parts: list[np.ndarray], seed: int) -> None:
    rng = np.random.default_rng(seed)
    peak = PeakRatio()
    errors = [rng.exponential(size=part.size) * 10.0 ** rng.integers(-6, 3, part.size) for part in parts]
    for r, d in zip(parts, errors, strict=True):
        peak.add(r, d)
    r, d = np.concatenate(parts), np.concatenate(errors)
    if r.max() > 1e-300:
        exact = (d / np.maximum(r, 1e-3 * r.max())).max()
        assert exact * (1 - 1e-12) <= peak.result() <= exact * (1 + BOUND)


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(2.0**-31, 2.0**150)), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=100, deadline=None)
def test_percentile_is_within_its_bound(numbers: np.ndarray, share: float) -> None:
    summary = Percentile()
    summary.add(numbers)
    exact = np.percentile(numbers, share * 100, method="inverted_cdf")
    assert summary.result(share) == pytest.approx(exact, rel=BOUND)


def test_percentile_outside_its_range() -> None:
    summary = Percentile()
    assert summary.result(0.99) is None
    summary.add(np.array([1e-20]))
    assert summary.result(0.99) == 0.0
    summary.add(np.array([1e60, 1e61]))
    assert summary.result(0.99) == 1e61


# --- memory --------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_chunk() -> None:
    r = np.random.default_rng(0).normal(size=(4, 4_000_000)).astype(np.float16)  # rows longer than a chunk
    c = r.copy()
    accumulator = Accumulator("fp16")
    tracemalloc.start()
    try:
        accumulator.update(r, c)
        accumulator.update(r.reshape(-1, 4), c.reshape(-1, 4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 8 * metrics.CHUNK
    assert accumulator.result("y").measures.argmax_agreement == 1
