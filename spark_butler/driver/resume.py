"""Outputs of earlier attempts at a run, and the quanta that have to run again.

Runs in the driver.  A driver that was killed may not have registered the outputs
of its last seconds.  Outputs of quanta that succeeded are then *adopted*: they are
registered without running the quanta.  Unfinished quanta run again and replace
their outputs.
"""

from __future__ import annotations

__all__ = ["EarlierOutputs", "RegistryUpdate", "choose_quanta", "find_earlier_outputs", "needs_clobber"]

import dataclasses
import itertools
import logging
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import networkx
from lsst.daf.butler import Butler, DatasetRef, DatasetType, LimitedButler, Quantum
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from .._daf_butler import fetch_run_ids
from ..datastore.files import FileFinder, Place
from ..model.work import TEMPORARIES_KEY, all_outputs
from ..provenance.readback import automatic_outputs, find_packs, open_pack

logger = logging.getLogger(__name__)

_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class RegistryUpdate:
    """Datasets of one quantum that are to be updated in the registry."""

    quantum_id: uuid.UUID

    predicted: list[DatasetRef]
    """All outputs that it may have."""

    written: frozenset[uuid.UUID] = frozenset()
    """IDs of the outputs that are in the datastore and must be registered."""

    records: Mapping[str, DatastoreRecordData] = dataclasses.field(default_factory=dict)
    """Their datastore records, by name of the datastore."""

    removed: frozenset[uuid.UUID] = frozenset()
    """IDs of the outputs that are in the registry, but not in the datastore."""


@dataclasses.dataclass
class EarlierOutputs:
    """Outputs of a run that exist before it resumes."""

    done: set[uuid.UUID]
    """Quanta that have succeeded."""

    updates: list[RegistryUpdate] = dataclasses.field(default_factory=list)

    leftovers: set[uuid.UUID] = dataclasses.field(default_factory=set)
    """IDs of datasets of other quanta that are in the datastore, but not in the registry."""

    replaceable: set[uuid.UUID] = dataclasses.field(default_factory=set)
    """Quanta that have not succeeded, with outputs in the datastore but none in the registry."""

    stray_files: list[ResourcePath] = dataclasses.field(default_factory=list)
    """Files of quanta that have not succeeded, and that these quanta will not write again."""


def find_earlier_outputs(
    butler: LimitedButler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Collection[str],
    existing: Collection[uuid.UUID],
    once_temporary: Collection[str] = (),
) -> EarlierOutputs:
    """Return the outputs that earlier attempts at the quanta of a graph have left.

    Parameters
    ----------
    temporary_types
        Names of the dataset types that are temporary now.
    existing
        IDs of the datasets that are in the output run.
    once_temporary
        Names of the dataset types that were temporary in some earlier attempt.
    """
    earlier = EarlierOutputs(
        {quantum_id for quantum_id in xgraph if _is_registered(graph, quantum_id, existing)}
    )
    finder = FileFinder(butler, dataset_types)
    run = graph.header.output_run
    quanta = graph.build_execution_quanta(
        [quantum_id for quantum_id in xgraph if quantum_id not in earlier.done]
    )
    places = {ref.id: finder.predict(ref) for quantum in quanta.values() for ref in all_outputs(quantum)}
    finder.prepare(list(itertools.chain.from_iterable(places.values())), run, len(existing))
    for quantum_id, quantum in quanta.items():
        node = graph.pipeline_graph.tasks[graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]]
        if _is_complete(finder, node, quantum, places):
            earlier.done.add(quantum_id)
            earlier.updates.append(_update_for_success(finder, quantum_id, quantum, existing))
        else:
            _note_leftovers(earlier, finder, quantum_id, quantum, places, temporary_types, existing)
    if once_temporary:
        makers = [
            quantum_id
            for quantum_id in earlier.done - quanta.keys()
            if not _output_types(graph, quantum_id).isdisjoint(once_temporary)
        ]
        earlier.updates.extend(_compare_sizes(finder, graph.build_execution_quanta(makers), existing, run))
    return earlier


def needs_clobber(butler: Butler, graph: PredictedQuantumGraph) -> bool:
    """Check whether a run can resume only if registered outputs may be replaced.

    This is so if a quantum has outputs in the registry, such as its log, but has not succeeded.
    """
    existing = fetch_run_ids(butler, graph.header.output_run)
    return any(
        not existing.isdisjoint(graph.bipartite_xgraph.successors(quantum_id))
        and not _is_registered(graph, quantum_id, existing)
        for quantum_id in graph.quantum_only_xgraph
    )


def _is_registered(
    graph: PredictedQuantumGraph, quantum_id: uuid.UUID, existing: Collection[uuid.UUID]
) -> bool:
    """Return whether the metadata of a quantum is registered, which proves its success."""
    return automatic_outputs(graph, quantum_id)[0].dataset_id in existing


def _output_types(graph: PredictedQuantumGraph, quantum_id: uuid.UUID) -> frozenset[str]:
    label = graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
    outputs = graph.pipeline_graph.tasks[label].outputs.values()
    return frozenset(edge.parent_dataset_type_name for edge in outputs)


def _is_complete(
    finder: FileFinder, node: TaskNode, quantum: Quantum, places: Mapping[uuid.UUID, list[Place]]
) -> bool:
    """Return whether metadata and log of a quantum, which are written last, are in the datastore.

    On a local disk, a file of an interrupted write may exist and be empty.
    """
    for edge in (node.metadata_output, node.log_output):
        if edge is not None:
            (ref,) = quantum.outputs[edge.dataset_type_name]
            found = finder.find(places[ref.id])
            if not places[ref.id] or not all(found.get(place) for place in places[ref.id]):
                return False
    return True


def _update_for_success(
    finder: FileFinder, quantum_id: uuid.UUID, quantum: Quantum, existing: Collection[uuid.UUID]
) -> RegistryUpdate:
    """Return the registry updates for a quantum that succeeded."""
    refs = list(all_outputs(quantum))
    files = finder.predict_files(refs)
    written = finder.find_complete(files)
    removed = frozenset(ref.id for ref in refs if ref.id in existing and ref.id not in written)
    return RegistryUpdate(quantum_id, refs, frozenset(written), finder.make_records(written), removed)


def _note_leftovers(
    earlier: EarlierOutputs,
    finder: FileFinder,
    quantum_id: uuid.UUID,
    quantum: Quantum,
    places: Mapping[uuid.UUID, list[Place]],
    temporary_types: Collection[str],
    existing: Collection[uuid.UUID],
) -> None:
    """Record the files of a quantum that did not succeed."""
    refs = list(all_outputs(quantum))
    registered = [ref for ref in refs if ref.id in existing]
    gone = frozenset[uuid.UUID]()
    if registered:
        files = finder.registered_files(registered)
        gone = frozenset(files.keys() - finder.find_complete(files).keys())
        if gone:
            earlier.updates.append(RegistryUpdate(quantum_id, refs, removed=gone))
    left = False
    for ref in refs:
        if ref.id in existing or not (found := finder.find(places[ref.id])):
            continue
        if ref.datasetType.name in temporary_types:
            earlier.stray_files.extend(finder.locate(place) for place in found)
        else:
            earlier.leftovers.add(ref.id)
            left = True
    if left and gone.issuperset(ref.id for ref in registered):
        earlier.replaceable.add(quantum_id)


def _compare_sizes(
    finder: FileFinder, quanta: Mapping[uuid.UUID, Quantum], existing: Collection[uuid.UUID], run: str
) -> Iterable[RegistryUpdate]:
    """Yield registry updates for outputs that were rewritten while temporaries were recreated."""
    refs = {
        quantum_id: [ref for ref in all_outputs(quantum) if ref.id in existing]
        for quantum_id, quantum in quanta.items()
    }
    files = finder.registered_files(itertools.chain.from_iterable(refs.values()))
    places = [place for parts in files.values() for place, _ in parts]
    if not places:
        return
    finder.prepare(places, run, len(existing))
    for quantum_id, mine in refs.items():
        if changed := finder.find_changed({ref.id: files[ref.id] for ref in mine}):
            yield RegistryUpdate(
                quantum_id,
                list(all_outputs(quanta[quantum_id])),
                frozenset(changed),
                finder.make_records(changed),
            )


def choose_quanta(
    butler: LimitedButler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    temporary_types: Collection[str],
    once_temporary: Collection[str],
    done: Collection[uuid.UUID],
    existing: Collection[uuid.UUID],
) -> set[uuid.UUID]:
    """Return the quanta that have succeeded but have to run again.

    Their temporaries are needed again, or their outputs were temporary then and are to be stored
    now.  The parameters are those of `find_earlier_outputs`.
    """
    forced = _find_unstored(
        butler, graph, done, frozenset(once_temporary) - frozenset(temporary_types), existing
    )
    if not temporary_types and not forced:
        return set()
    done = frozenset(done)
    for quantum_id in reversed(list(networkx.topological_sort(xgraph))):
        if quantum_id in done and quantum_id not in forced:
            continue
        for dataset_id in graph.bipartite_xgraph.predecessors(quantum_id):
            if graph.bipartite_xgraph.nodes[dataset_id]["dataset_type_name"] in temporary_types:
                forced.update(done.intersection(graph.bipartite_xgraph.predecessors(dataset_id)))
    return forced


def _find_unstored(
    butler: LimitedButler,
    graph: PredictedQuantumGraph,
    done: Collection[uuid.UUID],
    names: Collection[str],
    existing: Collection[uuid.UUID],
) -> set[uuid.UUID]:
    """Return the quanta whose metadata list datasets that are not stored."""
    if not names:
        return set()
    missing: dict[uuid.UUID, set[uuid.UUID]] = {}
    for quantum_id in done:
        for dataset_id in graph.bipartite_xgraph.successors(quantum_id):
            name = graph.bipartite_xgraph.nodes[dataset_id]["dataset_type_name"]
            if name in names and dataset_id not in existing:
                missing.setdefault(quantum_id, set()).add(dataset_id)
    predicted = {
        quantum_id: {ref.id for ref in all_outputs(quantum)}
        for quantum_id, quantum in graph.build_execution_quanta(missing).items()
    }
    return {
        quantum_id
        for quantum_id, put in _read_puts(butler, graph, missing).items()
        # Another graph may have given it another ID.
        if put & missing[quantum_id]
        or any(each not in existing and each not in predicted[quantum_id] for each in put)
    }


def _read_puts(
    butler: LimitedButler, graph: PredictedQuantumGraph, missing: Mapping[uuid.UUID, set[uuid.UUID]]
) -> dict[uuid.UUID, set[uuid.UUID]]:
    """Read the IDs of the datasets that quanta have put from their metadata."""
    packed = _read_packed_puts(butler, graph, missing)
    missing = {quantum_id: ids for quantum_id, ids in missing.items() if quantum_id not in packed}
    quanta = graph.build_execution_quanta(missing)
    local = threading.local()

    def read(quantum_id: uuid.UUID) -> set[uuid.UUID]:
        if not hasattr(local, "butler"):
            local.butler = butler.clone() if isinstance(butler, Butler) else butler
        label = graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
        name = graph.pipeline_graph.tasks[label].metadata_output.dataset_type_name
        try:
            metadata = local.butler.get(quanta[quantum_id].outputs[name][0])["quantum"]
        except (FileNotFoundError, LookupError):
            logger.warning("The metadata of quantum %s of task %s can't be read.", quantum_id, label)
            return missing[quantum_id]
        keys = [key for key in ("outputs", TEMPORARIES_KEY) if key in metadata]
        return {uuid.UUID(each) for key in keys for each in metadata.getArray(key)}

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="spark-butler-read") as pool:
        return packed | dict(zip(missing, pool.map(read, missing), strict=True))


def _read_packed_puts(
    butler: LimitedButler, graph: PredictedQuantumGraph, quantum_ids: Iterable[uuid.UUID]
) -> dict[uuid.UUID, set[uuid.UUID]]:
    """Read the IDs of put datasets from metadata in provenance graphs."""
    owners = {automatic_outputs(graph, quantum_id)[0].dataset_id: quantum_id for quantum_id in quantum_ids}
    puts: dict[uuid.UUID, set[uuid.UUID]] = {}
    for uri in find_packs(butler, owners):
        with open_pack(uri) as packed:
            for each in packed:
                for metadata_id in each.dataset_ids & owners.keys():
                    puts[owners[metadata_id]] = set(each.scan.produced - each.dataset_ids)
    return puts
