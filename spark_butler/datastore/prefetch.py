"""Read inputs of the next quantum of a group while this one computes.

Only what is read anyway, and by a single GET: a whole file of the S3 store
that the middleware reads through `lsst.resources`.
"""

from __future__ import annotations

__all__ = ["Prefetcher", "reads_whole_files"]

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from lsst.daf.butler import DatasetRef, Formatter, FormatterV2, LocationFactory, QuantumBackedButler
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.formatters.typeless import TypelessFormatter
from lsst.pipe.base import PipelineTask
from lsst.resources import ResourcePath
from lsst.utils.introspection import get_class_of

from ..model.quanta import all_outputs
from ..model.work import GroupContent, QuantumWork, WorkerContext
from .files import Files, collect_files
from .prefetch_queue import FileKey, FilesAhead
from .s3_clients import add_traffic, counted_apart, find_client, is_held, look_ahead

logger = logging.getLogger(__name__)

_LOOK_AHEAD = 16
# In less, two threads would only be in each other's way.
_SHORT_SECONDS = 0.1
_STOP_SECONDS = 1.0

# What these do with an address is known: they read all of it at once, or leave it to a local copy.
_WHOLE_READERS = frozenset(
    {
        "lsst.daf.butler._formatter.FormatterV2.read_from_uri",
        "lsst.daf.butler.formatters.json.JsonFormatter.read_from_uri",
        "lsst.daf.butler.formatters.packages.PackagesFormatter.read_from_uri",
        "lsst.daf.butler.formatters.pickle.PickleFormatter.read_from_uri",
        "lsst.daf.butler.formatters.yaml.YamlFormatter.read_from_uri",
        "lsst.images.formatters.GenericFormatter.read_from_uri",
    }
)


@functools.cache
def reads_whole_files(formatter: str) -> bool:
    """Whether a formatter, asked for a whole dataset, reads its file through `lsst.resources`.

    Parameters
    ----------
    formatter
        Full name of the class.
    """
    try:
        cls: Any = get_class_of(formatter)
    except Exception:  # noqa: BLE001  (the quantum that needs it fails with its own error)
        return False
    if not issubclass(cls, FormatterV2):
        return issubclass(cls, Formatter)
    if cls.read not in (FormatterV2.read, TypelessFormatter.read):
        return False
    reader = cls.read_from_uri
    return not cls.can_read_from_uri or f"{reader.__module__}.{reader.__qualname__}" in _WHOLE_READERS


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """A file that a quantum reads."""

    dataset_type: str
    """Name of the dataset type."""

    size: int
    """Its size in bytes; negative where that is unknown."""

    client: Any
    """The client that reads it."""


class Prefetcher:
    """Has a thread read what the next quantum of a group needs.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    content
        The group.
    butler
        Butler of the group for stored datasets; `None` reads nothing ahead.
    known
        Datasets of which is known whether they exist.
    left_out
        Positions of the quanta that are not to run.
    most_bytes
        How much memory files may take up that were read ahead.

    Notes
    -----
    A task with a ``runQuantum`` of its own may leave inputs unread.  Its are
    read ahead once a quantum of it, in this group, has read all of a dataset
    type, and no more when one has not.  Nothing is read ahead for tasks whose
    quanta take less than a tenth of a second all the same.
    """

    def __init__(
        self,
        context: WorkerContext,
        content: GroupContent,
        butler: QuantumBackedButler | None,
        *,
        known: Mapping[uuid.UUID, bool],
        left_out: Collection[int],
        most_bytes: int,
    ):
        self._context = context
        self._quanta = content.quanta
        self._records = content.records
        self._butler = butler
        self._known = known
        self._left_out = frozenset(left_out)
        self._files = FilesAhead(most_bytes)
        self._cleanup = contextlib.ExitStack()
        self._thread: threading.Thread | None = None
        self._inputs: dict[int, dict[FileKey, _Input]] = {}
        self._clients: dict[FileKey, Any] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._ordered: set[int] = set()
        self._began = 0.0
        self._seconds: dict[str, float] = {}
        self._read_all: set[tuple[str, str]] = set()
        self._left_unread: set[tuple[str, str]] = set()
        self._sizes: dict[str, int] = {}
        self._root: LocationFactory | None = None

    def __enter__(self) -> Self:
        if self._may_read_ahead() and self._cleanup.enter_context(look_ahead(self._files)):
            self._root = LocationFactory(ResourcePath(self._context.stores[0], forceDirectory=True))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._root = None
        self._files.close()
        self._cleanup.close()
        add_traffic(self._files.settle())
        if self._thread is not None:
            # One that waits for the store must not be waited for; it does no harm any more.
            self._thread.join(_STOP_SECONDS)

    def _may_read_ahead(self) -> bool:
        """Whether files are read from one S3 store, and always from there."""
        return (
            self._butler is not None
            and self._files.most_bytes > 0
            and len(self._quanta) - len(self._left_out) > 1
            and len(self._context.stores) == 1
            and self._context.stores[0].startswith("s3:")
            and os.environ.get("DAF_BUTLER_CACHE_EXPIRATION_MODE") == "disabled"
        )

    def begin(self, position: int, bad: Collection[int]) -> None:
        """Have the next quantum's inputs read while one runs.

        Parameters
        ----------
        position
            Position of the quantum that begins.
        bad
            Positions of those that have failed, or need one that has.
        """
        if self._root is None:
            return
        self._began = time.monotonic()
        if any(number > position for number in self._ordered):
            return
        for number, work in self._coming(position, bad):
            if self._is_short(work.task_label):
                continue
            inputs = self._inputs_of(number)
            sizes = {
                key: size
                for key, each in inputs.items()
                if self._is_sure(work.task_label, each.dataset_type)
                and (size := each.size if each.size >= 0 else self._sizes.get(each.dataset_type, -1)) >= 0
            }
            if sizes:
                self._ordered.add(number)
                self._clients.update((key, inputs[key].client) for key in sizes)
                self._start()
                self._files.order(sizes, number)
                return

    def end(self, position: int, bad: Collection[int]) -> None:
        """Learn from a quantum that has ended, and let go what is not needed any more.

        Parameters
        ----------
        position
            Its position.
        bad
            Positions of those that have failed, it included, or need one that
            has.
        """
        if self._root is None:
            return
        label = self._quanta[position].task_label
        if position not in self._ordered and position not in bad:
            self._seconds[label] = time.monotonic() - self._began
        coming = {number for number, _ in self._coming(position, bad)}
        if coming and not self._is_short(label):
            self._learn(position, failed=position in bad)
        self._files.drop_for(lambda owner: owner not in coming)
        self._ordered &= coming
        add_traffic(self._files.settle())

    def _coming(self, position: int, bad: Collection[int]) -> Iterator[tuple[int, QuantumWork]]:
        """Go through the next quanta that will run, as far as is known."""
        blocked = set(bad)
        for number in range(position + 1, min(position + 1 + _LOOK_AHEAD, len(self._quanta))):
            work = self._quanta[number]
            if not blocked.isdisjoint(work.upstream):
                blocked.add(number)
            elif number not in self._left_out:
                yield number, work

    def _is_short(self, label: str) -> bool:
        """Whether it is known of a task that its quanta take too little time to read ahead for them."""
        return self._seconds.get(label, _SHORT_SECONDS) < _SHORT_SECONDS

    def _is_sure(self, label: str, dataset_type: str) -> bool:
        """Whether a task will read the datasets of a type."""
        if (label, dataset_type) in self._left_unread:
            return False
        task_class = self._context.task_nodes[label].task_class
        return task_class.runQuantum is PipelineTask.runQuantum or (label, dataset_type) in self._read_all

    def _learn(self, position: int, *, failed: bool) -> None:
        """See which of its inputs a quantum has read, and how large they were."""
        label = self._quanta[position].task_label
        notes = self._files.take_notes()
        unread: set[str] = set()
        read: set[str] = set()
        for key, each in self._inputs_of(position).items():
            if key in notes:
                read.add(each.dataset_type)
                self._sizes[each.dataset_type] = max(notes[key], self._sizes.get(each.dataset_type, 0))
            else:
                unread.add(each.dataset_type)
        self._inputs.pop(position, None)
        if not failed:
            self._read_all.update((label, name) for name in read - unread)
            self._left_unread.update((label, name) for name in unread)

    def _inputs_of(self, position: int) -> dict[FileKey, _Input]:
        """Find the files that a quantum reads whole, if it reads them."""
        if position not in self._inputs:
            try:
                self._inputs[position] = dict(self._find_inputs(self._quanta[position]))
            except Exception as exc:  # noqa: BLE001  (the quantum fails with its own error, if it must)
                logger.debug("Inputs of a quantum can't be told ahead: %s.", type(exc).__name__)
                self._inputs[position] = {}
        return self._inputs[position]

    def _find_inputs(self, work: QuantumWork) -> Iterator[tuple[FileKey, _Input]]:
        assert self._root is not None
        names = self._names_of(work.task_label)
        for dataset_type, refs in work.quantum.inputs.items():
            if dataset_type.name not in names:
                continue
            for ref in refs:
                parts = self._parts(ref)
                if len(parts) != 1 or is_held(ref.id):
                    continue
                ((_, info),) = parts
                if info.component is not None or "#" in info.path or not reads_whole_files(info.formatter):
                    continue
                uri: Any = info.file_location(self._root).uri
                client = find_client(uri)
                if client is not None and not uri.fragment:
                    key = uri._bucket, uri.relativeToPathRoot
                    yield key, _Input(dataset_type.name, info.file_size, client)

    def _parts(self, ref: DatasetRef) -> list[tuple[Any, StoredFileInfo]]:
        """Find the files of a dataset that no quantum of this group makes."""
        if parts := self._recorded.get(ref.id):
            return parts
        if self._butler is None or ref.id in self._made or not self._known.get(ref.id):
            return []
        # The butler will look for it there, too.
        return collect_files(self._butler.export_predicted_datastore_records([ref])).get(ref.id, [])

    @functools.cached_property
    def _recorded(self) -> Files:
        return collect_files(self._records)

    @functools.cached_property
    def _made(self) -> frozenset[uuid.UUID]:
        return frozenset(ref.id for work in self._quanta for ref in all_outputs(work.quantum))

    def _names_of(self, label: str) -> frozenset[str]:
        """Names of the dataset types that a task is given whole before it runs."""
        if label not in self._names:
            connections = self._context.task_nodes[label].get_connections()
            inputs = [
                getattr(connections, name)
                for name in itertools.chain(connections.inputs, connections.prerequisiteInputs)
            ]
            # Components have a point in their names.
            self._names[label] = (
                frozenset(each.name for each in inputs if not each.deferLoad and "." not in each.name)
                - self._context.temporary_types
            )
        return self._names[label]

    def _start(self) -> None:
        """Start the thread, unless it runs already."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_read, args=(self._files, self._clients), name="spark-butler-prefetch", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:
                # There is no room for one; all is read as it is needed.
                self._thread, self._root = None, None
                self._files.close()


def _read(files: FilesAhead, clients: Mapping[FileKey, Any]) -> None:
    """Read what is ordered, until nothing is any more."""
    while (key := files.next()) is not None:
        data = None
        with counted_apart() as counter:
            try:
                data = _fetch(clients[key], key)
            except Exception as exc:  # noqa: BLE001  (the quantum reads it itself, and gets its own error)
                logger.debug("%s could not be read ahead: %s.", key[1], type(exc).__name__)
            finally:
                files.arrive(key, data, counter.traffic)


def _fetch(client: Any, key: FileKey) -> bytes:
    """Read a file."""
    body = client.get_object(Bucket=key[0], Key=key[1])["Body"]
    with contextlib.closing(body):
        data: bytes = body.read()
    return data
