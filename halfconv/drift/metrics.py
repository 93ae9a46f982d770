"""Measure one output: reference against candidate, sample by sample, in bounded memory.

    update(r, c) → leaves (arrays of a sequence, rows of a map) → chunks in float64 → sums, peaks and counts → result

No array is kept, and temporaries are as large as a chunk, however large the arrays are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfconv.drift.report import Measures, OutputDrift
from halfconv.drift.summaries import Floats, PeakRatio, Percentile, ScaledSum, power_of
from halfconv.errors import UsageError

__all__ = ["ZEROED_FROM", "Accumulator"]

#: Elements that are worked on at once.
CHUNK = 1 << 18
#: From this magnitude on (FP16's smallest normal number), an element that becomes exactly 0 counts as zeroed.
ZEROED_FROM = 6.1e-5
#: Half format -> mantissa bits, and exponents of the smallest and the largest normal numbers.
FORMATS = {"fp16": (10, -14, 15), "bf16": (7, -126, 127)}

_KINDS = {"f": "float", "c": "complex", "i": "integer", "u": "integer", "b": "bool", "O": "string", "U": "string", "S": "string"}
Array = NDArray[Any]


class Accumulator:
    """Drift of one output, pooled over all samples.

    All floating-point measures are computed in float64. `rel_l2` and `cosine` are sums scaled against overflow and underflow,
    exact to rounding. `max_rel` and `ulp_p99` come from histograms, within 0.4 % (see `PeakRatio` and `Percentile`); `ulp_p99`
    is the smallest u such that 99 % of the elements err by at most u. Where c is NaN or infinite and r is finite, `rel_l2`,
    `max_abs` and `max_rel` are infinite, `cosine` is 0, and the element counts as infinitely many ulps. Where c−r itself exceeds
    float64 (1.8e308), `max_abs` and `max_rel` are infinite; `rel_l2` is not.

    Args:
        to: The half format whose ulps are counted: ``fp16`` or ``bf16``.

    Raises:
        UsageError: There is no such format.
    """

    def __init__(self, to: str):
        if to not in FORMATS:
            raise UsageError(f"'{to}' is no half format", "fp16 or bf16")
        self._format = FORMATS[to]
        self._samples = 0
        self._change = ""
        self._dtype = ""
        self._elements = 0
        self._finite = 0  # elements where r is finite
        self._rr, self._cc, self._rc, self._dd = ScaledSum(), ScaledSum(), ScaledSum(), ScaledSum()
        self._max_abs = 0.0
        self._peak: PeakRatio | None = None
        self._ulps = Percentile()
        self._rows = self._same_rows = 0
        self._compared = self._equal = 0
        self._new_nan = self._new_inf = self._mismatched = 0
        self._visible = self._zeroed = 0

    def update(self, reference: Any, candidate: Any, sample: str | None = None) -> None:
        """Take one sample's output of both models.

        Args:
            reference: An array of any shape: float16, bfloat16, float32, float64, complex (a pair of floats), integer, bool or
                string; a list of such (sequence); a dict (map; one of numbers counts as a row); None (an optional without value).
            candidate: The same of the candidate. Its precision may differ; another shape, length, key or kind of type is a change
                of shape: the first is kept in words, and what it concerns is not compared.
            sample: The sample's name in those words; by default ``sample N``, counted from 0.
        """
        label = f"sample {self._samples}" if sample is None else sample
        self._samples += 1
        with np.errstate(all="ignore"):
            self._update(reference, candidate, label)

    def _update(self, r: Any, c: Any, label: str) -> None:
        what, became = _form(r), _form(c)
        if what != became:
            self._changed(label, f"{what} became {became}")
        elif isinstance(r, Mapping):
            self._map(r, c, label)
        elif isinstance(r, (list, tuple)):
            if len(r) != len(c):
                self._changed(label, f"length {len(r)} became {len(c)}")
            elif not self._table(r, c):
                for index, (left, right) in enumerate(zip(r, c, strict=True)):
                    self._update(left, right, f"{label}[{index}]")
        elif r is not None:
            self._tensor(np.asarray(r), np.asarray(c), label)

    def _changed(self, label: str, words: str) -> None:
        self._change = self._change or f"{label}: {words}"

    def _map(self, r: Mapping[Any, Any], c: Mapping[Any, Any], label: str) -> None:
        if r.keys() != c.keys():
            gone, new = [k for k in r if k not in c], [k for k in c if k not in r]
            words = [f"key {key!r} is {how}" for keys, how in ((gone, "gone"), (new, "new")) for key in keys[:3]]
            self._changed(label, ", ".join(words))
        elif not self._table([r], [c]):
            for key, value in r.items():
                self._update(value, c[key], f"{label}[{key!r}]")

    def _table(self, r: Any, c: Any) -> bool:
        """Take maps of the same keys to numbers, as classifiers give them, as rows of one array; False if these are not such."""
        if not r or not isinstance(r[0], Mapping) or not r[0]:
            return False
        keys = list(r[0])
        if not all(isinstance(m, Mapping) and m.keys() == r[0].keys() for rows in (r, c) for m in rows):
            return False
        if not all(isinstance(v, (float, np.floating)) for rows in (r, c) for m in rows for v in m.values()):
            return False
        step = max(1, CHUNK // len(keys))
        for start in range(0, len(r), step):
            left, right = (np.array([[m[k] for k in keys] for m in rows[start : start + step]], np.float64) for rows in (r, c))
            self._dtype = self._dtype or "float32"  # what ONNX's maps hold, given as Python's float
            self._tensor(left, right, "")
        return True

    def _tensor(self, r: Array, c: Array, label: str) -> None:
        kind = _kind(r)
        self._dtype = self._dtype or ("string" if kind == "string" else r.dtype.name)
        if kind != _kind(c):
            self._changed(label, f"type {_kind_words(r)} became {_kind_words(c)}")
            return
        if r.shape != c.shape:
            self._changed(label, f"shape {r.shape} became {c.shape}")
            return
        self._elements += r.size
        if kind not in ("float", "complex"):
            for left, right in zip(_chunks(r, CHUNK), _chunks(c, CHUNK), strict=True):
                self._compared += left.size
                self._equal += int(np.count_nonzero(left == right))
            return
        width = r.shape[-1] if r.ndim and kind == "float" else 0
        if r.size and width > CHUNK:
            self._long_rows(r, c, width)
        step = CHUNK // width * width if 0 < width <= CHUNK else CHUNK
        for left, right in zip(_chunks(r, step), _chunks(c, step), strict=True):
            if kind == "complex":
                left, right = (np.ascontiguousarray(part.astype(np.complex128)).view(np.float64) for part in (left, right))
            else:
                left, right = left.astype(np.float64), right.astype(np.float64)
            if 2 <= width <= CHUNK:
                self._count_rows(left.reshape(-1, width), right.reshape(-1, width))
            self._floats(left, right)

    def _count_rows(self, r: Floats, c: Floats) -> None:
        at, other = r.argmax(-1), c.argmax(-1)  # of a row with NaN, the first NaN
        rows = np.arange(len(r))
        valid = ~np.isnan(r[rows, at])
        self._rows += int(np.count_nonzero(valid))
        self._same_rows += int(np.count_nonzero(valid & (at == other) & ~np.isnan(c[rows, other])))

    def _long_rows(self, r: Array, c: Array, width: int) -> None:
        """Find the places of the largest elements chunk by chunk."""
        for start in range(0, r.size, width):
            (at, top), (other, candidate) = (_argmax(array, start, width) for array in (r, c))
            if not math.isnan(top):
                self._rows += 1
                self._same_rows += at == other and not math.isnan(candidate)

    def _floats(self, r: Floats, c: Floats) -> None:
        """Take a chunk of float64 numbers."""
        finite, regular = np.isfinite(r), np.isfinite(c)
        if not (finite.all() and regular.all()):
            same = (r == c) | (np.isnan(r) & np.isnan(c))
            self._mismatched += int(np.count_nonzero(~finite & ~same))
            nan, inf = int(np.count_nonzero(finite & np.isnan(c))), int(np.count_nonzero(finite & np.isinf(c)))
            self._new_nan += nan
            self._new_inf += inf
            self._ulps.infinite += nan + inf
            self._finite += nan + inf
            lost = finite & ~regular
            if nan + inf:
                # What became NaN still counts as a magnitude of the reference.
                size = np.abs(r[lost])
                self._visible += int(np.count_nonzero(size >= ZEROED_FROM))
                self._sum(self._rr, r[lost], r[lost])
                self._peaks().add(size, np.zeros_like(size))
            r, c = r[finite & regular], c[finite & regular]
        if not r.size:
            return
        self._finite += r.size
        d = c - r
        overflowed = not np.isfinite(d).all()
        if overflowed:  # only float64 numbers near its largest
            d = c / 2 - r / 2
        size, error = np.abs(r), np.abs(d)
        self._sum(self._rr, r, r)
        self._sum(self._cc, c, c)
        self._sum(self._rc, r, c)
        self._sum(self._dd, d, d, 1 if overflowed else 0)
        scale = 2.0 if overflowed else 1.0
        self._max_abs = max(self._max_abs, float(error.max()) * scale)
        if not error.any():
            self._peaks().add(size, error)
            self._ulps.add(error)
        else:
            self._peaks().add(size, error * scale)
            self._ulps.add(self._in_ulps(size, error) * scale)
        visible = size >= ZEROED_FROM
        self._visible += int(np.count_nonzero(visible))
        self._zeroed += int(np.count_nonzero(visible & (c == 0)))

    def _peaks(self) -> PeakRatio:
        if self._peak is None:
            self._peak = PeakRatio()
        return self._peak

    @staticmethod
    def _sum(into: ScaledSum, a: Floats, b: Floats, doubled: int = 0) -> None:
        powers = [power_of(float(np.abs(x).max())) for x in (a, b)]
        a, b = (np.ldexp(x, -power) if power else x for x, power in zip((a, b), powers, strict=True))
        into.add(a, powers[0] + doubled, b, powers[1] + doubled)

    def _in_ulps(self, size: Floats, error: Floats) -> Floats:
        bits, smallest, largest = self._format
        exponent = np.clip((size.view(np.int64) >> 52) - 1023, smallest, largest)
        # 2^(bits − exponent), made of its bits; all these powers are normal numbers.
        factor: Floats = ((bits - exponent + 1023) << 52).view(np.float64)
        return error * factor

    def harm(self) -> tuple[float, float]:
        """What the samples so far do to the output, to tell which sample did it: broken elements, and their squared error."""
        lost = self._new_nan + self._new_inf + self._mismatched + self._compared - self._equal + bool(self._change)
        try:
            return float(lost + self._zeroed), math.ldexp(self._dd.mantissa, self._dd.exponent)
        except OverflowError:
            return float(lost + self._zeroed), math.inf

    def energy(self) -> float:
        """Σr² of the samples so far."""
        try:
            return math.ldexp(self._rr.mantissa, self._rr.exponent)
        except OverflowError:
            return math.inf

    def result(self, name: str) -> OutputDrift:
        """The drift of all samples so far.

        Args:
            name: The output's name.

        Returns:
            The measures, without a verdict; those that do not apply, or have no element, are None.
        """
        return OutputDrift(
            name=name,
            dtype=self._dtype or "unknown",
            elements=self._elements,
            measures=self._measures(),
            shape_change=self._change,
        )

    def _measures(self) -> Measures:
        agreement = self._equal / self._compared if self._compared else None
        argmax = self._same_rows / self._rows if self._rows else None
        if not self._finite:
            return Measures(agreement=agreement, argmax_agreement=argmax, mismatched=self._mismatched)
        lost = bool(self._new_nan or self._new_inf)
        peaks = self._peaks()
        max_abs = math.inf if lost else self._max_abs
        if lost:
            rel_l2 = math.inf
        elif self._rr.mantissa == 0.0:
            rel_l2 = max_abs
        else:
            rel_l2 = self._dd.root_over(self._rr)
        return Measures(
            rel_l2=rel_l2,
            max_abs=max_abs,
            max_rel=math.inf if lost else peaks.result(),
            cosine=0.0 if lost else self._cosine(),
            sqnr_db=_decibel(rel_l2),
            ulp_p99=self._ulps.result(0.99),
            argmax_agreement=argmax,
            agreement=agreement,
            new_nan=self._new_nan,
            new_inf=self._new_inf,
            zeroed=self._zeroed / self._visible if self._visible else None,
            mismatched=self._mismatched,
            absmax=peaks.largest,
        )

    def _cosine(self) -> float:
        zeros = [total.mantissa == 0.0 for total in (self._rr, self._cc)]
        if any(zeros):
            return 1.0 if all(zeros) else 0.0
        return max(-1.0, min(1.0, self._rc.over(self._rr, self._cc)))


def _decibel(rel_l2: float) -> float:
    if rel_l2 == 0.0:
        return math.inf
    return -20.0 * math.log10(rel_l2) if math.isfinite(rel_l2) else -math.inf


def _form(value: Any) -> str:
    if value is None:
        return "no value"
    if isinstance(value, Mapping):
        return "a map"
    return "a sequence" if isinstance(value, (list, tuple)) else "a tensor"


def _kind(array: Array) -> str:
    if array.dtype.kind in _KINDS:
        return _KINDS[array.dtype.kind]
    if array.dtype.kind == "T":
        return "string"
    # The types of ml_dtypes call themselves void.
    return "integer" if "int" in array.dtype.name else "float"


def _kind_words(array: Array) -> str:
    return "string" if _kind(array) == "string" else array.dtype.name


def _chunks(array: Array, step: int) -> Iterator[Array]:
    """Parts of the array in C order, 1-D; views where it is contiguous, else copies of one part at a time."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    for start in range(0, array.size, step):
        yield flat[start : start + step]


def _argmax(array: Array, start: int, width: int) -> tuple[int, float]:
    """Place and value of the largest of a row's elements; NaN if it has one."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    place, top = -1, -math.inf
    for begin in range(start, start + width, CHUNK):
        part = np.asarray(flat[begin : min(begin + CHUNK, start + width)]).astype(np.float64)
        index = int(part.argmax())
        value = float(part[index])
        if math.isnan(value):
            return begin + index, value
        if value > top or place < 0:
            place, top = begin + index, value
    return place, top
