"""Read inputs that Polygraphy saved (``polygraphy run --save-inputs``, ``polygraphy.json.save_json``).

Such a file is a JSON list of feed dictionaries, or one of them; an array is ``{"array": BASE64, "polygraphy_class": "ndarray"}``,
where BASE64 is the content of an ``.npy`` file. Lists of numbers stand for arrays, too. The list is read element by element, so
that one sample is in memory at a time.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from halfconv.errors import InputError
from halfconv.sample_files import npy_bytes, npz_file

__all__ = ["read_feeds"]

#: Characters read at once.
BLOCK = 1 << 20
_OUTSIDE = re.compile(r'["{}\[\],]')
_INSIDE = re.compile(r'["\\]')
_LEGACY = "__polygraphy_encoded_"


def read_feeds(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the feed dictionaries of a file.

    Args:
        path: The JSON file.

    Raises:
        InputError: The file is no JSON, or holds something else than feed dictionaries.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            for index, text in enumerate(_elements(stream, path)):
                label = f"{path}: element {index}"
                feeds = json.loads(text, object_hook=partial(_decoded, label))
                if not isinstance(feeds, Mapping):
                    raise InputError(f"{label} is a {type(feeds).__name__}, not a dictionary of inputs", "a list of dictionaries")
                yield dict(feeds)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", "check the path") from None
    except (ValueError, RecursionError) as error:
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{path}: is no JSON that Polygraphy wrote: {words}", "polygraphy run --save-inputs") from None


def _elements(stream: IO[str], path: Path) -> Iterator[str]:
    """Texts of the elements of a JSON list, or the one text where it is no list."""
    block = stream.read(BLOCK).lstrip()
    if not block.startswith("["):
        yield block + stream.read()
        return
    parts: list[str] = []
    depth, quoted, start, position = 0, False, 1, 1
    while block:
        while match := (_INSIDE if quoted else _OUTSIDE).search(block, position):
            sign, position = match[0], match.end()
            if sign == "\\":
                position += 1  # what is escaped, maybe in the next block
            elif sign == '"':
                quoted = not quoted
            elif sign in "[{":
                depth += 1
            elif depth and sign in "]}":
                depth -= 1
            elif not depth and sign in ",]":
                parts.append(block[start : match.start()])
                text = "".join(parts)
                if text.strip() or sign == ",":
                    yield text
                parts, start = [], position
                if sign == "]":
                    if (block[position:] + stream.read(BLOCK)).strip():
                        raise InputError(f"{path}: text follows the list", "polygraphy run --save-inputs")
                    return
        parts.append(block[start:])
        start, position = 0, max(0, position - len(block))
        block = stream.read(BLOCK)
    raise InputError(f"{path}: ends within the list (truncated?)", "write or download it again")


def _decoded(label: str, entry: dict[str, Any]) -> Any:
    """Replace what Polygraphy encoded."""
    kind = entry.get("polygraphy_class")
    kind = kind or next((key.removeprefix(_LEGACY) for key in entry if key.startswith(_LEGACY)), None)
    if kind is None:
        return entry
    if kind in ("LazyArray", "LazyNumpyArray"):
        return entry.get("values")
    payload = entry.get("array")
    if kind != "ndarray" or not isinstance(payload, str):
        raise InputError(f"{label} holds a {kind}, where inputs are numpy arrays", "polygraphy run --save-inputs")
    try:
        data = base64.b64decode(payload.encode(), validate=True)
    except ValueError:
        data = payload.encode("latin-1")  # what old versions wrote
    if data.startswith(b"PK"):
        return next(iter(npz_file(data, label).values())).read()
    return npy_bytes(data, f"{label}: an array").read()
