"""Exact minimum cut over type groups: which free groups go with which precision, and where the Casts sit.

Each group pays a cost for being half and another for being FP32 (infinite where a rule decided). Each value pays for one Cast
if any of its readers is in the other precision; the Cast is shared, so ten readers pay as much as one. The optimum is an s-t
minimum cut: the source side is half, the sink side FP32, and each value adds one helper node per direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CastCost", "cut_cost", "minimum_cut"]

#: scipy's maximum_flow computes in int32 and returns 0 on overflow, so all finite capacities together stay below this.
CAPACITY_LIMIT = 2**29


@dataclass(frozen=True, slots=True)
class CastCost:
    """What a value pays when a reader is in the other precision than its producer.

    Attributes:
        producer: Group that produces the value.
        readers: Groups that read it.
        to_float: Cost of a Cast from half to FP32.
        to_half: Cost of a Cast from FP32 to half.
    """

    producer: int
    readers: tuple[int, ...]
    to_float: float
    to_half: float


def cut_cost(half: Sequence[bool], as_half: Sequence[float], as_float: Sequence[float], casts: Sequence[CastCost]) -> float:
    """Return the cost of an assignment: what `minimum_cut` minimises."""
    total = sum(h if is_half else f for is_half, h, f in zip(half, as_half, as_float, strict=True))
    for cast in casts:
        if any(half[reader] != half[cast.producer] for reader in cast.readers):
            total += cast.to_float if half[cast.producer] else cast.to_half
    return total


def minimum_cut(as_half: Sequence[float], as_float: Sequence[float], casts: Sequence[CastCost]) -> list[bool]:
    """Assign every group the precision that makes the total cost least; among optima, the one with most groups in half.

    Args:
        as_half: Cost of each group in half; `math.inf` forbids it.
        as_float: Cost of each group in FP32; `math.inf` forbids it.
        casts: Costs of the Casts between groups.

    Returns:
        For each group, whether it is half.

    Raises:
        ValueError: A group is forbidden both ways.
    """
    count = len(as_half)
    if any(math.isinf(h) and math.isinf(f) for h, f in zip(as_half, as_float, strict=True)):
        raise ValueError("a group may be neither half nor FP32")
    edges: dict[tuple[int, int], float] = {}
    source, sink, size = count, count + 1, count + 2

    def add(tail: int, head: int, cost: float) -> None:
        if cost > 0 and tail != head:
            edges[tail, head] = edges.get((tail, head), 0.0) + cost

    for group in range(count):
        add(source, group, as_float[group])
        add(group, sink, as_half[group])
    for cast in casts:
        readers = sorted(set(cast.readers) - {cast.producer})
        if not readers:
            continue
        if len(readers) == 1:
            add(cast.producer, readers[0], cast.to_float)
            add(readers[0], cast.producer, cast.to_half)
            continue
        if cast.to_float > 0:
            add(cast.producer, size, cast.to_float)
            for reader in readers:
                add(size, reader, math.inf)
            size += 1
        if cast.to_half > 0:
            add(size, cast.producer, cast.to_half)
            for reader in readers:
                add(reader, size, math.inf)
            size += 1
    if not any(math.isinf(cost) for cost in as_half) and not any(as_half):
        return [True] * count  # nothing pays for being half
    reaches_sink = _sink_side(edges, size, source, sink)
    return [not reaches_sink[group] for group in range(count)]


def _sink_side(edges: dict[tuple[int, int], float], size: int, source: int, sink: int) -> np.ndarray:
    """Solve the flow and return, for each node, whether it can still reach the sink: the smallest sink side."""
    # Here, because most small models need no cut, and scipy.sparse takes a third of a second to import.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    finite = sum(cost for cost in edges.values() if not math.isinf(cost))
    scale = CAPACITY_LIMIT / finite if finite else 1.0
    # A positive cost must stay positive, or the optimum could lose an edge; the sum still fits (one unit per edge).
    capacity = {edge: max(1, round(cost * scale)) for edge, cost in edges.items() if not math.isinf(cost)}
    infinite = min(2 * CAPACITY_LIMIT + 2 * len(edges), 2**31 - 1)
    tails, heads = np.array(list(edges)).T
    caps = np.array([capacity.get(edge, infinite) for edge in edges], np.int32)
    graph = csr_array((caps, (tails, heads)), shape=(size, size))
    flow = maximum_flow(csr_array(graph, dtype=np.int32), source, sink).flow
    residual = csr_array(graph - flow)
    residual.data = np.where(residual.data > 0, 1, 0)
    residual.eliminate_zeros()
    found = breadth_first_order(csr_array(residual.T), sink, directed=True, return_predecessors=False)
    side = np.zeros(size, bool)
    side[found] = True
    return side
