"""Runs halfconv's command line in the test's own process."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from halfconv.cli import main


class Run(NamedTuple):
    """What a command gave: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


def run_here(capfd: pytest.CaptureFixture[str], *arguments: object) -> Run:
    """Run a command; what was written before it does not count."""
    capfd.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Run(code, *capfd.readouterr())
