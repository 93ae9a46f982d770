"""Check one sample against the model's inputs, and cast what may be cast without loss of meaning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfconv.errors import InputError

__all__ = ["InputSpec", "fit", "known_dim"]

Array = NDArray[Any]
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model wants of one input.

    Attributes:
        name: The input's name.
        dtype: Element type in numpy's words: ``float32``, ``float16``, ``bfloat16``, ``int64``, ``bool``, ``string``, …
        shape: Dimensions: a number, a symbol, or None where nothing is known; None if the rank is not known either. Of a
            sequence, those of its elements.
        sequence: It takes a list of tensors.
        optional: It may be absent.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None = None
    sequence: bool = False
    optional: bool = False


def known_dim(dim: int | str | None) -> int | str | None:
    """A dimension as declared, or None where it says nothing: -1, ``?``, an empty name."""
    if isinstance(dim, str):
        return dim if re.search(r"[^\W_]", dim) and dim not in ("-1", "None") else None
    return dim if dim is not None and dim >= 0 else None


def fit(found: Mapping[str, Any], inputs: Sequence[InputSpec], label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check a sample.

    Floating-point arrays are cast to the input's floating-point type, integers to its integer type if all values fit. An
    array for a sequence input is taken apart along its first axis.

    Args:
        found: Arrays (or what numpy makes arrays of; lists for sequences) by name.
        inputs: The model's inputs.
        label: File and sample, for messages.

    Returns:
        What the model is fed with, and what no input claims.

    Raises:
        InputError: An input is missing, or has another type or shape than the model wants.
    """
    names = [spec.name for spec in inputs]
    extras = {name: value for name, value in found.items() if name not in names}
    feeds: dict[str, Any] = {}
    dims: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        where = f"{label}: input '{spec.name}'"
        value = found.get(spec.name)
        if value is None:
            if spec.optional:
                continue
            close = difflib.get_close_matches(spec.name, list(extras), 1, 0.6)
            listed = ", ".join(map(str, found))[:200] or "nothing"
            raise InputError(
                f"{where} is missing; found {listed}", f"rename '{close[0]}'" if close else f"an array named '{spec.name}'"
            )
        if spec.sequence:
            items = list(value) if isinstance(value, (list, tuple)) or np.ndim(value) else [value]
            feeds[spec.name] = [_fit_one(item, spec, f"{where}[{i}]", None) for i, item in enumerate(items)]
        else:
            feeds[spec.name] = _fit_one(value, spec, where, dims)
    return feeds, extras


def _fit_one(value: Any, spec: InputSpec, where: str, dims: dict[str, tuple[int, str]] | None) -> Array:
    array = _cast(_as_array(value, where), spec.dtype, where)
    if spec.shape is None:
        return array
    want = tuple(known_dim(dim) for dim in spec.shape)
    words = f"({', '.join('?' if dim is None else str(dim) for dim in want)}{',' if len(want) == 1 else ''})"
    if len(want) != array.ndim or any(isinstance(w, int) and w != got for w, got in zip(want, array.shape, strict=True)):
        advice = "one sample with all of its axes" if len(want) != array.ndim else "reshape, crop or pad it"
        raise InputError(f"{where} has shape {array.shape}, expected {words}", advice)
    for dim, got in zip(want, array.shape, strict=True):
        if isinstance(dim, str) and dims is not None:
            before, owner = dims.setdefault(dim, (got, spec.name))
            if before != got:
                raise InputError(
                    f"{where} has shape {array.shape}, expected {words} with {dim} = {before}, as input '{owner}' has it",
                    f"arrays that agree in '{dim}'",
                )
    return array


def _as_array(value: Any, where: str) -> Array:
    if hasattr(value, "detach"):  # a tensor of PyTorch, maybe on a GPU
        value = value.detach().cpu()
    try:
        return value if isinstance(value, np.ndarray) else np.asarray(value)
    except Exception as error:
        raise InputError(f"{where} is a {type(value).__name__} that is no array: {error}", "a numpy array") from None


def _cast(array: Array, want: str, where: str) -> Array:
    kind, target = array.dtype.kind, _dtype(want, where)
    have = _word(array)
    if want == "bfloat16" and array.dtype == np.dtype("V2"):  # as np.save stores it
        return array.view(target)
    if target.kind == "O":
        if have == "string" and kind != "S":
            return array.astype(object)
        raise InputError(f"{where} has type {have}, expected string", "np.array(texts, dtype='U')")
    if array.dtype == target:
        return array
    if want in FLOATS and have in FLOATS:
        with np.errstate(all="ignore"):
            cast = array.astype(target)
            if array.dtype.itemsize > target.itemsize:
                lost = np.isfinite(array) & ~np.isfinite(cast)
                if lost.any():
                    raise InputError(f"{where} holds {array[lost].flat[0]:g}, beyond the range of {want}", "smaller numbers")
        return cast
    if kind == "c" and target.kind == "c":
        return array.astype(target)
    if kind in "iu" and target.kind in "iu":
        limits = np.iinfo(target)
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < limits.min or high > limits.max:
            raise InputError(f"{where} holds {low if low < limits.min else high}, beyond the range of {want}", "smaller numbers")
        return array.astype(target)
    raise InputError(f"{where} has type {have}, expected {want}", f"array.astype({want!r}) if that is what is meant")


def _word(array: Array) -> str:
    texts = array.dtype.kind in "UST" or (array.dtype.kind == "O" and all(isinstance(item, str) for item in array.ravel()))
    return "string" if texts else array.dtype.name


def _dtype(word: str, where: str) -> np.dtype[Any]:
    if word == "string":
        return np.dtype(object)
    try:
        return np.dtype(word)
    except TypeError:
        pass
    try:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, word))
        return found
    except (ImportError, AttributeError, TypeError):
        raise InputError(f"{where} wants the type {word}, which numpy does not have", "pip install ml_dtypes") from None
