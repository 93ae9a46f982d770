"""A headless Chromium, and packages served to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["Seen", "chromium", "look", "npm_install", "served", "with_runtime"]

#: Chromium emulates a GPU, without which headless it has no WebGPU; as root it has no sandbox.
FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
ENDED = "#status:is([data-state=passed], [data-state=failed], [data-state=error])"
#: Of onnxruntime-web's files, those that the loader takes.
NEEDED = ("ort.wasm.min.mjs", "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
          "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")  # fmt: skip


@dataclass
class Seen:
    """What a page showed.

    Attributes:
        result: ``window.halfconv``.
        status: The sentence that it ends with.
        body: All its text.
        console: Lines of its console, and exceptions that nobody caught.
    """

    result: dict[str, Any]
    status: str
    body: str
    console: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium of the system; a test fails without it, since a browser is what it is about."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("Chromium is not installed; try: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def npm_install(folder: Path) -> None:
    """Run the one command of the package's README."""
    if shutil.which("npm") is None:
        pytest.fail("npm is not installed; try: apt-get install npm, or Node.js 20 of another source")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def with_runtime(folder: Path, installed: Path) -> Path:
    """Give a package the files of onnxruntime-web that another has installed; returns where they are."""
    dist = folder / "node_modules/onnxruntime-web/dist"
    dist.mkdir(parents=True)
    for name in NEEDED:
        os.link(installed / "node_modules/onnxruntime-web/dist" / name, dist / name)
    return dist


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The package behind its own server; yields the address."""
    with subprocess.Popen(["node", "serve.mjs", "0"], cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def look(browser: Browser, url: str, script: str = "") -> Seen:
    """Open the page, with a script that runs before its own, and wait until it has ended its work."""
    page = browser.new_page()
    page.add_init_script(script)
    lines: list[str] = []
    page.on("console", lambda message: lines.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: lines.append(f"uncaught: {error}"))
    try:
        page.goto(url)
        page.wait_for_selector(ENDED, timeout=120_000)
        return Seen(page.evaluate("window.halfconv"), page.inner_text("#status"), page.inner_text("main"), lines)
    finally:
        page.close()
