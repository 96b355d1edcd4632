"""Groups of quanta: run a group in this process, and find outputs of an earlier attempt in the datastore.

Runs in a child of a worker, in a worker whose quanta are not isolated, or in the
process of the serial backend.  The butler of a group uses only the datastore,
never the registry.
"""

from __future__ import annotations

__all__ = ["AttemptEvent", "InProcessRunner", "Runner", "Trial", "find_complete", "find_outputs", "run_group"]

import dataclasses
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any, Protocol

from lsst.daf.butler import DatasetRef

from ..datastore.prefetch import Prefetcher, cache_shared_files
from ..model.outcomes import QuantumOutcome, QuantumStarted
from ..model.work import (
    GroupPayload,
    GroupWork,
    QuantumWork,
    WorkerContext,
    all_inputs,
    all_outputs,
)
from ..temporaries.butler import GroupButler
from ..temporaries.shuffle import EMPTY_NOTICE, CompletionNotice, Pieces, ReceiveBuffer, Sent, pack_temporary
from .quantum import run_quantum, success_outcome
from .state import WorkerState

type AttemptEvent = QuantumOutcome | Pieces | bytearray | Sent
"""Event that a runner yields: an outcome, a record for another group, or the end of a temporary's records."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One attempt at a group: which of its quanta to run, each at most once."""

    state: WorkerState
    """State that the worker keeps from group to group."""

    context: WorkerContext
    work: GroupWork
    payload: GroupPayload

    received: ReceiveBuffer | None
    """Records that the group received from other groups."""

    skip: frozenset[int] = frozenset()
    """Positions of the quanta that are not to run."""

    sent: frozenset[uuid.UUID] = frozenset()
    """Temporaries that are not to be sent again."""

    memory: dict[int, int] = dataclasses.field(default_factory=dict)
    """Memory in bytes that quanta may have, by position."""

    most_ahead: int = 0
    """Memory in bytes for prefetched files, and again for cached ones."""

    def cache_shared_files(self) -> None:
        """Read the files that many quanta of the run read, into memory that later children inherit."""
        self.state.clients.open(self.context.stores)
        cache_shared_files(self.context, self.payload, self.state.clients, self.most_ahead)


class Runner(Protocol):
    """A way to run the quanta of a group once."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        """Run quanta of a group."""
        ...

    def call[T](self, function: Callable[[], T]) -> T | None:
        """Return the result of a function that reads the datastore; `None` if its process has died."""
        ...


class InProcessRunner:
    """Runs quanta in this process, without limits."""

    def run(self, trial: Trial) -> Generator[AttemptEvent]:
        received = trial.received
        labels = {item.task_label for item in trial.payload.quanta}
        if received is not None and any(trial.context.limits_of(label).retries for label in labels):
            received = received.copy()
        for event in run_group(trial, received):
            if not isinstance(event, QuantumStarted):
                yield event

    def call[T](self, function: Callable[[], T]) -> T | None:
        return function()


def run_group(
    trial: Trial, received: ReceiveBuffer | None
) -> Iterator[QuantumStarted | QuantumOutcome | Pieces | Sent]:
    """Run the quanta of a group, one after another, in this process; use up the received records.

    Yields a start and an outcome for each quantum that was tried, and between them the records of
    each temporary that other groups read.  Quanta that depend on a failed quantum are left out.
    Exceptions of tasks become outcomes.

    Raises
    ------
    spark_butler.errors.EngineError
        Raised if a record that another group sent has not arrived.
    """
    context, payload, clients = trial.context, trial.payload, trial.state.clients
    news = received.close(payload.senders) if received is not None else EMPTY_NOTICE
    butler = None
    if context.quantum_executor is None:
        butler = _open_butler(trial, received, news)
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
                yield QuantumStarted(position)
                traffic = clients.traffic
                outcome, encoded = run_quantum(context, work, butler, wanted=wanted, before=before)
                before.append(work.quantum_id)
                if not outcome.succeeded:
                    bad.add(position)
                prefetcher.end(position, bad)
                outcome = dataclasses.replace(outcome, traffic=clients.traffic - traffic)
                for temporary in encoded:
                    began = time.time()
                    yield from pack_temporary(context, trial.work, payload, temporary)
                    yield Sent(temporary.dataset_id, began)
                del encoded
                yield outcome
                if butler is not None:
                    butler.end_quantum(work.quantum)
    finally:
        if butler is not None:
            butler.close()


def find_complete(trial: Trial, positions: Collection[int], *, sure: bool = True) -> list[QuantumOutcome]:
    """Find the quanta of a group that an earlier attempt completed, from the datastore.

    A completed quantum has metadata and a log, which are written last.  Without ``sure``,
    there may have been no earlier attempt.  Then only the log of the first quantum is
    looked up at first: if it is absent, no quantum was completed.
    """
    last: dict[int, list[DatasetRef]] = {}
    for position, work in enumerate(trial.payload.quanta):
        if position in positions and not work.may_exist and not work.forced:
            node = trial.context.task_nodes[work.task_label]
            edges = (node.metadata_output, node.log_output)
            last[position] = [
                work.quantum.outputs[edge.dataset_type_name][0] for edge in edges if edge is not None
            ]
    if not last:
        return []
    with _open_butler(trial) as butler:
        if not sure and not butler.wrapped.stored(next(iter(last.values()))[-1]):
            return []
        stored = butler.wrapped.stored_many(ref for refs in last.values() for ref in refs)
    complete = [trial.payload.quanta[n] for n, refs in last.items() if all(stored[ref] for ref in refs)]
    return [
        dataclasses.replace(
            success_outcome(work, None), **find_outputs(trial, work, complete=True), recovered=True
        )
        for work in complete
    ]


def find_outputs(trial: Trial, work: QuantumWork, *, complete: bool = False) -> dict[str, Any]:
    """Find the outputs that a quantum wrote before its process ended, as fields of its outcome.

    If the quantum is not complete, its metadata belong to an earlier attempt and are left
    out.  The datastore records are predicted.
    """
    context = trial.context
    metadata = context.task_nodes[work.task_label].metadata_output.dataset_type_name
    refs = [ref for ref in all_outputs(work.quantum) if ref.datasetType.name not in context.temporary_types]
    with _open_butler(trial) as butler:
        stored = butler.wrapped.stored_many(refs)
        left = [ref for ref in refs if stored[ref] and (complete or ref.datasetType.name != metadata)]
        records = butler.wrapped.export_predicted_datastore_records(left) if left else {}
    known = trial.payload.known
    return {
        "outputs": tuple(ref.id for ref in left),
        "records": dict(records),
        "removed": tuple(ref.id for ref in refs if known.get(ref.id) and not stored[ref]),
    }


def _open_butler(
    trial: Trial, received: ReceiveBuffer | None = None, news: CompletionNotice = EMPTY_NOTICE
) -> GroupButler:
    context, payload = trial.context, trial.payload
    assert context.butler_config is not None
    quanta = [work.quantum for work in payload.quanta]
    wrapped = trial.state.butlers.open(
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
