"""A Spark session with the settings that a worker needs."""

from __future__ import annotations

__all__ = [
    "MINIMUM_PYTHON",
    "check_platform",
    "check_session",
    "check_workers",
    "make_session",
    "open_session",
    "say_on_stderr",
    "worker_environment",
]

import contextlib
import importlib.util
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .errors import SessionError
from .java import find_java_home
from .messages import brief

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
    # A worker is forked with the middleware imported.
    "spark.python.daemon.module": "spark_butler.backends.daemon",
    # Below it, large records go straight to their files and not through the heap.
    "spark.shuffle.sort.bypassMergeThreshold": "1000",
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

_MASTER_SECONDS = 5.0
_MOST_CHECKED_WORKERS = 32

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
    """
    check_platform()
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
    try:
        address = master or settings.get("spark.master") or _configured("spark.master") or "local[*]"
        if "PYSPARK_PYTHON" not in os.environ:
            # PySpark looks nowhere else unless spark-submit has started it.
            if python := settings.get("spark.pyspark.python") or _configured("spark.pyspark.python"):
                os.environ["PYSPARK_PYTHON"] = python
            elif address.startswith("local"):
                # The python3 of the PATH may be another one.
                os.environ["PYSPARK_PYTHON"] = sys.executable
    except Exception as exc:  # py4j, PySpark and the JVM may raise anything
        raise SessionError(f"Spark did not start: {brief(exc)}") from exc
    for name, value in settings.items():
        if name in (conf or {}) or not _is_configured(name):
            builder = builder.config(name, value)
    _check_master(address)
    try:
        session = builder.getOrCreate()
    except Exception as exc:
        logger.debug("Spark did not start.", exc_info=True)
        raise SessionError(f"Spark did not start (master {address!r}): {brief(exc)}") from exc
    check_session(session)
    return session


@contextlib.contextmanager
def open_session(master: str | None = None) -> Iterator[SparkSession]:
    """Get the active Spark session, or make one and stop it in the end.

    Parameters
    ----------
    master
        Address of the cluster; see `make_session`.
    """
    check_platform()
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    session = make_session(master)
    try:
        yield session
    finally:
        if active is None:
            with contextlib.suppress(Exception):
                # The JVM may be gone already, as after Ctrl-C under spark-submit.
                session.stop()


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


def check_workers(session: SparkSession, stores: Sequence[str] = ()) -> None:
    """Look whether workers have the same Python, the middleware, and a way to the object store.

    This also makes them import what the first quanta need.

    Parameters
    ----------
    session
        The session.
    stores
        Addresses of places in object stores that workers must reach.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if not, with the reason.
    """
    context = session.sparkContext
    n_workers = min(int(context.defaultParallelism), _MOST_CHECKED_WORKERS)
    places = list(stores)
    context.setJobDescription("look whether workers can work")
    try:
        answers = (
            context.parallelize(range(n_workers), n_workers).map(lambda _: _check_worker(places)).collect()
        )
    except Exception as exc:
        logger.debug("Workers can't work.", exc_info=True)
        raise SessionError(f"Workers of Spark can't run the engine: {_worker_reason(exc)}") from exc
    finally:
        context.setLocalProperty("spark.job.description", None)  # type: ignore[arg-type]
    if problems := sorted({answer for answer in answers if answer}):
        raise SessionError(f"Workers of Spark can't run the engine: {problems[0]}")


def _check_worker(stores: Sequence[str]) -> str:
    """Say what is wrong, in a worker."""
    from lsst.resources import ResourcePath

    from .errors import UserError
    from .repository import check_store
    from .worker import run_group  # noqa: F401

    try:
        for store in stores:
            check_store(ResourcePath(store))
    except UserError as exc:
        return f"{socket.gethostname()}: {exc}"
    return ""


# What Spark says before the last words of an interpreter that did not start as it should.
_NO_DAEMON = "Error from python worker:"


def _worker_reason(exc: Exception) -> str:
    """Find the error of a worker in the report of Spark, which has all stacks in it."""
    lines = [line.strip() for line in str(exc).splitlines()]
    if _NO_DAEMON in lines[:-1]:
        # It names the interpreter, too.
        reason = lines[lines.index(_NO_DAEMON) + 1]
        return f"{reason}; spark.pyspark.python names the interpreter of workers"
    errors = [
        line for line in lines if line and " " in line and line.split(":")[0].endswith(("Error", "Exception"))
    ]
    python = [line for line in errors if not line.startswith(("org.", "java.", "py4j."))]
    return (python or errors or [brief(exc)])[0]


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
    if name == "spark.python.daemon.module" and conf.get("spark.submit.pyFiles", ""):
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
