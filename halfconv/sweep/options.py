"""What a fleet file may say, as a table: the options of `convert`, `validate` and `bench`, and what kind of value each takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from halfconv.drift.compare import WAYS
from halfconv.model_writer import EXTERNAL_DATA
from halfconv.planning import TARGETS
from halfconv.precision.blocklist import BLOCK_LISTS
from halfconv.precision.formats import FORMATS

__all__ = ["OPTIONS", "PATHS", "Option", "read_option"]


class Option(NamedTuple):
    """An option of all models of a fleet, or of one.

    Attributes:
        name: Its key.
        kind: A row of `KINDS`.
        default: Its value where the file says nothing.
        choices: What it may be; empty if that is no list.
    """

    name: str
    kind: str
    default: Any
    choices: tuple[str, ...] = ()


OPTIONS = {
    option.name: option
    for option in (
        Option("targets", "texts", ("portable",), TARGETS),
        Option("to", "texts", ("fp16",), (*FORMATS, "auto")),
        Option("samples", "text", None),
        Option("tolerance", "bounds", {}),
        Option("tolerance_file", "text", None),
        Option("metric", "texts", ()),
        Option("block_op", "texts", ()),
        Option("block_node", "texts", ()),
        Option("block_scope", "texts", ()),
        Option("block_pattern", "texts", ()),
        Option("allow_op", "texts", ()),
        Option("allow_node", "texts", ()),
        Option("block_list", "text", "default", BLOCK_LISTS),
        Option("fuse", "flag", True),
        Option("half_io", "flag", False),
        Option("repair", "flag", True),
        Option("time_limit", "seconds", None),
        Option("seed", "count", 0),
        Option("external_data", "text", "auto", EXTERNAL_DATA),
        Option("allow_links", "text", None),
        Option("on", "text", "simulate", WAYS),
        Option("bench", "flag", True),
        Option("batch", "counts", (1,)),
        Option("seconds", "seconds", 1.0),
        Option("provider", "text", "auto", ("auto", "cpu", "cuda", "tensorrt")),
        Option("timeout", "seconds", 3600.0),
    )
}
#: The longest time, four months: a timer takes no number that is much larger.
MOST_SECONDS = 10**7
#: Options that name a file or a folder, relative to the fleet file's.
PATHS = ("samples", "tolerance_file", "allow_links")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...] | None:
    values = [value] if isinstance(value, str) else value
    right = isinstance(values, list) and all(isinstance(entry, str) and entry for entry in values)
    return tuple(values) if right else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _seconds(value: Any) -> float | None:
    return float(value) if _is_number(value) and 0 < value <= MOST_SECONDS else None


def _count(value: Any) -> int | None:
    return value if _is_count(value, 0) else None


def _counts(value: Any) -> tuple[int, ...] | None:
    values = value if isinstance(value, list) else [value]
    return tuple(values) if values and all(_is_count(entry, 1) for entry in values) else None


def _bounds(value: Any) -> Mapping[str, float] | None:
    return value if isinstance(value, dict) and all(_is_number(entry) for entry in value.values()) else None


#: Kind -> what returns a value as it is kept, None for one that is not of the kind; what it is, in words; an example.
KINDS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "text": (_text, "a text", '"…"'),
    "texts": (_texts, "a text or a list of texts", '["…", "…"]'),
    "flag": (_flag, "true or false", "true"),
    "seconds": (_seconds, f"a number of seconds above 0, up to {MOST_SECONDS:,}", "60"),
    "count": (_count, "a whole number from 0 on", "0"),
    "counts": (_counts, "a whole number from 1 on, or a list of them", "[1, 32]"),
    "bounds": (_bounds, "a table of numbers", '{ rel_l2 = 1e-2, "rel_l2@logits" = 1e-3 }'),
}


def read_option(name: str, value: Any) -> tuple[Any, str, str]:
    """Check a value.

    Args:
        name: A key of `OPTIONS`.
        value: What the file says.

    Returns:
        The value as it is kept; what is wrong with it, "" if nothing is; and what to write instead.
    """
    option = OPTIONS[name]
    read, words, example = KINDS[option.kind]
    found = read(value)
    if found is None or (option.default and found == ()):
        return None, f"{name} is {value!r}, not {words}", f"{name} = {example}"
    entries = found if isinstance(found, tuple) else (found,)
    if option.choices and (wrong := [entry for entry in entries if entry not in option.choices]):
        return None, f"{name}: there is no {wrong[0]!r}", _close(str(wrong[0]), option.choices)
    if isinstance(found, tuple) and len(set(found)) < len(found):
        return None, f"{name}: {next(entry for entry in entries if entries.count(entry) > 1)!r} is there twice", "each once"
    return found, "", ""


def _close(text: str, choices: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(text.lower(), choices, 1, 0.5)
    return found[0] if found else "one of " + ", ".join(choices)
