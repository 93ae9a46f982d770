"""Read a plan file, which may come from anywhere: bounded in size, checked against the published schema, complete in itself."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from halfconv.errors import InputError
from halfconv.json_schema import complaint
from halfconv.precision.plan import SCHEMA_VERSION, PrecisionPlan
from halfconv.report.text import clip, visible

__all__ = ["SIZE_LIMIT", "read_plan"]

#: Larger files are no plans: a value takes some 300 bytes.
SIZE_LIMIT = 1 << 28
#: Characters of an id that a message shows.
SHOWN = 80

_ADVICE = "halfconv convert MODEL --save-plan FILE, which writes one"


def read_plan(path: str | os.PathLike[str]) -> PrecisionPlan:
    """Read a plan that ``convert --save-plan`` wrote.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file, or it holds no plan that this version reads.
    """
    path = Path(path)
    label = visible(str(path))
    content = _content(path, label)
    if not isinstance(content, dict):
        _refuse(label, "not a plan: no JSON object")
    version = content.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        _refuse(label, f"a plan of schema version {version}; this halfconv reads version {SCHEMA_VERSION}")
    if problem := complaint(content, "plan"):
        _refuse(label, f"not a plan: {visible(problem)}")
    plan = PrecisionPlan.from_dict(content)
    _check(plan, label)
    return plan


def _content(path: Path, label: str) -> Any:
    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            _refuse(label, "is no file" if not stat.S_ISDIR(known.st_mode) else "is a directory")
        if known.st_size > SIZE_LIMIT:
            _refuse(label, f"{known.st_size:,} bytes are more than any plan has")
        data = path.read_bytes()
    except FileNotFoundError:
        _refuse(label, "no such plan")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _refuse(label, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if not data.strip():
        _refuse(label, "the file is empty")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # a lone surrogate could never be written again
    except UnicodeError:
        _refuse(label, "not a plan: no UTF-8 text")
    except RecursionError:
        _refuse(label, "not a plan: nested too deeply")
    except ValueError as error:
        cut = isinstance(error, json.JSONDecodeError) and (error.pos >= len(error.doc) or not error.doc.rstrip().endswith("}"))
        _refuse(label, f"not a plan: no JSON ({visible(clip(str(error), 120))}){'; truncated?' if cut else ''}")
    return content


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _check(plan: PrecisionPlan, label: str) -> None:
    """Refuse what the schema cannot say: ids that are there twice, or that nothing else knows."""
    ids = [value.id for value in plan.values]
    known = set(ids)
    for what, names in (("value", ids), ("read", [f"{read.node}, input {read.input}" for read in plan.reads])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            _refuse(label, f"not a plan: {what} '{_shown(twice[0])}' is there twice")
    _among("casts", [value for value, _ in plan.casts], known, label)
    _among("marks", plan.value_marks, known, label)
    if missing := known - set(plan.value_marks):
        _refuse(label, f"not a plan: value '{_shown(min(missing))}' has no mark")
    _among("reads", [read.node for read in plan.reads], set(plan.node_marks), label)
    for marks in (plan.value_marks, plan.node_marks):
        if len(set(marks.values())) < len(marks):
            _refuse(label, "not a plan: two ids have the same mark")


def _among(field: str, names: Iterable[str], known: set[str], label: str) -> None:
    """Refuse names that the rest of the plan does not know."""
    if foreign := sorted(set(names) - known):
        _refuse(label, f"not a plan: '{field}' names '{_shown(foreign[0])}', which the plan does not know")


def _shown(name: str) -> str:
    return visible(clip(name, SHOWN))


def _refuse(label: str, what: str) -> NoReturn:
    raise InputError(f"{label}: {what}", _ADVICE)
