"""``python -m tests.zoo [KEY…]``: build models of the zoo, all of them by default."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

from tests.zoo import KEYS, home, place
from tests.zoo.packages import settle


def build(key: str) -> None:
    """Build one model in a folder of its own, then move that to its place."""
    from tests.zoo.exported import recipe  # noqa: F401 - its import registers the exported models
    from tests.zoo.recipes import RECIPES

    target = place(key)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home()) as scratch:
        made = Path(scratch, key)
        made.mkdir()
        RECIPES[key](made)
        settle(made, target)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The exporters and estimators of other packages warn of what is their own business.
    warnings.simplefilter("ignore")
    for key in sys.argv[1:] or KEYS:
        build(key)
        print(key, place(key), flush=True)


if __name__ == "__main__":
    main()
