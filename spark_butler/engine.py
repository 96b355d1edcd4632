"""Execute a quantum graph: plan, dispatch, ingest."""

from __future__ import annotations

__all__ = ["AUTO", "execute_graph", "find_temporary_types", "measure_sizes", "plan_graph", "worker_config"]

import contextlib
import dataclasses
import fnmatch
import logging
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping

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
from .bundle import (
    BUNDLE_SECONDS,
    BundleWriter,
    bundled_tasks,
    explain_bundle,
    pack_run,
    remove_unused_parts,
)
from .codecs import check_storage_class
from .config import RunOptions
from .contents import ContentMaker, export_input_records, sketch_graph
from .costs import estimate_costs
from .dispatch import Dispatcher, FailureBudget, RunResult
from .errors import EngineError, OptionsError, RepositoryError, UserError
from .learned import NO_TIMES, find_needs, find_times, load_needs, load_times, save_needs, save_times
from .limits import Limits
from .mending import Doubts
from .messages import brief
from .outcomes import QuantumOutcome
from .packed import automatic_outputs, find_packs, seeks_astray
from .plan import GroupBy, Plan, cut_graph
from .progress import Watcher, Watchers
from .provenance import ProvenanceRecorder, all_scans
from .registry import Ingester, IngestStream, fetch_ids
from .repository import store_roots
from .resume import choose_quanta, take_stock
from .run_notes import note_temporaries, read_temporaries
from .scratch import remove_scratch, scratch_root
from .session import worker_environment
from .stored_files import FileFinder, file_datastores
from .work import WorkerContext

logger = logging.getLogger(__name__)

# In which order fewer quanta begin is not worth a request.
_WORTH_ORDERING = 100

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
    watcher: Watcher | None = None,
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
    watcher
        Told of what happens, in this thread.  What it raises is logged and
        does not disturb the run.

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
    bundled = _find_bundled(graph.pipeline_graph, butler) if options.bundle else frozenset[str]()
    run = graph.header.output_run
    existing = fetch_ids(butler, run)
    xgraph = (graph.quantum_only_xgraph if xgraph is None else xgraph).copy()
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    dataset_types = _dataset_types(graph)
    butler.collections.register(run)
    folders = _scratch_folders(butler, run)
    try:
        before = _look_back(butler, graph, xgraph, dataset_types, temporary_types, existing, options)
    except (EngineError, UserError):
        raise
    except Exception as exc:  # registry or store, after all their own attempts
        raise EngineError(f"Could not see what run {run!r} has already: {brief(exc)}") from exc
    records = export_input_records(butler, graph, xgraph)
    roots = store_roots(butler)
    times = load_times(roots[0]) if roots and len(xgraph) >= _WORTH_ORDERING else NO_TIMES
    costs = estimate_costs(graph, xgraph, times, records)
    sketch = sketch_graph(graph, xgraph, temporary_types=temporary_types, costs=costs)
    plan = cut_graph(sketch, group_by=_grain(options, temporary_types), slots=backend.slots)
    Watchers(watcher).planned(plan)
    if temporary_types:
        # Before any quantum is done that lacks them.
        note_temporaries(butler, run, temporary_types)
    maker = ContentMaker(
        plan,
        graph,
        xgraph,
        temporary_types=temporary_types,
        records=records,
        existing=before.stored,
        clobber=xgraph.nodes if options.clobber_outputs else before.replaceable,
        forced=before.forced,
        limits=limits,
    )
    scratch = folders[0].join(f"{uuid.uuid4()}/", forceDirectory=True) if folders else None
    context = WorkerContext(
        task_nodes=dict(graph.pipeline_graph.tasks),
        universe=butler.dimensions,
        butler_config=worker_config(butler),
        dataset_types=dataset_types,
        temporary_types=frozenset(temporary_types),
        stores=tuple(map(str, roots)),
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
        scratch="" if scratch is None else str(scratch),
        max_shuffle_bytes=options.max_shuffle_bytes,
        provenance=recorder is not None,
        bundled_tasks=bundled,
        log_state=tuple(CliLog.configState),
        environment=worker_environment(),
    )
    doubts = Doubts(before.registered, cut_off=before.cut_off)
    packed = set(before.packed)
    with _open_stream(butler, graph, dataset_types, before, bundle=options.bundle) as stream:

        def take(outcome: QuantumOutcome) -> None:
            predicted = maker.note_outputs(outcome.quantum_id, outcome.outputs)
            # What stands for an earlier attempt, and no worker could remove.
            replaced = packed.intersection(ref.id for ref in predicted)
            packed.difference_update(replaced)
            stream.add(
                predicted,
                (*outcome.outputs, *outcome.bundled),
                outcome.records,
                (*outcome.removed, *replaced),
                (outcome.quantum_id, [s for s in all_scans(outcome) if s]) if outcome.bundled else None,
            )
            doubts.note(outcome, [ref for ref in predicted if ref.id not in outcome.bundled])
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
            watcher=watcher,
            times=times.means,
        )
        try:
            result = dispatcher.run(context)
        finally:
            if scratch is not None and plan.crossings:
                _drop_scratch(scratch)
            for change in doubts.settle(FileFinder(butler, dataset_types)):
                stream.add(change.predicted, change.written, change.records)
    result.n_ingested = before.n_adopted + stream.n_ingested
    if options.bundle:
        _pack(butler, graph, result)
    if roots:
        save_needs(roots[0], find_needs(result.outcomes.values()))
        save_times(
            roots[0], find_times((each, xgraph.nodes[q]["data_id"]) for q, each in result.outcomes.items())
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Before:
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


def _look_back(
    butler: Butler,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    dataset_types: Mapping[str, DatasetType],
    temporary_types: Mapping[str, str],
    existing: frozenset[uuid.UUID],
    options: RunOptions,
) -> _Before:
    """Bring the registry up to date, and drop from a graph what need not run again."""
    if not (options.skip_existing or options.clobber_outputs):
        return _Before(existing, existing)
    run = graph.header.output_run
    temporaries = {
        dataset_id for name in temporary_types for dataset_id in graph.datasets_by_type.get(name, {}).values()
    }
    for folder in _scratch_folders(butler, run):
        remove_scratch(folder, temporaries)
    remove_unused_parts(butler, run)
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
    return _Before(
        existing,
        (existing | stock.leftovers) - packed,
        frozenset(stock.replaceable),
        frozenset(forced),
        packed,
        ingester.n_ingested,
        cut_off=bool(stock.adoptions or stock.leftovers or stock.strays),
    )


def _find_bundled(pipeline_graph: PipelineGraph, butler: Butler) -> frozenset[str]:
    """Find the tasks whose metadata and logs are bundled, and say which they are."""
    if not file_datastores(butler):
        raise OptionsError("--bundle needs a datastore of files.")
    logger.info("%s", explain_bundle(pipeline_graph))
    if seeks_astray():
        logger.warning(
            "This release of Python can't read all metadata and logs of a bundled run (CPython issue "
            "gh-127847); use a later patch release for what reads them."
        )
    return bundled_tasks(pipeline_graph)


@contextlib.contextmanager
def _open_stream(
    butler: Butler,
    graph: PredictedQuantumGraph,
    dataset_types: Mapping[str, DatasetType],
    before: _Before,
    *,
    bundle: bool,
) -> Iterator[IngestStream]:
    """Start the ingest."""
    if not bundle:
        with IngestStream(butler, dataset_types, existing=before.registered) as stream:
            yield stream
        return
    with (
        butler.clone() as own,
        IngestStream(
            butler,
            dataset_types,
            existing=before.registered,
            interval=BUNDLE_SECONDS,
            bundle=BundleWriter(graph, own, before.packed),
        ) as stream,
    ):
        yield stream


def _pack(butler: Butler, graph: PredictedQuantumGraph, result: RunResult) -> None:
    """Put all metadata and logs of a run into one object; that it fails must not spoil the run."""
    try:
        if not pack_run(butler, graph, result):
            logger.info("Metadata and logs stay in the parts in which they were written.")
    except Exception as exc:  # noqa: BLE001  (as many as there are stores and databases)
        logger.warning("Metadata and logs stay in the parts in which they were written: %s", brief(exc))


def _drop_scratch(folder: ResourcePath) -> None:
    """Remove what a shuffle could not take; that the store refuses must not spoil a run that has ended."""
    try:
        remove_scratch(folder)
    except Exception as exc:  # noqa: BLE001  (as many as there are stores)
        logger.warning("Could not look for temporaries in %s: %s", folder, brief(exc))
        logger.warning("If there are any, `spark-butler cleanup` removes them.")


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


def _scratch_folders(butler: Butler, run: str) -> list[ResourcePath]:
    """Name the folders for temporaries of a run that a shuffle can't take."""
    return [
        scratch_root(root).join(run, forceDirectory=True)
        for root in store_roots(butler)
        if root.scheme not in ("mem", "file+mem")
    ]


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
