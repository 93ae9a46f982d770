"""Paths that a run writes: refused before any work is done where they cannot be written, or would destroy something."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from halfconv.errors import EnvironmentProblem, HalfconvError, UsageError
from halfconv.locks import locked_folder

__all__ = ["METADATA_PREFIX", "atomic_text", "check_output_path", "check_side_file", "disk_problem"]

METADATA_PREFIX = "halfconv."


def check_output_path(source: Path, output: Path, data_files: Iterable[Path] = ()) -> None:
    """Refuse an output path that cannot be written, before any work is done.

    Args:
        source: The input file.
        output: The output file.
        data_files: Files that hold the input's weights.

    Raises:
        UsageError: The output is the input, or a directory.
        EnvironmentProblem: The folder is missing or read-only.
    """
    if output.exists() and not output.is_dir() and not output.is_file():
        raise UsageError(f"output {output} is a pipe or a device, not a file", "another -o")
    if output.is_dir():
        raise UsageError(f"output {output} is a directory", f"-o {output / (source.stem + '.fp16.onnx')}")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"output {output} is the input itself, which is never touched", "another -o")
    if output.exists() and any(output.samefile(data) for data in data_files):
        raise UsageError(f"output {output} holds the input's weights, which are never touched", "another -o")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise EnvironmentProblem(f"output folder {folder} does not exist", f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"no permission to write in {folder}", "another -o, or chmod")


def check_side_file(option: str, path: Path, others: Iterable[Path]) -> None:
    """Refuse a path for a plan or ranges that cannot be written, or that would destroy another file of the run.

    Args:
        option: What the path was given with: --save-plan or --save-ranges.
        path: Where they go.
        others: The model, its data, the output and its profile, and what else the run reads and writes.

    Raises:
        UsageError: It is a directory or one of the others.
        EnvironmentProblem: Its folder is missing or read-only.
    """
    taken = {other.absolute() for other in others}
    same = path.absolute() in taken or any(path.exists() and other.exists() and path.samefile(other) for other in taken)
    advice = f"another name, such as {option.removeprefix('--save-')}.json"
    if same:
        raise UsageError(f"{option} {path} is another file of this run", advice)
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} is no file", advice)
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"{option} {path}: its folder is missing or read-only", f"mkdir -p {folder}")


def atomic_text(path: Path, text: str) -> None:
    """Write a small text file by rename, and remove what a killed run left of the same file.

    Raises:
        EnvironmentProblem: The disk is full or the folder cannot be written.
    """
    folder = path.absolute().parent
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    try:
        with locked_folder(folder) as locked:  # so what others began and did not finish, nobody will
            for entry in list(folder.iterdir()) if locked else ():
                if leftover.fullmatch(entry.name) and entry.is_file():
                    entry.unlink()
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
    except OSError as error:
        raise disk_problem(error, folder) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_problem(error: OSError, folder: Path) -> HalfconvError:
    """Say in one line what a disk refused."""
    return EnvironmentProblem(f"cannot write in {folder}: {error.strerror or error}", "free space there, or another -o")
