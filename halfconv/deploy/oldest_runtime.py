"""The oldest ONNX Runtime that loads a model, by what the model file declares."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["FLOOR", "oldest_runtime"]

#: What halfconv's own runtime needs.
FLOOR = "1.20"
#: Highest opset of the default domain -> the first release of ONNX Runtime that loads it (tried on 1.19 to 1.30 with a Relu).
OPSETS = ((21, FLOOR), (22, "1.21"), (23, "1.23"), (25, "1.24"), (26, "1.25"))
#: Highest IR version -> likewise.
IR_VERSIONS = ((10, FLOOR), (11, "1.23"), (13, "1.24"))


def oldest_runtime(model: ir.Model, newest: str) -> str:
    """Return the oldest release that loads a model.

    Args:
        model: The model.
        newest: The release that is installed, which loaded it: the answer for what the tables do not know.
    """
    known = max(FLOOR, _least(OPSETS, model.opset_imports.get("", 1), newest), key=_key)
    return max(known, _least(IR_VERSIONS, model.ir_version, newest), key=_key)


def _least(table: tuple[tuple[int, str], ...], number: int, newest: str) -> str:
    return next((release for highest, release in table if number <= highest), newest)


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
