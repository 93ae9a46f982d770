"""Write docs/images/report-*.png: reports on real models in headless Chromium, on a screen and on a telephone.

    python docs/make_screenshots.py [FOLDER]

Needs the extras ``test`` and ``demo`` and Debian's ``chromium``; with Debian's ``fonts-inter`` the letters are those of the
committed pictures. FOLDER keeps the reports and what they rest on.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from halfconv.demo.magika import find_model

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
#: Width of the window -> height of the picture.
WINDOWS = {1280: 1440, 390: 844}
#: So many colours keep a picture small and look the same.
COLOURS = 192
DIGITS = ["digits_cnn.onnx", "digits_cnn.fp16.onnx"]
MAGIKA = ["convert", "magika.onnx", "--samples", "halfconv.demo:samples", "--tolerance", "rel_l2=1e-3", "--html"]
#: Picture -> the command that writes its report, the part of the page with which it begins, and whether the page is dark.
PICTURES: dict[str, tuple[list[str], str, bool]] = {
    "report-convert": (MAGIKA, "", False),
    "report-map": (MAGIKA, "precision", True),
    "report-validate": (["validate", *DIGITS, "--samples", "digits_cnn.npz", "--html"], "", False),
    "report-bench": (["bench", "magika.onnx", "magika.fp16.onnx", "--batch", "1,8", "--provider", "cpu", "--html"], "", False),
}
#: What is done before.
FIRST = ["convert", "digits_cnn.onnx", "--samples", "digits_cnn.npz"]


def main() -> None:
    """Write the reports and the pictures."""
    with contextlib.ExitStack() as stack:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given.mkdir(parents=True, exist_ok=True)
        shutil.copy(find_model().path, given / "magika.onnx")
        for file in ("digits_cnn.onnx", "digits_cnn.npz"):
            shutil.copy(ROOT / "models" / file, given / file)
        _run(given, FIRST)
        reports: dict[str, Path] = {}
        for name, (command, _, _) in PICTURES.items():
            key = " ".join(command)
            if key not in reports:
                reports[key] = given / f"{name}.html"
                _run(given, [*command, reports[key].name])
        IMAGES.mkdir(parents=True, exist_ok=True)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, (command, part, dark) in PICTURES.items():
            for width, height in WINDOWS.items():
                scheme = "dark" if dark else "light"
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )  # fmt: skip
                page.goto(reports[" ".join(command)].absolute().as_uri() + (f"#{part}" if part else ""))
                if part:
                    page.locator("#modules button").first.click()
                    page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
                picture = Image.open(io.BytesIO(page.screenshot()))
                picture.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}-{width}.png", optimize=True)
        browser.close()


def _run(folder: Path, command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "halfconv", *command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
