"""Which kernels the nodes of a planned model get: on the GPU or beside it, in half or in FP32 between Casts.

This is what the kernel tables say of the model as it would be written; ONNX Runtime fuses some nodes further when it loads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from halfconv.graph.kernels import expands, has_kernel
from halfconv.graph.schema import Signature, signature
from halfconv.planning import Planned

__all__ = ["CASTS", "CPU", "NATIVE", "NOWHERE", "Placed", "placement"]

#: The provider has a kernel for the node's types.
NATIVE = "native"
#: The CPU provider computes the node in FP32, between Casts that the runtime inserts.
CASTS = "casts"
#: The CUDA provider has no kernel: the CPU provider runs the node.
CPU = "cpu"
#: No provider that is known runs it.
NOWHERE = "nowhere"
#: Target -> providers that run the model. TensorRT decides for itself, and the tables know no other.
RUN_BY = {"portable": ("cuda", "cpu"), "cuda": ("cuda",), "cpu": ("cpu",)}
#: Formats of which the CPU provider loads no model.
NOT_ON_CPU = frozenset({ir.DataType.BFLOAT16})
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, slots=True)
class Placed:
    """Nodes of one operator that get the same kernel.

    Attributes:
        provider: The provider that is asked: ``cuda`` or ``cpu``.
        op: The operator, as ``com.microsoft::Gelu`` if it is not ONNX's own.
        version: Its version.
        dtype: ``float16`` or ``bfloat16`` if a slot of these nodes would be half, else ``float``.
        nodes: How many.
        runs: ``native``, ``casts``, ``cpu`` or ``nowhere``.
    """

    provider: str
    op: str
    version: int
    dtype: str
    nodes: int
    runs: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in self.__slots__}


def placement(planned: Planned) -> tuple[Placed, ...]:
    """Return what the providers that the model is made for do with its nodes, most nodes first.

    Nodes without floating-point numbers are left out, and those of operators that no schema is known for.
    """
    providers = [p for p in RUN_BY.get(planned.plan.target, ()) if p != "cpu" or planned.dtype not in NOT_ON_CPU]
    found: Counter[tuple[str, str, int, str, str]] = Counter()
    opsets = planned.source.model.opset_imports
    for node in planned.names.nodes():
        domain = "" if node.domain == "ai.onnx" else node.domain
        known = signature(domain, node.op_type, opsets.get(domain))
        types = {} if known is None or node.op_type == "Constant" else _types(node, known, planned)
        if known is None or not types:
            continue
        dtype = next((dtype.name.lower() for dtype in types.values() if dtype != ir.DataType.FLOAT), "float")
        label = f"{domain}::{node.op_type}" if domain else node.op_type
        for provider in providers:
            found[provider, label, known.since, dtype, _runs(provider, domain, node.op_type, known, types)] += 1
    placed = [Placed(*key[:4], count, key[4]) for key, count in sorted(found.items())]
    return tuple(sorted(placed, key=lambda entry: (providers.index(entry.provider), -entry.nodes)))


def _types(node: ir.Node, known: Signature, planned: Planned) -> dict[str, ir.DataType]:
    """Return the type of each type variable that holds floating-point tensors."""
    groups, half = planned.groups, planned.assignment.half
    slots = [(known.input_variable(i), value, groups.read.get((node, i))) for i, value in enumerate(node.inputs)]
    slots += [(known.output_variable(i), value, groups.produced.get(value)) for i, value in enumerate(node.outputs)]
    types: dict[str, ir.DataType] = {}
    for variable, value, group in slots:
        if value is not None and value.dtype in FLOATS and isinstance(value.type, ir.TensorType):
            types[variable] = planned.dtype if group is not None and half[group] else value.dtype
    return types


def _runs(provider: str, domain: str, op_type: str, known: Signature, types: Mapping[str, ir.DataType]) -> str:
    """Tell which kernel a node gets. An operator that is defined by others may run as these."""
    if has_kernel(provider, domain, op_type, known.since, types):
        return NATIVE
    if provider == "cuda" and known.is_function and all(expands(known, dtype) for dtype in set(types.values())):
        return NATIVE
    in_float = dict.fromkeys(types, ir.DataType.FLOAT)
    if not known.is_function and not any(has_kernel("cpu", domain, op_type, known.since, t) for t in (types, in_float)):
        return NOWHERE
    return CPU if provider == "cuda" else CASTS if in_float != types else NATIVE
