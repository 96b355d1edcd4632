"""How long quanta will probably take, so that those with much behind them go first."""

from __future__ import annotations

__all__ = ["estimate_costs"]

import statistics
import uuid
from collections import defaultdict
from collections.abc import Mapping

import networkx
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .learned import Times
from .stored_files import collect_files


def estimate_costs(
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    times: Times,
    records: Mapping[str, DatastoreRecordData],
) -> dict[uuid.UUID, float]:
    """Estimate the times of quanta from earlier runs, or else from the sizes of their inputs.

    Parameters
    ----------
    graph
        The graph.
    xgraph
        The quanta that are to run.
    times
        How long quanta took in earlier runs, as far as that is known.
    records
        Datastore records of the inputs of the graph, by name of the
        datastore.

    Returns
    -------
    costs
        Seconds, by quantum, where the times of some tasks are known;
        otherwise multiples of the mean.  A task that is not known is taken to
        need as long on average as those that are, and for each quantum in
        proportion to the bytes of its inputs.  An input that is still to be
        made counts as the mean of those that there are.
    """
    nodes = xgraph.nodes
    costs = {
        quantum_id: seconds
        for quantum_id in xgraph
        if (seconds := times.of(nodes[quantum_id]["task_label"], nodes[quantum_id]["data_id"])) is not None
    }
    unknown = [quantum_id for quantum_id in xgraph if quantum_id not in costs]
    if not unknown:
        return costs
    sizes = _mean_sizes(graph, records)
    usual = statistics.fmean(sizes.values()) if sizes else 1.0
    bipartite = graph.bipartite_xgraph
    nbytes = {
        quantum_id: sum(
            sizes.get(bipartite.nodes[dataset_id]["dataset_type_name"], usual)
            for dataset_id in bipartite.predecessors(quantum_id)
        )
        for quantum_id in unknown
    }
    mean_time = statistics.fmean(costs.values()) if costs else 1.0
    mean_bytes = statistics.fmean(nbytes.values()) or 1.0
    costs.update((quantum_id, mean_time * size / mean_bytes) for quantum_id, size in nbytes.items())
    return costs


def _mean_sizes(graph: PredictedQuantumGraph, records: Mapping[str, DatastoreRecordData]) -> dict[str, float]:
    """Find the mean size in bytes of the files of each dataset type."""
    nodes = graph.bipartite_xgraph.nodes
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for dataset_id, parts in collect_files(records).items():
        if dataset_id in nodes:
            sizes[nodes[dataset_id]["dataset_type_name"]].append(sum(info.file_size for _, info in parts))
    return {name: statistics.fmean(each) for name, each in sizes.items()}
