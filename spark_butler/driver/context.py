"""What a run sends to each worker once."""

from __future__ import annotations

__all__ = ["make_context", "make_worker_context", "worker_config"]

from collections.abc import Iterable, Mapping

import astropy.units as u
from lsst.daf.butler import Butler, ButlerConfig, Config, DatasetType
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._daf_butler import butler_config
from ..errors import RepositoryError
from ..model.limits import Limits
from ..model.options import RunOptions
from ..model.work import WorkerContext
from ..repository.checks import store_roots
from ..worker.environment import worker_environment

MAX_SHUFFLE_BYTES = 8 << 30
"""Length of a serialized temporary, all its copies together, from which on it goes round the shuffle."""


def make_context(
    graph: PredictedQuantumGraph,
    butler: Butler,
    options: RunOptions,
    *,
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Iterable[str],
    limits: Mapping[str, Limits],
    scratch: str,
    provenance: bool,
) -> WorkerContext:
    """Gather what all groups of a run have in common.

    Parameters
    ----------
    graph
        The graph.
    butler
        The driver's butler.
    options
        How quanta run.
    dataset_types
        Definitions of all dataset types of the graph, by name.
    temporary_types
        Names of those that are temporary.
    limits
        Limits of the quanta, by task label.
    scratch
        Address of the folder for temporaries that a shuffle can't take.
    provenance
        Whether outcomes carry what a provenance graph holds.

    Returns
    -------
    context
        The context, without secrets.
    """
    return WorkerContext(
        task_nodes=dict(graph.pipeline_graph.tasks),
        universe=butler.dimensions,
        butler_config=worker_config(butler),
        dataset_types=dataset_types,
        temporary_types=frozenset(temporary_types),
        stores=tuple(map(str, store_roots(butler))),
        resources=ExecutionResources(
            num_cores=options.cores_per_quantum,
            max_mem=options.memory_per_quantum,
            default_mem_units=u.MB,
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
        environment=worker_environment(),
    )


def make_worker_context(butler: Butler, dataset_types: Iterable[DatasetType]) -> WorkerContext:
    """Collect what a worker needs to read and write datasets.

    Parameters
    ----------
    butler
        Butler of the repository.
    dataset_types
        Definitions of the dataset types.
    """
    return WorkerContext(
        task_nodes={},
        universe=butler.dimensions,
        butler_config=worker_config(butler),
        dataset_types={dataset_type.name: dataset_type for dataset_type in dataset_types},
        stores=tuple(map(str, store_roots(butler))),
        environment=worker_environment(),
    )


def worker_config(butler: Butler) -> Config:
    """Copy a butler's configuration without what only the driver may know.

    Parameters
    ----------
    butler
        The driver's butler.

    Returns
    -------
    config
        Configuration of the datastore; there is no registry in it.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the butler is a client of a Butler server.
    """
    if not isinstance(butler, DirectButler):
        raise RepositoryError(
            f"The repository is served by a {type(butler).__name__}; the engine needs direct access to it."
        )
    # With all defaults, so that workers need not read those for each group.
    config = ButlerConfig(butler_config(butler))
    if "root" not in config:
        config["root"] = str(butler_config(butler).configDir)
    for section in ("registry", "db"):
        if section in config:
            del config[section]
    return config
