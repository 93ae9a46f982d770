"""The committed file list of the demo, and where its files lie on this machine.

The list names files that `halfconv[demo]` installs: a distribution, a path in it, the SHA-256 and the true type
(``bench/make_demo_list.py`` makes it). A file counts only with the listed content; the others are reported as
*missing* or *differ*, never left out silently. Wheels for Windows hold text files with CR LF where the others have LF:
such a file counts, with the listed content. Paths in a distribution's own metadata folder start with ``.dist-info``,
without its name and version.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from halfconv.errors import EnvironmentProblem

LIST_PATH = Path(__file__).with_name("files.json")
OWN_DISTRIBUTION = "halfconv"
OWN_LICENSE = ".dist-info/licenses/LICENSE"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One line of the list.

    Attributes:
        distribution: The installed distribution that holds the file.
        path: Where in the distribution, with ``/``.
        sha256: The content's digest.
        label: What the file is, in Magika's words.
    """

    distribution: str
    path: str
    sha256: str
    label: str


@dataclass(frozen=True, slots=True)
class FileList:
    """The committed list.

    Attributes:
        files: Sorted by distribution and path.
        model_sha256: The model that the list was made for.
        versions: The versions of the distributions that the files were taken from.
    """

    files: tuple[ListedFile, ...]
    model_sha256: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Collected:
    """What this machine has of the list.

    Attributes:
        used: The files, each with its content as listed.
        differ: Files that are here with other content (another version of the package).
        missing: Files that are not here, or cannot be read.
    """

    used: tuple[tuple[ListedFile, bytes], ...]
    differ: tuple[ListedFile, ...]
    missing: tuple[ListedFile, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of listed, used, differing and missing files."""
        used, differ, missing = len(self.used), len(self.differ), len(self.missing)
        return {"listed": used + differ + missing, "used": used, "differ": differ, "missing": missing}


def load_list(path: Path = LIST_PATH) -> FileList:
    """Read a file list.

    Args:
        path: The JSON file; by default the committed one.
    """
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema_version") != 1:
        raise EnvironmentProblem(f"{path} is not a file list of schema version 1", "install halfconv again")
    return FileList(tuple(ListedFile(**entry) for entry in data["files"]), data["model_sha256"], data["versions"])


def normal_path(path: str) -> str:
    """A path in a distribution, its metadata folder's name shortened to ``.dist-info``.

    Args:
        path: The path as the distribution's own record has it.
    """
    parts = PurePosixPath(path).parts
    if parts and parts[0].endswith(".dist-info"):
        parts = (".dist-info", *parts[1:])
    return "/".join(parts)


@functools.cache
def installed_files(distribution: str) -> dict[str, Path]:
    """The files of an installed distribution, by path; empty where it is not installed.

    Args:
        distribution: Its name.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {normal_path(file.as_posix()): Path(str(file.locate())) for file in files if ".." not in file.parts}


def find_installed(file: ListedFile) -> Path | None:
    """Where a listed file lies on this machine, or None.

    Args:
        file: The line of the list.
    """
    place = installed_files(file.distribution).get(file.path)
    if place is None and (file.distribution, file.path) == (OWN_DISTRIBUTION, OWN_LICENSE):
        place = LIST_PATH.parents[2] / "LICENSE"  # a clone that is not installed
    return place


def collect(files: Iterable[ListedFile], find: Callable[[ListedFile], Path | None] = find_installed) -> Collected:
    """Look every listed file up and compare its content with the list.

    Args:
        files: The list.
        find: Where a listed file should be, or None.
    """
    used: list[tuple[ListedFile, bytes]] = []
    differ: list[ListedFile] = []
    missing: list[ListedFile] = []
    for file in files:
        place = find(file)
        try:
            content = place.read_bytes() if place is not None else None
        except OSError:
            content = None
        if content is None:
            missing.append(file)
            continue
        match = next((form for form in line_end_forms(content) if digest(form) == file.sha256), None)
        if match is None:
            differ.append(file)
        else:
            used.append((file, match))
    return Collected(tuple(used), tuple(differ), tuple(missing))


def line_end_forms(content: bytes) -> Iterator[bytes]:
    """A file's content; for a text, also with LF for every CR LF.

    Args:
        content: All of the file.
    """
    yield content
    if b"\0" not in content and b"\r\n" in content:
        yield content.replace(b"\r\n", b"\n")


def digest(content: bytes) -> str:
    """The SHA-256 of a content, in hexadecimal.

    Args:
        content: All of the file.
    """
    return hashlib.sha256(content).hexdigest()
