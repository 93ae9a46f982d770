"""Ranges of a model's values over samples: what half precision would lose of each, as data that can be saved and read again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from halfconv.errors import InputError

__all__ = ["Ranges", "ValueRange", "load_ranges"]

SCHEMA_VERSION = 1
#: Files larger than this are refused: a value takes about 200 bytes.
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ValueRange:
    """What one FP32 value held, over all samples and iterations.

    Attributes:
        elements: Number of elements.
        absmax: Largest finite magnitude; 0 if there is none.
        smallest: Smallest magnitude that is not 0; None if there is none.
        overflow: Share of the elements that are finite and become infinite in half.
        flush: Share of the elements that are not 0 and become 0 in half.
        rounding: Relative L2 error that rounding this value alone to half adds, over the elements that fit:
            sqrt(Σ(half(x)−x)² / Σx²).
    """

    elements: int
    absmax: float
    smallest: float | None
    overflow: float
    flush: float
    rounding: float


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of a model's values.

    Attributes:
        values: Value id -> range. Values that no sample reached, in a branch not taken, are absent.
        to: The half format whose rounding was measured.
        samples: Number of samples.
        kind: ``given`` or ``synthetic`` samples.
    """

    values: Mapping[str, ValueRange]
    to: str
    samples: int
    kind: str

    def to_json(self) -> str:
        """Return the ranges as text, one line a value."""
        head = {"schema_version": SCHEMA_VERSION, "to": self.to, "samples": self.samples, "kind": self.kind}
        rows = ",\n".join(
            f"    {json.dumps(name, ensure_ascii=False)}: {json.dumps(asdict(known))}"
            for name, known in sorted(self.values.items())
        )
        lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in head.items()]
        return "{\n" + ",\n".join([*lines, f'  "values": {{\n{rows}\n  }}' if rows else '  "values": {}']) + "\n}\n"


def load_ranges(file: Path) -> Ranges:
    """Read what `Ranges.to_json` wrote.

    Raises:
        InputError: The file cannot be read, or is something else.
    """
    advice = "a file that --save-ranges wrote"
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{file}: has {file.stat().st_size:,} bytes, more than ranges of any model", advice)
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}", "check the path of --ranges") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file}: is no JSON: {error}", advice) from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{file}: holds no ranges of schema version {SCHEMA_VERSION}", advice)
    try:
        if content["to"] not in ("fp16", "bf16") or content["kind"] not in ("given", "synthetic"):
            raise ValueError("unknown format or kind")
        values = {str(name): _range(entry) for name, entry in content["values"].items()}
        return Ranges(values, content["to"], int(content["samples"]), content["kind"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: is damaged: {error}", advice) from None


def _range(entry: Any) -> ValueRange:
    known = {field.name: entry[field.name] for field in fields(ValueRange)}
    numbers = [number for number in known.values() if number is not None]
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        raise ValueError("a range holds something else than numbers")
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a range holds a number that is negative or not finite")
    return ValueRange(**known)
