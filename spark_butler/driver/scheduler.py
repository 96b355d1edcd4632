"""Scheduler: submits units to a backend as soon as their inputs exist.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Scheduler"]

import heapq
import logging
import queue
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import networkx

from ..errors import EngineError, WorkerDiskError
from ..model.limits import Limits
from ..model.options import StopRule
from ..model.outcomes import FailureKind, QuantumOutcome, RunResult, job_text
from ..model.work import UnitWork, WorkerContext
from ..planning.plan import Plan, Unit
from .backend import Backend
from .batching import BatchSizer
from .events import ObserverGroup, RunObserver
from .failure_counter import FailureCounter
from .lost_workers import MAX_LOSSES, explain_loss, lost_outcome

logger = logging.getLogger(__name__)

# Greatest number of batches in a job, unless `_MAX_JOBS` such jobs would leave slots idle.
_MAX_JOB_BATCHES = 16
# Greatest number of ready units to skip in the search for others that fit into a batch.
_MAX_ASIDE = 32
_MAX_JOBS = 256
_CANCEL_SECONDS = 1.0
# The shares of the units of a batch, such as 3 × 1/3, may add up to slightly more or less than 1.
_WHOLE = 1 - 1e-6

_NO_RULE = StopRule()


class Scheduler:
    """Scheduler of the units of a plan on a backend.

    Parameters
    ----------
    xgraph
        Graph of quantum IDs, with an edge from each quantum to those that
        depend on it.  Nodes have the attributes ``task_label`` and ``data_id``.
    make_work
        Function that builds the work item of one unit with several groups,
        or of a batch of units with one group each.  `run` calls it in its own
        thread, after all upstream units have ended.  Its arguments are the
        units, the quanta that must not run, and the quanta that succeeded
        before the unit lost its worker; `None` if it has lost none.
    on_outcome
        Function that `run` calls in its own thread with each outcome.  A
        quantum that was rerun to replace a lost temporary has two outcomes.
    limit
        Greatest number of groups to run at once; by default derived from the
        slots of the backend.
    times
        Mean times of tasks in earlier runs; see `BatchSizer`.

    Notes
    -----
    The unit with the longest path to the end of the graph is submitted first.
    Units of one group with short quanta share a batch, which keeps a worker busy
    for some seconds.  A job is several batches, or one unit of several groups; a
    thread submits it and waits for its end.  The submitted jobs have slightly more
    batches than the backend has slots, so that no slot waits for the driver.
    """

    def __init__(  # noqa: PLR0913
        self,
        plan: Plan,
        xgraph: networkx.DiGraph[uuid.UUID],
        backend: Backend,
        make_work: Callable[[Sequence[Unit], frozenset[uuid.UUID], frozenset[uuid.UUID] | None], UnitWork],
        *,
        on_outcome: Callable[[QuantumOutcome], None],
        limit: int | None = None,
        stop_rule: StopRule = _NO_RULE,
        observer: RunObserver | None = None,
        times: Mapping[str, float] | None = None,
    ):
        self._plan = plan
        self._xgraph = xgraph
        self._backend = backend
        self._make_work = make_work
        self._on_outcome = on_outcome
        self._limit = limit
        self._batch_sizer = BatchSizer(len(plan) / max(1, len(plan.groups)), times)
        self._observer = ObserverGroup(observer)
        self._is_observed = observer is not None
        self._blocked: set[uuid.UUID] = set()
        self._unit_of = {q: group.unit for group in plan.groups for q in group.quanta}
        self._group_of = {q: group.index for group in plan.groups for q in group.quanta}
        self._n_open = [len(group.quanta) for group in plan.groups]
        self._n_open_groups = Counter(group.unit for group in plan.groups)
        self._open: list[set[uuid.UUID]] = [set() for _ in plan.units]
        self._waiting: list[set[uuid.UUID]] = [set() for _ in plan.units]
        for quantum_id, unit in self._unit_of.items():
            self._open[unit].add(quantum_id)
            self._waiting[unit].update(
                need for need in xgraph.predecessors(quantum_id) if self._unit_of[need] != unit
            )
        self._ready = [(-unit.remaining, unit.index) for unit in plan.units if not self._waiting[unit.index]]
        heapq.heapify(self._ready)
        self._running: dict[int, float] = {}
        self._events: queue.SimpleQueue[QuantumOutcome | Future[None] | Unit] = queue.SimpleQueue()
        self._delayed: dict[int, threading.Timer] = {}
        self._result = RunResult()
        self._failures = FailureCounter(stop_rule)
        # How often each lost unit was lost while it ran alone.
        self._losses: dict[int, int] = {}

    def run(self, context: WorkerContext) -> RunResult:
        """Run all groups; raise an `EngineError` if the backend fails, or loses an outcome."""
        jobs: dict[Future[None], list[Unit]] = {}
        pool = ThreadPoolExecutor(_MAX_JOBS, thread_name_prefix="spark-butler")
        try:
            while self._ready or self._delayed or jobs:
                if self._result.stopped_by is None:
                    self._dispatch(context, pool, jobs)
                if not (jobs or self._delayed):
                    break
                match self._events.get():
                    case QuantumOutcome() as outcome:
                        self._handle(outcome)
                    case Future() as job:
                        self._end_job(job, jobs.pop(job))
                    case Unit() as unit:
                        del self._delayed[unit.index]
                        heapq.heappush(self._ready, (-unit.remaining, unit.index))
                if self._result.stopped_by is not None:
                    break
        finally:
            self._stop(pool, jobs)
            self._drain()
        if self._result.stopped_by is None and any(self._open):
            raise EngineError(f"{sum(map(len, self._open))} quanta never became ready to run.")
        return self._result

    def _stop(self, pool: ThreadPoolExecutor, jobs: Collection[Future[None]]) -> None:
        for timer in self._delayed.values():
            timer.cancel()
        pool.shutdown(wait=False, cancel_futures=True)
        while wait(jobs, timeout=0).not_done:
            # Repeated, since the backend can't cancel a job that a thread has not submitted yet.
            self._backend.cancel()
            wait(jobs, timeout=_CANCEL_SECONDS)
        pool.shutdown(wait=True)

    def _dispatch(
        self, context: WorkerContext, pool: ThreadPoolExecutor, jobs: dict[Future[None], list[Unit]]
    ) -> None:
        """Submit ready units while there is room for them."""
        slots = max(1, self._backend.slots)
        limit = self._limit or self._batch_sizer.limit(slots)
        # Enough batches in a job for `_MAX_JOBS` jobs to fill all slots twice.
        most = max(_MAX_JOB_BATCHES, -(-2 * slots // _MAX_JOBS))
        while self._ready and len(jobs) < _MAX_JOBS:
            batches = self._pick(min(limit - sum(self._running.values()), most))
            if not batches:
                return
            works = [self._make_work_of(units) for units in batches]
            units = [unit for batch in batches for unit in batch]
            logger.debug("Submitting %d units in %d batches.", len(units), len(batches))
            future = pool.submit(self._backend.run, context, works, self._events.put)
            jobs[future] = units
            future.add_done_callback(self._events.put)
            self._observer.on_dispatch([q for unit in units for q in self._open[unit.index]])

    def _pick(self, room: float) -> list[list[Unit]]:
        """Return the most urgent ready units for one job: batches of one-group units, or one larger unit.

        A batch counts as one group against ``room``, a larger unit as many as its widest level has.
        """
        if room < _WHOLE:
            return []
        slots, n_ready = max(1, self._backend.slots), len(self._ready)
        n_batches = 0
        sizes: dict[tuple[str, ...], int] = {}
        alike: defaultdict[tuple[str, ...], list[Unit]] = defaultdict(list)
        aside: list[Unit] = []
        while self._ready and len(aside) < _MAX_ASIDE:
            unit = self._plan.units[heapq.heappop(self._ready)[1]]
            # A unit that has lost its worker before runs alone, so that no other unit is lost with it.
            if len(unit.levels) > 1 or unit.index in self._losses:
                if n_batches:
                    aside.append(unit)
                    break
                self._running[unit.index] = max(map(len, unit.levels))
                return [[unit]]
            labels = [self._plan.task_labels[quantum_id] for quantum_id in self._quanta_of(unit)]
            kind = tuple(dict.fromkeys(labels))
            if kind not in sizes:
                sizes[kind] = self._batch_sizer.next_batch(labels, slots, n_ready)
            if len(alike[kind]) % sizes[kind] == 0:
                if room < _WHOLE:
                    aside.append(unit)
                    continue
                n_batches += 1
                room -= 1
            alike[kind].append(unit)
        for unit in aside:
            heapq.heappush(self._ready, (-unit.remaining, unit.index))
        # Deal the units out in turn, so that each batch gets its share of urgent units.
        counts = {kind: -(-len(units) // sizes[kind]) for kind, units in alike.items()}
        batches = [units[n :: counts[kind]] for kind, units in alike.items() for n in range(counts[kind])]
        for batch in batches:
            self._running.update((unit.index, 1 / len(batch)) for unit in batch)
        return batches

    def _make_work_of(self, units: Sequence[Unit]) -> UnitWork:
        """Build the work item of a batch, or of a unit that has lost its worker before."""
        closed = frozenset(
            q for unit in units for q in self._quanta_of(unit) if q not in self._open[unit.index]
        )
        if units[0].index not in self._losses:
            return self._make_work(units, closed, None)
        done = frozenset(q for q in closed if (o := self._result.outcomes.get(q)) is not None and o.succeeded)
        return self._make_work(units, closed - done, done)

    def _quanta_of(self, unit: Unit) -> list[uuid.UUID]:
        return [q for level in unit.levels for index in level for q in self._plan.groups[index].quanta]

    def _end_job(self, job: Future[None], units: list[Unit]) -> None:
        """Finish a job: quanta without an outcome were lost with their worker."""
        error = job.exception()
        unfinished = [unit for unit in units if self._open[unit.index]]
        missing = [quantum_id for unit in unfinished for quantum_id in self._open[unit.index]]
        reason = explain_loss(error, missing, self._backend)
        if not unfinished:
            return
        logger.warning("A job with %d units was lost: %s", len(unfinished), reason)
        for unit in unfinished:
            # If several units are lost together, the faulty one is unknown.
            losses = self._losses[unit.index] = self._losses.get(unit.index, 0) + (len(units) == 1)
            self._running.pop(unit.index, None)
            if losses >= MAX_LOSSES:
                if isinstance(error, WorkerDiskError):
                    self._give_up(unit, f"failed {losses} times: {reason}", FailureKind.IO)
                else:
                    self._give_up(unit, f"its worker was lost {losses} times: {reason}")
                continue
            timer = threading.Timer(Limits.pause(FailureKind.LOST, losses + 1), self._events.put, [unit])
            timer.daemon = True
            self._delayed[unit.index] = timer
            timer.start()

    def _give_up(self, unit: Unit, reason: str, kind: FailureKind = FailureKind.LOST) -> None:
        """Mark the ready quanta of a unit as failed."""
        still_open = self._open[unit.index]
        ready = [q for q in still_open if still_open.isdisjoint(self._xgraph.predecessors(q))]
        for quantum_id in ready:
            node = self._xgraph.nodes[quantum_id]
            self._handle(lost_outcome(quantum_id, node["task_label"], node["data_id"], reason, kind))

    def _handle(self, outcome: QuantumOutcome) -> None:
        """Record an outcome, and release or block the quanta that need it."""
        if not self._record(outcome):
            return
        if outcome.attempts:
            logger.warning(
                "Task %s was tried %d times; before: %s.",
                job_text(outcome.report),
                len(outcome.attempts) + 1,
                "; ".join(attempt.reason for attempt in outcome.attempts),
            )
        if outcome.succeeded:
            self._failures.record_success(outcome.report.taskLabel or "")
            if not (outcome.recovered or outcome.skipped_existing):
                self._batch_sizer.record(outcome.report.taskLabel or "", outcome.wall_seconds)
            self._close(outcome.quantum_id)
        else:
            self._fail(outcome)
        self._log_progress()

    def _record(self, outcome: QuantumOutcome) -> bool:
        """Record an outcome; return whether it is the first of its quantum."""
        first = self._result.outcomes.get(outcome.quantum_id)
        if first is not None and outcome.recovered:
            return False
        self._observer.on_outcome(outcome)
        if first is not None:
            # The rerun for a lost temporary has overwritten the first outputs.
            outcome = first.with_rerun(outcome)
        self._on_outcome(outcome)
        # Scans contain logs, and the logs of a whole run would fill the memory of the driver.
        self._result.outcomes[outcome.quantum_id] = outcome.without_scans()
        return first is None

    def _fail(self, outcome: QuantumOutcome) -> None:
        """Block the quanta downstream of a failure, or stop the run."""
        if reason := self._failures.record(outcome):
            self._failures.log(outcome, 0)
            logger.error("The run is stopped: %s.", reason)
            self._result.stopped_by = outcome
            self._result.stop_reason = reason
            return
        blocked = self._block_dependents(outcome.quantum_id)
        self._failures.log(outcome, len(blocked))
        for quantum_id in blocked:
            node = self._xgraph.nodes[quantum_id]
            logger.debug("Skipped %s %s, downstream of the failure.", node["task_label"], node["data_id"])
        self._result.blocked.extend(blocked)
        self._observer.on_blocked(blocked)
        for quantum_id in (*blocked, outcome.quantum_id):
            self._close(quantum_id)

    def _block_dependents(self, quantum_id: uuid.UUID) -> list[uuid.UUID]:
        """Return the quanta downstream of a failure that no earlier failure has blocked."""
        blocked: list[uuid.UUID] = []
        todo = [quantum_id]
        while todo:
            for after in self._xgraph.successors(todo.pop()):
                if after not in self._blocked:
                    self._blocked.add(after)
                    blocked.append(after)
                    todo.append(after)
        return blocked

    def _close(self, quantum_id: uuid.UUID) -> None:
        """Close a quantum, and queue the units that waited for it."""
        unit = self._unit_of[quantum_id]
        if quantum_id in self._open[unit]:
            self._open[unit].discard(quantum_id)
            self._n_open[self._group_of[quantum_id]] -= 1
            if not self._n_open[self._group_of[quantum_id]]:
                self._n_open_groups[unit] -= 1
        if not self._open[unit]:
            self._running.pop(unit, None)
        elif unit in self._running:
            self._running[unit] = min(self._running[unit], self._n_open_groups[unit])
        for after in self._xgraph.successors(quantum_id):
            other = self._unit_of[after]
            waiting = self._waiting[other]
            if quantum_id in waiting:
                waiting.discard(quantum_id)
                if not waiting and self._open[other]:
                    heapq.heappush(self._ready, (-self._plan.units[other].remaining, other))

    def _drain(self) -> None:
        """Record the outcomes that arrived while the run was stopping."""
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, QuantumOutcome):
                self._record(event)

    def _log_progress(self) -> None:
        if self._is_observed:
            # The observer of the run logs its progress once a minute.
            return
        failed = self._failures.number + len(self._result.blocked)
        done, total = len(self._result.outcomes) - self._failures.number, len(self._plan)
        text = "Executed %d quanta successfully, %d failed and %d remain out of total %d quanta."
        logger.info(text, done, failed, total - done - failed, total)
