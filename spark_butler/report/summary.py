"""The report of ``pipetask run --summary``.  Runs in the driver when a run ends."""

from __future__ import annotations

__all__ = ["fill_report", "make_report"]

import uuid

import networkx
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport, Report

from .._pipe_base import make_summary
from ..model.outcomes import RunResult


def make_report(graph: PredictedQuantumGraph, result: RunResult) -> Report:
    """Build the report of a run."""
    report = Report(qgraphSummary=make_summary(graph))
    fill_report(report, graph.quantum_only_xgraph, result)
    return report


def fill_report(report: Report, xgraph: networkx.DiGraph[uuid.UUID], result: RunResult) -> None:
    """Fill a report with the outcomes of all quanta, and the status of the run.

    The nodes of ``xgraph`` have ``task_label`` and ``data_id``.
    """
    blocked = [
        QuantumReport(
            quantumId=quantum_id,
            status=ExecutionStatus.SKIPPED,
            dataId=xgraph.nodes[quantum_id]["data_id"],
            taskLabel=xgraph.nodes[quantum_id]["task_label"],
        )
        for quantum_id in result.blocked
    ]
    report.quantaReports = _sorted([outcome.report for outcome in result.outcomes.values()])
    report.quantaReports += _sorted(blocked)
    if result.failed:
        report.set_exception(MPGraphExecutorError("One or more tasks failed or timed out during execution."))
        only_timeouts = all(outcome.timed_out for outcome in result.failed)
        report.status = ExecutionStatus.TIMEOUT if only_timeouts else ExecutionStatus.FAILURE


def _sorted(reports: list[QuantumReport]) -> list[QuantumReport]:
    """Return reports by task and data ID, because quantum IDs are random."""

    def key(report: QuantumReport) -> tuple[str, list[tuple[str, str]]]:
        values = {k: f"{v:020d}" if isinstance(v, int) else str(v) for k, v in report.dataId.items()}
        return report.taskLabel or "", list(values.items())

    return sorted(reports, key=key)
