"""Photos that scikit-image ships."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfconv.recipes.wheels import Wheel, unpacked

__all__ = ["NAMES", "photo"]

NAMES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SKIMAGE = Wheel(
    "scikit-image==0.26.0", ("skimage/data/",), NAMES, "fa7dfadd229b2be4686c9c76a45adc40951897f599c8e76fc2bbb7212ebf2712"
)


def photo(name: str, mode: str = "L") -> NDArray[Any]:
    """Return a photo as float32 from 0 to 1, [height, width] in grey, [height, width, 3] in colour.

    Args:
        name: One of `NAMES`.
        mode: ``L`` or ``RGB``.
    """
    from PIL import Image

    with Image.open(unpacked(SKIMAGE) / "skimage" / "data" / name) as image:
        return np.asarray(image.convert(mode), np.float32) / 255
