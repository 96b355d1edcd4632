"""Backend that runs groups as Spark tasks.  Runs in the driver; `_apply` and `_drain` run in workers."""

from __future__ import annotations

__all__ = ["SparkBackend", "new_stream"]

import contextlib
import dataclasses
import functools
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyspark import RDD, Accumulator, AccumulatorParam, Broadcast, SparkConf, SparkContext
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

from ..driver.backend import ReportOutcome
from ..errors import EngineError, WorkerDiskError
from ..model.outcomes import QuantumOutcome
from ..model.work import GroupWork, UnitWork, WorkerContext
from ..temporaries.shuffle import partition_of
from ..text import brief
from ..worker.notebook_classes import dump_context
from . import _pyspark
from .full_disk import explain_full_disk
from .worker_entry import open_context, run_first_level, run_groups, run_next_level

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_SLOTS_SECONDS = 1.0
_DISK_FULL = "No space left on device"

# PySpark numbers accumulators without a lock of its own.
_accumulators = threading.Lock()


class SparkBackend:
    """Runs groups on the workers of a Spark session.

    Parameters
    ----------
    session
        The session, or its context.  This class never stops it.

    Notes
    -----
    A call of `run` is one Spark job, and each batch of groups is one Spark
    task (see the glossary, ``docs/vocabulary.md``).  Outcomes come back
    through an accumulator, which Spark updates whenever a Spark task ends, so
    that the driver need not wait for the slowest task of a job.
    """

    def __init__(self, session: SparkSession | SparkContext):
        self._spark = session if isinstance(session, SparkContext) else session.sparkContext
        self._tag = f"spark-butler-{uuid.uuid4()}"
        self._lock = threading.Lock()
        self._sent: tuple[WorkerContext, Broadcast[bytes]] | None = None
        # Read once: each call of `getConf` copies all settings from the JVM.
        conf = self._spark.getConf()
        self._speculates = str(conf.get("spark.speculation", "false")).lower() == "true"
        self._grows = str(conf.get("spark.dynamicAllocation.enabled", "false")).lower() == "true"
        self._slots_seen = (-math.inf, 0)
        self._cores = int(conf.get("spark.executor.cores", "0") or 0)
        self._task_cores = int(conf.get("spark.task.cpus", "1") or 1)
        self._slot_memory = _find_slot_memory(conf, self._cores // self._task_cores)

    @property
    def slots(self) -> int:
        """Number of groups that can run at the same time, doubled if Spark may add executors.

        The number is read from the JVM at most once a second, because the scheduler needs it after
        each quantum.
        """
        now = time.monotonic()
        seen_at, n_slots = self._slots_seen
        if now - seen_at > _SLOTS_SECONDS:
            n_slots = max(1, int(self._spark.defaultParallelism) // self._task_cores)
            self._slots_seen = now, n_slots
        return n_slots * (1 + self._grows)

    @property
    def present_slots(self) -> int:
        """Number of groups that the present executors can run at the same time, for status and report."""
        # After the JVM has ended, the status shows the last number.
        with contextlib.suppress(Exception):
            return self.slots // (1 + self._grows)
        return self._slots_seen[1]

    @property
    def platform(self) -> dict[str, str]:
        """Versions and addresses, for the report."""
        spark = self._spark
        return {
            "spark": str(spark.version),
            "master": str(spark.master),
            "application": str(spark.applicationId),
            "java": _pyspark.java_property("java.version"),
        }

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        """Run units as one Spark job.  See `Backend.run`."""
        try:
            self._run(context, batch, report)
        except Exception as exc:
            # Spark raises this error if the driver's JVM can't use its temporary folder.
            if "Task serialization failed" in str(exc):
                raise EngineError(brief(exc)) from exc
            if _DISK_FULL in str(exc) and self.is_alive():
                raise WorkerDiskError(explain_full_disk(self._spark, brief(exc))) from exc
            raise

    def _run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        broadcast = self._send(context)
        spark = self._spark
        text = _describe(batch)
        spark.setJobGroup(self._tag, text, interruptOnCancel=False)
        _name_stages(spark, text)
        outcomes = new_stream(spark, _again(report) if self._speculates else report)
        if len(batch) == 1 and len(batch[0].widths) > 1:
            self._run_levels(batch[0], broadcast, outcomes)
            return
        works = [work for unit in batch for work in unit.groups]
        rdd = self._request_slots(spark.parallelize(works, len(works)), batch)
        # `runJob` keeps the name of the stage, unlike `pyspark.RDD.foreachPartition`.
        spark.runJob(rdd, functools.partial(run_groups, broadcast, outcomes))

    def _run_levels(
        self, unit: UnitWork, broadcast: Broadcast[bytes], outcomes: Accumulator[list[QuantumOutcome]]
    ) -> None:
        """Run a unit of several levels: a Spark stage for each, with shuffles between."""
        works = self._request_slots(self._spark.parallelize(unit.groups, len(unit.groups)), [unit])
        records = works.mapPartitions(functools.partial(run_first_level, broadcast, outcomes))
        for level, width in enumerate(unit.widths[1:], start=1):
            arrived = self._request_slots(_pyspark.shuffle_records(records, width, partition_of), [unit])
            # A stage takes the name that is set when the shuffle at its end is created.
            _name_stages(self._spark, _describe_level(unit, level))
            records = arrived.mapPartitions(functools.partial(run_next_level, broadcast, outcomes))
        # The last level sends no records.
        self._spark.runJob(records, _drain)

    def _request_slots(self, rdd: RDD[Any], units: Sequence[UnitWork]) -> RDD[Any]:
        """Request as many slots for a Spark task as its memory needs."""
        memory = max(_memory_of(work) for unit in units for work in unit.groups)
        n_slots = -(-memory // self._slot_memory) if self._slot_memory else 1
        if n_slots <= 1:
            return rdd
        requests = TaskResourceRequests().cpus(min(n_slots * self._task_cores, self._cores))
        try:
            return rdd.withResources(ResourceProfileBuilder().require(requests).build)
        except Exception as exc:  # noqa: BLE001  (each cluster manager raises its own)
            logger.warning(
                "This cluster has no resource profiles; quanta wait for memory in workers: %s", exc
            )
            self._slot_memory = 0
            return rdd

    def apply[T, R](self, context: WorkerContext, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply a function to items, each in a Spark task of one job.  See `Backend.apply`."""
        broadcast = self._send(context)
        spark = self._spark
        text = f"{function.__name__.replace('_', ' ')}: {len(items)}"
        spark.setJobGroup(self._tag, text, interruptOnCancel=False)
        _name_stages(spark, text)
        rdd = spark.parallelize(items, len(items))
        return list(spark.runJob(rdd, functools.partial(_apply, broadcast, function)))

    def is_alive(self) -> bool:
        """Return whether Spark still runs.  See `Backend.is_alive`."""
        return not _pyspark.is_stopped(self._spark)

    def cancel(self) -> None:
        """Stop all jobs of this backend.  See `Backend.cancel`."""
        self._spark.cancelJobGroup(self._tag)

    def close(self) -> None:
        """Free the broadcast context."""
        with self._lock:
            if self._sent is not None:
                self._sent[1].destroy()
                self._sent = None

    def _send(self, context: WorkerContext) -> Broadcast[bytes]:
        """Broadcast the context to the workers, once."""
        with self._lock:
            if self._sent is None or self._sent[0] is not context:
                self._sent = (context, self._spark.broadcast(dump_context(context)))
            return self._sent[1]


class _Stream[T](AccumulatorParam[list[T]]):
    """Accumulator of items: a list in a worker; in the driver it passes each item to a function."""

    def __init__(self, report: Callable[[T], None] | None = None):
        self._report = report

    def __reduce__(self) -> tuple[type[_Stream[T]], tuple[()]]:
        return _Stream, ()

    def zero(self, value: list[T]) -> list[T]:
        return []

    def addInPlace(self, value1: list[T], value2: list[T]) -> list[T]:
        if self._report is None:
            value1.extend(value2)
            return value1
        for item in value2:
            self._report(item)
        return []


def new_stream[T](spark: SparkContext, report: Callable[[T], None]) -> Accumulator[list[T]]:
    """Build an accumulator that passes each item of workers to a function; several threads may call this."""
    with _accumulators:
        return spark.accumulator([], _Stream(report))


def _again(report: ReportOutcome) -> ReportOutcome:
    """Return ``report`` for outcomes whose quanta another attempt may still be running."""
    return lambda outcome: report(dataclasses.replace(outcome, again=True))


def _find_slot_memory(conf: SparkConf, slots: int) -> int:
    """Return the memory in bytes that Spark's settings leave for Python in each slot; 0 if unknown."""
    if not slots or conf.get("spark.master", "").startswith("local"):
        return 0
    size = conf.get("spark.executor.pyspark.memory") or conf.get("spark.executor.memory") or "1g"
    return _pyspark.parse_mebibytes(size) * 2**20 // slots


def _memory_of(work: GroupWork) -> int:
    """Return the greatest memory that a group, or a group that it carries, requests."""
    return max([work.memory, *(_memory_of(other) for _, other in work.carried)])


def _describe(units: Sequence[UnitWork]) -> str:
    """Return the title of a job for Spark's pages."""
    return _title(sum(sum(unit.widths) for unit in units), units[0].groups[0])


def _describe_level(unit: UnitWork, level: int) -> str:
    """Return the title of the groups of a later level of a unit."""
    works: list[GroupWork] = list(unit.groups)
    for _ in range(level):
        works = [work for each in works for _, work in each.carried]
    return _title(unit.widths[level], *works[:1])


def _title(n_groups: int, *first: GroupWork) -> str:
    return ": ".join([f"{n_groups} group{'s' * (n_groups != 1)}", *(work.summary for work in first)])


def _name_stages(spark: SparkContext, text: str) -> None:
    """Name the stages of this thread's next job after their groups, not after the submitting line of code."""
    for name in ("callSite.short", "callSite.long"):
        spark.setLocalProperty(name, text)


def _apply[T, R](broadcast: Broadcast[bytes], function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    open_context(broadcast.value)
    return map(function, items)


def _drain(records: Iterable[object]) -> Iterator[None]:
    yield from ()
    for _ in records:
        raise EngineError("The last level of a unit has sent a record.")
