"""Write docs/images/report-*.png: pages of real models in headless Chromium, wide and on a telephone.

    python docs/make_screenshots.py [FOLDER]

Needs the extra ``test`` and Debian's ``chromium``; ``fonts-inter`` makes the letters those of the committed images. FOLDER keeps the pages.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
#: Width of the window -> height of the picture.
WINDOWS = {1280: 1500, 390: 1500}
#: Colours of a picture: so many keep it small and look the same.
COLOURS = 64
#: Page -> what makes it, in the folder, and the part of the page that the picture begins with; "" for its beginning.
PAGES: dict[str, tuple[list[str], str]] = {
    "report-convert": (["convert", "magika.onnx", "--samples", "files.npz", "--tolerance", "rel_l2=1e-3", "--html"], ""),
    "report-map": (["convert", "magika.onnx", "--samples", "files.npz", "--tolerance", "rel_l2=1e-3", "--html"], "precision"),
    "report-validate": (["validate", "digits_cnn.onnx", "digits_cnn.fp16.onnx", "--samples", "digits_cnn.npz", "--html"], ""),
    "report-bench": (["bench", "magika.onnx", "magika.fp16.onnx", "--batch", "1,8", "--html"], ""),
}
