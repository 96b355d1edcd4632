"""A Spark session with the settings that a worker needs."""

from __future__ import annotations

__all__ = ["MINIMUM_PYTHON", "check_session", "make_session", "worker_environment"]

import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import SessionError
from .java import find_java_home

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

MINIMUM_PYTHON = (3, 12)
"""The oldest Python that lsst-pipe-base runs on."""

_CONF = {
    "spark.ui.showConsoleProgress": "false",
    "spark.python.worker.reuse": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.python.unix.domain.socket.enabled": "true",
}

_ENVIRONMENT = {
    # Over https, botocore's default checksums are refused by several object stores.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_MAX_THREADS": "1",
    "LSST_RESOURCES_NUM_WORKERS": "1",
    "LSST_S3_USE_THREADS": "False",
}

_PASSED_ON = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION")


def worker_environment() -> dict[str, str]:
    """Name the environment variables that workers take over from the driver.

    Returns
    -------
    environment
        Variables for threads and for the object store.  Never credentials:
        workers have their own, from their environment, a file or a role.
    """
    environment = {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}
    environment.update(
        (name, os.environ[name])
        for name in _PASSED_ON
        # An address with a user and password in it is a credential.
        if name in os.environ and "@" not in os.environ[name]
    )
    return environment


def make_session(
    master: str | None = None,
    app_name: str = "spark-butler",
    conf: Mapping[str, str] | None = None,
) -> SparkSession:
    """Get the active Spark session or make one.

    Parameters
    ----------
    master
        Address of the cluster.  By default what ``spark-submit`` or the
        Spark configuration says, else all cores of this machine.
    app_name
        Name of the application on Spark's pages.
    conf
        Spark settings that go before the ones made here.

    Returns
    -------
    session
        A session with RDDs.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if Python or Java are too old, if there is no PySpark, or if the
        session is one of Spark Connect.
    """
    if sys.version_info < MINIMUM_PYTHON:
        raise SessionError(
            f"This is Python {sys.version.split()[0]}; Rubin's middleware needs "
            f"{'.'.join(map(str, MINIMUM_PYTHON))} or newer."
        )
    _find_pyspark()
    if remote := os.environ.get("SPARK_REMOTE"):
        raise SessionError(_connect_text(f"SPARK_REMOTE is {remote!r}"))
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        check_session(active)
        return active
    # A gateway is there already when spark-submit has started this process.
    if SparkContext._gateway is None and "PYSPARK_GATEWAY_PORT" not in os.environ:
        os.environ["JAVA_HOME"] = str(find_java_home())
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    builder = SparkSession.builder.appName(app_name)
    if master is not None:
        builder = builder.master(master)
    settings = dict(_CONF)
    settings.update((f"spark.executorEnv.{name}", value) for name, value in worker_environment().items())
    settings.update(conf or {})
    local = (master or settings.get("spark.master") or _submitted_master() or "local").startswith("local")
    if local and "PYSPARK_PYTHON" not in os.environ and "spark.pyspark.python" not in settings:
        # The python3 of the PATH may be another one.
        os.environ["PYSPARK_PYTHON"] = sys.executable
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    check_session(session)
    return session


def check_session(session: SparkSession) -> None:
    """Refuse a session that can't run the engine.

    Parameters
    ----------
    session
        The session.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if the session is one of Spark Connect, which has no RDDs.
    """
    if type(session).__module__.startswith("pyspark.sql.connect"):
        raise SessionError(
            _connect_text(f"the session is a {type(session).__module__}.{type(session).__name__}")
        )


def _connect_text(found: str) -> str:
    return (
        f"Spark Connect has no RDDs, which the engine needs: {found}. "
        "Use a classic session (spark-submit, or SparkSession.builder.master(...))."
    )


def _find_pyspark() -> None:
    """Make PySpark importable, from ``SPARK_HOME`` where it is not installed."""
    if importlib.util.find_spec("pyspark") is not None:
        return
    import findspark

    try:
        findspark.init()
    except (ValueError, IndexError) as exc:
        raise SessionError(
            "There is no PySpark: install the package `pyspark`, or point SPARK_HOME to a Spark 3.5 or newer."
        ) from exc


def _submitted_master() -> str | None:
    """The address that spark-submit was given, if it started this process."""
    from pyspark import SparkConf, SparkContext

    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return None
    SparkContext._ensure_initialized()
    return SparkConf().get("spark.master", None)
