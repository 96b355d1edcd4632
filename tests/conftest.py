"""Fixtures that all tests share: a real S3 server, repositories on it, one Spark session, real data."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import logging
import os
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from spark_butler.demo.s3server import EmbeddedS3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Before numpy is imported anywhere. The datastore's cache would hide what is really in the object store.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ["DAF_BUTLER_CACHE_EXPIRATION_MODE"] = "disabled"
# No JVM here lives long enough for Java's full compiler to pay; those of spark-submit are meant, too.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
# Workers and other processes import this package and the tasks of `tests.support`, too.
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))

pytest.register_assert_rewrite("tests.support", "tests.codecs.codec_compare")
pytest_plugins = (
    "tests.support.engine_fixtures",
    "tests.support.job_fixtures",
    "tests.support.night_fixtures",
)


_JVM_FIXTURES = {"spark", "cluster"}
_LARGE_FIXTURES = {"s3_server", "make_repo", "scenario", "backend"}
_NO_JAVA = "/only-tests-marked-jvm-start-java"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need; put modules that start no JVM first, and the largest first of each."""
    jvm_modules, n_large = set(), Counter[Path]()
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        is_whole_program = item.path.is_relative_to(_ROOT / "tests" / "integration")
        if is_whole_program or fixtures & _JVM_FIXTURES or "spark" in map(str, parameters.values()):
            item.add_marker(pytest.mark.jvm)
        if not (fixtures & _LARGE_FIXTURES or {"jvm", "pipeline", "slow"} & set(item.keywords)):
            item.add_marker(pytest.mark.unit)
        elif "slow" not in item.keywords:
            n_large[item.path] += 1
        if "jvm" in item.keywords:
            jvm_modules.add(item.path)
    # A large module that begins last would leave the other process of pytest-xdist with nothing to do.
    items.sort(key=lambda item: (item.path in jvm_modules, -n_large[item.path], item.path))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules that stay, which it would visit thousands of times."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _never_wait_for_the_disk(connection: Any, _: Any) -> None:
    """Let registries of this process not wait for the disk, some hundred times a test."""
    if isinstance(connection, sqlite3.Connection):
        (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
        # A registry that is locked or no database stays for the tests of that.
        connection.execute("PRAGMA busy_timeout = 0")
        with contextlib.suppress(sqlite3.DatabaseError):
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA busy_timeout = {timeout}")


@pytest.fixture(autouse=True)
def java_only_if_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no other test but the slow ones start a JVM, in this process or in another."""
    if not {"jvm", "slow"} & set(request.keywords):
        monkeypatch.setenv("JAVA_HOME", _NO_JAVA)
    yield
    # A refused command does not wait for them; a context that they stop later would be the next test's.
    for thread in threading.enumerate():
        if thread.name in ("jvm-start", "spark-start"):
            thread.join()


@pytest.fixture(scope="session", autouse=True)
def distributions_listed_once() -> Iterator[None]:
    """Keep the list of installed distributions and versions, which each run would read in half a second."""
    from lsst.utils import packages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "packages_distributions", functools.cache(packages.packages_distributions))
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        yield


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Take off the log handlers that a command has put on, so that no later test writes through them."""
    root = logging.getLogger()
    before = list(root.handlers)
    # A handler of a command that has ended may lack what its format wants.
    logging.raiseExceptions = False
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    """A running S3 server, to which this process's environment points from then on."""
    with EmbeddedS3() as server, server.activated():
        yield server


@pytest.fixture
def s3_bucket(s3_server: EmbeddedS3) -> Iterator[str]:
    """Name of an empty bucket, for one test."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    yield name
    s3_server.client().delete_bucket(Bucket=name)


@pytest.fixture
def s3_repo(s3_bucket: str, tmp_path: Path) -> Callable[[str], Path]:
    """Make a repository: ``s3_repo("name")`` returns its root, in ``tmp_path``; datasets go to the bucket."""
    from spark_butler.demo.repository import make_repository

    def make(name: str = "repo") -> Path:
        return make_repository(tmp_path / name, f"s3://{s3_bucket}/{name}/")

    return make


@pytest.fixture(scope="session")
def spark(s3_server: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one Spark session of all tests, on two local cores.

    It comes after the S3 server, so that its workers inherit the way there.
    """
    from spark_butler.spark.session import make_session

    scratch = tmp_path_factory.mktemp("spark")
    session = make_session(
        "local[2]",
        app_name="tests",
        conf={
            "spark.ui.enabled": "false",
            "spark.local.dir": str(scratch),
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            "spark.sql.shuffle.partitions": "2",
        },
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the real data, which are not part of the repository."""
    data = Path(os.environ.get("SPARK_BUTLER_DATA") or _ROOT.parent / "shared" / "data")
    if not data.is_dir():
        pytest.skip(f"no real data in {data} (SPARK_BUTLER_DATA names the directory)")
    return data
