"""Execution of a quantum graph: inventory, plan, schedule, collect.  Runs in the driver."""

from __future__ import annotations

__all__ = ["execute_graph", "plan_graph"]

import dataclasses
import uuid
from collections.abc import Collection

import networkx
from lsst.daf.butler import Butler, LimitedButler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from ..datastore.graph_butler import GraphButler
from ..errors import OptionsError
from ..model.limits import Limits
from ..model.options import RunOptions, StopRule
from ..model.outcomes import RunResult
from ..planning.partition import cut_graph
from ..planning.plan import GroupBy, Plan
from ..planning.sketch import sketch_graph
from ..provenance.recorder import ProvenanceRecorder
from ..repository.checks import store_roots
from ..repository.collection_notes import record_temporaries
from ..repository.database_retry import retry_database
from ..repository.lease import RunLease
from ..repository.task_history import (
    Times,
    find_costs,
    find_task_means,
    find_times,
    load_needs,
    load_times,
    save_needs,
    save_peaks,
    save_times,
)
from ..temporaries.selection import find_temporary_types, measure_sizes
from .backend import Backend
from .collector import Collector
from .context import make_context
from .events import ObserverGroup, RunObserver
from .inventory import Inventory, scratch_folders, take_inventory
from .scheduler import Scheduler
from .work_factory import WorkFactory, export_input_records

# For fewer quanta, a better order does not justify a request.
_WORTH_ORDERING = 100


def execute_graph(  # noqa: PLR0913  (public; all but four have defaults)
    graph: PredictedQuantumGraph,
    butler: Butler | GraphButler,
    backend: Backend,
    options: RunOptions,
    *,
    xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    plan: Plan | None = None,
    recorder: ProvenanceRecorder | None = None,
    observer: RunObserver | None = None,
    lease: RunLease | None = None,
    log_requests: str = "",
) -> RunResult:
    """Execute a quantum graph, and return outcomes and blocked quanta when all outputs are registered.

    Parameters
    ----------
    graph
        The graph, with init-outputs already written.
    butler
        Writeable butler of the repository.  Only this process uses it.  With a
        `GraphButler`, no registry is opened and nothing is registered.
    xgraph
        The quanta with the edges to respect; by default the graph's own.
    plan
        The plan to run.  By default, or if earlier attempts have finished some
        of its quanta, a new plan is made.
    recorder
        Recorder of provenance.  The caller writes the provenance graph when
        the run has ended.
    observer
        Observer of the run, called in this thread.  Its exceptions are logged
        and do not disturb the run.
    lease
        The caller's lease on the output run.  After it is lost, nothing more is
        registered.
    log_requests
        Address of the folder with requests for logs of running quanta.

    Raises
    ------
    spark_butler.errors.PlanError
        Raised if the graph can't be partitioned as the options require; nothing
        has run.
    spark_butler.errors.EngineError
        Raised if the engine fails.  Outputs of quanta whose outcomes had
        arrived are registered.
    """
    check = None if lease is None else lease.check
    xgraph = (graph.quantum_only_xgraph if xgraph is None else xgraph).copy()
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    types = {name: node.dataset_type for name, node in graph.pipeline_graph.dataset_types.items()}
    inventory = take_inventory(butler, graph, xgraph, types, temporary_types, options, check)
    if plan is None or plan.task_labels.keys() != set(xgraph):
        plan = plan_graph(graph, options, xgraph=xgraph, slots=backend.slots, butler=butler)
    observers = ObserverGroup(observer)
    observers.on_plan(plan)
    record_temporaries(butler, graph.header.output_run, temporary_types)
    factory = _make_factory(plan, graph, xgraph, butler, inventory, options, temporary_types)
    scratch = _new_scratch_folder(butler, graph.header.output_run)
    context = make_context(
        graph,
        butler,
        options,
        dataset_types=types,
        temporary_types=temporary_types,
        limits=factory.limits,
        scratch=str(scratch or ""),
        provenance=recorder is not None,
    )
    used_scratch = scratch if plan.crossings else None
    collector = Collector(
        butler, types, inventory, factory.note_outputs, recorder=recorder, scratch=used_scratch, check=check
    )
    observers.on_ingest(collector.ingest_lag)
    scheduler = Scheduler(
        plan,
        xgraph,
        backend,
        factory.make_work,
        on_outcome=collector.collect,
        limit=options.processes,
        stop_rule=_stop_rule(options, len(plan)),
        observer=None if observer is None else observers,
        times=find_task_means(_load_times(butler, len(plan))),
    )
    with collector:
        result = scheduler.run(dataclasses.replace(context, log_requests=log_requests))
    result.n_ingested = collector.n_ingested
    _save_history(butler, xgraph, result)
    return result


def _make_factory(
    plan: Plan,
    graph: PredictedQuantumGraph,
    xgraph: networkx.DiGraph[uuid.UUID],
    butler: LimitedButler,
    inventory: Inventory,
    options: RunOptions,
    temporary_types: Collection[str],
) -> WorkFactory:
    """Build the factory of work items."""
    records = retry_database(
        "The records of inputs can't be read", lambda: export_input_records(butler, graph, xgraph)
    )
    return WorkFactory(
        plan,
        graph,
        xgraph,
        temporary_types=temporary_types,
        records=records,
        existing=inventory.stored,
        clobber=xgraph.nodes if options.clobber_outputs else inventory.replaceable,
        forced=inventory.forced,
        limits=_find_limits(graph, butler, options),
    )


def _new_scratch_folder(butler: LimitedButler, run: str) -> ResourcePath | None:
    """Return the scratch folder of this attempt at a run; `None` if the datastore has no files."""
    folders = scratch_folders(butler, run)
    return folders[0].join(f"{uuid.uuid4()}/", forceDirectory=True) if folders else None


def _load_times(butler: LimitedButler, n_quanta: int) -> Times:
    """Read the times of quanta in earlier runs, if the graph is large enough for its order to matter."""
    roots = store_roots(butler) if n_quanta >= _WORTH_ORDERING else []
    return load_times(roots[0]) if roots else {}


def _save_history(butler: LimitedButler, xgraph: networkx.DiGraph[uuid.UUID], result: RunResult) -> None:
    """Write the memory needs and times of quanta for later runs."""
    if not (roots := store_roots(butler)):
        return
    save_needs(roots[0], result.outcomes.values())
    times = find_times((each, xgraph.nodes[q]["data_id"]) for q, each in result.outcomes.items())
    save_times(roots[0], times)
    if times:
        save_peaks(roots[0], result.outcomes.values())


def _find_limits(
    graph: PredictedQuantumGraph, butler: LimitedButler, options: RunOptions
) -> dict[str, Limits]:
    """Return the limits of all tasks, with the memory that they needed in earlier runs."""
    requests = options.resources.with_options(timeout=options.timeout, number_of_retries=options.retries)
    labels = graph.pipeline_graph.tasks
    learned: dict[str, int] = {}
    if requests.asks_for_memory and (roots := store_roots(butler)):
        learned = load_needs(roots[0])
    return requests.limits(labels, learned)


def _stop_rule(options: RunOptions, n_quanta: int) -> StopRule:
    """Return the rule that stops a run, from its options."""
    most = None
    if (text := options.max_failures) is not None:
        most = int(text) if not text.endswith("%") else -(-int(text[:-1]) * n_quanta // 100)
    return StopRule(options.fail_fast, most, options.max_same_failures)


def plan_graph(
    graph: PredictedQuantumGraph,
    options: RunOptions,
    *,
    xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    slots: int = 1,
    butler: LimitedButler | None = None,
) -> Plan:
    """Partition a graph as `execute_graph` does for a new run.

    Parameters
    ----------
    xgraph
        The quanta with the edges to respect; by default the graph's own.
    slots
        Number of groups that can run at the same time.
    butler
        Butler of the repository, to read sizes and times of earlier runs.
    """
    xgraph = graph.quantum_only_xgraph if xgraph is None else xgraph
    temporary_types = find_temporary_types(graph.pipeline_graph, options)
    sizes: dict[str, float] = {}
    costs: dict[uuid.UUID, float] = {}
    if butler is not None:
        if isinstance(butler, Butler):
            repository = butler
            what = "The sizes of earlier datasets can't be read"
            sizes = retry_database(what, lambda: measure_sizes(repository, temporary_types))
        costs = find_costs(xgraph, _load_times(butler, len(xgraph)))
    sketch = sketch_graph(graph, xgraph, temporary_types=temporary_types, sizes=sizes, costs=costs)
    return cut_graph(sketch, group_by=_choose_grouping(options, temporary_types), slots=slots)


def _choose_grouping(options: RunOptions, temporary_types: Collection[str]) -> GroupBy:
    """Return the grain; temporaries pass in memory only between quanta of one process."""
    if options.isolation != "quantum" or not temporary_types:
        return options.group_by
    if options.group_by not in ("auto", "quantum"):
        raise OptionsError(
            "--isolation quantum makes each quantum a group of its own if there are temporaries; "
            f"it can't be combined with --group-by, which is {options.group_by!r}."
        )
    return "quantum"
