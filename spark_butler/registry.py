"""Batch ingest of what workers have written, by the driver, the only one to touch the registry."""

from __future__ import annotations

__all__ = ["Ingester", "fetch_ids"]

import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionGroup, MissingCollectionError
from lsst.daf.butler.datastore.record_data import DatastoreRecordData

logger = logging.getLogger(__name__)


class Ingester:
    """Puts datasets that are already in the datastore into the registry.

    Parameters
    ----------
    butler
        Writeable butler of the repository.
    dataset_types
        Definitions of the dataset types in the repository, by name.
    existing
        IDs of the datasets that were in the output run before.
    batch_size
        Number of datasets at which a batch is written.

    Notes
    -----
    Ingest is idempotent: a dataset that is there already gets the records of
    the newest attempt, and one that the newest attempt removed and did not
    make again is removed from the registry.  Each batch is one transaction.
    """

    def __init__(
        self,
        butler: Butler,
        dataset_types: Mapping[str, DatasetType],
        *,
        existing: Collection[uuid.UUID] = (),
        batch_size: int = 10_000,
    ):
        self._butler = butler
        self._dataset_types = dataset_types
        self._existing = set(existing)
        self._batch_size = batch_size
        self._refs: dict[uuid.UUID, DatasetRef] = {}
        self._records: dict[str, DatastoreRecordData] = {}
        self._stale: dict[uuid.UUID, DatasetRef] = {}
        self._ingested: set[uuid.UUID] = set()

    @property
    def n_ingested(self) -> int:
        """Number of datasets ingested so far, each counted once."""
        return len(self._ingested)

    def add(
        self,
        predicted: Iterable[DatasetRef],
        written: Collection[uuid.UUID],
        records: Mapping[str, DatastoreRecordData],
        removed: Collection[uuid.UUID] = (),
    ) -> None:
        """Take what one attempt at a quantum has left.

        Parameters
        ----------
        predicted
            All outputs that the quantum may have.
        written
            IDs of those that are in the datastore.
        records
            Their datastore records, by name of the datastore.
        removed
            IDs of those of an earlier attempt that are in the datastore no
            more.
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
        if len(self._refs) >= self._batch_size:
            self.flush()

    def _repository_ref(self, ref: DatasetRef) -> DatasetRef:
        """Give a reference the storage class of the repository."""
        return DatasetRef(self._dataset_types[ref.datasetType.name], ref.dataId, run=ref.run, id=ref.id)

    def flush(self) -> None:
        """Write what was taken so far, in one transaction."""
        if not self._refs and not self._stale:
            return
        new: defaultdict[tuple[DimensionGroup, str], list[DatasetRef]] = defaultdict(list)
        for ref in self._refs.values():
            if ref.id not in self._existing:
                new[ref.datasetType.dimensions, ref.run].append(ref)
        gone = [self._repository_ref(ref) for ref in self._stale.values() if ref.id not in self._refs]
        with self._butler.transaction():
            if self._stale:
                self._butler._datastore.forget(self._stale.values())
            if gone:
                self._butler.registry.removeDatasets(gone)
            for refs in new.values():
                self._butler.registry._importDatasets(refs, expand=False, assume_new=True)
            self._butler._datastore.import_records(self._records)
        self._ingested.update(self._refs)
        logger.debug("Ingested %d datasets.", len(self._refs))
        self._existing.update(self._refs)
        self._existing.difference_update(ref.id for ref in gone)
        self._refs = {}
        self._records = {}
        self._stale = {}


def fetch_ids(butler: Butler, run: str) -> frozenset[uuid.UUID]:
    """Find out which datasets are in a run.

    Parameters
    ----------
    butler
        Butler of the repository.
    run
        Name of the run, which need not exist.

    Returns
    -------
    ids
        Their IDs.
    """
    try:
        return frozenset(butler.registry._fetch_run_dataset_ids(run))
    except MissingCollectionError:
        return frozenset()
