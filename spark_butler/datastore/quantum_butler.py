"""Quantum-backed butlers whose datastore records are in memory.

Runs in workers and their children.  daf_butler would create an SQLite database in
memory for the records of each butler, and filling and querying it takes
milliseconds per quantum.  Here the records are in dictionaries.
"""

from __future__ import annotations

__all__ = ["MemoryBridges", "MemoryTables", "QuantumButlers", "read_datastore"]

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lsst.daf.butler import (
    ButlerConfig,
    Config,
    DatasetType,
    DimensionUniverse,
    QuantumBackedButler,
    StorageClassFactory,
    ddl,
)
from lsst.daf.butler.datastore import Datastore, DatastoreTransaction
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastores.chainedDatastore import ChainedDatastore
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.daf.butler.registry.interfaces import (
    Database,
    DatasetIdRef,
    DatastoreRegistryBridge,
    DatastoreRegistryBridgeManager,
    OpaqueTableStorage,
    OpaqueTableStorageManager,
    VersionTuple,
)

from .._daf_butler import MemoryBridge, trust_files_without_records

_ID = "dataset_id"

type _Row = Mapping[str, Any]


class QuantumButlers:
    """Opens quantum-backed butlers of one datastore, which is set up once for a worker and its children."""

    def __init__(self) -> None:
        self._datastore: tuple[Config, DimensionUniverse, Datastore] | None = None

    def prepare(self, config: Config, universe: DimensionUniverse) -> Datastore:
        """Set up a datastore without records, or return the last one if its configuration is the same object.

        Reading the configuration takes 30 ms.  A worker does it once, before it forks children.
        """
        last = self._datastore
        if last is not None and last[0] is config and last[1] is universe:
            return last[2]
        butler_config = ButlerConfig(config)
        datastore = read_datastore(butler_config, universe)
        # A singleton.
        StorageClassFactory().addFromConfig(butler_config)
        self._datastore = config, universe, datastore
        return datastore

    def open(
        self,
        config: Config,
        universe: DimensionUniverse,
        *,
        inputs: Iterable[uuid.UUID],
        outputs: Iterable[uuid.UUID],
        records: Mapping[str, DatastoreRecordData],
        dataset_types: Mapping[str, DatasetType],
    ) -> QuantumBackedButler:
        """Open a butler as `lsst.daf.butler.QuantumBackedButler.from_predicted` does, but faster.

        It may read the ``inputs`` and write the ``outputs``.
        """
        datastore = self.prepare(config, universe)
        if _is_in_files(datastore):
            datastore = datastore.clone(_make_bridges(universe))
        else:
            # Clones of an in-memory datastore would share its datasets.
            datastore = read_datastore(ButlerConfig(config), universe)
        trust_files_without_records(datastore)
        datastore.import_records(records)
        return QuantumBackedButler(
            inputs,
            outputs,
            universe,
            datastore,
            storageClasses=StorageClassFactory(),
            dataset_types=dataset_types,
        )


def read_datastore(config: ButlerConfig, universe: DimensionUniverse) -> Datastore:
    """Build a datastore from its configuration, with records in memory."""
    return Datastore.fromConfig(config, _make_bridges(universe), config.get("root", config.configDir))


def _is_in_files(datastore: Datastore) -> bool:
    """Return whether all datasets of a datastore are in files."""
    if isinstance(datastore, ChainedDatastore):
        return all(map(_is_in_files, datastore.datastores))
    return isinstance(datastore, FileDatastore)


def _make_bridges(universe: DimensionUniverse) -> MemoryBridges:
    return MemoryBridges(opaque=MemoryTables(), universe=universe)


class _MemoryTable(OpaqueTableStorage):
    """Table whose rows are found by dataset ID and the other columns of the primary key."""

    def __init__(self, name: str, spec: ddl.TableSpec):
        super().__init__(name)
        self._others = tuple(field.name for field in spec.fields if field.primaryKey and field.name != _ID)
        self._rows: dict[Any, dict[tuple[Any, ...], _Row]] = {}

    def insert(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        for row in data:
            if self._place(row) in self._rows.get(row[_ID], ()):
                raise ConflictingDefinitionError(
                    f"There is a datastore record of dataset {row[_ID]} in table {self.name!r} already."
                )
            self._add(row, transaction)

    def ensure(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        for row in data:
            if self._place(row) not in self._rows.get(row[_ID], ()):
                self._add(row, transaction)

    def replace(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        for row in data:
            self._add(row, transaction)

    def fetch(self, **where: Any) -> Iterator[_Row]:
        for batch in self.fetch_batches(**where):
            yield from batch

    def fetch_batches(self, **where: Any) -> Iterator[Sequence[_Row]]:
        if _ID in where:
            wanted = where.pop(_ID)
            ids = set(wanted) if isinstance(wanted, list | tuple | set) else (wanted,)
            rows = [row for each in ids for row in self._rows.get(each, {}).values()]
        else:
            rows = [row for by_place in list(self._rows.values()) for row in by_place.values()]
        if where:
            rows = [row for row in rows if all(_matches(row[name], value) for name, value in where.items())]
        yield rows

    def delete(self, columns: Iterable[str], *rows: dict[str, Any]) -> None:
        for where in rows:
            for found in list(self.fetch(**where)):
                self._remove(found)

    def _place(self, row: _Row) -> tuple[Any, ...]:
        """Return the key of a row among the rows of its dataset."""
        return tuple(row[name] for name in self._others)

    def _add(self, row: _Row, transaction: DatastoreTransaction | None) -> None:
        place = self._place(row)
        by_place = self._rows.setdefault(row[_ID], {})
        before = by_place.get(place)
        by_place[place] = row
        if transaction is not None:
            undo, what = (self._remove, row) if before is None else (by_place.update, {place: before})
            transaction.registerUndo("insert", undo, what)

    def _remove(self, row: _Row) -> None:
        by_place = self._rows.get(row[_ID], {})
        by_place.pop(self._place(row), None)
        if not by_place:
            self._rows.pop(row[_ID], None)


def _matches(value: Any, wanted: Any) -> bool:
    """Compare a value with a wanted value, list of values or prefix, as daf_butler's tables do."""
    if isinstance(wanted, list | tuple | set):
        return value in wanted
    if isinstance(wanted, str) and wanted.endswith("%"):
        return isinstance(value, str) and value.startswith(wanted[:-1])
    return bool(value == wanted)


class MemoryTables(OpaqueTableStorageManager):
    """Tables for datastore records, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[str, _MemoryTable] = {}

    @classmethod
    def initialize(cls, *args: Any, **kwargs: Any) -> OpaqueTableStorageManager:
        return cls()

    def clone(self, db: Database) -> OpaqueTableStorageManager:
        return self

    def get(self, name: str) -> OpaqueTableStorage | None:
        return self._tables.get(name)

    def register(self, name: str, spec: ddl.TableSpec) -> OpaqueTableStorage:
        if name not in self._tables:
            self._tables[name] = _MemoryTable(name, spec)
        return self._tables[name]

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:
        return []


class MemoryBridges(DatastoreRegistryBridgeManager):
    """Lists of the dataset IDs of datastores, in memory."""

    def __init__(self, *, opaque: OpaqueTableStorageManager, universe: DimensionUniverse):
        super().__init__(opaque=opaque, universe=universe)
        self._bridges: dict[str, MemoryBridge] = {}

    @classmethod
    def initialize(cls, *args: Any, **kwargs: Any) -> DatastoreRegistryBridgeManager:
        raise NotImplementedError("Only a registry initializes managers.")

    def clone(self, *, db: Database, opaque: OpaqueTableStorageManager) -> DatastoreRegistryBridgeManager:
        return self

    def refresh(self) -> None:
        return None

    def register(self, name: str, *, ephemeral: bool = False) -> DatastoreRegistryBridge:
        return self._bridges.setdefault(name, MemoryBridge(name))

    def findDatastores(self, ref: DatasetIdRef) -> Iterable[str]:
        return [name for name, bridge in self._bridges.items() if ref in bridge]

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:
        return []
