"""Data IDs of a query, whose functions run on workers with a butler.  Runs in the driver."""

from __future__ import annotations

__all__ = ["DataIds"]

import dataclasses
import inspect
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import cloudpickle
from lsst.daf.butler import DataCoordinate, DatasetRef

from ..errors import OptionsError, StaysHereError, UserError
from ..repository.query import Resolved
from ..spark.rdd import spread
from ..spark.session import check_session
from ..text import brief
from ..worker.function_butler import DataIdBatch, DataIdContext, WorkerButler
from .results import Puts, Results

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

_PARTITIONS_PER_SLOT = 4
_MOST_IN_PARTITION = 256
_SQL_TYPES: Mapping[type, str] = {int: "bigint", str: "string", bytes: "binary"}

_ARGUMENTS = ("b", "data_id")

type UserFunction = Callable[[WorkerButler, DataCoordinate], Any]


class DataIds(Sequence[DataCoordinate]):
    """Data IDs of a query: a sequence in this process, whose functions run on workers.

    Built by `SparkButler.data_ids`, which has queried the registry: each data
    ID travels with references to its datasets and with their datastore
    records.  `filter` and slices select data IDs in this process; `rdd` is an
    RDD of the data IDs alone, without a butler.

    Examples
    --------
    >>> raws = butler.data_ids("raw", where="exposure.observation_type = 'science'", also=["bias"])
    >>> raws.count()
    4
    >>> def level(b, data_id):
    ...     raw, bias = b.get("raw", data_id), b.get("bias", data_id).image
    ...     return float(np.median(raw.array) - np.median(bias.array))
    >>> len(raws.map(level).collect())
    4
    >>> raws.rdd.groupBy(lambda data_id: data_id["detector"]).mapValues(len).collectAsMap()
    {0: 2, 1: 2}
    >>> raws[:2]
    <DataIds: 2 of 'raw' with bias, in 2 partitions>
    """

    def __init__(
        self,
        session: SparkSession,
        resolved: Resolved,
        context: DataIdContext,
        puts: Puts,
        partitions: int | None,
    ):
        self._session = session
        self._resolved = resolved
        self._data_ids = resolved.data_ids
        self._context = context
        self._puts = puts
        self._partitions = partitions
        check_session(session)
        slots = int(session.sparkContext.defaultParallelism)
        n = len(self._data_ids)
        self._n_partitions = min(
            n, partitions or max(_PARTITIONS_PER_SLOT * slots, -(-n // _MOST_IN_PARTITION))
        )
        self._apply: Callable[[UserFunction], RDD[Any]] | None = None

    @overload
    def __getitem__(self, index: int) -> DataCoordinate: ...

    @overload
    def __getitem__(self, index: slice) -> DataIds: ...

    def __getitem__(self, index: int | slice) -> DataCoordinate | DataIds:
        return self._with(self._resolved.refs[index]) if isinstance(index, slice) else self._data_ids[index]

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
            "A function for workers uses DataIds, which can't be sent: give it data IDs, collect()."
        )

    @property
    def refs(self) -> list[DatasetRef]:
        """References to the datasets, one for each data ID."""
        return list(self._resolved.refs)

    @property
    def rdd(self) -> RDD[DataCoordinate]:
        """RDD of the data IDs themselves, without a butler."""
        return self._rdd(_own)

    def collect(self) -> list[DataCoordinate]:
        """Return a list of the data IDs, without a Spark job.

        Examples
        --------
        >>> [data_id["detector"] for data_id in raws.collect()]
        [0, 0, 1, 1]
        """
        return list(self._data_ids)

    def count(self, *values: Any) -> int:
        """Return the number of data IDs; with an argument, the number of data IDs equal to it."""
        return super().count(*values) if values else len(self)

    def filter(self, function: Callable[[DataCoordinate], Any]) -> DataIds:
        """Return the data IDs that a function selects in this process.

        Parameters
        ----------
        function
            Called as ``function(data_id)``; returns whether the data ID is
            kept.

        Examples
        --------
        >>> ones = raws.filter(lambda data_id: data_id["detector"] == 1)
        >>> ones.map(lambda b, data_id: b.get("raw", data_id).array.ndim).collect()
        [2, 2]
        """
        _check_arguments("filter", function, ["data_id"])
        return self._with(ref for ref in self._resolved.refs if function(ref.dataId))

    def map(self, function: UserFunction) -> Results:
        """Return the results of a function, which runs on workers when an action of the results starts.

        Parameters
        ----------
        function
            Called as ``function(b, data_id)``, with a `WorkerButler`.

        Examples
        --------
        >>> names = raws.map(lambda b, data_id: data_id.records["detector"].full_name)
        >>> sorted(set(names.collect()))
        ['S00', 'S01']
        """
        _check_function("map", function, _ARGUMENTS)
        return self._results(self._rdd(function), "map")

    def flatMap(self, function: UserFunction) -> Results:
        """Return the results of a function that returns several for each data ID.  See `map`.

        Parameters
        ----------
        function
            Called as ``function(b, data_id)``; returns an iterable.

        Examples
        --------
        >>> raws.flatMap(lambda b, data_id: [data_id["exposure"]] * 2).count()
        8
        """
        _check_function("flatMap", function, _ARGUMENTS)
        return self._results(self._rdd(function).flatMap(lambda values: values), "flatMap")

    def foreach(self, function: UserFunction) -> None:
        """Call a function that puts datasets with a butler and each data ID, on workers.

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
        _check_function("foreach", function, _ARGUMENTS)
        self._results(self._rdd(function), "foreach").foreach(lambda _: None)

    def ingest(self) -> int:
        """Register the datasets that functions have put since the last action, and return their number.

        Actions of `Results` end with it; those of a `DataFrame` made of them
        don't.
        """
        return self._puts.ingest()

    def to_dataframe(self) -> DataFrame:
        """Return a Spark DataFrame with a row for each data ID.

        Its columns are the dimensions, and ``dataset_type``, ``dataset_id`` and ``run``.

        Examples
        --------
        >>> raws.to_dataframe().groupBy("exposure").count().count()
        2
        """
        universe = self._resolved.dimensions.universe
        check_session(self._session)
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
        """Return an RDD of the results of a function."""
        check_session(self._session)
        if function is not _own:
            self._puts.register()
        if self._apply is None:
            self._apply = spread(
                self._session.sparkContext, self._context, self._batches(), self._puts.record
            )
        return self._apply(function)

    def _results(self, rdd: RDD[Any], what: str) -> Results:
        """Return an RDD as results, with a title for Spark's pages."""
        name = self._resolved.dataset_type.name
        first = (
            f" {{{', '.join(f'{k}: {v!r}' for k, v in self._data_ids[0].required.items())}}}" if self else ""
        )
        return Results(self._session, rdd, self._puts.ingest, f"{len(self)} {name}{first}: {what}")

    def _with(self, refs: Iterable[DatasetRef]) -> DataIds:
        """Return an object like this one for other data IDs."""
        resolved = dataclasses.replace(self._resolved, refs=tuple(refs))
        return DataIds(self._session, resolved, self._context, self._puts, self._partitions)

    def _batches(self) -> list[bytes]:
        """Pickle the data IDs, in partitions of about equal size."""
        n, refs = self._n_partitions, self._resolved.refs
        batches = []
        for part in (refs[len(refs) * k // n : len(refs) * (k + 1) // n] for k in range(n)):
            related = tuple(self._resolved.related(ref) for ref in part)
            ids = {ref.id for by_type in related for found in by_type.values() for ref in found}
            records = {
                name: subset
                for name, data in self._resolved.records.items()
                if (subset := data.subset(ids)) is not None
            }
            batches.append(pickle.dumps(DataIdBatch(tuple(ref.dataId for ref in part), related, records)))
        return batches


def _own(_: WorkerButler, data_id: DataCoordinate) -> DataCoordinate:
    return data_id


def _check_function(caller: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Check that a function, which a method was given, can be sent to workers and be called there."""
    _check_arguments(caller, function, arguments)
    reasons: list[Exception] = []

    def pickle_it() -> None:
        try:
            cloudpickle.dumps(function)
        except Exception as exc:  # noqa: BLE001  (each object that a function refers to raises its own)
            reasons.append(exc)

    # In a thread of its own, since PySpark keeps a list, by thread, of the broadcasts that were pickled.
    thread = threading.Thread(target=pickle_it, name="spark-butler-pickle")
    thread.start()
    thread.join()
    for reason in reasons:
        if isinstance(reason, UserError):
            raise reason
        raise OptionsError(
            f"{caller}: {_name(function)} can't be sent to workers: {brief(reason)}"
        ) from reason


def _check_arguments(caller: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Check that a function takes the arguments that it will be called with."""
    wanted = f"expected a function f({', '.join(arguments)})"
    if not callable(function):
        raise OptionsError(f"{caller}: {function!r} can't be called; {wanted}.")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        # Some functions written in C have no signature.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise OptionsError(f"{caller}: {_name(function)} takes {signature}; {wanted}.") from None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
