"""Inventory of an output run before its quanta run: outputs of earlier attempts, and quanta to skip.

Runs in the driver.  If the run is resumed, the inventory registers outputs
that the earlier driver did not ingest.
"""

from __future__ import annotations

__all__ = ["Inventory", "count_done_before", "scratch_folders", "take_inventory"]

import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping

import networkx
from lsst.daf.butler import Butler, DatasetType, LimitedButler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from .._daf_butler import datastore_of, fetch_run_ids
from ..datastore.graph_butler import GraphButler
from ..model.options import RunOptions
from ..provenance.readback import automatic_outputs, find_packs
from ..repository.checks import register_run, store_roots
from ..repository.collection_notes import read_temporaries
from ..repository.database_retry import retry_database
from ..repository.output_ingest import Ingester
from ..temporaries.scratch import remove_scratch, scratch_folder
from ..text import as_engine_error, best_effort
from .resume import RegistryUpdate, choose_quanta, find_earlier_outputs

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inventory:
    """State of an output run before its quanta run."""

    registered: frozenset[uuid.UUID]
    """IDs of the datasets that are in the output run."""

    stored: frozenset[uuid.UUID]
    """IDs of the datasets of the output run that are in the datastore."""

    replaceable: frozenset[uuid.UUID] = frozenset()
    """Quanta whose outputs may be replaced without ``--clobber-outputs``."""

    forced: frozenset[uuid.UUID] = frozenset()
    """Quanta that succeeded before and run again."""

    packed: frozenset[uuid.UUID] = frozenset()
    """IDs of the metadata and logs in provenance graphs whose quanta run again."""

    n_registered: int = 0
    """Number of datasets that were registered by the inventory."""

    cut_off: bool = False
    """Whether the last attempt was killed, so that its workers may still write."""


def take_inventory(
    butler: Butler | GraphButler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Mapping[str, str],
    options: RunOptions,
    check: Callable[[Butler], None] | None = None,
) -> Inventory:
    """Register the output run and its unregistered outputs; remove quanta that need not run from ``xgraph``.

    Parameters
    ----------
    temporary_types
        Names of the temporary dataset types, with the reasons.
    check
        Called with the butler in each transaction that registers datasets.

    Raises
    ------
    spark_butler.errors.EngineError
        Raised if the registry or the datastore does not answer.
    """
    run = graph.header.output_run
    # The name of the run is checked before anything is written.
    folders = scratch_folders(butler, run)
    if isinstance(butler, Butler):
        retry_database(f"Run {run!r} can't be registered", lambda: register_run(butler, run))
    what = f"The contents of run {run!r} could not be listed"
    with as_engine_error(what):
        return retry_database(
            what,
            lambda: _take_inventory(
                butler, graph, xgraph, dataset_types, temporary_types, options, folders, check
            ),
        )


def _take_inventory(
    butler: Butler | GraphButler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Mapping[str, str],
    options: RunOptions,
    folders: Iterable[ResourcePath],
    check: Callable[[Butler], None] | None,
) -> Inventory:
    run = graph.header.output_run
    existing = fetch_run_ids(butler, run) if isinstance(butler, Butler) else frozenset[uuid.UUID]()
    if not (options.skip_existing or options.clobber_outputs):
        return Inventory(existing, existing)
    temporaries = {
        dataset_id for name in temporary_types for dataset_id in graph.datasets_by_type.get(name, {}).values()
    }
    for folder in folders:
        with best_effort("Earlier temporaries stay in the datastore"):
            remove_scratch(folder, temporaries, one_run=True)
    once_temporary = read_temporaries(butler, [run]) if isinstance(butler, Butler) else frozenset()
    earlier = find_earlier_outputs(
        butler, graph, xgraph, dataset_types, temporary_types, existing, once_temporary
    )
    with best_effort("Unfinished outputs stay in the datastore"):
        for uri, removal in ResourcePath.mremove(earlier.stray_files, do_raise=False).items():
            if not removal.success:
                logger.warning("Could not remove %s: %s", uri, removal.exception)
    n_registered = _register(butler, dataset_types, earlier.updates, existing, check)
    existing = existing.union(*(update.written for update in earlier.updates)).difference(
        *(update.removed for update in earlier.updates)
    )
    if not isinstance(butler, Butler):
        # Without a registry no note lists the temporary types.  Types with a missing output are
        # candidates, which `choose_quanta` compares with the metadata.
        once_temporary = _find_incomplete_types(graph, earlier.done, existing)
    forced: set[uuid.UUID] = set()
    skipped: set[uuid.UUID] = set()
    if options.skip_existing:
        forced = choose_quanta(butler, graph, xgraph, temporary_types, once_temporary, earlier.done, existing)
        skipped = earlier.done - forced
    kept = xgraph.nodes - skipped - forced
    automatic = {each.dataset_id for q in kept for each in automatic_outputs(graph, q)}
    packed = frozenset[uuid.UUID]().union(*find_packs(butler, automatic & existing).values())
    if options.skip_existing:
        # Logged last, because the whole function may run again after a lost connection.
        logger.info("Skipping %d quanta that succeeded before.", len(skipped))
        xgraph.remove_nodes_from(skipped)
    return Inventory(
        existing,
        (existing | earlier.leftovers) - packed,
        frozenset(earlier.replaceable),
        frozenset(forced),
        packed,
        n_registered,
        cut_off=bool(earlier.updates or earlier.leftovers or earlier.stray_files),
    )


def _register(
    butler: Butler | GraphButler,
    dataset_types: Mapping[str, DatasetType],
    updates: Iterable[RegistryUpdate],
    existing: frozenset[uuid.UUID],
    check: Callable[[Butler], None] | None,
) -> int:
    """Update the registry, or without one only the butler; return the number of registered datasets."""
    if isinstance(butler, GraphButler):
        for update in updates:
            datastore_of(butler).import_records(update.records)
        return 0
    ingester = Ingester(butler, dataset_types, existing=existing, check=check)
    for update in updates:
        ingester.add(update.predicted, update.written, update.records, update.removed)
    ingester.flush()
    return ingester.n_ingested


def _find_incomplete_types(
    graph: PredictedQuantumGraph, done: Iterable[uuid.UUID], existing: frozenset[uuid.UUID]
) -> frozenset[str]:
    """Return the dataset types of which a quantum succeeded without writing all predicted outputs."""
    xgraph = graph.bipartite_xgraph
    return frozenset(
        xgraph.nodes[dataset_id]["dataset_type_name"]
        for quantum_id in done
        for dataset_id in xgraph.successors(quantum_id)
        if dataset_id not in existing
    )


def count_done_before(butler: Butler, graph: PredictedQuantumGraph) -> dict[str, int]:
    """Count the quanta of each task that have succeeded in an output run, but are not in the graph.

    A graph that is built to resume a run leaves out these quanta.
    """
    run = graph.header.output_run
    existing = fetch_run_ids(butler, run)
    done_before: dict[str, int] = {}
    for label, task in graph.pipeline_graph.tasks.items():
        name = task.metadata_output.dataset_type_name
        predicted = existing.intersection(graph.datasets_by_type.get(name, {}).values())
        with butler.query() as query:
            n_written = query.datasets(name, collections=run, find_first=False).count()
        done_before[label] = n_written - len(predicted)
    return done_before


def scratch_folders(butler: LimitedButler, run: str) -> list[ResourcePath]:
    """Return a run's folders for temporaries too large for a shuffle; raise if its name is no folder's."""
    return [scratch_folder(root, run) for root in store_roots(butler)]
