"""Locks on files and folders, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows: there is no lock, and nothing is cleaned up
    fcntl = None  # type: ignore[assignment]

__all__ = ["held_folder", "is_held", "lock", "locked_folder", "only_one"]


def lock(file: IO[str] | int, *, wait: bool, shared: bool = False) -> bool:
    """Lock a file until it is closed.

    Args:
        file: An open file, or its descriptor.
        wait: Whether to wait while somebody else holds it.
        shared: Whether others may have it at the same time who want it shared, too.

    Returns:
        Whether it is locked now: not where it is taken, or where the file system or the platform has no locks.
    """
    if fcntl is None:  # pragma: no cover
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Keep other runs out while files of a folder are made, removed or replaced.

    Yields:
        Whether they are kept out.

    Raises:
        OSError: The folder cannot be opened.
    """
    if fcntl is None:  # pragma: no cover
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor, wait=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a folder that a run works in, so that others see with `is_held` that it is no leftover.

    Raises:
        OSError: The folder cannot be opened.
    """
    if fcntl is None:  # pragma: no cover
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, wait=False)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Tell whether a run works in a folder; where there are no locks, nobody knows, and it may.

    Raises:
        OSError: The folder cannot be opened.
    """
    if fcntl is None:  # pragma: no cover
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[str | None]:
    """Be the only one in a place as long as the block runs, where the file system has locks.

    Args:
        path: A file that stands for the place; it is made, and says who holds it.

    Yields:
        None; if another process is there, what it wrote: its process number.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read(20).strip()
            return
        except OSError:  # no locks here
            pass
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield None
