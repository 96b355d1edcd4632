"""Keep metadata and logs of a run in a few objects instead of two for each quantum.

Workers send them to the driver, which writes them every minute or so as a
*part*: a provenance graph file that holds what has ended since the part
before.  Outputs of these quanta are put into the registry only then, so that
whatever is registered can be read.  When all of a run is done, its parts are
replaced by one file, the provenance graph of the run.
"""

from __future__ import annotations

__all__ = [
    "BUNDLE_SECONDS",
    "BundleWriter",
    "bundled_tasks",
    "explain_bundle",
    "find_unused_parts",
    "pack_run",
    "remove_unused_parts",
]

import contextlib
import itertools
import logging
import tempfile
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.log_on_close import LogOnClose
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import (
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
    ProvenanceQuantumGraphWriter,
)
from lsst.pipe.base.quantum_graph.formatter import ProvenanceFormatter
from lsst.resources import ResourcePath

from .dispatch import RunResult
from .packed import automatic_outputs, find_packs, open_pack
from .provenance import ProvenanceRecorder, scan_data
from .quanta import all_outputs
from .registry import Ingester, fetch_ids
from .scans import QuantumScan, join_scans, up_to_success
from .stored_files import file_datastores, list_files

logger = logging.getLogger(__name__)

BUNDLE_SECONDS = 60.0
"""Greatest time for which what has ended waits for more, to be written in one part."""

_FOLDER = "bundle"
_MAX_BYTES = 32 << 20
_BATCH = 5000


def bundled_tasks(pipeline_graph: PipelineGraph) -> frozenset[str]:
    """Find the tasks whose metadata and logs need not be in the datastore while a pipeline runs.

    Parameters
    ----------
    pipeline_graph
        The pipeline.

    Returns
    -------
    labels
        The labels of all tasks but those whose metadata or log another reads.
    """
    return frozenset(
        label
        for label, node in pipeline_graph.tasks.items()
        if not any(
            edge is not None and pipeline_graph.consumers_of(edge.dataset_type_name)
            for edge in (node.metadata_output, node.log_output)
        )
    )


def explain_bundle(pipeline_graph: PipelineGraph) -> str:
    """Say in a sentence what is bundled, for a person.

    Parameters
    ----------
    pipeline_graph
        The pipeline.
    """
    others = sorted(pipeline_graph.tasks.keys() - bundled_tasks(pipeline_graph))
    if not others:
        return "Metadata and logs are bundled."
    return f"Metadata and logs are bundled, but not those of {', '.join(others)}, which other tasks read."


class BundleWriter:
    """Collects what workers have sent, and writes it in parts.

    Parameters
    ----------
    graph
        The graph that is executed.
    butler
        Butler of the repository.
    earlier
        IDs of metadata and logs that earlier attempts at the quanta have left
        in other parts.
    """

    def __init__(
        self, graph: PredictedQuantumGraph, butler: Butler, earlier: Collection[uuid.UUID] = frozenset()
    ):
        self._graph = graph
        self._butler = butler
        self._earlier = earlier
        # All others of a chain could have them only as copies.
        self._store = file_datastores(butler)[0]
        self._pending: dict[uuid.UUID, list[QuantumScan]] = {}
        self._n_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether a part is to be written soon."""
        return self._n_bytes >= _MAX_BYTES or len(self._pending) >= _BATCH

    def add(self, quantum_id: uuid.UUID, scans: Iterable[bytes]) -> None:
        """Keep what was sent of a quantum until the next part.

        Parameters
        ----------
        quantum_id
            The quantum.  There may be more of it later.
        scans
            Its attempts, as `spark_butler.scans.QuantumScan.to_bytes` packs them.
        """
        for data in scans:
            self._n_bytes += len(data)
            self._pending.setdefault(quantum_id, []).append(QuantumScan.from_bytes(data))

    def write(self) -> dict[str, DatastoreRecordData]:
        """Write a part.

        Returns
        -------
        records
            Datastore records of the metadata and logs in it, by name of the
            datastore.

        Raises
        ------
        OSError
            Raised if it can't be written, as may be other errors of the
            store.  Nothing is lost then, and there may be another call.
        """
        if not self._pending:
            return {}
        scans = {quantum_id: self._join(kept) for quantum_id, kept in self._pending.items()}
        self._add_earlier(scans)
        path = _make_path(self._graph.header.output_run)
        with tempfile.TemporaryDirectory(prefix="spark-butler-") as folder:
            file = Path(folder, "part.qg")
            _write_part(file, self._graph, scans)
            size = _send(file, self._store.root.join(path))
        logger.debug("Wrote metadata and logs of %d quanta to %s.", len(scans), path)
        kept = [
            (each.dataset_id, self._graph.pipeline_graph.dataset_types[each.dataset_type_name].dataset_type)
            for quantum_id, scan in scans.items()
            for each in automatic_outputs(self._graph, quantum_id)
            if each.dataset_id in scan.produced
        ]
        self._pending = {}
        self._n_bytes = 0
        return _make_records(self._store, kept, path, size)

    def _join(self, scans: list[QuantumScan]) -> QuantumScan:
        if any(scan.status is QuantumAttemptStatus.SUCCESSFUL for scan in scans):
            scans = up_to_success(scans)
        return scans[0] if len(scans) == 1 else join_scans(scans)

    def _add_earlier(self, scans: dict[uuid.UUID, QuantumScan]) -> None:
        """Put the failures of earlier attempts in front."""
        owners = {
            dataset.dataset_id: quantum_id
            for quantum_id in scans
            for dataset in automatic_outputs(self._graph, quantum_id)
            if dataset.dataset_id in self._earlier
        }
        for uri, dataset_ids in find_packs(self._butler, owners).items():
            with open_pack(uri) as packed:
                for each in packed:
                    for quantum_id in {owners[dataset_id] for dataset_id in dataset_ids & each.dataset_ids}:
                        scans[quantum_id] = join_scans([each.scan, scans[quantum_id]])


def _write_part(file: Path, graph: PredictedQuantumGraph, scans: Mapping[uuid.UUID, QuantumScan]) -> None:
    """Write the provenance graph of some quanta."""
    components = PredictedQuantumGraphComponents(
        header=graph.header.model_copy(update={"n_quanta": len(scans)}),
        pipeline_graph=graph.pipeline_graph,
        quantum_datasets={quantum_id: graph._quantum_datasets[quantum_id] for quantum_id in scans},
    )
    components.init_quanta.root.extend(graph._init_quanta.values())
    with contextlib.ExitStack() as stack:
        writer = ProvenanceQuantumGraphWriter(
            str(file), exit_stack=stack, log_on_close=LogOnClose(logger.log), predicted=components
        )
        for quantum_id, scan in scans.items():
            writer.write_scan_data(scan_data(graph._quantum_datasets[quantum_id], scan, writer))
        writer.write_overall_inputs()
        writer.write_init_outputs()


def _make_path(run: str) -> str:
    """Name a new file, by its path in the datastore."""
    return f"{run}/{_FOLDER}/{uuid.uuid4()}.qg"


def _send(file: Path, uri: ResourcePath) -> int:
    """Send a file to the datastore and return its size in bytes."""
    uri.transfer_from(ResourcePath(str(file)), transfer="copy", overwrite=True)
    return file.stat().st_size


def _make_records(
    store: FileDatastore, datasets: Iterable[tuple[uuid.UUID, DatasetType]], path: str, size: int
) -> dict[str, DatastoreRecordData]:
    """Make the datastore records of datasets that are in one file."""
    infos: dict[str, StoredFileInfo] = {}
    data = DatastoreRecordData()
    for dataset_id, dataset_type in datasets:
        if dataset_type.name not in infos:
            storage_class = dataset_type.storageClass
            infos[dataset_type.name] = StoredFileInfo(
                ProvenanceFormatter, path, storage_class, None, None, size
            )
        data.records[dataset_id] = {store._table.name: [infos[dataset_type.name]]}
    return {store.name: data}


def _list_parts(store: FileDatastore, run: str) -> set[str]:
    """List what there is in the folder of a run, by paths in the datastore."""
    folder = store.root.join(f"{run}/{_FOLDER}/", forceDirectory=True)
    return {f"{run}/{_FOLDER}/{name}" for name in list_files(folder) if name.endswith(".qg")}


def find_unused_parts(butler: Butler, run: str) -> list[ResourcePath]:
    """Find the parts that no dataset of the repository refers to.

    A driver that died may have left one; others have been replaced.

    Parameters
    ----------
    butler
        Butler of the repository.  No driver is at work in the run.
    run
        The output run.
    """
    unused: list[ResourcePath] = []
    # In a chain of datastores, another may have been the first when they were written.
    for store in file_datastores(butler):
        paths = _list_parts(store, run)
        unused += [
            store.root.join(path) for path in paths - store._refs_associated_with_artifacts(paths).keys()
        ]
    return unused


def remove_unused_parts(butler: Butler, run: str) -> int:
    """Remove what `find_unused_parts` finds.

    Parameters
    ----------
    butler, run
        As for `find_unused_parts`.

    Returns
    -------
    count
        How many were removed.
    """
    removals = ResourcePath.mremove(find_unused_parts(butler, run), do_raise=False)
    for uri, removal in removals.items():
        if not removal.success:
            logger.warning("Could not remove %s: %s", uri, removal.exception)
    return sum(removal.success for removal in removals.values())


def pack_run(butler: Butler, graph: PredictedQuantumGraph, result: RunResult) -> bool:
    """Replace the parts of a run by one provenance graph, the ``run_provenance`` of the run.

    What is registered can be read at any moment: all at once, datasets are
    given over from a part to the graph.  (`lsst.pipe.base.quantum_graph.ingest_graph`
    makes the registry forget all metadata first, and with them what is done.)

    Parameters
    ----------
    butler
        Writeable butler of the repository.
    graph
        The graph that was executed.
    result
        What came of it.

    Returns
    -------
    packed
        Whether it was done.  It is left undone while a quantum is not done,
        if the graph does not have all quanta of the run, and if somebody else
        has made the run's provenance graph.
    """
    run = graph.header.output_run
    present = fetch_ids(butler, run)
    automatic = {
        quantum_id: [each.dataset_id for each in automatic_outputs(graph, quantum_id)]
        for quantum_id in graph._quantum_datasets
    }
    if result.failed or not all(metadata_id in present for metadata_id, *_ in automatic.values()):
        return False
    store = file_datastores(butler)[0]
    own = _find_graph(butler, run)
    in_parts = store._refs_associated_with_artifacts(_list_parts(store, run)).values()
    served = {uuid.UUID(str(each)) for each in itertools.chain.from_iterable(in_parts)}
    is_by_hand = own.id in present and own.id not in served
    served.discard(own.id)
    is_whole = served <= set(itertools.chain.from_iterable(automatic.values()))
    if not served or not is_whole or is_by_hand:
        return False
    path = _make_path(run)
    with tempfile.TemporaryDirectory(prefix="spark-butler-") as folder:
        file = Path(folder, "run.qg")
        with ProvenanceRecorder(graph, str(file), butler=butler) as recorder:
            recorder.finish(result)
        size = _send(file, store.root.join(path))
    dataset_types = {node.name: node.dataset_type for node in graph.pipeline_graph.dataset_types.values()}
    dataset_types[own.datasetType.name] = own.datasetType
    ingester = Ingester(butler, dataset_types, existing=present)
    ingester.add([own], {own.id}, _make_records(store, [(own.id, own.datasetType)], path, size))
    quanta = [q for q, dataset_ids in automatic.items() if not served.isdisjoint(dataset_ids)]
    for batch in itertools.batched(quanta, _BATCH):
        refs = [
            ref
            for quantum in graph.build_execution_quanta(batch).values()
            for ref in all_outputs(quantum)
            if ref.id in served
        ]
        records = _make_records(store, [(r.id, dataset_types[r.datasetType.name]) for r in refs], path, size)
        ingester.add(refs, {ref.id for ref in refs}, records)
    ingester.flush()
    remove_unused_parts(butler, run)
    return True


def _find_graph(butler: Butler, run: str) -> DatasetRef:
    """Find the provenance graph of a run, or say what it will be."""
    dataset_type = DatasetType(
        acc.PROVENANCE_DATASET_TYPE_NAME, butler.dimensions.empty, acc.PROVENANCE_STORAGE_CLASS
    )
    butler.registry.registerDatasetType(dataset_type)
    found = butler.find_dataset(dataset_type, collections=[run])
    return found or DatasetRef(dataset_type, DataCoordinate.make_empty(butler.dimensions), run=run)
