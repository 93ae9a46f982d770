"""Made-up samples, for models that come without real ones: values that the model can take, not values that it will meet.

Random data hides overflow, so whatever is measured with them is labelled synthetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from halfconv.errors import InputError, UsageError
from halfconv.input_dims import resolve_dims
from halfconv.input_roles import Role, find_roles
from halfconv.sample_checks import InputSpec
from halfconv.samples import Sample, Samples

__all__ = ["LENGTHS", "fitting_samples", "input_specs", "synthetic_samples"]

#: Lengths of free sequence-like axes, in the order in which to try them where a model refuses the first.
LENGTHS = (16, 64, 128, 512, 1024)
#: One sample may take so many bytes.
MAX_BYTES = 1 << 30
#: Elements of a synthetic sequence.
SEQUENCE = 2
_MASK = re.compile(r"mask", re.I)
_PADDING = re.compile(r"pad", re.I)
_LENGTH = re.compile(r"(^|[_./])(len|lens|lengths?|seq_?lens?)($|[_./\d])|lengths?$", re.I)
_POSITION = re.compile(r"position", re.I)
_STEP = re.compile(r"time_?step|^t$", re.I)
#: Integers whose whole range is usual, as pixels and quantised numbers; the upper end is left out.
_RANGES = {"uint8": (0, 256), "int8": (-128, 128), "uint4": (0, 16), "int4": (-8, 8), "uint2": (0, 4), "int2": (-2, 2)}
_WORDS = ("alpha", "beta", "gamma", "delta", "the quick brown fox", "")


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Describe a model's inputs; weights that are also listed as inputs are none.

    Args:
        model: The model.

    Raises:
        InputError: An input is a map or of an unknown type.
    """
    specs = []
    for value in model.graph.inputs:
        name = value.name or ""
        if name in model.graph.initializers:
            continue
        kind: Any = value.type
        sequence = optional = False
        while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
            sequence, optional = sequence or isinstance(kind, ir.SequenceType), optional or isinstance(kind, ir.OptionalType)
            kind = kind.elem_type
        if kind is None or not hasattr(kind, "dtype"):
            raise InputError(f"input '{name}' is a map, or of an unknown type, which samples cannot hold", "export it with tensors")
        word = "string" if kind.dtype == ir.DataType.STRING else kind.dtype.numpy().name
        shape = None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        specs.append(InputSpec(name, word, shape, sequence, optional))
    return specs


def synthetic_samples(
    model: ir.Model, count: int = 4, seed: int = 0, *, length: int = LENGTHS[0], dims: Mapping[str, int] | None = None
) -> Samples:
    """Make samples up.

    Indices stay in their table, shapes and counts are small, masks are ones with some zeros at the end, lengths fit the sequence,
    other integers are small, and floating-point numbers are N(0, 1). All samples have the same shapes, so that a symbol means
    the same everywhere.

    Args:
        model: The model, prepared or as loaded; it is not changed.
        count: Number of samples.
        seed: The same seed gives the same samples.
        length: Size of free sequence-like axes (more where convolutions need it); see `LENGTHS`.
        dims: Symbols whose size is known.

    Returns:
        Samples of kind ``synthetic``.

    Raises:
        UsageError: The count is not positive, or the seed is negative.
        InputError: An input's type or size cannot be made up.
    """
    if count < 1:
        raise UsageError(f"{count} synthetic samples cannot show anything", "1 or more")
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", "--seed 0")
    specs, roles = input_specs(model), find_roles(model)
    shapes, symbols = resolve_dims(model, specs, length, dims or {})
    for spec in specs:
        if math.prod(size or 1 for size in shapes[spec.name]) * 8 > MAX_BYTES:  # numpy has limits for empty arrays, too
            raise InputError(f"input '{spec.name}' {shapes[spec.name]} is too large to be made up", "--samples PATH")
    longest = max((shape[1] for shape in shapes.values() if len(shape) >= 2), default=length)

    def produce() -> Iterator[Sample]:
        for index in range(count):
            feeds: dict[str, Any] = {}
            for place, spec in enumerate(specs):
                rng = np.random.default_rng([seed, index, place])
                maker = _Maker(spec, roles[spec.name], shapes[spec.name], symbols, longest, index == 0)
                made = [maker.make(rng) for _ in range(SEQUENCE if spec.sequence else 1)]
                feeds[spec.name] = made if spec.sequence else made[0]
            yield Sample(f"synthetic {index}", feeds)

    return Samples(produce, kind="synthetic", seed=seed, source="synthetic samples")


def fitting_samples(model: ir.Model, count: int, seed: int, run: Callable[[Mapping[str, Any], str], Any]) -> Samples:
    """Make samples up, of the first length that a model accepts.

    Args:
        model: The model.
        count: Number of samples.
        seed: The same seed gives the same samples.
        run: Runs the model on a sample's values, with its name for messages.

    Raises:
        InputError: Samples of no length fit.
    """
    problem: InputError | None = None
    for length in LENGTHS:
        made = synthetic_samples(model, count, seed, length=length)
        try:
            first = next(iter(made))
            run(first.feeds, first.name)
        except InputError as error:
            problem = error
            continue
        return made
    raise InputError(f"no synthetic sample fits: {problem}".partition("; try:")[0], "--samples with real inputs")


class _Maker:
    """Makes values of one input."""

    def __init__(
        self, spec: InputSpec, role: Role, shape: tuple[int, ...], symbols: Mapping[str, int], longest: int, first: bool
    ):
        self.spec, self.role, self.shape, self.symbols, self.longest, self.first = spec, role, shape, symbols, longest, first

    def make(self, rng: np.random.Generator) -> NDArray[Any]:
        if self.spec.dtype == "string":
            texts = [text for text in self.role.choices if isinstance(text, str)] or list(_WORDS)
            return np.array(rng.choice(np.array(texts, object), self.shape), object).reshape(self.shape)
        values = np.asarray(self._values(rng))  # of scalars, numpy gives no arrays
        if self.spec.dtype == "bfloat16":
            import ml_dtypes

            return values.astype(ml_dtypes.bfloat16)
        return values.astype(self.spec.dtype)

    def _values(self, rng: np.random.Generator) -> NDArray[Any]:
        role, spec, shape = self.role, self.spec, self.shape
        name, floating = spec.name, "float" in spec.dtype or "complex" in spec.dtype
        known = [number for number in role.choices if not isinstance(number, str)]
        if known:
            return np.array(rng.choice(known, shape))
        if role.limits and spec.dtype != "bool":
            return self._indices(rng)
        if _MASK.search(name) or (role.mask and not floating and shape):
            return self._mask(rng)
        if spec.dtype == "bool":
            return rng.random(shape) < 0.5
        if role.length or (not floating and _LENGTH.search(name)):
            low = self.longest if self.first else max(1, self.longest // 2)
            return rng.integers(low, self.longest + 1, shape)
        if role.shape:
            values = np.ones(shape, np.int64)
            values.flat[:1] = -1
            return values
        if role.counts and not floating:
            low, high = max(low for low, _ in role.counts), min(high for _, high in role.counts)
            return rng.integers(low, max(low, high) + 1, shape)
        if role.compared and math.prod(shape) == 1:
            return np.array(rng.choice(role.compared, shape))
        if _STEP.search(name):
            return rng.integers(0, 1000, shape)
        if spec.dtype.startswith("complex"):
            return rng.normal(size=shape) + 1j * rng.normal(size=shape)
        if floating:
            return rng.normal(size=shape)
        low, high = _RANGES.get(spec.dtype, (0, 10))
        return rng.integers(low, high, shape)

    def _indices(self, rng: np.random.Generator) -> NDArray[Any]:
        low, high = -math.inf, math.inf
        for scale, offset, limit in self.role.limits:
            size = limit if isinstance(limit, int) else self.symbols.get(limit, 1) if limit is not None else 1
            if not scale:
                continue
            ends = sorted((-offset / scale, (max(size, 1) - 1 - offset) / scale))
            low, high = max(low, math.ceil(ends[0])), min(high, math.floor(ends[1]))
        if not math.isfinite(low) or not math.isfinite(high):
            low, high = 0, 0
        if high >= 0:
            low = max(low, 0)  # token ids are not negative, even where what is added to them would allow it
        least, most = int(low), int(max(low, high))
        if _POSITION.search(self.spec.name) and self.shape:
            row = least + np.arange(self.shape[-1]) % (most - least + 1)
            return np.broadcast_to(row, self.shape)
        return rng.integers(least, most + 1, self.shape)

    def _mask(self, rng: np.random.Generator) -> NDArray[Any]:
        """Ones; from the second sample on, with zeros at the end of the rows. A boolean padding mask is the opposite."""
        mask = np.ones(self.shape, bool)
        if self.shape and not self.first:
            width = self.shape[-1]
            kept = width - rng.integers(0, width // 4 + 1, (*self.shape[:-1], 1))
            mask = np.arange(width) < kept
        return ~mask if self.spec.dtype == "bool" and _PADDING.search(self.spec.name) else mask
