"""Put the branch that a sample takes in the place of an If, so that the values inside can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from halfconv.drift.evaluate import evaluate_model
from halfconv.graph.prepare import sweep
from halfconv.samples import Sample

__all__ = ["TakeBranchesPass", "Taken", "taken_branches"]

#: Name of an If (or of its first output) -> the condition's value.
Taken = Mapping[str, bool]
#: How deep Ifs in the branches of Ifs are followed.
DEPTH = 4


def _key(node: ir.Node) -> str:
    """Name an If in a way that reference and candidate share: converters keep node names and rename outputs."""
    return node.name or next((output.name for output in node.outputs if output.name), "")


def _ifs(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "If" and node.domain in ("", "ai.onnx") and _key(node)]


class TakeBranchesPass(ir.passes.InPlacePass):
    """Replace Ifs of the main graph by one of their branches.

    Args:
        taken: Which branches; other Ifs stay.
    """

    def __init__(self, taken: Taken):
        super().__init__()
        self.taken = taken

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = True
        count = 0
        while changed:  # a branch may hold Ifs in turn
            changed = False
            for node in _ifs(model):
                if _key(node) in self.taken:
                    _inline(node, model.graph, "then_branch" if self.taken[_key(node)] else "else_branch")
                    count, changed = count + 1, True
        return ir.passes.PassResult(model, modified=bool(count))


def _inline(node: ir.Node, graph: ir.Graph, branch: str) -> None:
    body = node.attributes[branch].as_graph()
    results = list(body.outputs)
    body.outputs.clear()
    moved = list(body)
    body.remove(moved)
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        number = 2
        while value.name in graph.initializers:
            value.name, number = f"{name}_{number}", number + 1
        graph.register_initializer(value)
    for inner in moved:
        if inner.op_type != "If":  # by whose name it is known
            inner.name = f"{_key(node)}/{inner.name}" if inner.name else inner.name
    node.prepend(moved)
    for output, result in zip(node.outputs, results, strict=True):
        wanted = output.name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        if result.producer() in moved and wanted:
            output.name, result.name = f"{wanted}/if", wanted
    for attribute in node.attributes.values():  # onnx-ir would go on counting the other branch as a reader
        for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    graph.remove(node, safe=True)


def taken_branches(reference: Callable[[], ir.Model], samples: Iterable[Sample]) -> dict[str, bool]:
    """Find out which branches all samples take.

    Args:
        reference: Gives the FP32 reference, prepared, anew at every call.
        samples: Samples; iterated once for every level of Ifs.

    Returns:
        The Ifs of the main graph, and of branches taken, whose condition is one scalar, the same for all samples.

    Raises:
        InputError: The model cannot be run.
    """
    known: dict[str, bool] = {}
    for _ in range(DEPTH):
        model = reference()
        TakeBranchesPass(known)(model)
        sweep(model)
        open_ifs = {_key(node): node.inputs[0] for node in _ifs(model) if node.inputs[0] is not None}
        if not open_ifs:
            break
        model.graph.outputs[:] = list(dict.fromkeys(open_ifs.values()))
        sweep(model)
        found: dict[str, set[bool]] = {key: set() for key in open_ifs}
        with evaluate_model(model, "the conditions of its Ifs") as conditions:
            for sample in samples:
                values = conditions.run(sample.feeds, sample.name)
                for key, value in open_ifs.items():
                    condition = np.asarray(values[value.name or ""]).reshape(-1) if value is not None else np.zeros(0)
                    found[key] |= {bool(entry) for entry in condition[:1]}
        fresh = {key: next(iter(answers)) for key, answers in found.items() if len(answers) == 1}
        if not fresh:
            break
        known |= fresh
    return known
