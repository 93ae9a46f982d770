"""Copies of halfconv's modules inside a package, which then needs numpy and ONNX Runtime only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import halfconv

__all__ = ["FOLDER", "vendor"]

#: The Python package that the copies form.
FOLDER = "vendored"
#: What every Python package needs to verify itself; what these import from halfconv comes along.
VERIFYING = ("deploy/verifying.py",)
_IMPORT = re.compile(r"^(\s*from )halfconv\.([\w.]+)(?= import)", re.M)


def vendor(folder: Path, *, runtime: bool, more: Sequence[str] = ()) -> None:
    """Copy the modules, and let them find each other there.

    Args:
        folder: The package; they go to its folder ``vendored``.
        runtime: Whether `halfconv.runtime`, with `Session` and `Pool`, and the reader of ``.npz`` are needed, too.
        more: Further modules, as paths below ``halfconv``.
    """
    root = Path(halfconv.__file__).parent
    names = [*VERIFYING, *more]
    if runtime:
        names += ["errors.py", "sample_files.py", *(f"runtime/{file.name}" for file in sorted((root / "runtime").glob("*.py")))]
    for name in names:  # which grows meanwhile
        target = folder / FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        up = "." * (name.count("/") + 1)
        text = (root / name).read_text("utf-8")
        target.write_text(_IMPORT.sub(rf"\g<1>{up}\g<2>", text), "utf-8")
        needed = (f"{found[2].replace('.', '/')}.py" for found in _IMPORT.finditer(text))
        names += [module for module in dict.fromkeys(needed) if module not in names]
    for place in {target.parent for target in (folder / FOLDER).rglob("*.py")}:
        if not (place / "__init__.py").exists():
            (place / "__init__.py").write_text('"""Copied from halfconv, Apache-2.0."""\n', "utf-8")
