"""Check JSON data against one of halfconv's own schemas, so that a file from anywhere is read by the rules that are published.

Only the keywords that these schemas use are known; another one is a KeyError, which tests would show.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["complaint", "schema"]

#: Characters of a wrong value that a message shows.
SHOWN = 40

_KINDS: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}
_ARTICLES = {"array": "a list", "boolean": "true or false", "integer": "an integer", "null": "null", "number": "a number",
             "object": "an object", "string": "a text"}  # fmt: skip
#: Keywords that restrict nothing.
_WORDS = frozenset({"$schema", "$id", "$defs", "title", "description", "then", "else"})


@cache
def schema(name: str) -> Mapping[str, Any]:
    """Return a schema of ``halfconv/schemas`` by its name: ``plan``."""
    text = resources.files("halfconv").joinpath("schemas", f"{name}.schema.json").read_text("utf-8")
    content: Mapping[str, Any] = json.loads(text)
    return content


def complaint(content: Any, name: str) -> str | None:
    """Say what is wrong with some data first.

    Args:
        content: What was read as JSON.
        name: The schema's name.

    Returns:
        One sentence that begins with the place, ``values[3].dtype: …``; None if nothing is wrong.
    """
    root = schema(name)
    return next(_complaints(content, root, root, ""), None)


def _complaints(value: Any, rules: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    place = f"{where}: " if where else ""
    for word, rule in rules.items():
        if word in _WORDS:
            continue
        if word == "$ref":
            part = root["$defs"][rule.removeprefix("#/$defs/")]
            yield from _complaints(value, part, root, where)
        elif word == "if":
            branch = "then" if next(_complaints(value, rule, root, where), None) is None else "else"
            yield from _complaints(value, rules.get(branch, {}), root, where)
        elif (nested := _NESTED.get(word)) is not None:
            yield from nested(value, rule, rules, root, where)
        elif problem := _CHECKS[word](value, rule):
            yield place + problem
            if word == "type":
                return  # the rest would say the same in other words


def _type(value: Any, rule: str | list[str]) -> str | None:
    kinds = [rule] if isinstance(rule, str) else rule
    if any(_KINDS[kind](value) for kind in kinds):
        return None
    return f"{_short(value)} is not {' or '.join(_ARTICLES[kind] for kind in kinds)}"


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)  # True is no 1


def _const(value: Any, rule: Any) -> str | None:
    return None if _same(value, rule) else f"{_short(value)} is not {json.dumps(rule)}"


def _enum(value: Any, rule: list[Any]) -> str | None:
    return None if any(_same(value, known) for known in rule) else f"{_short(value)} is not one of {', '.join(map(str, rule))}"


def _pattern(value: Any, rule: str) -> str | None:
    wrong = isinstance(value, str) and re.search(rule.removesuffix("$") + r"\Z" if rule.endswith("$") else rule, value) is None
    return f"{_short(value)} has not the form {rule}" if wrong else None


def _minimum(value: Any, rule: float) -> str | None:
    return f"{_short(value)} is less than {rule}" if _KINDS["number"](value) and value < rule else None


def _least(value: Any, rule: int) -> str | None:
    return "it is empty" if isinstance(value, (str, list)) and len(value) < rule else None


def _unique(value: Any, rule: bool) -> str | None:
    if not rule or not isinstance(value, list):
        return None
    texts = [json.dumps(entry, sort_keys=True) for entry in value]
    return "an entry is there twice" if len(set(texts)) < len(texts) else None


def _required(value: Any, rule: list[str]) -> str | None:
    missing = [name for name in rule if isinstance(value, dict) and name not in value]
    return f"'{missing[0]}' is missing" if missing else None


_CHECKS: dict[str, Callable[[Any, Any], str | None]] = {
    "const": _const, "enum": _enum, "minItems": _least, "minLength": _least, "minimum": _minimum, "pattern": _pattern,
    "required": _required, "type": _type, "uniqueItems": _unique,
}  # fmt: skip


def _items(value: Any, rule: Any, _: Any, root: Mapping[str, Any], where: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _complaints(entry, rule, root, f"{where}[{index}]")


def _properties(value: Any, rule: Any, _: Any, root: Mapping[str, Any], where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in rule.items():
            if name in value:
                yield from _complaints(value[name], part, root, f"{where}.{name}" if where else name)


def _additional(value: Any, rule: Any, rules: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for name in value:
        if name in rules.get("properties", {}):
            continue
        if rule is False:
            yield f"{where + ': ' if where else ''}{_short(name)} is not known"
        elif rule is not True:
            yield from _complaints(value[name], rule, root, f"{where}[{_short(name)}]")


_NESTED: dict[str, Callable[..., Iterator[str]]] = {
    "additionalProperties": _additional, "items": _items, "properties": _properties,
}  # fmt: skip


def _short(value: Any) -> str:
    """Show a wrong value in a few printable characters."""
    if isinstance(value, (dict, list)):
        return f"{_ARTICLES['object' if isinstance(value, dict) else 'array']} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
