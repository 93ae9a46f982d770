"""Samples: the inputs on which models are compared, from files, directories, functions or iterables, one at a time.

Values go source → raw arrays by name → `fit` (names, shapes, types) → `Sample`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfconv.errors import HalfconvError, InputError, UsageError
from halfconv.imports import import_function, names_function
from halfconv.polygraphy_json import read_feeds
from halfconv.sample_checks import InputSpec, fit
from halfconv.sample_files import StoredArray, naturally, npy_file, npz_file

__all__ = ["InputSpec", "Sample", "Samples", "open_samples"]

#: A sample's name, as messages show it, and its values by name.
Raw = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run's inputs.

    Attributes:
        name: Where it comes from: ``s0.npz``, ``inputs.npz[3]``, ``sample 3``.
        feeds: Input -> numpy array, or list of arrays for a sequence.
        extras: Arrays that no input claims, such as labels.
    """

    name: str
    feeds: dict[str, Any]
    extras: dict[str, Any] = field(default_factory=dict)


class Samples:
    """Samples that can be iterated again and again; one is in memory at a time.

    Attributes:
        kind: ``given`` or ``synthetic``.
        seed: Seed of synthetic samples; 0 for given ones.
        once: Whether they can be read only once.
    """

    def __init__(
        self,
        produce: Callable[[], Iterator[Sample]],
        *,
        kind: str = "given",
        seed: int = 0,
        source: str = "samples",
        once: bool = False,
    ):
        self._produce, self._source = produce, source
        self.kind, self.seed, self.once = kind, seed, once
        self._begun: Iterator[Sample] | None = None

    def first(self) -> Sample:
        """The first sample, which the next iteration gives again: a source that can be read once is not used up.

        Raises:
            InputError: There is none, or it cannot be used.
        """
        begun = iter(self)
        sample = next(begun)
        self._begun = itertools.chain((sample,), begun)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        begun, self._begun = self._begun, None
        return begun if begun is not None else self._all()

    def _all(self) -> Iterator[Sample]:
        none = True
        for sample in self._produce():
            none = False
            yield sample
        if none:
            raise InputError(f"{self._source}: holds no sample", "at least one set of inputs")


def open_samples(source: Any, inputs: Sequence[InputSpec]) -> Samples:
    """Open samples; values are read and checked while iterating.

    Args:
        source: One of

            * an ``.npz`` file: one sample; or several, if every claimed array has one leading dimension more than its input, or
              k times the fixed first dimension of its input, the same k ≥ 2 for all. Extras of that length are split along;
            * an ``.npy`` file, for a model of one input;
            * a directory of ``.npz`` files, or of ``.json`` files, in natural order;
            * a directory of ``.npy`` files: one sample each for a model of one input (unless a file has the input's name), else
              files ``INPUT.npy``, treated as an ``.npz`` file, or subdirectories of such files, one per sample;
            * a JSON file that Polygraphy saved;
            * ``package.module:function``, or a callable without arguments, that returns an iterable of dictionaries;
            * an iterable of dictionaries, or one dictionary; or `Samples`, which are returned as they are.
        inputs: The model's inputs.

    Returns:
        The samples.

    Raises:
        UsageError: The source is none of these, or the function cannot be imported.
        InputError: The file or directory cannot be read, or holds no samples.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, str) and not Path(source).exists() and names_function(source):
        return _of_callable(import_function(source, f"samples '{source}'"), inputs, source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        raw = _of_path(path, inputs)
        # A sample's name is relative to its source; messages have the whole path.
        return Samples(lambda: _checked(raw(), inputs, path.parent if path.is_file() else path), source=str(path))
    if isinstance(source, Mapping):
        source = [source]
    if callable(source) and not isinstance(source, Iterable):
        return _of_callable(source, inputs, getattr(source, "__name__", "the function"))
    if isinstance(source, Iterable):
        return _of_iterable(source, inputs)
    raise UsageError(f"samples of type {type(source).__name__} cannot be read", "a path, a function, or dictionaries")


def _checked(raw: Iterator[Raw], inputs: Sequence[InputSpec], root: Path | None = None) -> Iterator[Sample]:
    for label, values in raw:
        feeds, extras = fit(values, inputs, label)
        name = os.path.relpath(label, root) if root is not None else label
        yield Sample(name, feeds, extras)


# --- Python --------------------------------------------------------------------------------------------------------


def _of_callable(function: Callable[[], Any], inputs: Sequence[InputSpec], name: str) -> Samples:
    def raw() -> Iterator[Raw]:
        with_name = f"samples from {name}"
        try:
            given = function()
        except Exception as error:
            raise _failed(with_name, error) from error
        yield from _items([given] if isinstance(given, Mapping) else given, with_name)

    return Samples(lambda: _checked(raw(), inputs), source=f"samples from {name}")


def _of_iterable(source: Iterable[Any], inputs: Sequence[InputSpec]) -> Samples:
    used = False

    def raw() -> Iterator[Raw]:
        nonlocal used
        if isinstance(source, Iterator):
            if used:
                raise InputError("the samples are an iterator, which can be read only once", "a list, or a function")
            used = True
        yield from _items(source, "samples")

    return Samples(lambda: _checked(raw(), inputs), once=isinstance(source, Iterator))


def _items(given: Any, label: str) -> Iterator[Raw]:
    """Number what the user's code yields; what it raises is told in one line, with the original as its cause."""
    try:
        iterator = iter(given)
    except TypeError as error:
        raise InputError(f"{label}: a {type(given).__name__} is no iterable", "yield {input_name: array}") from error
    index = 0
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise _failed(f"{label}: sample {index}", error) from error
        if not isinstance(item, Mapping):
            raise InputError(f"{label}: sample {index} is a {type(item).__name__}, not a dictionary", "{input_name: array}")
        yield f"sample {index}", item
        index += 1


def _failed(label: str, error: Exception) -> HalfconvError:
    if isinstance(error, HalfconvError):
        return error
    return InputError(f"{label}: raised {type(error).__name__}: {error}", "run the function alone")


# --- files ---------------------------------------------------------------------------------------------------------


def _of_path(path: Path, inputs: Sequence[InputSpec]) -> Callable[[], Iterator[Raw]]:
    if path.is_dir():
        return _of_directory(path, inputs)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory", "a path, or package.module:function")
    match path.suffix.lower():
        case ".npz":
            return lambda: _split(npz_file(path, str(path)), inputs, str(path))
        case ".npy":
            return lambda: _split({_only(inputs, path): npy_file(path)}, inputs, str(path))
        case ".json":
            return lambda: _of_json(path)
    raise InputError(f"{path}: is no file of samples", ".npz, .npy, Polygraphy's .json, or a directory of these")


def _of_json(path: Path) -> Iterator[Raw]:
    return ((f"{path}[{index}]", feeds) for index, feeds in enumerate(read_feeds(path)))


def _of_directory(folder: Path, inputs: Sequence[InputSpec]) -> Callable[[], Iterator[Raw]]:
    try:
        entries = sorted(folder.iterdir(), key=naturally)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}", "check the path") from None
    # Names only: there may be very many.
    by_type = {kind: [e.name for e in entries if e.suffix.lower() == kind and e.is_file()] for kind in (".npz", ".npy", ".json")}
    kinds = [kind for kind, files in by_type.items() if files]
    if len(kinds) > 1:
        raise InputError(f"{folder}: holds {' and '.join(kinds)} files", "a directory of one kind")
    if not kinds:
        folders = [entry for entry in entries if entry.is_dir() and any(entry.glob("*.npy"))]
        if not folders:
            raise InputError(f"{folder}: holds no .npz, .npy or .json file", "a directory of samples")
        return lambda: (item for inner in folders for item in _split(_named(inner.glob("*.npy")), inputs, str(inner)))
    names = by_type[kinds[0]]
    if kinds[0] == ".npy" and (len(inputs) != 1 or f"{inputs[0].name}.npy" in names):
        return lambda: _split(_named(folder / name for name in names), inputs, str(folder))
    return lambda: (item for name in names for item in _of_path(folder / name, inputs)())


def _named(files: Iterable[Path]) -> dict[str, StoredArray]:
    return {file.stem: npy_file(file) for file in sorted(files)}


def _only(inputs: Sequence[InputSpec], path: Path) -> str:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{path}: is one array, but the model has {len(inputs)} inputs ({names})", "an .npz file with their names")
    return inputs[0].name


def _split(arrays: Mapping[str, StoredArray], inputs: Sequence[InputSpec], label: str) -> Iterator[Raw]:
    """Yield the samples of one file: one, or as many as its arrays have leading entries (see `open_samples`)."""
    claimed = [(spec, arrays[spec.name]) for spec in inputs if spec.name in arrays]
    plain = all(spec.shape is not None and not spec.sequence for spec, _ in claimed)
    surplus = {len(array.shape) - len(spec.shape or ()) for spec, array in claimed} if plain else set()
    lengths = {array.shape[0] for _, array in claimed if array.shape}
    if surplus == {1}:
        if len(lengths) > 1:
            words = ", ".join(f"'{spec.name}' {array.shape[0]}" for spec, array in claimed)
            raise InputError(f"{label}: the arrays hold different numbers of samples: {words}", "arrays of one length")
        yield from _rows(arrays, lengths.pop(), lengths=frozenset(), label=label)
        return
    if surplus == {0}:
        firsts = [(array.shape[0], spec.shape[0]) for spec, array in claimed if spec.shape]
        fixed = [(got, want) for got, want in firsts if isinstance(want, int) and want > 0]
        factors = {got / want for got, want in fixed}
        factor = factors.pop() if len(factors) == 1 and len(fixed) == len(claimed) else 1
        if factor >= 2 and factor == int(factor):
            yield from _rows(arrays, int(factor), lengths=frozenset(lengths), label=label)
            return
    yield label, {name: array.read() for name, array in arrays.items()}


def _rows(arrays: Mapping[str, StoredArray], count: int, *, lengths: frozenset[int], label: str) -> Iterator[Raw]:
    """Yield `count` samples. Arrays as long as `lengths` say are cut into batches, those of `count` entries into their entries."""
    streams: dict[str, Iterator[Any]] = {}
    whole: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.shape and array.shape[0] in lengths:
            streams[name] = array.blocks(array.shape[0] // count)
        elif array.shape and array.shape[0] == count:
            streams[name] = (block[0] for block in array.blocks(1))
        else:
            whole[name] = array.read()
    for index in range(count):
        yield f"{label}[{index}]", {**{name: next(stream) for name, stream in streams.items()}, **whole}
