"""Execute a quantum graph: plan, dispatch, ingest."""

from __future__ import annotations

__all__ = ["execute_graph", "plan_graph"]

import logging
import uuid
from collections.abc import Collection

import networkx
from lsst.daf.butler import (
    Butler,
    DatasetType,
)
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from ..datastore.files import FileFinder
from ..errors import EngineError, OptionsError, UserError
from ..model.limits import Limits
from ..model.options import RunOptions
from ..model.outcomes import QuantumOutcome
from ..planning.plan import GroupBy, Plan, cut_graph
from ..provenance.recorder import ProvenanceRecorder
from ..repository.checks import register_run, store_roots
from ..repository.collection_notes import record_temporaries
from ..repository.ingest import IngestStream, fetch_ids
from ..repository.task_history import (
    find_costs,
    find_needs,
    find_task_means,
    find_times,
    load_needs,
    load_times,
    save_needs,
    save_times,
)
from ..temporaries.dataset_types import find_temporary_types, measure_sizes
from ..temporaries.scratch import remove_scratch
from ..text import brief
from .backend import Backend
from .context import make_context
from .events import Watcher, Watchers
from .late_writes import Doubts
from .resume import look_back, scratch_folders
from .scheduler import Dispatcher, FailureBudget, RunResult
from .work_factory import ContentMaker, export_input_records, sketch_graph

logger = logging.getLogger(__name__)

# In which order fewer quanta begin is not worth a request.
_WORTH_ORDERING = 100


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
    run = graph.header.output_run
    existing = fetch_ids(butler, run)
    xgraph = (graph.quantum_only_xgraph if xgraph is None else xgraph).copy()
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    dataset_types = _dataset_types(graph)
    folders = scratch_folders(butler, run)
    register_run(butler, run)
    try:
        before = look_back(butler, graph, xgraph, dataset_types, temporary_types, existing, options)
    except (EngineError, UserError):
        raise
    except Exception as exc:  # registry or store, after all their own attempts
        raise EngineError(f"Could not see what run {run!r} has already: {brief(exc)}") from exc
    records = export_input_records(butler, graph, xgraph)
    roots = store_roots(butler)
    times = load_times(roots[0]) if roots and len(xgraph) >= _WORTH_ORDERING else {}
    sketch = sketch_graph(graph, xgraph, temporary_types=temporary_types, costs=find_costs(xgraph, times))
    plan = cut_graph(sketch, group_by=_grain(options, temporary_types), slots=backend.slots)
    Watchers(watcher).planned(plan)
    if temporary_types:
        # Before any quantum is done that lacks them.
        record_temporaries(butler, run, temporary_types)
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
    context = make_context(
        graph,
        butler,
        options,
        dataset_types=dataset_types,
        temporary_types=temporary_types,
        limits=limits,
        scratch="" if scratch is None else str(scratch),
        provenance=recorder is not None,
    )
    doubts = Doubts(before.registered, cut_off=before.cut_off)
    packed = set(before.packed)
    with IngestStream(butler, dataset_types, existing=before.registered) as stream:

        def take(outcome: QuantumOutcome) -> None:
            predicted = maker.note_outputs(outcome.quantum_id, outcome.outputs)
            # What stands for an earlier attempt, and no worker could remove.
            replaced = packed.intersection(ref.id for ref in predicted)
            packed.difference_update(replaced)
            stream.add(predicted, outcome.outputs, outcome.records, (*outcome.removed, *replaced))
            doubts.note(outcome, predicted)
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
            times=find_task_means(times),
        )
        try:
            result = dispatcher.run(context)
        finally:
            if scratch is not None and plan.crossings:
                _drop_scratch(scratch)
            for change in doubts.settle(FileFinder(butler, dataset_types)):
                stream.add(change.predicted, change.written, change.records)
    result.n_ingested = before.n_adopted + stream.n_ingested
    if roots:
        save_needs(roots[0], find_needs(result.outcomes.values()))
        save_times(
            roots[0], find_times((each, xgraph.nodes[q]["data_id"]) for q, each in result.outcomes.items())
        )
    return result


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


def _dataset_types(graph: PredictedQuantumGraph) -> dict[str, DatasetType]:
    """Definitions of all dataset types of a graph."""
    return {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
