"""Give units to a backend as soon as what they need is there."""

from __future__ import annotations

__all__ = ["Dispatcher", "RunResult"]

import dataclasses
import heapq
import logging
import queue
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait

import networkx
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import InvalidQuantumError

from .backends import Backend
from .errors import EngineError
from .messages import brief
from .outcomes import QuantumOutcome, exit_text, job_text
from .plan import Plan, Unit
from .work import UnitWork, WorkerContext

logger = logging.getLogger(__name__)

_MAX_BATCH = 16
_MAX_BUNDLE = 16
_MAX_JOBS = 64
_CANCEL_SECONDS = 1.0


@dataclasses.dataclass
class RunResult:
    """What came of driving a plan."""

    outcomes: dict[uuid.UUID, QuantumOutcome] = dataclasses.field(default_factory=dict)
    """Outcome of each quantum that was tried."""

    blocked: list[uuid.UUID] = dataclasses.field(default_factory=list)
    """Quanta that were not tried because one that they need failed."""

    stopped_by: QuantumOutcome | None = None
    """The failure that ended the run before its time, if one did."""

    n_ingested: int = 0
    """Number of datasets that were put into the registry."""

    @property
    def failed(self) -> list[QuantumOutcome]:
        """Outcomes of the quanta that failed."""
        return [outcome for outcome in self.outcomes.values() if not outcome.succeeded]


class Dispatcher:
    """Runs the units of a plan as soon as what they need is there.

    Parameters
    ----------
    plan
        The plan.
    xgraph
        Graph of quantum IDs; an edge leads to a quantum that needs another.
        Its nodes have the attributes ``task_label`` and ``data_id``.
    backend
        Where quanta run.
    make_work
        Prepares a unit for its journey.  Called in the thread of `run`, when
        all that the unit needs has ended.  It is told which quanta of the
        unit are blocked.
    on_outcome
        Called in the thread of `run` with each outcome; again, when a lost
        temporary made it necessary to run a quantum a second time.
    limit
        The greatest number of groups to run at once.  `None` leaves it to the
        backend.
    fail_fast
        Whether to stop at the first failure.

    Notes
    -----
    Units with the longest path ahead of them go first.  They are submitted in
    small batches from a few threads, a little more than the backend can run
    at once, so that no slot waits for the driver.
    """

    def __init__(
        self,
        plan: Plan,
        xgraph: networkx.DiGraph[uuid.UUID],
        backend: Backend,
        make_work: Callable[[Unit, frozenset[uuid.UUID]], UnitWork],
        *,
        on_outcome: Callable[[QuantumOutcome], None],
        limit: int | None = None,
        fail_fast: bool = False,
    ):
        self._plan = plan
        self._xgraph = xgraph
        self._backend = backend
        self._make_work = make_work
        self._on_outcome = on_outcome
        self._limit = limit
        self._fail_fast = fail_fast
        self._blocked: set[uuid.UUID] = set()
        self._unit_of = {q: group.unit for group in plan.groups for q in group.quanta}
        self._open: list[set[uuid.UUID]] = [set() for _ in plan.units]
        self._waiting: list[set[uuid.UUID]] = [set() for _ in plan.units]
        for quantum_id, unit in self._unit_of.items():
            self._open[unit].add(quantum_id)
            self._waiting[unit].update(
                need for need in xgraph.predecessors(quantum_id) if self._unit_of[need] != unit
            )
        self._ready = [(-unit.remaining, unit.index) for unit in plan.units if not self._waiting[unit.index]]
        heapq.heapify(self._ready)
        self._running: dict[int, int] = {}
        self._words: queue.SimpleQueue[QuantumOutcome | Future[None]] = queue.SimpleQueue()
        self._result = RunResult()
        self._n_failed = 0

    def run(self, context: WorkerContext) -> RunResult:
        """Run all groups.

        Parameters
        ----------
        context
            What all groups have in common.

        Returns
        -------
        result
            Outcomes and blocked quanta.

        Raises
        ------
        EngineError
            Raised if the backend fails, or loses an outcome.
        """
        jobs: dict[Future[None], list[Unit]] = {}
        pool = ThreadPoolExecutor(_MAX_JOBS, thread_name_prefix="spark-butler")
        try:
            while self._ready or jobs:
                if self._result.stopped_by is None:
                    self._dispatch(context, pool, jobs)
                if not jobs:
                    break
                word = self._words.get()
                if isinstance(word, QuantumOutcome):
                    self._take(word)
                else:
                    self._end_job(word, jobs.pop(word))
                if self._result.stopped_by is not None:
                    break
        finally:
            self._stop(pool, jobs)
            self._drain()
        if self._result.stopped_by is None and any(self._open):
            raise EngineError(f"{sum(map(len, self._open))} quanta never became ready to run.")
        return self._result

    def _stop(self, pool: ThreadPoolExecutor, jobs: Collection[Future[None]]) -> None:
        """End what is still running."""
        pool.shutdown(wait=False, cancel_futures=True)
        while wait(jobs, timeout=0).not_done:
            # Again and again, since a job may have been on its way to the backend the first time.
            self._backend.cancel()
            wait(jobs, timeout=_CANCEL_SECONDS)
        pool.shutdown(wait=True)

    def _dispatch(
        self, context: WorkerContext, pool: ThreadPoolExecutor, jobs: dict[Future[None], list[Unit]]
    ) -> None:
        """Submit ready groups, as many as may run."""
        slots = max(1, self._backend.slots)
        limit = self._limit or 2 * slots
        size = 1
        if self._limit is None:
            size = min(_MAX_BUNDLE, max(1, len(self._ready) // (4 * slots)))
        while self._ready and len(jobs) < _MAX_JOBS:
            room = limit * size - sum(self._running.values())
            units = self._pick(min(room, _MAX_BATCH * size))
            if not units:
                return
            works = [self._make_work(unit, self._blocked_in(unit)) for unit in units]
            n_bundles = -(-len(works) // size)
            # Dealt out like cards, so that each bundle has its share of the urgent ones.
            bundles = [works[n::n_bundles] for n in range(n_bundles)]
            logger.debug("Submitting %d units in %d bundles.", len(units), len(bundles))
            future = pool.submit(self._backend.run, context, bundles, self._words.put)
            jobs[future] = units
            future.add_done_callback(self._words.put)

    def _pick(self, room: int) -> list[Unit]:
        """Take the most urgent units that may run now: several of one level, or one of several levels.

        A unit counts as many times as it has groups at its widest level.
        """
        units: list[Unit] = []
        while self._ready and room > 0:
            unit = self._plan.units[self._ready[0][1]]
            width = max(map(len, unit.levels))
            if units and len(unit.levels) > 1:
                break
            heapq.heappop(self._ready)
            self._running[unit.index] = width
            room -= width
            units.append(unit)
            if len(unit.levels) > 1:
                break
        return units

    def _blocked_in(self, unit: Unit) -> frozenset[uuid.UUID]:
        return frozenset(
            q
            for level in unit.levels
            for index in level
            for q in self._plan.groups[index].quanta
            if q not in self._open[unit.index]
        )

    def _end_job(self, job: Future[None], units: list[Unit]) -> None:
        """Take leave of a job, whose outcomes have all come."""
        if (error := job.exception()) is not None:
            if isinstance(error, EngineError):
                raise error
            raise EngineError(f"The backend failed: {type(error).__name__}: {brief(error)}") from error
        for unit in units:
            if missing := self._open[unit.index]:
                raise EngineError(
                    f"No outcome came back for {len(missing)} quanta of a job: {sorted(map(str, missing))}."
                )

    def _take(self, outcome: QuantumOutcome) -> None:
        """Record an outcome and see what it frees or blocks."""
        if not self._record(outcome):
            return
        if outcome.succeeded:
            self._close(outcome.quantum_id)
        else:
            self._fail(outcome)
        self._log_progress()

    def _record(self, outcome: QuantumOutcome) -> bool:
        """Keep an outcome and pass it on; return whether it is the first of its quantum."""
        first = self._result.outcomes.get(outcome.quantum_id)
        if first is not None:
            if outcome.recovered:
                return False
            # A lost temporary was made again: what that wrote on the way has replaced the first.
            outcome = _merge(first, outcome)
        self._result.outcomes[outcome.quantum_id] = outcome
        self._on_outcome(outcome)
        return first is None

    def _fail(self, outcome: QuantumOutcome) -> None:
        """Block what needs a failed quantum, or stop the run."""
        self._n_failed += 1
        exit_code = outcome.report.exitCode or 0
        job = job_text(outcome.report)
        if outcome.traceback:
            logger.debug("Task %s raised:\n%s", job, outcome.traceback)
        if self._fail_fast or exit_code == InvalidQuantumError.EXIT_CODE:
            self._result.stopped_by = outcome
            return
        text = "timed out, task is killed" if outcome.timed_out else f"failed, {exit_text(exit_code)}"
        logger.error("Task %s %s; processing will continue for remaining tasks.", job, text)
        blocked = self._block_dependents(outcome.quantum_id)
        for quantum_id in blocked:
            node = self._xgraph.nodes[quantum_id]
            logger.error(
                "Upstream job failed for task <%s dataId=%s>, skipping this task.",
                node["task_label"],
                node["data_id"],
            )
        self._result.blocked.extend(blocked)
        for quantum_id in (*blocked, outcome.quantum_id):
            self._close(quantum_id)

    def _block_dependents(self, quantum_id: uuid.UUID) -> list[uuid.UUID]:
        """Find the quanta that can't run any more because one failed.

        In the whole run each edge is followed once; with pipe_base's
        `GraphWalker` a gather would take quadratic time.
        """
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
        """Note that a quantum will not run any more, and queue the groups that waited for it."""
        unit = self._unit_of[quantum_id]
        self._open[unit].discard(quantum_id)
        if not self._open[unit]:
            self._running.pop(unit, None)
        for after in self._xgraph.successors(quantum_id):
            other = self._unit_of[after]
            waiting = self._waiting[other]
            if quantum_id in waiting:
                waiting.discard(quantum_id)
                if not waiting and self._open[other]:
                    heapq.heappush(self._ready, (-self._plan.units[other].remaining, other))

    def _drain(self) -> None:
        """Keep the outcomes that came while the run was being stopped."""
        while not self._words.empty():
            word = self._words.get()
            if isinstance(word, QuantumOutcome):
                self._record(word)

    def _log_progress(self) -> None:
        failed = self._n_failed + len(self._result.blocked)
        done = len(self._result.outcomes) - self._n_failed
        logger.info(
            "Executed %d quanta successfully, %d failed and %d remain out of total %d quanta.",
            done,
            failed,
            len(self._plan) - done - failed,
            len(self._plan),
        )


def _merge(first: QuantumOutcome, again: QuantumOutcome) -> QuantumOutcome:
    """Add what a further attempt has left to the outcome that counts, the first."""
    records = {name: DatastoreRecordData(dict(data.records)) for name, data in first.records.items()}
    for name, data in again.records.items():
        records.setdefault(name, DatastoreRecordData()).records.update(data.records)
    outputs = (set(first.outputs) - set(again.removed)) | set(again.outputs)
    removed = (set(first.removed) | set(again.removed)) - outputs
    return dataclasses.replace(first, outputs=tuple(outputs), removed=tuple(removed), records=records)
