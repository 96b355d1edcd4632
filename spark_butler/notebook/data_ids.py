"""A query becomes an RDD of data IDs, with a butler on each worker."""

from __future__ import annotations

__all__ = ["DataIds", "Results"]

import dataclasses
import logging
import pickle
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType

from .._daf_butler import fetch_run_ids
from ..driver.context import make_worker_context
from ..errors import EmptyGraphError, EngineError, OptionsError, StaysHereError
from ..repository.checks import check_writeable, refuse_read_only, store_roots
from ..repository.ingest import Ingester
from ..repository.query import Resolved, find_output_types
from ..text import brief
from ..worker.butler import DataIdBatch, DataIdContext, PutReport, WorkerButler
from .functions import check_arguments, check_function

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

_PARTITIONS_PER_SLOT = 4
_MOST_IN_PARTITION = 256
_SQL_TYPES: Mapping[type, str] = {int: "bigint", str: "string", bytes: "binary"}

_ARGUMENTS = ("b", "data_id")

type UserFunction = Callable[[WorkerButler, DataCoordinate], Any]


class _Puts:
    """Puts into the registry what workers have put into the datastore."""

    def __init__(self, repo: str, output_run: str, outputs: Mapping[str, DatasetType]):
        self._repo = repo
        self._run = output_run
        self._outputs = outputs
        self._reports: list[PutReport] = []
        self._lock = threading.Lock()
        self._ingesting = threading.Lock()
        self._is_registered = False

    def register(self) -> None:
        """Register the run and the dataset types of the outputs, before a worker writes any.

        Raises
        ------
        spark_butler.errors.RepositoryError
            Raised if the registry can't be written to.
        """
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

    def note(self, report: PutReport) -> None:
        """Hear of a dataset that was put, in any thread."""
        with self._lock:
            self._reports.append(report)

    def ingest(self) -> int:
        """Ingest what came since the last call, and return how many datasets those were."""
        with self._ingesting:
            with self._lock:
                reports = list(self._reports)
            if not reports:
                return 0
            try:
                n_ingested = self._write(reports)
            except Exception as exc:  # many libraries may speak here
                raise EngineError(
                    f"{len(reports)} datasets that functions have put are in the datastore, but could not be "
                    f"put into the registry, run {self._run!r}: {brief(exc)}  DataIds.ingest() tries again."
                ) from exc
            with self._lock:
                # Only now, so that another call makes up for one that failed.
                del self._reports[: len(reports)]
        logger.info("%d datasets were put into run %r.", n_ingested, self._run)
        return n_ingested

    def _write(self, reports: Sequence[PutReport]) -> int:
        """Put datasets into the registry."""
        with Butler.from_config(self._repo, writeable=True) as butler:
            ingester = Ingester(butler, self._outputs, existing=fetch_run_ids(butler, self._run))
            for report in reports:
                ingester.add([report.ref], [report.ref.id], report.records)
            ingester.flush()
            return ingester.n_ingested


class DataIds(Sequence[DataCoordinate]):
    """The data IDs of a query: a sequence here, and an RDD on the workers.

    Made by `SparkButler.data_ids`.  The registry was asked when this was
    made: each data ID travels with references to its datasets and with their
    datastore records.

    Functions of `map`, `flatMap` and `foreach` get a butler.  What chooses
    among data IDs (`filter`, `sample`, `sortBy`) is done here, and gives such
    data IDs again.  Every other method of an RDD works on the data IDs alone.

    Examples
    --------
    >>> raws = butler.data_ids("raw", where="exposure.observation_type = 'science'", also=["bias"])
    >>> raws.count()
    4
    >>> def level(b, data_id):
    ...     return float(np.median(b.get("raw", data_id).array) - np.median(b.get("bias", data_id).array))
    >>> len(raws.map(level).collect())
    4
    >>> raws.groupBy(lambda data_id: data_id["detector"]).mapValues(len).collectAsMap()
    {0: 2, 1: 2}
    """

    def __init__(
        self,
        session: SparkSession,
        resolved: Resolved,
        context: DataIdContext,
        puts: _Puts,
        partitions: int | None = None,
    ):
        self._session = session
        self._resolved = resolved
        self._data_ids = resolved.data_ids
        self._context = context
        self._puts = puts
        self._partitions = partitions
        slots = int(session.sparkContext.defaultParallelism)
        n = len(self._data_ids)
        self._n_partitions = min(
            n, partitions or max(_PARTITIONS_PER_SLOT * slots, -(-n // _MOST_IN_PARTITION))
        )
        self._apply: Callable[[UserFunction], RDD[Any]] | None = None

    @classmethod
    def make(
        cls,
        butler: Butler,
        repo: str,
        session: SparkSession,
        resolved: Resolved,
        *,
        outputs: Sequence[str] | Mapping[str, str] = (),
        output_run: str | None = None,
        clobber_outputs: bool = False,
        partitions: int | None = None,
    ) -> Self:
        """Look whether outputs can be put, and make data IDs of what a query has found.

        Parameters
        ----------
        butler
            Butler of the repository.
        repo
            Its address.
        session
            Where functions are to run.
        resolved
            What the query has found.
        outputs, output_run, clobber_outputs, partitions
            As for `SparkButler.data_ids`.
        """
        output_types = find_output_types(
            butler, outputs, output_run, resolved.data_ids, clobber=clobber_outputs
        )
        if output_types:
            check_writeable(store_roots(butler))
        context = DataIdContext(
            make_worker_context(butler, [*resolved.dataset_types, *output_types.values()]),
            resolved.dimensions,
            output_types,
            output_run or "",
        )
        return cls(session, resolved, context, _Puts(repo, output_run or "", output_types), partitions)

    @overload
    def __getitem__(self, index: int) -> DataCoordinate: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[DataCoordinate]: ...

    def __getitem__(self, index: int | slice) -> DataCoordinate | Sequence[DataCoordinate]:
        return self._data_ids[index]

    def __len__(self) -> int:
        return len(self._data_ids)

    def __iter__(self) -> Iterator[DataCoordinate]:
        return iter(self._data_ids)

    def __repr__(self) -> str:
        name = self._resolved.dataset_type.name
        also = f" with {', '.join(self._resolved.others)}" if self._resolved.others else ""
        return f"<DataIds: {len(self)} of {name!r}{also}, in {self._n_partitions} partitions>"

    def __reduce__(self) -> NoReturn:
        raise StaysHereError(
            "A function for workers uses DataIds, which stay here: give it a list of data IDs, collect()."
        )

    def __getattr__(self, name: str) -> Any:
        """Find a method of the RDD of the data IDs; its functions get data IDs, and no butler."""
        from ..spark.rdd import rdd_names

        if name not in rdd_names():
            own = ", ".join(each for each in dir(type(self)) if not each.startswith("_"))
            raise AttributeError(
                f"DataIds have no {name!r}; they have {own}, and the methods of an RDD.", name=name, obj=self
            )
        return getattr(self._results(self.rdd, "data IDs"), name)

    def __dir__(self) -> list[str]:
        from ..spark.rdd import rdd_names

        return sorted({*super().__dir__(), *rdd_names()})

    @property
    def refs(self) -> list[DatasetRef]:
        """References to the datasets, one for each data ID."""
        return list(self._resolved.refs)

    @property
    def rdd(self) -> RDD[DataCoordinate]:
        """The RDD of the data IDs themselves, for all that Spark can do with one."""
        return self._rdd(_own)

    def collect(self) -> list[DataCoordinate]:
        """List the data IDs; Spark is not asked for that.

        Examples
        --------
        >>> [data_id["detector"] for data_id in raws.collect()]
        [0, 0, 1, 1]
        """
        return list(self._data_ids)

    def count(self, *values: Any) -> int:
        """Count the data IDs, or, as of any sequence, how often a value is among them.

        Parameters
        ----------
        *values
            The value, or nothing.

        Examples
        --------
        >>> raws.count(), raws.count(raws[0])
        (4, 1)
        """
        if len(values) > 1:
            raise TypeError(f"count() takes one value or none, not {len(values)}")
        return self._data_ids.count(*values) if values else len(self)

    def take(self, num: int) -> list[DataCoordinate]:
        """List the first few data IDs.

        Parameters
        ----------
        num
            Their greatest number.

        Examples
        --------
        >>> len(raws.take(2))
        2
        """
        return self._data_ids[: max(0, num)]

    def first(self) -> DataCoordinate:
        """Return the first data ID.

        Raises
        ------
        spark_butler.errors.EmptyGraphError
            Raised if there is none.

        Examples
        --------
        >>> raws.first() == raws[0]
        True
        """
        if not self._data_ids:
            raise EmptyGraphError(f"There are no data IDs of {self._resolved.dataset_type.name!r} here.")
        return self._data_ids[0]

    def isEmpty(self) -> bool:
        """Whether there is no data ID.

        Examples
        --------
        >>> raws.filter(lambda data_id: data_id["detector"] > 99).isEmpty()
        True
        """
        return not self._data_ids

    def filter(self, function: Callable[[DataCoordinate], Any]) -> DataIds:
        """Choose among the data IDs; this is done here and at once.

        Parameters
        ----------
        function
            Called as ``function(data_id)``, in this process; tells whether
            the data ID is kept.

        Returns
        -------
        data_ids
            Those that are kept, whose functions get a butler as well.

        Examples
        --------
        >>> ones = raws.filter(lambda data_id: data_id["detector"] == 1)
        >>> ones.map(lambda b, data_id: b.get("raw", data_id).array.ndim).collect()
        [2, 2]
        """
        check_arguments("filter", function, ["data_id"])
        return self._with(ref for ref in self._resolved.refs if function(ref.dataId))

    def sample(self, withReplacement: bool, fraction: float, seed: int | None = None) -> DataIds:
        """Choose data IDs at random; this is done here and at once.

        Parameters
        ----------
        withReplacement
            Whether one may be chosen several times; must be `False`.
        fraction
            The probability that a data ID is kept.
        seed
            Where the random numbers begin.

        Examples
        --------
        >>> raws.sample(False, 1.0).count(), raws.sample(False, 0.0).count()
        (4, 0)
        """
        if withReplacement is not False:
            raise OptionsError(
                f"sample: withReplacement is {withReplacement!r}; expected False: no data ID comes twice."
            )
        if isinstance(fraction, bool) or not 0 <= fraction <= 1:
            raise OptionsError(f"sample: fraction is {fraction!r}; expected a number from 0 to 1.")
        chosen = random.Random(seed)
        return self._with(ref for ref in self._resolved.refs if chosen.random() < fraction)

    def sortBy(self, keyfunc: Callable[[DataCoordinate], Any], ascending: bool = True) -> DataIds:
        """Put the data IDs into another order; this is done here and at once.

        Parameters
        ----------
        keyfunc
            Called as ``keyfunc(data_id)``, in this process.
        ascending
            Whether the smallest comes first.

        Examples
        --------
        >>> [each["detector"] for each in raws.sortBy(lambda data_id: data_id["detector"], ascending=False)]
        [1, 1, 0, 0]
        """
        check_arguments("sortBy", keyfunc, ["data_id"])
        return self._with(
            sorted(self._resolved.refs, key=lambda ref: keyfunc(ref.dataId), reverse=not ascending)
        )

    def map(self, function: UserFunction) -> Results:
        """Call a function with a butler and each data ID, on the workers, once the results are asked for.

        Parameters
        ----------
        function
            Called as ``function(b, data_id)``, with a `WorkerButler`.

        Returns
        -------
        results
            What it returns, as an RDD.

        Examples
        --------
        >>> names = raws.map(lambda b, data_id: data_id.records["detector"].full_name)
        >>> sorted(set(names.collect()))
        ['S00', 'S01']
        """
        check_function("map", function, _ARGUMENTS)
        return self._results(self._rdd(function), "map")

    def flatMap(self, function: UserFunction) -> Results:
        """As `map`, for a function that returns several results, which are put one after another.

        Parameters
        ----------
        function
            Called as ``function(b, data_id)``; returns an iterable.

        Examples
        --------
        >>> raws.flatMap(lambda b, data_id: [data_id["exposure"]] * 2).count()
        8
        """
        check_function("flatMap", function, _ARGUMENTS)
        return self._results(self._rdd(function).flatMap(_itself), "flatMap")

    def foreach(self, function: UserFunction) -> None:
        """Call a function with a butler and each data ID, for what it puts.

        Parameters
        ----------
        function
            Called as ``function(b, data_id)``.

        Examples
        --------
        >>> raws = butler.data_ids("raw", where="exposure.observation_type = 'science'",
        ...                        outputs={"raw_level": "StructuredDataDict"}, output_run="u/me/levels")
        >>> def put_level(b, data_id):
        ...     b.put({"median": float(np.median(b.get("raw", data_id).array))}, "raw_level", data_id)
        >>> raws.foreach(put_level)
        >>> len(butler.data_ids("raw_level", collections="u/me/levels"))
        4
        """
        check_function("foreach", function, _ARGUMENTS)
        self._results(self._rdd(function), "foreach").foreach(_nothing)

    def ingest(self) -> int:
        """Put into the registry what functions have put since the last action.

        Actions on `Results` end with it.  Only those of a `DataFrame` that
        was made of them don't.

        Returns
        -------
        n_ingested
            Number of datasets.
        """
        return self._puts.ingest()

    def to_dataframe(self) -> DataFrame:
        """Make a Spark DataFrame with a row for each data ID.

        Returns
        -------
        frame
            Its columns are the dimensions, and ``dataset_type``,
            ``dataset_id`` and ``run``.

        Examples
        --------
        >>> raws.to_dataframe().groupBy("exposure").count().count()
        2
        """
        universe = self._resolved.dimensions.universe
        names = list(self._resolved.dimensions.names)
        types = [universe.dimensions[name].primaryKey.getPythonType() for name in names]
        columns = [f"`{name}` {_SQL_TYPES[each]}" for name, each in zip(names, types, strict=True)]
        columns += ["dataset_type string", "dataset_id string", "run string"]
        rows = [
            (*(ref.dataId[name] for name in names), ref.datasetType.name, str(ref.id), ref.run)
            for ref in self._resolved.refs
        ]
        return self._session.createDataFrame(rows, ", ".join(columns))

    def _rdd(self, function: UserFunction) -> RDD[Any]:
        """Make an RDD of what a function returns."""
        if function is not _own:
            self._puts.register()
        if self._apply is None:
            from ..spark.rdd import spread

            self._apply = spread(self._session.sparkContext, self._context, self._bundle(), self._puts.note)
        return self._apply(function)

    def _results(self, rdd: RDD[Any], what: str) -> Results:
        """Hand out an RDD, under a name for Spark's pages."""
        name = self._resolved.dataset_type.name
        first = f" {self._data_ids[0]}" if self._data_ids else ", none"
        more = f" and {len(self) - 1} more" if len(self) > 1 else ""
        return Results(self._session, rdd, self._puts.ingest, f"{what} of {name}{first}{more}")

    def _with(self, refs: Iterable[DatasetRef]) -> DataIds:
        """Make the same of other data IDs."""
        resolved = dataclasses.replace(self._resolved, refs=tuple(refs))
        return DataIds(self._session, resolved, self._context, self._puts, self._partitions)

    def _bundle(self) -> list[bytes]:
        """Pickle the data IDs, in partitions of about equal size."""
        n, refs = self._n_partitions, self._resolved.refs
        bundles = []
        for part in (refs[len(refs) * k // n : len(refs) * (k + 1) // n] for k in range(n)):
            related = tuple(self._resolved.related(ref) for ref in part)
            ids = {ref.id for by_type in related for found in by_type.values() for ref in found}
            records = {
                name: subset
                for name, data in self._resolved.records.items()
                if (subset := data.subset(ids)) is not None
            }
            bundles.append(pickle.dumps(DataIdBatch(tuple(ref.dataId for ref in part), related, records)))
        return bundles


class Results:
    """An RDD of what a function made of data IDs.

    It has all methods of `pyspark.RDD`.  An action (``collect``, ``count``,
    ``reduce``, ...) stops its jobs when it is interrupted, and ends with the
    ingest of what the function has put.

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
        """The RDD itself; its actions don't ingest, and don't stop when they are interrupted."""
        return self._rdd

    def __repr__(self) -> str:
        return f"<Results: {self._description}>"

    def __reduce__(self) -> NoReturn:
        raise StaysHereError("A function for workers uses Results, which stay here: give it their collect().")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._rdd, name):
            raise AttributeError(
                f"Results have no {name!r}; they have the methods of an RDD.", name=name, obj=self
            )
        attribute = getattr(self._rdd, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [arg.rdd if isinstance(arg, Results | DataIds) else arg for arg in args]
            return self._act(name, lambda: attribute(*given, **kwargs))

        return call

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._rdd) if not name.startswith("_"))})

    def toLocalIterator(self, prefetchPartitions: bool = False) -> Iterator[Any]:
        """Collect the results, and go through them.

        Parameters
        ----------
        prefetchPartitions
            Has no effect.
        """
        return iter(self.collect())

    def _act(self, name: str, action: Callable[[], Any]) -> Any:
        """Call a method of the RDD, which may be an action."""
        from ..spark.rdd import run_action

        try:
            result = run_action(self._session, f"{self._description}, {name}", action)
        finally:
            self._ingest()
        # Whatever is an RDD has this.
        if hasattr(result, "mapPartitionsWithIndex"):
            return Results(self._session, result, self._ingest, self._description)
        return result


def _own(_: WorkerButler, data_id: DataCoordinate) -> DataCoordinate:
    return data_id


def _itself(values: Any) -> Any:
    return values


def _nothing(_: Any) -> None:
    pass
