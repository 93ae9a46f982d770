"""Apply a target's fusions to a model, and write down what was made, what was refused, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from halfconv.graph.fusions import fusions_for
from halfconv.graph.infer import infer
from halfconv.graph.names import Names
from halfconv.graph.sweep import sweep

__all__ = ["Kept", "Prepared", "Refusal", "fuse_for"]

#: Returns the nodes that the user named, each with the rule that does.
Kept = Callable[[Names], dict[ir.Node, str]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fusion that was not made.

    Attributes:
        fusion: Its name.
        node: Id of the node where it began to match.
        reason: Why not.
    """

    fusion: str
    node: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Return the entry as JSON data."""
        return {"fusion": self.fusion, "node": self.node, "reason": self.reason}


@dataclass(slots=True)
class Prepared:
    """What preparation did.

    Attributes:
        notes: Sentences for the report.
        fusions: Fused operator -> how many were made.
        examples: Fused operator -> id of the first node made.
        refused: Fusions that were not made.
        lost: (fusion, rule of the user) for each fusion that took up a node which the user had named.
    """

    notes: list[str] = field(default_factory=list)
    fusions: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    lost: set[tuple[str, str]] = field(default_factory=set)

    def add(self, later: Prepared) -> None:
        """Add what a second preparation did, which looks at the whole model again."""
        self.notes += later.notes
        for name, count in later.fusions.items():
            self.fusions[name] = self.fusions.get(name, 0) + count
        self.examples = later.examples | self.examples
        self.refused = later.refused


def fuse_for(
    model: ir.Model, done: Prepared, target: str, to: ir.DataType, without: frozenset[str], kept: Kept | None
) -> None:  # fmt: skip
    """Apply the fusions of a target, and write down what they did.

    Args:
        model: The model, sorted and with inferred types.
        done: Where to write it down.
        target: The target.
        to: The half-precision type.
        without: Names of the target's fusions that are left out.
        kept: Returns the nodes that the user named; None if none are.
    """
    made: dict[str, list[ir.Node]] = {}
    refused: list[tuple[str, ir.Node, str]] = []
    named = kept(Names.of(model)) if kept is not None else {}
    for fusion, fuse in fusions_for(target, to):
        if fusion.targets is not None and fusion.name in without:
            continue
        if fuse(model).modified:
            sweep(model)
            gone = [node for node in named if node.graph is None]
            rules = {named.pop(node) for node in gone}
            if fusion.targets is not None:
                done.lost |= {(fusion.name, rule) for rule in rules}
            if fusion.infers:
                infer(model)
        if fuse.count:
            done.fusions[fusion.name] = done.fusions.get(fusion.name, 0) + fuse.count
        made.setdefault(fusion.name, []).extend(node for node in fuse.made if node.graph is not None)
        refused += [(fusion.name, node, reason) for node, reason in fuse.refused]
    names = Names.of(model)
    for name, nodes in made.items():
        # What another fusion took up does not count any more.
        left = [node for node in nodes if node.graph is not None]
        if lost := len(nodes) - len(left):
            done.fusions[name] -= lost
        if not done.fusions.get(name, 1):
            del done.fusions[name]
        if left:
            done.examples[name] = names.node[left[0]]
    done.refused = [Refusal(name, names.node[node], reason) for name, node, reason in refused if node in names.node]
