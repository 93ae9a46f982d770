"""A headless Chromium for tests of pages: Debian's, driven by Playwright, cut off from all networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.npm import npm_package

__all__ = ["AXE_PACKAGE", "Opened", "axe_script", "chromium", "opened"]

CHROMIUM = Path("/usr/bin/chromium")
AXE_PACKAGE = "axe-core@4.11.0"


class Opened:
    """A page that is open, and what went wrong on it.

    Attributes:
        page: Playwright's page.
        wrong: Errors and warnings of the console, errors of scripts, and requests for anything but the file itself.
    """

    def __init__(self, page: Any, address: str):
        self.page, self.wrong = page, []
        page.on("console", lambda message: self.wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.route("**/*", self._answer)
        self.address = address

    def _answer(self, route: Any) -> None:
        if route.request.url.partition("#")[0] == self.address:
            route.continue_()
        else:
            self.wrong.append(f"requested {route.request.url}")
            route.abort()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; tests that need it are skipped where it is not installed."""
    if not CHROMIUM.exists():
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Any, path: Path, fragment: str = "", width: int = 1280, scheme: str = "light", **more: Any) -> Iterator[Opened]:
    """Open a file."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **more)
    try:
        found = Opened(context.new_page(), path.absolute().as_uri())
        found.page.goto(found.address + fragment)
        yield found
    finally:
        context.close()


def axe_script() -> str:
    """Return axe-core's script."""
    return (npm_package(AXE_PACKAGE) / "axe-core" / "axe.min.js").read_text("utf-8")
