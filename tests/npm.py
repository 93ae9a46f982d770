"""Packages of npm that tests run, each fetched once and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

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
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(cache), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            pytest.skip(f"npm cannot install it here: {done.stderr[-300:]}")
    return cache / "node_modules"
