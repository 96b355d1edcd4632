"""Steps of a run from request to report, for the command line and the notebook.  Runs in the driver."""

from __future__ import annotations

__all__ = ["ActiveRun", "OnlyShown", "PreparedRun", "RunEnd", "open_run", "prepare"]

import contextlib
import dataclasses
import datetime
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import networkx
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.utils.packages import Packages

from .datastore.graph_butler import GraphButler
from .driver.backend import Backend
from .driver.engine import execute_graph, plan_graph
from .driver.events import ObserverGroup, RunObserver
from .driver.input_transfer import InputTransfer, check_input_repository
from .driver.resume import needs_clobber
from .errors import EngineError
from .model.outcomes import RunResult
from .planning.graph import apply_fixup, build_graph, read_task_modules, show_pipeline, task_modules
from .planning.plan import Plan
from .planning.request import RunRequest
from .provenance.recorder import ProvenanceRecorder, check_destination
from .report.reporter import RunReporter, build_reporter
from .report.rerun import explain_resume
from .repository.checks import check_repository, refuse_read_only
from .repository.database_retry import retry_database
from .repository.input_repository import find_input_collection
from .repository.lease import RunLease
from .repository.output_run import (
    OutputRequest,
    check_output,
    find_packages,
    prepare_output,
    resolve_output,
)
from .text import best_effort
from .worker.notebook_classes import check_tasks


class OnlyShown(Exception):
    """Raised when ``--show`` has printed the requested items, and nothing is to run."""


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A checked run; nothing has been written yet."""

    request: RunRequest
    graph: PredictedQuantumGraph
    xgraph: networkx.DiGraph[uuid.UUID]
    """Graph of the quanta, with the edges that the order of the run respects."""

    output: OutputRequest | None
    """The output collections, and the files to write besides the outputs of quanta; `None` where the run
    opens no registry."""

    packages: Packages | None
    plan: Plan
    """The plan for all quanta of the graph.  A run that finds some of them finished makes another plan."""

    started: datetime.datetime
    phases: dict[str, float]
    """Seconds that each step took, by its name."""

    stores: tuple[str, ...] = ()
    """The places where the datastores of the repository keep files."""

    inputs: InputTransfer | None = None

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Record the time of a step."""
        start = time.monotonic()
        yield
        self.phases[phase] = time.monotonic() - start

    def make_reporter(
        self,
        butler: Butler | GraphButler,
        backend: Backend,
        *,
        on_cancel: Callable[[], None],
        bars: bool,
    ) -> RunReporter:
        """Build the reporter of the run; see `spark_butler.report.reporter.build_reporter`."""
        return build_reporter(
            self.request,
            self.graph,
            butler,
            backend,
            phases=self.phases,
            started=self.started,
            on_cancel=on_cancel,
            bars=bars,
        )


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """Result of a run that ended without an error of the engine."""

    result: RunResult
    unwritten: EngineError | None
    """The error, if the provenance graph could not be written."""

    @property
    def state(self) -> str:
        """State of the run for status and report: succeeded, failed or stopped."""
        if self.result.stopped_by is not None:
            return "stopped"
        return "failed" if self.result.failed else "succeeded"

    @property
    def reason(self) -> str:
        """The rule that stopped the run, if one did."""
        stopped = self.result.stopped_by is not None
        return f"Stopped because {self.result.stop_reason}." if stopped else ""


def prepare(
    request: RunRequest,
    *,
    slots: Callable[[], int],
    start_workers: Callable[[Sequence[str], Sequence[str]], None] | None = None,
    dry_run: bool = False,
) -> PreparedRun:
    """Build the quantum graph, check the request, and plan the run.

    Nothing is written to the repository.

    Parameters
    ----------
    slots
        Function that returns the number of groups that can run at once; called last.
    start_workers
        Function that starts workers in the background.  Called with the modules
        of the tasks and the roots of the datastores, as soon as they are known.
    dry_run
        Whether the run is only planned.  Then no object is written to the
        datastore as a probe.

    Raises
    ------
    OnlyShown
        Raised if ``--show`` only prints.
    spark_butler.errors.NothingToDo
        Raised if all quanta have succeeded before.
    spark_butler.errors.UserError
        Raised if the request can't be carried out.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    if request.provenance_graph is not None:
        check_destination(request.provenance_graph)
    stores = [str(root) for root in check_repository(request.repo)]
    places = stores + check_input_repository(request)
    factory = show_pipeline(request)
    show = request.show
    if show.handled and not show.unhandled:
        raise OnlyShown("No quantum graph generated or pipeline executed.")
    modules: list[str] = []
    if start_workers is not None and not (show.handled or show.unhandled):
        # Workers import what tasks need while the graph is built or read.
        file = request.graph_file
        modules = task_modules(factory(resolve=False)) if file is None else read_task_modules(file)
        if modules:
            start_workers(modules, places)
    graph = retry_database("The quantum graph can't be built", lambda: build_graph(request, factory))
    phases = {"quantum graph": time.monotonic() - clock}
    if show.handled:
        raise OnlyShown("No pipeline executed.")
    if start_workers is not None and not modules:
        start_workers(task_modules(graph.pipeline_graph), places)
    check_tasks(graph.pipeline_graph.tasks)
    xgraph = apply_fixup(graph, request.graph_fixup)
    what = "The registry can't be read"
    output = retry_database(what, lambda: _resolve_output(graph, request))
    inputs = retry_database(what, lambda: InputTransfer.plan(request, graph, output.collections["output"]))
    probe, source = not dry_run, request.input_repo
    retry_database(what, lambda: check_output(graph, output, probe_datastore=probe, source=source))
    request.options.resources.limits(graph.pipeline_graph.tasks)
    packages = None if dry_run else find_packages(output)
    clock = time.monotonic()
    n_slots = slots()
    if start_workers is not None:
        phases["Spark session"] = time.monotonic() - clock

    def make_plan() -> Plan:
        with Butler.from_config(request.repo, writeable=False) as butler:
            return plan_graph(graph, request.options, xgraph=xgraph, slots=n_slots, butler=butler)

    plan = retry_database(what, make_plan)
    return PreparedRun(request, graph, xgraph, output, packages, plan, started, phases, tuple(stores), inputs)


def _resolve_output(graph: PredictedQuantumGraph, request: RunRequest) -> OutputRequest:
    """Return the output collections of a request and its graph."""
    output, inputs = request.output, request.inputs
    if request.input_repo is not None:
        # The chain has a collection for the inputs, which exists after the first run.
        output = output or graph.header.output
        inputs = find_input_collection(request.repo, output, rebase=request.rebase)
    wanted = OutputRequest(
        request.repo,
        {**request.output_collections(), "output": output, "inputs": list(inputs)},
        from_file=request.brings_graph,
        register_dataset_types=request.register_dataset_types,
        write_init_outputs=not request.skip_init_writes,
        skip_existing=request.extend_run or request.skip_existing,
        write_packages=not request.no_versions,
    )
    return resolve_output(graph, wanted)


@dataclasses.dataclass
class ActiveRun:
    """A run whose output collections exist.  Built by `open_run`; a context manager.

    Parameters
    ----------
    butler
        Writeable butler of the repository, or that of the graph for a run
        without a registry.
    lease
        The driver's lease on the output run, which ends with the context.
    """

    prepared: PreparedRun
    butler: Butler | GraphButler
    backend: Backend
    reporter: RunReporter
    lease: RunLease | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.lease is not None:
            self.lease.__exit__(*exc_info)
        self.butler.close()

    @property
    def name(self) -> str:
        """The output RUN collection."""
        return self.prepared.graph.header.output_run

    def drive(
        self, *observers: RunObserver, guard: contextlib.AbstractContextManager[None] | None = None
    ) -> RunEnd:
        """Run all quanta, register outputs, write the provenance graph; call `reporter.finish` afterwards.

        Parameters
        ----------
        guard
            Context in which quanta run.  It may stop the run by an exception.
        """
        request, graph, xgraph = self.prepared.request, self.prepared.graph, self.prepared.xgraph
        with contextlib.ExitStack() as stack:
            recorder: ProvenanceRecorder | None = None
            if request.provenance_graph is not None:
                recorder = stack.enter_context(
                    ProvenanceRecorder(graph, request.provenance_graph, butler=self.butler, xgraph=xgraph)
                )
            stack.enter_context(guard or contextlib.nullcontext())
            stack.enter_context(self.reporter)
            if self.prepared.inputs is not None and isinstance(self.butler, Butler):
                with self.prepared.timing("inputs"):
                    self.prepared.inputs.copy(self.butler, self.backend)
            result = execute_graph(
                graph,
                self.butler,
                self.backend,
                request.options,
                xgraph=xgraph,
                plan=self.prepared.plan,
                recorder=recorder,
                observer=ObserverGroup(*observers, self.reporter.observer),
                lease=self.lease,
                log_requests=self.reporter.log_requests,
            )
            unwritten: EngineError | None = None
            try:
                if recorder is not None:
                    recorder.finish(result)
            except EngineError as exc:
                unwritten = exc
            return RunEnd(result, unwritten)

    def explain_resume(self) -> str:
        """Return the sentence that names the options to resume the run."""
        if self.prepared.output is None or not isinstance(self.butler, Butler):
            return explain_resume(self.name)
        clobber = False
        with best_effort("Can't list the outputs of the run", level=logging.DEBUG):
            clobber = needs_clobber(self.butler, self.prepared.graph)
        return explain_resume(self.name, self.prepared.output.collections, clobber=clobber)


def open_run(
    prepared: PreparedRun, backend: Backend, *, on_cancel: Callable[[], None], bars: bool = False
) -> ActiveRun:
    """Register the output collections, write init-outputs, and start the reporter.

    Parameters
    ----------
    on_cancel
        Function that another thread calls after ``spark-butler cancel``.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the repository refuses the collections or init-outputs, or another driver writes to the run.
    """
    assert prepared.output is not None
    request, run = prepared.request, prepared.graph.header.output_run
    with contextlib.ExitStack() as stack:
        with prepared.timing("output run"):
            with (
                refuse_read_only(f"run {run!r}"),
                retry_database(
                    "The registry can't be opened", lambda: Butler.from_config(request.repo, writeable=True)
                ) as butler,
            ):
                lease = stack.enter_context(RunLease(butler, run, take_over=request.take_over))
                output = prepared.output
                if prepared.inputs is not None:
                    prepared.inputs.begin(butler)
                    output = output.with_inputs(prepared.inputs.tag)
            butler = stack.enter_context(prepare_output(prepared.graph, output, prepared.packages))
        reporter = prepared.make_reporter(butler, backend, on_cancel=on_cancel, bars=bars)
        stack.pop_all()
    return ActiveRun(prepared, butler, backend, reporter, lease)
