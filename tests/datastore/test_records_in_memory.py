"""Datastore records in memory behave like those that daf_butler keeps in a database."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from lsst.daf.butler import DimensionUniverse
from lsst.daf.butler.datastore import DatastoreTransaction
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.daf.butler.registry.databases.sqlite import SqliteDatabase
from lsst.daf.butler.registry.interfaces import DatasetIdRef, FakeDatasetRef, OpaqueTableStorage
from lsst.daf.butler.registry.opaque import ByNameOpaqueTableStorageManager
from sqlalchemy.exc import IntegrityError

from spark_butler.datastore.quantum_butler import MemoryBridges, MemoryTables

# As daf_butler writes that there is no component.
_WHOLE = "__NULL_STRING__"
_IDS = [uuid.UUID(int=n) for n in range(5)]


@pytest.fixture(params=[MemoryTables, ByNameOpaqueTableStorageManager])
def table(request: pytest.FixtureRequest) -> OpaqueTableStorage:
    db = SqliteDatabase.fromUri("sqlite:///:memory:", origin=0)
    with db.declareStaticTables(create=True) as context:
        manager = request.param.initialize(db, context)
    registered: OpaqueTableStorage = manager.register("file_datastore_records", FileDatastore.makeTableSpec())
    return registered


def _row(number: int, component: str = _WHOLE, path: str = "") -> dict[str, Any]:
    return {
        "dataset_id": _IDS[number],
        "path": path or f"a/{number}.fits",
        "formatter": "some.Formatter",
        "storage_class": "Exposure",
        "component": component,
        "checksum": None,
        "file_size": 100 + number,
    }


def _found(rows: Iterable[Any]) -> list[tuple[int, str, int]]:
    return sorted((row["dataset_id"].int, row["component"], row["file_size"]) for row in rows)


def test_rows_are_found_by_column_values(table: OpaqueTableStorage) -> None:
    table.insert(_row(0), _row(1, "image"), _row(1, "mask"), _row(2, path="zip.zip#unzip=x"))
    table.insert(_row(3, path="zip.zip#unzip=y"))
    assert _found(table.fetch(dataset_id=_IDS[0])) == [(0, _WHOLE, 100)]
    assert _found(table.fetch(dataset_id=_IDS[4])) == []
    assert _found(table.fetch(dataset_id=[_IDS[1], _IDS[2], _IDS[4]])) == [
        (1, "image", 101),
        (1, "mask", 101),
        (2, _WHOLE, 102),
    ]
    assert _found(table.fetch(dataset_id=_IDS[1], component="mask")) == [(1, "mask", 101)]
    assert _found(table.fetch(path="a/0.fits")) == [(0, _WHOLE, 100)]
    assert _found(table.fetch(path="zip.zip#%")) == [(2, _WHOLE, 102), (3, _WHOLE, 103)]
    assert len(_found(table.fetch())) == 5
    batches = list(table.fetch_batches(dataset_id={_IDS[0], _IDS[2]}))
    assert _found(row for batch in batches for row in batch) == [(0, _WHOLE, 100), (2, _WHOLE, 102)]


def test_duplicate_rows_are_refused_ignored_or_replaced(table: OpaqueTableStorage) -> None:
    table.insert(_row(0))
    with pytest.raises((ConflictingDefinitionError, IntegrityError)):
        table.insert(_row(0))
    table.ensure(_row(0) | {"file_size": 1}, _row(1))
    assert _found(table.fetch()) == [(0, _WHOLE, 100), (1, _WHOLE, 101)]
    table.replace(_row(0) | {"file_size": 1})
    assert _found(table.fetch()) == [(0, _WHOLE, 1), (1, _WHOLE, 101)]


def test_rows_are_deleted(table: OpaqueTableStorage) -> None:
    table.insert(_row(0), _row(1, "image"), _row(1, "mask"), _row(2))
    table.delete(["dataset_id"], {"dataset_id": _IDS[1]}, {"dataset_id": _IDS[4]})
    assert _found(table.fetch()) == [(0, _WHOLE, 100), (2, _WHOLE, 102)]
    table.delete(["dataset_id", "component"], {"dataset_id": _IDS[0], "component": "image"})
    assert _found(table.fetch(dataset_id=_IDS[0])) == [(0, _WHOLE, 100)]
    table.insert(_row(1, "image"))
    assert len(_found(table.fetch())) == 3


def test_failed_transaction_rolls_rows_back() -> None:
    table = MemoryTables().register("t", FileDatastore.makeTableSpec())
    table.insert(_row(0))
    transaction = DatastoreTransaction()
    table.insert(_row(1), transaction=transaction)
    table.replace(_row(0) | {"file_size": 1}, transaction=transaction)
    transaction.rollback()
    assert _found(table.fetch()) == [(0, _WHOLE, 100)]


def test_datastore_records_and_trash() -> None:
    tables = MemoryTables()
    bridges = MemoryBridges(opaque=tables, universe=DimensionUniverse())
    bridge = bridges.register("store")
    table = tables.register("t", FileDatastore.makeTableSpec())
    refs: list[DatasetIdRef] = [FakeDatasetRef(each) for each in _IDS]
    bridge.insert(refs[:3])
    table.insert(*(_row(n) for n in range(3)))
    assert bridge.check(_IDS) == set(_IDS[:3])
    assert list(bridges.findDatastores(refs[0])) == ["store"]
    assert list(bridges.findDatastores(refs[4])) == []
    bridge.moveToTrash([refs[0], refs[1], refs[4]], transaction=None)
    assert bridge.check(_IDS) == {_IDS[2]}

    class Record:
        @classmethod
        def from_record(cls, record: Any) -> str:
            return str(record["path"])

    with bridge.emptyTrash(table, Record, "path", {_IDS[0]}) as (found, kept):  # type: ignore[arg-type]
        paths: list[tuple[Any, Any]] = [(ref.id, info) for ref, info in found]
        assert paths == [(_IDS[0], "a/0.fits")]
        assert not kept
    assert _found(table.fetch()) == [(1, _WHOLE, 101), (2, _WHOLE, 102)]
    bridge.insert([refs[0]])
    assert bridge.check(_IDS) == {_IDS[0], _IDS[2]}
