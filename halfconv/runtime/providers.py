"""Why a provider cannot be used here. A stub: another branch brings the module."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Problem", "problems"]


class Problem(NamedTuple):
    """What is wrong, and what to do about it."""

    found: str
    advice: str


def problems(provider: str) -> list[Problem]:
    """Return why a provider, ``cpu``, ``cuda`` or ``tensorrt``, cannot be used on this machine."""
    return []
