"""The only module that uses private API of daf_butler.

Runs in the driver and in workers.  Tested with lsst-daf-butler 30.2026.4300;
``tests/test_seams.py`` has a test for each use.
"""

from __future__ import annotations

__all__ = [
    "MemoryBridge",
    "butler_config",
    "datastore_of",
    "export_records",
    "fetch_run_ids",
    "file_datastores",
    "find_transfer_files",
    "import_datasets",
    "record_table",
    "remember_last_time",
    "trust_files_without_records",
]

import uuid
from collections.abc import Iterable
from typing import Any

from astropy.time import Time
from lsst.daf.butler import Butler, ButlerConfig, DatasetRef, LimitedButler, MissingCollectionError
from lsst.daf.butler.datastore import Datastore, DatastoreTransaction
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.chainedDatastore import ChainedDatastore
from lsst.daf.butler.datastores.file_datastore.transfer import retrieve_file_transfer_records
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.direct_butler import DirectButler
from lsst.daf.butler.registry.bridge.ephemeral import EphemeralDatastoreRegistryBridge
from lsst.daf.butler.registry.interfaces import DatasetIdRef, OpaqueTableStorage
from lsst.daf.butler.time_utils import TimeConverter
from lsst.resources import ResourcePath


def datastore_of(butler: LimitedButler) -> Datastore:
    """Return the datastore of a butler."""
    return butler._datastore


def file_datastores(butler: LimitedButler) -> list[FileDatastore]:
    """List the datastores of a butler that keep files, in the order of the chain."""
    found: list[FileDatastore] = []
    waiting = [butler._datastore]
    while waiting:
        if isinstance(datastore := waiting.pop(0), FileDatastore):
            found.append(datastore)
        elif isinstance(datastore, ChainedDatastore):
            waiting[:0] = datastore.datastores
    return found


def export_records(butler: LimitedButler, refs: Iterable[DatasetRef]) -> dict[str, DatastoreRecordData]:
    """Return the datastore records of datasets, by name of the datastore."""
    return dict(butler._datastore.export_records(refs))


def butler_config(butler: DirectButler) -> ButlerConfig:
    """Return the configuration of a butler, including that of its registry."""
    return butler._config


def fetch_run_ids(butler: Butler, run: str) -> frozenset[uuid.UUID]:
    """Return the IDs of all datasets of a RUN collection, which need not exist."""
    try:
        return frozenset(butler.registry._fetch_run_dataset_ids(run))
    except MissingCollectionError:
        return frozenset()


def find_transfer_files(
    butler: LimitedButler, refs: Iterable[DatasetRef]
) -> dict[uuid.UUID, list[tuple[ResourcePath, StoredFileInfo]]]:
    """Return addresses and datastore records of datasets' files by ID, as `Butler.transfer_from` finds them.

    Datasets without files are left out.  A client of a Butler server returns addresses that require the
    user's token.
    """
    records = retrieve_file_transfer_records(butler._file_transfer_source, refs, {})
    return {
        dataset_id: [(each.location.uri, each.file_info) for each in found]
        for dataset_id, found in records.items()
    }


def import_datasets(butler: Butler, refs: Iterable[DatasetRef], *, assume_new: bool) -> None:
    """Register datasets of one RUN and the same dimensions, with their own IDs."""
    butler.registry._importDatasets(refs, expand=False, assume_new=assume_new)


def record_table(datastore: FileDatastore) -> OpaqueTableStorage:
    """Return the table of a datastore's records."""
    return datastore._table


def trust_files_without_records(datastore: Datastore) -> None:
    """Make a datastore look for the file of a dataset that has no record, as quantum-backed butlers do."""
    datastore._set_trust_mode(True)


def remember_last_time() -> None:
    """Make daf_butler's converter of times cache the last time.

    All datasets of a batch have the same ingest date.  Converting it for each of
    them takes three quarters of the time of the batch.
    """
    converter = TimeConverter()
    convert = converter.astropy_to_nsec
    if getattr(convert, "__name__", "") == "remembering":
        return
    last: tuple[Time | None, int] = (None, 0)

    def remembering(astropy_time: Time) -> int:
        nonlocal last
        # Both values are read at once, because another thread may replace them.
        time, nsec = last
        if astropy_time is not time:
            nsec = convert(astropy_time)
            last = astropy_time, nsec
        return nsec

    converter.astropy_to_nsec = remembering  # type: ignore[method-assign]


class MemoryBridge(EphemeralDatastoreRegistryBridge):
    """List of the dataset IDs of a datastore; IDs can be moved to trash outside of transactions."""

    def moveToTrash(self, refs: Iterable[DatasetIdRef], transaction: DatastoreTransaction | None) -> None:
        # Docstring inherited.
        known = [ref for ref in refs if ref in self]
        if transaction is not None:
            super().moveToTrash(known, transaction)
        else:
            self._trashedIds.update(ref.id for ref in known)

    def check(self, datasets: Iterable[Any]) -> set[Any]:
        # Docstring inherited.
        return (self._datasetIds - self._trashedIds).intersection(datasets)
