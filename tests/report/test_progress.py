"""Numbers that are counted while a run goes on."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport

from spark_butler.driver.events import ObserverGroup
from spark_butler.model.outcomes import QuantumOutcome
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch, Handover, Plan
from spark_butler.report.progress import Progress, ProgressSnapshot, TaskProgress


class _Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def _outcome(number: int, label: str, *, good: bool = True, **more: Any) -> QuantumOutcome:
    report = QuantumReport(dataId={"detector": number}, taskLabel=label, exitCode=0 if good else 1)
    status = QuantumAttemptStatus.SUCCESSFUL if good else QuantumAttemptStatus.FAILED
    return QuantumOutcome(_id(number), status, report, wall_seconds=more.pop("wall_seconds", 1.0), **more)


def _plan() -> Plan:
    """Two chains of a and b, which c gathers."""
    labels = {_id(n): label for n, label in enumerate("aabbc")}
    edges = [(_id(a), _id(b)) for a, b in [(0, 2), (1, 3), (2, 4), (3, 4)]]
    return cut_graph(GraphSketch(labels, edges), group_by="fused")


def _singles(labels: str) -> Plan:
    """Quanta that have nothing to do with each other."""
    return cut_graph(GraphSketch({_id(n): label for n, label in enumerate(labels)}, []), group_by="fused")


def _running(progress: Progress) -> dict[str, int]:
    return {task.label: task.running for task in progress.snapshot().tasks}


def test_quantum_has_one_state_at_a_time() -> None:
    progress = Progress(slots=2)
    progress.on_plan(_plan())
    assert progress.snapshot().tasks == (
        TaskProgress("a", 2, 0, 0, 0, 0),
        TaskProgress("b", 2, 0, 0, 0, 0),
        TaskProgress("c", 1, 0, 0, 0, 0),
    )
    progress.on_dispatch([_id(0), _id(2)])
    progress.on_dispatch([_id(1), _id(3)])
    snapshot = progress.snapshot()
    # Four quanta, but two groups, which begin with a.
    assert _running(progress) == {"a": 2, "b": 0, "c": 0}
    assert snapshot.total == TaskProgress("total", 3, 2, 0, 0, 0)
    assert (snapshot.busy, snapshot.slots) == (2, 2)
    progress.on_outcome(_outcome(0, "a"))
    progress.on_outcome(_outcome(2, "b"))
    progress.on_outcome(_outcome(1, "a", good=False))
    progress.on_blocked([_id(3), _id(4)])
    snapshot = progress.snapshot()
    assert snapshot.tasks == (
        TaskProgress("a", 0, 0, 1, 1, 0),
        TaskProgress("b", 0, 0, 1, 0, 1),
        TaskProgress("c", 0, 0, 0, 0, 1),
    )
    assert snapshot.busy == 0
    assert snapshot.seconds_left == 0
    assert [outcome.quantum_id for outcome in snapshot.failures] == [_id(1)]


def test_slots_may_change_during_a_run() -> None:
    slots = [1]
    progress = Progress(slots=lambda: slots[0])
    progress.on_plan(_plan())
    progress.on_dispatch([_id(0), _id(2), _id(1), _id(3)])
    assert (progress.snapshot().busy, progress.snapshot().slots) == (1, 1)
    slots[0] = 4
    assert (progress.snapshot().busy, progress.snapshot().slots) == (2, 4)


def test_running_quanta_are_limited_by_slots() -> None:
    labels = {_id(n): label for n, label in enumerate("aaabbb")}
    progress = Progress(slots=2)
    progress.on_plan(cut_graph(GraphSketch(labels, [(_id(n), _id(n + 3)) for n in range(3)])))
    progress.on_dispatch([_id(n) for n in range(6)])
    assert _running(progress) == {"a": 2, "b": 0}
    progress.on_outcome(_outcome(2, "a"))
    assert _running(progress) == {"a": 1, "b": 1}
    progress.on_outcome(_outcome(1, "a"))
    assert _running(progress) == {"a": 0, "b": 2}
    assert progress.snapshot().busy == 2
    ended = progress.snapshot().at_end()
    assert (ended.busy, ended.total) == (0, TaskProgress("total", 4, 0, 2, 0, 0))


def test_gather_is_not_running_before_its_inputs_exist() -> None:
    labels = {_id(n): label for n, label in enumerate("aac")}
    handover = Handover(uuid.uuid4(), "t", _id(0), (_id(2),)), Handover(uuid.uuid4(), "t", _id(1), (_id(2),))
    edges = [(_id(0), _id(2)), (_id(1), _id(2))]
    plan = cut_graph(
        GraphSketch(labels, edges, handovers=handover, temporary_types={"t": "any"}), group_by="quantum"
    )
    # One Spark job: all is given out at once.
    assert [unit.levels for unit in plan.units] == [((0, 1), (2,))]
    progress = Progress(slots=4)
    progress.on_plan(plan)
    progress.on_dispatch(labels)
    assert _running(progress) == {"a": 2, "c": 0}
    progress.on_outcome(_outcome(0, "a"))
    assert _running(progress) == {"a": 1, "c": 0}
    progress.on_outcome(_outcome(1, "a"))
    assert _running(progress) == {"a": 0, "c": 1}


def test_repeated_quantum_is_counted_once() -> None:
    progress = Progress(slots=2)
    progress.on_plan(_plan())
    progress.on_dispatch([_id(0), _id(2)])
    progress.on_outcome(_outcome(0, "a"))
    progress.on_dispatch([_id(0), _id(2)])
    progress.on_outcome(_outcome(0, "a"))
    progress.on_outcome(_outcome(2, "b"))
    assert progress.snapshot().total == TaskProgress("total", 3, 0, 2, 0, 0)


def test_time_left_follows_mean_times_and_busy_slots() -> None:
    clock = _Clock()
    progress = Progress(slots=4, clock=clock)
    progress.on_plan(_singles("a" * 100))
    assert progress.snapshot().seconds_left is None
    progress.on_dispatch([_id(number) for number in range(20)])
    for number in range(20):
        clock.now += 0.5
        progress.on_outcome(_outcome(number, "a", wall_seconds=1.0))
    # 20 s of work in 10 s: two slots; 80 s are left.
    snapshot = progress.snapshot()
    assert snapshot.seconds_left == pytest.approx(40)
    assert snapshot.rate == pytest.approx(2)
    clock.now += 120
    assert progress.snapshot().rate == 0


def test_times_of_earlier_runs_give_an_estimate_at_once() -> None:
    progress = Progress({"a": 10, "b": 10}, slots=5, task_seconds={"a": 3.0, "b": 1.0})
    assert progress.snapshot().seconds_left == pytest.approx(10 * (3 + 1) / 5)


def test_time_left_is_unknown_until_each_task_has_been_timed() -> None:
    now = [0.0]
    progress = Progress({"a": 6, "b": 1}, slots=2, clock=lambda: now[0])
    labels = {_id(n): "a" for n in range(6)} | {_id(6): "b"}
    progress.on_plan(cut_graph(GraphSketch(labels, [])))
    progress.on_dispatch(labels)
    known = []
    for n in (0, 1, 6, 2):
        now[0] += 1.0
        progress.on_outcome(_outcome(n, labels[_id(n)], wall_seconds=2.0))
        known.append(progress.snapshot().seconds_left is not None)
    # Task a counts from its third quantum on, task b has only one.
    assert known == [False, False, False, True]


def test_snapshot_is_read_back_from_its_description() -> None:
    progress = Progress({"a": 10}, slots=5, task_seconds={"a": 3.0})
    snapshot = progress.snapshot()
    assert ProgressSnapshot.from_description(json.loads(json.dumps(snapshot.describe()))) == snapshot


def test_status_of_an_earlier_release_is_read() -> None:
    task = {"label": "a", "pending": 1, "running": 0, "done": 2, "failed": 0, "blocked": 0, "total": 3}
    status = {"tasks": [task], "quanta_per_second": 0.5, "seconds_left": None, "slots": 2, "busy": 0}
    (read,) = ProgressSnapshot.from_description(status).tasks
    assert read == TaskProgress("a", 1, 0, 2, 0, 0)


def test_failing_observer_is_dropped_and_others_continue(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Progress):
        n_told = 0

        def on_outcome(self, outcome: QuantumOutcome) -> None:
            self.n_told += 1
            raise RuntimeError("no terminal")

    broken, good = Broken(), Progress()
    both = ObserverGroup(broken, None, good)
    both.on_plan(_plan())
    both.on_dispatch([_id(0), _id(1)])
    both.on_outcome(_outcome(0, "a"))
    both.on_outcome(_outcome(1, "a"))
    assert good.snapshot().tasks[0].done == 2
    assert broken.n_told == 1
    assert "Broken no longer observes the run: no terminal" in caplog.text
