"""Packages that several tests read; who changes one, copies it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import halfconv
from tests.deploy.packages import KINDS, make, real_samples, source


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages of each kind of the digits."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        make(kind, "digits_cnn", folder)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Key of a model -> its half, converted once."""
    folder = tmp_path_factory.mktemp("converted")

    @cache
    def find(key: str) -> Path:
        return halfconv.convert(source(key), folder / f"{key}.fp16.onnx", samples=list(real_samples(key))).output

    return find
