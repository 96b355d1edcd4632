"""Wire format of the shuffle: short byte records that carry temporaries and completion notices.

Runs in workers, their children, and the process of the serial backend.

A record has a header and a payload.  The header has the route: the partitions
(one at each level of a job) that the record still has to visit, the last of
which is that of the group that it is for.  Large objects are cut into chunks
so that no record is large.
"""

from __future__ import annotations

__all__ = [
    "CHUNK_BYTES",
    "EMPTY_NOTICE",
    "CompletionNotice",
    "Kind",
    "ReceiveBuffer",
    "Record",
    "cut_object",
    "forward",
    "hops_left",
    "make_record",
    "open_record",
    "partition_of",
]

import dataclasses
import enum
import pickle
import secrets
import struct
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import EngineError
from ..model.work import Route

CHUNK_BYTES = 8 * 2**20
"""Size of the chunks that large objects are cut into, in bytes."""

_ROUTE_LENGTH = struct.Struct("<H")
_HEAD = struct.Struct("<BIIQ16sQQ")


class Kind(enum.IntEnum):
    """Kind of the payload of a record."""

    CHUNK = 0
    """A piece of a serialized object."""

    SCRATCH = 1
    """A pickled list of addresses and lengths of the parts of a serialized object in the object store."""

    NOTICE = 2
    """A pickled `CompletionNotice`."""

    WORK = 3
    """The pickled work of the group that the record is for."""


class Record(NamedTuple):
    """A record that has arrived."""

    kind: Kind
    """Kind of the payload."""

    group: int
    """Group that it is for."""

    sender: int
    """Group that it comes from."""

    attempt: int
    """Random number of the attempt to send the object, so that pieces of two attempts never mix."""

    dataset_id: uuid.UUID
    """Dataset that the payload belongs to."""

    total: int
    """Length of the whole serialized object in bytes."""

    offset: int
    """Position of the payload in it."""

    payload: memoryview
    """The payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionNotice:
    """The report of a finished group to one that depends on it."""

    failed: frozenset[uuid.UUID]
    """Quanta that failed or were not tried."""

    produced: dict[uuid.UUID, bool]
    """Whether the stored datasets that the other reads exist."""

    sent: dict[uuid.UUID, int]
    """Temporaries that were sent to it, with their serialized length in bytes."""


EMPTY_NOTICE = CompletionNotice(frozenset(), {}, {})
"""A notice without content."""

_NO_ID = uuid.UUID(int=0)


def make_record(  # noqa: PLR0913
    route: Route,
    kind: Kind,
    group: int,
    sender: int,
    payload: Iterable[bytes | memoryview],
    *,
    attempt: int = 0,
    dataset_id: uuid.UUID = _NO_ID,
    total: int = 0,
    offset: int = 0,
) -> list[bytes | memoryview]:
    """Write a record.

    Parameters
    ----------
    route
        Partitions to visit.
    kind
        What the payload is.
    group
        Group that it is for.
    sender
        Group that it comes from.
    payload
        Pieces of the payload.
    attempt, dataset_id, total, offset
        As in `Record`.

    Returns
    -------
    pieces
        The record, in pieces that are not copied.
    """
    head = (
        _ROUTE_LENGTH.pack(len(route))
        + struct.pack(f"<{len(route)}I", *route)
        + _HEAD.pack(kind, group, sender, attempt, dataset_id.bytes, total, offset)
    )
    return [head, *payload]


def partition_of(record: bytes | bytearray | memoryview) -> int:
    """Return the partition that a record is sent to.

    Parameters
    ----------
    record
        The record, or at least its first piece.
    """
    (partition,) = struct.unpack_from("<I", record, _ROUTE_LENGTH.size)
    assert isinstance(partition, int)
    return partition


def hops_left(record: bytes | bytearray) -> int:
    """Return the number of partitions that a record still has to visit, with the one where it is.

    Parameters
    ----------
    record
        The record.
    """
    (length,) = _ROUTE_LENGTH.unpack_from(record)
    assert isinstance(length, int)
    return length


def forward(record: bytes | bytearray) -> bytes:
    """Remove the partition that a record is at from its route.

    Parameters
    ----------
    record
        The record, as it was sent.

    Returns
    -------
    record
        The record, as it has to be sent on, or is to be opened.
    """
    (length,) = _ROUTE_LENGTH.unpack_from(record)
    view = memoryview(record)
    return _ROUTE_LENGTH.pack(length - 1) + view[_ROUTE_LENGTH.size + 4 :]


def open_record(record: bytes | bytearray) -> Record:
    """Read a record that has arrived.

    Parameters
    ----------
    record
        The record, with at most one partition left on its route.
    """
    (length,) = _ROUTE_LENGTH.unpack_from(record)
    start = _ROUTE_LENGTH.size + 4 * length
    kind, group, sender, attempt, id_bytes, total, offset = _HEAD.unpack_from(record, start)
    payload = memoryview(record)[start + _HEAD.size :]
    return Record(Kind(kind), group, sender, attempt, uuid.UUID(bytes=id_bytes), total, offset, payload)


def cut_object(
    route: Route, group: int, sender: int, dataset_id: uuid.UUID, pieces: Iterable[memoryview], total: int
) -> Iterator[list[bytes | memoryview]]:
    """Cut a serialized object into records.

    Parameters
    ----------
    route
        Partitions to visit.
    group
        Group that it is for.
    sender
        Group that it comes from.
    dataset_id
        The dataset.
    pieces
        The serialized object, in pieces.
    total
        Its length in bytes.

    Yields
    ------
    record
        Records with payloads of at most `CHUNK_BYTES`, in pieces that are not
        copied.
    """
    attempt = secrets.randbits(64)
    offset, size = 0, 0
    held: list[bytes | memoryview] = []

    def record() -> list[bytes | memoryview]:
        return make_record(
            route,
            Kind.CHUNK,
            group,
            sender,
            held,
            attempt=attempt,
            dataset_id=dataset_id,
            total=total,
            offset=offset,
        )

    for piece in pieces:
        view = memoryview(piece).cast("B")
        while len(view):
            part = view[: CHUNK_BYTES - size]
            view = view[len(part) :]
            held.append(part)
            size += len(part)
            if size == CHUNK_BYTES:
                yield record()
                offset, size, held = offset + size, 0, []
    if held or not total:
        yield record()


class ReceiveBuffer:
    """Collects the records of one group.

    Parameters
    ----------
    group
        The group.

    Notes
    -----
    Chunks are copied to their place in one buffer for each object, so that
    no more than the objects themselves and a chunk are in memory.
    """

    def __init__(self, group: int):
        self._group = group
        self._buffers: dict[tuple[uuid.UUID, int], bytearray] = {}
        self._offsets: dict[tuple[uuid.UUID, int], set[int]] = {}
        self._missing: dict[tuple[uuid.UUID, int], int] = {}
        self._notices: dict[int, CompletionNotice] = {}
        self.objects: dict[uuid.UUID, bytearray] = {}
        """Serialized objects that are complete."""
        self.scratch: dict[uuid.UUID, list[tuple[str, int]]] = {}
        """Addresses and lengths of the parts of objects that wait in the object store."""

    def add(self, record: Record) -> None:
        """Add a record.

        Parameters
        ----------
        record
            A record for this group, other than its work.
        """
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
        """Copy the objects, so that a reader may change one without spoiling it for another attempt."""
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
            self._offsets[key] = set()
            self._missing[key] = record.total
        if record.offset in self._offsets[key]:
            return
        self._offsets[key].add(record.offset)
        end = record.offset + len(record.payload)
        self._buffers[key][record.offset : end] = record.payload
        self._missing[key] -= len(record.payload)
        if not self._missing[key]:
            self.objects[record.dataset_id] = self._buffers[key]
            for other in [other for other in self._buffers if other[0] == record.dataset_id]:
                del self._buffers[other], self._offsets[other], self._missing[other]

    def close(self, senders: Iterable[int]) -> CompletionNotice:
        """Check that everything was received, and merge the notices.

        Parameters
        ----------
        senders
            Groups that must have sent a notice.

        Returns
        -------
        notice
            All notices in one.

        Raises
        ------
        EngineError
            Raised if a notice, or a temporary that a notice lists, is
            missing.  Absence never means that a dataset was not produced.
        """
        silent = sorted(set(senders) - self._notices.keys())
        if silent:
            raise EngineError(
                f"Group {self._group} received no completion notice from groups {silent}, which it needs."
            )
        notices = self._notices.values()
        total = CompletionNotice(
            failed=frozenset().union(*(notice.failed for notice in notices)),
            produced={key: value for notice in notices for key, value in notice.produced.items()},
            sent={key: value for notice in notices for key, value in notice.sent.items()},
        )
        lost = sorted(map(str, total.sent.keys() - self.objects.keys() - self.scratch.keys()))
        if lost:
            raise EngineError(f"Temporaries for group {self._group} were sent but have not arrived: {lost}.")
        self._buffers.clear()
        return total
