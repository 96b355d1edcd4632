"""Shuffle records, which carry temporaries and completion notices of a group to other groups.

Runs in workers, their children, and the process of the serial backend.

A record has a route, a header and a payload.  The route lists the partitions
through which the record still has to pass, one for each following level of its
unit.  The last of them is the partition of the receiving group.  An object is cut
into chunks of 8 MiB, one record each.
"""

from __future__ import annotations

__all__ = [
    "EMPTY_NOTICE",
    "CompletionNotice",
    "Kind",
    "Outgoing",
    "Pieces",
    "ReceiveBuffer",
    "Record",
    "Sent",
    "hops_left",
    "open_record",
    "pack_temporary",
    "partition_of",
    "receive",
]

import dataclasses
import enum
import os
import pickle
import secrets
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import EngineError
from ..model.outcomes import QuantumOutcome
from ..model.work import EncodedTemporary, GroupPayload, GroupWork, Route, WorkerContext, all_outputs
from .scratch import ScratchPart, cut_pieces, store_scratch

type Pieces = list[bytes | memoryview]
"""The consecutive pieces of a record; joining them would copy the payload."""

_CHUNK_BYTES = 8 * 2**20
_SPARE_DISK_BYTES = 2**30
_ROUTE_LENGTH = struct.Struct("<H")
_HEAD = struct.Struct("<BIIQ16sQQ")
_NO_ID = uuid.UUID(int=0)


class Kind(enum.IntEnum):
    """Kind of the payload of a record."""

    CHUNK = 0
    """A piece of a serialized object."""

    SCRATCH = 1
    """A pickled list of addresses and lengths of the parts of a serialized object in the object store."""

    NOTICE = 2
    """A pickled `CompletionNotice`."""

    WORK = 3
    """The pickled `GroupWork` of the receiving group, which one of its senders carries."""


class Record(NamedTuple):
    """Header and payload of a shuffle record."""

    kind: Kind

    group: int
    sender: int

    attempt: int = 0
    """Random number of the attempt to send the object, so that pieces of two attempts never mix."""

    dataset_id: uuid.UUID = _NO_ID

    total: int = 0
    """Length of the whole serialized object in bytes."""

    offset: int = 0
    """Position of the payload in the serialized object, in bytes."""

    payload: memoryview = memoryview(b"")
    """The payload; empty in a record that is to be sent."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionNotice:
    """Report of a finished group to a group that depends on it, the receiver."""

    failed: frozenset[uuid.UUID]
    """Quanta that failed or were not tried."""

    produced: dict[uuid.UUID, bool]
    """For each stored dataset that the receiver reads, whether it exists."""

    sent: frozenset[uuid.UUID]
    """Temporaries that were sent to the receiver."""


EMPTY_NOTICE = CompletionNotice(frozenset(), {}, frozenset())
"""A notice without content."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """Event after the last record of a temporary."""

    dataset_id: uuid.UUID

    began: float
    """When packing began, in seconds since the epoch."""


def _pack(record: Record, route: Route, payload: Pieces) -> Pieces:
    """Return a record as pieces: its route and header, then the payload."""
    head = _HEAD.pack(
        record.kind,
        record.group,
        record.sender,
        record.attempt,
        record.dataset_id.bytes,
        record.total,
        record.offset,
    )
    return [struct.pack(f"<H{len(route)}I", len(route), *route) + head, *payload]


def partition_of(record: bytes | bytearray | memoryview) -> int:
    """Return the next partition of a record; the first piece of the record is enough."""
    return int(struct.unpack_from("<I", record, _ROUTE_LENGTH.size)[0])


def hops_left(record: bytes | bytearray) -> int:
    """Return the number of partitions on the route of a record, including the one where it is."""
    return int(_ROUTE_LENGTH.unpack_from(record)[0])


def _forward(record: bytes | bytearray) -> bytes:
    """Return a record whose route no longer contains the present partition."""
    return _ROUTE_LENGTH.pack(hops_left(record) - 1) + memoryview(record)[_ROUTE_LENGTH.size + 4 :]


def open_record(record: bytes | bytearray) -> Record:
    """Read a record that has arrived: at most one partition is left on its route."""
    start = _ROUTE_LENGTH.size + 4 * hops_left(record)
    kind, group, sender, attempt, id_bytes, total, offset = _HEAD.unpack_from(record, start)
    payload = memoryview(record)[start + _HEAD.size :]
    return Record(Kind(kind), group, sender, attempt, uuid.UUID(bytes=id_bytes), total, offset, payload)


def pack_temporary(
    context: WorkerContext, work: GroupWork, payload: GroupPayload, temporary: EncodedTemporary
) -> Iterator[Pieces]:
    """Build the records of a temporary for each group that reads it.

    They are chunks of the object; or the addresses of its scratch files, if it is too large for
    the shuffle or the disks for shuffles are too full.
    """
    dataset_id, encoded = temporary.dataset_id, temporary.encoded
    receivers = payload.outgoing[dataset_id]
    if _needs_scratch(context, encoded.nbytes * len(receivers)):
        data = pickle.dumps(store_scratch(context.scratch, dataset_id, encoded.pieces()))
        for group in receivers:
            record = Record(Kind.SCRATCH, group, work.index, dataset_id=dataset_id)
            yield _pack(record, work.routes[group], [data])
        return
    for group in receivers:
        attempt, offset = secrets.randbits(64), 0
        for chunk in cut_pieces(encoded.pieces(), _CHUNK_BYTES):
            record = Record(Kind.CHUNK, group, work.index, attempt, dataset_id, encoded.nbytes, offset)
            yield _pack(record, work.routes[group], [*chunk])
            offset += sum(map(len, chunk))


def _needs_scratch(context: WorkerContext, nbytes: int) -> bool:
    """Return whether an object is too large for the shuffle or for its disks."""
    if not context.scratch:
        return False
    if context.max_shuffle_bytes is not None and nbytes >= context.max_shuffle_bytes:
        return True
    folders = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    try:
        free = max(shutil.disk_usage(folder).free for folder in folders.split(","))
    except OSError:
        return False
    # Counted twice, because Spark spills records to disk before it writes the map output.
    return free < 2 * nbytes + _SPARE_DISK_BYTES


class Outgoing:
    """Results of a group so far, for reports to the groups that depend on it."""

    def __init__(self, work: GroupWork, payload: GroupPayload):
        self._work = work
        self._payload = payload
        self._succeeded: set[uuid.UUID] = set()
        self._outputs: set[uuid.UUID] = set()
        self.sent: set[uuid.UUID] = set()
        """Temporaries that were sent."""
        for position in payload.done:
            done = payload.quanta[position]
            self._succeeded.add(done.quantum_id)
            self._outputs.update(ref.id for ref in all_outputs(done.quantum) if payload.known.get(ref.id))

    def record(self, event: QuantumOutcome | Sent) -> None:
        """Record an outcome, or a temporary that was sent."""
        if isinstance(event, Sent):
            self.sent.add(event.dataset_id)
            return
        if event.succeeded:
            self._succeeded.add(event.quantum_id)
        self._outputs.update(event.outputs)

    def closing_records(self) -> Iterator[Pieces]:
        """Build the records of completion notices for groups that depend on this one, and of carried work."""
        failed = frozenset(work.quantum_id for work in self._payload.quanta) - self._succeeded
        for group, reads in self._payload.receivers.items():
            notice = CompletionNotice(
                failed=failed,
                produced={dataset_id: dataset_id in self._outputs for dataset_id in reads},
                sent=frozenset(each for each in self.sent if group in self._payload.outgoing[each]),
            )
            record = Record(Kind.NOTICE, group, self._work.index)
            yield _pack(record, self._work.routes[group], [pickle.dumps(notice)])
        for route, work in self._work.carried:
            yield _pack(Record(Kind.WORK, work.index, self._work.index), route, [pickle.dumps(work)])


class ReceiveBuffer:
    """Buffer of the records that one group receives.

    Each object has one buffer, into which its chunks are copied as they arrive.
    Memory therefore holds only the objects and one chunk.
    """

    def __init__(self, group: int):
        self._group = group
        self._buffers: dict[tuple[uuid.UUID, int], bytearray] = {}
        self._lengths: dict[tuple[uuid.UUID, int], dict[int, int]] = {}
        self._notices: dict[int, CompletionNotice] = {}
        self.objects: dict[uuid.UUID, bytearray] = {}
        """Serialized objects that are complete."""
        self.scratch: dict[uuid.UUID, list[ScratchPart]] = {}
        """Addresses and lengths of the parts of objects that are in scratch files in the object store."""

    def add(self, record: Record) -> None:
        """Add a record for this group, of any kind but `Kind.WORK`."""
        match record.kind:
            case Kind.NOTICE:
                notice = pickle.loads(record.payload)
                assert isinstance(notice, CompletionNotice)
                self._notices[record.sender] = notice
            case Kind.SCRATCH:
                self.scratch[record.dataset_id] = pickle.loads(record.payload)
            case _:
                self._add_chunk(record)

    def copy(self) -> ReceiveBuffer:
        """Return a copy for one attempt, which may change the objects without effect on the next attempt."""
        other = ReceiveBuffer(self._group)
        other._notices = self._notices
        other.objects = {dataset_id: bytearray(data) for dataset_id, data in self.objects.items()}
        other.scratch = self.scratch
        return other

    def _add_chunk(self, record: Record) -> None:
        if record.dataset_id in self.objects:
            return
        key = record.dataset_id, record.attempt
        if key not in self._buffers:
            self._buffers[key] = bytearray(record.total)
            self._lengths[key] = {}
        buffer, lengths = self._buffers[key], self._lengths[key]
        if record.offset in lengths:
            return
        lengths[record.offset] = len(record.payload)
        buffer[record.offset : record.offset + len(record.payload)] = record.payload
        if sum(lengths.values()) == record.total:
            self.objects[record.dataset_id] = buffer
            for other in [other for other in self._buffers if other[0] == record.dataset_id]:
                del self._buffers[other], self._lengths[other]

    def close(self, senders: Iterable[int]) -> CompletionNotice:
        """Check that all notices and objects have arrived, and merge the notices.

        An `EngineError` is raised if a notice, or a temporary that a notice lists, is missing.  Only
        a notice can say that a dataset was not produced.
        """
        if silent := sorted(set(senders) - self._notices.keys()):
            raise EngineError(
                f"Group {self._group} received no completion notice from groups {silent}, "
                "on which it depends."
            )
        notices = self._notices.values()
        total = CompletionNotice(
            failed=frozenset().union(*(notice.failed for notice in notices)),
            produced={key: value for notice in notices for key, value in notice.produced.items()},
            sent=frozenset().union(*(notice.sent for notice in notices)),
        )
        if lost := sorted(map(str, total.sent - self.objects.keys() - self.scratch.keys())):
            raise EngineError(f"Temporaries for group {self._group} were sent but have not arrived: {lost}.")
        self._buffers.clear()
        return total


def receive(records: Iterable[bytes | bytearray]) -> Iterator[bytes | tuple[GroupWork, ReceiveBuffer]]:
    """Sort the records that arrive at one partition.

    Yields first the records for later levels, to be forwarded.  The last item is the work item of
    this partition's group, with the records that the group received.  An `EngineError` is raised
    if the work item itself is missing.
    """
    work: GroupWork | None = None
    received: ReceiveBuffer | None = None
    for data in records:
        if hops_left(data) > 1:
            yield _forward(data)
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
