"""Claim the name of an output while it is written, and clean up what a killed run left.

A run holds a lock on a small hidden file, ``.OUTPUT.MARK.part``, whose name carries a mark that all its unfinished files share.
A lock ends with its process, so whoever can take it knows that nobody finishes those files.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import onnx

from halfconv.graph.protos import graphs_of
from halfconv.locks import lock, locked_folder
from halfconv.profile import profile_path

__all__ = ["Claim", "claimed", "data_files"]

_MARK = r"[0-9a-f]{12}"


class Claim:
    """A claimed output.

    Args:
        output: The output file.
        mark: What the names of this run's unfinished files carry.
        file: The locked file.

    Attributes:
        output: The output file.
        temporary: Where the model is written first.
        stem: What the names of the weights' files begin with.
    """

    def __init__(self, output: Path, mark: str, file: IO[str]):
        self.output, self._file = output, file
        self.temporary = output.parent / f".{output.name}.{mark}.tmp.onnx"
        self.stem = f"{output.stem}.{mark}"

    def replace(self) -> None:
        """Put the model in place, then its profile, and remove the weights of the model that it replaces."""
        with locked_folder(self.output.parent):
            stale = data_files(self.output)  # none of them is this run's, whose mark is new
            self._file.write(json.dumps(sorted(file.name for file in stale)))
            self._file.flush()
            self.temporary.replace(self.output)
            if (profile := profile_path(self.temporary)).exists():
                profile.replace(profile_path(self.output))
            for file in stale:
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[Claim]:
    """Claim an output; when the block ends, whatever is unfinished is removed.

    Args:
        output: The output file, absolute; its folder is there.

    Raises:
        OSError: The folder cannot be written.
    """
    mark = secrets.token_hex(6)
    path = output.parent / f".{output.name}.{mark}.part"
    try:
        with contextlib.ExitStack() as stack:
            with locked_folder(output.parent):  # or else another run could take the file for one that was left before it is locked
                _clean(output)
                file = stack.enter_context(path.open("w"))
                lock(file, wait=False)
            yield Claim(output, mark, file)
    finally:
        _remove(output, mark)
        path.unlink(missing_ok=True)


def data_files(output: Path) -> set[Path]:
    """Return the files of weights, of this tool's naming, that a model refers to.

    Args:
        output: A model, or nothing.
    """
    pattern, folder = _data_name(output), output.parent
    if not output.is_file() or not any(pattern.fullmatch(entry.name) for entry in folder.iterdir()):
        return set()
    try:
        proto = onnx.load_model(output, load_external_data=False)
    except Exception:
        return set()  # what is there is no model
    return {
        folder / entry.value
        for graph in graphs_of(proto.graph)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and pattern.fullmatch(entry.value)
    }


def _data_name(output: Path) -> re.Pattern[str]:
    """Return what matches the names of an output's files of weights."""
    return re.compile(rf"{re.escape(output.stem)}\.{_MARK}(-\d+-of-\d+)?\.data(\.safetensors)?")


def _clean(output: Path) -> None:
    """Remove what runs for this output left that were killed."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.({_MARK})\.part")
    for entry in output.parent.iterdir():
        found = pattern.fullmatch(entry.name)
        if found is None or entry.is_symlink() or not entry.is_file():
            continue
        with contextlib.suppress(OSError), entry.open("r+") as file:
            if not lock(file, wait=False):
                continue  # its run goes on
            _remove(output, found[1])
            stale = []
            with contextlib.suppress(ValueError):  # killed while it was written, before the model was replaced
                stale = json.loads(file.read())
            used, ours = {path.name for path in data_files(output)}, _data_name(output)
            for name in stale:
                if isinstance(name, str) and ours.fullmatch(name) and name not in used:
                    (output.parent / name).unlink(missing_ok=True)
            entry.unlink(missing_ok=True)


def _remove(output: Path, mark: str) -> None:
    """Remove a run's unfinished files."""
    folder, used = output.parent, data_files(output)
    unfinished = re.compile(rf"(\.?{re.escape(output.stem)}\.{mark}.*\.data.*|\.+{re.escape(output.name)}\.{mark}\.tmp\.onnx.*)")
    for entry in list(folder.iterdir()):
        if not unfinished.fullmatch(entry.name) or entry in used:
            continue
        with contextlib.suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():  # onnx-ir writes a file in a folder of its own, and moves it out
                for inner in entry.iterdir():
                    inner.unlink()
                entry.rmdir()
            else:
                entry.unlink()
