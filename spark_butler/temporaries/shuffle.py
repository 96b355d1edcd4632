"""Shuffle of temporaries: encode what a group makes as records, and sort them on arrival.

Runs in workers, their children, and the process of the serial backend.
"""

from __future__ import annotations

__all__ = ["Outgoing", "Pieces", "Sent", "pack_temporary", "receive"]

import dataclasses
import logging
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator

from ..errors import EngineError
from ..model.outcomes import QuantumOutcome
from ..model.quanta import all_outputs
from ..model.work import EncodedTemporary, GroupContent, GroupWork, QuantumWork, WorkerContext
from .scratch import store_scratch
from .shuffle_records import (
    CompletionNotice,
    Kind,
    ReceiveBuffer,
    cut_object,
    forward,
    hops_left,
    make_record,
    open_record,
)

logger = logging.getLogger(__name__)

type Pieces = list[bytes | memoryview]
"""A record in consecutive pieces."""

_SPARE_DISK_BYTES = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """The end of the records of a temporary."""

    dataset_id: uuid.UUID
    """ID of the dataset."""

    nbytes: int
    """Its serialized length in bytes."""

    began: float
    """When packing began, in seconds since the epoch."""


def pack_temporary(
    context: WorkerContext, work: GroupWork, content: GroupContent, temporary: EncodedTemporary
) -> Iterator[Pieces]:
    """Write the records of a temporary, once for each group that reads it.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    work, content
        The group that sends.
    temporary
        The temporary.

    Yields
    ------
    record
        Chunks of the object; or, where it is too large or the disk for
        shuffles too full, the address of a file in the object store.
    """
    dataset_id, encoded = temporary.dataset_id, temporary.encoded
    receivers = content.outgoing[dataset_id]
    if _needs_scratch(context, encoded.nbytes * len(receivers)):
        parts = store_scratch(context.scratch, dataset_id, encoded.pieces())
        payload = pickle.dumps(parts)
        for group in receivers:
            yield make_record(
                work.routes[group], Kind.SCRATCH, group, work.index, [payload], dataset_id=dataset_id
            )
        return
    for group in receivers:
        yield from cut_object(
            work.routes[group], group, work.index, dataset_id, encoded.pieces(), encoded.nbytes
        )


def _needs_scratch(context: WorkerContext, nbytes: int) -> bool:
    """Return whether an object is too large for the shuffle."""
    if not context.scratch:
        return False
    if context.max_shuffle_bytes is not None and nbytes >= context.max_shuffle_bytes:
        return True
    folders = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    try:
        free = max(shutil.disk_usage(folder).free for folder in folders.split(","))
    except OSError:
        return False
    # Map outputs, and what is spilled on the way to them.
    return free < 2 * nbytes + _SPARE_DISK_BYTES


class Outgoing:
    """Collects what became of a group, for the groups that need it.

    Parameters
    ----------
    work, content
        The group.
    """

    def __init__(self, work: GroupWork, content: GroupContent):
        self._work = work
        self._content = content
        self._succeeded: set[uuid.UUID] = set()
        self._outputs: set[uuid.UUID] = set()
        self._sent: dict[uuid.UUID, int] = {}

    def record(self, event: QuantumOutcome | Sent) -> None:
        """Record an outcome, or a temporary that was sent."""
        if isinstance(event, Sent):
            self._sent[event.dataset_id] = event.nbytes
            return
        if event.succeeded:
            self._succeeded.add(event.quantum_id)
        self._outputs.update(event.outputs)

    def record_done(self, work: QuantumWork) -> None:
        """Record a quantum of which the driver knows that it succeeded."""
        self._succeeded.add(work.quantum_id)
        self._outputs.update(ref.id for ref in all_outputs(work.quantum) if self._content.known.get(ref.id))

    @property
    def sent(self) -> frozenset[uuid.UUID]:
        """Temporaries that were sent."""
        return frozenset(self._sent)

    def closing_records(self) -> Iterator[Pieces]:
        """Write the completion notices to all groups that need this one, and the work that it carries."""
        failed = frozenset(work.quantum_id for work in self._content.quanta) - self._succeeded
        for group, reads in self._content.receivers.items():
            notice = CompletionNotice(
                failed=failed,
                produced={dataset_id: dataset_id in self._outputs for dataset_id in reads},
                sent={
                    dataset_id: nbytes
                    for dataset_id, nbytes in self._sent.items()
                    if group in self._content.outgoing[dataset_id]
                },
            )
            route = self._work.routes[group]
            yield make_record(route, Kind.NOTICE, group, self._work.index, [pickle.dumps(notice)])
        for route, work in self._work.carried:
            yield make_record(route, Kind.WORK, work.index, self._work.index, [pickle.dumps(work)])


def receive(records: Iterable[bytes | bytearray]) -> Iterator[bytes | tuple[GroupWork, ReceiveBuffer]]:
    """Sort the records that arrive at one partition.

    Parameters
    ----------
    records
        The records.

    Yields
    ------
    item
        First the records that are only passing through, to be sent on; last
        the work of the group of this partition with what was received for it.

    Raises
    ------
    EngineError
        Raised if the work item itself is missing.
    """
    work: GroupWork | None = None
    received: ReceiveBuffer | None = None
    for data in records:
        if hops_left(data) > 1:
            yield forward(data)
            continue
        record = open_record(data)
        if received is None:
            received = ReceiveBuffer(record.group)
        if record.kind is Kind.WORK:
            work = pickle.loads(record.payload)
        else:
            received.add(record)
    if received is None:
        return
    if work is None:
        raise EngineError("Received shuffle records for a group whose work item is missing.")
    yield work, received
