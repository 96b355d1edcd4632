"""Reader of metadata and logs, from datasets or from provenance graph files.  Runs in the driver."""

from __future__ import annotations

__all__ = ["PackedScan", "Readback", "automatic_outputs", "find_packs", "open_pack"]

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import zstandard
from lsst.daf.butler import Butler, DatasetRef, LimitedButler, Quantum
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.quantum_graph import (
    PredictedDatasetModel,
    PredictedQuantumGraph,
    ProvenanceQuantumGraphReader,
)
from lsst.pipe.base.quantum_graph.formatter import ProvenanceFormatter
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.resources import ResourcePath

from .._daf_butler import fetch_run_ids, file_datastores, record_table
from .._pipe_base import (
    LOG_ADDRESS_INDEX,
    LOG_MB_NAME,
    METADATA_ADDRESS_INDEX,
    METADATA_MB_NAME,
    Address,
    MultiblockReader,
    ProvenanceQuantumInfo,
    butlers_of,
    quantum_datasets,
)
from ..datastore.files import FileFinder
from ..model.work import all_outputs
from .scan import QuantumScan, scan_attempt

_IDS_PER_QUERY = 500


@dataclasses.dataclass(frozen=True, slots=True)
class PackedScan:
    """Entry of a provenance graph file for a quantum with at least one attempt."""

    dataset_ids: frozenset[uuid.UUID]
    """IDs of its metadata and of its log, if its task writes one."""

    scan: QuantumScan


def automatic_outputs(graph: PredictedQuantumGraph, quantum_id: uuid.UUID) -> list[PredictedDatasetModel]:
    """Find the metadata of a quantum, and its log if it has one."""
    outputs = quantum_datasets(graph)[quantum_id].outputs
    names = (acc.METADATA_OUTPUT_CONNECTION_NAME, acc.LOG_OUTPUT_CONNECTION_NAME)
    return [dataset for name in names for dataset in outputs.get(name, ())]


def find_packs(butler: LimitedButler, dataset_ids: Iterable[uuid.UUID]) -> dict[ResourcePath, set[uuid.UUID]]:
    """Find the provenance graph files that contain datasets, with the IDs of these datasets.

    Datasets that have their own files are left out.
    """
    packs: dict[ResourcePath, set[uuid.UUID]] = {}
    found: dict[tuple[str, str], set[uuid.UUID]] = {}
    formatter = ProvenanceFormatter.name()
    stores = file_datastores(butler)
    for batch in itertools.batched(dataset_ids, _IDS_PER_QUERY):
        for store in stores:
            for row in record_table(store).fetch(dataset_id=batch):
                if row["formatter"] != formatter:
                    continue
                place = store.name, row["path"]
                if place not in found:
                    location = StoredFileInfo.from_record(row).file_location(store.locationFactory)
                    found[place] = packs.setdefault(location.uri, set())
                found[place].add(row["dataset_id"])
    return packs


@contextlib.contextmanager
def open_pack(uri: ResourcePath) -> Iterator[Iterator[PackedScan]]:
    """Open a provenance graph file, to read the scans of all quanta with attempts in order."""
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(uri.as_local())
        reader = stack.enter_context(ProvenanceQuantumGraphReader.open(local))
        reader.read_full_graph()
        addresses = reader.address_reader.read_all()
        logs, metadata = (
            stack.enter_context(_open_blocks(reader, name)) for name in (LOG_MB_NAME, METADATA_MB_NAME)
        )
        # Blocks that were compressed with a dictionary can't be copied into another file.
        anew = "compression_dict" in reader.zf.namelist()

        def read(blocks: MultiblockReader, address: Address) -> bytes:
            data = blocks.read_bytes(address) or b""
            if data and anew:
                return zstandard.ZstdCompressor().compress(reader.decompressor.decompress(data))
            return data

        def scans() -> Iterator[PackedScan]:
            xgraph = reader.graph.bipartite_xgraph
            for quantum_id in itertools.chain.from_iterable(
                quanta.values() for quanta in reader.graph.quanta_by_task.values()
            ):
                info = cast(ProvenanceQuantumInfo, xgraph.nodes[quantum_id])
                if not info["attempts"]:
                    continue
                row = addresses[quantum_id].addresses
                scan = QuantumScan.from_blocks(
                    info["attempts"],
                    logs=read(logs, row[LOG_ADDRESS_INDEX]),
                    metadata=read(metadata, row[METADATA_ADDRESS_INDEX]),
                    produced=frozenset(n for n in xgraph[quantum_id] if xgraph.nodes[n]["produced"]),
                )
                dataset_ids = {each for each in (info["metadata_id"], info.get("log_id")) if each is not None}
                yield PackedScan(frozenset(dataset_ids), scan)

        yield scans()


@contextlib.contextmanager
def _open_blocks(reader: ProvenanceQuantumGraphReader, name: str) -> Iterator[MultiblockReader]:
    """Unpack a member of a graph file, because seeking in it fails in some releases of CPython."""
    with tempfile.TemporaryFile(prefix="spark-butler-") as stream:
        with reader.zf.open(f"{name}.mb") as member:
            shutil.copyfileobj(member, stream)
        yield MultiblockReader(stream, reader.header.int_size)


_READERS = 8
_BATCH = 256


class Readback:
    """Reader of the logs and metadata of quanta.

    Without a butler of the repository, it uses the butler of the executor that ran the
    quanta.  This must be an executor of pipe_base.
    """

    def __init__(
        self,
        graph: PredictedQuantumGraph,
        butler: LimitedButler | None = None,
        quantum_executor: QuantumExecutor | None = None,
    ):
        self._graph = graph
        self._owner: LimitedButler | QuantumExecutor | None = butler or quantum_executor
        self.present: frozenset[uuid.UUID] | None = None
        """IDs of the datasets in the output run; `None` without a butler."""
        if isinstance(butler, Butler):
            self.present = fetch_run_ids(butler, graph.header.output_run)
        elif butler is not None:
            self.present = _find_outputs(butler, graph)
        self._own = threading.local()

    def has_trace(self, quantum_id: uuid.UUID) -> bool:
        """Return whether a quantum has a log or metadata."""
        return self.present is not None and not self.present.isdisjoint(self.automatic_ids(quantum_id))

    def automatic_ids(self, quantum_id: uuid.UUID) -> list[uuid.UUID]:
        """Find the IDs of the metadata and the log of a quantum."""
        return [dataset.dataset_id for dataset in automatic_outputs(self._graph, quantum_id)]

    def read_many(
        self, wanted: Iterable[tuple[uuid.UUID, bool]]
    ) -> Iterator[tuple[uuid.UUID, QuantumScan | None]]:
        """Read the metadata and logs of quanta; yield `None` for quanta that have written neither.

        ``wanted`` maps each quantum to whether its metadata belong to its last attempt
        rather than an earlier one.
        """
        left = dict(wanted)
        for quantum_id, packed in self._read_packs(left):
            if left.pop(quantum_id, None) is not None:
                yield quantum_id, packed
        with ThreadPoolExecutor(_READERS, thread_name_prefix="readback") as pool:
            for batch in itertools.batched(left.items(), _BATCH):
                with_metadata = dict(batch)
                quanta = self._graph.build_execution_quanta(with_metadata)
                scans = pool.map(self._read, with_metadata, quanta.values(), with_metadata.values())
                yield from zip(with_metadata, scans, strict=True)

    def _read_packs(self, wanted: Iterable[uuid.UUID]) -> Iterator[tuple[uuid.UUID, QuantumScan]]:
        """Read metadata and logs from provenance graphs, each file from its beginning to its end."""
        if not isinstance(self._owner, Butler):
            return
        owners = {
            dataset_id: quantum_id for quantum_id in wanted for dataset_id in self.automatic_ids(quantum_id)
        }
        for uri, dataset_ids in find_packs(self._owner, owners).items():
            with open_pack(uri) as packed:
                for each in packed:
                    for quantum_id in {owners[dataset_id] for dataset_id in dataset_ids & each.dataset_ids}:
                        yield quantum_id, each.scan

    def _read(self, quantum_id: uuid.UUID, quantum: Quantum, with_metadata: bool) -> QuantumScan | None:
        """Read the metadata and log of a quantum; several threads call this."""
        if self.present is not None and not self.has_trace(quantum_id):
            return None
        label = self._graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
        task_node = self._graph.pipeline_graph.tasks[label]
        logs = metadata = None
        with self._open_butler(quantum) as butler:
            if with_metadata:
                metadata = _get(butler, quantum, task_node.metadata_output.dataset_type_name)
            if task_node.log_output is not None:
                logs = _get(butler, quantum, task_node.log_output.dataset_type_name)
        if logs is None and metadata is None:
            return None
        return scan_attempt(task_node, quantum, quantum_id, metadata, logs)

    @contextlib.contextmanager
    def _open_butler(self, quantum: Quantum) -> Iterator[LimitedButler | None]:
        """Return a butler for this thread that reads the outputs of a quantum."""
        owner = self._owner
        factory = None
        if isinstance(owner, SingleQuantumExecutor):
            owner, factory = butlers_of(owner)
        if isinstance(owner, Butler):
            if not hasattr(self._own, "butler"):
                self._own.butler = owner.clone()
            yield self._own.butler
        elif isinstance(owner, LimitedButler):
            yield owner
        elif factory is not None:
            butler = factory(quantum)
            try:
                yield butler
            finally:
                butler.close()
        else:
            yield None


def _find_outputs(butler: LimitedButler, graph: PredictedQuantumGraph) -> frozenset[uuid.UUID]:
    """Find which predicted outputs are in the datastore, without the registry."""
    types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
    refs = [ref for quantum in graph.build_execution_quanta().values() for ref in all_outputs(quantum)]
    refs += [ref for label in graph.pipeline_graph.tasks for ref in graph.get_init_outputs(label).values()]
    packages = graph.get_init_outputs("").values()
    types.update((ref.datasetType.name, ref.datasetType) for ref in packages)
    finder = FileFinder(butler, types)
    places = {ref.id: finder.predict(ref) for ref in (*refs, *packages)}
    everything = list(itertools.chain.from_iterable(places.values()))
    finder.prepare(everything, graph.header.output_run, 0)
    found = finder.find(everything)
    return frozenset(each for each, mine in places.items() if mine and all(place in found for place in mine))


def _get(butler: LimitedButler | None, quantum: Quantum, dataset_type: str) -> Any:
    """Read an output of a quantum; `None` if it doesn't exist."""
    if butler is None:
        return None
    ref: DatasetRef
    (ref,) = quantum.outputs[dataset_type]
    try:
        return butler.get(ref)
    except (FileNotFoundError, LookupError):
        return None
