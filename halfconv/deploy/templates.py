"""The files of a package that are the same for every model, and those that are filled in.

They lie below ``halfconv/deploy/files/KIND``. A file ``NAME.j2`` is filled in by Jinja2 and loses the ending; others are copied.
Names of a model's inputs are untrusted text: templates write them through the filter of their language, never bare.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfconv import __version__
from halfconv.check import runtime_package
from halfconv.deploy.parts import Parts
from halfconv.errors import EnvironmentProblem

__all__ = ["FILES", "copy_files", "kotlin", "require_templates", "swift", "text"]

#: Where they lie.
FILES = Path(__file__).parent / "files"


def copy_files(kind: str, folder: Path, parts: Parts, more: Mapping[str, Any] | None = None) -> None:
    """Copy and fill in the files of a kind.

    Args:
        kind: The folder below ``files``.
        folder: The package.
        parts: What templates see as ``parts``, beside ``halfconv`` (its version), ``numpy`` and ``onnxruntime`` (installed ones).
        more: What else they see.

    Raises:
        EnvironmentProblem: Jinja2 is not installed.
    """
    require_templates()
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"kotlin": kotlin, "swift": swift, "text": text, "json": json.dumps}
    known = {
        "parts": parts, "halfconv": __version__, "numpy": importlib.metadata.version("numpy"),
        "onnxruntime": importlib.metadata.version(runtime_package()), "runtime_package": runtime_package(), **(more or {}),
    }  # fmt: skip
    root = FILES / kind
    for file in sorted(root.rglob("*")):
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        name = file.relative_to(root).as_posix()
        target = folder / name.removesuffix(".j2")
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".j2"):
            target.write_text(environment.from_string(file.read_text("utf-8")).render(known), "utf-8")
        else:
            target.write_bytes(file.read_bytes())


def require_templates() -> None:
    """Refuse to begin what cannot be ended.

    Raises:
        EnvironmentProblem: Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise EnvironmentProblem("Jinja2 is not installed, which fills in a package's files", "pip install 'halfconv[deploy]'")


def kotlin(value: str) -> str:
    """Return a string literal of Kotlin, in which nothing is a template."""
    escaped = re.sub(r"\\(.)", lambda found: "\\u000c" if found[1] == "f" else found[0], json.dumps(value))  # Kotlin has no \f
    return escaped.replace("$", "\\$")


def swift(value: str) -> str:
    """Return a string literal of Swift, in which nothing is interpolated."""
    escaped = re.sub(r'[\\"]', r"\\\g<0>", value)
    return '"' + re.sub(r"[^ -~]", lambda found: f"\\u{{{ord(found[0]):x}}}", escaped) + '"'


def text(value: Any) -> str:
    """Return a name as one line of prose: what could be markup or control characters is left out."""
    return re.sub(r"[^\w ./:,+\-]", "_", str(value))[:200]
