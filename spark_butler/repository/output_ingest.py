"""Batch ingest of datasets that workers have written.  Runs in the driver."""

from __future__ import annotations

__all__ = ["IngestStream", "Ingester"]

import functools
import itertools
import logging
import queue
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Self

import sqlalchemy.exc
from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionGroup
from lsst.daf.butler.datastore.record_data import DatastoreRecordData

from .._daf_butler import datastore_of, import_datasets, remember_last_time
from ..errors import EngineError
from ..model.outcomes import FailureKind, classify
from ..text import brief
from .copy_inserts import insert_by_copy
from .database_retry import retry_database

logger = logging.getLogger(__name__)

_BATCH_SIZE = 1000
_INTERVAL_SECONDS = 5.0
_MAX_WAITING = 10_000


class Ingester:
    """Writer of datasets that are already in the datastore to the registry.

    Parameters
    ----------
    dataset_types
        Definitions of the dataset types in the repository, by name.
    existing
        IDs of the datasets that were in the output run before.
    check
        Function that is called with the butler at the beginning of each transaction.  It may raise an
        `~spark_butler.errors.EngineError`.
    shared
        Whether other drivers may register the same datasets.

    Notes
    -----
    Ingest is idempotent: a registered dataset gets the records of the newest attempt.  A dataset that the
    newest attempt removed and did not write again is removed from the registry.  Each batch is one
    transaction.
    """

    def __init__(
        self,
        butler: Butler,
        dataset_types: Mapping[str, DatasetType],
        *,
        existing: Collection[uuid.UUID] = (),
        check: Callable[[Butler], None] | None = None,
        shared: bool = False,
    ):
        remember_last_time()
        insert_by_copy()
        self._butler = butler
        self._dataset_types = dataset_types
        self._existing = set(existing)
        self._check = check
        self._shared = shared
        self._refs: dict[uuid.UUID, DatasetRef] = {}
        self._records: dict[str, DatastoreRecordData] = {}
        self._stale: dict[uuid.UUID, DatasetRef] = {}
        self._ingested: set[uuid.UUID] = set()

    @property
    def n_ingested(self) -> int:
        """Number of datasets ingested so far, each counted once."""
        return len(self._ingested)

    @property
    def n_pending(self) -> int:
        """Number of added datasets that are not in the registry yet."""
        return len(self._refs.keys() | self._stale.keys())

    def add(
        self,
        predicted: Iterable[DatasetRef],
        written: Collection[uuid.UUID],
        records: Mapping[str, DatastoreRecordData],
        removed: Collection[uuid.UUID] = (),
    ) -> None:
        """Add the datasets that one attempt at a quantum has written or removed.

        Parameters
        ----------
        predicted
            All outputs that the quantum may have.
        written
            IDs of the outputs that are in the datastore.
        records
            Their datastore records, by name of the datastore.
        removed
            IDs of datasets of an earlier attempt that are no longer in the datastore.
        """
        touched = frozenset(written) | frozenset(removed)
        for ref in predicted:
            if ref.id in touched and ref.id in self._existing:
                self._stale[ref.id] = ref
            if ref.id in written:
                self._refs[ref.id] = self._repository_ref(ref)
        for name, data in records.items():
            # DatastoreRecordData.update would keep the oldest, but each attempt has its own file sizes.
            self._records.setdefault(name, DatastoreRecordData()).records.update(data.records)
        if len(self._refs) >= _BATCH_SIZE:
            self.flush()

    def _repository_ref(self, ref: DatasetRef) -> DatasetRef:
        """Return a reference with the storage class of the repository."""
        dataset_type = self._dataset_types[ref.datasetType.name]
        if ref.datasetType == dataset_type:
            return ref
        return DatasetRef(dataset_type, ref.dataId, run=ref.run, id=ref.id, conform=False)

    def flush(self) -> None:
        """Register all added datasets in one transaction; after an error they are kept for another call."""
        if not self._refs and not self._stale:
            return
        attempts = itertools.count()
        try:
            retry_database(
                "The registry can't be written to",
                lambda: self._write(again=self._shared or next(attempts) > 0),
                is_transient=self._is_transient,
            )
        except EngineError:
            raise
        except Exception as exc:
            raise EngineError(
                f"{self.n_pending} datasets that are in the datastore can't be registered: "
                f"{type(exc).__name__}: {brief(exc)}"
            ) from exc

    def _is_transient(self, exc: Exception) -> bool:
        """Return whether a retry may succeed after this error, which may be a race with another driver."""
        match exc:
            case EngineError():
                return False
            case sqlalchemy.exc.OperationalError() | sqlalchemy.exc.InterfaceError():
                return True
            case sqlalchemy.exc.IntegrityError() if self._shared:
                return True
            case sqlalchemy.exc.DBAPIError():
                return exc.connection_invalidated
            case sqlalchemy.exc.SQLAlchemyError():
                return isinstance(exc, sqlalchemy.exc.TimeoutError)
        return classify(exc) is FailureKind.IO

    def _write(self, *, again: bool) -> None:
        """Write to the registry once; ``again`` if an attempt that failed may have been committed."""
        new: defaultdict[tuple[DimensionGroup, str], list[DatasetRef]] = defaultdict(list)
        for ref in self._refs.values():
            if ref.id not in self._existing:
                new[ref.datasetType.dimensions, ref.run].append(ref)
        gone = [self._repository_ref(ref) for ref in self._stale.values() if ref.id not in self._refs]
        forgotten = {**self._stale, **self._refs} if again else self._stale
        datastore = datastore_of(self._butler)
        with self._butler.transaction():
            if self._check is not None:
                self._check(self._butler)
            if forgotten:
                datastore.forget(forgotten.values())
            if gone:
                self._butler.registry.removeDatasets(gone)
            for refs in new.values():
                import_datasets(self._butler, refs, assume_new=not again)
            datastore.import_records(self._records)
        self._ingested.update(self._refs)
        logger.debug("Ingested %d datasets.", len(self._refs))
        self._existing.update(self._refs)
        self._existing.difference_update(ref.id for ref in gone)
        self._refs = {}
        self._records = {}
        self._stale = {}


class IngestStream:
    """Thread that ingests while the run goes on.

    A driver that is killed leaves at most the datasets of the last few seconds out of the registry.
    """

    def __init__(
        self,
        butler: Butler,
        dataset_types: Mapping[str, DatasetType],
        *,
        existing: Collection[uuid.UUID] = (),
        check: Callable[[Butler], None] | None = None,
    ):
        self._butler = butler.clone()
        self._ingester = Ingester(self._butler, dataset_types, existing=existing, check=check)
        # Each item is the time of its arrival, and a call of `Ingester.add`.
        self._items: queue.Queue[tuple[float, Callable[[], None]] | None] = queue.Queue(_MAX_WAITING)
        self._oldest: float | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ingest, name="spark-butler-ingest", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def n_ingested(self) -> int:
        """Number of datasets ingested so far, each counted once."""
        return self._ingester.n_ingested

    @property
    def lag(self) -> float:
        """Time in seconds that the oldest dataset has waited; any thread may read it."""
        oldest = self._oldest
        if oldest is None:
            with self._items.mutex:
                first = self._items.queue[0] if self._items.queue else None
            oldest = None if first is None else first[0]
        return 0.0 if oldest is None else time.monotonic() - oldest

    def add(
        self,
        predicted: Collection[DatasetRef],
        written: Collection[uuid.UUID],
        records: Mapping[str, DatastoreRecordData],
        removed: Collection[uuid.UUID] = (),
    ) -> None:
        """Add what one attempt has written, as `Ingester.add`; raise if the ingest has failed for good."""
        self._raise_error()
        add = functools.partial(self._ingester.add, predicted, written, records, removed)
        self._send((time.monotonic(), add))

    def close(self) -> None:
        """Ingest all remaining datasets, and end the thread; raise if the ingest has failed for good."""
        self._send(None)
        self._thread.join()
        self._butler.close()
        self._raise_error()

    def _send(self, item: tuple[float, Callable[[], None]] | None) -> None:
        """Put an item into the queue, and wait if the queue is full."""
        while self._thread.is_alive():
            try:
                self._items.put(item, timeout=1.0)
                return
            except queue.Full:
                continue

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _ingest(self) -> None:
        """Ingest queued datasets until the end item arrives."""
        try:
            due: float | None = None
            while True:
                try:
                    item = self._items.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
                except queue.Empty:
                    self._ingester.flush()
                    due = self._oldest = None
                    continue
                if item is None:
                    break
                arrived, add = item
                self._oldest = self._oldest or arrived
                add()
                if not self._ingester.n_pending:
                    due = self._oldest = None
                elif due is None:
                    due = time.monotonic() + _INTERVAL_SECONDS
            self._ingester.flush()
            self._oldest = None
        except Exception as exc:  # noqa: BLE001  (the thread that waits raises it)
            self._error = exc
