"""Leave out boxes that overlap a better one: an operator for PyTorch, and how it is written in ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["keep_best", "translations"]

#: Boxes that share more of their union than this are one; those less sure than that are none.
OVERLAP, CONFIDENCE = 0.3, 0.3


@torch.library.custom_op("halfconv::keep_best", mutates_args=())
def keep_best(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Greedy non-maximum suppression, as ONNX's NonMaxSuppression has it.

    Args:
        boxes: [batch, boxes, 4]: two opposite corners of each.
        scores: [batch, boxes].

    Returns:
        1 for boxes that stay, else 0, [batch, boxes].
    """
    device, boxes, scores = scores.device, boxes.cpu(), scores.cpu()  # where a look at a number does not wait for a GPU
    kept = torch.zeros_like(scores)
    low, high = boxes[..., :2], boxes[..., 2:]
    sizes = (high - low).prod(-1)
    for row in range(len(boxes)):
        left = [int(index) for index in scores[row].argsort(descending=True, stable=True) if scores[row, index] > CONFIDENCE]
        while left:
            best = left.pop(0)
            kept[row, best] = 1
            others = torch.tensor(left, dtype=torch.long)
            corner, end = torch.maximum(low[row, best], low[row, others]), torch.minimum(high[row, best], high[row, others])
            shared = (end - corner).clamp(min=0).prod(-1)
            overlap = shared / (sizes[row, best] + sizes[row, others] - shared)
            left = [index for index, much in zip(left, overlap.tolist(), strict=True) if much <= OVERLAP]
    return kept.to(device)


@keep_best.register_fake
def _(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(scores)


def translations() -> Mapping[Any, Any]:
    """Return how the operator is written in ONNX, for torch.onnx.export."""
    import onnxscript

    op: Any = onnxscript.opset18

    def keep_best_onnx(boxes: Any, scores: Any) -> Any:
        every = op.Constant(value_ints=[1])
        chosen = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, every), op.Constant(value_ints=[1 << 30]), op.Constant(value_floats=[OVERLAP]),
            op.Constant(value_floats=[CONFIDENCE]),
        )  # fmt: skip
        # [boxes kept, 3]: picture, class (there is one), box
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        zeros = op.ConstantOfShape(op.Shape(scores))
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(places, start=0, end=1))
        return op.ScatterND(zeros, places, ones)

    return {torch.ops.halfconv.keep_best.default: keep_best_onnx}
