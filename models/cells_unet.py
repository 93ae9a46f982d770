"""Segmentation of cells and coins: a small U-Net."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from halfconv.recipes.metrics import mean_iou
from halfconv.recipes.photos import photo
from halfconv.recipes.recipe import Recipe, Split

Array = NDArray[Any]
#: Side of a tile.
TILE = 64
#: Pixels from one tile to the next: training tiles overlap one another, those held out do not.
STRIDES = (24, TILE)
#: Share of a photo's width that is trained with; what lies right of it is held out.
SHARE = 0.7


class Block(nn.Sequential):
    """Twice convolution, norm and ReLU."""

    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Down twice, up twice, with what was seen on the way down beside what comes up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.third = Block(1, width), Block(width, 2 * width), Block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up_second, self.up_first = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge_second, self.merge_first = Block(4 * width, 2 * width), Block(2 * width, width)
        self.scores = nn.Conv2d(width, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, 2, 64, 64] of background and object, of images [batch, 1, 64, 64] from 0 to 1."""
        first = self.first(image)
        second = self.second(self.pool(first))
        third = self.third(self.pool(second))
        second = self.merge_second(torch.cat([self.up_second(third), second], 1))
        found: torch.Tensor = self.scores(self.merge_first(torch.cat([self.up_first(second), first], 1)))
        return found


def coins() -> tuple[Array, Array]:
    """Return the photo of coins, and where they are: a watershed of the edges, from what is surely dark or surely bright."""
    grey = photo("coins.png")
    edges = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    markers = np.where(grey < 30 / 255, 1, np.where(grey > 150 / 255, 2, 0)).astype(np.int16)
    regions = ndimage.watershed_ift((edges / edges.max() * 255).astype(np.uint8), markers)
    return grey, _cleaned(regions == 2, 100)


def cells() -> tuple[Array, Array]:
    """Return a tissue in grey, and where its cells are stained brown: where blue lies far below red, by Otsu's threshold."""
    colour = ndimage.gaussian_filter(photo("ihc.png", "RGB"), (1, 1, 0))
    brown = -np.log(colour[..., 2] + 1 / 255) + np.log(colour[..., 0] + 1 / 255)
    return photo("ihc.png"), _cleaned(brown > _otsu(brown), 30)


def _otsu(values: Array) -> float:
    """Return the threshold that separates values into the two most different halves."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    left = np.cumsum(counts * middles) / np.maximum(below, 1)
    right = (np.cumsum((counts * middles)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    return float(middles[np.argmax(below[:-1] * above[1:] * (left[:-1] - right[1:]) ** 2)])


def _cleaned(mask: Array, least: int) -> Array:
    """Fill holes, and remove specks of fewer pixels."""
    labels, _ = ndimage.label(ndimage.binary_fill_holes(mask))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(sizes[labels] >= least)


def tiles(fold: int) -> tuple[Split, Split]:
    """Return tiles of the left parts of the photos, and of the right ones."""
    parts = []
    for side, stride in enumerate(STRIDES):
        images: list[Array] = []
        masks: list[Array] = []
        for grey, mask in (coins(), cells()):
            border = int(grey.shape[1] * SHARE)
            columns = slice(0, border) if side == 0 else slice(border, None)
            for found, tile in ((images, grey[:, columns]), (masks, mask[:, columns])):
                windows = np.lib.stride_tricks.sliding_window_view(tile, (TILE, TILE))[::stride, ::stride]
                found.append(windows.reshape(-1, TILE, TILE))
        image = np.concatenate(images).astype(np.float32)[:, None]
        parts.append(Split({"image": image}, {"mask": np.concatenate(masks).astype(np.int64)}))
    return parts[0], parts[1]


def turned(part: Split, random: np.random.Generator) -> Split:
    """Turn and mirror every tile at random."""
    images: list[Array] = []
    masks: list[Array] = []
    for image, mask in zip(part.inputs["image"][:, 0], part.labels["mask"], strict=True):
        turns, mirror = int(random.integers(4)), random.integers(2)
        for found, tile in ((images, image), (masks, mask)):
            turned = np.rot90(tile, turns)
            found.append(turned[:, ::-1] if mirror else turned)
    return Split({"image": np.stack(images)[:, None]}, {"mask": np.stack(masks)})


RECIPE = Recipe(
    title="which pixels belong to coins or to stained tissue",
    source="the photos coins.png and ihc.png, shipped by scikit-image",
    derived="masks by a watershed of the edges (coins) and by Otsu's threshold of the stain (tissue)",
    data=tiles,
    model=UNet,
    loss=nn.functional.cross_entropy,
    metric=mean_iou,
    metric_name="halfconv.recipes.metrics:mean_iou",
    threshold=0.85,
    outputs=("scores",),
    epochs=16,
    batch=32,
    learning_rate=5e-3,
    augment=turned,
)
