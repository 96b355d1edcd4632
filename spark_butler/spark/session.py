"""Spark sessions with the settings that workers need.  Runs in the driver."""

from __future__ import annotations

__all__ = [
    "MINIMUM_PYTHON",
    "check_platform",
    "check_session",
    "default_master_is_local",
    "make_session",
    "make_spark_context",
    "set_imports",
    "spark_is_up",
]

import importlib.util
import json
import logging
import os
import pwd
import socket
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..errors import SessionError
from ..text import best_effort, translate_errors
from ..worker.environment import IMPORTS_VARIABLE, S3_MODULES, limit_threads, worker_environment
from . import _pyspark
from .jvm import launch_jvm

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession


MINIMUM_PYTHON = (3, 12)
"""The oldest Python that lsst-pipe-base runs on."""

_DAEMON = "spark.python.daemon.module"
_SOCKETS = "spark.python.unix.domain.socket.enabled"
_SOCKET_FOLDER = "spark.python.unix.domain.socket.dir"
_LOG_LEVEL = "spark.log.level"

_CONF = {
    "spark.ui.showConsoleProgress": "false",
    "spark.python.worker.reuse": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    # A worker is forked with the middleware imported.
    _DAEMON: "spark_butler.spark.daemon",
    # Below this number, large records are written directly to files and not through the heap.
    "spark.shuffle.sort.bypassMergeThreshold": "1000",
}

# Settings without effect on a JVM that runs already.
_OF_THE_JVM = ("spark.driver.", "spark.jars")

# An address of Linux and macOS has at most 103 bytes; Spark appends "/.", a UUID and ".sock".
_MOST_FOLDER_BYTES = 103 - len("/..sock") - 36

_DEFAULT_MASTER = "local[*]"
_MASTER_SECONDS = 5.0


def make_session(
    master: str | None = None,
    app_name: str = "spark-butler",
    conf: Mapping[str, str] | None = None,
) -> SparkSession:
    """Return the active Spark session, or start one with RDDs.

    Parameters
    ----------
    master
        Address of the cluster.  By default the address that ``spark-submit``
        or the Spark configuration sets, else all cores of this machine.
    app_name
        Name of the application on Spark's pages.
    conf
        Spark settings that precede all others.  ``spark-submit`` and the Spark
        configuration precede the settings of this package.

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
    with translate_errors(SessionError, "Spark did not make a session"):
        session = SparkSession.builder.getOrCreate()
    check_session(session)
    return session


def make_spark_context(
    master: str | None = None,
    app_name: str = "spark-butler",
    conf: Mapping[str, str] | None = None,
) -> SparkContext:
    """Return the Spark context of this process, or start one; the parameters are those of `make_session`.

    It starts faster than a session, because the JVM need not load Spark's SQL.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised as by `make_session`.
    """
    check_platform()
    from pyspark import SparkContext

    if spark_is_up():
        return SparkContext.getOrCreate()
    limit_threads()
    given = dict(conf or {})
    launch_jvm({name: value for name, value in given.items() if name.startswith(_OF_THE_JVM)})
    with translate_errors(SessionError, "Spark did not start"):
        chosen = _configure(master, app_name, given)
    address = chosen.get("spark.master") or ""
    _check_master(address)
    if not chosen.contains(_LOG_LEVEL):
        with best_effort("Can't set the log level of Spark", level=logging.DEBUG):
            _pyspark.log_warnings_only()
    with translate_errors(SessionError, f"Spark did not start (master {address!r})"):
        return SparkContext.getOrCreate(chosen)


def _configure(master: str | None, app_name: str, given: Mapping[str, str]) -> SparkConf:
    """Return the settings of a new context, and choose the interpreter of its workers."""
    from pyspark import SparkConf

    # What spark-submit, its configuration files and the environment have set.
    configured = SparkConf()
    address = master or given.get("spark.master") or configured.get("spark.master") or _DEFAULT_MASTER
    if "PYSPARK_PYTHON" not in os.environ:
        # PySpark reads nothing else unless spark-submit has started it.
        if python := given.get("spark.pyspark.python") or configured.get("spark.pyspark.python"):
            os.environ["PYSPARK_PYTHON"] = python
        elif address.startswith("local"):
            # The python3 of the PATH may be another interpreter.
            os.environ["PYSPARK_PYTHON"] = sys.executable
    environment = worker_environment()
    settings = {**_CONF, **{f"spark.executorEnv.{name}": value for name, value in environment.items()}}
    if configured.get("spark.submit.pyFiles"):
        # The package may be among these files, which the daemon does not see.
        del settings[_DAEMON]
    if _has_short_socket_folder(address, given.get(_SOCKET_FOLDER) or configured.get(_SOCKET_FOLDER)):
        settings[_SOCKETS] = "true"
    chosen = SparkConf().setAppName(app_name).setMaster(address)
    for name, value in settings.items():
        # spark-submit turns the progress on by itself.
        if name == "spark.ui.showConsoleProgress" or not configured.contains(name):
            chosen.set(name, value)
    return chosen.setAll(list(given.items()))


def _has_short_socket_folder(address: str, folder: str | None) -> bool:
    """Return whether the addresses of Unix sockets of the driver and of all executors are short enough.

    Spark makes them in ``java.io.tmpdir``, which under YARN is some 110
    characters long.  That of an executor on another machine is not known here.
    """
    if folder is None:
        if not _is_local(address):
            return False
        folder = _pyspark.java_property("java.io.tmpdir")
    return len(os.fsencode(folder)) <= _MOST_FOLDER_BYTES


def _is_local(address: str) -> bool:
    """Return whether workers run below the JVM of this process."""
    return address.startswith("local") and not address.startswith("local-cluster")


def default_master_is_local() -> bool:
    """Return whether Spark runs in local mode if no master is given.  The JVM must run."""
    from pyspark import SparkConf

    return _is_local(SparkConf().get("spark.master") or _DEFAULT_MASTER)


def set_imports(context: SparkContext, modules: Collection[str], stores: Collection[str] = ()) -> None:
    """Set the modules that daemons try to import before they fork workers: those of tasks and of ``stores``.

    Call this function before the context starts its first worker.
    """
    of_stores = S3_MODULES if any(store.startswith("s3:") for store in stores) else ()
    context.environment[IMPORTS_VARIABLE] = ",".join((*modules, *of_stores))


def spark_is_up() -> bool:
    """Return whether this process has a Spark context."""
    _find_pyspark()
    return _pyspark.context_is_up()


def check_platform() -> None:
    """Check Python and the settings of Spark before Spark is started.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if Python is too old, if the user has no passwd entry, if there
        is no PySpark, or if a session would be one of Spark Connect.
    """
    if sys.version_info < MINIMUM_PYTHON:
        raise SessionError(
            f"This is Python {sys.version.split()[0]}; Rubin's middleware needs "
            f"{'.'.join(map(str, MINIMUM_PYTHON))} or newer."
        )
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        raise SessionError(
            f"User ID {os.getuid()} has no passwd entry, which Java needs to start Spark: run as a user that "
            'has one, or add one (in a container: echo "spark:x:$(id -u):0::/tmp:/bin/sh" >> /etc/passwd).'
        ) from None
    _find_pyspark()
    if remote := os.environ.get("SPARK_REMOTE"):
        raise SessionError(_connect_text(f"SPARK_REMOTE is {remote!r}"))
    modes = {"SPARK_API_MODE": os.environ.get("SPARK_API_MODE", "")}
    # spark-submit passes its options in this variable.
    for n in range(int(os.environ.get("PYSPARK_REMOTE_INIT_CONF_LEN", "0"))):
        conf = json.loads(os.environ[f"PYSPARK_REMOTE_INIT_CONF_{n}"])
        if remote := conf.get("spark.remote"):
            raise SessionError(_connect_text(f"spark-submit was given --remote {remote}"))
        modes["spark.api.mode"] = conf.get("spark.api.mode", "")
    for name, mode in modes.items():
        if mode.lower() == "connect":
            raise SessionError(_connect_text(f"{name} is {mode!r}"))


def _check_master(address: str) -> None:
    """Raise if no master of a standalone cluster answers; Spark itself tries for a minute."""
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
    """Check that a session runs, and is not one of Spark Connect, which has no RDDs.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if not.
    """
    if type(session).__module__.startswith("pyspark.sql.connect"):
        raise SessionError(
            _connect_text(f"the session is a {type(session).__module__}.{type(session).__name__}")
        )
    if _pyspark.is_stopped(session.sparkContext):
        raise SessionError(
            "The Spark session was stopped, or its JVM has ended: start a new session, and with it a new "
            "SparkButler, data IDs and runs."
        )


def _connect_text(found: str) -> str:
    return (
        f"Spark Connect has no RDDs, which the engine needs: {found}. "
        "Use a classic session (spark-submit, or SparkSession.builder.master(...))."
    )


def _find_pyspark() -> None:
    """Make PySpark importable, from ``SPARK_HOME`` if it is not installed."""
    if importlib.util.find_spec("pyspark") is not None:
        return
    import findspark

    try:
        findspark.init()
    except (ValueError, IndexError) as exc:
        raise SessionError(
            "There is no PySpark: install the package `pyspark`, or point SPARK_HOME to a Spark 3.5 or newer."
        ) from exc
