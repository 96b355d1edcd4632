"""The only module that uses private API of pipe_base and ctrl_mpexec.

Runs in the driver and in workers.  Tested with lsst-pipe-base and
lsst-ctrl-mpexec 30.2026.4300; ``tests/test_seams.py`` has a test for each use.
"""

from __future__ import annotations

__all__ = [
    "LOG_ADDRESS_INDEX",
    "LOG_MB_NAME",
    "METADATA_ADDRESS_INDEX",
    "METADATA_MB_NAME",
    "Address",
    "MultiblockReader",
    "ProvenanceQuantumAttemptModel",
    "ProvenanceQuantumInfo",
    "butlers_of",
    "default_label",
    "import_graph_fixup",
    "init_quanta",
    "make_summary",
    "make_xgraph",
    "name_previous_quanta",
    "quantum_datasets",
]

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import networkx
from lsst.daf.butler import Butler, LimitedButler, Quantum
from lsst.pipe.base import PipelineTask
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.graph import QuantumGraph
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor
from lsst.pipe.base.quantum_graph import PredictedQuantumDatasetsModel, PredictedQuantumGraph
from lsst.pipe.base.quantum_graph._multiblock import Address, MultiblockReader
from lsst.pipe.base.quantum_graph._provenance import (
    LOG_ADDRESS_INDEX,
    LOG_MB_NAME,
    METADATA_ADDRESS_INDEX,
    METADATA_MB_NAME,
    ProvenanceQuantumAttemptModel,
    ProvenanceQuantumInfo,
)
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor


def quantum_datasets(graph: PredictedQuantumGraph) -> Mapping[uuid.UUID, PredictedQuantumDatasetsModel]:
    """Return the predicted datasets of each quantum."""
    return graph._quantum_datasets


def init_quanta(graph: PredictedQuantumGraph) -> Mapping[str, PredictedQuantumDatasetsModel]:
    """Return the predicted init-outputs of each task, by label."""
    return graph._init_quanta


def make_summary(graph: PredictedQuantumGraph) -> Any:
    """Return the summary of a graph that a report of ``pipetask run`` holds."""
    return graph._make_summary()


def make_xgraph(
    executor: MPGraphExecutor, graph: PredictedQuantumGraph, old_graph: QuantumGraph | None
) -> networkx.DiGraph[uuid.UUID]:
    """Return the quanta of a graph with the edges that the executor's fixup adds."""
    return executor._make_xgraph(graph, old_graph)


def butlers_of(
    executor: SingleQuantumExecutor,
) -> tuple[Butler | LimitedButler | None, Callable[[Quantum], LimitedButler] | None]:
    """Return the butler of an executor, if it has one, and its factory of limited butlers."""
    return executor._butler or executor._limited_butler, executor._limited_butler_factory


def name_previous_quanta(executor: SingleQuantumExecutor, quantum_ids: Iterable[uuid.UUID]) -> None:
    """Set the quanta that ran before in this process, which the executor writes into its logs."""
    executor._previous_process_quanta.extend(quantum_ids)


def default_label(task_class: type[PipelineTask]) -> str:
    """Return the label that a task has in a pipeline by default."""
    return task_class._DefaultName


def import_graph_fixup(name: str) -> ExecutionGraphFixup | None:
    """Import and build a graph fixup, as ``pipetask run --graph-fixup`` does."""
    # Workers do not need the command line of ctrl_mpexec.
    from lsst.ctrl.mpexec.cli.script.run import _import_graph_fixup

    return _import_graph_fixup(name)
