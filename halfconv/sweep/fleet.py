"""Read a fleet file: which models, for which targets, in which precisions, with which options.

The file is TOML. Options stand at its top, for all models, and again in the tables ``[[models]]``, for one::

    targets = ["cuda", "portable"]
    to = ["fp16", "bf16"]
    [[models]]
    path = "models/*.onnx"
    [[models]]
    path = "models/encoder.onnx"
    samples = "samples/encoder.npz"
    block_op = ["Softmax"]

Paths are relative to the file's folder. A model that is named as it is is left out of patterns that match it, too.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.drift.gate import parse_tolerances
from halfconv.errors import HalfconvError, InputError, UsageError
from halfconv.imports import names_function
from halfconv.precision.rules import Rules
from halfconv.sweep.options import OPTIONS, PATHS, read_option

__all__ = ["Fleet", "FleetModel", "read_fleet"]

#: A name, which becomes a folder's, and the most bytes that it has.
_NAME, _NAME_BYTES = re.compile(r"[^\W_][\w.+-]*"), 100
_KEYS = ("path", "name", *OPTIONS)


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model of a fleet.

    Attributes:
        name: Its name, which no other one has.
        path: Its file, absolute.
        options: A value for each of `OPTIONS`; paths are absolute.
    """

    name: str
    path: Path
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet file.

    Attributes:
        file: The file.
        models: Its models, in its order; those of a pattern in the order of their paths.
    """

    file: Path
    models: tuple[FleetModel, ...]

    @property
    def folder(self) -> Path:
        """The folder that its paths are relative to, absolute."""
        return _absolute(self.file.parent)


@dataclass(slots=True)
class _Entry:
    """A table ``[[models]]``, or what one of its matches became."""

    label: str
    path: str
    name: str | None
    given: dict[str, Any]


def read_fleet(file: str | os.PathLike[str], out: Path | None = None) -> Fleet:
    """Read a fleet file.

    Args:
        file: The file.
        out: A folder below which patterns match nothing: that of the results.

    Raises:
        InputError: The file, a model or samples are not there or cannot be read.
        UsageError: A key or value is wrong, or two models have the same name.
    """
    path = Path(file)
    content = _load(path)
    folder = _absolute(path.parent)
    tables = content.pop("models", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: names no models", '[[models]] with path = "model.onnx"')
    shared = _options(content, str(path), tuple(OPTIONS))
    entries = [_entry(table, f"{path}: [[models]] {number}") for number, table in enumerate(tables, 1)]
    named = {_absolute(folder / _home(entry.path)) for entry in entries}
    models, where = [], {}
    for entry in entries:
        for found in _matches(entry, folder, named, out):
            label = f"{entry.label} '{found.name}'" if found == folder / _home(entry.path) else f"{entry.label} '{found}'"
            options = {**_defaults(), **shared, **entry.given}
            models.append(FleetModel(entry.name or "", found, _settled(options, found, folder, label)))
            where[len(models) - 1] = label
    return Fleet(path, _with_names(models, where, path))


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", "the path of a fleet file, fleet.toml") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text", "a TOML file with [[models]]") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no TOML: {error}", '[[models]] and lines such as path = "model.onnx"') from None


def _entry(table: Mapping[str, Any], label: str) -> _Entry:
    given = _options({key: value for key, value in table.items() if key not in ("path", "name")}, label, _KEYS)
    path, name = table.get("path"), table.get("name")
    if not isinstance(path, str) or not path or "\0" in path:
        raise UsageError(f"{label}: has no path" if path is None else f"{label}: path is {path!r}", 'path = "model.onnx"')
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name) and len(name.encode()) <= _NAME_BYTES):
        raise UsageError(f"{label}: name is {name!r}, which cannot be a folder's", "letters, digits, and . + - _ after the first")
    return _Entry(label, path, name, given)


def _options(table: Mapping[str, Any], label: str, keys: Sequence[str]) -> dict[str, Any]:
    """Check the options of a table."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, keys, 1, 0.6)
            known = f"'{close[0]}'" if close else "one of " + ", ".join(keys)
            raise UsageError(f"{label}: there is no key '{key}'", known)
        if name in found:
            raise UsageError(f"{label}: '{key}' is there twice", "one of the two spellings")
        found[name], problem, advice = read_option(name, value)
        if problem:
            raise UsageError(f"{label}: {problem}", advice)
    return found


def _defaults() -> dict[str, Any]:
    return {name: option.default for name, option in OPTIONS.items()}


def _matches(entry: _Entry, folder: Path, named: set[Path], out: Path | None) -> Iterator[Path]:
    """Yield the files that a path names or matches."""
    path = _absolute(folder / _home(entry.path))
    if path.exists() or not glob.has_magic(entry.path):
        if not path.is_file():
            what = "is a folder, not a model file" if path.is_dir() else "no such file"
            advice = f'path = "{entry.path.rstrip("/")}/*.onnx"' if path.is_dir() else _near(path)
            raise InputError(f"{entry.label}: {path}: {what}", advice)
        yield path
        return
    if entry.name is not None:
        raise UsageError(f"{entry.label}: a pattern has the name '{entry.name}', but matches many files", "without name")
    hidden = None if out is None else _absolute(out)
    found = [_absolute(folder / match) for match in _matching(entry.path, folder)]
    files = [file for file in sorted(set(found)) if file.is_file() and not (hidden and file.is_relative_to(hidden))]
    if not files:
        raise InputError(f"{entry.label}: nothing matches {folder / entry.path}", 'path = "models/**/*.onnx" for all folders below')
    yield from (file for file in files if file not in named)


def _matching(pattern: str, folder: Path) -> list[str]:
    """Return what matches, as the shell has it: nothing hidden, and links are followed."""
    return glob.glob(_home(pattern), root_dir=folder, recursive=True)  # noqa: PTH207


def _settled(options: dict[str, Any], model: Path, folder: Path, label: str) -> dict[str, Any]:
    """Make paths absolute, and refuse options that cannot be used together."""
    for name in PATHS:
        if options[name] is not None:
            options[name] = _file(name, options[name], model, folder, label)
    lacks = [name for name, wanted in (("metric", options["metric"]), ('to = "auto"', "auto" in options["to"])) if wanted]
    if options["samples"] is None and lacks:
        raise UsageError(f"{label}: {lacks[0]} needs samples to measure on", 'samples = "samples.npz"')
    bounds = options["tolerance"]
    metrics = tuple(text.rpartition(":")[2].rpartition(".")[2] for text in options["metric"])
    rules = Rules(
        block_ops=options["block_op"], block_nodes=options["block_node"], block_scopes=options["block_scope"],
        block_patterns=options["block_pattern"], allow_ops=options["allow_op"], allow_nodes=options["allow_node"],
        block_list=options["block_list"],
    )  # fmt: skip
    try:
        parse_tolerances(bounds, [key.partition("@")[2] for key in bounds], metrics)
        rules.check()
    except HalfconvError as error:
        raise type(error)(f"{label}: {error}") from None
    return options


def _file(name: str, text: str, model: Path, folder: Path, label: str) -> str:
    """Return the absolute path of a file that an option names; functions stay what they are."""
    text = text.replace("{stem}", model.stem).replace("{folder}", str(model.parent))
    path = _absolute(folder / _home(text))
    if name == "samples" and not path.exists() and names_function(text):
        return text
    if not path.exists():
        raise InputError(f"{label}: {name}: {path}: no such file or folder", _near(path))
    return str(path)


def _with_names(models: Sequence[FleetModel], where: Mapping[int, str], file: Path) -> tuple[FleetModel, ...]:
    """Name models as the file says, else by the stem of their file, with as many folders before it as tell them apart."""
    depths = dict.fromkeys(range(len(models)), 1)
    while True:
        names = {place: model.name or _name(model.path, depths[place]) for place, model in enumerate(models)}
        counts = Counter(name.casefold() for name in names.values())
        again = [p for p, name in names.items() if counts[name.casefold()] > 1 and depths[p] < len(models[p].path.parts) - 1]
        if not (longer := [place for place in again if not models[place].name]):
            break
        for place in longer:
            depths[place] += 1
    for place, name in names.items():
        if counts[name.casefold()] > 1:
            other = next(p for p in names if p != place and names[p].casefold() == name.casefold())
            raise UsageError(
                f"{where[max(place, other)]}: is called '{name}' as {where[min(place, other)]} is", 'name = "…" of its own'
            )
    if not models:
        raise UsageError(f"{file}: names no models", '[[models]] with path = "model.onnx"')
    return tuple(FleetModel(names[place], model.path, model.options) for place, model in enumerate(models))


def _name(path: Path, depth: int) -> str:
    """Return a name from the last parts of a path."""
    parts = (*path.parent.parts, path.stem)[-depth:]
    text = re.sub(r"[^\w.+-]+", "_", "-".join(parts)).lstrip("_.+-")
    return text.encode()[-_NAME_BYTES:].decode(errors="ignore").lstrip("_.+-") or "model"


def _near(path: Path) -> str:
    """Return what may have been meant by a path that is not there."""
    try:
        there = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} is not there, either"
    close = difflib.get_close_matches(path.name, there, 1, 0.6)
    return str(path.parent / close[0]) if close else "check the path; it is relative to the fleet file's folder"


def _home(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111  # a pattern is no path


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # links are kept
