"""Handle of a run in the background: its state, its failures, cancel and retry.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Run", "RunStatus"]

import contextlib
import dataclasses
import datetime
import enum
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import Report

from ..driver.backend import Backend
from ..errors import EngineError, UserError
from ..model.outcomes import QuantumOutcome, RunResult
from ..planning.plan import Plan
from ..report import RunReporter, make_page
from ..report.failures import Failures, describe_failure
from ..report.live_table import LiveDisplay, ReportPage, make_html
from ..report.progress import ProgressSnapshot
from ..report.summary import make_report
from ..report.text import format_progress
from ..run import PreparedRun, RunEnd, open_run
from ..text import best_effort, brief
from .run_arguments import RunArguments
from .stoppable_backend import OutcomeLog, StoppableBackend

logger = logging.getLogger(__name__)

_CANCEL_SECONDS = 0.5
_REFRESH_SECONDS = 1.0


class RunStatus(enum.StrEnum):
    """State of a background run."""

    RUNNING = "running"
    """Quanta run, or will run."""

    SUCCEEDED = "succeeded"
    """All quanta have succeeded."""

    FAILED = "failed"
    """The run has ended, and some quanta failed or were blocked."""

    CANCELLED = "cancelled"
    """`Run.cancel` or ``spark-butler cancel`` stopped the run."""

    BROKEN = "broken"
    """The engine failed; `Run.error` holds the exception."""


class Run:
    """A run in the background.  Made by `SparkButler.run`.

    In a notebook, it shows itself as a table that is kept up to date.

    Parameters
    ----------
    prepared
        The prepared run.
    backend
        Backend that runs the quanta.
    again
        Starts the run again, with changed options.
    finish
        Called at the end.

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
        self._graph = prepared.graph
        self._prepared = prepared
        self._again = again
        self._finish = finish
        self._backend = StoppableBackend(backend)
        self._log = OutcomeLog()
        self._end: RunEnd | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._last: ProgressSnapshot | None = None
        self._display = LiveDisplay(self._make_bundle, interval=_REFRESH_SECONDS)
        self._active = open_run(prepared, self._backend, on_cancel=self._cancel_later)
        roots = self._active.butler.get_datastore_roots()
        self._roots = {name: root for name, root in roots.items() if root is not None}
        self._reporter.progress.on_plan(prepared.plan)
        self._thread = threading.Thread(target=self._drive, name="spark-butler-run", daemon=True)
        self._thread.start()

    @property
    def _reporter(self) -> RunReporter:
        return self._active.reporter

    def _drive(self) -> None:
        """Run the graph and write its report, in the thread of the run."""
        try:
            with contextlib.ExitStack() as stack:
                # The backend may have ended together with the run.
                stack.callback(best_effort("Can't close the backend", level=logging.DEBUG)(self._finish))
                stack.enter_context(self._active)
                self._execute()
            self._last = self._snapshot().at_end()
            n_ingested = None if self._end is None else self._end.result.n_ingested
            self._reporter.finish(*self._describe_end(), n_ingested=n_ingested)
        except Exception as exc:  # a report that fails must not lose the result
            logger.warning("Run %s has no report: %s", self.output_run, brief(exc), exc_info=True)
            if self._end is None:
                self._error = self._error or exc
        finally:
            self._ended.set()
            self._display.finish()

    def _execute(self) -> None:
        """Run the graph, and keep its result or its error."""
        try:
            self._end = self._active.drive(self._log)
            self._error = self._end.unwritten
        except Exception as exc:  # `wait` raises it
            self._error = exc
            if not self._backend.is_stopped:
                logger.error("Run %s stopped with an error: %s", self.output_run, brief(exc))
            logger.debug("The run stopped with an error.", exc_info=True)

    def _describe_end(self) -> tuple[str, str]:
        """Return the state and the reason for the report."""
        match self._end_status():
            case RunStatus.CANCELLED:
                by = "by `spark-butler cancel`" if self._reporter.cancelled else "from the notebook"
                return "stopped", f"Stopped {by}."
            case RunStatus.BROKEN:
                return "broken", brief(self._error) if self._error is not None else ""
        assert self._end is not None
        return self._end.state, self._end.reason

    @property
    def output_run(self) -> str:
        """RUN collection of the outputs."""
        return self._graph.header.output_run

    @property
    def plan(self) -> Plan:
        """The partition of the graph; ``plan.explain()`` describes it."""
        return self._prepared.plan

    @property
    def graph(self) -> PredictedQuantumGraph:
        """The quantum graph."""
        return self._graph

    @property
    def status(self) -> RunStatus:
        """State of the run."""
        return self._end_status() if self._ended.is_set() else RunStatus.RUNNING

    def _end_status(self) -> RunStatus:
        """Return the state of an ended run."""
        if self._error is None and self._end is not None:
            return RunStatus.FAILED if self._end.result.failed else RunStatus.SUCCEEDED
        return RunStatus.CANCELLED if self._backend.is_stopped else RunStatus.BROKEN

    @property
    def error(self) -> Exception | None:
        """Error that stopped the run, if any."""
        return self._error if self.status is RunStatus.BROKEN else None

    @property
    def outcomes(self) -> dict[uuid.UUID, QuantumOutcome]:
        """Outcomes so far, by ID of the quantum."""
        return dict(self._log.outcomes)

    @property
    def failures(self) -> Failures:
        """The quanta that failed so far; ``failures.table()`` has label, data ID, error, line and log."""
        tasks = self._graph.pipeline_graph.tasks
        return Failures(
            describe_failure(outcome, tasks[outcome.label], self._roots)
            for outcome in self.outcomes.values()
            if not outcome.succeeded
        )

    @property
    def report_uri(self) -> str | None:
        """Address of the run's ``report.html``; `None` before its end, or without a report."""
        places = self._reporter.places if self._ended.is_set() else []
        return str(places[0]) if places else None

    def report_html(self, file: str | os.PathLike[str] | None = None) -> ReportPage:
        """Return the report of the ended run as a page that a notebook shows; ``str(page)`` is its HTML.

        Parameters
        ----------
        file
            File to write the page to, as well.  JupyterLab opens it by the
            link below the page, if it is beside the notebook or below.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the run has not ended, has no report, or if the file
            can't be written.

        Examples
        --------
        >>> run = butler.run(pipeline, output="u/me/page", where="visit = 202601010101 AND detector = 1")
        >>> run.wait().report_html()
        <ReportPage of u/me/page/...>
        """
        if not self._ended.is_set():
            raise UserError(f"Run {self.output_run!r} is still running; wait() for it, or cancel() it.")
        if (content := self._reporter.content) is None:
            raise UserError(f"Run {self.output_run!r} has no report; see its log.")
        place = os.fspath(file) if file is not None else None
        return ReportPage(self.output_run, make_page(content), place).save()

    def report(self) -> Report:
        """Return pipe_base's report of the run so far, as in ``pipetask run --summary``."""
        result = RunResult(outcomes=self.outcomes, blocked=list(self._log.blocked_ids))
        return make_report(self._graph, result if self._end is None else self._end.result)

    def wait(self, timeout: float | None = None) -> Run:
        """Wait for the end, and return the run.  An interrupt (a stopped cell) cancels it.

        Parameters
        ----------
        timeout
            Seconds after which to stop waiting; the run continues.

        Raises
        ------
        spark_butler.errors.EngineError
            Raised if the engine has failed.  Failed quanta do not raise.
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
            raise EngineError(f"The run stopped with an error: {brief(error)}") from error
        return self

    def watch(self) -> None:
        """Print the table and update it until the run has ended.

        An interrupt (a stopped cell) ends only this display.
        """
        from ..spark.rdd import default_interrupts

        if not self._display.show():
            logger.info("%s", self)
        with default_interrupts(), contextlib.suppress(KeyboardInterrupt):
            self._thread.join()
            return
        logger.info("Run %s continues; cancel() stops it.", self.output_run)

    def cancel(self) -> Run:
        """Stop the run, and return it when all its jobs have ended.

        Finished outputs are registered, and `retry` resumes from there.
        """
        while self._thread.is_alive():
            # Repeated, since a job may have been on its way to Spark the first time.
            self._backend.stop()
            self._thread.join(_CANCEL_SECONDS)
        return self

    def _cancel_later(self) -> None:
        """Stop the run from a thread that the end of the run waits for."""
        threading.Thread(target=self.cancel, name="spark-butler-cancel", daemon=True).start()

    def retry(self, **changes: Unpack[RunArguments]) -> Run:
        """Retry the quanta that have not succeeded, into the same collection, as a new run.

        Parameters
        ----------
        **changes
            Options to change, such as ``memory="16GB"`` or ``timeout=3600``.
            A task class that was redefined in a cell takes effect, if its
            configuration is unchanged.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if this run has not ended, if there is nothing left to run,
            or if an option can't be used.
        """
        if self._thread.is_alive():
            raise UserError(f"Run {self.output_run!r} is still running; wait() for it, or cancel() it.")
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
        text = format_progress(self.output_run, self.status, snapshot)
        if (error := self.error) is not None:
            text += f"\n{brief(error)}"
        if n_failed := snapshot.total.failed:
            text += f"\n{n_failed} failed: see .failures"
        return text if (report := self.report_uri) is None else f"{text}\nReport: {report}"

    def _snapshot(self) -> ProgressSnapshot:
        """Return the progress of the run, with the time since the request."""
        if self._last is not None:
            return self._last
        elapsed = (datetime.datetime.now(datetime.UTC) - self._prepared.started).total_seconds()
        return dataclasses.replace(self._reporter.progress.snapshot(), elapsed=elapsed)

    def _repr_html_(self) -> str:
        error = "" if self.error is None else brief(self.error)
        return make_html(self.output_run, self.status, self._snapshot(), error, report=self.report_uri)

    def _make_bundle(self) -> dict[str, str]:
        """Return the table for front ends with and without HTML."""
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _ipython_display_(self) -> None:
        if not self._display.show():
            from IPython.display import display

            display({"text/plain": repr(self)}, raw=True)
