"""Find shared libraries as the dynamic loader would, without loading them. Linux only.

A provider of ONNX Runtime is a library that needs others by name (``libcublas.so.13``). Which ones its file says; where they would
come from is looked up here, so that a missing one has a name. Elsewhere nothing is known, and nothing is claimed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Library", "find", "loaded", "loader_cache", "needed", "package_versions", "search_folders"]

LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig")
DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
# What an ELF file is made of, for 64-bit little-endian machines.
_HEAD = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<qQ")
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _RPATH, _RUNPATH = 1, 5, 15, 29
#: Bytes that a table of an ELF file may have; those of providers have a few thousand.
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Library:
    """A library that a provider needs.

    Attributes:
        name: What the loader looks for, such as ``libcublas.so.13``.
        path: Where it is; empty if it is not found.
        version: Its version, as far as its file or its package tells.
        others: Names of other versions that are found: ``libcublas.so.12``.
        optional: Whether the provider loads without it.
    """

    name: str
    path: str = ""
    version: str = ""
    others: tuple[str, ...] = ()
    optional: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the library as JSON data."""
        return {
            "name": self.name,
            "path": self.path,
            "version": self.version,
            "others": list(self.others),
            "optional": self.optional,
        }


def needed(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read what a library needs from its file.

    Args:
        path: A 64-bit ELF file.

    Returns:
        The names of the libraries, and the folders where it wants them looked for first; both empty for another file.
    """
    try:
        with path.open("rb") as file:
            return _dynamic(file, path.parent)
    except (OSError, struct.error, ValueError):
        return (), ()


def _dynamic(file: BinaryIO, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    head = _HEAD.unpack(file.read(_HEAD.size))
    if head[:3] != (b"\x7fELF", 2, 1):
        raise ValueError("not a 64-bit little-endian ELF file")
    offset, size, count = head[7], head[11], head[12]
    file.seek(offset)
    segments = [_SEGMENT.unpack(file.read(size)[: _SEGMENT.size]) for _ in range(count)]
    loads = [(start, length, place) for kind, _, place, start, _, length, _, _ in segments if kind == _LOAD]

    def place_of(address: int) -> int:
        return next(int(place + address - start) for start, length, place in loads if start <= address < start + length)

    entries: list[tuple[int, int]] = []
    for kind, _, place, _, _, length, _, _ in segments:
        if kind == _DYNAMIC:
            file.seek(place)
            entries = list(_ENTRY.iter_unpack(file.read(min(length, _MOST) // _ENTRY.size * _ENTRY.size)))
    try:
        strings = place_of(next(value for tag, value in entries if tag == _STRINGS))
    except StopIteration:
        raise ValueError("it has no table of names") from None

    def text(index: int) -> str:
        file.seek(strings + index)
        return file.read(4096).partition(b"\0")[0].decode("utf-8", "replace")

    names = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    paths = ":".join(text(value) for tag, value in entries if tag in (_RPATH, _RUNPATH))
    origin = re.compile(r"\$(ORIGIN\b|\{ORIGIN\})")
    return names, tuple(origin.sub(lambda _: str(folder), part) for part in paths.split(":") if part)


def search_folders(package: Path | None, first: Iterable[str] = ()) -> list[Path]:
    """Return the folders that are searched for libraries, in order.

    Args:
        package: The folder of ONNX Runtime, which preloads libraries of NVIDIA's packages beside it; None if it does not.
        first: Folders that the library which needs them names itself.
    """
    folders = [] if package is None else sorted(package.parent.glob("nvidia/*/lib"))
    folders += [Path(part) for part in (*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *first) if part]
    folders += [Path(name) for name in DEFAULT_FOLDERS]
    folders += sorted(path for name in ("/lib", "/usr/lib") for path in Path(name).glob("*-linux-gnu*"))
    return list(dict.fromkeys(folders))


@functools.cache
def loader_cache() -> Mapping[str, str]:
    """Return the libraries that the dynamic loader has in its cache: name -> path."""
    if not sys.platform.startswith("linux"):
        return {}
    for program in LDCONFIG:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=True)
            found = re.findall(r"^\s+(\S+) \(.*\) => (\S+)$", done.stdout, re.MULTILINE)
            return {name: path for name, path in reversed(found)}
    return {}


def loaded() -> dict[str, str]:
    """Return the libraries that this process has loaded already, by whatever brought them: name -> path."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return {}
    return {Path(path).name: path for path in re.findall(r"(/\S*\.so\.\S*)$", maps, re.MULTILINE)}


def find(
    name: str, folders: Iterable[Path], cache: Mapping[str, str], versions: Mapping[str, str], *, optional: bool = False
) -> Library:
    """Look a library up.

    Args:
        name: What the loader looks for.
        folders: Where, in order.
        cache: What the loader has in its cache.
        versions: Versions of libraries that packages brought, by path.
        optional: Whether it can be done without.
    """
    stem = name.partition(".so")[0] + ".so."
    path, others = "", dict[str, None]()
    for folder in folders:
        if not path and (folder / name).is_file():
            path = str(folder / name)
        others.update(dict.fromkeys(sorted(entry.name for entry in folder.glob(f"{stem}*"))))
    if not path and name in cache and Path(cache[name]).is_file():
        path = cache[name]
    others.update(dict.fromkeys(sorted(other for other in cache if other.startswith(stem))))
    majors = (other for other in others if other != name and re.fullmatch(r"\d+", other.removeprefix(stem)))
    return Library(name, path, _version(path, versions), tuple(majors), optional)


def _version(path: str, versions: Mapping[str, str]) -> str:
    """Return the version that a library's package or file has; a link to libcudart.so.13.1.80 tells more than libcudart.so.13."""
    if not path:
        return ""
    real = os.path.realpath(path)
    return versions.get(real, "") or Path(real).name.partition(".so.")[2]


def package_versions(prefixes: Iterable[str]) -> dict[str, str]:
    """Return the versions of the libraries that Python packages brought.

    Args:
        prefixes: What the packages' names begin with.

    Returns:
        Path, links resolved -> version of its package.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.lower().startswith(tuple(prefixes)):
            for file in distribution.files or ():
                if ".so" in file.name:
                    found[os.path.realpath(str(distribution.locate_file(file)))] = distribution.version
    return found
