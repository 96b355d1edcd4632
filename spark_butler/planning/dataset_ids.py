"""Dataset IDs of a predicted graph that are the same if it is built again.  Runs in the driver."""

from __future__ import annotations

__all__ = ["check_outputs_in_the_way", "settle_dataset_ids"]

import itertools
import uuid
from collections.abc import Collection

from lsst.daf.butler import DataCoordinate, DatasetIdFactory, DatasetIdGenEnum
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents
from lsst.pipe.base.quantum_graph_builder import OutputExistsError


def check_outputs_in_the_way(
    components: PredictedQuantumGraphComponents, existing: Collection[uuid.UUID]
) -> None:
    """Raise `OutputExistsError` if an unfinished quantum of a graph has outputs among ``existing`` ones.

    Pipe_base's own check would also reject quanta that have succeeded and run again only for a temporary.
    """
    for quantum in components.quantum_datasets.values():
        (metadata,) = quantum.outputs[acc.METADATA_OUTPUT_CONNECTION_NAME]
        if metadata.dataset_id in existing:
            continue
        for dataset in itertools.chain.from_iterable(quantum.outputs.values()):
            if dataset.dataset_id in existing:
                raise OutputExistsError(
                    f"Potential output dataset {components.make_dataset_ref(dataset)} already exists in the "
                    f"output run {components.header.output_run}, but clobbering outputs was not expected to "
                    "be necessary."
                )


def settle_dataset_ids(
    components: PredictedQuantumGraphComponents, keep: Collection[uuid.UUID] = frozenset()
) -> None:
    """Replace random IDs of predicted outputs by those of daf_butler, from run, dataset type and data ID.

    A graph that is built again for the same run has the same IDs, so that the files of an earlier attempt can
    still be registered.  IDs of existing datasets, ``keep``, are kept.
    """
    run = components.header.output_run
    dataset_types = {n.name: n.dataset_type for n in components.pipeline_graph.dataset_types.values()}
    packages = components.pipeline_graph.packages_dataset_type
    dataset_types[packages.name] = packages
    make_id = DatasetIdFactory().makeDatasetId
    new_ids: dict[uuid.UUID, uuid.UUID] = {}
    quanta = [*components.init_quanta.root, *components.quantum_datasets.values()]
    for quantum in quanta:
        for dataset in itertools.chain.from_iterable(quantum.outputs.values()):
            if dataset.dataset_id in keep:
                continue
            dataset_type = dataset_types[dataset.dataset_type_name]
            values = tuple(dataset.data_coordinate)
            data_id = DataCoordinate.from_full_values(dataset_type.dimensions, values)
            new_id = make_id(run, dataset_type, data_id, DatasetIdGenEnum.DATAID_TYPE_RUN)
            new_ids[dataset.dataset_id] = new_id
            dataset.dataset_id = new_id
    for quantum in quanta:
        for dataset in itertools.chain.from_iterable(quantum.inputs.values()):
            dataset.dataset_id = new_ids.get(dataset.dataset_id, dataset.dataset_id)
