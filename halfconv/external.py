"""Files of weights beside a model: which of them may be read, and where they really are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onnx import TensorProto

from halfconv.errors import InputError, UsageError
from halfconv.weight_files import room_for

__all__ = ["DataFile", "bytes_of", "data_file", "link_root", "without_links"]

#: Location in the model -> the real path of that file.
DataFile = tuple[str, Path]


def link_root(allow_links: str | os.PathLike[str] | None) -> Path | None:
    """Return the real path of the folder below which links may end.

    Raises:
        UsageError: It is none.
    """
    if allow_links is None:
        return None
    root = Path(allow_links)
    if not os.fspath(allow_links) or not root.is_dir():
        raise UsageError(f"--allow-links {allow_links} is no folder", "the folder that holds the files behind the links")
    return root.resolve()


def data_file(tensor: TensorProto, needed: int, label: str, model: Path, root: Path | None) -> DataFile:
    """Find the file of a tensor, and compare its size with what the tensor needs.

    Args:
        tensor: A tensor with external data.
        needed: Bytes that its elements take.
        label: What messages call it.
        model: The model's file; data files must lie in its folder or below.
        root: Links may lead out of that folder to files below this one; None: they may not.

    Raises:
        InputError: The file is missing, too short, or somewhere else.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    for text in entries.values():
        if not isinstance(text, str):  # protobuf hands out bytes that are not UTF-8 as they are
            raise InputError(f"{label}: the text {bytes(text)!r} of its data file is not UTF-8", "export or download it again")
    location = entries.get("location", "")
    folder = model.absolute().parent
    places = entries.get("offset", "0"), entries.get("length", str(needed))
    if not all(re.fullmatch(r"-?[0-9]{1,40}", place) for place in places):
        raise InputError(f"{label}: external offset or length is no number", "export it again")
    offset, length = map(int, places)
    if (
        not location
        or "\0" in location
        or location.endswith(("/", "\\"))
        or Path(location).is_absolute()
        or ".." in re.split(r"[/\\]", location)
    ):
        raise InputError(
            f"{label}: its data file '{location}' lies outside the model's folder {folder}", "copy the data file beside the model"
        )
    try:
        real = (folder / location).resolve()
        if not real.is_file():
            raise InputError(f"{label}: its data file '{location}' is missing in {folder}", "copy it beside the model")
        status = real.stat()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, no permission
        raise InputError(f"{label}: its data file '{location}' cannot be read: {error}", "copy it beside the model") from None
    if not real.is_relative_to(folder.resolve()):
        _admit(real, root, f"{label}: its data file '{location}' is a symbolic link out of the model's folder, to {real}")
    elif status.st_nlink > 1:
        links = f"has {status.st_nlink} hard links, so it may be a file from outside the model's folder"
        _admit(real, root, f"{label}: its data file '{location}' {links}")
    if offset < 0 or length < 0 or offset + max(length, needed) > status.st_size:
        raise InputError(
            f"{label}: needs bytes {offset:,} to {offset + max(length, needed):,} of '{location}', which has "
            f"{status.st_size:,} (truncated?)",
            "download or export it again",
        )
    if length < needed:
        raise InputError(f"{label}: needs {needed:,} bytes but its entry gives {length:,}", "export it again")
    return location, real


def _admit(real: Path, root: Path | None, found: str) -> None:
    if root is None or not real.is_relative_to(root):
        outside = "" if root is None else f", not below {root}"
        raise InputError(f"{found}{outside}", f"--allow-links {real.parent} if you trust the model, or replace the link by a copy")


def bytes_of(files: Iterable[Path]) -> int:
    """Return the bytes of some files.

    Raises:
        InputError: One is missing.
    """
    try:
        return sum(file.stat().st_size for file in set(files))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}", "let nothing write it, and try again") from None


@contextlib.contextmanager
def without_links(model: Path, files: Mapping[str, Path]) -> Iterator[Path]:
    """Give a model to a program that follows no links, as ONNX Runtime and onnx's checker.

    Args:
        model: The model's file.
        files: Location -> real path of its files of weights.

    Yields:
        The model, or a copy beside copies of these files if one of them is reached by a link.

    Raises:
        EnvironmentProblem: There is no room for copies.
        InputError: A file cannot be read.
    """
    folder = model.absolute().parent
    if all(real == folder.resolve() / location and real.stat().st_nlink == 1 for location, real in files.items() if real.exists()):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="halfconv-") as made:
        copy = Path(made)
        try:
            room_for(bytes_of(files.values()), copy)
            for location, real in {**files, model.name: model}.items():
                (copy / location).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(real, copy / location)
        except OSError as error:
            raise InputError(f"{model}: its files cannot be copied: {error}", "copies in place of the links") from None
        yield copy / model.name
