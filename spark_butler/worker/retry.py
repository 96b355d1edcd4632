"""Make attempts at the quanta of a group until each has succeeded or failed for good.

What runs an attempt is a `Runner`: a child process, or this process itself.
"""

from __future__ import annotations

__all__ = ["AttemptEvent", "InProcessRunner", "Runner", "Trial", "run_attempts"]

import contextlib
import dataclasses
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import Protocol

from ..datastore.files import collect_files
from ..datastore.s3_clients import forget_clients, hold_files, open_clients
from ..errors import EngineError
from ..model.failures import FailureKind
from ..model.outcomes import Attempt, QuantumOutcome, QuantumStarted, job_text
from ..model.quanta import all_outputs
from ..model.work import GroupContent, GroupWork, Parcel, WorkerContext
from ..temporaries.shuffle import Ledger, Pieces, Sent, pack_parcel
from ..temporaries.shuffle_records import ReceiveBuffer
from .clock import SlotClock
from .group import failure_outcome, find_complete, run_group
from .memory import machine_memory
from .memory_lock import MemoryLock

logger = logging.getLogger(__name__)

type AttemptEvent = QuantumOutcome | Sent | bytearray | Pieces
"""What a runner yields: outcomes, records for other groups, and word that all of a parcel are sent."""

_MEMORY_SHARE = 0.9
_FILE_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """Quanta of a group that are to be run, each once at most."""

    context: WorkerContext
    """What all groups of the run have in common."""

    work: GroupWork
    """The group, as it travelled."""

    content: GroupContent
    """The same, opened."""

    received: ReceiveBuffer | None
    """What has come for it from other groups."""

    skip: frozenset[int]
    """Positions of the quanta that are not to run."""

    sent: frozenset[uuid.UUID]
    """Temporaries that are not to be sent again."""

    memory: Mapping[int, int]
    """Memory in bytes that quanta may have, by position."""

    most_ahead: int = 0
    """Memory in bytes for files that are read ahead."""

    def run_here(self, received: ReceiveBuffer | None) -> Iterator[QuantumStarted | QuantumOutcome | Parcel]:
        """Run the quanta in this process; see `spark_butler.worker.group.run_group`.

        Parameters
        ----------
        received
            What has come from other groups, to be used up.
        """
        return run_group(
            self.context,
            self.content,
            received,
            index=self.work.index,
            skip=self.skip,
            sent=self.sent,
            most_ahead=self.most_ahead,
        )

    def pack(self, parcel: Parcel) -> Iterator[Pieces]:
        """Write the records of a temporary; see `spark_butler.temporaries.shuffle.pack_parcel`.

        Parameters
        ----------
        parcel
            The temporary.
        """
        return pack_parcel(self.context, self.work, self.content, parcel)


class Runner(Protocol):
    """A way to run the quanta of a group once."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        """Run quanta of a group.

        Parameters
        ----------
        trial
            The quanta, and what they need.
        """
        ...

    def ask[T](self, question: Callable[[], T]) -> T | None:
        """Find something out in the datastore; `None` if the process that was to has died."""
        ...


class InProcessRunner:
    """Runs quanta in this process, without limits."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        """Run quanta of a group.  See `Runner.run`."""
        received = trial.received
        labels = {item.task_label for item in trial.content.quanta}
        if received is not None and any(trial.context.limits_of(label).retries for label in labels):
            received = received.copy()
        for event in trial.run_here(received):
            if isinstance(event, Parcel):
                began = time.time()
                yield from trial.pack(event)
                yield Sent(event.dataset_id, event.encoded.nbytes, began)
            elif isinstance(event, QuantumOutcome):
                yield event

    def ask[T](self, question: Callable[[], T]) -> T | None:
        """Find something out.  See `Runner.ask`."""
        return question()


def run_attempts(
    context: WorkerContext,
    work: GroupWork,
    received: ReceiveBuffer | None = None,
    *,
    runner: Runner,
    again: bool | None = False,
    memory_lock: MemoryLock | None = None,
    slots: int = 1,
    clock: SlotClock | None = None,
) -> Iterator[QuantumOutcome | bytearray]:
    """Run a group; try again what may have failed by chance.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    work
        The group.
    received
        What has come for it from other groups.
    runner
        What runs an attempt.
    again
        Whether this is another attempt at the whole group; `None` where that
        is unknown.  What an earlier one has completed is then left alone,
        unless a temporary of it is needed.
    memory_lock
        Keeps quanta that need more than their share of memory apart from all
        others of this machine.
    slots
        Number of groups that run on this machine at the same time.
    clock
        Measures what the slot does between quanta.

    Yields
    ------
    event
        An outcome for each quantum that was tried, and the records for other
        groups.  When a process dies, the quantum that it was at has failed,
        and the others of the group that don't need it go on in a new one;
        temporaries that died too are made again, which gives another outcome
        for their makers.

    Raises
    ------
    EngineError
        Raised if the engine's own code fails.
    """
    clock = SlotClock() if clock is None else clock
    group = _GroupRun(context, work, received, runner, memory_lock, slots, clock)
    for event in group.run(again=work.again or again):
        yield clock.stamp(event) if isinstance(event, QuantumOutcome) else event


class _GroupRun:
    """The state of a group while it runs."""

    def __init__(
        self,
        context: WorkerContext,
        work: GroupWork,
        received: ReceiveBuffer | None,
        runner: Runner,
        memory_lock: MemoryLock | None,
        slots: int,
        clock: SlotClock,
    ):
        self._context = context
        self._work = work
        self._inbox = received
        self._runner = runner
        self._memory_lock = memory_lock
        self._clock = clock
        self._share = _MEMORY_SHARE * machine_memory() / max(1, slots)
        self._content = content = work.open()
        self._ledger = Ledger(work, content)
        self._positions = {item.quantum_id: position for position, item in enumerate(content.quanta)}
        needs_failed = received.close(content.senders).failed if received is not None else frozenset()
        self._bad = {n for n, item in enumerate(content.quanta) if not needs_failed.isdisjoint(item.needs)}
        self._reported: set[int] = set(content.done)
        for position in content.done:
            self._ledger.note_done(content.quanta[position])
        self._lost: set[int] = set()
        self._remade: set[int] = set()
        self._failed: defaultdict[int, list[Attempt]] = defaultdict(list)
        self._memory = {
            position: limit
            for position, item in enumerate(content.quanta)
            if (limit := context.limits_of(item.task_label).memory) is not None
        }
        self._cramped: set[int] = set()
        self._pause = 0.0
        self._n_taken = 0

    def run(self, *, again: bool | None) -> Iterator[QuantumOutcome | bytearray]:
        """Run until nothing is left that can run, and what others need is on its way."""
        yield from self._find_done(again=again)
        while (todo := self._todo()) and not self._is_stopped():
            time.sleep(self._pause)
            self._pause = 0.0
            n_before = self._n_taken
            with self._place(todo):
                yield from self._run_once(todo)
            if self._n_taken == n_before:
                raise EngineError("A worker's child ended without a word.")
        for outcome in self._stranded_outcomes():
            self._ledger.note(outcome)
            yield outcome
        began = time.time()
        for pieces in self._ledger.closing_records():
            yield bytearray().join(pieces)
            self._clock.note_shuffle(began)

    def _is_stopped(self) -> bool:
        return self._context.fail_fast and not self._bad.isdisjoint(self._reported)

    def _find_done(self, *, again: bool | None) -> Iterator[QuantumOutcome]:
        """Look for what an earlier attempt at the group has completed."""
        if again is False or self._context.quantum_executor is not None:
            return
        context, content = self._context, self._content
        spared = self._spared() - self._reported
        if not spared:
            return
        found = self._runner.ask(lambda: find_complete(context, content, spared, sure=bool(again)))
        for outcome in found or []:
            self._ledger.note(outcome)
            content.known.update(dict.fromkeys(outcome.outputs, True))
            self._reported.add(self._positions[outcome.quantum_id])
            yield outcome

    def _run_once(self, todo: set[int]) -> Iterator[QuantumOutcome | bytearray]:
        """Run what can run, once each."""
        if self._context.isolation == "quantum":
            todo = {min(todo)}
        skip = frozenset(range(len(self._content.quanta))) - self._with_makers(todo)
        trial = Trial(
            self._context,
            self._work,
            self._content,
            self._inbox,
            skip,
            self._ledger.sent,
            self._memory,
            self._file_memory(),
        )
        # In this process, for all children to come.
        open_clients(self._context.stores)
        self._hold_shared_files()
        with contextlib.closing(self._runner.run(trial)) as events:
            for event in events:
                if isinstance(event, QuantumOutcome):
                    yield from self._take(event)
                    if self._is_stopped():
                        return
                elif isinstance(event, Sent):
                    self._ledger.note(event)
                    self._clock.note_shuffle(event.began)
                else:
                    yield event if isinstance(event, bytearray) else bytearray().join(event)

    def _hold_shared_files(self) -> None:
        """Read what many quanta of the run read, so that each worker does it once."""
        stores, shared = self._context.stores, self._content.shared
        if len(stores) != 1 or not shared:
            return
        files = {
            dataset_id: parts[0][1]
            for dataset_id, parts in collect_files(self._content.records).items()
            if dataset_id in shared and len(parts) == 1
        }
        hold_files(stores[0], files, self._file_memory())

    def _file_memory(self) -> int:
        """How much memory files may take up that are held, and again those that are read ahead.

        Both count as memory of a child.
        """
        return int(_FILE_SHARE * min([self._share, *self._memory.values()]))

    def _take(self, outcome: QuantumOutcome) -> Iterator[QuantumOutcome]:
        """Note an outcome, and pass it on if it is final."""
        self._n_taken += 1
        # The next attempt has to know what this one has seen for itself.
        self._content.known.update(dict.fromkeys(outcome.removed, False))
        self._content.known.update(dict.fromkeys(outcome.outputs, True))
        position = self._positions[outcome.quantum_id]
        if not outcome.succeeded and self._will_retry(position, outcome):
            return
        if not outcome.succeeded:
            self._bad.add(position)
            if position in self._reported:
                self._lost.add(position)
        self._reported.add(position)
        self._remade.add(position)
        outcome = dataclasses.replace(outcome, attempts=tuple(self._failed[position]))
        self._ledger.note(outcome)
        yield outcome

    def _will_retry(self, position: int, outcome: QuantumOutcome) -> bool:
        """Decide whether a failed quantum is tried again, and prepare for it."""
        kind = outcome.kind
        assert kind is not None
        limits = self._context.limits_of(outcome.report.taskLabel or "")
        memory = self._memory.get(position)
        n_failed = len(self._failed[position]) + 1
        if not limits.may_retry(kind, n_failed, memory):
            return False
        self._failed[position].append(outcome.as_attempt())
        pause = limits.pause(kind, n_failed)
        if kind is FailureKind.IO:
            # Credentials may have been renewed, or addresses changed.
            forget_clients()
        self._pause = max(self._pause, pause)
        if kind is FailureKind.MEMORY:
            if (grown := limits.grow(memory)) is not None:
                self._memory[position] = grown
            else:
                self._cramped.add(position)
        logger.warning(
            "Attempt %d at task %s failed (%s); trying again in %.1f s.",
            n_failed,
            job_text(outcome.report),
            outcome.reason,
            pause,
        )
        quanta = list(self._content.quanta)
        if not quanta[position].forced and position not in self._content.done:
            quanta[position] = dataclasses.replace(quanta[position], may_exist=True, clobber=True)
        self._content = dataclasses.replace(self._content, quanta=tuple(quanta))
        return True

    def _place(self, todo: set[int]) -> contextlib.AbstractContextManager[None]:
        """Wait until there is room for what is to run."""
        if self._memory_lock is None:
            return contextlib.nullcontext()
        alone = any(n in self._cramped or self._memory.get(n, 0) > self._share > 0 for n in todo)
        return self._memory_lock.acquire(exclusive=alone)

    def _spared(self) -> set[int]:
        """Positions of quanta that need not run again to make the temporaries that other groups read."""
        makers = self._makers_of(self._content.outgoing)
        return set(range(len(self._content.quanta))) - self._with_makers(makers)

    def _makers_of(self, dataset_ids: Collection[uuid.UUID]) -> set[int]:
        """Positions of the quanta that make some of these datasets."""
        return {
            position
            for position, work in enumerate(self._content.quanta)
            if any(ref.id in dataset_ids for ref in all_outputs(work.quantum))
        }

    def _stranded_outcomes(self) -> Iterator[QuantumOutcome]:
        """Describe quanta whose inputs were lost with a child, and could not be made again.

        The driver can't know of them, since for it the makers succeeded.
        """
        blocked = self._bad - self._lost
        quanta = self._content.quanta
        for position, work in enumerate(quanta):
            if not blocked.isdisjoint(work.upstream):
                blocked.add(position)
            elif position not in self._reported and not self._lost.isdisjoint(work.upstream):
                blocked.add(position)
                makers = ", ".join(
                    quanta[n].task_label for n in sorted(self._lost.intersection(work.upstream))
                )
                error = EngineError(
                    f"A temporary that this quantum needs was lost when a process died, and {makers} "
                    "failed when it was to make it again."
                )
                outcome = failure_outcome(work, error, fail_fast=self._context.fail_fast)
                attempts = tuple(self._failed[position])
                yield dataclasses.replace(outcome, kind=FailureKind.UPSTREAM, attempts=attempts)

    def _todo(self) -> set[int]:
        """Positions of the quanta to run next: without an outcome, or makers of what is not sent yet."""
        unsent = self._content.outgoing.keys() - self._ledger.sent
        makers = self._makers_of(unsent) & self._content.done
        return self._runnable() | (makers - self._remade - self._bad)

    def _runnable(self) -> set[int]:
        """Positions of quanta that have no outcome and need none that failed."""
        blocked = set(self._bad)
        runnable: set[int] = set()
        for position, work in enumerate(self._content.quanta):
            if not blocked.isdisjoint(work.upstream):
                blocked.add(position)
            elif position not in self._reported and position not in self._bad:
                runnable.add(position)
        return runnable

    def _with_makers(self, todo: set[int]) -> set[int]:
        """Add the quanta whose temporaries are needed."""
        quanta = self._content.quanta
        maker = {
            ref.id: position
            for position, work in enumerate(quanta)
            for ref in all_outputs(work.quantum)
            if ref.datasetType.name in self._context.temporary_types
        }
        wanted = set(todo)
        for position in range(len(quanta) - 1, -1, -1):
            if position in wanted:
                inputs = quanta[position].quantum.inputs
                wanted.update(maker[ref.id] for refs in inputs.values() for ref in refs if ref.id in maker)
        return wanted
