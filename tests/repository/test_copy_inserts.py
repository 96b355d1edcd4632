"""Many rows go to PostgreSQL by COPY, and are the same rows."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from lsst.daf.butler import Butler, DatasetRef, DatasetType

from spark_butler.repository import copy_inserts
from spark_butler.repository.output_ingest import Ingester
from tests.support.mock_night import insert_dimensions
from tests.support.postgres import PostgresServer

_CCD = ("visit", "detector")


def test_rows_are_those_that_were_given(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_inserts.insert_by_copy()
    metadata = sqlalchemy.MetaData()
    kinds = [("n", sqlalchemy.BigInteger), ("u", sqlalchemy.Uuid), ("t", sqlalchemy.String)]
    kinds += [("d", sqlalchemy.DateTime), ("f", sqlalchemy.Float), ("j", sqlalchemy.JSON)]
    table = sqlalchemy.Table("kinds", metadata, *(sqlalchemy.Column(name, kind) for name, kind in kinds))
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    text = "tab\t\\N\n'é"
    rows: list[dict[str, Any]] = [
        {
            "n": n,
            "u": uuid.uuid4(),
            "t": text if n % 2 else None,
            "d": now,
            "f": n / 7,
            "j": {"a": n},
        }
        for n in range(50)
    ]
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://admin@127.0.0.1:{postgres.port}/lsst")
    monkeypatch.setattr(copy_inserts, "_FEWEST_ROWS", 50)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(table.insert(), rows)
        connection.execute(table.insert(), rows[:3])
        found = [dict(row._mapping) for row in connection.execute(table.select())]
    engine.dispose()
    assert found == rows + rows[:3]


def test_many_datasets_are_ingested_once(
    postgres_repo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    original = copy_inserts._copy

    def note(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        done = original(cursor, statement, parameters, context)
        used.extend([statement] if done else [])
        return done

    if sqlalchemy.event.contains(sqlalchemy.engine.Engine, "do_executemany", original):
        # The first that handles a statement is the last that is called.
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "do_executemany", original)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "do_executemany", note)
    try:
        with Butler.from_config(postgres_repo(), writeable=True) as butler:
            insert_dimensions(butler, range(1, 6), range(1, 11))
            kind = DatasetType(
                "note", ("visit", "detector"), "StructuredDataDict", universe=butler.dimensions
            )
            butler.registry.registerDatasetType(kind)
            butler.collections.register("some/run")
            ids = [
                butler.registry.expandDataId(instrument="Cam1", visit=visit, detector=detector)
                for visit in range(1, 6)
                for detector in range(1, 11)
            ]
            refs = [DatasetRef(kind, each, run="some/run") for each in ids]
            for _ in range(2):
                ingester = Ingester(butler, {"note": kind}, existing=())
                ingester._existing.update(ref.id for ref in butler.query_all_datasets("some/run"))
                ingester.add(refs, {ref.id for ref in refs}, {})
                ingester.flush()
            assert {ref.id for ref in butler.query_datasets("note", "some/run")} == {ref.id for ref in refs}
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "do_executemany", note)
    assert any("dataset" in statement for statement in used)
