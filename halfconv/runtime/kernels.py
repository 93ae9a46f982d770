"""Find the library of halfconv's CUDA kernels, and let ONNX Runtime know it. Without it, models run what their functions say.

The environment variable HALFCONV_KERNELS names a library, which beats the one in the cache; empty means none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["KERNELS_VERSION", "VARIABLE", "cached", "library", "register"]

#: Rises whenever a kernel's inputs or attributes change: libraries of other versions are left alone.
KERNELS_VERSION = 1
VARIABLE = "HALFCONV_KERNELS"


def cached() -> Path:
    """Return where the library of this version lies once it is built.

    Raises:
        RuntimeError: The user has no home.
    """
    return Path.home() / ".cache" / "halfconv" / "kernels" / f"libhalfconv_cuda-{KERNELS_VERSION}.so"


def library() -> Path | None:
    """Return the library to use; None if there is none. One that the variable names need not exist."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).absolute() if named else None  # the loader looks for a bare name in the system's folders
    try:
        return cached() if cached().is_file() else None
    except (OSError, RuntimeError):  # a container's user may have no home, or one that is not theirs to read
        return None


def register(options: Any) -> str:
    """Register the library, if there is one, with the options of a session on CUDA.

    Args:
        options: ``onnxruntime.SessionOptions``.

    Returns:
        Why that failed, in one line; "" if it did not.
    """
    found = library()
    if found is None:
        return ""
    try:
        if not found.is_file():
            raise FileNotFoundError("there is no such file")
        options.register_custom_ops_library(str(found))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return f"halfconv's CUDA kernels are not used: {found} cannot be registered: {text}"
    return ""
