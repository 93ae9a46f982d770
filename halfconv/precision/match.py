"""What a pattern finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["Match"]


@dataclass(frozen=True, slots=True)
class Match:
    """Nodes that must stay FP32 together.

    Attributes:
        nodes: The nodes.
        culprit: The node that caused it.
        why: The reason, in words.
        figures: Numbers that the reason rests on.
        inputs: Model inputs whose numbers it is about; where all of these are half, there is nothing to keep.
    """

    nodes: tuple[ir.Node, ...]
    culprit: ir.Node
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()
