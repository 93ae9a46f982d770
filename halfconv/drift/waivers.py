"""Waivers: bounds that may be broken until a day, for a reason, as a tolerance file holds them.

    [[waivers]]
    output = "logits"
    metric = "rel_l2"
    up_to = 0.05
    reason = "the new tokenizer, issue 214"
    expires = 2027-01-31

``output`` alone waives all bounds of that output, ``metric`` alone that measure of all outputs, or a user metric. What always
holds (NaN, infinities, zeroed outputs, shapes) cannot be waived. A waiver counts to the end of its last day; then it fails.
"""

from __future__ import annotations

import datetime
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.drift.report import WaiverUse
from halfconv.errors import UsageError

__all__ = ["SOON", "Waiver", "expired_in", "notes", "read_waivers"]

#: Days before its end from which a waiver warns.
SOON = 14
KEYS = ("output", "metric", "up_to", "reason", "expires")
_DATE = "expires = 2027-01-31, without quotes"


@dataclass(frozen=True, slots=True)
class Waiver:
    """A bound that may be broken until a day.

    Attributes:
        output: The output; None for all.
        metric: The measure or user metric; None for all measures of the output that can be waived.
        up_to: The bound that holds meanwhile; None for none.
        reason: Why.
        expires: The last day on which it counts.
    """

    output: str | None
    metric: str | None
    up_to: float | None
    reason: str
    expires: datetime.date

    @property
    def subject(self) -> str:
        """What is waived, in words."""
        return " ".join(part for part in (self.metric, f"of '{self.output}'" if self.output else "") if part) or "everything"

    def days_left(self, today: datetime.date) -> int:
        """Days until its last one; negative once it has expired."""
        return (self.expires - today).days

    def covers(self, output: str | None, metric: str, today: datetime.date) -> bool:
        """Tell whether it waives a measure of an output, or a user metric (output None), on a day."""
        named = (self.output in (None, output)) and (self.metric in (None, metric))
        return named and self.days_left(today) >= 0

    def used(self, today: datetime.date, used: bool) -> WaiverUse:
        """Return what a report says of it."""
        return WaiverUse(self.subject, self.up_to, self.reason, self.expires.isoformat(), self.days_left(today), used)


def notes(uses: Sequence[WaiverUse]) -> list[str]:
    """Return a warning for every waiver that ends soon, or that waives nothing."""
    found = []
    for use in uses:
        if 0 <= use.days_left <= SOON:
            when = {0: "today", 1: "tomorrow"}.get(use.days_left, f"in {use.days_left} days")
            found.append(f"the waiver for {use.subject} ends {when}, on {use.expires} ({use.reason}); from then on it fails")
        elif not use.used and not use.expired:
            found.append(f"the waiver for {use.subject} waives nothing: no bound of it is broken; remove it")
    return found


def expired_in(file: Path, today: datetime.date) -> int:
    """Return how many waivers of a tolerance file are over on a day; 0 for a file that `halfconv.drift.gate.make_gate` refuses."""
    try:
        entries = tomllib.loads(file.read_text("utf-8")).get("waivers", [])
    except (OSError, ValueError, RecursionError):
        return 0
    dates = [entry.get("expires") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return sum(isinstance(day, datetime.date) and not isinstance(day, datetime.datetime) and day < today for day in dates)


def read_waivers(
    value: Any, label: str, outputs: Sequence[str], measures: Sequence[str], metrics: Sequence[str], hard: Collection[str]
) -> tuple[Waiver, ...]:
    """Read the waivers of a tolerance file.

    Args:
        value: What the file holds at ``waivers``.
        label: The file, for messages.
        outputs: Names of the model's outputs.
        measures: Measures of outputs.
        metrics: Names of the user's metrics.
        hard: Measures that cannot be waived.

    Raises:
        UsageError: A waiver has no date or reason, or names what there is not or what cannot be waived.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(f"{label}: waivers is no list of tables", "[[waivers]] with lines output, metric, reason, expires")
    return tuple(
        _read(entry, f"{label}: waiver {number}", outputs, measures, metrics, hard) for number, entry in enumerate(value, 1)
    )


def _read(
    entry: Mapping[str, Any], label: str, outputs: Sequence[str], measures: Sequence[str], metrics: Sequence[str],
    hard: Collection[str],
) -> Waiver:  # fmt: skip
    if unknown := [key for key in entry if key not in KEYS]:
        raise UsageError(f"{label}: there is no key '{unknown[0]}'", ", ".join(KEYS))
    output, metric, up_to, reason, expires = (entry.get(key) for key in KEYS)
    if expires is None:
        raise UsageError(f"{label}: has no date, and a waiver without one would last for ever", _DATE)
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        raise UsageError(f"{label}: expires is {expires!r}, not a day", _DATE)
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"{label}: has no reason", 'reason = "why, and who repairs it"')
    if output is None and metric is None:
        raise UsageError(f"{label}: names neither an output nor a metric", 'output = "logits" and metric = "rel_l2"')
    if output is not None and output not in outputs:
        raise UsageError(f"{label}: there is no output {output!r}", " or ".join(map(repr, outputs[:8])))
    if metric is not None and metric not in (*measures, *metrics):
        raise UsageError(f"{label}: there is no metric {metric!r}", ", ".join((*measures, *metrics)))
    if metric in hard:
        raise UsageError(f"{label}: {metric} always holds, and cannot be waived", "keep more of the model in FP32")
    if metric in metrics and output is not None:
        raise UsageError(f"{label}: '{metric}' is a metric of all outputs", "leave out the output")
    if up_to is not None and (metric is None or isinstance(up_to, bool) or not isinstance(up_to, (int, float)) or not up_to >= 0):
        raise UsageError(f"{label}: up_to is {up_to!r}, and must be a number of 0 or more beside a metric", "up_to = 0.05")
    if up_to is not None and up_to > sys.float_info.max:
        up_to = None
    return Waiver(output, metric, None if up_to is None else float(up_to), " ".join(reason.split()), expires)
