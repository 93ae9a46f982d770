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

__all__ = ["held_folder", "is_held", "lock", "locked_folder"]


def lock(file: IO[str] | int, *, wait: bool) -> bool:
    """Lock a file until it is closed.

    Args:
        file: An open file, or its descriptor.
        wait: Whether to wait while somebody else holds it.

    Returns:
        Whether it is locked now: not where it is taken, or where the file system or the platform has no locks.
    """
    if fcntl is None:  # pragma: no cover
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
