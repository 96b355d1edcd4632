"""Transfer of a graph's inputs from another repository into the repository that the run writes to.

Runs in the driver; workers copy the files.  The semantics are those of
`lsst.pipe.base.simple_pipeline_executor.SimplePipelineExecutor.use_local_butler`.
"""

from __future__ import annotations

__all__ = ["InputTransfer", "check_input_repository"]

import dataclasses
import logging
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self

from lsst.daf.butler import Butler, CollectionType, DatasetRef
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredDatastoreItemInfo, StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from .._daf_butler import datastore_of, export_records, find_transfer_files, record_table
from ..datastore.copying import CopyResult, FileCopy, copy_file
from ..errors import EngineError, RepositoryError
from ..masking import hide_secrets
from ..model.work import WorkerContext
from ..planning.request import RunRequest
from ..repository.input_repository import (
    check_inputs,
    find_inputs,
    find_places,
    find_registered,
    input_collection,
    open_input_repository,
    register_inputs,
    tag_inputs,
)
from ..repository.output_ingest import Ingester
from ..text import brief, format_bytes, format_count
from .backend import Backend
from .context import make_worker_context
from .serial import SerialBackend

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_FILES_PER_SLOT = 4
_BATCHES = 2
_SIGNING_THREADS = 8
_SECONDS_BETWEEN_LINES = 10.0


type _Record = tuple[str, StoredFileInfo]


@dataclasses.dataclass(frozen=True)
class _File:
    """A file to copy."""

    ref: DatasetRef
    component: str | None
    address: ResourcePath = dataclasses.field(repr=False)
    size: int


def check_input_repository(request: RunRequest) -> list[str]:
    """Check that the repository of the inputs can be read, and return the roots of its datastores.

    The list is empty without an input repository, and for a Butler server.
    """
    if request.input_repo is None:
        return []
    with open_input_repository(request.input_repo, request.repo, request.inputs) as butler:
        return find_places(butler)


@dataclasses.dataclass(frozen=True)
class InputTransfer:
    """The inputs of a graph, and the files of inputs that the user's repository lacks."""

    repo: str = dataclasses.field(repr=False)
    """Address or alias of the repository of the inputs."""

    tag: str | None
    """TAGGED collection for the inputs."""

    graph: PredictedQuantumGraph = dataclasses.field(repr=False)

    inputs: Mapping[uuid.UUID, DatasetRef] = dataclasses.field(repr=False)
    """All inputs, by ID."""

    first: frozenset[uuid.UUID] = dataclasses.field(repr=False)
    """IDs of the init-inputs."""

    records: Mapping[uuid.UUID, Sequence[_Record]] = dataclasses.field(repr=False)
    """Datastore records to write for each missing dataset, with addresses of the copies."""

    files: Mapping[str, _File] = dataclasses.field(repr=False)
    """Files to copy, by address of the copy."""

    stores: tuple[str, ...] = ()
    """Roots of the files that workers read with their own credentials."""

    @classmethod
    def plan(cls, request: RunRequest, graph: PredictedQuantumGraph, output: str | None) -> Self | None:
        """Find the inputs that the repository lacks and the input repository has; write nothing.

        ``output`` is the CHAINED collection of the outputs.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the inputs can't be read, or can't be registered.
        """
        if (repo := request.input_repo) is None:
            return None
        inputs, first = find_inputs(graph)
        with open_input_repository(repo, request.repo) as source:
            with Butler.from_config(request.repo, writeable=False) as butler:
                datastore = _find_datastore(butler)
                registered = check_inputs(butler, graph, inputs)
                # A new repository has no table of records.
                stored = export_records(butler, registered)[datastore.name].records if registered else {}
            missing = [ref for dataset_id, ref in inputs.items() if dataset_id not in stored]
            found = find_transfer_files(source, missing) if missing else {}
            stores = tuple(find_places(source))
        records: defaultdict[uuid.UUID, list[_Record]] = defaultdict(list)
        files: dict[str, _File] = {}
        for dataset_id, places in found.items():
            for address, info in places:
                location = info.file_location(datastore.locationFactory)
                target = str(location.uri.replace(fragment=""))
                records[dataset_id].append((target, info))
                # Like `Butler.transfer_from`, leave files outside of the datastore where they are.
                if not location.pathInStore.isabs():
                    # For a part of a zip file, the record has the size of the part.
                    size = info.file_size if not location.uri.fragment else -1
                    files[target] = _File(inputs[dataset_id], info.component, address, size)
        if absent := [ref for ref in missing if ref.id not in found]:
            where = hide_secrets(repo)
            logger.warning("%d inputs have no files in %s, such as %s.", len(absent), where, absent[0])
        return cls(repo, input_collection(output), graph, inputs, first, dict(records), files, stores)

    def describe(self) -> dict[str, Any]:
        """Return the numbers of the transfer, for `json.dumps`."""
        return {
            "repository": hide_secrets(self.repo),
            "datasets": len(self.inputs),
            "there": len(self.inputs) - len(self.records),
            "files": len(self.files),
            "bytes": sum(max(0, file.size) for file in self.files.values()),
        }

    def explain(self) -> str:
        """Return the numbers of the transfer in one line."""
        facts = self.describe()
        return (
            f"Inputs: {format_count(facts['datasets'], 'dataset')} of {facts['repository']}; "
            f"{facts['there']} are in the repository already, {format_count(facts['files'], 'file')} "
            f"({format_bytes(facts['bytes'])}) to copy."
        )

    def begin(self, butler: Butler) -> None:
        """Register dataset types, dimension records and runs of the inputs, and copy init-inputs."""
        with Butler.from_config(self.repo, writeable=False) as source:
            register_inputs(butler, source, self.graph, self.inputs)
        if self.tag is not None:
            butler.collections.register(self.tag, CollectionType.TAGGED)
        if self.first & self.records.keys():
            self._copy(butler, SerialBackend(), self.first)

    def copy(self, butler: Butler, backend: Backend) -> None:
        """Copy and register all other inputs by workers, and associate all inputs with the TAGGED collection.

        Raises
        ------
        spark_butler.errors.EngineError
            Raised if a file can't be copied.  All copied inputs are registered.
        """
        logger.info("%s", self.explain())
        rest = self.records.keys() - self.first
        if rest:
            began = time.monotonic()
            self._copy(butler, backend, rest)
            logger.info("The inputs were copied in %.1f s.", time.monotonic() - began)
        if self.tag is not None:
            registered = find_registered(butler, self.inputs).keys()
            tag_inputs(butler, self.tag, [self.inputs[each] for each in registered])

    def _copy(self, butler: Butler, backend: Backend, chosen: Collection[uuid.UUID]) -> None:
        """Copy and register some of the inputs."""
        records = {each: self.records[each] for each in chosen if each in self.records}
        wanted = {target for found in records.values() for target, _ in found}
        context = make_worker_context(butler, ())
        context = dataclasses.replace(context, stores=(*context.stores, *self.stores))
        registrar = _Registrar(butler, self.inputs, records, self.files)
        with Butler.from_config(self.repo, writeable=False) as source:
            copier = _Copier(source, backend, context, self.files)
            for results in copier.copy([target for target in self.files if target in wanted]):
                registrar.add(result.target for result in results)
        registrar.add(())


class _Registrar:
    """Registers datasets as soon as all their files are copied."""

    def __init__(
        self,
        butler: Butler,
        inputs: Mapping[uuid.UUID, DatasetRef],
        records: Mapping[uuid.UUID, Sequence[_Record]],
        files: Mapping[str, _File],
    ):
        datastore = _find_datastore(butler)
        self._name, self._table = datastore.name, record_table(datastore).name
        self._inputs = inputs
        self._records = records
        types = {ref.datasetType.name: ref.datasetType for ref in inputs.values()}
        # Another driver may register the same inputs at the same time.
        self._ingester = Ingester(butler, types, shared=True)
        self._n_lacking: dict[uuid.UUID, int] = {}
        self._with_file: defaultdict[str, list[uuid.UUID]] = defaultdict(list)
        for dataset_id, found in records.items():
            targets = {target for target, _ in found} & files.keys()
            self._n_lacking[dataset_id] = len(targets)
            for target in targets:
                self._with_file[target].append(dataset_id)
        self._complete = [dataset_id for dataset_id, n_lacking in self._n_lacking.items() if not n_lacking]

    def add(self, targets: Iterable[str]) -> None:
        """Register the datasets that are complete with these files, and datasets without files."""
        for target in targets:
            for dataset_id in self._with_file.pop(target, ()):
                self._n_lacking[dataset_id] -= 1
                if not self._n_lacking[dataset_id]:
                    self._complete.append(dataset_id)
        complete, self._complete = self._complete, []
        for dataset_id in complete:
            infos: list[StoredDatastoreItemInfo] = [info for _, info in self._records[dataset_id]]
            records = DatastoreRecordData(records={dataset_id: {self._table: infos}})
            self._ingester.add([self._inputs[dataset_id]], [dataset_id], {self._name: records})
        self._ingester.flush()


class _Copier:
    """Copies files by workers, in batches; addresses are signed just before a batch is sent."""

    def __init__(self, source: Butler, backend: Backend, context: WorkerContext, files: Mapping[str, _File]):
        self._source = source
        self._backend = backend
        self._context = context
        self._files = files
        self._attempts: Counter[str] = Counter()
        self._failed: dict[str, str] = {}

    def copy(self, targets: Sequence[str]) -> Iterator[list[CopyResult]]:
        """Copy files, and yield the results of each batch; raise at the end if a file could not be copied."""
        waiting, n_copied, logged = deque(targets), 0, time.monotonic()
        running: set[Future[list[CopyResult]]] = set()
        pool = ThreadPoolExecutor(_BATCHES, thread_name_prefix="spark-butler-copy")
        try:
            while waiting or running:
                size = max(1, self._backend.slots) * _FILES_PER_SLOT
                while waiting and len(running) < _BATCHES:
                    batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                    running.add(pool.submit(self._copy_batch, batch))
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for results in (each.result() for each in ended):
                    good = [result for result in results if not result.error]
                    n_copied += len(good)
                    waiting.extend(each.target for each in results if each.error and self._may_retry(each))
                    yield good
                if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
                    logged = time.monotonic()
                    logger.info("Copied %d of %d input files.", n_copied, len(targets))
        finally:
            if running:
                self._backend.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
        if self._failed:
            target, error = next(iter(self._failed.items()))
            raise EngineError(
                f"{len(self._failed)} of {len(targets)} input files can't be copied, such as {target}: "
                f"{error.rstrip('.')}. The others are registered; repeat the command to go on."
            )

    def _may_retry(self, result: CopyResult) -> bool:
        """Count a failure, and return whether to copy the file again, with a new address."""
        self._attempts[result.target] += 1
        if self._attempts[result.target] < _ATTEMPTS:
            logger.debug("%s is copied again: %s", result.target, result.error)
            return True
        self._failed[result.target] = result.error
        return False

    def _copy_batch(self, targets: Sequence[str]) -> list[CopyResult]:
        """Copy a batch of files by workers; runs in a thread of the pool."""
        results: list[CopyResult] = []
        copies: list[FileCopy] = []
        with ThreadPoolExecutor(_SIGNING_THREADS) as pool:
            for signed in pool.map(self._sign, targets):
                (copies if isinstance(signed, FileCopy) else results).append(signed)  # type: ignore[arg-type]
        if copies:
            try:
                results += self._backend.apply(self._context, copy_file, copies)
            except Exception as exc:
                if not self._backend.is_alive():
                    raise EngineError(f"The inputs can't be copied: {brief(exc)}") from exc
                results += [CopyResult(copy.target, error=brief(exc)) for copy in copies]
        return results

    def _sign(self, target: str) -> FileCopy | CopyResult:
        """Return a copy with an address that is readable for about an hour without the user's token."""
        file = self._files[target]
        if isinstance(self._source, DirectButler):
            return FileCopy(file.address, target, file.size)
        try:
            uris = self._source.getURIs(file.ref)
            uri = uris.componentURIs[file.component] if file.component else uris.primaryURI
            assert uri is not None
        except Exception as exc:  # noqa: BLE001  (any error of the client or the server)
            return CopyResult(target, error=brief(exc))
        return FileCopy(uri, target, file.size)


def _find_datastore(butler: Butler) -> FileDatastore:
    """Return the datastore of a repository; raise if it does not keep files."""
    datastore = datastore_of(butler)
    if not isinstance(datastore, FileDatastore):
        raise RepositoryError(
            f"The repository has a {type(datastore).__name__}, but inputs can only be copied into a "
            "FileDatastore; use another repository."
        )
    return datastore
