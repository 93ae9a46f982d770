"""Options from ``halfconv.toml`` or ``[tool.halfconv]`` in pyproject.toml; a flag on the command line wins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfconv.errors import UsageError

__all__ = ["find_options"]


def find_options(start: Path, known: Mapping[str, frozenset[str]]) -> dict[str, dict[str, Any]]:
    """Read the options of the nearest configuration file.

    A table ``[convert]`` (``[tool.halfconv.convert]``) holds options of that command, by the long name of the flag; options
    outside such a table go to every command that knows them. The search goes from the folder upwards; ``halfconv.toml`` wins over
    a ``pyproject.toml`` in the same folder.

    Args:
        start: The folder to begin in.
        known: Command -> names of its options, with underscores.

    Returns:
        Command -> option -> value.

    Raises:
        UsageError: The file is no TOML, or names an option that no command has.
    """
    for folder in (start, *start.parents):
        for name in ("halfconv.toml", "pyproject.toml"):
            file = folder / name
            if not file.is_file():
                continue
            try:
                content = tomllib.loads(file.read_text("utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                if name == "pyproject.toml":
                    continue  # another tool's file, and its business
                raise UsageError(f"{file}: {error}", "fix the file") from None
            table = content if name == "halfconv.toml" else _tool_table(content)
            if isinstance(table, dict):
                return _split(table, known, file)
    return {}


def _tool_table(content: Mapping[str, Any]) -> Any:
    tools = content.get("tool")
    return tools.get("halfconv") if isinstance(tools, dict) else None


def _split(table: Mapping[str, Any], known: Mapping[str, frozenset[str]], file: Path) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {command: {} for command in known}
    for key, value in table.items():
        name = key.replace("-", "_")
        if key in known and isinstance(value, dict):
            for inner, content in value.items():
                if inner.replace("-", "_") not in known[key]:
                    raise UsageError(f"{file}: '{key}' has no option '{inner}'", f"halfconv {key} --help")
                options[key][inner.replace("-", "_")] = _checked(inner, content, file)
            continue
        users = [command for command, names in known.items() if name in names]
        if not users:
            raise UsageError(f"{file}: no command has an option '{key}'", "halfconv --help")
        for command in users:
            options[command].setdefault(name, _checked(key, value, file))
    return options


def _checked(key: str, value: Any, file: Path) -> Any:
    """Refuse a value that no option takes."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, (str, bool)) for part in parts):
        raise UsageError(f"{file}: option '--{key}' is {value!r}, not a text, a list of texts, true or false", f'{key} = "…"')
    return value
