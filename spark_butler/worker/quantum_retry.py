"""Retries of the quanta of a group until each has succeeded or failed for good.

Runs in workers, and in the driver with the serial backend.  A
`spark_butler.worker.group.Runner` runs each attempt, in a child or in this process.
"""

from __future__ import annotations

__all__ = ["run_attempts"]

import contextlib
import dataclasses
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator

from ..errors import EngineError
from ..model.outcomes import FailureKind, QuantumOutcome, job_text
from ..model.work import GroupWork, QuantumWork, WorkerContext, all_outputs
from ..temporaries.shuffle import Outgoing, ReceiveBuffer, Sent
from .group import InProcessRunner, Runner, Trial, find_complete
from .memory import MemoryLock, machine_memory
from .quantum import failure_outcome
from .state import WorkerState

logger = logging.getLogger(__name__)

_MEMORY_SHARE = 0.9
_FILE_SHARE = 0.1


def run_attempts(
    state: WorkerState,
    context: WorkerContext,
    work: GroupWork,
    received: ReceiveBuffer | None = None,
    *,
    runner: Runner | None = None,
    again: bool | None = False,
    memory_lock: MemoryLock | None = None,
    slots: int = 1,
) -> Iterator[QuantumOutcome | bytearray]:
    """Run a group, and retry its quanta after transient failures.

    Yields the final outcome of each attempted quantum, and the shuffle records for other groups.
    If a child dies, the quantum that was running fails, and another child runs the quanta of the
    group that don't need it.  Quanta whose temporaries were lost with the child run again and get
    another outcome.

    Parameters
    ----------
    again
        Whether this is another attempt at the whole group; `None` means unknown.  Quanta that an
        earlier attempt has completed don't run again, unless one of their temporaries is needed.
    memory_lock
        Lock with which quanta that need more than one slot's share of memory run alone.
    slots
        Number of groups that run on this machine at once.

    Raises
    ------
    EngineError
        Raised if the engine's own code fails.
    """
    trial = Trial(state, context, work, work.open(), received)
    group = _GroupRun(trial, runner or InProcessRunner(), memory_lock, slots)
    for event in group.run(again=work.again or again):
        yield state.clock.stamp(event) if isinstance(event, QuantumOutcome) else event


@dataclasses.dataclass(slots=True)
class _Progress:
    """Progress of a group.  Quanta are given by their positions in it."""

    trial: Trial
    """The group, with the datasets known so far and the memory limits of its quanta."""

    bad: set[int]
    """Quanta that failed for good, or need a failed quantum of another group."""

    reported: set[int]
    """Quanta with an outcome."""

    lost: set[int] = dataclasses.field(default_factory=set)
    """Quanta that failed when they were rerun for a lost temporary."""

    remade: set[int] = dataclasses.field(default_factory=set)
    """Quanta that this worker has run to a final outcome."""

    failed: defaultdict[int, list[QuantumOutcome]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    """Failed attempts that were retried, by quantum."""

    exclusive: set[int] = dataclasses.field(default_factory=set)
    """Quanta without a limit that ran out of memory beside others; their retries run alone on the machine."""

    pause: float = 0.0
    """Seconds to wait before the next attempt."""

    n_outcomes: int = 0
    """Number of outcomes so far, of all attempts."""

    @property
    def quanta(self) -> tuple[QuantumWork, ...]:
        """The quanta, in the order in which they run."""
        return self.trial.payload.quanta

    def runnable(self) -> set[int]:
        """Return the quanta that have no outcome and don't depend on a failed quantum."""
        blocked = set(self.bad)
        runnable: set[int] = set()
        for position, work in enumerate(self.quanta):
            if not blocked.isdisjoint(work.upstream):
                blocked.add(position)
            elif position not in self.reported and position not in self.bad:
                runnable.add(position)
        return runnable

    def makers_of(self, dataset_ids: Collection[uuid.UUID]) -> set[int]:
        """Return the quanta that make some of these datasets."""
        return {
            position
            for position, work in enumerate(self.quanta)
            if any(ref.id in dataset_ids for ref in all_outputs(work.quantum))
        }

    def all_but(self, todo: set[int]) -> frozenset[int]:
        """Return all quanta except these, and except the makers of temporaries that these need."""
        maker = {
            ref.id: position
            for position, work in enumerate(self.quanta)
            for ref in all_outputs(work.quantum)
            if ref.datasetType.name in self.trial.context.temporary_types
        }
        wanted = set(todo)
        for position in range(len(self.quanta) - 1, -1, -1):
            if position in wanted:
                inputs = self.quanta[position].quantum.inputs
                wanted.update(maker[ref.id] for refs in inputs.values() for ref in refs if ref.id in maker)
        return frozenset(range(len(self.quanta))) - wanted


class _GroupRun:
    """Runner of one group until no quantum of it can run any more."""

    def __init__(self, trial: Trial, runner: Runner, memory_lock: MemoryLock | None, slots: int):
        self._state, self._context = trial.state, trial.context
        self._runner = runner
        self._memory_lock = memory_lock
        self._share = _MEMORY_SHARE * machine_memory() / max(1, slots)
        payload, received = trial.payload, trial.received
        self._positions = {item.quantum_id: position for position, item in enumerate(payload.quanta)}
        needs_failed = received.close(payload.senders).failed if received is not None else frozenset()
        limits = [self._context.limits_of(item.task_label).memory for item in payload.quanta]
        memory = {position: limit for position, limit in enumerate(limits) if limit is not None}
        self._progress = _Progress(
            dataclasses.replace(trial, memory=memory),
            bad={n for n, item in enumerate(payload.quanta) if not needs_failed.isdisjoint(item.needs)},
            reported=set(payload.done),
        )
        self._outgoing = Outgoing(trial.work, payload)

    def run(self, *, again: bool | None) -> Iterator[QuantumOutcome | bytearray]:
        """Run all quanta that can run, then yield the records that other groups need."""
        yield from self._find_done(again=again)
        while (todo := self._todo()) and not self._is_stopped():
            time.sleep(self._progress.pause)
            self._progress.pause = 0.0
            n_before = self._progress.n_outcomes
            with self._wait_for_memory(todo):
                yield from self._run_once(todo)
            if self._progress.n_outcomes == n_before:
                raise EngineError("A child process exited without reporting an outcome.")
        for outcome in self._stranded_outcomes():
            self._outgoing.record(outcome)
            yield outcome
        began = time.time()
        for pieces in self._outgoing.closing_records():
            yield bytearray().join(pieces)
            self._state.clock.record_shuffle(began)

    def _is_stopped(self) -> bool:
        return self._context.fail_fast and not self._progress.bad.isdisjoint(self._progress.reported)

    def _find_done(self, *, again: bool | None) -> Iterator[QuantumOutcome]:
        """Yield outcomes of quanta that an earlier attempt completed; they don't run again."""
        if again is False or self._context.quantum_executor is not None:
            return
        progress, trial = self._progress, self._progress.trial
        spared = progress.all_but(progress.makers_of(trial.payload.outgoing)) - progress.reported
        if not spared:
            return
        found = self._runner.call(lambda: find_complete(trial, spared, sure=bool(again)))
        for outcome in found or []:
            self._outgoing.record(outcome)
            trial.payload.known.update(dict.fromkeys(outcome.outputs, True))
            progress.reported.add(self._positions[outcome.quantum_id])
            yield outcome

    def _run_once(self, todo: set[int]) -> Iterator[QuantumOutcome | bytearray]:
        """Run all quanta that can run, each once."""
        if self._context.isolation == "quantum":
            todo = {min(todo)}
        trial = dataclasses.replace(
            self._progress.trial,
            skip=self._progress.all_but(todo),
            sent=frozenset(self._outgoing.sent),
            most_ahead=self._file_memory(),
        )
        trial.cache_shared_files()
        with contextlib.closing(self._runner.run(trial)) as events:
            for event in events:
                if isinstance(event, QuantumOutcome):
                    yield from self._handle(event)
                    if self._is_stopped():
                        return
                elif isinstance(event, Sent):
                    self._outgoing.record(event)
                    self._state.clock.record_shuffle(event.began)
                else:
                    yield event if isinstance(event, bytearray) else bytearray().join(event)

    def _file_memory(self) -> int:
        """Return the memory in bytes for cached files and, again, for prefetched ones; a child has both."""
        return int(_FILE_SHARE * min([self._share, *self._progress.trial.memory.values()]))

    def _handle(self, outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        """Record an outcome, and yield it if it is final."""
        progress = self._progress
        progress.n_outcomes += 1
        # The next attempt needs to know which datasets this one has written or removed.
        progress.trial.payload.known.update(dict.fromkeys(outcome.removed, False))
        progress.trial.payload.known.update(dict.fromkeys(outcome.outputs, True))
        position = self._positions[outcome.quantum_id]
        if not outcome.succeeded:
            if self._will_retry(position, outcome):
                return
            progress.bad.add(position)
            if position in progress.reported:
                progress.lost.add(position)
        progress.reported.add(position)
        progress.remade.add(position)
        outcome = dataclasses.replace(outcome, attempts=tuple(progress.failed[position]))
        self._outgoing.record(outcome)
        yield outcome

    def _will_retry(self, position: int, outcome: QuantumOutcome) -> bool:
        """Decide whether a failed quantum is tried again, and prepare for it."""
        progress, payload, kind = self._progress, self._progress.trial.payload, outcome.kind
        assert kind is not None
        limits = self._context.limits_of(outcome.label)
        memory = progress.trial.memory.get(position)
        n_failed = len(progress.failed[position]) + 1
        if not limits.may_retry(kind, n_failed, memory):
            return False
        progress.failed[position].append(outcome.as_attempt())
        pause = limits.pause(kind, n_failed)
        progress.pause = max(progress.pause, pause)
        if kind is FailureKind.IO:
            # Credentials may have been renewed, or addresses changed.
            self._state.clients.forget()
        if kind is FailureKind.MEMORY:
            if (grown := limits.grow(memory)) is not None:
                progress.trial.memory[position] = grown
            else:
                progress.exclusive.add(position)
        logger.warning(
            "Attempt %d at task %s failed (%s); trying again in %.1f s.",
            n_failed,
            job_text(outcome.report),
            outcome.reason,
            pause,
        )
        if not payload.quanta[position].forced and position not in payload.done:
            quanta = list(payload.quanta)
            quanta[position] = dataclasses.replace(quanta[position], may_exist=True, clobber=True)
            payload = dataclasses.replace(payload, quanta=tuple(quanta))
            progress.trial = dataclasses.replace(progress.trial, payload=payload)
        return True

    def _wait_for_memory(self, todo: set[int]) -> contextlib.AbstractContextManager[None]:
        """Return a context that waits for the memory that these quanta need, and holds it."""
        if self._memory_lock is None:
            return contextlib.nullcontext()
        memory, exclusive = self._progress.trial.memory, self._progress.exclusive
        alone = any(n in exclusive or memory.get(n, 0) > self._share > 0 for n in todo)
        return self._memory_lock.acquire(exclusive=alone)

    def _stranded_outcomes(self) -> Iterator[QuantumOutcome]:
        """Yield failures of quanta whose inputs were lost with a child and could not be made again.

        The driver can't report these quanta as blocked, because it has received successful
        outcomes of the quanta that made the inputs.
        """
        progress, quanta = self._progress, self._progress.quanta
        blocked = progress.bad - progress.lost
        for position, work in enumerate(quanta):
            lost = progress.lost.intersection(work.upstream)
            if not blocked.isdisjoint(work.upstream):
                blocked.add(position)
            elif position not in progress.reported and lost:
                blocked.add(position)
                makers = ", ".join(quanta[n].task_label for n in sorted(lost))
                error = EngineError(
                    f"A temporary that this quantum needs was lost when a process died, and {makers} "
                    "failed when it was run again to make it."
                )
                outcome = failure_outcome(work, error, fail_fast=self._context.fail_fast)
                attempts = tuple(progress.failed[position])
                yield dataclasses.replace(outcome, kind=FailureKind.UPSTREAM, attempts=attempts)

    def _todo(self) -> set[int]:
        """Return the quanta to run next: those without an outcome, and makers of temporaries yet to send."""
        progress, payload = self._progress, self._progress.trial.payload
        unsent = payload.outgoing.keys() - self._outgoing.sent
        makers = progress.makers_of(unsent) & payload.done
        return progress.runnable() | (makers - progress.remade - progress.bad)
