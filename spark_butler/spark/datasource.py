"""Tables of a Butler repository as Spark DataFrames: ``spark.read.format("butler")``.

Spark resolves datasets in a Python process of the driver, and reads them in
workers.  Needs PySpark 4.0; filters on data IDs are pushed down from 4.1 on.
"""

from __future__ import annotations

__all__ = ["ButlerDataSource", "ButlerReader", "find_schema", "register"]

import dataclasses
import operator
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType
from lsst.daf.butler.utils import has_globs
from pyspark.sql import SparkSession, datasource
from pyspark.sql.datasource import DataSourceReader, InputPartition
from pyspark.sql.types import StructType

from .._daf_butler import export_records
from ..driver.context import make_worker_context
from ..errors import EmptyGraphError, OptionsError
from ..repository.checks import check_repository
from ..repository.query import find_data_ids
from ..worker.function_butler import DataIdBatch, DataIdContext, WorkerButler
from ..worker.notebook_classes import dump_with_classes
from ._pyspark import to_arrow, to_spark

_PUSHDOWN = "spark.sql.python.filterPushdown.enabled"
_MOST_PARTITIONS = 256
_ARROW_TABLE = "ArrowTable"

_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "EqualTo": operator.eq,
    "In": lambda value, choices: value in choices,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqual": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqual": operator.le,
}

_NARROWED: Mapping[pa.DataType, pa.DataType] = {
    # Spark has no unsigned integers.
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
}


@dataclasses.dataclass(frozen=True)
class _DimensionTest:
    """A comparison of a dimension's value in a data ID with a constant."""

    dimension: str
    kind: str
    """Name of PySpark's class of the filter."""
    value: Any

    def passes(self, data_id: DataCoordinate) -> bool:
        """Return whether a data ID passes."""
        value = data_id[self.dimension]
        return value is not None and _TESTS[self.kind](value, self.value)


@dataclasses.dataclass(frozen=True)
class _Request:
    """Options of ``spark.read``."""

    repo: str
    dataset_type: str
    collections: tuple[str, ...]
    where: str
    columns: tuple[str, ...]
    per_partition: int | None

    @classmethod
    def read(cls, options: Mapping[str, str]) -> _Request:
        """Read the options of ``spark.read``."""
        given = {name.lower(): value for name, value in options.items()}
        known = {"repo", "datasettype", "collections", "where", "columns", "datasetsperpartition", "path"}
        if unknown := sorted(given.keys() - known):
            raise OptionsError(
                f"The butler source has no options {', '.join(unknown)}; it has repo, datasetType, "
                "collections, where, columns and datasetsPerPartition."
            )
        repo, dataset_type = given.get("repo", given.get("path")), given.get("datasettype")
        if not repo or not dataset_type:
            raise OptionsError("The butler source needs the options repo and datasetType.")
        per_partition = given.get("datasetsperpartition")
        if per_partition is not None and not (per_partition.isdecimal() and int(per_partition)):
            raise OptionsError(f"datasetsPerPartition is {per_partition!r}; expected a positive number.")
        return cls(
            repo,
            dataset_type,
            _split(given.get("collections", "")),
            given.get("where", ""),
            _split(given.get("columns", "")),
            None if per_partition is None else int(per_partition),
        )

    def open(self) -> Butler:
        """Open the repository."""
        check_repository(self.repo)
        names = None if has_globs(self.collections) else list(self.collections) or None
        return Butler.from_config(self.repo, collections=names, writeable=False)


class ButlerDataSource(datasource.DataSource):
    """Tables of a Butler repository, with the columns of their data IDs.

    One Spark task reads a dataset, whole or in columns.  Columns of the data
    ID replace columns of the same name in the table.

    Notes
    -----
    Options: ``repo``, ``datasetType``, ``collections``, ``where`` (as in
    ``butler query-datasets``), ``columns`` (those of the table to read, since
    Spark does not tell a source which ones a query needs), and
    ``datasetsPerPartition``.

    Examples
    --------
    >>> options = {"repo": repo, "datasetType": "ref_cat", "collections": "refcats"}
    >>> catalog = spark.read.format("butler").options(**options).load()
    >>> catalog.filter("htm7 < 0").count()
    0
    """

    @classmethod
    def name(cls) -> str:
        return "butler"

    def schema(self) -> StructType:
        return find_schema(self.options)

    def reader(self, schema: StructType) -> DataSourceReader:
        return _FilteringReader(self.options, schema)


def find_schema(options: Mapping[str, str]) -> StructType:
    """Return the schema of all tables, which is read from one of them; see `ButlerDataSource`."""
    request = _Request.read(options)
    with request.open() as butler:
        found = find_data_ids(
            butler, request.dataset_type, where=request.where, collections=request.collections, limit=1
        )
        ref = found.refs[0]
        _check_type(butler, ref.datasetType)
        table_schema = butler.get(ref.makeComponentRef("schema"), storageClass="ArrowSchema")
    return to_spark(_make_schema(ref.dataId, table_schema, request))


class ButlerReader(DataSourceReader):
    """Resolves datasets where Spark plans, and reads them in workers; see `ButlerDataSource`."""

    def __init__(self, options: Mapping[str, str], schema: StructType):
        request = self._request = _Request.read(options)
        self._schema = schema
        self._tests: list[_DimensionTest] = []
        with request.open() as butler:
            dataset_type = butler.get_dataset_type(request.dataset_type)
            _check_type(butler, dataset_type)
            self._dimensions = set(dataset_type.dimensions.names)
            self._context = dump_with_classes(
                DataIdContext(make_worker_context(butler, [dataset_type]), dataset_type.dimensions)
            )

    def partitions(self) -> list[InputPartition]:
        request = self._request
        # The registry applies the equalities; this process applies all tests.
        equal = [(test.dimension, test.value) for test in self._tests if test.kind == "EqualTo"]
        where = [f"({request.where})"] if request.where else []
        where += [f"{name} = :value{n}" for n, (name, _) in enumerate(equal)]
        bind = {f"value{n}": value for n, (_, value) in enumerate(equal)}
        with request.open() as butler:
            try:
                found = find_data_ids(
                    butler,
                    request.dataset_type,
                    where=" AND ".join(where),
                    bind=bind,
                    collections=request.collections,
                )
            except EmptyGraphError:
                return []
            refs = [ref for ref in found.refs if all(test.passes(ref.dataId) for test in self._tests)]
            size = request.per_partition or -(-len(refs) // _MOST_PARTITIONS) or 1
            parts = [refs[n : n + size] for n in range(0, len(refs), size)]
            return [InputPartition(_pack(butler, part)) for part in parts]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        if partition.value is None:
            return
        from .worker_entry import open_context, worker_state

        context = open_context(self._context)
        batch = DataIdBatch.open(partition.value)
        target = to_arrow(self._schema)
        butler = WorkerButler(worker_state(), context, batch, report=lambda _: None)
        try:
            for by_type in batch.refs:
                for ref in (ref for refs in by_type.values() for ref in refs):
                    yield from self._read_table(butler, ref, target).to_batches()
        finally:
            butler.close()

    def _read_table(self, butler: WorkerButler, ref: DatasetRef, target: pa.Schema) -> pa.Table:
        """Read a table and give it the columns that Spark expects."""
        columns = [name for name in target.names if name not in self._dimensions]
        try:
            table = butler.get(ref, parameters={"columns": columns}, storage_class=_ARROW_TABLE)
        except Exception:
            known = set(butler.get(ref, component="columns", storage_class="ArrowColumnList"))
            if known.issuperset(columns):
                raise
            columns = [name for name in columns if name in known]
            table = butler.get(ref, parameters={"columns": columns}, storage_class=_ARROW_TABLE)
        arrays = []
        for field in target:
            if field.name in self._dimensions:
                values = pa.array([ref.dataId[field.name]], type=field.type)
                arrays.append(values.take(pa.array([0] * len(table), type=pa.int64())))
            elif field.name in columns:
                arrays.append(table.column(field.name).cast(field.type))
            else:
                arrays.append(pa.nulls(len(table), type=field.type))
        return pa.Table.from_arrays(arrays, schema=target)


class _FilteringReader(ButlerReader):
    """Reader that takes filters, which Spark must allow."""

    def pushFilters(self, filters: list[Any]) -> Iterable[Any]:
        for each in filters:
            kind = type(each).__name__
            column: tuple[str, ...] = getattr(each, "attribute", ())
            if kind in _TESTS and len(column) == 1 and column[0] in self._dimensions:
                self._tests.append(_DimensionTest(column[0], kind, each.value))
            else:
                # Spark tests the rows itself.
                yield each


def register(session: SparkSession) -> None:
    """Register the butler source in a session, with filters on data IDs.

    Spark 4 finds the source by itself, but without them.

    Parameters
    ----------
    session
        The session, of PySpark 4.0 or newer.

    Examples
    --------
    >>> register(spark)
    >>> options = {"repo": repo, "datasetType": "ref_cat", "collections": "refcats", "columns": "id"}
    >>> spark.read.format("butler").options(**options).load().columns
    ['htm7', 'id']
    """
    session.dataSource.register(ButlerDataSource)
    if hasattr(datasource, "EqualTo"):
        # Without it, Spark refuses a source that can take filters.
        session.conf.set(_PUSHDOWN, "true")


def _check_type(butler: Butler, dataset_type: DatasetType) -> None:
    """Raise if a dataset type is not a table."""
    storage_class = dataset_type.storageClass
    if not butler.storageClasses.getStorageClass(_ARROW_TABLE).can_convert(storage_class):
        raise OptionsError(
            f"Dataset type {dataset_type.name!r} is not a table; its storage class is {storage_class.name}."
        )


def _make_schema(data_id: DataCoordinate, table: pa.Schema, request: _Request) -> pa.Schema:
    """Return the schema of data ID and table together, in types that Spark has."""
    if missing := sorted(set(request.columns) - set(table.names)):
        raise OptionsError(
            f"{request.dataset_type!r} has no columns {', '.join(missing)}; it has {', '.join(table.names)}."
        )
    dimensions = data_id.dimensions
    fields = [pa.field(name, pa.scalar(data_id[name]).type) for name in dimensions.names]
    taken = {name.lower() for name in dimensions.names}
    fields += [
        pa.field(field.name, _spark_type(field.type))
        for field in table
        if field.name.lower() not in taken and (not request.columns or field.name in request.columns)
    ]
    return pa.schema(fields)


def _spark_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type that Spark has for the values of another one."""
    if pa.types.is_fixed_size_list(arrow_type) or pa.types.is_list(arrow_type):
        return pa.list_(_spark_type(arrow_type.value_type))
    if pa.types.is_dictionary(arrow_type):
        return _spark_type(arrow_type.value_type)
    if pa.types.is_timestamp(arrow_type):
        return pa.timestamp("us", tz=arrow_type.tz)
    return _NARROWED.get(arrow_type, arrow_type)


def _pack(butler: Butler, refs: list[DatasetRef]) -> bytes:
    related = tuple({ref.datasetType.name: (ref,)} for ref in refs)
    return pickle.dumps(DataIdBatch(tuple(ref.dataId for ref in refs), related, export_records(butler, refs)))


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
