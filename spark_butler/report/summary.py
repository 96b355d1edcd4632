"""What a user sees after a run."""

from __future__ import annotations

__all__ = ["fill_report", "make_report", "summarize"]

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping

import networkx
from lsst.pipe.base import QuantumAttemptStatus, QuantumSuccessCaveats
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport, Report

from .._pipe_base import make_summary
from ..model.outcomes import QuantumOutcome, RunResult, exit_text, job_text
from ..text import align_rows


def make_report(graph: PredictedQuantumGraph, result: RunResult) -> Report:
    """Write a run down in the form of ``pipetask run --summary``.

    Parameters
    ----------
    graph
        The graph.
    result
        What came of it.
    """
    report = Report(qgraphSummary=make_summary(graph))
    fill_report(report, graph.quantum_only_xgraph, result)
    return report


def fill_report(report: Report, xgraph: networkx.DiGraph[uuid.UUID], result: RunResult) -> None:
    """Write into a report what came of each quantum, and of the whole.

    Parameters
    ----------
    report
        The report, still without quanta.
    xgraph
        Graph of quantum IDs, whose nodes have ``task_label`` and ``data_id``.
    result
        What came of it.
    """
    report.quantaReports = _sorted([outcome.report for outcome in result.outcomes.values()])
    nodes = xgraph.nodes
    report.quantaReports += _sorted(
        [
            QuantumReport(
                quantumId=quantum_id,
                status=ExecutionStatus.SKIPPED,
                dataId=nodes[quantum_id]["data_id"],
                taskLabel=nodes[quantum_id]["task_label"],
            )
            for quantum_id in result.blocked
        ]
    )
    if result.failed:
        report.set_exception(MPGraphExecutorError("One or more tasks failed or timed out during execution."))
        only_timeouts = all(outcome.timed_out for outcome in result.failed)
        report.status = ExecutionStatus.TIMEOUT if only_timeouts else ExecutionStatus.FAILURE


def _sorted(reports: list[QuantumReport]) -> list[QuantumReport]:
    """Sort by task and data ID, since quantum IDs are random."""
    return sorted(reports, key=lambda report: (report.taskLabel or "", _data_id_key(report.dataId)))


def _data_id_key(data_id: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, f"{value:020d}" if isinstance(value, int) else str(value)) for key, value in data_id.items()
    )


def summarize(
    graph: PredictedQuantumGraph, result: RunResult, *, wall_seconds: float, n_ingested: int | None = None
) -> str:
    """Describe a run for a person.

    Parameters
    ----------
    graph
        The graph.
    result
        What came of it.
    wall_seconds
        How long it took, in seconds.
    n_ingested
        Number of datasets put into the registry, if known.

    Returns
    -------
    text
        A table of outcomes by task, then the failures.
    """
    nodes = graph.quantum_only_xgraph.nodes
    by_task: defaultdict[str, list[QuantumOutcome]] = defaultdict(list)
    for quantum_id, outcome in result.outcomes.items():
        by_task[nodes[quantum_id]["task_label"]].append(outcome)
    blocked = Counter(nodes[quantum_id]["task_label"] for quantum_id in result.blocked)
    rows: list[tuple[str, ...]] = [
        ("task", "quanta", "done", "no work", "failed", "blocked", "not run", "median s", "max s")
    ]
    for label, quanta in graph.quanta_by_task.items():
        if quanta:
            rows.append(_row(label, len(quanta), by_task[label], blocked[label]))
    lines = [f"Run {graph.header.output_run}: {_verdict(graph, result)} in {wall_seconds:.1f} s"]
    lines += align_rows(rows)
    if n_ingested is not None:
        lines.append(f"{n_ingested} datasets ingested into the registry by the driver.")
    retried = [outcome for outcome in result.outcomes.values() if outcome.attempts]
    if retried:
        kinds = Counter(attempt.kind for outcome in retried for attempt in outcome.attempts)
        words = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        lines.append(f"{len(retried)} quanta were tried more than once ({words}).")
    for outcome in sorted(result.failed, key=lambda outcome: job_text(outcome.report)):
        lines.append(f"FAILED {_failure_text(outcome)}")
    return "\n".join(lines)


def _row(label: str, n_quanta: int, outcomes: list[QuantumOutcome], n_blocked: int) -> tuple[str, ...]:
    """Make a row of the table of outcomes."""
    times = sorted(outcome.wall_seconds for outcome in outcomes if not outcome.skipped_existing)
    no_work = QuantumSuccessCaveats.NO_WORK
    done = [outcome for outcome in outcomes if outcome.succeeded]
    counts = (
        n_quanta,
        len(done),
        sum(bool(outcome.caveats & no_work) for outcome in done),
        len(outcomes) - len(done),
        n_blocked,
        n_quanta - len(outcomes) - n_blocked,
    )
    median = f"{times[len(times) // 2]:.2f}" if times else "-"
    longest = f"{times[-1]:.2f}" if times else "-"
    return (label, *map(str, counts), median, longest)


def _verdict(graph: PredictedQuantumGraph, result: RunResult) -> str:
    """Say in a few words how a run ended."""
    if not result.failed:
        return f"all of {len(result.outcomes)} quanta succeeded"
    text = f"{len(result.failed)} of {len(graph)} quanta failed, {len(result.blocked)} blocked"
    return f"{text}, stopped because {result.stop_reason}" if result.stopped_by is not None else text


def _failure_text(outcome: QuantumOutcome) -> str:
    """Name a failed quantum and the reason."""
    report = outcome.report
    if outcome.timed_out:
        reason = "timed out"
    elif report.exceptionInfo is not None:
        reason = f"{report.exceptionInfo.className}: {report.exceptionInfo.message}"
    elif outcome.status is QuantumAttemptStatus.ABORTED and report.exitCode is not None:
        reason = f"the process ended: {exit_text(report.exitCode)}"
    else:
        reason = exit_text(report.exitCode or 0)
    if outcome.kind is not None and report.exceptionInfo is None:
        reason = f"{reason} ({outcome.kind}: {outcome.reason})"
    tried = f" (attempt {len(outcome.attempts) + 1})" if outcome.attempts else ""
    return f"{job_text(report)}: {reason}{tried}"
