"""Results of functions on data IDs, and the datasets that the functions put.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Puts", "Results"]

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from lsst.daf.butler import Butler, DatasetType

from .._daf_butler import fetch_run_ids
from ..errors import StaysHereError
from ..repository.checks import refuse_read_only
from ..repository.output_ingest import Ingester
from ..spark.rdd import RDD, run_action
from ..text import as_engine_error
from ..worker.function_butler import PutReport

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class Puts:
    """Datasets that workers have put into the datastore, and that are not registered yet."""

    def __init__(self, repo: str, output_run: str, outputs: Mapping[str, DatasetType]):
        self._repo = repo
        self._run = output_run
        self._outputs = outputs
        self._reports: list[PutReport] = []
        self._lock = threading.Lock()
        self._ingesting = threading.Lock()
        self._is_registered = False

    def register(self) -> None:
        """Register the run and the dataset types of the outputs, before a worker writes any."""
        if self._is_registered or not self._outputs:
            return
        with (
            refuse_read_only(f"the Butler repository {self._repo!r}"),
            Butler.from_config(self._repo, writeable=True) as butler,
        ):
            butler.collections.register(self._run)
            for dataset_type in self._outputs.values():
                butler.registry.registerDatasetType(dataset_type)
        self._is_registered = True

    def record(self, report: PutReport) -> None:
        """Record a dataset that was put; any thread may call this."""
        with self._lock:
            self._reports.append(report)

    def ingest(self) -> int:
        """Ingest the datasets that were put since the last call, and return their number."""
        with self._ingesting:
            with self._lock:
                reports = list(self._reports)
            if not reports:
                return 0
            with as_engine_error(
                f"{len(reports)} datasets that functions have put are in the datastore, but could not be "
                f"put into the registry, run {self._run!r}",
                remedy="DataIds.ingest() tries again.",
            ):
                with Butler.from_config(self._repo, writeable=True) as butler:
                    ingester = Ingester(butler, self._outputs, existing=fetch_run_ids(butler, self._run))
                    for report in reports:
                        ingester.add([report.ref], [report.ref.id], report.records)
                    ingester.flush()
                n_ingested = ingester.n_ingested
            with self._lock:
                # Only after the ingest, so that another call retries a failed one.
                del self._reports[: len(reports)]
        logger.info("%d datasets were put into run %r.", n_ingested, self._run)
        return n_ingested


class Results:
    """RDD of the results of a function.

    It has all methods of `pyspark.RDD`.  An action (``collect``, ``count``,
    ``reduce``, ...) stops its jobs when it is interrupted, and ends with the
    ingest of the datasets that the function has put.

    Examples
    --------
    >>> results = raws.map(lambda b, data_id: (data_id["detector"], 1))
    >>> sorted(results.reduceByKey(lambda one, two: one + two).collect())
    [(0, 2), (1, 2)]
    """

    def __init__(self, session: SparkSession, rdd: RDD[Any], ingest: Callable[[], int], description: str):
        self._session = session
        self._rdd = rdd
        self._ingest = ingest
        self._description = description

    @property
    def rdd(self) -> RDD[Any]:
        """The RDD itself; its actions neither ingest nor stop when they are interrupted."""
        return self._rdd

    def __repr__(self) -> str:
        return f"<Results: {self._description}>"

    def __reduce__(self) -> NoReturn:
        raise StaysHereError(
            "A function for workers uses Results, which can't be sent: give it their collect()."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._rdd, name):
            raise AttributeError(
                f"Results have no {name!r}; they have the methods of an RDD.", name=name, obj=self
            )
        attribute = getattr(self._rdd, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [arg.rdd if isinstance(getattr(arg, "rdd", None), RDD) else arg for arg in args]
            return self._act(name, lambda: attribute(*given, **kwargs))

        return call

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._rdd) if not name.startswith("_"))})

    def toLocalIterator(self, prefetchPartitions: bool = False) -> Iterator[Any]:
        """Iterate over the collected results; ``prefetchPartitions`` has no effect."""
        return iter(self.collect())

    def _act(self, name: str, action: Callable[[], Any]) -> Any:
        """Call a method of the RDD, which may be an action."""
        try:
            result = run_action(self._session, f"{self._description}, {name}", action)
        finally:
            self._ingest()
        if isinstance(result, RDD):
            return Results(self._session, result, self._ingest, self._description)
        return result
