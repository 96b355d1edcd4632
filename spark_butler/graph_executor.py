"""Graph executor on Spark with the interface of pipe_base's graph executors.  Runs in the driver."""

from __future__ import annotations

__all__ = ["SparkGraphExecutor"]

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import networkx
from lsst.daf.butler import Butler
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.graph import QuantumGraph
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor, MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor, QuantumGraphExecutor
from lsst.pipe.base.quantum_reports import ExecutionStatus, Report
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from ._pipe_base import make_summary, make_xgraph
from .driver.backend import Backend
from .driver.engine import execute_graph
from .driver.scheduler import Scheduler
from .driver.work_factory import WorkFactory
from .errors import OptionsError
from .model.limits import Limits
from .model.options import RunOptions, StopRule
from .model.outcomes import RunResult, exit_text, job_text
from .model.work import WorkerContext
from .planning.partition import cut_graph
from .planning.sketch import sketch_graph
from .provenance.recorder import ProvenanceRecorder, RecordingExecutor
from .report.summary import fill_report
from .repository.lease import RunLease
from .spark.session import make_session
from .worker.environment import worker_environment

if TYPE_CHECKING:
    import uuid

    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class SparkGraphExecutor(QuantumGraphExecutor):
    """Executor of quantum graphs on Spark.

    Replaces `lsst.pipe.base.mp_graph_executor.MPGraphExecutor` and accepts
    all its arguments.  It writes provenance graphs with any number of
    processes.

    Parameters
    ----------
    num_proc
        The greatest number of quanta to run at once.  With 1 they run in this
        process, without Spark; `None` leaves the number to Spark.
    timeout
        Seconds after which a quantum is killed.
    quantum_executor
        Executor for a single quantum, which must support pickle.  It is used
        in the workers as it is.  `None` makes the butlers of the workers from
        ``butler``: they have no registry, and this process registers
        their outputs with ``butler``.
    start_method
        Accepted for compatibility; the processes of the quanta are always
        forked from a warm worker.
    fail_fast
        Whether to stop at the first failure.
    pdb
        Debugger to start after an exception when quanta run in this process.
    execution_graph_fixup
        Adds edges to the graph.
    butler
        Writeable butler of the repository, needed without
        ``quantum_executor``.
    spark
        The session to use; by default the active one, or a new one.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        num_proc: int | None = None,
        timeout: float | None = None,
        quantum_executor: QuantumExecutor | None = None,
        start_method: Literal["spawn", "forkserver"] | None = None,
        fail_fast: bool = False,
        pdb: str | None = None,
        execution_graph_fixup: ExecutionGraphFixup | None = None,
        butler: Butler | None = None,
        spark: SparkSession | None = None,
    ):
        if num_proc is not None and num_proc < 1:
            raise OptionsError(
                f"num_proc is {num_proc}; expected at least 1, or None for as many as Spark has."
            )
        if (quantum_executor is None) == (butler is None):
            raise OptionsError("Exactly one of quantum_executor and butler must be given.")
        self._num_proc = num_proc
        self._timeout = timeout
        self._quantum_executor = quantum_executor
        self._fail_fast = fail_fast
        self._butler = butler
        self._spark = spark
        self._execution_graph_fixup = execution_graph_fixup
        self._pdb = pdb
        self._start_method = start_method
        self._report: Report | None = None

    def execute(
        self, graph: QuantumGraph | PredictedQuantumGraph, *, provenance_graph_file: str | None = None
    ) -> None:
        # Docstring inherited from QuantumGraphExecutor.execute.
        quantum_executor = self._quantum_executor or SingleQuantumExecutor(butler=self._butler)
        if self._num_proc == 1 and provenance_graph_file is None:
            self._execute_here(graph, quantum_executor)
            return
        new_graph, old_graph = (
            (PredictedQuantumGraph.from_old_quantum_graph(graph), graph)
            if isinstance(graph, QuantumGraph)
            else (graph, None)
        )
        xgraph = make_xgraph(self._make_local_executor(quantum_executor), new_graph, old_graph)
        with contextlib.ExitStack() as stack:
            recorder: ProvenanceRecorder | None = None
            if provenance_graph_file is not None:
                recorder = stack.enter_context(
                    ProvenanceRecorder(
                        new_graph,
                        provenance_graph_file,
                        butler=self._butler,
                        quantum_executor=quantum_executor,
                        xgraph=xgraph,
                    )
                )
            if self._num_proc == 1 and recorder is not None:
                witness = RecordingExecutor(quantum_executor, recorder)
                with _finishing(witness.finish):
                    self._execute_here(graph, witness)
            else:
                self._execute_on_spark(new_graph, xgraph, recorder)

    def _execute_here(
        self, graph: QuantumGraph | PredictedQuantumGraph, quantum_executor: QuantumExecutor
    ) -> None:
        """Execute a graph in this process, with the executor of pipe_base."""
        local = self._make_local_executor(quantum_executor)
        try:
            local.execute(graph)
        finally:
            with contextlib.suppress(RuntimeError):
                # A refused graph has no report.
                self._report = local.getReport()

    def _execute_on_spark(
        self,
        graph: PredictedQuantumGraph,
        xgraph: networkx.DiGraph[uuid.UUID],
        recorder: ProvenanceRecorder | None,
    ) -> None:
        """Execute a graph on Spark."""
        self._report = Report(qgraphSummary=make_summary(graph))
        result = RunResult()

        def finish() -> None:
            if recorder is not None:
                recorder.finish(result)

        try:
            with _finishing(finish):
                _check_multiprocessing(graph, xgraph)
                if xgraph:
                    result = self._run(graph, xgraph, recorder)
                    self._finish(result, xgraph)
        except Exception as exc:
            self._report.set_exception(exc)
            raise

    def getReport(self) -> Report:
        # Docstring inherited from QuantumGraphExecutor.getReport.
        if self._report is None:
            raise RuntimeError("getReport() called before execute()")
        return self._report

    def _make_local_executor(self, quantum_executor: QuantumExecutor) -> MPGraphExecutor:
        """Return the executor of pipe_base that runs quanta in this process."""
        return MPGraphExecutor(
            num_proc=1,
            timeout=self._timeout if self._timeout is not None else math.inf,
            quantum_executor=quantum_executor,
            start_method=self._start_method,
            fail_fast=self._fail_fast,
            pdb=self._pdb,
            execution_graph_fixup=self._execution_graph_fixup,
        )

    def _run(
        self,
        graph: PredictedQuantumGraph,
        xgraph: networkx.DiGraph[uuid.UUID],
        recorder: ProvenanceRecorder | None,
    ) -> RunResult:
        """Run a graph on Spark."""
        from .spark.backend import SparkBackend

        backend = SparkBackend(self._spark or make_session())
        try:
            if self._butler is not None:
                options = RunOptions(
                    processes=self._num_proc, timeout=self._timeout, fail_fast=self._fail_fast
                )
                with RunLease(self._butler, graph.header.output_run) as lease:
                    return execute_graph(
                        graph, self._butler, backend, options, xgraph=xgraph, recorder=recorder, lease=lease
                    )
            return self._run_as_given(graph, xgraph, recorder, backend)
        finally:
            backend.close()

    def _run_as_given(
        self,
        graph: PredictedQuantumGraph,
        xgraph: networkx.DiGraph[uuid.UUID],
        recorder: ProvenanceRecorder | None,
        backend: Backend,
    ) -> RunResult:
        """Run a graph with the caller's quantum executor, which brings its own butler."""
        context = WorkerContext(
            task_nodes=dict(graph.pipeline_graph.tasks),
            universe=graph.pipeline_graph.universe,
            quantum_executor=self._quantum_executor,
            fail_fast=self._fail_fast,
            limits=dict.fromkeys(graph.pipeline_graph.tasks, Limits(timeout=self._timeout, retries=0)),
            provenance=recorder is not None,
            log_state=tuple(CliLog.configState),
            environment=worker_environment(),
        )
        plan = cut_graph(sketch_graph(graph, xgraph), group_by="quantum")
        maker = WorkFactory(plan, graph, xgraph)
        dispatcher = Scheduler(
            plan,
            xgraph,
            backend,
            maker.make_work,
            on_outcome=recorder.add if recorder is not None else lambda outcome: None,
            limit=self._num_proc,
            stop_rule=StopRule(fail_fast=self._fail_fast),
        )
        return dispatcher.run(context)

    def _finish(self, result: RunResult, xgraph: networkx.DiGraph[uuid.UUID]) -> None:
        """Build the report and raise as pipe_base's executor does."""
        assert self._report is not None
        fill_report(self._report, xgraph, result)
        if not result.failed:
            return
        if (stopper := result.stopped_by) is not None:
            job = job_text(stopper.report)
            if stopper.timed_out:
                raise MPTimeoutError(f"Timeout ({self._timeout} sec) for task {job}.")
            raise MPGraphExecutorError(f"Task {job} failed, {exit_text(stopper.report.exitCode or 0)}")
        logger.error("Failed jobs:")
        for outcome in result.failed:
            logger.error("  - %s: %s", outcome.report.status.name, job_text(outcome.report))
        if self._report.status is ExecutionStatus.TIMEOUT and not result.blocked:
            raise MPTimeoutError("One or more tasks timed out during execution.")
        raise MPGraphExecutorError("One or more tasks failed or timed out during execution.")


@contextlib.contextmanager
def _finishing(finish: Callable[[], None]) -> Iterator[None]:
    """Call ``finish`` after the block, also if quanta failed: callers that catch the error rely on it."""
    try:
        yield
    except MPGraphExecutorError:
        finish()
        raise
    finish()


def _check_multiprocessing(graph: PredictedQuantumGraph, xgraph: networkx.DiGraph[uuid.UUID]) -> None:
    """Raise if a task declares that it can't run in another process."""
    for label in dict.fromkeys(xgraph.nodes[quantum_id]["task_label"] for quantum_id in xgraph):
        if not graph.pipeline_graph.tasks[label].task_class.canMultiprocess:
            raise MPGraphExecutorError(f"Task {label!r} does not support multiprocessing; use single process")
