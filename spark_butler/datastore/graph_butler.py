"""Butler of a whole quantum graph, for runs without a registry.  Runs in the driver."""

from __future__ import annotations

__all__ = ["GraphButler"]

from typing import Self

from lsst.daf.butler import ButlerConfig, QuantumBackedButler, StorageClassFactory
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._daf_butler import trust_files_without_records
from ..model.work import all_inputs, all_outputs
from .quantum_butler import read_datastore


class GraphButler(QuantumBackedButler):
    """Quantum-backed butler of all quanta of a graph, with the datastore records that the graph holds."""

    config: ButlerConfig
    """Configuration of the repository; its registry is not used."""

    @classmethod
    def open(cls, config: ButlerConfig, graph: PredictedQuantumGraph) -> Self:
        """Open the butler of a graph."""
        universe = graph.pipeline_graph.universe
        datastore = read_datastore(config, universe)
        trust_files_without_records(datastore)
        quanta = graph.build_execution_quanta().values()
        records = DatastoreRecordData.merge_mappings(*(quantum.datastore_records for quantum in quanta))
        datastore.import_records(records)
        storage_classes = StorageClassFactory()
        storage_classes.addFromConfig(config)
        butler = cls(
            [ref.id for quantum in quanta for ref in all_inputs(quantum)],
            [ref.id for quantum in quanta for ref in all_outputs(quantum)],
            universe,
            datastore,
            storageClasses=storage_classes,
            dataset_types={name: n.dataset_type for name, n in graph.pipeline_graph.dataset_types.items()},
        )
        butler.config = config
        return butler
