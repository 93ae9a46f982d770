"""Measures of a pair of values, written into the graph that computes both, so that no tensor leaves the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder

__all__ = ["GLANCED", "OPSET", "SUMMED", "ZEROED_LIMIT", "PairSums", "glance", "measure"]

#: The lowest opset in which the measures can be written.
OPSET = 13
#: Below this magnitude a value does not count as zeroed.
ZEROED_FROM = 6.1e-5
ZEROED_LIMIT = 0.5
#: rel_l2 from which NaN, infinities and zeros are counted: less drift leaves no room for many.
CLOSER_FROM = 0.02
DOUBLE, INT32 = ir.DataType.DOUBLE.value, ir.DataType.INT32.value


@dataclass(slots=True)
class PairSums:
    """What is known of a pair of values, pooled over samples, in the order in which `measure` writes it.

    Of `runs`, a value inside a branch or body may have none, and one inside a loop many a sample. In `bad_runs` an element was NaN
    or infinite in the candidate only.
    """

    error: float = 0.0
    size: float = 0.0
    reference_max: float = 0.0
    candidate_max: float = 0.0
    runs: int = 0
    error_max: float = 0.0
    new_nan: int = 0
    new_inf: int = 0
    bad_runs: int = 0
    large: int = 0
    zeroed: int = 0

    def add(self, row: np.ndarray) -> None:
        """Add one sample's numbers; the cheap measures are the first five."""
        for name, summed, number in zip(FIELDS, SUMMED, row, strict=False):
            before = getattr(self, name)
            # max() would drop a NaN.
            after = before + float(number) if summed else float(np.maximum(before, number))
            setattr(self, name, int(after) if isinstance(before, int) else after)

    @property
    def rel_l2(self) -> float:
        """Relative L2 drift; infinite with new NaN or infinite elements."""
        if self.new_nan or self.new_inf or not math.isfinite(self.error):
            return math.inf
        return math.sqrt(self.error / self.size) if self.size else math.sqrt(self.error)

    @property
    def suspicious(self) -> bool:
        """Whether the value needs a closer look."""
        return not (math.isfinite(self.error) and math.isfinite(self.size)) or self.rel_l2 > CLOSER_FROM

    @property
    def share_zeroed(self) -> float | None:
        """Share of the elements that are not small in the reference and 0 in the candidate."""
        return self.zeroed / self.large if self.large else None


FIELDS = tuple(field.name for field in fields(PairSums))
#: For each measure whether it is added up; if not, the largest is kept.
SUMMED = tuple(not name.endswith("_max") for name in FIELDS)
GLANCED = SUMMED[:5]


def glance(b: Builder, ours: ir.Value, theirs: ir.Value) -> ir.Value:
    """Write the cheap measures of a pair of values: the first five of `PairSums`, in FP32."""
    flat, zero = b.constant(np.array([-1], np.int64)), b.constant(np.zeros(1, np.float32))

    def largest(value: ir.Value) -> ir.Value:
        # With one zero more, so that the largest element of an empty tensor is 0.
        line = b.wide("Concat", b.wide("Reshape", value, flat), zero, axis=0)
        ends = [b.wide("Reshape", b.wide(op, line, keepdims=0), one) for op in ("ReduceMax", "ReduceMin")]
        return b.wide("ReduceMax", b.wide("Concat", ends[0], b.wide("Neg", ends[1]), axis=0), keepdims=1)

    one = b.constant(np.array([1], np.int64))
    error = b.wide("ReduceSumSquare", b.wide("Sub", theirs, ours), keepdims=0)
    size = b.wide("ReduceSumSquare", ours, keepdims=0)
    rows = [b.wide("Reshape", number, one) for number in (error, size)]
    return b.wide("Concat", *rows, largest(ours), largest(theirs), b.constant(np.ones(1, np.float32)), axis=0)


def measure(b: Builder, ours: ir.Value, theirs: ir.Value) -> ir.Value:
    """Write the measures of a pair of values; a vector of FP64 numbers, in the order of `PairSums`."""
    flat, zero = b.constant(np.array([-1], np.int64)), b.constant(np.zeros(1, np.float32))

    def line(value: ir.Value) -> ir.Value:
        # With one zero more, so that the largest element of an empty tensor is 0.
        return b.wide("Concat", b.wide("Reshape", value, flat), zero, axis=0)

    def total(condition: ir.Value) -> ir.Value:
        counted = b.typed(ir.DataType.INT32, "ReduceSum", b.typed(ir.DataType.INT32, "Cast", condition, to=INT32), keepdims=0)
        return b.typed(ir.DataType.DOUBLE, "Cast", counted, to=DOUBLE)

    r, c = line(ours), line(theirs)
    fine = b.test("Not", b.test("Or", b.test("IsNaN", r), b.test("IsInf", r)))
    nan = b.test("And", fine, b.test("IsNaN", c))
    infinite = b.test("And", fine, b.test("IsInf", c))
    both = b.test("And", fine, b.test("Not", b.test("Or", nan, infinite)))
    none = b.constant(np.float32(0))
    r, c = b.where(fine, r, none), b.where(both, c, none)
    size = b.wide("Abs", r)
    error = b.wide("Sub", c, r)  # a temporary in FP64 costs more than the rounding of a difference
    wide = [b.typed(ir.DataType.DOUBLE, "Cast", value, to=DOUBLE) for value in (error, r)]
    large = b.test("GreaterOrEqual", size, b.constant(np.float32(ZEROED_FROM)))
    gone = b.test("And", large, b.test("And", both, b.test("Equal", c, none)))

    def largest(value: ir.Value) -> ir.Value:
        return b.typed(ir.DataType.DOUBLE, "Cast", b.wide("ReduceMax", value, keepdims=0), to=DOUBLE)

    bad = b.typed(ir.DataType.INT32, "Cast", b.test("Or", nan, infinite), to=INT32)
    any_bad = b.typed(ir.DataType.INT32, "ReduceMax", bad, keepdims=0)
    numbers = [
        *(b.typed(ir.DataType.DOUBLE, "ReduceSumSquare", value, keepdims=0) for value in wide),
        largest(size),
        largest(b.wide("Abs", c)),
        b.constant(np.float64(1)),
        largest(b.wide("Abs", error)),
        total(nan),
        total(infinite),
        b.typed(ir.DataType.DOUBLE, "Cast", any_bad, to=DOUBLE),
        total(large),
        total(gone),
    ]
    one = b.constant(np.array([1], np.int64))
    rows = [b.typed(ir.DataType.DOUBLE, "Reshape", number, one) for number in numbers]
    return b.typed(ir.DataType.DOUBLE, "Concat", *rows, axis=0)
