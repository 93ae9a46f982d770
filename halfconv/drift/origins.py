"""Where the values of a model come from: node, operator, and the PyTorch module that the exporter names."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from halfconv.graph.names import Names, places
from halfconv.graph.typegroups import past_casts
from halfconv.precision.surroundings import scope_of

__all__ = ["Origin", "Origins", "origins"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value of a model comes from.

    Attributes:
        id: The value's id: its name, behind its place if it is inside a branch or body.
        node: Id of the node that makes it.
        op: Its operator.
        scope: The exporter's module path; "" if unknown.
        reads: Places of the values that the node reads, Casts looked through.
    """

    id: str
    node: str
    op: str
    scope: str
    reads: tuple[str, ...]


#: Place of a value (`halfconv.graph.names.places`) -> where it comes from.
Origins = dict[str, Origin]


def origins(model: ir.Model) -> Origins:
    """Describe the values of a model, in all scopes; call it before the model is changed.

    Args:
        model: A loaded model.
    """
    names = Names.of(model)
    place = {value: key for key, value in places(model.graph)}
    found: Origins = {}
    for value, key in place.items():
        node = value.producer()
        if node is None:
            found.setdefault(key, Origin(names.value[value], "", "", "", ()))
            continue
        reads = tuple(place.get(past_casts(read) or read, "") for read in node.inputs if read is not None)
        found.setdefault(key, Origin(names.value[value], names.node[node], node.op_type, scope_of(node.metadata_props), reads))
    return found
