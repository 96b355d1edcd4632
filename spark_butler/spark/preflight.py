"""Preflight check of Spark's Python workers.  The driver sends it to workers before a run."""

from __future__ import annotations

__all__ = ["ask_workers", "check_workers", "diagnose_workers"]

import contextlib
import importlib.util
import logging
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import SessionError
from ..masking import hide_secrets
from ..text import brief

if TYPE_CHECKING:
    from pyspark import SparkContext

    from ..repository.doctor_checks import ProcessFacts
    from ..repository.store_checks import Finding

logger = logging.getLogger(__name__)

_DESCRIPTION = "spark.job.description"
_MOST_CHECKED_WORKERS = 32
_HOST = re.compile(r"Lost task [\d.]+ in stage [\d.]+ \(TID \d+\) \(([^\s)]+)")


def check_workers(context: SparkContext, modules: Collection[str] = (), stores: Sequence[str] = ()) -> None:
    """Check that workers have the same Python, the middleware, the tasks, and access to the object store.

    The workers also import ``modules``, which the first quanta need, and must reach ``stores``.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if a check fails, with the reason and the remedy.
    """
    names, places = sorted(set(modules) - {"__main__"}), list(stores)
    try:
        with _named_job(context, f"{_count_workers(context)} checks of workers"):
            answers = ask_workers(context, lambda: _check_worker(names, places))
    except Exception as exc:
        logger.debug("Workers failed their check.", exc_info=True)
        raise SessionError(f"Workers of Spark can't run the engine: {_worker_reason(str(exc))}") from exc
    if problems := sorted({answer for answer in answers if answer}):
        raise SessionError(f"Workers of Spark can't run the engine: {problems[0]}")


@contextlib.contextmanager
def _named_job(spark: SparkContext, text: str) -> Iterator[None]:
    """Name the jobs of this thread, and with them their stages, on Spark's pages."""
    before = spark.getLocalProperty(_DESCRIPTION)
    spark.setJobDescription(text)
    try:
        yield
    finally:
        spark.setLocalProperty(_DESCRIPTION, before)  # type: ignore[arg-type]


def ask_workers[T](context: SparkContext, question: Callable[[], T]) -> list[T]:
    """Call a function in each worker, but in a few of many, and return the results."""
    n_workers = _count_workers(context)
    return context.parallelize(range(n_workers), n_workers).map(lambda _: question()).collect()


def _count_workers(context: SparkContext) -> int:
    return min(int(context.defaultParallelism), _MOST_CHECKED_WORKERS)


def diagnose_workers(context: SparkContext, stores: Sequence[str]) -> list[Finding]:
    """Check the machine, the environment and the stores of each worker, for ``spark-butler doctor``."""
    # As in `_check_worker`: the middleware is imported only when it is needed.
    from ..repository.doctor_checks import compare_processes, describe_process
    from ..repository.store_checks import Finding

    places, driver = list(stores), describe_process()
    try:
        answers = ask_workers(context, lambda: _diagnose_worker(places))
    except Exception as exc:  # noqa: BLE001  (whatever keeps workers from starting)
        remedy = "Give workers the driver's Python and packages: PYSPARK_PYTHON, or `make env-archive`."
        return [Finding("workers", "start", "fault", _worker_reason(str(exc)), remedy)]
    found: dict[Finding, None] = {}
    for facts, findings in answers:
        found.update(dict.fromkeys((*compare_processes(driver, facts), *findings)))
    return list(found)


def _diagnose_worker(stores: Sequence[str]) -> tuple[ProcessFacts, list[Finding]]:
    """Return facts and findings of this worker."""
    from lsst.resources import ResourcePath

    from ..repository.doctor_checks import describe_process, diagnose_machine
    from ..repository.store_checks import diagnose_store

    facts = describe_process()
    where = f"worker on {facts.host}"
    folders = [each for each in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if each]
    found = diagnose_machine(where, folders)
    for store in stores:
        found += diagnose_store(ResourcePath(store, forceDirectory=True), where)
    return facts, found


def _check_worker(modules: Sequence[str], stores: Sequence[str]) -> str:
    """Return the first problem of this worker; an empty string if there is none."""
    from lsst.resources import ResourcePath

    from ..errors import UserError
    from ..repository.store_checks import check_store
    from .worker_entry import worker_state

    clock = worker_state().clock
    clock.record_imports(clock.start_of_imports())
    host = socket.gethostname()
    if missing := [name for name in modules if not _is_found(name)]:
        return (
            f"{host}: there is no module {missing[0]!r}. Install it where workers run, put its folder on "
            "PYTHONPATH before the session starts, or send it with spark-submit's py-files or "
            "spark.sparkContext.addPyFile."
        )
    try:
        for store in stores:
            check_store(ResourcePath(store))
    except UserError as exc:
        return f"{host}: {exc}"
    return ""


def _is_found(module: str) -> bool:
    """Return whether this process can import a module; only its packages are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
    except Exception:  # noqa: BLE001  (a package may raise anything; the quanta report it)
        return True


def _worker_reason(message: str) -> str:
    """Return the error of a worker, its host and its interpreter from the message of a failed job."""
    _, has_output, output = message.partition("Error from python worker:")
    lines = [line.strip() for line in output.partition("PYTHONPATH was:")[0].splitlines() if line.strip()]
    reason = hide_secrets(lines[-1]) if lines else brief(RuntimeError(message))
    if has_output and not lines:
        reason = "the interpreter has ended without a message"
    host = f"host {found[1]}, " if (found := _HOST.search(message)) else ""
    interpreter = os.environ.get("PYSPARK_PYTHON", "python3")
    return (
        f"{reason.rstrip('.')} ({host}interpreter {interpreter}; PYSPARK_PYTHON or spark.pyspark.python "
        "chooses another one)"
    )
