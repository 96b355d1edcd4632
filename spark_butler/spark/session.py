"""A Spark session with the settings that a worker needs."""

from __future__ import annotations

__all__ = [
    "MINIMUM_PYTHON",
    "check_platform",
    "check_session",
    "make_session",
    "make_spark_context",
    "say_on_stderr",
    "spark_is_up",
]

import importlib.util
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import SessionError
from ..text import brief
from ..worker.environment import IMPORTS_VARIABLE, limit_threads, worker_environment
from .java import find_java_home
from .jvm import jvm_is_there, launch_jvm

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

MINIMUM_PYTHON = (3, 12)
"""The oldest Python that lsst-pipe-base runs on."""

_DAEMON = "spark.python.daemon.module"
_CONF = {
    "spark.ui.showConsoleProgress": "false",
    "spark.python.worker.reuse": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.python.unix.domain.socket.enabled": "true",
    # A worker is forked with the middleware imported.
    _DAEMON: "spark_butler.spark.daemon",
    # Below it, large records go straight to their files and not through the heap.
    "spark.shuffle.sort.bypassMergeThreshold": "1000",
}

_MASTER_SECONDS = 5.0


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
        Spark settings that go before all others.  Those made here give way to
        what ``spark-submit`` or the Spark configuration says.

    Returns
    -------
    session
        A session with RDDs.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if Python or Java are too old, if there is no PySpark, if the
        session is one of Spark Connect, or if Spark doesn't start.

    Examples
    --------
    >>> session = make_session("local[2]", conf={"spark.ui.enabled": "false"})
    >>> session.sparkContext.defaultParallelism
    2
    """
    check_platform()
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        check_session(active)
        return active
    make_spark_context(master, app_name, conf)
    try:
        session = SparkSession.builder.getOrCreate()
    except Exception as exc:  # py4j, PySpark and the JVM may raise anything
        logger.debug("There is no Spark session.", exc_info=True)
        raise SessionError(f"There is no Spark session: {brief(exc)}") from exc
    check_session(session)
    return session


def make_spark_context(
    master: str | None = None,
    app_name: str = "spark-butler",
    conf: Mapping[str, str] | None = None,
    *,
    imports: Sequence[str] = (),
) -> SparkContext:
    """Get the Spark context of this process or make one.

    Parameters
    ----------
    master
        Address of the cluster; see `make_session`.
    app_name
        Name of the application on Spark's pages.
    conf
        Spark settings that go before all others.
    imports
        Names of modules that tasks are in.  Workers are forked with them
        imported, as far as they can be.

    Returns
    -------
    context
        A context.  Unlike a session it doesn't cost the JVM the loading of
        Spark's SQL.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised as by `make_session`.
    """
    check_platform()
    from pyspark import SparkConf, SparkContext

    if spark_is_up():
        return SparkContext.getOrCreate()
    limit_threads()
    if any(name.startswith("spark.driver.") for name in conf or {}):
        # What the JVM is to have of its own, PySpark tells it only when it launches it itself.
        if not jvm_is_there():
            os.environ["JAVA_HOME"] = str(find_java_home())
    else:
        launch_jvm()
    environment = worker_environment()
    if imports:
        environment[IMPORTS_VARIABLE] = ",".join(imports)
    settings = dict(_CONF)
    settings.update((f"spark.executorEnv.{name}", value) for name, value in environment.items())
    settings.update(conf or {})
    try:
        address = master or settings.get("spark.master") or _configured("spark.master") or "local[*]"
        if "PYSPARK_PYTHON" not in os.environ:
            # PySpark looks nowhere else unless spark-submit has started it.
            if python := settings.get("spark.pyspark.python") or _configured("spark.pyspark.python"):
                os.environ["PYSPARK_PYTHON"] = python
            elif address.startswith("local"):
                # The python3 of the PATH may be another one.
                os.environ["PYSPARK_PYTHON"] = sys.executable
        chosen = SparkConf().setAppName(app_name).setMaster(address)
        for name, value in settings.items():
            if name in (conf or {}) or not _is_configured(name):
                chosen.set(name, value)
    except Exception as exc:
        raise SessionError(f"Spark did not start: {brief(exc)}") from exc
    _check_master(address)
    try:
        return SparkContext.getOrCreate(chosen)
    except Exception as exc:
        logger.debug("Spark did not start.", exc_info=True)
        raise SessionError(f"Spark did not start (master {address!r}): {brief(exc)}") from exc


def spark_is_up() -> bool:
    """Whether this process has a Spark context."""
    _find_pyspark()
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def check_platform() -> None:
    """Look for what can be wrong with Python and Spark before Spark is started.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if Python is too old, if there is no PySpark, or if a session
        would be one of Spark Connect.
    """
    if sys.version_info < MINIMUM_PYTHON:
        raise SessionError(
            f"This is Python {sys.version.split()[0]}; Rubin's middleware needs "
            f"{'.'.join(map(str, MINIMUM_PYTHON))} or newer."
        )
    _find_pyspark()
    if remote := os.environ.get("SPARK_REMOTE"):
        raise SessionError(_connect_text(f"SPARK_REMOTE is {remote!r}"))
    modes = {"SPARK_API_MODE": os.environ.get("SPARK_API_MODE", "")}
    # Where spark-submit puts its options.
    for n in range(int(os.environ.get("PYSPARK_REMOTE_INIT_CONF_LEN", "0"))):
        conf = json.loads(os.environ[f"PYSPARK_REMOTE_INIT_CONF_{n}"])
        if remote := conf.get("spark.remote"):
            raise SessionError(_connect_text(f"spark-submit was given --remote {remote}"))
        modes["spark.api.mode"] = conf.get("spark.api.mode", "")
    for name, mode in modes.items():
        if mode.lower() == "connect":
            raise SessionError(_connect_text(f"{name} is {mode!r}"))


def _check_master(address: str) -> None:
    """Look whether a standalone cluster answers; Spark itself tries for a minute."""
    if not address.startswith("spark://"):
        return
    reasons = []
    for place in address.removeprefix("spark://").split(","):
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_MASTER_SECONDS).close()
        except (OSError, ValueError) as exc:
            reasons.append(f"{place}: {getattr(exc, 'strerror', None) or exc}")
        else:
            return
    raise SessionError(f"No Spark master answers at {address!r} ({'; '.join(reasons)}).")


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


def _is_configured(name: str) -> bool:
    """Whether spark-submit or the Spark configuration has a value for a setting, or a reason against ours."""
    from pyspark import SparkConf

    conf = SparkConf()
    if name == "spark.ui.showConsoleProgress":
        # spark-submit turns it on by itself.
        return False
    if name == _DAEMON and conf.get("spark.submit.pyFiles", ""):
        # The package may come as a file, which the daemon does not see.
        return True
    return conf.contains(name)


def say_on_stderr(line: str) -> bool:
    """Write a line to the standard error of ``spark-submit``, which makes one stream of both of this process.

    Parameters
    ----------
    line
        The line.

    Returns
    -------
    said
        Whether that was possible; otherwise ``sys.stderr`` is as good as any.
    """
    if "PYSPARK_GATEWAY_PORT" not in os.environ or not _streams_are_one():
        return False
    try:
        from pyspark import SparkContext

        SparkContext._ensure_initialized()
        assert SparkContext._jvm is not None
        SparkContext._jvm.java.lang.System.err.println(line)
    except Exception:  # noqa: BLE001  (the JVM may be gone, or PySpark)
        return False
    return True


def _streams_are_one() -> bool:
    """Whether standard output and error of this process are the same pipe."""
    try:
        out, err = os.fstat(1), os.fstat(2)
    except OSError:
        return False
    return stat.S_ISFIFO(out.st_mode) and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def _configured(name: str) -> str | None:
    """What spark-submit, its configuration files or the environment say of a setting."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return SparkConf().get(name)
