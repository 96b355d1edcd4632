"""Fixtures of the engine's tests: repositories, backends, a fork server that has the middleware."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_tasks
import pytest
from engine_harness import Repo
from lsst.daf.butler import Butler
from mock_night import insert_dimensions

from spark_butler.driver.backend import Backend
from spark_butler.driver.serial import SerialBackend


@pytest.fixture(autouse=True)
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
def make_repo(template: Path, tmp_path: Path) -> Callable[[str], Repo]:
    """Make a repository on this machine's disk: ``make_repo("name")``."""
    return lambda name: Repo(tmp_path / name, template)


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Make processes of pipe_base's own executor start quickly."""
    multiprocessing.set_forkserver_preload(
        ["lsst.pipe.base.mp_graph_executor", "lsst.daf.butler.direct_butler", "engine_tasks"]
    )


@pytest.fixture(params=["serial", "spark"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn."""
    if request.param == "serial":
        yield SerialBackend()
    else:
        yield request.getfixturevalue("spark_backend")


@pytest.fixture(scope="session")
def shipped(spark: object) -> None:
    """Send the tests' tasks to the workers."""
    spark.sparkContext.addPyFile(engine_tasks.__file__)  # type: ignore[attr-defined]


@pytest.fixture
def spark_backend(spark: object, shipped: None) -> Iterator[Backend]:
    """The Spark backend."""
    from spark_butler.spark.backend import SparkBackend

    backend = SparkBackend(spark)  # type: ignore[arg-type]
    yield backend
    backend.close()
