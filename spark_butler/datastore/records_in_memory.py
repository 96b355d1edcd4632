"""Datastore records of a quantum-backed butler in memory, by the interfaces that daf_butler has for them.

Its own are tables of an SQLite database in memory, made anew for each butler;
to fill and ask those takes milliseconds a quantum.
"""

from __future__ import annotations

__all__ = ["MemoryBridges", "MemoryTables"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lsst.daf.butler import DimensionUniverse, ddl
from lsst.daf.butler.datastore import DatastoreTransaction
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.daf.butler.registry.bridge.ephemeral import EphemeralDatastoreRegistryBridge
from lsst.daf.butler.registry.interfaces import (
    Database,
    DatasetIdRef,
    DatasetRecordStorageManager,
    DatastoreRegistryBridge,
    DatastoreRegistryBridgeManager,
    OpaqueTableStorage,
    OpaqueTableStorageManager,
    StaticTablesContext,
    VersionTuple,
)

type _Row = Mapping[str, Any]

_ID = "dataset_id"


class _MemoryTable(OpaqueTableStorage):
    """A table, by ID of the dataset and the rest of the primary key.

    Parameters
    ----------
    name
        Name of the table.
    spec
        Its columns; one of the primary key is the ID of the dataset.
    """

    def __init__(self, name: str, spec: ddl.TableSpec):
        super().__init__(name)
        self._others = tuple(field.name for field in spec.fields if field.primaryKey and field.name != _ID)
        self._rows: dict[Any, dict[tuple[Any, ...], _Row]] = {}

    def insert(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        # Docstring inherited.
        for row in data:
            if self._place(row) in self._rows.get(row[_ID], ()):
                raise ConflictingDefinitionError(
                    f"There is a datastore record of dataset {row[_ID]} in table {self.name!r} already."
                )
            self._add(row, transaction)

    def ensure(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        # Docstring inherited.
        for row in data:
            if self._place(row) not in self._rows.get(row[_ID], ()):
                self._add(row, transaction)

    def replace(self, *data: dict[str, Any], transaction: DatastoreTransaction | None = None) -> None:
        # Docstring inherited.
        for row in data:
            self._add(row, transaction)

    def fetch(self, **where: Any) -> Iterator[_Row]:
        # Docstring inherited.
        for batch in self.fetch_batches(**where):
            yield from batch

    def fetch_batches(self, **where: Any) -> Iterator[Sequence[_Row]]:
        # Docstring inherited.
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
        # Docstring inherited.
        for where in rows:
            for found in list(self.fetch(**where)):
                self._remove(found)

    def _place(self, row: _Row) -> tuple[Any, ...]:
        """Find where a row belongs among those of its dataset."""
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
    """Compare as the tables of daf_butler do."""
    if isinstance(wanted, list | tuple | set):
        return value in wanted
    if isinstance(wanted, str) and wanted.endswith("%"):
        return isinstance(value, str) and value.startswith(wanted[:-1])
    return bool(value == wanted)


class MemoryTables(OpaqueTableStorageManager):
    """Tables for datastore records, in memory."""

    def __init__(self, *, registry_schema_version: VersionTuple | None = None):
        super().__init__(registry_schema_version=registry_schema_version)
        self._tables: dict[str, _MemoryTable] = {}

    @classmethod
    def initialize(
        cls, db: Database, context: StaticTablesContext, registry_schema_version: VersionTuple | None = None
    ) -> OpaqueTableStorageManager:
        # Docstring inherited.
        return cls(registry_schema_version=registry_schema_version)

    def clone(self, db: Database) -> OpaqueTableStorageManager:
        # Docstring inherited.
        return self

    def get(self, name: str) -> OpaqueTableStorage | None:
        # Docstring inherited.
        return self._tables.get(name)

    def register(self, name: str, spec: ddl.TableSpec) -> OpaqueTableStorage:
        # Docstring inherited.
        if name not in self._tables:
            self._tables[name] = _MemoryTable(name, spec)
        return self._tables[name]

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:
        # Docstring inherited.
        return []


class _MemoryBridge(EphemeralDatastoreRegistryBridge):
    """What a datastore has, which may also be moved to trash outside of transactions."""

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


class MemoryBridges(DatastoreRegistryBridgeManager):
    """What datastores have, in memory."""

    def __init__(
        self,
        *,
        opaque: OpaqueTableStorageManager,
        universe: DimensionUniverse,
        registry_schema_version: VersionTuple | None = None,
    ):
        super().__init__(opaque=opaque, universe=universe, registry_schema_version=registry_schema_version)
        self._bridges: dict[str, _MemoryBridge] = {}

    @classmethod
    def initialize(
        cls,
        db: Database,
        context: StaticTablesContext,
        *,
        opaque: OpaqueTableStorageManager,
        datasets: type[DatasetRecordStorageManager],
        universe: DimensionUniverse,
        registry_schema_version: VersionTuple | None = None,
    ) -> DatastoreRegistryBridgeManager:
        # Docstring inherited.
        return cls(opaque=opaque, universe=universe, registry_schema_version=registry_schema_version)

    def clone(self, *, db: Database, opaque: OpaqueTableStorageManager) -> DatastoreRegistryBridgeManager:
        # Docstring inherited.
        return self

    def refresh(self) -> None:
        # Docstring inherited.
        return None

    def register(self, name: str, *, ephemeral: bool = False) -> DatastoreRegistryBridge:
        # Docstring inherited.
        return self._bridges.setdefault(name, _MemoryBridge(name))

    def findDatastores(self, ref: DatasetIdRef) -> Iterable[str]:
        # Docstring inherited.
        return [name for name, bridge in self._bridges.items() if ref in bridge]

    @classmethod
    def currentVersions(cls) -> list[VersionTuple]:
        # Docstring inherited.
        return []
