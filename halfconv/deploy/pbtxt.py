"""Protobuf's text form, as far as configuration files need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import text_encoding

__all__ = ["Word", "render"]


class Word(str):
    """A value that is written without quotes: a name of an enumeration."""


def render(message: Mapping[str, Any]) -> str:
    """Write a message.

    Args:
        message: Field -> value: a string, a `Word`, a number, a bool, a mapping for a message, or a list of these for a repeated
            field. A map of protobuf is a list of messages with ``key`` and ``value``.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    return f'"{text_encoding.CEscape(value, True)}"'
