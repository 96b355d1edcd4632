"""Sketch of a quantum graph: quanta, edges and temporaries, for planning.  Runs in the driver."""

from __future__ import annotations

__all__ = ["sketch_graph"]

import uuid
from collections.abc import Mapping

import networkx
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .plan import GraphSketch, Handover


def sketch_graph(
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    *,
    temporary_types: Mapping[str, str] | None = None,
    sizes: Mapping[str, float] | None = None,
    costs: Mapping[uuid.UUID, float] | None = None,
) -> GraphSketch:
    """Build the sketch of a quantum graph, with quanta sorted by task and data ID.

    Parameters
    ----------
    xgraph
        Its quanta with the edges to respect, if these differ from the graph's own.
    temporary_types
        Names of the dataset types that are temporary, with the reasons.
    sizes
        Mean sizes of datasets in bytes, by name of the type.
    """
    if xgraph is None:
        xgraph = graph.quantum_only_xgraph
    # Quanta that are not in xgraph have been done before.
    labels = {
        quantum_id: label
        for label in graph.pipeline_graph.tasks
        for _, quantum_id in sorted(
            graph.quanta_by_task.get(label, {}).items(), key=lambda item: item[0].required_values
        )
        if quantum_id in xgraph
    }
    handovers: list[Handover] = []
    if temporary_types:
        bipartite = graph.bipartite_xgraph
        for name in temporary_types:
            for dataset_id in graph.datasets_by_type.get(name, {}).values():
                for producer in bipartite.predecessors(dataset_id):
                    if producer in xgraph:
                        consumers = tuple(q for q in bipartite.successors(dataset_id) if q in xgraph)
                        handovers.append(Handover(dataset_id, name, producer, consumers))
    return GraphSketch(
        labels,
        list(xgraph.edges()),
        handovers,
        dict(temporary_types or {}),
        data_ids={quantum_id: dict(xgraph.nodes[quantum_id]["data_id"].mapping) for quantum_id in labels},
        sizes=dict(sizes or {}),
        costs=costs or {},
        dimensions={frozenset(task.dimensions.names) for task in graph.pipeline_graph.tasks.values()},
    )
