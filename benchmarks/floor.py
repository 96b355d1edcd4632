#!/usr/bin/env python3
"""Reference benchmark: one process runs all quanta of a graph in order with pipe_base's own executor."""

from __future__ import annotations

__all__: list[str] = []

import json
import logging
import resource
import sys
import time
from collections.abc import Sequence

import networkx
from lsst.daf.butler import ButlerConfig, QuantumBackedButler
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.utils.threads import disable_implicit_threading

from spark_butler.model.work import all_inputs, all_outputs
from tests.support.stock import read_graph


def main(arguments: Sequence[str]) -> None:
    """Run a graph, and print the wall and processor time of the quanta alone."""
    repo, file = arguments
    disable_implicit_threading()
    logging.getLogger("lsst").setLevel(logging.INFO)
    graph = read_graph(file)
    quanta = graph.build_execution_quanta()
    records: dict[str, DatastoreRecordData] = {}
    for quantum in quanta.values():
        for name, data in quantum.datastore_records.items():
            records.setdefault(name, data).update(data)
    butler = QuantumBackedButler.from_predicted(
        ButlerConfig(repo),
        predicted_inputs=[ref.id for quantum in quanta.values() for ref in all_inputs(quantum)],
        predicted_outputs=[ref.id for quantum in quanta.values() for ref in all_outputs(quantum)],
        dimensions=next(iter(quanta.values())).dataId.universe,  # type: ignore[union-attr]
        datastore_records=records,
        dataset_types={node.name: node.dataset_type for node in graph.pipeline_graph.dataset_types.values()},
    )
    executor = SingleQuantumExecutor(butler=butler, assume_no_existing_outputs=True)
    xgraph = graph.quantum_only_xgraph
    wall, cpu = time.perf_counter(), time.process_time()
    for quantum_id in networkx.lexicographical_topological_sort(xgraph, key=str):
        node = graph.pipeline_graph.tasks[xgraph.nodes[quantum_id]["task_label"]]
        executor.execute(node, quanta[quantum_id], quantum_id=quantum_id)
    result = {
        "quanta": len(quanta),
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
