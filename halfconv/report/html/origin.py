"""Where a page comes from: the command, the files with their hashes, the packages, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halfconv import __version__
from halfconv.report.html.view import Cell, Facts, Section, Table, clean, size

__all__ = ["Origin", "environment", "origin_of", "reproduction"]

#: Packages whose versions may change a result.
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "onnxscript", "numpy", "ml_dtypes", "torch")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page comes from.

    Attributes:
        command: The command line.
        configured: Options that a configuration file set, as text.
        files: What each file is -> its path, bytes and SHA-256.
        versions: Package -> version.
        machine: Facts of the machine.
        made: When, in UTC.
        seeds: What was random -> its seed.
    """

    command: str
    configured: str
    files: Sequence[tuple[str, str, int, str]]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    made: str
    seeds: Mapping[str, int] = field(default_factory=dict)


def origin_of(
    arguments: Sequence[str], configured: Mapping[str, object], files: Mapping[str, Path | None], seeds: Mapping[str, int]
) -> Origin:
    """Collect where a page comes from.

    Args:
        arguments: The command line behind ``halfconv``.
        configured: Options that a configuration file set.
        files: What each file is -> its path; those that are no file are left out.
        seeds: What was random -> its seed.
    """
    versions = {"halfconv": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = []
    for what, path in files.items():
        if path is not None and path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            facts.append((what, str(path), path.stat().st_size, digest))
    machine = {"system": platform.platform(terse=True), "processor": platform.machine(), "cores": str(os.cpu_count())}
    settings = ", ".join(f"{name} = {value!r}" for name, value in configured.items())
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return Origin(shlex.join(["halfconv", *arguments]), settings, facts, versions, machine, made, dict(seeds))


def environment(origin: Origin, more: Sequence[tuple[str, str]] = (), last: Sequence[tuple[str, str]] = ()) -> Section:
    """Return the part that says what the figures were made with.

    Args:
        origin: Where the page comes from.
        more: Facts that the command adds.
        last: Facts that it adds behind all others.
    """
    rows = [*more, *origin.machine.items(), *origin.versions.items(), ("made", origin.made), *last]
    return Section("environment", "Environment", facts=Facts([(clean(name), clean(text)) for name, text in rows]))


def reproduction(origin: Origin, more: Sequence[tuple[str, str]] = ()) -> Section:
    """Return the part that says how to get the same page again."""
    rows = [*more, *((f"seed of {what}", str(seed)) for what, seed in origin.seeds.items())]
    if origin.configured:
        rows.append(("from the configuration file", origin.configured))
    columns = ("file", "path", "size", "SHA-256")
    cells = [
        [Cell(what), Cell(clean(path), code=True), Cell(size(count), number=True), Cell(digest, code=True)]
        for what, path, count, digest in origin.files
    ]
    return Section(
        "reproduce",
        "How to reproduce",
        "The same command on the same files, with these versions, gives these figures again.",
        tables=[Table("Files and their hashes", columns, cells, minor=frozenset({1, 2}))] if cells else (),
        facts=Facts([(clean(name), clean(text)) for name, text in rows], long=True) if rows else None,
        command=clean(origin.command),
    )
