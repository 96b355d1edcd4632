"""Fixtures for tests of the engine: repositories, backends, a cluster."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lsst.daf.butler import Butler

from spark_butler.driver.backend import Backend
from spark_butler.driver.serial import SerialBackend
from tests.support.clusters import Cluster
from tests.support.engine_harness import Repo
from tests.support.mock_night import insert_dimensions
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.scenarios import ScenarioRepo

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    """Log as the commands do, so that the log datasets have something in them."""
    caplog.set_level(logging.INFO, logger="lsst")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with dimension records for two visits by two detectors, to be copied."""
    root = tmp_path_factory.mktemp("template") / "repo"
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        insert_dimensions(butler)
    return root


@pytest.fixture
def make_repo(template: Path, tmp_path: Path, log_level: None) -> Callable[[str], Repo]:
    """Make a repository on this machine's disk: ``make_repo("name")``."""
    return lambda name: Repo(tmp_path / name, template)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server.

    It has a user of its own if the tests run as root.  Each start of pytest hides the folder of all
    temporary folders from other users.
    """
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    if (programs := find_postgres()) is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with (
        tempfile.TemporaryDirectory(prefix="spark-butler-postgres-") as folder,
        PostgresServer.serve(Path(folder, "server"), programs) as server,
    ):
        yield server


@pytest.fixture
def postgres_repo(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Make a repository in PostgreSQL: ``postgres_repo()``; its role owns only the schema of the registry."""
    name = f"r{uuid.uuid4().hex[:10]}"
    postgres.write_credentials(tmp_path / "db-auth.yaml", name)
    monkeypatch.setenv("LSST_DB_AUTH", str(tmp_path / "db-auth.yaml"))
    return lambda datastore=None: postgres.make_repo(tmp_path / "repo", name, datastore)


@pytest.fixture(params=["sqlite", "postgres"])
def registry_repo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty repository on a local disk, with each kind of registry in turn."""
    if request.param == "postgres":
        return Path(request.getfixturevalue("postgres_repo")())
    Butler.makeRepo(tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture(params=["serial", "spark"])
def backend(request: pytest.FixtureRequest, log_level: None) -> Iterator[Backend]:
    """Each backend in turn."""
    if request.param == "serial":
        yield SerialBackend()
    else:
        yield request.getfixturevalue("spark_backend")


@pytest.fixture
def spark_backend(spark: SparkSession, log_level: None) -> Iterator[Backend]:
    """The backend on the one local Spark session."""
    from spark_butler.spark.backend import SparkBackend

    backend = SparkBackend(spark)
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A standalone Spark cluster with two workers of one core on this machine."""
    with Cluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def scenario() -> Iterator[ScenarioRepo]:
    """An empty repository for a pipeline."""
    with ScenarioRepo.make() as scenario:
        yield scenario
