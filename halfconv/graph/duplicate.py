"""Copy a model so that nothing which is done to the copy shows in the original."""

from __future__ import annotations

import copy

import onnx_ir as ir

from halfconv.graph.names import values_of

__all__ = ["duplicate"]


def duplicate(model: ir.Model) -> ir.Model:
    """Copy a model; weights are shared, types and shapes are not, as they are in onnx-ir's own clone.

    Args:
        model: A model without functions; it stays as it is.

    Returns:
        A model whose graphs hold their nodes and values in the same order.
    """
    made = model.clone()
    for graph in made.graphs():
        for value in values_of(graph):
            value.type = copy.deepcopy(value.type)
            value.shape = None if value.shape is None else value.shape.copy()
    return made
