"""The dispatcher by itself, with backends that run nothing."""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import networkx
import pytest
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport

from spark_butler.driver.scheduler import Scheduler
from spark_butler.errors import EngineError
from spark_butler.model.options import StopRule
from spark_butler.model.outcomes import QuantumOutcome, RunResult
from spark_butler.model.work import UnitWork
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, Plan, Unit
from spark_butler.report.progress import Progress

_REPORT = QuantumReport(dataId={"detector": 1}, taskLabel="a", exitCode=0)
_FAILURE = QuantumReport(dataId={"detector": 1}, taskLabel="a", exitCode=1)


def _outcome(quantum_id: uuid.UUID, *, good: bool = True, **more: Any) -> QuantumOutcome:
    status = QuantumAttemptStatus.SUCCESSFUL if good else QuantumAttemptStatus.FAILED
    return QuantumOutcome(quantum_id, status, _REPORT if good else _FAILURE, **more)


class _Backend:
    """Reports at once that every quantum succeeded, but for some."""

    def __init__(self, bad: Iterable[uuid.UUID] = (), slots: int = 4):
        self.slots = slots
        self.ran: list[uuid.UUID] = []
        self._bad = frozenset(bad)

    def run(self, context: Any, batch: Sequence[UnitWork], report: Any) -> None:
        for work in batch:
            for quantum_id in work.groups:
                self.ran.append(quantum_id)  # type: ignore[arg-type]
                report(_outcome(quantum_id, good=quantum_id not in self._bad))  # type: ignore[arg-type]

    def apply(self, context: Any, function: Any, items: Sequence[Any]) -> list[Any]:
        raise AssertionError("no files are copied")

    def is_alive(self) -> bool:
        return True

    def cancel(self) -> None:
        pass


def _graph(labels: Sequence[str], edges: Iterable[tuple[int, int]]) -> networkx.DiGraph[uuid.UUID]:
    graph: networkx.DiGraph[uuid.UUID] = networkx.DiGraph()
    for number, label in enumerate(labels):
        graph.add_node(uuid.UUID(int=number), task_label=label, data_id={"detector": number})
    graph.add_edges_from((uuid.UUID(int=a), uuid.UUID(int=b)) for a, b in edges)
    return graph


def _dispatcher(
    graph: networkx.DiGraph[uuid.UUID],
    backend: Any,
    on_outcome: Callable[[QuantumOutcome], None] = lambda outcome: None,
    **options: Any,
) -> Scheduler:
    labels = {quantum_id: graph.nodes[quantum_id]["task_label"] for quantum_id in graph}
    plan = cut_graph(GraphSketch(labels, list(graph.edges())), group_by="quantum")
    make_work = _work_maker(plan)
    return Scheduler(plan, graph, backend, make_work, on_outcome=on_outcome, **options)


def _work_maker(
    plan: Plan,
) -> Callable[[Sequence[Unit], frozenset[uuid.UUID], frozenset[uuid.UUID] | None], UnitWork]:
    """Make works that hold quantum IDs, which is all that the backends here want."""

    def make_work(
        units: Sequence[Unit], blocked: frozenset[uuid.UUID], done: frozenset[uuid.UUID] | None
    ) -> UnitWork:
        groups = [plan.groups[index] for unit in units for level in unit.levels for index in level]
        quanta = [q for group in groups for q in group.quanta]
        left = blocked | (done or frozenset())
        quanta_left: Any = tuple(q for q in quanta if q not in left)
        return UnitWork(units[0].index, quanta_left, (1,))

    return make_work


def _run(dispatcher: Scheduler) -> RunResult:
    return dispatcher.run(None)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["gather", "fan-out", "failure"])
def test_time_is_linear_in_the_number_of_quanta(shape: str) -> None:
    def measure(n: int) -> float:
        middle = range(1, n)
        edges = [(0, i) for i in middle] if shape != "gather" else []
        edges += [(i, n) for i in middle] if shape != "fan-out" else []
        graph = _graph(["a"] + ["b"] * (n - 1) + ["c"], edges)
        backend = _Backend(bad=[uuid.UUID(int=0)] if shape == "failure" else [], slots=100)
        dispatcher = _dispatcher(graph, backend)
        start = time.process_time()
        result = _run(dispatcher)
        duration = time.process_time() - start
        assert len(result.outcomes) + len(result.blocked) == n + 1
        return duration

    few, many = measure(1_000), measure(10_000)
    # A quadratic one would take 100 times as long.
    assert many < 30 * max(few, 0.03)


def test_quantum_blocked_by_two_failures_is_reported_once() -> None:
    graph = _graph("aabbc", [(0, 2), (1, 2), (1, 3), (2, 4), (3, 4)])
    backend = _Backend(bad=[uuid.UUID(int=0), uuid.UUID(int=1)])
    result = _run(_dispatcher(graph, backend))
    assert sorted(q.int for q in result.blocked) == [2, 3, 4]
    assert sorted(q.int for q in backend.ran) == [0, 1]


def test_longest_path_is_dispatched_first() -> None:
    # Quantum 3 has the longest way to go.
    graph = _graph("aaaabc", [(3, 4), (4, 5)])
    backend = _Backend(slots=1)
    _run(_dispatcher(graph, backend, limit=1))
    assert backend.ran[0].int == 3
    assert sorted(q.int for q in backend.ran) == list(range(6))


def test_observer_receives_every_outcome() -> None:
    graph = _graph("aabbc", [(0, 2), (1, 3), (2, 4), (3, 4)])
    progress = Progress(slots=4)
    dispatcher = _dispatcher(graph, _Backend(bad=[uuid.UUID(int=1)]), observer=progress)
    progress.on_plan(dispatcher._plan)
    result = _run(dispatcher)
    snapshot = progress.snapshot()
    # All outcomes of the fake backend are of task a.
    assert snapshot.failures == tuple(result.failed)
    total = snapshot.total
    assert sum(snapshot.tasks[n].blocked for n in range(3)) == len(result.blocked) == 2
    assert (total.failed, snapshot.busy) == (1, 0)


def test_driver_error_is_an_engine_failure_at_once() -> None:
    class Broken(_Backend):
        def run(self, context: Any, batch: Sequence[UnitWork], report: Any) -> None:
            self.ran.append(uuid.UUID(int=batch[0].index))
            raise OSError(28, "No space left on device", "/tmp/x")

    backend = Broken(slots=1)
    with pytest.raises(EngineError, match="No space left on device: '/tmp/x'.* Check disk space"):
        _run(_dispatcher(_graph("a", []), backend))
    assert len(backend.ran) == 1


class _Timed(_Backend):
    """Says that each quantum took some time, and keeps what came together."""

    def __init__(self, seconds: float) -> None:
        super().__init__(slots=1)
        self.bundles: list[tuple[uuid.UUID, ...]] = []
        self._seconds = seconds

    def run(self, context: Any, batch: Sequence[UnitWork], report: Any) -> None:
        for work in batch:
            self.bundles.append(work.groups)  # type: ignore[arg-type]
            for quantum_id in work.groups:
                report(_outcome(quantum_id, wall_seconds=self._seconds))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "times", "longest"), [(0.01, None, 32), (0.5, {"a": 0.5}, 4), (5.0, None, 1)]
)
def test_bundle_lasts_at_most_two_seconds(
    seconds: float, times: dict[str, float] | None, longest: int
) -> None:
    backend = _Timed(seconds)
    result = _run(_dispatcher(_graph("a" * 400, []), backend, times=times))
    assert len(result.outcomes) == 400
    assert max(map(len, backend.bundles)) == longest
    # Nothing is known at first, unless from an earlier run; and all workers shall end at the same time.
    assert len(backend.bundles[0]) == (longest if times else 1)
    assert min(map(len, backend.bundles)) == 1


def test_bundle_has_quanta_of_one_kind() -> None:
    backend = _Timed(0.0)
    graph = _graph("ab" * 200, [])
    _run(_dispatcher(graph, backend, times={"a": 0.0, "b": 0.0}))
    assert {len({graph.nodes[q]["task_label"] for q in bundle}) for bundle in backend.bundles} == {1}
    assert max(map(len, backend.bundles)) > 10


class _LateCancelBackend(_Backend):
    """Backend that ignores a cancel until its job runs; one job fails."""

    def __init__(self) -> None:
        super().__init__(slots=8)
        self._condition = threading.Condition()
        self._under_way = 0

    def run(self, context: Any, batch: Sequence[UnitWork], report: Any) -> None:
        quanta: list[Any] = [q for work in batch for q in work.groups]
        if uuid.UUID(int=0) in quanta:
            report(_outcome(uuid.UUID(int=0), good=False))
        time.sleep(0.5)
        with self._condition:
            self._under_way += 1
            self._condition.wait()
        raise RuntimeError("cancelled")

    def cancel(self) -> None:
        with self._condition:
            self._condition.notify_all()


def test_job_submitted_during_cancel_is_cancelled() -> None:
    graph = _graph("a" * 40, [])
    results: list[RunResult] = []
    dispatcher = _dispatcher(graph, _LateCancelBackend(), stop_rule=StopRule(fail_fast=True))
    thread = threading.Thread(target=lambda: results.append(_run(dispatcher)), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert results[0].stopped_by is not None


def test_quanta_that_never_become_ready_are_an_error() -> None:
    graph = _graph("ab", [(0, 1)])
    dispatcher = _dispatcher(graph, _Backend())
    dispatcher._waiting[1].add(uuid.UUID(int=99))
    with pytest.raises(EngineError, match="1 quanta never became ready"):
        _run(dispatcher)


class _Again(_Backend):
    """Reports every quantum a second time, with other outputs."""

    def run(self, context: Any, batch: Sequence[UnitWork], report: Any) -> None:
        for attempt, good in enumerate((True, False)):
            for work in batch:
                for quantum_id in work.groups:
                    outputs = tuple(uuid.UUID(int=100 + n) for n in ((1, 2), (2, 3))[attempt])
                    records = {
                        "store": DatastoreRecordData({i: {"table": [f"{attempt}"]} for i in outputs})  # type: ignore[list-item]
                    }
                    report(_outcome(quantum_id, good=good, outputs=outputs, records=records))  # type: ignore[arg-type]


def test_further_attempt_adds_to_the_first_which_counts() -> None:
    heard: list[QuantumOutcome] = []
    result = _run(_dispatcher(_graph("a", []), _Again(), heard.append))
    assert (len(heard), result.failed) == (2, [])
    assert {output.int for output in heard[1].outputs} == {101, 102, 103}
    records: Any = heard[1].records["store"].records
    assert {i.int: records[i]["table"] for i in records} == {101: ["0"], 102: ["1"], 103: ["1"]}
    # What was heard first has not changed.
    assert heard[0].records["store"].records.keys() == {uuid.UUID(int=101), uuid.UUID(int=102)}
    assert dataclasses.replace(heard[1], outputs=(), records={}) == dataclasses.replace(
        heard[0], outputs=(), records={}
    )
