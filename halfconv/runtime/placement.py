"""Placement: which provider runs which nodes, as data, so that "it runs on the GPU" is a fact and not a hope.

ONNX Runtime tells at creation which provider it assigned each node to. What it adds later, copies between devices and Casts, and
what it fuses, only a run shows: the first run of a session is profiled, and its placement replaces the assigned one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Placement", "assigned", "measured"]

_CPU = "CPUExecutionProvider"
#: Nodes that move a value between devices.
_COPIES = ("MemcpyFromHost", "MemcpyToHost")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a session's nodes run.

    Attributes:
        providers: What really loaded, by ONNX Runtime's names, best first.
        cuda: Whether CUDA is among them.
        nodes: Provider -> number of nodes.
        on_cpu: Operator -> number of nodes that run on the CPU.
        memcpy: Copies between devices in one run; None until a run was made.
        casts: Casts that ONNX Runtime inserted; None until a run was made.
        measured: Whether a run showed this; else it is what ONNX Runtime assigned at creation, before it fused nodes.
    """

    providers: tuple[str, ...]
    cuda: bool
    nodes: Mapping[str, int]
    on_cpu: Mapping[str, int]
    memcpy: int | None
    casts: int | None
    measured: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return asdict(self)


def _placement(session: Any, found: Iterable[tuple[str, str]], memcpy: int | None, casts: int | None) -> Placement:
    pairs = list(found)
    providers = tuple(session.get_providers())
    return Placement(
        providers,
        "CUDAExecutionProvider" in providers,
        dict(Counter(provider for provider, _ in pairs)),
        dict(Counter(op for provider, op in pairs if provider == _CPU)),
        memcpy,
        casts,
        memcpy is not None,
    )


def assigned(session: Any) -> Placement:
    """Return the placement that ONNX Runtime assigned; no nodes where its version does not tell."""
    try:
        graphs = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):
        return _placement(session, (), None, None)
    return _placement(session, ((graph.ep_name, node.op_type) for graph in graphs for node in graph.get_nodes()), None, None)


def measured(session: Any, profile: bytes) -> Placement | None:
    """Read the placement from a profile of at least one run.

    Args:
        session: ONNX Runtime's session.
        profile: The content of the file that ``end_profiling`` wrote.

    Returns:
        The placement, each node counted once; None if the profile shows no node.
    """
    try:
        events = json.loads(profile)
    except ValueError:
        return None
    nodes: dict[tuple[str, str], tuple[str, str, bool]] = {}
    for event in events:
        name, facts = event.get("name", ""), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith("_kernel_time") or "provider" not in facts:
            continue
        op = facts.get("op_name", "")
        nodes[name, facts.get("node_index", "")] = (facts["provider"], op, op == "Cast" and name.startswith("Inserted"))
    if not nodes:
        return None
    memcpy = sum(op in _COPIES for _, op, _ in nodes.values())
    casts = sum(inserted for _, _, inserted in nodes.values())
    return _placement(session, ((provider, op) for provider, op, _ in nodes.values() if op not in _COPIES), memcpy, casts)
