"""Algorithms on directed acyclic graphs, for the partition of a quantum graph.  Runs in the driver."""

from __future__ import annotations

__all__ = ["find_stages", "find_units", "is_balanced", "sort_topologically"]

import heapq
from collections.abc import Iterable, Sequence

import networkx

from ..errors import PlanError
from .plan import Crossing


def sort_topologically(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the numbers in an order in which each follows its dependencies (Kahn's algorithm)."""
    feeds: list[list[int]] = [[] for _ in range(n)]
    missing = [0] * n
    for before, after in edges:
        feeds[before].append(after)
        missing[after] += 1
    # The newest ready number comes first: its inputs are consumed soon, so that few temporaries are alive.
    ready = [node for node in reversed(range(n)) if not missing[node]]
    order: list[int] = []
    while ready:
        node = ready.pop()
        order.append(node)
        for after in reversed(feeds[node]):
            missing[after] -= 1
            if not missing[after]:
                ready.append(after)
    if len(order) != n:
        raise PlanError(
            f"The quantum graph has a dependency cycle: {n - len(order)} of {n} nodes wait for each other."
        )
    return order


def find_stages(needs: Sequence[Sequence[int]]) -> list[int]:
    """Return the stage of each group: the number of groups on the longest path to it."""
    stages: list[int] = []
    for before in needs:
        stages.append(max((stages[need] + 1 for need in before), default=0))
    return stages


def is_balanced(costs: Sequence[float], slots: int, unevenness: float) -> bool:
    """Return whether all slots are busy equally long if each free slot gets the costliest remaining group."""
    busy = [0.0] * slots
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy) <= unevenness * sum(costs) / slots


def find_units(needs: Sequence[Sequence[int]], crossings: Iterable[Crossing]) -> list[int]:
    """Join groups that pass temporaries to each other, and the groups on paths between them.

    Returns the number of the unit of each group; units follow their dependencies.
    """
    root = list(range(len(needs)))

    def find(n: int) -> int:
        while root[n] != n:
            root[n] = root[root[n]]
            n = root[n]
        return n

    for crossing in crossings:
        for consumer in crossing.consumers:
            root[find(consumer)] = find(crossing.producer)
    joined = [find(n) for n in range(len(needs))]
    edges = dict.fromkeys(
        (joined[need], joined[n]) for n in range(len(needs)) for need in needs[n] if joined[need] != joined[n]
    )
    try:
        order = sort_topologically(len(needs), list(edges))
    except PlanError:
        # If a path leaves a unit and returns to it, all groups on the path belong to the unit.
        graph: networkx.DiGraph[int] = networkx.DiGraph(list(edges))
        for component in networkx.strongly_connected_components(graph):
            keeper = min(component)
            for n in component:
                root[n] = keeper
        joined = [find(n) for n in range(len(needs))]
        edges = dict.fromkeys((joined[a], joined[b]) for a, b in edges if joined[a] != joined[b])
        order = sort_topologically(len(needs), list(edges))
    used = set(joined)
    number = {joint: n for n, joint in enumerate(joint for joint in order if joint in used)}
    return [number[joint] for joint in joined]
