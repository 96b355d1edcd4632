"""Look, before a run, whether Spark's workers can work."""

from __future__ import annotations

__all__ = ["check_workers"]

import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SessionError
from ..text import brief

if TYPE_CHECKING:
    from pyspark import SparkContext

logger = logging.getLogger(__name__)

_MOST_CHECKED_WORKERS = 32


def check_workers(context: SparkContext, stores: Sequence[str] = ()) -> None:
    """Look whether workers have the same Python, the middleware, and a way to the object store.

    This also makes them import what the first quanta need.

    Parameters
    ----------
    context
        The Spark context.
    stores
        Addresses of places in object stores that workers must reach.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if not, with the reason.
    """
    n_workers = min(int(context.defaultParallelism), _MOST_CHECKED_WORKERS)
    places = list(stores)
    # Spark's own are at hand here, and only here.
    from .job_names import named_job

    try:
        with named_job(context, "look whether workers can work"):
            workers = context.parallelize(range(n_workers), n_workers)
            answers = workers.map(lambda _: _check_worker(places)).collect()
    except Exception as exc:
        logger.debug("Workers can't work.", exc_info=True)
        raise SessionError(f"Workers of Spark can't run the engine: {_worker_reason(exc)}") from exc
    if problems := sorted({answer for answer in answers if answer}):
        raise SessionError(f"Workers of Spark can't run the engine: {problems[0]}")


def _check_worker(stores: Sequence[str]) -> str:
    """Say what is wrong, in a worker."""
    from lsst.resources import ResourcePath

    from ..errors import UserError
    from ..repository.checks import check_store
    from ..worker.clock import note_imports, start_of_imports
    from ..worker.group import run_group  # noqa: F401

    note_imports(start_of_imports())
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
