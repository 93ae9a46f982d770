"""Fixtures and settings that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lasting import lasting_runtime

#: Those that are about the processes of the runtime: each is started and ended as outside of tests.
OWN_PROCESSES = (
    "tests.cases.test_faults",
    "tests.cases.test_hostile",
    "tests.test_demo",
    "tests.test_runtime_process",
    "tests.test_tuning",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder whose content a test may count."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture(scope="module", autouse=True)
def one_runtime(request: pytest.FixtureRequest) -> Iterator[None]:
    """One process of the runtime for all conversions of a module that are made in this process, one after another."""
    if request.module.__name__ in OWN_PROCESSES:
        yield
        return
    with lasting_runtime():
        yield
