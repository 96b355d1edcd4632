"""Prefetch of the inputs of the next quantum of a group while the current one computes.

Runs where a group of quanta runs: in a child of a worker, or in the process of
the serial backend.  Only whole files of an S3 store are prefetched, each by one
GET, and only if the formatter will read them through `lsst.resources` anyway.
"""

from __future__ import annotations

__all__ = ["Prefetcher", "cache_shared_files", "reads_whole_files"]

import contextlib
import functools
import itertools
import logging
import os
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self

from lsst.daf.butler import DatasetRef, Formatter, FormatterV2, LocationFactory, QuantumBackedButler
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.formatters.json import JsonFormatter
from lsst.daf.butler.formatters.packages import PackagesFormatter
from lsst.daf.butler.formatters.pickle import PickleFormatter
from lsst.daf.butler.formatters.typeless import TypelessFormatter
from lsst.daf.butler.formatters.yaml import YamlFormatter
from lsst.pipe.base import PipelineTask
from lsst.resources import ResourcePath
from lsst.utils.introspection import get_class_of

from .._lsst_resources import bucket_of
from ..model.work import GroupPayload, QuantumWork, WorkerContext, all_outputs
from .files import Files, collect_files
from .prefetch_queue import Fetched, FileKey, PrefetchQueue
from .s3_clients import S3Clients

logger = logging.getLogger(__name__)

_LOOK_AHEAD = 16
# In shorter quanta, a second thread would only slow the first one down.
_SHORT_SECONDS = 0.1

_WHOLE_READERS = {
    cls.read_from_uri
    for cls in (FormatterV2, JsonFormatter, PackagesFormatter, PickleFormatter, YamlFormatter)
}
"""Methods that read a whole file at once, or from a local copy."""


def cache_shared_files(
    context: WorkerContext, payload: GroupPayload, clients: S3Clients, most_bytes: int
) -> None:
    """Cache the files that many quanta of the run read; each worker reads them once."""
    if len(context.stores) != 1 or not payload.shared:
        return
    files = {
        dataset_id: parts[0][1]
        for dataset_id, parts in collect_files(payload.records).items()
        if dataset_id in payload.shared and len(parts) == 1
    }
    clients.cache_files(context.stores[0], files, most_bytes)


@functools.cache
def reads_whole_files(formatter: str) -> bool:
    """Return whether a formatter reads the file of a whole dataset through `lsst.resources`."""
    try:
        cls: Any = get_class_of(formatter)
    except Exception:  # noqa: BLE001  (the quantum that needs it fails with its own error)
        return False
    if not issubclass(cls, FormatterV2):
        return issubclass(cls, Formatter)
    readers = set(_WHOLE_READERS)
    if (images := sys.modules.get("lsst.images.formatters")) is not None:
        # Importing it takes seconds; if its formatters are used, it has been imported.
        readers.add(images.GenericFormatter.read_from_uri)
    return cls.read in (FormatterV2.read, TypelessFormatter.read) and (
        not cls.can_read_from_uri or cls.read_from_uri in readers
    )


class _Input(NamedTuple):
    """A file that a quantum reads."""

    key: FileKey
    dataset_type: str
    size: int
    """Its size in bytes; negative if it is unknown."""
    client: Any
    """The S3 client that reads it."""


class Prefetcher:
    """Thread that reads the inputs of the next quantum of a group.

    Parameters
    ----------
    butler
        Butler of the group for stored datasets; `None` switches prefetch off.
    known
        For each dataset with a known state, whether it exists.
    left_out
        Positions of the quanta that are not to run.

    Notes
    -----
    A task with its own ``runQuantum`` may leave inputs unread.  Inputs of one of
    its dataset types are prefetched only after a quantum of this group has read
    all of them; this ends with the first quantum that leaves some unread.
    Nothing is prefetched for tasks whose quanta take less than 0.1 s.
    """

    def __init__(
        self,
        context: WorkerContext,
        content: GroupPayload,
        butler: QuantumBackedButler | None,
        clients: S3Clients,
        *,
        known: Mapping[uuid.UUID, bool],
        left_out: Collection[int],
        most_bytes: int,
    ):
        self._context = context
        self._quanta = content.quanta
        self._records = content.records
        self._butler = butler
        self._clients = clients
        self._known = known
        self._left_out = frozenset(left_out)
        self._queue = PrefetchQueue(most_bytes, clients.add_traffic)
        self._cleanup = contextlib.ExitStack()
        self._root: LocationFactory | None = None
        self._began = 0.0
        # By task label, and by task label and dataset type.
        self._seconds: dict[str, float] = {}
        self._is_read: dict[tuple[str, str], bool] = {}
        self._sizes: dict[str, int] = {}
        self._inputs: dict[int, list[_Input]] = {}
        self._ordered: set[int] = set()

    def __enter__(self) -> Self:
        if self._can_prefetch() and self._cleanup.enter_context(self._clients.look_ahead(self._queue)):
            self._root = LocationFactory(ResourcePath(self._context.stores[0], forceDirectory=True))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._root = None
        self._queue.close()
        self._cleanup.close()

    def _can_prefetch(self) -> bool:
        """Return whether prefetch is possible: all files come from one S3 store, none from a local cache."""
        return (
            self._butler is not None
            and self._queue.most_bytes > 0
            and len(self._quanta) - len(self._left_out) > 1
            and len(self._context.stores) == 1
            and self._context.stores[0].startswith("s3:")
            and os.environ.get("DAF_BUTLER_CACHE_EXPIRATION_MODE") == "disabled"
        )

    def begin(self, position: int, bad: Collection[int]) -> None:
        """Request the inputs of the next quantum that has any, while the current one runs."""
        if self._root is None:
            return
        self._began = time.monotonic()
        if any(number > position for number in self._ordered):
            return
        for number, work in self._coming(position, bad):
            if self._is_short(work.task_label):
                continue
            for each in self._inputs_of(number):
                size = each.size if each.size >= 0 else self._sizes.get(each.dataset_type, -1)
                if size >= 0 and self._will_read(work.task_label, each.dataset_type):
                    self._ordered.add(number)
                    try:
                        self._queue.add(each.key, size, number, functools.partial(self._fetch, each))
                    except RuntimeError:
                        # No further thread can be started; quanta read their inputs themselves.
                        self._root = None
                        return
            if number in self._ordered:
                return

    def end(self, position: int, bad: Collection[int]) -> None:
        """Record what a quantum has read, and drop files that no quantum will read.

        ``bad`` quanta, maybe this one, have failed or need a failed one.
        """
        if self._root is None:
            return
        label = self._quanta[position].task_label
        if position not in self._ordered and position not in bad:
            self._seconds[label] = time.monotonic() - self._began
        coming = {number for number, _ in self._coming(position, bad)}
        if coming and not self._is_short(label):
            self._learn(position, failed=position in bad)
        self._queue.drop_for(lambda owner: owner not in coming)
        self._ordered &= coming

    def _fetch(self, file: _Input) -> Fetched:
        """Read a file, and count its traffic separately."""
        data = None
        with self._clients.counted_apart() as counter:
            try:
                data = _fetch(file.client, file.key)
            except Exception as exc:  # noqa: BLE001  (the quantum reads it itself, and gets its own error)
                logger.debug("%s could not be prefetched: %s.", file.key[1], type(exc).__name__)
            return data, counter.traffic

    def _coming(self, position: int, bad: Collection[int]) -> Iterator[tuple[int, QuantumWork]]:
        """Yield the following quanta of the group that are expected to run."""
        blocked = set(bad)
        for number in range(position + 1, min(position + 1 + _LOOK_AHEAD, len(self._quanta))):
            work = self._quanta[number]
            if not blocked.isdisjoint(work.upstream):
                blocked.add(number)
            elif number not in self._left_out:
                yield number, work

    def _is_short(self, label: str) -> bool:
        """Return whether the quanta of a task take too little time to prefetch for them."""
        return self._seconds.get(label, _SHORT_SECONDS) < _SHORT_SECONDS

    def _will_read(self, label: str, dataset_type: str) -> bool:
        """Return whether a task is expected to read the datasets of a type."""
        reads_all = self._context.task_nodes[label].task_class.runQuantum is PipelineTask.runQuantum
        return self._is_read.get((label, dataset_type), reads_all)

    def _learn(self, position: int, *, failed: bool) -> None:
        """Record which inputs a quantum has read, and their sizes."""
        label, reads = self._quanta[position].task_label, self._queue.pop_reads()
        unread = set()
        for each in self._inputs_of(position):
            if each.key in reads:
                self._sizes[each.dataset_type] = max(reads[each.key], self._sizes.get(each.dataset_type, 0))
                if not failed:
                    self._is_read.setdefault((label, each.dataset_type), True)
            elif not failed:
                unread.add((label, each.dataset_type))
        self._is_read.update(dict.fromkeys(unread, False))
        del self._inputs[position]

    def _inputs_of(self, position: int) -> list[_Input]:
        """Return the inputs of a quantum that it reads as whole files only."""
        if position not in self._inputs:
            try:
                self._inputs[position] = list(self._find_inputs(self._quanta[position]))
            except Exception as exc:  # noqa: BLE001  (the quantum fails with its own error, if it must)
                logger.debug("Inputs of a quantum could not be found: %s.", type(exc).__name__)
                self._inputs[position] = []
        return self._inputs[position]

    def _find_inputs(self, work: QuantumWork) -> Iterator[_Input]:
        assert self._root is not None
        connections = self._context.task_nodes[work.task_label].get_connections()
        given = {
            connection.name
            for name in itertools.chain(connections.inputs, connections.prerequisiteInputs)
            if not (connection := getattr(connections, name)).deferLoad
        }
        for dataset_type, refs in work.quantum.inputs.items():
            # Components, which have a point in their names, are read in part.
            if dataset_type.name not in given - self._context.temporary_types or "." in dataset_type.name:
                continue
            for ref in refs:
                parts = self._find_files(ref)
                if len(parts) != 1 or self._clients.is_cached(ref.id):
                    continue
                ((_, info),) = parts
                if info.component is not None or "#" in info.path or not reads_whole_files(info.formatter):
                    continue
                uri: Any = info.file_location(self._root).uri
                client = self._clients.find_client(uri)
                if client is not None and not uri.fragment:
                    key = bucket_of(uri), uri.relativeToPathRoot
                    yield _Input(key, dataset_type.name, info.file_size, client)

    def _find_files(self, ref: DatasetRef) -> list[tuple[Any, StoredFileInfo]]:
        """Return the files of a dataset that was not written in this group."""
        if parts := self._recorded.get(ref.id):
            return parts
        if self._butler is None or ref.id in self._made or not self._known.get(ref.id):
            return []
        # The butler searches the same place.
        return collect_files(self._butler.export_predicted_datastore_records([ref])).get(ref.id, [])

    @functools.cached_property
    def _recorded(self) -> Files:
        return collect_files(self._records)

    @functools.cached_property
    def _made(self) -> frozenset[uuid.UUID]:
        return frozenset(ref.id for work in self._quanta for ref in all_outputs(work.quantum))


def _fetch(client: Any, key: FileKey) -> bytes:
    """Read a file."""
    with contextlib.closing(client.get_object(Bucket=key[0], Key=key[1])["Body"]) as body:
        data: bytes = body.read()
    return data
