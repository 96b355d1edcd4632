"""Fixtures for the tests of temporaries."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clusters import Cluster
    from pyspark.sql import SparkSession
    from scenes import Scene

    from spark_butler.driver.backend import Backend

_HERE = Path(__file__).resolve().parent
_MODULES = (_HERE / "temporaries_tasks.py", _HERE.parent / "codecs" / "codec_samples.py")

pytest.register_assert_rewrite("scenes")


@pytest.fixture(scope="session")
def task_modules() -> tuple[Path, ...]:
    """Files of the modules that tasks of these tests are in; importable here from now on."""
    for path in _MODULES:
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        importlib.import_module(path.stem)
    return _MODULES


@pytest.fixture
def scene(task_modules: tuple[Path, ...]) -> Iterator[Scene]:
    """An empty repository for a pipeline."""
    from scenes import Scene

    with Scene.make() as scene:
        yield scene


@pytest.fixture(scope="session")
def spark_backend(spark: SparkSession, task_modules: tuple[Path, ...]) -> Iterator[Backend]:
    """The backend on the one local Spark session."""
    from spark_butler.spark.backend import SparkBackend

    for path in task_modules:
        spark.sparkContext.addPyFile(str(path))
    backend = SparkBackend(spark)
    yield backend
    backend.close()


@pytest.fixture(params=["serial", "spark"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    from spark_butler.driver.serial import SerialBackend

    if request.param == "serial":
        return SerialBackend()
    return request.getfixturevalue("spark_backend")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A standalone Spark cluster with two workers of one core on this machine."""
    from clusters import Cluster

    with Cluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
