"""The servers of the chaos runs that can be killed: object stores and registries."""

from __future__ import annotations

__all__ = ["CephS3", "KillableS3", "PostgresRegistry", "Registry", "SqliteRegistry"]

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from botocore.exceptions import BotoCoreError, ClientError
from lsst.daf.butler import Butler, Config

from spark_butler.demo.repository import make_repository
from spark_butler.demo.s3server import EmbeddedS3, wait_until
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.stores import Programs, missing, serve_ceph

_ROLE = "chaos"
_READY_SECONDS = 120


class KillableS3(EmbeddedS3):
    """SeaweedFS, which can be killed and started again on the same data."""

    PARTS: tuple[str, ...] = ("",)
    """Parts that can be killed alone."""

    def kill(self, part: str) -> None:
        """Kill it, or a part of it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again, with the same credentials."""
        self.stop()
        self.start()

    def wait(self) -> None:
        """Wait until it answers after a restart."""
        if not wait_until(self._lists_buckets, _READY_SECONDS):
            raise TimeoutError(f"The object store gives no answer after {_READY_SECONDS} s.")

    def _lists_buckets(self) -> bool:
        with contextlib.suppress(BotoCoreError, ClientError):
            return bool(self.client().list_buckets())
        return False


class CephS3(KillableS3):
    """Ceph with its gateway."""

    PARTS = ("rgw", "rgw", "osd", "mon osd rgw")

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._folder = folder
        self._programs: Programs | None = None
        self._endpoint = ""

    @property
    def endpoint_url(self) -> str:
        # Docstring inherited.
        return self._endpoint

    def start(self) -> None:
        # Docstring inherited.
        if reason := missing("ceph"):
            raise SystemExit(reason)
        shutil.rmtree(self._folder, ignore_errors=True)
        store, self._programs = self._cleanup.enter_context(serve_ceph(self._folder))
        self._endpoint = store.endpoint
        self._keys = store.key, store.secret

    def kill(self, part: str) -> None:
        # Docstring inherited.
        assert self._programs is not None
        self._programs.kill(*part.split())

    def restart(self) -> None:
        # Docstring inherited.
        assert self._programs is not None
        self._programs.restart("mon", "osd", "rgw")


class Registry(Protocol):
    """Where the registries of all copies of a repository are."""

    def make(self, repo: Path, datastore: str) -> None:
        """Make a repository."""

    def copy(self, repo: Path, target: Path) -> None:
        """Make the registry of a copied repository."""

    def ask(self, repo: Path, sql: str) -> list[tuple[str, ...]]:
        """Return rows of a registry, without disturbing the driver that uses it."""

    def change(self, repo: Path, sql: str) -> None:
        """Change a registry that no driver uses yet."""

    def remove(self, repo: Path) -> None:
        """Remove a repository."""

    def kill(self) -> None:
        """Kill the server."""

    def restart(self) -> None:
        """Start it again."""


class SqliteRegistry:
    """SQLite files, which are beside the configuration of each repository."""

    def make(self, repo: Path, datastore: str) -> None:
        # Docstring inherited.
        make_repository(repo, datastore)

    def copy(self, repo: Path, target: Path) -> None:
        # Docstring inherited.
        shutil.copytree(repo, target)

    def ask(self, repo: Path, sql: str) -> list[tuple[str, ...]]:
        # Docstring inherited.
        # The driver may have it open; nothing here may lock it.
        address = f"file:{repo / 'gen3.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=60)) as connection:
            return [tuple(map(str, row)) for row in connection.execute(sql).fetchall()]

    def change(self, repo: Path, sql: str) -> None:
        # Docstring inherited.
        with contextlib.closing(sqlite3.connect(repo / "gen3.sqlite3")) as connection, connection:
            connection.execute(sql)

    def remove(self, repo: Path) -> None:
        # Docstring inherited.
        shutil.rmtree(repo, ignore_errors=True)

    def kill(self) -> None:
        # Docstring inherited.
        raise TypeError("SQLite has no server.")

    def restart(self) -> None:
        # Docstring inherited.
        raise TypeError("SQLite has no server.")


class PostgresRegistry:
    """A PostgreSQL server with a database for each repository, used by a role that owns only a schema."""

    def __init__(self, server: PostgresServer):
        self._server = server

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[PostgresRegistry]:
        """Start the server, to which the environment then points."""
        if (programs := find_postgres()) is None:
            raise SystemExit("PostgreSQL is not installed (Debian: postgresql).")
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.chmod(0o755)
        with PostgresServer.serve(folder, programs) as server:
            server.add_schema(_ROLE)
            credentials = folder.with_name("db-auth.yaml")
            server.write_credentials(credentials, _ROLE, database="*")
            os.environ["LSST_DB_AUTH"] = str(credentials)
            yield cls(server)

    @staticmethod
    def _database(repo: Path) -> str:
        return f"{repo.parent.name}_{repo.name}".replace("-", "_")

    def _address(self, repo: Path) -> str:
        return f"postgresql+psycopg://{_ROLE}@127.0.0.1:{self._server.port}/{self._database(repo)}"

    def _add(self, repo: Path, template: str) -> None:
        """Add a database that is a copy of another, whose connections are ended first."""
        name = self._database(repo)
        self._server.ask(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", database="postgres")
        self._server.ask(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'",
            database="postgres",
        )
        self._server.ask(f"CREATE DATABASE {name} TEMPLATE {template}", database="postgres")

    def make(self, repo: Path, datastore: str) -> None:
        # Docstring inherited.
        self._add(repo, "lsst")
        registry = {"db": self._address(repo), "namespace": _ROLE}
        Butler.makeRepo(
            repo, Config({"datastore": {"root": datastore}, "registry": registry}), forceConfigRoot=False
        )

    def copy(self, repo: Path, target: Path) -> None:
        # Docstring inherited.
        shutil.copytree(repo, target)
        self._add(target, self._database(repo))
        config = target / "butler.yaml"
        config.write_text(config.read_text().replace(self._address(repo), self._address(target)))

    def ask(self, repo: Path, sql: str) -> list[tuple[str, ...]]:
        # Docstring inherited.
        text = self._server.ask(f"SET search_path TO {_ROLE}; {sql}", database=self._database(repo))
        return [tuple(line.split("|")) for line in text.splitlines()]

    def change(self, repo: Path, sql: str) -> None:
        # Docstring inherited.
        self.ask(repo, sql)

    def remove(self, repo: Path) -> None:
        # Docstring inherited.
        self._server.ask(f"DROP DATABASE {self._database(repo)} WITH (FORCE)", database="postgres")
        shutil.rmtree(repo, ignore_errors=True)

    def kill(self) -> None:
        # Docstring inherited.
        self._server.kill()

    def restart(self) -> None:
        # Docstring inherited.
        self._server.start()
