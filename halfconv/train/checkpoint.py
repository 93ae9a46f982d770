"""Checkpoints: everything that a run needs to go on to the same bits, in one file that loads without running code."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from halfconv.errors import EnvironmentProblem, InputError, UsageError
from halfconv.storage import disk_problem

__all__ = ["check_checkpoint_path", "load_checkpoint", "save_checkpoint"]

VERSION = 1


def check_checkpoint_path(path: Path) -> None:
    """Refuse a path that cannot be written, before any work is done.

    Raises:
        UsageError: It is a directory.
        EnvironmentProblem: Its folder is missing or read-only.
    """
    if path.is_dir():
        raise UsageError(f"checkpoint {path} is a directory", f"{path / 'run.pt'}")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"cannot write the checkpoint in {folder}: it is missing or read-only", f"mkdir -p {folder}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state by rename, so that the file is either the last one or this one.

    Args:
        path: The file.
        state: Tensors, numbers, strings, and lists, tuples and dictionaries of them.

    Raises:
        EnvironmentProblem: The disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"halfconv_checkpoint": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_problem(error, path.absolute().parent) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, promised: dict[str, Any]) -> dict[str, Any]:
    """Read a state, without unpickling anything but plain data.

    Its tensors come to the CPU: who takes them copies them to where they belong. Optimizers keep their numbers of steps on the CPU,
    and were they on a GPU, each step would wait for it once for every weight.

    Args:
        path: The file.
        promised: What the run that goes on must have in common with the one that wrote the file: name -> value.

    Raises:
        InputError: The file is damaged, or no checkpoint of halfconv.
        UsageError: The run differs from the one that wrote the file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler meets
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path} cannot be read: {first}", "training from the start, with resume=False") from None
    if not isinstance(state, dict) or state.get("halfconv_checkpoint") != VERSION:
        raise InputError(f"{path} is no checkpoint of this version of halfconv", "training from the start, with resume=False")
    for name, value in promised.items():
        if state["run"][name] != value:
            words = f"checkpoint {path} was written with {name} {state['run'][name]!r}, and this run has {value!r}"
            raise UsageError(words, f"{name}={state['run'][name]!r}, or resume=False")
    loaded: dict[str, Any] = state
    return loaded
