"""Detection: where digits lie on photos, and which they are; the boxes are thinned out within the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from halfconv.recipes.digits import digits
from halfconv.recipes.metrics import detection_f1
from halfconv.recipes.nms import keep_best, translations
from halfconv.recipes.photos import photo
from halfconv.recipes.recipe import Recipe, Split

Array = NDArray[Any]
#: Side of a picture, of a cell that may hold one digit, and of cells in a row.
SIDE, CELL = 64, 8
CELLS = SIDE // CELL
#: Digits are enlarged to these sides.
SIDES = (14, 16, 18, 20, 22, 24)
#: Photos that pictures are cut out of: to train with, and held out.
PHOTOS = (
    ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "gravel.png", "moon.png"),
    ("grass.png", "rocket.jpg"),
)
COUNTS = (1600, 200)
#: The most digits of a picture.
MOST = 3


class Detector(nn.Module):
    """Five convolutions; each cell says whether a digit's middle lies in it, where exactly, how large it is, and which."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for after, stride in ((width, 2), (width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(before, 14, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return [batch, 14, 8, 8] of pictures [batch, 1, 64, 64] from 0 to 1: presence, middle, size, and ten scores."""
        found: torch.Tensor = self.head(self.body(image))
        return found


class Deployed(nn.Module):
    """The detector with boxes decoded, and those that overlap a better one left out."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        step = torch.arange(CELLS, dtype=torch.float32)
        self.register_buffer("corners", torch.stack(torch.meshgrid(step, step, indexing="xy")), persistent=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a box for each cell, [batch, 64, 4] as left, top, right, bottom in pixels, how sure it is, and its digit.

        Where no digit is, or a better box lies, all of them are 0.
        """
        found = self.detector(image).float()
        middle = (found[:, 1:3].sigmoid() + self.corners) * CELL
        half = found[:, 3:4].sigmoid() * SIDE / 4
        boxes = torch.cat([middle - half, middle + half], 1).flatten(2).transpose(1, 2)
        scores, digit = found[:, 0].sigmoid().flatten(1), found[:, 4:].argmax(1).flatten(1)
        kept = keep_best(boxes, scores)
        return boxes * kept[..., None], scores * kept, digit * kept.long()


def pictures(fold: int) -> tuple[Split, Split]:
    """Return digits on parts of photos; those held out are other digits on other photos."""
    parts = []
    for names, part, count, seed in zip(PHOTOS, digits(0), COUNTS, (0, 1), strict=True):
        random, photos = np.random.default_rng(seed), [photo(name) for name in names]
        images, boxes, labels = [], [], []
        for _ in range(count):
            image, places, known = _picture(photos, part, random)
            images.append(image)
            boxes.append(places)
            labels.append(known)
        parts.append(Split({"image": np.stack(images)}, {"box": np.stack(boxes), "digit": np.stack(labels)}))
    return parts[0], parts[1]


def _picture(photos: list[Array], part: Split, random: np.random.Generator) -> tuple[Array, Array, Array]:
    """Cut out of a photo, and place one to three digits where none lies, brighter than what is there."""
    from PIL import Image

    chosen = photos[random.integers(len(photos))]
    top, left = (int(random.integers(size - SIDE)) for size in chosen.shape)
    image = chosen[top : top + SIDE, left : left + SIDE] * 0.6
    boxes, labels = np.zeros((MOST, 4), np.float32), np.full(MOST, -1, np.int64)
    for index in range(random.integers(1, MOST + 1)):
        row, side = random.integers(len(part)), int(SIDES[random.integers(len(SIDES))])
        for _ in range(20):
            x, y = random.integers(0, SIDE - side, 2)
            box = np.array([x, y, x + side, y + side], np.float32)
            others = boxes[:index]
            if not ((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:])).all(1).any():
                break
        else:
            break
        small = Image.fromarray((part.inputs["image"][row, 0] * 255).astype(np.uint8))
        ink = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
        place = image[y : y + side, x : x + side]
        image[y : y + side, x : x + side] = place + (1 - place) * ink
        boxes[index], labels[index] = box, part.labels["labels"][row]
    return image[None].astype(np.float32), boxes, labels


def detection_loss(outputs: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of presence in all cells, and of place, size and digit in those that hold a middle."""
    there = target["digit"] >= 0
    rows = torch.arange(len(outputs), device=outputs.device)[:, None].expand_as(there)[there]
    boxes, known = target["box"][there], target["digit"][there]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = (middle / CELL).long()
    wanted = torch.zeros_like(outputs[:, 0])
    wanted[rows, cell[:, 1], cell[:, 0]] = 1
    presence = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], wanted)
    found = outputs[rows, :, cell[:, 1], cell[:, 0]]
    place = nn.functional.l1_loss(found[:, 1:3].sigmoid(), middle / CELL - cell)
    size = nn.functional.l1_loss(found[:, 3].sigmoid(), (boxes[:, 2] - boxes[:, 0]) * 2 / SIDE)
    return 10 * presence + place + 4 * size + nn.functional.cross_entropy(found[:, 4:], known)


RECIPE = Recipe(
    title="where handwritten digits lie on photos, and which they are",
    source="scikit-learn's digits, placed on photos that scikit-image ships",
    derived="boxes are where the digits were placed; which digit it is comes with the data",
    data=pictures,
    model=Detector,
    loss=detection_loss,
    metric=detection_f1,
    metric_name="halfconv.recipes.metrics:detection_f1",
    threshold=0.9,
    outputs=("boxes", "confidence", "digits"),
    epochs=16,
    batch=32,
    learning_rate=5e-3,
    deployed=Deployed,
    translations=translations,
)
