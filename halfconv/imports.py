"""Functions that the user names as ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from halfconv.errors import UsageError

__all__ = ["import_function", "names_function"]

_FORM = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def names_function(text: str) -> bool:
    """Tell whether a text has the form ``package.module:function``."""
    return _FORM.fullmatch(text) is not None


def import_function(text: str, what: str) -> Any:
    """Import a function.

    Args:
        text: ``package.module:function``; the current directory is searched, too.
        what: What messages call it, such as ``--metric metrics:f1``.

    Raises:
        UsageError: The module cannot be imported, or has no such function.
    """
    module_name, _, name = text.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` has it; the installed command does not
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise UsageError(f"{what}: cannot import {module_name}: {words}", "check the name and PYTHONPATH") from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            raise UsageError(f"{what}: {module_name} has no '{part}'", close[0] if close else "the function's name")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{what}: is a {type(found).__name__}, not a function", "the name of a function")
    return found
