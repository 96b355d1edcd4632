"""Counts of quanta while a run goes on.  Runs in the driver; any thread may take a snapshot."""

from __future__ import annotations

__all__ = ["STATES", "Progress", "ProgressSnapshot", "TaskProgress"]

import dataclasses
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..model.outcomes import QuantumOutcome

if TYPE_CHECKING:
    from ..planning.plan import Group, Plan

STATES = ("pending", "running", "done", "failed", "blocked")
"""Names of the counts of a task's quanta."""

_RECENT_SECONDS = 60
_MIN_TIMED = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TaskProgress:
    """Counts of a task's quanta by state."""

    label: str
    pending: int
    """Quanta that have not begun."""
    running: int
    """Quanta that run: the next of each submitted group, at most as many as there are slots."""
    done: int
    failed: int
    blocked: int
    """Quanta that can't run because a quantum that they depend on failed."""

    @property
    def total(self) -> int:
        return self.pending + self.running + self.done + self.failed + self.blocked


@dataclasses.dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """Progress of a run at one moment."""

    tasks: tuple[TaskProgress, ...]
    """Counts by task, in the order in which tasks begin."""
    rate: float
    """Quanta that ended per second, over the last minute."""
    seconds_left: float | None
    """Estimated time to the end, in seconds; `None` while it is unknown."""
    elapsed: float
    """Time since the first quantum was submitted, in seconds."""
    slots: int
    busy: int
    """Number of slots that run a quantum."""
    failures: tuple[QuantumOutcome, ...]
    """Outcomes of the quanta that failed, in the order of their arrival."""

    @property
    def total(self) -> TaskProgress:
        return TaskProgress("total", *(sum(getattr(task, name) for task in self.tasks) for name in STATES))

    def at_end(self) -> ProgressSnapshot:
        """Return the counts when nothing runs any more."""
        tasks = (
            dataclasses.replace(task, pending=task.pending + task.running, running=0) for task in self.tasks
        )
        return dataclasses.replace(self, tasks=tuple(tasks), busy=0)

    def describe(self) -> dict[str, Any]:
        """Return the counts for a status file, for `json.dumps`."""
        return {
            "tasks": [{**dataclasses.asdict(task), "total": task.total} for task in self.tasks],
            "quanta_per_second": round(self.rate, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left),
            "seconds": round(self.elapsed, 1),
            "slots": self.slots,
            "busy": self.busy,
            "n_failures": len(self.failures),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ProgressSnapshot:
        """Build a snapshot from a status file, without the failures."""
        names = [field.name for field in dataclasses.fields(TaskProgress)]
        return cls(
            tuple(TaskProgress(*(task[name] for name in names)) for task in description["tasks"]),
            rate=description.get("quanta_per_second", 0.0),
            seconds_left=description.get("seconds_left"),
            # Earlier releases did not write the time so far.
            elapsed=description.get("seconds", 0.0),
            slots=description.get("slots", 0),
            busy=description.get("busy", 0),
            failures=(),
        )


class Progress:
    """Counts of a run's quanta; a `~spark_butler.driver.RunObserver` that any thread may read.

    Parameters
    ----------
    totals
        Number of quanta by task label, unless `on_plan` is called.
    slots
        Number of groups that can run at the same time, or a function that
        returns it, if it may change.
    task_seconds
        Mean time of a quantum by task label, in seconds, as far as it is
        known from earlier runs.
    clock
        Function that returns the time in seconds.
    """

    def __init__(
        self,
        totals: Mapping[str, int] | None = None,
        *,
        slots: int | Callable[[], int] = 1,
        task_seconds: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._totals: Counter[str] = Counter(totals or {})
        self._find_slots = slots if callable(slots) else lambda: slots
        self._known_seconds = dict(task_seconds or {})
        self._clock = clock
        self._lock = threading.RLock()
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._blocked: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._timed: Counter[str] = Counter()
        self._recent: deque[tuple[int, int]] = deque()
        self._failures: list[QuantumOutcome] = []
        self._started: float | None = None
        self._labels: Mapping[uuid.UUID, str] = {}
        self._groups: Sequence[Group] = ()
        self._group_of: dict[uuid.UUID, int] = {}
        self._out: set[uuid.UUID] = set()
        self._open_groups: Counter[int] = Counter()
        self._ended: set[uuid.UUID] = set()

    def on_plan(self, plan: Plan) -> None:
        """Count the quanta of the plan."""
        group_of = {quantum_id: group.index for group in plan.groups for quantum_id in group.quanta}
        totals = Counter(plan.task_labels[quantum_id] for quantum_id in group_of)
        with self._lock:
            self._labels, self._group_of, self._totals = plan.task_labels, group_of, totals
            self._groups = plan.groups

    def on_dispatch(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Count submitted quanta as running."""
        with self._lock:
            if self._started is None:
                self._started = self._clock()
            for quantum_id in quantum_ids:
                if quantum_id not in self._out and quantum_id not in self._ended:
                    self._out.add(quantum_id)
                    self._open_groups[self._group_of[quantum_id]] += 1

    def on_outcome(self, outcome: QuantumOutcome) -> None:
        """Count an outcome; only the first of a quantum counts."""
        label = outcome.label
        with self._lock:
            if outcome.quantum_id in self._ended:
                return
            self._close(outcome.quantum_id)
            if outcome.succeeded:
                self._done[label] += 1
            else:
                self._failed[label] += 1
                self._failures.append(outcome.without_scans())
            if outcome.wall_seconds and not outcome.skipped_existing:
                self._seconds[label] += outcome.wall_seconds
                self._timed[label] += 1
            now = int(self._clock())
            if self._recent and self._recent[-1][0] == now:
                self._recent[-1] = now, self._recent[-1][1] + 1
            else:
                self._recent.append((now, 1))
                self._forget_old(now)

    def on_blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        """Count quanta that can't run."""
        with self._lock:
            for quantum_id in quantum_ids:
                self._close(quantum_id)
                self._blocked[self._labels[quantum_id]] += 1

    def snapshot(self) -> ProgressSnapshot:
        """Return the progress of the run now."""
        slots = self._find_slots()
        with self._lock:
            now = self._clock()
            self._forget_old(int(now))
            running = self._count_running(slots)
            tasks = tuple(self._count(label, running[label]) for label in self._totals)
            elapsed = now - self._started if self._started is not None else 0.0
            n_recent = sum(n for _, n in self._recent)
            span = min(elapsed, _RECENT_SECONDS)
            return ProgressSnapshot(
                tasks,
                rate=n_recent / max(1.0, span),
                seconds_left=self._estimate(tasks, elapsed, slots),
                elapsed=elapsed,
                slots=slots,
                busy=running.total(),
                failures=tuple(self._failures),
            )

    def _close(self, quantum_id: uuid.UUID) -> None:
        """Record that a quantum has ended."""
        self._ended.add(quantum_id)
        if quantum_id not in self._out:
            return
        self._out.discard(quantum_id)
        group = self._group_of[quantum_id]
        self._open_groups[group] -= 1
        if not self._open_groups[group]:
            del self._open_groups[group]

    def _count_running(self, slots: int) -> Counter[str]:
        """Return the number of running quanta by task, as far as the driver knows."""
        level_of: dict[int, int] = {}
        for group in map(self._groups.__getitem__, self._open_groups):
            level_of[group.unit] = min(group.level, level_of.get(group.unit, group.level))
        at_work = []
        for group in map(self._groups.__getitem__, self._open_groups):
            # A later level of a unit waits for the earlier ones.
            if group.level == level_of[group.unit]:
                is_new = self._open_groups[group.index] == len(group.quanta)
                at_work.append((is_new, next(q for q in group.quanta if q in self._out)))
        # More groups are submitted than can run; groups with an outcome certainly run.
        at_work.sort(key=lambda each: each[0])
        return Counter(self._labels[quantum_id] for _, quantum_id in at_work[:slots])

    def _forget_old(self, now: int) -> None:
        """Remove the ends of quanta before the last minute."""
        while self._recent and self._recent[0][0] <= now - _RECENT_SECONDS:
            self._recent.popleft()

    def _count(self, label: str, running: int) -> TaskProgress:
        ended = self._done[label] + self._failed[label] + self._blocked[label]
        pending = max(0, self._totals[label] - ended - running)
        return TaskProgress(
            label, pending, running, self._done[label], self._failed[label], self._blocked[label]
        )

    def _estimate(self, tasks: Iterable[TaskProgress], elapsed: float, slots: int) -> float | None:
        """Return the estimated time to the end; `None` while the time of a task is unknown.

        The estimate follows from mean times and the number of busy slots so far.
        """
        means = dict(self._known_seconds)
        means.update(
            (label, self._seconds[label] / n)
            for label, n in self._timed.items()
            if label in means or n >= min(_MIN_TIMED, self._totals[label])
        )
        todo = [(task.label, task.pending + 0.5 * task.running) for task in tasks]
        if any(n and label not in means for label, n in todo):
            return None
        work = sum(n * means[label] for label, n in todo if n)
        done = sum(self._seconds.values())
        at_work = min(done / elapsed, slots) if done and elapsed else slots
        return work / max(at_work, 1e-3)
