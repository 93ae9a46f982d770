"""Refuse paths of a conversion that would overwrite something that it reads or writes, before any work is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from halfconv.errors import UsageError
from halfconv.profile import profile_path
from halfconv.storage import check_output_path, check_side_file

__all__ = ["check_run_paths"]

#: What writes a file of a kind -> what reads one of the same kind: a plan or ranges may be brought up to date in place.
_SAME_KIND = {"--save-plan": "--plan", "--save-ranges": "--ranges"}


def check_run_paths(
    source: Path, output: Path, data_files: Iterable[Path], given: Mapping[str, object], sides: Mapping[str, object]
) -> None:
    """Check one output, its run profile, and the files written beside it.

    Args:
        source: The input file.
        output: The output file.
        data_files: Files that hold the input's weights.
        given: Option -> what the user gave to be read. What is no path of a file or a folder is passed over.
        sides: Option -> a path that is written besides; None for none.

    Raises:
        UsageError: A path is a directory, a file that is read, or given twice.
        EnvironmentProblem: A folder is missing or read-only.
    """
    data_files, profile = tuple(data_files), profile_path(output)
    check_output_path(source, output, data_files)
    read = {option: tuple(_files(value)) for option, value in given.items()}
    for written in (output, profile):
        for option, files in read.items():
            for file in files:
                if written.exists() and written.samefile(file):
                    raise UsageError(f"{option} {file} would be overwritten", "another -o")
    if profile.exists() and any(profile.samefile(file) for file in (source, *data_files)):
        raise UsageError(f"the run profile of {output} would overwrite the input {profile}", "another -o")
    taken = [source, output, profile, *data_files]
    for option, side in sides.items():
        if isinstance(side, (str, os.PathLike)):
            foreign = [file for other, files in read.items() if other != _SAME_KIND.get(option) for file in files]
            check_side_file(option, Path(side), (*taken, *foreign))
            taken.append(Path(side))


def _files(value: object) -> Iterator[Path]:
    """Return the files that an option names, where it names some."""
    if not isinstance(value, (str, os.PathLike)):
        return
    path = Path(value)
    with contextlib.suppress(OSError):  # what cannot be looked at is refused where it is read
        if path.is_dir():
            yield from (entry for entry in path.iterdir() if entry.is_file())
        elif path.exists():
            yield path
