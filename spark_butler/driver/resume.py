"""How a run stands before it goes on: what earlier attempts have left, and what need not run again."""

from __future__ import annotations

__all__ = ["Before", "look_back", "scratch_folders"]

import dataclasses
import logging
import uuid
from collections.abc import Mapping

import networkx
from lsst.daf.butler import Butler, DatasetType
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from ..model.options import RunOptions
from ..provenance.graph_files import automatic_outputs, find_packs
from ..repository.checks import store_roots
from ..repository.collection_notes import read_temporaries
from ..repository.ingest import Ingester
from ..temporaries.scratch import remove_scratch, scratch_folder
from .existing_outputs import choose_quanta, take_stock

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Before:
    """How a run stands before it goes on."""

    registered: frozenset[uuid.UUID]
    """IDs of the datasets that are in the output run."""

    stored: frozenset[uuid.UUID]
    """IDs of the datasets of the output run that are in the datastore."""

    replaceable: frozenset[uuid.UUID] = frozenset()
    """Quanta whose outputs may be replaced without leave."""

    forced: frozenset[uuid.UUID] = frozenset()
    """Quanta that have succeeded and run again."""

    packed: frozenset[uuid.UUID] = frozenset()
    """IDs of metadata and logs of quanta that run again, where they are in a provenance graph."""

    n_adopted: int = 0
    """Number of datasets that were put into the registry."""

    cut_off: bool = False
    """Whether the last attempt came to no good end."""


def look_back(
    butler: Butler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Mapping[str, str],
    existing: frozenset[uuid.UUID],
    options: RunOptions,
) -> Before:
    """Bring the registry up to date, and drop from a graph what need not run again.

    Parameters
    ----------
    butler
        Writeable butler of the repository.
    graph
        The graph.
    xgraph
        Its quanta, from which those are removed that need not run.
    dataset_types
        Definitions in the repository of all dataset types of the graph.
    temporary_types
        Names of those that are temporary, with the reasons.
    existing
        IDs of the datasets of the output run that are in the registry.
    options
        What is to become of earlier outputs.

    Returns
    -------
    before
        How the run stands then.
    """
    if not (options.skip_existing or options.clobber_outputs):
        return Before(existing, existing)
    run = graph.header.output_run
    temporaries = {
        dataset_id for name in temporary_types for dataset_id in graph.datasets_by_type.get(name, {}).values()
    }
    for folder in scratch_folders(butler, run):
        remove_scratch(folder, temporaries, one_run=True)
    once_temporary = read_temporaries(butler, [run])
    stock = take_stock(butler, graph, xgraph, dataset_types, temporary_types, existing, once_temporary)
    for uri, removal in ResourcePath.mremove(stock.strays, do_raise=False).items():
        if not removal.success:
            logger.warning("Could not remove %s: %s", uri, removal.exception)
    ingester = Ingester(butler, dataset_types, existing=existing)
    for adoption in stock.adoptions:
        ingester.add(adoption.predicted, adoption.written, adoption.records, adoption.removed)
    ingester.flush()
    existing = existing.union(*(adoption.written for adoption in stock.adoptions)).difference(
        *(adoption.removed for adoption in stock.adoptions)
    )
    forced: set[uuid.UUID] = set()
    if options.skip_existing:
        forced = choose_quanta(butler, graph, xgraph, temporary_types, once_temporary, stock.done, existing)
        skipped = stock.done - forced
        logger.info("Skipping %d quanta that succeeded before.", len(skipped))
        xgraph.remove_nodes_from(skipped)
    automatic = {each.dataset_id for q in xgraph.nodes - forced for each in automatic_outputs(graph, q)}
    packed = frozenset[uuid.UUID]().union(*find_packs(butler, automatic & existing).values())
    return Before(
        existing,
        (existing | stock.leftovers) - packed,
        frozenset(stock.replaceable),
        frozenset(forced),
        packed,
        ingester.n_ingested,
        cut_off=bool(stock.adoptions or stock.leftovers or stock.strays),
    )


def scratch_folders(butler: Butler, run: str) -> list[ResourcePath]:
    """Name the folders for temporaries of a run that a shuffle can't take.

    Parameters
    ----------
    butler
        Butler of the repository.
    run
        The output run.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the name of the run can't be that of a folder.
    """
    return [
        scratch_folder(root, run) for root in store_roots(butler) if root.scheme not in ("mem", "file+mem")
    ]
