"""Groups of quanta: run one in this process, and find what an attempt at one has left in the datastore.

Runs in a child of a worker, in a worker whose quanta are not isolated, or in the
process of the serial backend.  The butler of a group points straight at the
datastore; nothing here reaches the registry.
"""

from __future__ import annotations

__all__ = ["AttemptEvent", "InProcessRunner", "Runner", "Trial", "find_complete", "find_outputs", "run_group"]

import dataclasses
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import Protocol

from ..datastore.prefetch import Prefetcher
from ..model.outcomes import QuantumOutcome, QuantumStarted
from ..model.work import (
    EncodedTemporary,
    GroupPayload,
    GroupWork,
    QuantumOutputs,
    WorkerContext,
    all_inputs,
    all_outputs,
)
from ..temporaries.butler import GroupButler
from ..temporaries.shuffle import EMPTY_NOTICE, CompletionNotice, Pieces, ReceiveBuffer, Sent, pack_temporary
from .quantum import run_quantum, success_outcome
from .state import WorkerState

type AttemptEvent = QuantumOutcome | Sent | bytearray | Pieces
"""What a runner yields: outcomes, records for other groups, and the end of the records of a temporary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """Quanta of a group that are to be run, each once at most."""

    state: WorkerState
    """What the worker keeps from group to group."""

    context: WorkerContext
    """What all groups of the run have in common."""

    work: GroupWork
    """The group, as it travelled."""

    payload: GroupPayload
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
    """Memory in bytes for prefetched files."""

    def pack(self, encoded: EncodedTemporary) -> Iterator[Pieces]:
        """Write the records of a temporary; see `spark_butler.temporaries.shuffle.pack_temporary`.

        Parameters
        ----------
        encoded
            The temporary.
        """
        return pack_temporary(self.context, self.work, self.payload, encoded)


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
        """Ask the datastore something; return `None` if the process that was to do it has died."""
        ...


class InProcessRunner:
    """Runs quanta in this process, without limits."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        """Run quanta of a group.  See `Runner.run`."""
        received = trial.received
        labels = {item.task_label for item in trial.payload.quanta}
        if received is not None and any(trial.context.limits_of(label).retries for label in labels):
            received = received.copy()
        for event in run_group(trial, received):
            if isinstance(event, EncodedTemporary):
                began = time.time()
                yield from trial.pack(event)
                yield Sent(event.dataset_id, event.encoded.nbytes, began)
            elif isinstance(event, QuantumOutcome):
                yield event

    def ask[T](self, question: Callable[[], T]) -> T | None:
        """Ask the datastore something.  See `Runner.ask`."""
        return question()


def run_group(
    trial: Trial, received: ReceiveBuffer | None
) -> Iterator[QuantumStarted | QuantumOutcome | EncodedTemporary]:
    """Run the quanta of a group, one after another, in this process.

    Parameters
    ----------
    trial
        The quanta.
    received
        Temporaries and notices from other groups, complete; they are used up.

    Yields
    ------
    event
        A start and an outcome for each quantum that was tried, and between
        them each temporary that other groups read.  Quanta that need one that
        failed are left out.

    Raises
    ------
    spark_butler.errors.EngineError
        Raised if something that was sent has not arrived.  What a task
        raises is an outcome.
    """
    context, payload, clients = trial.context, trial.payload, trial.state.clients
    news = received.close(payload.senders) if received is not None else EMPTY_NOTICE
    butler = None
    if context.quantum_executor is None:
        butler = _open_butler(trial.state, context, payload, received, news)
    prefetcher = Prefetcher(
        context,
        payload,
        butler.wrapped if butler is not None else None,
        clients,
        known={**payload.known, **news.produced},
        left_out=trial.skip,
        most_bytes=trial.most_ahead,
    )
    wanted = payload.outgoing.keys() - trial.sent
    bad: set[int] = set()
    before: list[uuid.UUID] = []
    try:
        with prefetcher:
            for position, work in enumerate(payload.quanta):
                if position in trial.skip:
                    continue
                if not bad.isdisjoint(work.upstream) or not news.failed.isdisjoint(work.needs):
                    bad.add(position)
                    continue
                prefetcher.begin(position, bad)
                yield QuantumStarted(work.quantum_id)
                traffic = clients.traffic
                outcome, encoded = run_quantum(context, work, butler, wanted=wanted, before=before)
                before.append(work.quantum_id)
                if not outcome.succeeded:
                    bad.add(position)
                prefetcher.end(position, bad)
                outcome = dataclasses.replace(outcome, traffic=clients.traffic - traffic)
                yield from encoded
                del encoded
                yield outcome
                if butler is not None:
                    butler.end_quantum(work.quantum)
    finally:
        if butler is not None:
            butler.close()


def find_complete(
    state: WorkerState,
    context: WorkerContext,
    payload: GroupPayload,
    positions: Collection[int],
    *,
    sure: bool = True,
) -> list[QuantumOutcome]:
    """Find the quanta of a group that an earlier attempt has completed, in the datastore.

    Parameters
    ----------
    state
        What the worker keeps from group to group.
    context
        What all groups of the run have in common.
    payload
        The group.
    positions
        Positions of the quanta to look for.
    sure
        Whether there was an earlier attempt.  Otherwise the first of the
        quanta is asked for first: without a log of it, nothing was begun.

    Returns
    -------
    outcomes
        Outcomes of the quanta whose metadata and log are there, which are
        written last.
    """
    last = {}
    for position, work in enumerate(payload.quanta):
        if position in positions and not work.may_exist and not work.forced:
            node = context.task_nodes[work.task_label]
            edges = (node.metadata_output, node.log_output)
            last[work.quantum_id] = [
                work.quantum.outputs[edge.dataset_type_name][0] for edge in edges if edge is not None
            ]
    if not last:
        return []
    with _open_butler(state, context, payload) as butler:
        if not sure and not butler.wrapped.stored(next(iter(last.values()))[-1]):
            return []
        stored = butler.wrapped.stored_many(ref for refs in last.values() for ref in refs)
    outcomes = []
    for work in payload.quanta:
        if work.quantum_id in last and all(stored[ref] for ref in last[work.quantum_id]):
            left = find_outputs(state, context, payload, work.quantum_id, complete=True)
            outcomes.append(
                dataclasses.replace(
                    success_outcome(work, None), outputs=left.ids, records=left.records, recovered=True
                )
            )
    return outcomes


def find_outputs(
    state: WorkerState,
    context: WorkerContext,
    payload: GroupPayload,
    quantum_id: uuid.UUID,
    *,
    complete: bool = False,
) -> QuantumOutputs:
    """Find what a quantum whose process is gone has left in the datastore.

    Parameters
    ----------
    state
        What the worker keeps from group to group.
    context
        What all groups of the run have in common.
    payload
        The group.
    quantum_id
        The quantum, one of the group.
    complete
        Whether it has succeeded; otherwise metadata can only be an earlier
        attempt's, and is left out.

    Returns
    -------
    outputs
        The stored datasets that are there, with predicted datastore records.
    """
    (work,) = (work for work in payload.quanta if work.quantum_id == quantum_id)
    metadata = context.task_nodes[work.task_label].metadata_output.dataset_type_name
    with _open_butler(state, context, payload) as butler:
        refs = [
            ref for ref in all_outputs(work.quantum) if ref.datasetType.name not in context.temporary_types
        ]
        stored = butler.wrapped.stored_many(refs)
        left = [ref for ref in refs if stored[ref] and (complete or ref.datasetType.name != metadata)]
        records = butler.wrapped.export_predicted_datastore_records(left) if left else {}
    removed = tuple(ref.id for ref in refs if payload.known.get(ref.id) and not stored[ref])
    return QuantumOutputs(tuple(ref.id for ref in left), dict(records), removed)


def _open_butler(
    state: WorkerState,
    context: WorkerContext,
    payload: GroupPayload,
    received: ReceiveBuffer | None = None,
    news: CompletionNotice = EMPTY_NOTICE,
) -> GroupButler:
    """Open the butler of a group."""
    assert context.butler_config is not None
    quanta = [work.quantum for work in payload.quanta]
    wrapped = state.butlers.open(
        context.butler_config,
        context.universe,
        inputs=[ref.id for quantum in quanta for ref in all_inputs(quantum)],
        outputs=[ref.id for quantum in quanta for ref in all_outputs(quantum)],
        records=payload.records,
        dataset_types=context.dataset_types,
    )
    return GroupButler(
        wrapped,
        dataset_types=context.dataset_types,
        temporary_types=context.temporary_types,
        consumers=payload.consumers,
        known={**payload.known, **news.produced},
        received=received,
    )
