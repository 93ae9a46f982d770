"""The minimum cut: exact, at every scale, with ties that prefer half."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.precision.mincut import CAPACITY_LIMIT, CastCost, cut_cost, minimum_cut

INF = math.inf
Problem = tuple[list[float], list[float], list[CastCost]]


def best(as_half: list[float], as_float: list[float], casts: list[CastCost]) -> tuple[float, list[list[bool]]]:
    """Try all assignments; return the least cost and everyone that reaches it."""
    costs: dict[float, list[list[bool]]] = {}
    for half in itertools.product([True, False], repeat=len(as_half)):
        costs.setdefault(cut_cost(half, as_half, as_float, casts), []).append(list(half))
    least = min(costs)
    return least, costs[least]


@st.composite
def problems(draw: st.DrawFn, groups: int = 12, largest: int = 40) -> Problem:
    count = draw(st.integers(1, groups))
    cost = st.integers(0, largest).map(float)
    either = st.one_of(
        st.tuples(cost, cost), st.tuples(cost, cost), st.tuples(st.just(INF), st.just(0.0)), st.tuples(st.just(0.0), st.just(INF))
    )
    sides = draw(st.lists(either, min_size=count, max_size=count))
    group = st.integers(0, count - 1)
    readers = st.lists(group, min_size=1, max_size=4).map(tuple)
    casts = draw(st.lists(st.builds(CastCost, group, readers, cost, cost), max_size=20))
    return [h for h, _ in sides], [f for _, f in sides], casts


@settings(max_examples=150, derandomize=True, deadline=None)
@given(problems(groups=8))
def test_it_is_as_good_as_trying_everything(problem: Problem) -> None:
    least, optima = best(*problem)
    found = minimum_cut(*problem)
    assert cut_cost(found, *problem) == least
    assert sum(found) == max(sum(half) for half in optima), "among optima, the most groups are half"


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None)
@given(problems(groups=12))
def test_it_is_as_good_as_trying_everything_with_twelve_groups(problem: Problem) -> None:
    least, optima = best(*problem)
    found = minimum_cut(*problem)
    assert cut_cost(found, *problem) == least
    assert sum(found) == max(sum(half) for half in optima)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(problems(groups=7, largest=1000), st.sampled_from([2.0**-60, 1e-12, 1e-3, 2.0**20, 1e12, 2.0**60]))
def test_the_unit_of_costs_does_not_matter(problem: Problem, unit: float) -> None:
    """Costs far beyond int32 and far below 1 are scaled, not cut off."""
    as_half, as_float, casts = problem
    scaled = (
        [cost * unit for cost in as_half],
        [cost * unit for cost in as_float],
        [CastCost(c.producer, c.readers, c.to_float * unit, c.to_half * unit) for c in casts],
    )
    assert cut_cost(minimum_cut(*scaled), *problem) == best(*problem)[0]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(problems(groups=7, largest=1000), st.integers(0, 10**6))
def test_costs_of_all_magnitudes_together_are_near_the_optimum(problem: Problem, seed: int) -> None:
    """Beyond int32's span the smallest costs round to one unit: the loss is bounded by a unit per edge."""
    as_half, as_float, casts = problem
    factor = [10.0 ** ((seed >> k) % 10) for k in range(len(as_half))]
    mixed = (
        [cost * f for cost, f in zip(as_half, factor, strict=True)],
        [cost * f for cost, f in zip(as_float, factor, strict=True)],
        [CastCost(c.producer, c.readers, c.to_float * factor[c.producer], c.to_half * factor[c.producer]) for c in casts],
    )
    least, _ = best(*mixed)
    finite = [cost for cost in (*mixed[0], *mixed[1]) if cost < INF] + [cost for c in casts for cost in (c.to_float, c.to_half)]
    edges = len(finite) + 4 * len(casts)
    whole = sum(finite) + sum(c.to_float + c.to_half for c in mixed[2])
    assert cut_cost(minimum_cut(*mixed), *mixed) <= least + 2 * edges * max(whole, 1.0) / CAPACITY_LIMIT


def test_huge_costs_do_not_overflow_the_solver() -> None:
    """scipy's maximum_flow computes in int32 and answers 0 when it overflows."""
    count = 2000
    as_half, as_float = [3e9] * count, [3e9 + 1e6] * count
    as_half[0], as_float[0] = INF, 0.0
    casts = [CastCost(i, (i + 1,), 1.0, 1.0) for i in range(count - 1)]
    assert minimum_cut(as_half, as_float, casts) == [False] + [True] * (count - 1)


def test_a_tiny_cost_beside_a_huge_one_is_not_lost() -> None:
    """Group 1 is held to half by 1e-9 only; the huge costs elsewhere must not round that away."""
    as_half, as_float = [0.0, 0.0, 1e12], [1e12, 1e-9, 0.0]
    assert minimum_cut(as_half, as_float, []) == [True, True, False]
    assert minimum_cut([0.0, 1e-9, 1e12], [1e12, 0.0, 0.0], []) == [True, False, False]


def test_forbidden_precisions_win_over_any_cost() -> None:
    casts = [CastCost(0, (1,), 1e30, 1e30)]
    assert minimum_cut([INF, 0.0], [0.0, INF], casts) == [False, True]
    assert minimum_cut([1e30, 0.0], [INF, 1e30], casts) == [True, True]


def test_a_group_that_may_be_neither_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither"):
        minimum_cut([0.0, INF], [0.0, INF], [])


def test_nothing_to_decide() -> None:
    assert minimum_cut([], [], []) == []
    assert minimum_cut([0.0] * 3, [0.0] * 3, []) == [True] * 3


def test_ties_prefer_half() -> None:
    assert minimum_cut([5.0], [5.0], []) == [True]
    # fp32 - free - half: the Cast is needed on one side or the other
    casts = [CastCost(0, (1,), 7.0, 7.0), CastCost(1, (2,), 7.0, 7.0)]
    assert minimum_cut([INF, 0.0, 0.0], [0.0, 0.0, INF], casts) == [False, True, True]


def test_readers_share_one_cast() -> None:
    """Ten readers in FP32 pay for one Cast of 6, which is less than 10 for moving the producer."""
    readers = tuple(range(1, 11))
    as_half, as_float = [0.0] + [INF] * 10, [10.0] + [0.0] * 10
    assert minimum_cut(as_half, as_float, [CastCost(0, readers, 6.0, 6.0)])[0]
    assert not minimum_cut(as_half, as_float, [CastCost(0, (reader,), 6.0, 6.0) for reader in readers])[0]


def test_the_two_directions_of_a_cast_may_cost_differently() -> None:
    cheap_down = [CastCost(0, (1,), 1.0, 100.0)]
    assert minimum_cut([0.0, INF], [50.0, 0.0], cheap_down) == [True, False]
    assert minimum_cut([INF, 0.0], [0.0, 50.0], cheap_down) == [False, False]


def test_a_value_read_by_its_own_group_pays_nothing() -> None:
    assert minimum_cut([0.0], [1.0], [CastCost(0, (0, 0), 1e9, 1e9)]) == [True]


def test_a_model_of_45000_nodes_is_cut_in_seconds() -> None:
    """A chain with a blocked group every 100, and side branches; every free stretch of 99 is worth its two Casts."""
    count = 45_000
    as_half = [INF if i % 100 == 0 else 0.0 for i in range(count)]
    as_float = [0.0 if i % 100 == 0 else 1.0 for i in range(count)]
    casts = [CastCost(i, (i + 1,), 3.0, 3.0) for i in range(count - 1)]
    casts += [CastCost(i, (i + 2, i + 3), 0.25, 0.25) for i in range(0, count - 3, 7)]
    begin = time.perf_counter()
    found = minimum_cut(as_half, as_float, casts)
    assert time.perf_counter() - begin < 20
    assert found == [i % 100 != 0 for i in range(count)]


def test_a_short_stretch_is_not_worth_its_casts() -> None:
    count = 9
    as_half = [INF if i % 4 == 0 else 0.0 for i in range(count)]
    as_float = [0.0 if i % 4 == 0 else 1.0 for i in range(count)]
    casts = [CastCost(i, (i + 1,), 3.0, 3.0) for i in range(count - 1)]
    assert minimum_cut(as_half, as_float, casts) == [False] * count
