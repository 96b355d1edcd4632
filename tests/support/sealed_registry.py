"""A registry that refuses every write."""

from __future__ import annotations

__all__ = ["sealed_registry"]

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import sqlalchemy
from lsst.daf.butler.registry.databases.sqlite import SqliteDatabase


@contextlib.contextmanager
def sealed_registry() -> Iterator[None]:
    """Open SQLite registries so that they can be read only, whatever the user's rights."""
    make_engine = SqliteDatabase.makeEngine.__func__  # type: ignore[attr-defined]

    def make_sealed(cls: Any, uri: Any, *, filename: str | None = None, writeable: bool = True) -> Any:
        engine = make_engine(cls, uri, filename=filename, writeable=writeable)

        @sqlalchemy.event.listens_for(engine, "connect")
        def seal(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA query_only = ON")

        return engine

    with mock.patch.object(SqliteDatabase, "makeEngine", classmethod(make_sealed)):
        yield
