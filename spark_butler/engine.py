"""Execute a quantum graph: plan, dispatch, ingest."""

from __future__ import annotations

__all__ = ["AUTO", "execute_graph", "find_temporary_types", "measure_sizes", "plan_graph", "worker_config"]

import fnmatch
import logging
import uuid
from collections.abc import Collection, Iterable, Mapping

import astropy.units as u
import networkx
from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    Config,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from .backends import Backend
from .codecs import check_storage_class
from .config import RunOptions
from .contents import ContentMaker, export_input_records, sketch_graph
from .dispatch import Dispatcher, FailureBudget, RunResult
from .errors import OptionsError, RepositoryError
from .learned import find_needs, load_needs, save_needs
from .limits import Limits
from .outcomes import QuantumOutcome
from .plan import GroupBy, Plan, cut_graph
from .provenance import ProvenanceRecorder
from .registry import Ingester, fetch_ids
from .repository import store_roots
from .scratch import remove_scratch, scratch_root
from .session import worker_environment
from .work import WorkerContext

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The pattern that stands for all that is made and read inside the graph."""


def execute_graph(
    graph: PredictedQuantumGraph,
    butler: Butler,
    backend: Backend,
    options: RunOptions,
    *,
    xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    recorder: ProvenanceRecorder | None = None,
) -> RunResult:
    """Execute a quantum graph and put its outputs into the registry.

    Parameters
    ----------
    graph
        The graph, with init-outputs already written.
    butler
        Writeable butler of the repository.  Only this process uses it.
    backend
        Where quanta run.
    options
        How they run.
    xgraph
        The quanta with the edges to respect, where those are not the graph's
        own.
    recorder
        Keeps what a provenance graph needs.  Writing it, when the run has
        ended, is left to the caller.

    Returns
    -------
    result
        Outcomes and blocked quanta.  Everything in them is in the registry.

    Raises
    ------
    spark_butler.errors.PlanError
        Raised if the graph can't be cut as asked; nothing has run.
    spark_butler.errors.EngineError
        Raised if the engine fails.  What had come back is in the registry.
    """
    limits = _find_limits(graph, butler, options)
    existing = fetch_ids(butler, graph.header.output_run)
    xgraph = (graph.quantum_only_xgraph if xgraph is None else xgraph).copy()
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    forced = _select_quanta(graph, xgraph, temporary_types, existing, options)
    sketch = sketch_graph(graph, xgraph, temporary_types=temporary_types)
    plan = cut_graph(sketch, group_by=_grain(options, temporary_types), slots=backend.slots)
    butler.collections.register(graph.header.output_run)
    dataset_types = _dataset_types(graph)
    maker = ContentMaker(
        plan,
        graph,
        xgraph,
        temporary_types=temporary_types,
        records=export_input_records(butler, graph, xgraph),
        existing=existing,
        clobber=options.clobber_outputs,
        forced=forced,
        limits=limits,
    )
    ingester = Ingester(butler, dataset_types, existing=existing)

    def take(outcome: QuantumOutcome) -> None:
        predicted = maker.note_outputs(outcome.quantum_id, outcome.outputs)
        ingester.add(predicted, outcome.outputs, outcome.records, outcome.removed)
        if recorder is not None:
            recorder.add(outcome)

    dispatcher = Dispatcher(
        plan,
        xgraph,
        backend,
        maker.make_work,
        on_outcome=take,
        limit=options.processes,
        budget=_failure_budget(options, len(plan)),
    )
    folder = _scratch_folder(butler, graph)
    context = WorkerContext(
        task_nodes=dict(graph.pipeline_graph.tasks),
        universe=butler.dimensions,
        butler_config=worker_config(butler),
        dataset_types=dataset_types,
        temporary_types=frozenset(temporary_types),
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
        scratch="" if folder is None else str(folder),
        max_shuffle_bytes=options.max_shuffle_bytes,
        provenance=recorder is not None,
        log_state=tuple(CliLog.configState),
        environment=worker_environment(),
    )
    try:
        result = dispatcher.run(context)
    finally:
        ingester.flush()
        if folder is not None and plan.crossings:
            remove_scratch(folder)
    result.n_ingested = ingester.n_ingested
    if needs := find_needs(result.outcomes.values()):
        save_needs(store_roots(butler)[0], needs)
    return result


def _find_limits(graph: PredictedQuantumGraph, butler: Butler, options: RunOptions) -> dict[str, Limits]:
    """Work out the limits of all tasks, with what earlier runs have learned."""
    requests = options.resources.with_options(timeout=options.timeout, number_of_retries=options.retries)
    labels = graph.pipeline_graph.tasks
    learned: dict[str, int] = {}
    if requests.asks_for_memory and (roots := store_roots(butler)):
        learned = load_needs(roots[0])
    return requests.limits(labels, learned)


def _failure_budget(options: RunOptions, n_quanta: int) -> FailureBudget:
    """Turn what the options say into numbers."""
    most = None
    if (text := options.max_failures) is not None:
        most = int(text) if not text.endswith("%") else -(-int(text[:-1]) * n_quanta // 100)
    return FailureBudget(options.fail_fast, most, options.max_same_failures)


def _scratch_folder(butler: Butler, graph: PredictedQuantumGraph) -> ResourcePath | None:
    """Name the folder for temporaries of this run that a shuffle can't take."""
    for root in store_roots(butler):
        if root.scheme not in ("mem", "file+mem"):
            return scratch_root(root).join(f"{graph.header.output_run}/{uuid.uuid4()}/", forceDirectory=True)
    return None


def plan_graph(
    graph: PredictedQuantumGraph,
    options: RunOptions,
    *,
    xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    slots: int = 1,
    butler: Butler | None = None,
) -> Plan:
    """Cut a graph as `execute_graph` would on a new run.

    Parameters
    ----------
    graph
        The graph.
    options
        How it is to be executed.
    xgraph
        The quanta with the edges to respect, where those are not the graph's
        own.
    slots
        How many groups can run at the same time.
    butler
        Butler of the repository, to estimate sizes from earlier runs.
    """
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    sizes = measure_sizes(butler, temporary_types) if butler is not None else {}
    sketch = sketch_graph(graph, xgraph, temporary_types=temporary_types, sizes=sizes)
    return cut_graph(sketch, group_by=_grain(options, temporary_types), slots=slots)


def _grain(options: RunOptions, temporary_types: Collection[str]) -> GroupBy:
    """Find the grain; a quantum can pass a temporary on in memory only to others of its process."""
    if options.isolation != "quantum" or not temporary_types:
        return options.group_by
    if options.group_by not in ("auto", "quantum"):
        raise OptionsError(
            f"--isolation quantum with temporaries needs --group-by quantum; it is {options.group_by!r}."
        )
    return "quantum"


def find_temporary_types(pipeline_graph: PipelineGraph, options: RunOptions) -> dict[str, str]:
    """Find the dataset types that are not retained.

    Parameters
    ----------
    pipeline_graph
        The pipeline, resolved.
    options
        Patterns of what is temporary and what is retained.

    Returns
    -------
    temporary_types
        Names, with the reason for each.  Metadata, logs and init-outputs are
        never among them.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if a pattern fits nothing that could be temporary.
    """
    always = {
        name
        for task in pipeline_graph.tasks.values()
        for name in (
            task.metadata_output.dataset_type_name,
            task.log_output.dataset_type_name if task.log_output is not None else "",
        )
    }
    candidates = {
        edge.parent_dataset_type_name
        for task in pipeline_graph.tasks.values()
        for edge in task.outputs.values()
    } - always
    temporary: dict[str, str] = {}
    if options.retained_dataset_types is not None:
        everything = candidates | always | set(pipeline_graph.dataset_types)
        for pattern in options.retained_dataset_types:
            _match(pattern, everything, "--retained-dataset-types")
        for name in candidates:
            if not any(fnmatch.fnmatchcase(name, p) for p in options.retained_dataset_types):
                temporary[name] = "not among --retained-dataset-types"
    for pattern in options.temporary:
        if pattern == AUTO:
            temporary.update(_find_intermediates(pipeline_graph, candidates, options))
        else:
            temporary.update(
                (name, f"--temporary {pattern}") for name in _match(pattern, candidates, "--temporary")
            )
    for name in temporary:
        check_storage_class(pipeline_graph.dataset_types[name].storage_class)
    return dict(sorted(temporary.items()))


def _find_intermediates(
    pipeline_graph: PipelineGraph, candidates: Collection[str], options: RunOptions
) -> dict[str, str]:
    """Find the outputs that other tasks of the pipeline read and that nobody asked to retain."""
    kept = options.retained_dataset_types or ()
    return {
        name: f"auto: read by {', '.join(sorted(task.label for task in readers))}"
        for name in candidates
        if (readers := pipeline_graph.consumers_of(name))
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in kept)
    }


def measure_sizes(butler: Butler, names: Iterable[str], *, sample: int = 50) -> dict[str, float]:
    """Find out how large datasets of some types have been in earlier runs.

    Parameters
    ----------
    butler
        Butler of the repository.
    names
        Names of dataset types.
    sample
        Greatest number of datasets to look at for each.

    Returns
    -------
    sizes
        Mean size of the files in bytes, by name, for the types of which the
        repository has any.
    """
    sizes: dict[str, float] = {}
    for name in names:
        try:
            refs = butler.query_datasets(name, collections="*", find_first=False, limit=sample, explain=False)
        except (MissingDatasetTypeError, MissingCollectionError):
            continue
        records = butler._datastore.export_records(refs)
        found = [
            sum(
                info.file_size
                for infos in tables.values()
                for info in infos
                if isinstance(info, StoredFileInfo)
            )
            for data in records.values()
            for tables in data.records.values()
        ]
        if found:
            sizes[name] = sum(found) / len(found)
    return sizes


def _match(pattern: str, names: Collection[str], option: str) -> list[str]:
    """Names that fit a pattern; at least one."""
    found = fnmatch.filter(names, pattern)
    if not found:
        raise OptionsError(
            f"{option} {pattern!r} fits no output of the pipeline; its outputs are "
            f"{', '.join(sorted(names))}."
        )
    return found


def _select_quanta(
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    temporary_types: Mapping[str, str],
    existing: Collection[uuid.UUID],
    options: RunOptions,
) -> set[uuid.UUID]:
    """Drop from a graph what has been done before, unless a temporary of it is needed again.

    Returns
    -------
    forced
        Quanta that have been done and are done again for their temporaries.
    """
    if not options.skip_existing or not existing:
        return set()
    done = {quantum_id for quantum_id in xgraph if _is_done(graph, quantum_id, existing)}
    forced: set[uuid.UUID] = set()
    for quantum_id in reversed(list(networkx.topological_sort(xgraph))):
        if quantum_id in done and quantum_id not in forced:
            continue
        for dataset_id in graph.bipartite_xgraph.predecessors(quantum_id):
            if graph.bipartite_xgraph.nodes[dataset_id]["dataset_type_name"] in temporary_types:
                forced.update(done.intersection(graph.bipartite_xgraph.predecessors(dataset_id)))
    skipped = done - forced
    logger.info("Skipping %d quanta that succeeded before.", len(skipped))
    xgraph.remove_nodes_from(skipped)
    return forced


def _is_done(graph: PredictedQuantumGraph, quantum_id: uuid.UUID, existing: Collection[uuid.UUID]) -> bool:
    """Whether the metadata of a quantum exists, which says that it succeeded."""
    label = graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
    name = graph.pipeline_graph.tasks[label].metadata_output.dataset_type_name
    return any(
        dataset_id in existing
        for dataset_id in graph.bipartite_xgraph.successors(quantum_id)
        if graph.bipartite_xgraph.nodes[dataset_id]["dataset_type_name"] == name
    )


def _dataset_types(graph: PredictedQuantumGraph) -> dict[str, DatasetType]:
    """Definitions of all dataset types of a graph."""
    return {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}


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
    config = ButlerConfig(butler._config)
    if "root" not in config:
        config["root"] = str(butler._config.configDir)
    for section in ("registry", "db"):
        if section in config:
            del config[section]
    return config
