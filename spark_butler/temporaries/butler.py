"""The limited butler of one group: temporaries in memory, all others in the datastore.  Runs in children."""

from __future__ import annotations

__all__ = ["GroupButler"]

import contextlib
import json
import logging
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from lsst.daf.butler import (
    ButlerLogRecords,
    ButlerMetrics,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    DeferredDatasetHandle,
    DimensionUniverse,
    LimitedButler,
    Quantum,
    QuantumBackedButler,
    StorageClass,
)
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import TaskMetadata

from .._daf_butler import datastore_of, export_records
from ..codecs import EncodedObject, FormatterFallback, copy_object, decode, encode
from ..masking import hide_secrets
from ..model.work import TEMPORARIES_KEY, all_outputs
from .components import read_part
from .scratch import ScratchPart, fetch_scratch
from .shuffle import ReceiveBuffer

logger = logging.getLogger(__name__)


class GroupButler(LimitedButler):
    """A butler that keeps temporary datasets in memory while a group runs.

    ``consumers`` is the number of quanta of the group that read each temporary.
    ``known`` maps datasets of other groups to whether they exist; the datastore is
    queried for datasets that are missing in it.

    Notes
    -----
    The last reader of a temporary gets a reference and may change the object;
    earlier readers get a copy.  The temporary is dropped when the quantum of its
    last reader ends (`end_quantum`).  The butler keeps a reference to the object
    that a task puts if this is the last output of the quantum, and a copy
    otherwise: the task may still change the object, or put a part of it under
    another name.  Metadata and logs list temporaries under a key of their own.
    """

    def __init__(
        self,
        wrapped: QuantumBackedButler,
        *,
        dataset_types: Mapping[str, DatasetType],
        temporary_types: Collection[str],
        consumers: Mapping[uuid.UUID, int],
        known: Mapping[uuid.UUID, bool],
        received: ReceiveBuffer | None = None,
    ):
        self.wrapped = wrapped
        """The butler of the stored datasets."""
        self.storageClasses = wrapped.storageClasses
        self._datastore = datastore_of(wrapped)
        self._metrics = ButlerMetrics()
        self._dataset_types = dataset_types
        self._temporary_types = frozenset(temporary_types)
        self._consumers = Counter(consumers)
        self._known = dict(known)
        self._temporaries: dict[uuid.UUID, Any] = {}
        self._arrived: dict[uuid.UUID, bytearray | list[ScratchPart]] = {}
        if received is not None:
            self._arrived.update(received.objects)
            self._arrived.update(received.scratch)
        self._refs: dict[uuid.UUID, DatasetRef] = {}
        self._lent: set[uuid.UUID] = set()
        self._single_use: set[uuid.UUID] = set()
        self._unmade: set[uuid.UUID] = set()
        self._automatic: frozenset[str] = frozenset()
        self._put_refs: dict[uuid.UUID, DatasetRef] = {}
        self._pruned: set[uuid.UUID] = set()

    def begin_quantum(self, quantum: Quantum, automatic: Collection[str] = ()) -> None:
        """Prepare for a quantum; pipe_base, not the task, puts the ``automatic`` dataset types."""
        self._automatic = frozenset(automatic)
        self._unmade = {
            ref.id
            for dataset_type, refs in quantum.outputs.items()
            for ref in refs
            if dataset_type.name not in automatic
        }
        uses = Counter(ref.id for refs in quantum.inputs.values() for ref in refs)
        self._single_use = {dataset_id for dataset_id, count in uses.items() if count == 1}
        self._lent.clear()
        self._put_refs.clear()
        self._pruned.clear()

    def end_quantum(self, quantum: Quantum) -> None:
        """Drop the temporaries that no later quantum of the group reads."""
        used = {ref.id for refs in quantum.inputs.values() for ref in refs}
        for dataset_id in used & self._consumers.keys():
            self._consumers[dataset_id] -= 1
        made = {ref.id for ref in all_outputs(quantum)}
        for dataset_id in used | made:
            if self._consumers[dataset_id] <= 0:
                self._temporaries.pop(dataset_id, None)
                self._arrived.pop(dataset_id, None)

    @property
    def put_refs(self) -> list[DatasetRef]:
        """References of the stored datasets that the current quantum has put."""
        return list(self._put_refs.values())

    @property
    def put_records(self) -> dict[str, DatastoreRecordData]:
        """Datastore records of `put_refs`, by name of the datastore."""
        return export_records(self.wrapped, self.put_refs) if self._put_refs else {}

    @property
    def pruned(self) -> frozenset[uuid.UUID]:
        """IDs of the stored datasets that the current quantum has removed and not put again."""
        return frozenset(self._pruned - self._put_refs.keys())

    @property
    def live(self) -> frozenset[uuid.UUID]:
        """IDs of the temporaries that are in memory now."""
        return frozenset(self._temporaries.keys() | self._arrived.keys())

    def encode(self, dataset_id: uuid.UUID) -> EncodedObject:
        """Serialize a temporary that was put."""
        ref = self._refs[dataset_id]
        return encode(
            self._temporaries[dataset_id], ref.datasetType.storageClass, formatter=self._formatter(ref)
        )

    def _repository_ref(self, ref: DatasetRef) -> DatasetRef:
        """Return a reference to the whole dataset, with the dataset type of the repository."""
        whole = ref.makeCompositeRef() if ref.isComponent() else ref
        return whole.overrideStorageClass(self._dataset_types[whole.datasetType.name].storageClass)

    def _formatter(self, ref: DatasetRef) -> FormatterFallback | None:
        return FormatterFallback.from_butler(self.wrapped, ref)

    def _is_temporary(self, ref: DatasetRef) -> bool:
        return ref.datasetType.nameAndComponent()[0] in self._temporary_types

    def put(self, obj: Any, ref: DatasetRef, /, *, provenance: DatasetProvenance | None = None) -> DatasetRef:
        self._unmade.discard(ref.id)
        if not self._is_temporary(ref):
            if self._refs and ref.datasetType.name in self._automatic:
                _list_stored(obj, self._refs.keys())
            if isinstance(obj, ButlerLogRecords):
                _mask_extra(obj)
            self.wrapped.put(obj, ref, provenance=provenance)
            self._known[ref.id] = True
            self._put_refs[ref.id] = ref
            return ref
        with self._metrics.instrument_put(logger, msg="Kept temporary dataset"):
            stored = self._repository_ref(ref)
            obj = stored.datasetType.storageClass.coerce_type(obj)
            if self._unmade or any(obj is other for other in self._temporaries.values()):
                obj = self._copy(obj, stored)
            self._temporaries[ref.id] = obj
            self._refs[ref.id] = stored
        return ref

    def get(
        self,
        ref: DatasetRef,
        /,
        *,
        parameters: dict[str, Any] | None = None,
        storageClass: StorageClass | str | None = None,
    ) -> Any:
        return self._get(ref, parameters, storageClass, may_lend=True)

    def _get(
        self,
        ref: DatasetRef,
        parameters: dict[str, Any] | None,
        storage_class: StorageClass | str | None,
        *,
        may_lend: bool,
    ) -> Any:
        if not self._is_temporary(ref):
            return self.wrapped.get(ref, parameters=parameters, storageClass=storage_class)
        with self._metrics.instrument_get(logger, msg="Retrieved temporary dataset"):
            stored = self._repository_ref(ref)
            target = storage_class or ref.datasetType.storageClass
            if isinstance(target, str):
                target = self.storageClasses.getStorageClass(target)
            whole, is_own = self._fetch(stored, may_lend=may_lend)
            component = ref.datasetType.component()
            if not is_own and not component and not parameters:
                whole, is_own = self._copy(whole, stored), True
            part = read_part(whole, stored.datasetType.storageClass, component, parameters, target)
            return part if is_own else copy_object(part, target)

    def _copy(self, obj: Any, ref: DatasetRef) -> Any:
        return copy_object(obj, ref.datasetType.storageClass, formatter=self._formatter(ref))

    def _fetch(self, ref: DatasetRef, *, may_lend: bool) -> tuple[Any, bool]:
        """Return a temporary, and whether the reader owns it and may change it.

        The last reader owns it, and so does a reader for which it was decoded.
        """
        storage_class = ref.datasetType.storageClass
        lend = (
            may_lend
            and self._consumers[ref.id] == 1
            and ref.id in self._single_use
            and ref.id not in self._lent
        )
        if ref.id in self._temporaries:
            if lend:
                self._lent.add(ref.id)
            return self._temporaries[ref.id], lend
        if ref.id not in self._arrived:
            raise FileNotFoundError(f"Temporary dataset {ref} was not produced.")
        arrived = self._arrived[ref.id]
        if isinstance(arrived, list):
            return decode(fetch_scratch(arrived), storage_class, formatter=self._formatter(ref)), True
        if not lend:
            return decode(bytearray(arrived), storage_class, formatter=self._formatter(ref)), True
        # The object shares memory with the buffer, so a second read must return the same object.
        self._lent.add(ref.id)
        obj = decode(arrived, storage_class, formatter=self._formatter(ref))
        self._temporaries[ref.id] = obj
        del self._arrived[ref.id]
        return obj, True

    def getDeferred(
        self,
        ref: DatasetRef,
        /,
        *,
        parameters: dict[str, Any] | None = None,
        storageClass: str | StorageClass | None = None,
    ) -> DeferredDatasetHandle:
        if self._is_temporary(ref):
            reader = cast("LimitedButler", _DeferredReader(self))
            return DeferredDatasetHandle(
                butler=reader, ref=ref, parameters=parameters, storageClass=storageClass
            )
        return self.wrapped.getDeferred(ref, parameters=parameters, storageClass=storageClass)

    def stored_many(self, refs: Iterable[DatasetRef]) -> dict[DatasetRef, bool]:
        result: dict[DatasetRef, bool] = {}
        unknown: list[DatasetRef] = []
        for ref in refs:
            if self._is_temporary(ref):
                result[ref] = ref.id in self._temporaries or ref.id in self._arrived
            elif (exists := self._known.get(ref.id)) is not None:
                result[ref] = exists
            else:
                unknown.append(ref)
        if unknown:
            result.update(self.wrapped.stored_many(unknown))
        return result

    def markInputUnused(self, ref: DatasetRef) -> None:
        if not self._is_temporary(ref):
            self.wrapped.markInputUnused(ref)

    def pruneDatasets(
        self,
        refs: Iterable[DatasetRef],
        *,
        disassociate: bool = True,
        unstore: bool = False,
        tags: Iterable[str] = (),
        purge: bool = False,
    ) -> None:
        stored = []
        for ref in refs:
            if self._is_temporary(ref):
                self._temporaries.pop(ref.id, None)
                self._arrived.pop(ref.id, None)
            else:
                stored.append(ref)
                self._known[ref.id] = False
                self._put_refs.pop(ref.id, None)
                self._pruned.add(ref.id)
        if stored:
            self.wrapped.pruneDatasets(
                stored, disassociate=disassociate, unstore=unstore, tags=tags, purge=purge
            )

    def isWriteable(self) -> bool:
        return self.wrapped.isWriteable()

    def close(self) -> None:
        self._temporaries.clear()
        self._arrived.clear()
        self.wrapped.close()

    @property
    def dimensions(self) -> DimensionUniverse:
        return self.wrapped.dimensions

    @contextlib.contextmanager
    def record_metrics(self, metrics: ButlerMetrics | None = None) -> Iterator[ButlerMetrics]:
        with super().record_metrics(metrics) as recorded, self.wrapped.record_metrics(recorded):
            yield recorded


def _list_stored(obj: Any, temporaries: Collection[uuid.UUID]) -> None:
    """Move temporaries from the list of outputs to another key, in metadata or a log's copy of the metadata.

    Tools register all listed outputs, and temporaries are not in the repository.
    """
    if isinstance(obj, ButlerLogRecords):
        if obj.extra.get("metadata") is not None:
            metadata = TaskMetadata.model_validate(obj.extra["metadata"])
            _list_stored(metadata, temporaries)
            obj.extra = {**obj.extra, "metadata": metadata.model_dump()}
    elif isinstance(obj, TaskMetadata) and "quantum" in obj and "outputs" in obj["quantum"]:
        names = {str(dataset_id) for dataset_id in temporaries}
        outputs = obj["quantum"].getArray("outputs")
        obj["quantum"]["outputs"] = [each for each in outputs if each not in names]
        obj["quantum"][TEMPORARIES_KEY] = [each for each in outputs if each in names]


def _mask_extra(records: ButlerLogRecords) -> None:
    """Mask secrets in the data that pipe_base stores with a quantum's messages, such as its exception."""
    if (masked := hide_secrets(text := json.dumps(records.extra, default=str))) != text:
        records.extra = json.loads(masked)


class _DeferredReader:
    """Butler of deferred handles; it returns copies, because a handle may be read several times."""

    def __init__(self, butler: GroupButler):
        self._butler = butler

    def get(self, ref: DatasetRef, /, *, parameters: Any = None, storageClass: Any = None) -> Any:
        return self._butler._get(ref, parameters, storageClass, may_lend=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._butler, name)
