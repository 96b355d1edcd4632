"""A run in the background, and the handle by which it is watched, stopped and tried again."""

from __future__ import annotations

__all__ = ["PreparedRun", "Run", "RunStatus"]

import contextlib
import dataclasses
import datetime
import enum
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import networkx
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import Report
from lsst.resources import ResourcePath

from ..driver.backend import Backend, ReportOutcome
from ..driver.engine import execute_graph, plan_graph
from ..driver.events import ProgressSnapshot, Watchers
from ..driver.scheduler import RunResult
from ..errors import EngineError, UserError
from ..model.outcomes import QuantumOutcome
from ..model.work import UnitWork, WorkerContext
from ..planning.graph import RunRequest, apply_fixup, build_graph, show_pipeline
from ..planning.plan import Plan
from ..provenance.recorder import ProvenanceRecorder
from ..report.failures import Failures, describe_failure
from ..report.live_display import LiveDisplay
from ..report.run_table import make_html, make_text
from ..report.summary import make_report
from ..repository.output_run import OutputRequest, check_output, prepare_output
from ..request_watch import describe_end, watch_request
from ..text import brief
from ..worker.pickling import check_tasks

logger = logging.getLogger(__name__)

_CANCEL_SECONDS = 0.5
_REFRESH_SECONDS = 1.0


class RunStatus(enum.StrEnum):
    """How it stands with a run."""

    RUNNING = "running"
    """Quanta are at work, or will be."""

    SUCCEEDED = "succeeded"
    """All quanta have succeeded."""

    FAILED = "failed"
    """All has ended, and some quanta failed or were blocked."""

    CANCELLED = "cancelled"
    """It was stopped by `Run.cancel`."""

    BROKEN = "broken"
    """The engine failed; `Run.error` says why."""


class _StoppableBackend:
    """A backend that can be told from another thread to take no more."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._stopped = threading.Event()

    @property
    def slots(self) -> int:
        return self._backend.slots

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def run(self, context: WorkerContext, batch: Sequence[UnitWork], report: ReportOutcome) -> None:
        if self._stopped.is_set():
            raise EngineError("The run was cancelled.")
        self._backend.run(context, batch, report)

    def is_alive(self) -> bool:
        return not self._stopped.is_set() and self._backend.is_alive()

    def cancel(self) -> None:
        self._backend.cancel()

    def stop(self) -> None:
        """Take no more, and end what is under way; jobs that were on their way need another call."""
        self._stopped.set()
        self._backend.cancel()


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run with nothing against it, of which nothing is written yet."""

    request: RunRequest
    """What was asked for."""

    graph: PredictedQuantumGraph
    """Its quantum graph."""

    xgraph: networkx.DiGraph[uuid.UUID]
    """The quanta with the edges to respect."""

    output: OutputRequest
    """Where its outputs go."""

    plan: Plan
    """How it would run from its beginning."""

    started: datetime.datetime
    """When it was asked for."""

    phases: dict[str, float]
    """Seconds that each step took, by its name."""

    @classmethod
    def prepare(cls, request: RunRequest, *, slots: int, probe_datastore: bool = True) -> PreparedRun:
        """Build the graph, and look for all that stands against running it.

        Parameters
        ----------
        request
            What is asked for.
        slots
            How many groups can run at the same time.
        probe_datastore
            Whether to write an object to the datastore and remove it again.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if something stands against it.
        """
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        arguments, options = request.arguments, request.options
        graph = build_graph(request, show_pipeline(request))
        phases = {"quantum graph": time.monotonic() - clock}
        check_tasks(graph.pipeline_graph.tasks)
        xgraph = apply_fixup(graph, arguments["graph_fixup"])
        output = OutputRequest.from_arguments(graph, arguments)
        check_output(graph, output, probe_datastore=probe_datastore)
        options.resources.limits(graph.pipeline_graph.tasks)
        with Butler.from_config(arguments["butler_config"], writeable=False) as butler:
            plan = plan_graph(graph, options, xgraph=xgraph, slots=slots, butler=butler)
        return cls(request, graph, xgraph, output, plan, started, phases)


class _Heard:
    """What a run has heard of from the engine.  It is a `spark_butler.driver.events.Watcher`."""

    def __init__(self) -> None:
        self.outcomes: dict[uuid.UUID, QuantumOutcome] = {}
        self.blocked_ids: list[uuid.UUID] = []

    def planned(self, plan: Plan) -> None:
        pass

    def dispatched(self, quantum_ids: Collection[uuid.UUID]) -> None:
        pass

    def took(self, outcome: QuantumOutcome) -> None:
        self.outcomes[outcome.quantum_id] = outcome.without_scans()

    def blocked(self, quantum_ids: Collection[uuid.UUID]) -> None:
        self.blocked_ids.extend(quantum_ids)


class Run:
    """A run that goes on in the background.  Made by `SparkButler.run`.

    In a notebook, it shows itself as a table that is kept up to date.

    Parameters
    ----------
    prepared
        What is to run.
    backend
        Where quanta run.
    again
        Starts the run again, with changed options.
    finish
        Called in the end.

    Examples
    --------
    >>> run = butler.run(pipeline, output="u/me/handle", where="visit = 202601010101 AND detector = 1")
    >>> run.wait()
    Run u/me/handle/...: succeeded after ... s.
      task  pending  running  done  failed  blocked
      isr         0        0     1       0        0
    Report: .../report.html
    >>> run.status
    <RunStatus.SUCCEEDED: 'succeeded'>
    >>> print(run.plan.explain())
    Plan: 1 quantum in 1 group and 1 stage.
    ...
    >>> len(run.failures)
    0
    """

    def __init__(
        self,
        prepared: PreparedRun,
        backend: Backend,
        *,
        again: Callable[[Mapping[str, Any]], Run],
        finish: Callable[[], None] = lambda: None,
    ):
        graph = self._graph = prepared.graph
        self._prepared = prepared
        self._again = again
        self._finish = finish
        self._backend = _StoppableBackend(backend)
        self._heard = _Heard()
        self._result: RunResult | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._last: ProgressSnapshot | None = None
        self._display = LiveDisplay(self._repr_html_, interval=_REFRESH_SECONDS)
        request = prepared.request
        report = request.arguments.get("report")
        copy_to = None if report is None else ResourcePath(report, forceDirectory=True, forceAbsolute=True)
        clock = time.monotonic()
        butler = prepare_output(graph, prepared.output)
        self._roots = {name: root for name, root in butler.get_datastore_roots().items() if root is not None}
        self._watch = watch_request(
            request,
            self.output_run,
            butler,
            backend,
            on_cancel=self._cancel_later,
            command=request.command,
            started=prepared.started,
            phases={**prepared.phases, "output run": time.monotonic() - clock},
            copy_to=copy_to,
        )
        self._watch.progress.planned(prepared.plan)
        self._thread = threading.Thread(
            target=self._drive, args=(butler,), name="spark-butler-run", daemon=True
        )
        self._thread.start()

    def _drive(self, butler: Butler) -> None:
        """Run the graph and leave a report, in the thread of the run."""
        try:
            with self._watch:
                self._execute(butler)
            self._last = self._snapshot().at_end()
            n_ingested = None if self._result is None else self._result.n_ingested
            self._watch.finish(*self._describe_end(), n_ingested=n_ingested)
        except Exception as exc:  # noqa: BLE001  (what has been done is well)
            logger.warning("Run %s can't be watched: %s", self.output_run, brief(exc), exc_info=True)
            if self._result is None:
                self._error = self._error or exc
        finally:
            self._ended.set()
            self._display.finish()

    def _execute(self, butler: Butler) -> None:
        """Run the graph, and keep what came of it or what was raised."""
        request = self._prepared.request
        recorder: ProvenanceRecorder | None = None
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._close)
                stack.enter_context(butler)
                if request.provenance_graph is not None:
                    recorder = ProvenanceRecorder(
                        self._graph, request.provenance_graph, butler=butler, xgraph=self._prepared.xgraph
                    )
                    stack.enter_context(recorder)
                self._result = execute_graph(
                    self._graph,
                    butler,
                    self._backend,
                    request.options,
                    xgraph=self._prepared.xgraph,
                    recorder=recorder,
                    watcher=Watchers(self._heard, self._watch.watcher),
                )
                if recorder is not None:
                    recorder.finish(self._result)
        except Exception as exc:  # noqa: BLE001  (`wait` raises it)
            self._error = exc
            if not self._backend.is_stopped:
                logger.error("Run %s broke off: %s", self.output_run, brief(exc))
            logger.debug("The run broke off.", exc_info=True)

    def _describe_end(self) -> tuple[str, str]:
        """Say how the run ended, as the report takes it."""
        match self._end_status():
            case RunStatus.CANCELLED:
                by = "by `spark-butler cancel`" if self._watch.cancelled else "from the notebook"
                return "stopped", f"Stopped {by}."
            case RunStatus.BROKEN:
                return "broken", brief(self._error) if self._error is not None else ""
        assert self._result is not None
        return describe_end(self._result)

    def _close(self) -> None:
        """Free what the backend holds, unless what ended the run has ended that, too."""
        with contextlib.suppress(Exception):
            self._finish()

    @property
    def output_run(self) -> str:
        """RUN collection of the outputs."""
        return self._graph.header.output_run

    @property
    def plan(self) -> Plan:
        """How the graph was cut; ``plan.explain()`` tells it."""
        return self._prepared.plan

    @property
    def graph(self) -> PredictedQuantumGraph:
        """The quantum graph."""
        return self._graph

    @property
    def status(self) -> RunStatus:
        """How it stands."""
        return self._end_status() if self._ended.is_set() else RunStatus.RUNNING

    def _end_status(self) -> RunStatus:
        """Tell how the run ended."""
        if self._error is None and self._result is not None:
            return RunStatus.FAILED if self._result.failed else RunStatus.SUCCEEDED
        return RunStatus.CANCELLED if self._backend.is_stopped else RunStatus.BROKEN

    @property
    def error(self) -> Exception | None:
        """What broke the run, if something did."""
        return self._error if self.status is RunStatus.BROKEN else None

    @property
    def outcomes(self) -> dict[uuid.UUID, QuantumOutcome]:
        """Outcomes so far, by ID of the quantum."""
        return dict(self._heard.outcomes)

    @property
    def failures(self) -> Failures:
        """The quanta that failed so far; ``failures.table()`` has label, data ID, error, line and log."""
        tasks = self._graph.pipeline_graph.tasks
        failed = [outcome for outcome in self.outcomes.values() if not outcome.succeeded]
        return Failures(
            describe_failure(
                outcome,
                tasks[outcome.report.taskLabel or ""].task_class,
                log.dataset_type_name
                if (log := tasks[outcome.report.taskLabel or ""].log_output) is not None
                else "",
                self._roots,
            )
            for outcome in failed
        )

    @property
    def report_uri(self) -> str | None:
        """Address of the page ``report.html`` about the run; `None` before its end, and if there is none."""
        places = self._watch.places if self._ended.is_set() else []
        return str(places[0]) if places else None

    def report(self) -> Report:
        """Make pipe_base's report of the run so far, that of ``pipetask run --summary``."""
        result = RunResult(outcomes=self.outcomes, blocked=list(self._heard.blocked_ids))
        return make_report(self._graph, self._result or result)

    def wait(self, timeout: float | None = None) -> Run:
        """Wait for the end.  An interrupt (a stopped cell) cancels the run.

        Parameters
        ----------
        timeout
            Seconds after which to wait no longer; the run goes on.

        Returns
        -------
        run
            The run itself.

        Raises
        ------
        spark_butler.errors.EngineError
            Raised if the engine has failed.  What quanta come to is no error
            here.
        """
        from ..spark.rdd import default_interrupts

        with default_interrupts():
            try:
                self._thread.join(timeout)
            except KeyboardInterrupt:
                self.cancel()
                raise
        if (error := self.error) is not None:
            if isinstance(error, EngineError | UserError):
                raise error
            raise EngineError(f"The run broke off: {brief(error)}") from error
        return self

    def watch(self) -> None:
        """Show the table and keep it up to date until the run has ended.

        An interrupt (a stopped cell) ends the watching only.
        """
        from ..spark.rdd import default_interrupts

        if not self._display.show():
            logger.info("%s", self)
        with default_interrupts(), contextlib.suppress(KeyboardInterrupt):
            self._thread.join()
            return
        logger.info("Run %s goes on; cancel() stops it.", self.output_run)

    def cancel(self) -> Run:
        """Stop the run, and return when nothing of it runs any more.

        What has been finished is in the registry, and `retry` goes on from
        there.

        Returns
        -------
        run
            The run itself.
        """
        while self._thread.is_alive():
            # Again and again, since a job may have been on its way to Spark the first time.
            self._backend.stop()
            self._thread.join(_CANCEL_SECONDS)
        return self

    def _cancel_later(self) -> None:
        """Stop the run from a thread for which its end waits."""
        threading.Thread(target=self.cancel, name="spark-butler-cancel", daemon=True).start()

    def retry(self, **changes: Any) -> Run:
        """Run again what has not succeeded, into the same collection.

        Parameters
        ----------
        **changes
            Options to change, such as ``memory="16GB"`` or ``timeout=3600``.
            A class of a task that was defined anew in a cell takes effect,
            if its configuration is still the same.

        Returns
        -------
        run
            The new run.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if this run is still going on, if there is nothing left to
            run, or if an option can't be used.
        """
        if self._thread.is_alive():
            raise UserError(f"Run {self.output_run!r} is still going on; wait() for it, or cancel() it.")
        fixed = {
            "output_run": self.output_run,
            "extend_run": True,
            "skip_existing": True,
            "clobber_outputs": True,
            "replace_run": None,
            "prune_replaced": None,
            "rebase": None,
        }
        return self._again({**fixed, **changes})

    def __repr__(self) -> str:
        snapshot = self._snapshot()
        text = make_text(self.output_run, self.status, snapshot)
        if (error := self.error) is not None:
            text += f"\n{brief(error)}"
        if n_failed := snapshot.total.failed:
            text += f"\n{n_failed} failed: see .failures"
        return text if (report := self.report_uri) is None else f"{text}\nReport: {report}"

    def _snapshot(self) -> ProgressSnapshot:
        """Tell how the run stands, or stood in the end, with the time since it was asked for."""
        if self._last is not None:
            return self._last
        elapsed = (datetime.datetime.now(datetime.UTC) - self._prepared.started).total_seconds()
        return dataclasses.replace(self._watch.progress.snapshot(), elapsed=elapsed)

    def _repr_html_(self) -> str:
        error = "" if self.error is None else brief(self.error)
        return make_html(self.output_run, self.status, self._snapshot(), error, report=self.report_uri)

    def _ipython_display_(self) -> None:
        if not self._display.show():
            from IPython.display import display

            display({"text/plain": repr(self)}, raw=True)
