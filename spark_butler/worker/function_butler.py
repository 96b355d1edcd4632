"""Butler that is passed to a user's function.  Runs in workers; it uses neither Spark nor the registry."""

from __future__ import annotations

__all__ = ["DataIdBatch", "DataIdContext", "PutReport", "WorkerButler", "run_batch"]

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from lsst.daf.butler import (
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    StorageClass,
)
from lsst.daf.butler.datastore.record_data import DatastoreRecordData

from .._daf_butler import export_records
from ..errors import NotSentError, OptionsError
from ..model.work import WorkerContext
from .state import WorkerState

type DataId = DataCoordinate | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DataIdContext:
    """The common part of all batches of data IDs of a query; sent to each worker once."""

    worker: WorkerContext
    """Datastore, dimensions and environment."""

    dimensions: DimensionGroup
    """Dimensions of the data IDs."""

    outputs: Mapping[str, DatasetType] = dataclasses.field(default_factory=dict)
    """Dataset types that may be put, by name."""

    output_run: str = ""
    """RUN collection of the datasets that are put."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataIdBatch:
    """Some data IDs of a query, with their datasets."""

    data_ids: tuple[DataCoordinate, ...]
    """The data IDs, with their dimension records."""

    refs: tuple[Mapping[str, tuple[DatasetRef, ...]], ...]
    """For each data ID: the datasets that belong to it, by name of the dataset type."""

    records: Mapping[str, DatastoreRecordData]
    """Datastore records of the datasets, by name of the datastore."""

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Unpickle a batch; its context must have been unpickled before."""
        batch = pickle.loads(data)
        assert isinstance(batch, cls)
        return batch


@dataclasses.dataclass(frozen=True, slots=True)
class PutReport:
    """Reference and datastore records of a dataset that a worker has put, for the driver to register."""

    ref: DatasetRef

    records: Mapping[str, DatastoreRecordData]
    """Its datastore records, by name of the datastore."""


class WorkerButler:
    """Reads and writes the datasets of some data IDs, in a worker.

    Notes
    -----
    The ID of a dataset that is put is computed from its dataset type, data ID and
    run.  If Spark runs a function again, the second attempt therefore replaces the
    datasets of the first.

    Examples
    --------
    >>> def look(b, data_id):
    ...     raw, bias = b.get("raw", data_id), b.get("bias", data_id).image
    ...     level = float(np.median(raw.array) - np.median(bias.array))
    ...     n_stars = sum(len(b.get(ref)) for ref in b.refs("ref_cat", data_id))
    ...     return b.put({"level": level, "stars": n_stars}, "look", data_id).run
    >>> raws = butler.data_ids("raw", where="visit = 202601010101", also="bias,ref_cat",
    ...                        outputs={"look": "StructuredDataDict"}, output_run="u/me/look")
    >>> raws.map(look).collect()
    ['u/me/look', 'u/me/look']
    """

    def __init__(
        self,
        state: WorkerState,
        context: DataIdContext,
        batch: DataIdBatch,
        report: Callable[[PutReport], None],
    ):
        self._dimensions = context.dimensions
        self._batch = batch
        self._report = report
        self._outputs = {
            (name, key): DatasetRef(
                dataset_type,
                data_id.subset(dataset_type.dimensions),
                context.output_run,
                id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN,
            )
            for name, dataset_type in context.outputs.items()
            for data_id in batch.data_ids
            for key in [_key(data_id, dataset_type.dimensions)]
        }
        self._output_types = context.outputs
        self._by_data_id = dict(
            zip([data_id.required_values for data_id in batch.data_ids], batch.refs, strict=True)
        )
        self._by_own: dict[tuple[str, tuple[Any, ...]], DatasetRef] = {}
        self._types: dict[str, DatasetType] = {}
        for by_type in batch.refs:
            for name, refs in by_type.items():
                for ref in refs:
                    self._types[name] = ref.datasetType
                    self._by_own[name, ref.dataId.required_values] = ref
        assert context.worker.butler_config is not None
        self._butler = state.butlers.open(
            context.worker.butler_config,
            context.worker.universe,
            inputs=[ref.id for ref in self._by_own.values()],
            outputs=[ref.id for ref in self._outputs.values()],
            records=batch.records,
            dataset_types=context.worker.dataset_types,
        )

    def get(
        self,
        dataset_type: str | DatasetRef,
        data_id: DataId | None = None,
        *,
        component: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        storage_class: str | StorageClass | None = None,
    ) -> Any:
        """Read a dataset.

        Parameters
        ----------
        dataset_type
            Name of the dataset type, or of one of its components
            (``"raw.bbox"``); or a reference, and then no data ID.
        data_id
            The data ID that the function was called with, or the dataset's
            own.
        component
            Component to read instead of the whole.
        parameters
            Parameters of the storage class, such as ``bbox`` or ``columns``.
        storage_class
            Storage class to read it as.

        Raises
        ------
        spark_butler.errors.NotSentError
            Raised if the dataset was not sent to this worker.
        """
        if isinstance(dataset_type, DatasetRef):
            ref = dataset_type
        else:
            name, own_component = DatasetType.splitDatasetTypeName(dataset_type)
            component = component or own_component
            ref = self._find(name, data_id)
        if component is not None:
            ref = ref.makeComponentRef(component)
        return self._butler.get(
            ref, parameters=dict(parameters) if parameters else None, storageClass=storage_class
        )

    def refs(self, dataset_type: str, data_id: DataId) -> list[DatasetRef]:
        """List the datasets of a type that belong to a data ID, with which the function was called."""
        self._check_sent(dataset_type)
        return list(self._related(dataset_type, data_id) or ())

    def put(self, obj: Any, dataset_type: str, data_id: DataId) -> DatasetRef:
        """Write a dataset, and return its reference; the driver puts it into the registry.

        Parameters
        ----------
        dataset_type
            Name of its type, one of the ``outputs`` of the query.
        data_id
            The data ID that the function was called with.

        Raises
        ------
        spark_butler.errors.NotSentError
            Raised if the query had no such output.
        """
        known = self._output_types.get(dataset_type)
        if known is None:
            raise NotSentError(
                f"Nothing can be put as {dataset_type!r}: the outputs of this query are "
                f"{_list(self._output_types)}.  They are given by data_ids(..., outputs=, output_run=)."
            )
        ref = self._outputs.get((dataset_type, _key(data_id, known.dimensions)))
        if ref is None:
            raise NotSentError(
                f"{dataset_type!r} can't be put for {data_id}: it is not a data ID of this batch."
            )
        self._butler.put(obj, ref)
        self._report(PutReport(ref, export_records(self._butler, [ref])))
        return ref

    def close(self) -> None:
        """Free what the butler holds."""
        self._butler.close()

    def _related(self, name: str, data_id: DataId) -> tuple[DatasetRef, ...] | None:
        """Return the datasets that belong to a data ID of the query; `None` for other data IDs."""
        try:
            by_type = self._by_data_id.get(_key(data_id, self._dimensions))
        except OptionsError:
            return None
        return None if by_type is None else tuple(by_type.get(name, ()))

    def _find(self, name: str, data_id: DataId | None) -> DatasetRef:
        """Find the dataset that belongs to a data ID of the query, or has the data ID itself."""
        self._check_sent(name)
        if data_id is None:
            raise OptionsError(f"{name!r} needs a data ID.")
        found = self._related(name, data_id)
        if found is None or len(found) > 1:
            with contextlib.suppress(OptionsError, KeyError):
                return self._by_own[name, _key(data_id, self._types[name].dimensions)]
        if found is None:
            n = len(self._batch.data_ids)
            raise NotSentError(
                f"No {name!r} for {data_id} was sent to this worker, only for {n} data IDs: "
                f"{_list_some(self._batch)}."
            )
        if len(found) != 1:
            those = f": {', '.join(str(ref.dataId) for ref in found)}" if found else ""
            raise NotSentError(
                f"{data_id} leads to {len(found)} datasets of type {name!r}{those}.  "
                "refs() lists them, and get() takes one of its references."
            )
        return found[0]

    def _check_sent(self, name: str) -> None:
        """Raise if a dataset type was not requested in the query."""
        sent = {name for by_type in self._batch.refs for name in by_type}
        if name not in sent:
            raise NotSentError(
                f"No dataset of type {name!r} was sent to this worker, only {_list(sent)}.  "
                "Further types are given by data_ids(..., also=)."
            )


def _key(data_id: DataId, dimensions: DimensionGroup) -> tuple[Any, ...]:
    """Return the values of a data ID that identify something of these dimensions."""
    try:
        return tuple(data_id[name] for name in dimensions.required)
    except KeyError as exc:
        raise OptionsError(f"Data ID {data_id} has no {exc}.") from exc


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


def _list_some(batch: DataIdBatch) -> str:
    more = ", ..." if len(batch.data_ids) > 3 else ""
    return ", ".join(map(str, batch.data_ids[:3])) + more


def run_batch(
    state: WorkerState,
    context: DataIdContext,
    batch: DataIdBatch,
    function: Callable[[WorkerButler, DataCoordinate], Any],
    report: Callable[[PutReport], None],
) -> Iterator[Any]:
    """Call a function with a butler and each data ID of a batch, and yield the results."""
    state.clients.open(context.worker.stores)
    butler = WorkerButler(state, context, batch, report)
    try:
        for data_id in batch.data_ids:
            try:
                result = function(butler, data_id)
            except Exception as exc:
                exc.add_note(f"(data ID {data_id})")
                raise
            yield result
    finally:
        butler.close()
