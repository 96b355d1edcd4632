"""Run groups as Spark tasks."""

from __future__ import annotations

__all__ = ["SparkBackend"]

import functools
import logging
import pickle
import threading
import uuid
from collections.abc import Iterable, Sequence

import cloudpickle
from pyspark import Accumulator, AccumulatorParam, Broadcast, SparkContext
from pyspark.sql import SparkSession

from ..isolation import run_group_isolated
from ..outcomes import QuantumOutcome
from ..worker import GroupWork, WorkerContext, prepare_process
from ._protocol import ReportOutcome

logger = logging.getLogger(__name__)


class SparkBackend:
    """Runs groups on the workers of a Spark session.

    Parameters
    ----------
    session
        The session.  It stays the caller's: this class never stops it.

    Notes
    -----
    A batch is one Spark job and a bundle one Spark task.  Outcomes come back
    through an accumulator, which Spark updates when a Spark task ends, so
    that nothing waits for the slowest task of a job.
    """

    def __init__(self, session: SparkSession):
        self._spark: SparkContext = session.sparkContext
        self._tag = f"spark-butler-{uuid.uuid4()}"
        self._lock = threading.Lock()
        self._sent: tuple[WorkerContext, Broadcast[bytes]] | None = None

    @property
    def slots(self) -> int:
        """How many groups can run at the same time."""
        return int(self._spark.defaultParallelism)

    def run(
        self, context: WorkerContext, batch: Sequence[Sequence[GroupWork]], report: ReportOutcome
    ) -> None:
        """Run groups as one Spark job.  See `Backend.run`."""
        broadcast = self._send(context)
        spark = self._spark
        spark.setJobGroup(self._tag, _describe(batch), interruptOnCancel=False)
        outcomes = spark.accumulator([], _OutcomeStream(report))
        rdd = spark.parallelize(batch, len(batch))
        rdd.foreachPartition(functools.partial(_run_bundles, broadcast, outcomes))

    def cancel(self) -> None:
        """Stop all jobs of this backend.  See `Backend.cancel`."""
        self._spark.cancelJobGroup(self._tag)

    def close(self) -> None:
        """Free what was sent to the workers."""
        with self._lock:
            if self._sent is not None:
                self._sent[1].destroy()
                self._sent = None

    def _send(self, context: WorkerContext) -> Broadcast[bytes]:
        """Send the context to the workers, once."""
        with self._lock:
            if self._sent is None or self._sent[0] is not context:
                self._sent = (context, self._spark.broadcast(cloudpickle.dumps(context)))
            return self._sent[1]


class _OutcomeStream(AccumulatorParam[list[QuantumOutcome]]):
    """Accumulates a list in a worker and passes it on in the driver."""

    def __init__(self, report: ReportOutcome | None = None):
        self._report = report

    def __reduce__(self) -> tuple[type[_OutcomeStream], tuple[()]]:
        return _OutcomeStream, ()

    def zero(self, value: list[QuantumOutcome]) -> list[QuantumOutcome]:
        return []

    def addInPlace(self, value1: list[QuantumOutcome], value2: list[QuantumOutcome]) -> list[QuantumOutcome]:
        if self._report is None:
            value1.extend(value2)
            return value1
        for outcome in value2:
            self._report(outcome)
        return []


def _describe(batch: Sequence[Sequence[GroupWork]]) -> str:
    """Name a job for Spark's pages."""
    works = [work for bundle in batch for work in bundle]
    more = f" and {len(works) - 1} more" if len(works) > 1 else ""
    return f"{works[0].summary}{more}"


@functools.lru_cache(maxsize=2)
def _open_context(data: bytes) -> WorkerContext:
    """Unpickle a context, once in the life of a worker process."""
    context = pickle.loads(data)
    assert isinstance(context, WorkerContext)
    prepare_process(context)
    return context


def _run_bundles(
    broadcast: Broadcast[bytes],
    outcomes: Accumulator[list[QuantumOutcome]],
    bundles: Iterable[Sequence[GroupWork]],
) -> None:
    """Run bundles of groups in a worker."""
    context = _open_context(broadcast.value)
    for bundle in bundles:
        for work in bundle:
            outcomes.add(list(run_group_isolated(context, work.open())))
