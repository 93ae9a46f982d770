"""Fixtures and settings that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder whose content a test may count."""
    path = tmp_path / "models"
    path.mkdir()
    return path
