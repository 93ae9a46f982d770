"""Let a convolution pad its image itself, where a Pad does it before.

Ports of TensorFlow's models pad so: its padding "same" may differ between the two sides of an image, which PyTorch's convolutions
do not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from halfconv.graph.fuse import only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.typegroups import is_float

__all__ = ["fold_pad"]

#: Pads are 32-bit integers in the libraries that run convolutions.
LIMIT = 1 << 31


def fold_pad(conv: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fold a Pad with zeros around an image into the convolution that alone reads it."""
    padded, weight = conv.inputs[0], conv.inputs[1]
    pad = padded.producer() if padded is not None else None
    if padded is None or weight is None or weight.shape is None or pad is None or pad.op_type != "Pad":
        return None
    if conv.domain or pad.domain or not is_float(padded):
        return None
    if only_reader(padded) is not conv or pad.graph is not conv.graph:
        return f"'{padded.name}' is read by others, too"
    if (mode := pad.attributes.get_string("mode", "constant")) != "constant":
        return f"it pads by mode {mode}, not with zeros"
    number = _number(pad, rewriter)
    if number != 0:
        return "the number that it pads with is computed" if number is None else f"it pads with {number:g}, not with zeros"
    kind = conv.attributes.get_string("auto_pad", "NOTSET")
    if kind not in ("NOTSET", "VALID", ""):
        return f"the convolution's auto_pad {kind} depends on the size of the padded image"
    rank = weight.shape.rank()
    added = _added(pad, rank, rewriter)
    given = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes and kind != "VALID" else [0] * 2 * (rank - 2)
    if added is None:
        return "how much it pads is computed"
    if any((*added[:2], *added[rank : rank + 2])):
        return "it pads along other axes than those of the image"
    image = [*added[2:rank], *added[rank + 2 :]]
    if min(image, default=0) < 0:
        return "it cuts the image, where it pads by less than 0"
    if len(given) != len(image) or max(image, default=0) >= LIMIT:
        return None
    return lambda: _fold(conv, pad, [a + b for a, b in zip(given, image, strict=True)], rewriter)


def _fold(conv: ir.Node, pad: ir.Node, pads: Sequence[int], rewriter: Rewriter) -> ir.Node:
    attributes = {name: attribute for name, attribute in conv.attributes.items() if name not in ("auto_pad", "pads")}
    return rewriter.replace(conv, "Conv", [pad.inputs[0], *conv.inputs[1:]], {**attributes, "pads": pads})


def _number(pad: ir.Node, rewriter: Rewriter) -> float | None:
    """Return what a Pad pads with; None if that is not known."""
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        return rewriter.number(pad.inputs[2])
    return pad.attributes.get_float("value", 0.0)


def _added(pad: ir.Node, rank: int, rewriter: Rewriter) -> list[int] | None:
    """Return what a Pad of any opset adds in front of each axis, then behind each; None if that is not known."""
    name = next((name for name in ("pads", "paddings") if name in pad.attributes), None)
    if name is not None:
        numbers: Sequence[object] | None = pad.attributes[name].as_ints()
    else:
        numbers = rewriter.sizes.elements(pad.inputs[1]) if len(pad.inputs) > 1 else None
    axes: Sequence[object] | None = range(rank)
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = rewriter.sizes.elements(pad.inputs[3])
    if numbers is None or axes is None or len(numbers) != 2 * len(axes):
        return None
    whole = [0] * 2 * rank
    for place, axis in enumerate(axes):
        sides = numbers[place], numbers[place + len(axes)]
        if not isinstance(axis, int) or not -rank <= axis < rank or not all(isinstance(side, int) for side in sides):
            return None
        whole[axis % rank], whole[axis % rank + rank] = (int(side) for side in sides if isinstance(side, int))
    return whole
