"""Remove what nobody reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.graph.names import subgraphs

__all__ = ["DetachDeadGraphsPass", "sweep"]


def sweep(model: ir.Model) -> None:
    """Remove what nobody reads, and what only such nodes read."""
    DetachDeadGraphsPass()(model)
    common.RemoveUnusedNodesPass()(model)


class DetachDeadGraphsPass(ir.passes.InPlacePass):
    """Make the bodies of nodes that nobody reads release what they read: onnx-ir would go on counting them as readers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        dead: set[ir.Node] = set()
        for graph in reversed(list(model.graphs())):  # inner graphs first: a dead node inside one reads nothing
            for node in reversed(graph):
                if any(o.is_graph_output() or any(use.node not in dead for use in o.uses()) for o in node.outputs):
                    continue
                dead.add(node)
                for _, body in subgraphs(node):
                    for inner in ir.traversal.RecursiveGraphIterator(body):
                        dead.add(inner)
                        for index, value in enumerate(inner.inputs):
                            if value is not None:
                                inner.replace_input_with(index, None)
                                changed = True
        return ir.passes.PassResult(model, modified=changed)
