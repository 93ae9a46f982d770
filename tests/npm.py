"""Packages of npm that tests run, each fetched once and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.zoo.packages import settle

__all__ = ["npm_package"]


def npm_package(package: str) -> Path:
    """Return the ``node_modules`` that a package is in; the test is skipped where npm is missing or cannot fetch it.

    Args:
        package: ``NAME@VERSION``.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    cache = Path.home() / ".cache" / "halfconv-bench" / "node" / hashlib.sha256(package.encode()).hexdigest()[:12]
    if not (cache / "node_modules" / package.rpartition("@")[0]).is_dir():
        cache.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache.parent))  # two processes may fetch at once
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(made), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            shutil.rmtree(made)
            pytest.skip(f"npm cannot install it here: {done.stderr[-300:]}")
        settle(made, cache)
    return cache / "node_modules"
