"""Functions of the user on RDDs of data IDs, and interruptible actions.  Runs in driver and workers."""

from __future__ import annotations

__all__ = ["RDD", "default_interrupts", "run_action", "spread"]

import contextlib
import functools
import itertools
import linecache
import pickle
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from pyspark import RDD, Accumulator, InheritableThread, SparkContext
from pyspark.sql import SparkSession

from ..errors import FunctionError, OptionsError, UserError
from ..masking import hide_secrets
from ..text import brief, cell_name
from ..worker.function_butler import DataIdBatch, DataIdContext, PutReport, run_batch
from ..worker.notebook_classes import dump_with_classes
from .backend import new_stream
from .session import check_session
from .worker_entry import open_context, worker_state

_CANCEL_SECONDS = 0.5
_TRACEBACK = "Traceback (most recent call last):"
_JAVA_STACK = "\n\tat "
_LAST_OWN_FRAME = "in run_batch"
_FRAME = "  File "
_PLACE = re.compile(r'  File "(.+)", line (\d+)')
_FRAME_OF_PYSPARK = re.compile(r'  File "[^"]*\bpyspark(?:\.zip)?/')
_NO_MODULE = re.compile(r"\bModuleNotFoundError: ")
_REMEDY = (
    "workers can't import it. Send it by spark.sparkContext.addPyFile(...), put its folder on PYTHONPATH "
    "before the session starts, or install it where workers run."
)
_FRAME_OF_SERIALIZER = re.compile(r'  File "[^"]*/pyspark/(?:serializers|cloudpickle/\w+)\.py"')

type UserFunction = Callable[[Any, Any], Any]
type ReportPut = Callable[[PutReport], None]


def spread(
    spark: SparkContext, context: DataIdContext, batches: list[bytes], report: ReportPut
) -> Callable[[UserFunction], RDD[Any]]:
    """Send batches of data IDs to workers.

    ``report`` is called in this process with each dataset that was put, possibly twice.
    """
    # In the closure: the file of a broadcast would stay in the temporary folder as long as Spark runs.
    packed = dump_with_classes(context)
    puts = new_stream(spark, report)
    source = spark.parallelize(batches, max(1, len(batches)))

    def apply(function: UserFunction) -> RDD[Any]:
        return source.mapPartitions(functools.partial(_run_batches, packed, puts, function))

    return apply


def _run_batches(
    packed: bytes, puts: Accumulator[list[PutReport]], function: UserFunction, batches: Iterable[bytes]
) -> Iterator[Any]:
    """Call a function with each data ID."""
    context = open_context(packed)
    for data in batches:
        batch = DataIdBatch.open(data)
        yield from run_batch(worker_state(), context, batch, function, lambda put: puts.add([put]))


def run_action(session: SparkSession, description: str, action: Callable[[], Any]) -> Any:
    """Run an action so that an interrupt stops its jobs, which have the name ``description``.

    The action has a thread of its own, since an interrupt would leave this
    thread's connection to the JVM in the middle of an answer.

    Raises
    ------
    spark_butler.errors.FunctionError
        Raised if a function of the user has raised in a worker.
    spark_butler.errors.OptionsError
        Raised if a function can't be sent to workers.
    spark_butler.errors.SessionError
        Raised if the session was stopped.
    """
    check_session(session)
    spark = session.sparkContext
    tag = f"spark-butler-{uuid.uuid4()}"
    future: Future[Any] = Future()

    def work() -> None:
        try:
            spark.addJobTag(tag)
            spark.setJobDescription(description)
            future.set_result(action())
        except BaseException as exc:  # noqa: BLE001  (the waiting thread raises it)
            future.set_exception(exc)

    # The thread inherits the caller's job group, pool and tags.
    thread = InheritableThread(work, name="spark-butler-action", daemon=True)
    with default_interrupts():
        try:
            thread.start()
            return future.result()
        except KeyboardInterrupt:
            # Repeated, because Spark may not have received a job at the first time.
            while thread.is_alive():
                spark.cancelJobsWithTag(tag)
                thread.join(_CANCEL_SECONDS)
            raise
        except UserError:
            raise
        except pickle.PicklingError as exc:
            raise OptionsError(f"A function can't be sent to workers: {brief(exc)}") from None
        except Exception as exc:
            if (text := _worker_traceback(exc)) is not None:
                raise FunctionError(text) from None
            raise


@contextlib.contextmanager
def default_interrupts() -> Iterator[None]:
    """Prevent PySpark from canceling all jobs, background runs included, after an interrupt."""
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not getattr(handler, "__module__", "").startswith("pyspark"):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _worker_traceback(exc: Exception) -> str | None:
    """Return the traceback of a worker from an error of Spark, with the user's frames only."""
    _, is_there, text = str(exc).partition(_TRACEBACK)
    if not is_there:
        return None
    lines = text.partition(_JAVA_STACK)[0].strip("\n").splitlines()
    own = max((n for n, line in enumerate(lines) if _LAST_OWN_FRAME in line), default=-1)
    first = next((n for n, line in enumerate(lines) if n > own and not line.startswith("    ")), 0)
    shown: list[str] = []
    frame = ""
    for line, after in itertools.pairwise([*lines[first:], ""]):
        if not line.startswith("    "):
            frame = line
        if not _FRAME_OF_PYSPARK.match(frame):
            place = _PLACE.match(line)
            cell = cell_name(place[1]) if place else None
            shown.append(line.replace(f'File "{place[1]}"', cell) if place and cell else line)
            if place and not after.startswith("    "):
                # Workers don't have the source of a notebook's cell.
                shown += filter(str.strip, [f"    {linecache.getline(place[1], int(place[2])).strip()}"])
    errors = " ".join(line for line in shown if line[:1] not in ("", " "))
    last_frame = next((line for line in reversed(lines) if line.startswith(_FRAME)), "")
    if _NO_MODULE.search(errors):
        errors = f"{errors.rstrip('.')}: {_REMEDY}"
    elif _FRAME_OF_SERIALIZER.match(last_frame):
        errors = f"The result of a function can't be sent back from the worker: {errors}"
    has_frames = any(line.startswith("  ") for line in shown)
    return hide_secrets("\n".join([errors, "", "In the worker:", *shown]) if has_frames else errors)
