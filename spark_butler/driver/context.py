"""Worker context: the settings that a run sends once to each worker.  Runs in the driver."""

from __future__ import annotations

__all__ = ["make_context", "make_worker_context", "worker_config"]

import dataclasses
from collections.abc import Iterable, Mapping

import astropy.units as u
from lsst.daf.butler import Butler, ButlerConfig, Config, DatasetType
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._daf_butler import butler_config
from ..datastore.graph_butler import GraphButler
from ..errors import RepositoryError
from ..model.limits import Limits
from ..model.options import RunOptions
from ..model.work import WorkerContext
from ..repository.checks import store_roots
from ..worker.environment import worker_environment

MAX_SHUFFLE_BYTES = 8 << 30
"""Length of a serialized temporary, with all its copies, from which on it bypasses the shuffle."""


def make_context(
    graph: PredictedQuantumGraph,
    butler: Butler | GraphButler,
    options: RunOptions,
    *,
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Iterable[str],
    limits: Mapping[str, Limits],
    scratch: str,
    provenance: bool,
) -> WorkerContext:
    """Build the context that all groups of a run share, without secrets.

    ``dataset_types`` has all dataset types of the graph, ``limits`` is by task label, and
    ``scratch`` is the address of the folder for temporaries that are too large for a shuffle.
    """
    return dataclasses.replace(
        make_worker_context(butler, dataset_types.values()),
        task_nodes=dict(graph.pipeline_graph.tasks),
        temporary_types=frozenset(temporary_types),
        resources=ExecutionResources(
            num_cores=options.cores_per_quantum, max_mem=options.memory_per_quantum, default_mem_units=u.MB
        ),
        raise_on_partial_outputs=options.raise_on_partial_outputs,
        enable_lsst_debug=options.debug,
        fail_fast=options.fail_fast,
        limits=limits,
        isolation=options.isolation,
        scratch=scratch,
        max_shuffle_bytes=MAX_SHUFFLE_BYTES,
        provenance=provenance,
        log_state=tuple(CliLog.configState),
    )


def make_worker_context(butler: Butler | GraphButler, dataset_types: Iterable[DatasetType]) -> WorkerContext:
    """Build the part of the context with which a worker reads and writes datasets."""
    return WorkerContext(
        task_nodes={},
        universe=butler.dimensions,
        butler_config=worker_config(butler),
        dataset_types={dataset_type.name: dataset_type for dataset_type in dataset_types},
        stores=tuple(map(str, store_roots(butler))),
        environment=worker_environment(),
    )


def worker_config(butler: Butler | GraphButler) -> Config:
    """Return a copy of a butler's configuration without the registry and the driver's secrets."""
    if isinstance(butler, GraphButler):
        source = butler.config
    elif isinstance(butler, DirectButler):
        source = butler_config(butler)
    else:
        raise RepositoryError(
            f"The repository is served by a {type(butler).__name__}; the engine needs direct access to it."
        )
    # With all defaults, so that workers need not read those for each group.
    config = ButlerConfig(source)
    if "root" not in config:
        config["root"] = str(source.configDir)
    for section in ("registry", "db"):
        if section in config:
            del config[section]
    return config
