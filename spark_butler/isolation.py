"""Run a group in a child process, so that what kills a task kills nothing else.

The child is forked from the warm worker: it has every module and the context
already, and makes its own clients and database handles.
"""

from __future__ import annotations

__all__ = ["run_isolated"]

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Literal, NoReturn, Self, cast

from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport

from .channel import END, Channel
from .delivery import Ledger, Sent, pack_parcel
from .errors import EngineError
from .outcomes import QuantumOutcome, QuantumStarted, exit_text
from .parcels import Inbox
from .processes import dying_with_parent
from .work import GroupContent, GroupWork, Parcel, QuantumOutputs, QuantumWork, WorkerContext
from .worker import failure_outcome, find_complete, find_outputs, run_group

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 1.0
_WATCH_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Crash:
    """Word from a child that the engine's own code failed in it."""

    text: str


def run_isolated(
    context: WorkerContext, work: GroupWork, inbox: Inbox | None = None, *, again: bool = False
) -> Iterator[QuantumOutcome | bytearray]:
    """Run a group in a child of this process.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    work
        The group.
    inbox
        What has come for it from other groups.
    again
        Whether this may be another attempt.  What an earlier one has
        completed is then left alone, unless a temporary of it is needed.

    Yields
    ------
    event
        An outcome for each quantum that was tried, and the records for other
        groups.  When the child dies, the quantum that it was at has failed,
        and the others of the group that don't need it go on in a new child;
        temporaries that died too are made again, which gives another outcome
        for their makers.

    Raises
    ------
    EngineError
        Raised if the engine's own code fails in the child.
    """
    content = work.open()
    ledger = Ledger(work, content)
    positions = {item.quantum_id: position for position, item in enumerate(content.quanta)}
    needs_failed = inbox.close(content.senders).failed if inbox is not None else frozenset()
    bad = {n for n, item in enumerate(content.quanta) if not needs_failed.isdisjoint(item.needs)}
    reported: set[int] = set()
    # Spark does not tell when it runs a stage again for a lost shuffle, so a sender has to look.
    spared = _spared(context, content) if again or work.ways else set()
    if spared and context.quantum_executor is None:
        for outcome in _ask_child(lambda: find_complete(context, content, spared)) or []:
            ledger.note(outcome)
            content.known.update(dict.fromkeys(outcome.outputs, True))
            reported.add(positions[outcome.quantum_id])
            yield outcome
    lost: set[int] = set()
    while (todo := _runnable(content, reported, bad)) and not (context.fail_fast and bad & reported):
        skip = frozenset(range(len(content.quanta))) - _with_makers(context, content, todo)
        n_before = len(reported) + len(bad)
        with contextlib.closing(_run_child(context, work, content, inbox, skip, ledger.sent)) as events:
            for event in events:
                if isinstance(event, bytearray):
                    yield event
                    continue
                ledger.note(event)
                if not isinstance(event, QuantumOutcome):
                    continue
                # The next child has to know what this one has seen for itself.
                content.known.update(dict.fromkeys(event.removed, False))
                content.known.update(dict.fromkeys(event.outputs, True))
                position = positions[event.quantum_id]
                again = position in reported
                reported.add(position)
                if not event.succeeded:
                    bad.add(position)
                    if again:
                        lost.add(position)
                yield event
                if context.fail_fast and bad & reported:
                    break
        if len(reported) + len(bad) == n_before:
            raise EngineError("A worker's child ended without a word.")
    for outcome in _stranded_outcomes(context, content, reported, bad, lost):
        ledger.note(outcome)
        yield outcome
    for pieces in ledger.closing_records():
        yield bytearray().join(pieces)


def _spared(context: WorkerContext, content: GroupContent) -> set[int]:
    """Positions of quanta that need not run again to make the temporaries that other groups read."""
    makers = {
        position
        for position, work in enumerate(content.quanta)
        if any(ref.id in content.outgoing for refs in work.quantum.outputs.values() for ref in refs)
    }
    return set(range(len(content.quanta))) - _with_makers(context, content, makers)


def _stranded_outcomes(
    context: WorkerContext, content: GroupContent, reported: set[int], bad: set[int], lost: set[int]
) -> Iterator[QuantumOutcome]:
    """Describe quanta whose inputs were lost with a child, and could not be made again.

    The driver can't know of them, since for it the makers succeeded.
    """
    blocked = bad - lost
    for position, work in enumerate(content.quanta):
        if not blocked.isdisjoint(work.upstream):
            blocked.add(position)
        elif position not in reported and not lost.isdisjoint(work.upstream):
            blocked.add(position)
            makers = ", ".join(content.quanta[n].task_label for n in sorted(lost.intersection(work.upstream)))
            error = EngineError(
                f"A temporary that this quantum needs was lost when a process died, and {makers} "
                "failed when it was to make it again."
            )
            yield failure_outcome(work, error, fail_fast=context.fail_fast)


def _runnable(content: GroupContent, reported: set[int], bad: set[int]) -> set[int]:
    """Positions of quanta that have no outcome and need none that failed."""
    blocked = set(bad)
    runnable: set[int] = set()
    for position, work in enumerate(content.quanta):
        if not blocked.isdisjoint(work.upstream):
            blocked.add(position)
        elif position not in reported and position not in bad:
            runnable.add(position)
    return runnable


def _with_makers(context: WorkerContext, content: GroupContent, todo: set[int]) -> set[int]:
    """Add the quanta whose temporaries are needed."""
    maker = {
        ref.id: position
        for position, work in enumerate(content.quanta)
        for refs in work.quantum.outputs.values()
        for ref in refs
        if ref.datasetType.name in context.temporary_types
    }
    wanted = set(todo)
    for position in range(len(content.quanta) - 1, -1, -1):
        if position in wanted:
            inputs = content.quanta[position].quantum.inputs
            wanted.update(maker[ref.id] for refs in inputs.values() for ref in refs if ref.id in maker)
    return wanted


def _is_chain(content: GroupContent) -> bool:
    """Whether the failure of any quantum leaves nothing that could still run."""
    return all(n - 1 in item.upstream for n, item in enumerate(content.quanta) if n)


def _run_child(
    context: WorkerContext,
    work: GroupWork,
    content: GroupContent,
    inbox: Inbox | None,
    skip: frozenset[int],
    sent: frozenset[uuid.UUID],
) -> Generator[QuantumOutcome | Sent | bytearray]:
    """Run (part of) a group in a child and report how it fares."""
    by_id = {item.quantum_id: item for item in content.quanta}
    one_child_will_do = _is_chain(content)

    def target(channel: Channel) -> None:
        events = run_group(context, content, inbox, index=work.index, skip=skip, sent=sent)
        for event in events:
            if isinstance(event, Parcel):
                for pieces in pack_parcel(context, work, content, event):
                    channel.send_record(pieces)
                channel.send(Sent(event.dataset_id, event.encoded.nbytes))
            else:
                channel.send(event)

    current: QuantumWork | None = None
    started = time.monotonic()
    with _Child(target) as child:
        if inbox is not None and one_child_will_do:
            # The child has them; here they would only be in memory twice.
            inbox.objects.clear()
        while True:
            limit = None
            if context.timeout is not None and current is not None:
                limit = max(0.0, started + context.timeout - time.monotonic())
            match child.receive(limit):
                case QuantumStarted() as event:
                    current, started = by_id[event.quantum_id], time.monotonic()
                case QuantumOutcome() as outcome:
                    current = None
                    yield outcome
                case Sent() | bytearray() as event:
                    yield event
                case None:
                    break
        exit_code = child.stop() if child.alive else child.wait()
        if current is None and exit_code:
            raise EngineError(f"A worker's child failed between two quanta: {exit_text(exit_code)}.")
    if current is not None:
        timed_out = child.stopped
        yield _dead_outcome(context, content, current, exit_code, started, timed_out=timed_out)


class _Child:
    """A forked process that sends objects back.

    Parameters
    ----------
    target
        What the child does; it is given the function to send with.
    """

    def __init__(self, target: Callable[[Channel], None]):
        self._receiver, sender = Channel.make_pair()
        self._exit_code: int | None = None
        self.alive = True
        self.stopped = False
        sys.stdout.flush()
        sys.stderr.flush()
        tie_to_parent = dying_with_parent()
        self._id = os.fork()
        if self._id == 0:
            self._receiver.close()
            _child_main(target, sender, tie_to_parent)
        sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        self._receiver.close()
        if self._exit_code is None:
            self.stop(grace=0.0)
        return False

    def receive(self, limit: float | None) -> object:
        """Wait for the next object; `None` when the child has ended or ``limit`` seconds are over.

        Raises
        ------
        EngineError
            Raised if the engine's own code failed in the child.
        """
        deadline = None if limit is None else time.monotonic() + limit
        event: object = None
        while event is None:
            left = _WATCH_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._receiver.receive(min(left, _WATCH_SECONDS))
            if event is None and self._has_ended():
                # Some other process holds the pipe, so that its end is no sign.
                last = self._receiver.receive(0.0)
                event = END if last is None else last
            if event is None and deadline is not None and time.monotonic() >= deadline:
                return None
        if event is END:
            self.alive = False
            return None
        if isinstance(event, _Crash):
            raise EngineError(f"The engine failed in a worker:\n{event.text}")
        return event

    def _has_ended(self) -> bool:
        """Whether the process is over, without waiting for it."""
        if self._exit_code is None:
            ended, status = os.waitpid(self._id, os.WNOHANG)
            if ended:
                self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code is not None

    def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        if self._exit_code is None:
            _, status = os.waitpid(self._id, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def stop(self, grace: float = _GRACE_SECONDS) -> int:
        """End the child, first politely, and return the exit code."""
        self.stopped = True
        self._kill(signal.SIGTERM if grace else signal.SIGKILL)
        deadline = time.monotonic() + grace
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._kill(signal.SIGKILL)
        return self.wait()

    def _kill(self, number: signal.Signals) -> None:
        # The number of a process that is over may be another's by now.
        if not self._has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._id, number)


def _child_main(
    target: Callable[[Channel], None], sender: Channel, tie_to_parent: Callable[[], None] | None
) -> NoReturn:
    """Do the child's work and leave without any of the parent's exit handlers."""
    status = 1
    try:
        if tie_to_parent is not None:
            tie_to_parent()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        target(sender)
        status = 0
    except BaseException:  # noqa: BLE001  (the parent raises it)
        with contextlib.suppress(OSError):
            sender.send(_Crash(traceback.format_exc()))
    finally:
        # Come what may, this process must not go on as a second worker.
        try:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _dead_outcome(
    context: WorkerContext,
    content: GroupContent,
    work: QuantumWork,
    exit_code: int,
    started: float,
    *,
    timed_out: bool,
) -> QuantumOutcome:
    """Describe the quantum that a child was at when it ended."""
    assert work.quantum.dataId is not None
    report = QuantumReport.from_exit_code(
        exit_code, work.quantum.dataId, work.task_label, quantumId=work.quantum_id
    )
    # A task that leaves has not finished its quantum, whatever status it gives.
    report.status = ExecutionStatus.TIMEOUT if timed_out else ExecutionStatus.FAILURE
    left = QuantumOutputs((), {})
    if context.quantum_executor is None:
        left = _ask_child(lambda: find_outputs(context, content, work.quantum_id)) or left
    return QuantumOutcome(
        work.quantum_id,
        QuantumAttemptStatus.ABORTED,
        report,
        outputs=left.ids,
        records=left.records,
        removed=left.removed,
        wall_seconds=time.monotonic() - started,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )


def _ask_child[T](question: Callable[[], T]) -> T | None:
    """Have a child find something out, so that this process makes no client for the object store.

    Returns
    -------
    answer
        `None` if the child has died over it.
    """
    with _Child(lambda channel: channel.send(question())) as child:
        answer = child.receive(None)
        child.wait()
    return cast("T | None", answer)
