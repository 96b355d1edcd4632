"""Tests of the number of groups that are given out ahead."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import networkx
import pytest

from spark_butler.driver.batching import BatchSizer
from spark_butler.driver.scheduler import Scheduler
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, Handover


def _pace(seconds: float, n: int = 200) -> BatchSizer:
    pace = BatchSizer(quanta_per_group=2)
    for _ in range(n):
        pace.record("a", seconds)
    return pace


@pytest.mark.parametrize(
    ("seconds", "limit", "bundle"),
    [(0.0, 400, 32), (0.04, 400, 25), (0.1, 300, 10), (1.0, 210, 1), (100.0, 201, 1)],
)
def test_long_groups_are_dispatched_just_in_time(seconds: float, limit: int, bundle: int) -> None:
    pace = _pace(seconds)
    assert pace.limit(200) == limit
    assert pace.next_batch("aa", 200, 1_000_000) == bundle


def test_queue_is_empty_until_a_time_is_known() -> None:
    pace = BatchSizer(2)
    assert pace.limit(200) == 200
    assert pace.next_batch("aa", 200, 1_000_000) == 1


def test_task_without_known_time_is_dispatched_singly() -> None:
    assert _pace(0.0).next_batch("ab", 200, 1_000_000) == 1
    assert BatchSizer(2, {"a": 0.1, "b": 0.1}).next_batch("ab", 200, 1_000_000) == 10


def test_few_ready_groups_are_not_bundled() -> None:
    assert _pace(0.0).next_batch("aa", 200, 799) == 1
    assert _pace(0.0).next_batch("aa", 200, 1_600) == 2


def test_old_times_are_forgotten() -> None:
    pace = _pace(0.0, 10_000)
    for _ in range(1_000):
        pace.record("a", 20.0)
    assert pace.limit(200) == 201


def test_unit_counts_its_remaining_groups() -> None:
    makers, reader = [uuid.UUID(int=n) for n in range(3)], uuid.UUID(int=3)
    labels = {**dict.fromkeys(makers, "a"), reader: "b"}
    tables = [Handover(maker, "table", maker, (reader,)) for maker in makers]
    sketch = GraphSketch(labels, [(maker, reader) for maker in makers], tables)
    plan = cut_graph(sketch)
    assert len(plan.units) == 1
    graph: networkx.DiGraph[uuid.UUID] = networkx.DiGraph(list(sketch.edges))
    backend = SimpleNamespace(slots=1)
    dispatcher = Scheduler(plan, graph, backend, lambda *_: None, on_outcome=lambda _: None)  # type: ignore[arg-type]
    assert dispatcher._pick(1) == [list(plan.units)]
    counts = [dispatcher._running[0]]
    for quantum_id in (*makers, *makers, reader):
        dispatcher._close(quantum_id)
        counts.append(dispatcher._running.get(0, 0))
    assert counts == [3, 3, 2, 1, 1, 1, 1, 0]
