"""Run of a quantum graph from its file, without a registry: prepare and start.

Runs in the driver.  ``spark-butler run-qbb`` uses this module as ``run`` uses `spark_butler.run`.
"""

from __future__ import annotations

__all__ = ["open_graph_run", "prepare_graph_run"]

import datetime
import socket
import time
import uuid
from collections.abc import Callable, Sequence

import psutil
from lsst.daf.butler import ButlerConfig
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from .datastore.graph_butler import GraphButler
from .driver.backend import Backend
from .driver.engine import plan_graph
from .errors import OptionsError, RepositoryError, UserError
from .model.work import all_inputs, all_outputs
from .planning.graph import check_graph_file, task_modules
from .planning.request import RunRequest
from .provenance.recorder import check_destination
from .report.folder import find_attempts, read_json
from .report.status_file import is_silent
from .repository.checks import check_writeable, store_roots
from .repository.store_checks import check_store
from .run import ActiveRun, PreparedRun
from .run_folders import run_folder
from .text import translate_errors
from .worker.notebook_classes import check_tasks


def prepare_graph_run(
    request: RunRequest,
    *,
    slots: Callable[[], int],
    start_workers: Callable[[Sequence[str], Sequence[str]], None] | None = None,
    dry_run: bool = False,
) -> PreparedRun:
    """Read a quantum graph, check the datastore, and plan the run.  See `spark_butler.run.prepare`.

    Of the request, only the repository, the graph and the options of the execution are used.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    if request.provenance_graph is not None:
        check_destination(request.provenance_graph)
    graph = _read_graph(request)
    phases = {"quantum graph": time.monotonic() - clock}
    with _open_butler(request, graph) as butler:
        roots = store_roots(butler)
        for root in roots:
            check_store(root)
            run_folder(root, graph.header.output_run)
        if not dry_run:
            check_writeable(roots)
        if start_workers is not None:
            start_workers(task_modules(graph.pipeline_graph), [str(root) for root in roots])
        check_tasks(graph.pipeline_graph.tasks)
        request.options.resources.limits(graph.pipeline_graph.tasks)
        clock = time.monotonic()
        n_slots = slots()
        if start_workers is not None:
            phases["Spark session"] = time.monotonic() - clock
        xgraph = graph.quantum_only_xgraph.copy()
        plan = plan_graph(graph, request.options, xgraph=xgraph, slots=n_slots, butler=butler)
    return PreparedRun(request, graph, xgraph, None, None, plan, started, phases, tuple(map(str, roots)))


def _read_graph(request: RunRequest) -> PredictedQuantumGraph:
    """Read the graph, or the chosen quanta of it."""
    file = request.graph_file
    assert file is not None
    check_graph_file(file)
    try:
        chosen = {uuid.UUID(str(each)) for each in request.qgraph_node_id} or None
    except ValueError as exc:
        raise OptionsError(f"--qgraph-node-id: {exc}; expected the UUID of a quantum.") from exc
    with translate_errors(UserError, f"The quantum graph can't be read from {file!r}"):
        graph = PredictedQuantumGraph.read_execution_quanta(file, quantum_ids=chosen)
    if request.qgraph_id is not None and file.endswith(".qg"):
        raise OptionsError("--qgraph-id has a meaning only for graphs with the extension .qgraph.")
    if not len(graph):
        raise OptionsError(f"The quantum graph {file!r} has no quanta, or not those of --qgraph-node-id.")
    quanta = graph.build_execution_quanta().values()
    made = {ref.id for quantum in quanta for ref in all_outputs(quantum)}
    needed = any(ref.id not in made for quantum in quanta for ref in all_inputs(quantum))
    if chosen is None and needed and not any(quantum.datastore_records for quantum in quanta):
        raise OptionsError(
            f"The quantum graph {file!r} doesn't say where its inputs are, and no registry is asked; "
            "build it with `pipetask qgraph --qgraph-datastore-records`."
        )
    return graph


def _open_butler(request: RunRequest, graph: PredictedQuantumGraph) -> GraphButler:
    """Open the butler of the graph; it reads the repository's configuration only."""
    try:
        config = ButlerConfig(request.repo, searchPaths=request.graph_builder.get("config_search_path"))
    except FileNotFoundError as exc:
        raise RepositoryError(
            f"There is no Butler repository at {request.repo!r}, nor an alias of that name."
        ) from exc
    with translate_errors(RepositoryError, f"Can't open the datastore of {request.repo!r}"):
        return GraphButler.open(config, graph)


def open_graph_run(
    prepared: PreparedRun, backend: Backend, *, on_cancel: Callable[[], None], bars: bool = False
) -> ActiveRun:
    """Open the datastore and start the reporter.  See `spark_butler.run.open_run`."""
    butler = _open_butler(prepared.request, prepared.graph)
    _refuse_second_driver(prepared, store_roots(butler))
    reporter = prepared.make_reporter(butler, backend, on_cancel=on_cancel, bars=bars)
    return ActiveRun(prepared, butler, backend, reporter)


def _refuse_second_driver(prepared: PreparedRun, roots: Sequence[ResourcePath]) -> None:
    """Raise if another driver has just written the status of the run; no registry can hold a lease."""
    run = prepared.graph.header.output_run
    latest = [each for each in find_attempts(roots, run) if each.run == run][-1:]
    status = read_json(latest[0].status_file) if latest else None
    if status is None or status["state"] != "running" or prepared.request.take_over:
        return
    host, _, pid = status["driver"].rpartition(":")
    has_ended = host == socket.gethostname() and not psutil.pid_exists(int(pid))
    if not (has_ended or is_silent(status, datetime.datetime.now(datetime.UTC))):
        raise RepositoryError(
            f"Another driver ({status['driver']}) writes into run {run!r}; end it by `spark-butler cancel`, "
            "or give --take-over if it is dead."
        )
