"""``manifest.json``: what a package holds, and the SHA-256 of every file, so that damage is found before it is run.

A manifest that was changed together with a file proves nothing: it protects from damage and mistakes, not from an attacker who may
write both. This module is copied into packages: it needs the standard library and ``errors``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from halfconv.errors import EnvironmentProblem, InputError

__all__ = ["FILE", "TOOLS", "check", "is_package", "list_files", "read_manifest", "require_version", "write_manifest"]

#: The manifest's name.
FILE = "manifest.json"
#: What tools make inside a package once it is in use; it is no part of it.
TOOLS = frozenset({
    ".build", ".git", ".gradle", ".venv", "__pycache__", "build", "node_modules", "package-lock.json", ".DS_Store",
})  # fmt: skip
#: Bytes of a manifest that are read.
LONGEST = 16 << 20
_AGAIN = "copy or download the whole package again"
#: What packages read from it beside the files -> its type.
_KEYS = (
    ("kind", str), ("name", str), ("model", str), ("to", str), ("min_ort", str), ("inputs", list), ("outputs", list),
    ("profile", dict | None), ("tolerance", object),
)  # fmt: skip


def list_files(folder: Path) -> Iterator[str]:
    """Yield the files of a package, as paths with slashes, without the manifest and what tools made.

    Raises:
        InputError: There is a link or a special file.
    """
    for place, folders, files in os.walk(folder):
        here = Path(place)
        for name in sorted({*folders, *files} - TOOLS):
            path = here / name
            if path.is_symlink() or (name in files and not path.is_file()):
                raise InputError(f"{path}: is a link or no plain file, which a package does not hold", "remove it")
        folders[:] = sorted(name for name in folders if name not in TOOLS)
        for name in sorted(files):
            relative = (here / name).relative_to(folder).as_posix()
            if name not in TOOLS and relative != FILE:
                yield relative


def write_manifest(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of what lies in a folder.

    Args:
        folder: The package.
        content: Everything but ``schema_version`` and ``files``.

    Returns:
        The whole manifest.
    """
    files = []
    for path in list_files(folder):
        size, digest = _measure(folder / path)
        files.append({"path": path, "bytes": size, "sha256": digest})
    whole = {"schema_version": 1, **content, "files": files}
    (folder / FILE).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return whole


def is_package(folder: Path) -> bool:
    """Tell whether a folder holds a manifest that halfconv wrote."""
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        InputError: There is none, or it is damaged, or it names files outside of the folder.
    """
    path = folder / FILE
    try:
        with path.open("rb") as stream:
            text = stream.read(LONGEST + 1)
        content = json.loads(text) if len(text) <= LONGEST else None
    except FileNotFoundError:
        raise InputError(f"{folder}: is no package of halfconv, there is no {FILE}", _AGAIN) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", _AGAIN) from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "halfconv" not in content or not isinstance(content.get("files"), list):
        raise InputError(f"{path}: is no manifest of halfconv", _AGAIN)
    if content.get("schema_version") != 1:
        raise InputError(f"{path}: has version {content.get('schema_version')!r}, and 1 is known", "a newer halfconv")
    for key, kind in _KEYS:
        if key not in content or not isinstance(content[key], kind):
            raise InputError(f"{path}: {key!r} is missing or damaged", _AGAIN)
    for name in (content["model"], content["name"]):  # which become parts of paths
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InputError(f"{path}: the model cannot be called {name!r}", _AGAIN)
    for entry in content["files"]:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("path"), str)
            or not isinstance(entry.get("bytes"), int)
            or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
        ):
            raise InputError(f"{path}: an entry of its files is damaged", _AGAIN)
        parts = re.split(r"[/\\]", entry["path"])
        if any(part in ("", ".", "..") or "\0" in part for part in parts) or ":" in parts[0]:
            raise InputError(f"{path}: names {entry['path']!r}, which lies outside of the package", _AGAIN)
    return content


def check(folder: Path) -> dict[str, Any]:
    """Compare every file of a package with its manifest.

    Args:
        folder: The package.

    Returns:
        The manifest.

    Raises:
        InputError: A file is missing, was changed, or is none of the package's.
    """
    content = read_manifest(folder)
    present, known = set(list_files(folder)), {entry["path"]: entry for entry in content["files"]}
    if missing := sorted(known.keys() - present):
        raise InputError(f"{folder / missing[0]}: is missing{_more(missing)}", _AGAIN)
    if extra := sorted(present - known.keys()):
        raise InputError(f"{folder / extra[0]}: is no file of this package{_more(extra)}", "move it elsewhere")
    for path, entry in known.items():
        if (size := (folder / path).stat().st_size) != entry["bytes"]:
            raise InputError(f"{folder / path}: was changed: {size:,} bytes, not {entry['bytes']:,}", _AGAIN)
        if _measure(folder / path)[1] != entry["sha256"]:
            raise InputError(f"{folder / path}: was changed: its SHA-256 is not the manifest's", _AGAIN)
    return content


def require_version(content: Mapping[str, Any], found: str, package: str = "onnxruntime") -> None:
    """Refuse a runtime that is older than a package needs.

    Args:
        content: The manifest, whose ``min_ort`` is the oldest that will do.
        found: The installed version.
        package: What is installed, for the message.

    Raises:
        EnvironmentProblem: It is older.
    """
    least = str(content.get("min_ort", "0"))
    if _numbers(found) < _numbers(least):
        words = f"{package} {found} is too old for this package, which needs {least}"
        raise EnvironmentProblem(words, f"pip install '{package}>={least}'")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
