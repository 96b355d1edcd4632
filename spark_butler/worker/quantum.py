"""One attempt at one quantum: run its task, and build an outcome from its result or failure.

Runs where a group of quanta runs: in a child of a worker, or in the process of
the serial backend.
"""

from __future__ import annotations

__all__ = ["failure_outcome", "run_quantum", "success_outcome"]

import dataclasses
import os
import resource
import socket
import time
import traceback
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lsst.daf.butler import ButlerLogRecords
from lsst.pipe.base import (
    InvalidQuantumError,
    QuantumAttemptStatus,
    QuantumSuccessCaveats,
    RepeatableQuantumError,
)
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from .._pipe_base import name_previous_quanta
from ..masking import hide_secrets
from ..model.outcomes import QuantumOutcome, classify
from ..model.work import EncodedTemporary, QuantumWork, WorkerContext, all_outputs
from ..temporaries.butler import GroupButler
from ..text import best_effort, brief
from .log_requests import answering_requests


@dataclasses.dataclass(slots=True)
class _Execution:
    """The result of running a task and encoding its temporaries."""

    result: QuantumExecutionResult | None = None
    failure: BaseException | None = None
    encoded: list[EncodedTemporary] = dataclasses.field(default_factory=list)
    encode_seconds: float = 0.0


def run_quantum(
    context: WorkerContext,
    work: QuantumWork,
    butler: GroupButler | None,
    *,
    wanted: Collection[uuid.UUID],
    before: Sequence[uuid.UUID],
) -> tuple[QuantumOutcome, list[EncodedTemporary]]:
    """Run one quantum once; return its outcome, and the wanted temporaries that it has made.

    The butler is `None` if the context's executor has its own.  ``before`` are
    the quanta that ran in this process before.
    """
    wall, cpu = time.time(), time.process_time()
    logs = ButlerLogRecords([]) if context.provenance else None
    data_id = dict(work.quantum.dataId.required) if work.quantum.dataId is not None else {}
    with answering_requests(context.log_requests, work.quantum_id, work.task_label, data_id):
        done = _execute(context, work, butler, logs, wanted, before)
    scan = _scan(context, work, done, logs)
    if done.failure is None:
        outcome = success_outcome(work, done.result)
    else:
        outcome = failure_outcome(work, done.failure, fail_fast=context.fail_fast)
    outcome = dataclasses.replace(
        outcome,
        **({} if butler is None else _stored(context, work, butler, failed=done.failure is not None)),
        started=wall,
        wall_seconds=time.time() - wall,
        pack_seconds=done.encode_seconds,
        cpu_seconds=time.process_time() - cpu,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        scan=scan,
    )
    return outcome, done.encoded


def _execute(
    context: WorkerContext,
    work: QuantumWork,
    butler: GroupButler | None,
    logs: ButlerLogRecords | None,
    wanted: Collection[uuid.UUID],
    before: Sequence[uuid.UUID],
) -> _Execution:
    done = _Execution()
    executor = context.quantum_executor or _build_executor(context, work, butler, before)
    try:
        done.result = executor.execute(
            context.task_nodes[work.task_label],
            work.quantum,
            quantum_id=work.quantum_id,
            # Executors of users may not know this argument.
            **({} if logs is None else {"log_records": logs}),
        )
        if butler is not None:
            began = time.time()
            done.encoded = [
                EncodedTemporary(ref.id, butler.encode(ref.id))
                for ref in all_outputs(work.quantum)
                if ref.id in wanted and ref.id in butler.live
            ]
            done.encode_seconds = time.time() - began if done.encoded else 0.0
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:  # noqa: BLE001  (a failed quantum is data, whatever its task raises)
        done.failure = _true_cause(exc)
    return done


def _build_executor(
    context: WorkerContext, work: QuantumWork, butler: GroupButler | None, before: Sequence[uuid.UUID]
) -> QuantumExecutor:
    """Build pipe_base's executor for a quantum, and prepare the butler."""
    assert butler is not None
    node = context.task_nodes[work.task_label]
    automatic = (node.metadata_output, *([node.log_output] if node.log_output is not None else []))
    butler.begin_quantum(work.quantum, {edge.dataset_type_name for edge in automatic})
    executor = SingleQuantumExecutor(
        butler=butler,
        clobber_outputs=work.clobber,
        assume_no_existing_outputs=not work.may_exist,
        raise_on_partial_outputs=context.raise_on_partial_outputs,
        resources=context.resources,
        enable_lsst_debug=context.enable_lsst_debug,
    )
    # One executor for all would know them, but options differ from quantum to quantum.
    name_previous_quanta(executor, before)
    return executor


def _stored(
    context: WorkerContext, work: QuantumWork, butler: GroupButler, *, failed: bool
) -> dict[str, Any]:
    """Return the fields of an outcome for the datasets that the quantum has put into the datastore."""
    if failed:
        # Metadata mark a success; metadata that were written before the failure are removed.
        name = context.task_nodes[work.task_label].metadata_output.dataset_type_name
        refs = [ref for ref in butler.put_refs if ref.datasetType.name == name]
        with best_effort("Metadata of a failed quantum could not be removed"):
            butler.pruneDatasets(refs, unstore=True, purge=True)
    return {
        "outputs": tuple(ref.id for ref in butler.put_refs),
        "records": butler.put_records,
        "removed": tuple(butler.pruned),
    }


def _scan(
    context: WorkerContext, work: QuantumWork, done: _Execution, logs: ButlerLogRecords | None
) -> bytes | None:
    """Return the scan of an attempt for a provenance graph; `None` if the driver has to make it."""
    metadata = None
    if done.failure is None and isinstance(done.result, QuantumExecutionResult):
        if done.result.skipped_existing:
            return None
        metadata = done.result.task_metadata
    if logs is None:
        return None
    from ..provenance.scan import MAX_SCAN_BYTES, pack_attempt

    node = context.task_nodes[work.task_label]
    scan = pack_attempt(node, work.quantum, work.quantum_id, metadata, logs, done.failure)
    if scan is not None and len(scan) > MAX_SCAN_BYTES and context.quantum_executor is None:
        return None
    return scan


def _true_cause(exc: BaseException) -> BaseException:
    """Find the exception of a task constructor, which pipe_base hides behind an `UnboundLocalError`."""
    if isinstance(exc, UnboundLocalError) and exc.__context__ is not None and "'task'" in str(exc):
        return exc.__context__
    return exc


def success_outcome(work: QuantumWork, result: QuantumExecutionResult | None) -> QuantumOutcome:
    """Build the outcome of a success; ``result`` is `None` if an earlier process ran the quantum."""
    report = result.report if isinstance(result, QuantumExecutionResult) else None
    caveats = QuantumSuccessCaveats.NO_CAVEATS
    skipped = False
    metrics: Mapping[str, float] = {}
    if isinstance(result, QuantumExecutionResult):
        skipped = bool(result.skipped_existing)
        if result.task_metadata is not None:
            metadata = result.task_metadata["quantum"]
            caveats = QuantumSuccessCaveats(metadata.get("caveats", 0))
            metrics = metadata.get("butler_metrics", {})
    if report is None:
        assert work.quantum.dataId is not None
        report = QuantumReport(
            quantumId=work.quantum_id, dataId=work.quantum.dataId, taskLabel=work.task_label
        )
    report.exitCode = 0
    return QuantumOutcome(
        work.quantum_id,
        QuantumAttemptStatus.SUCCESSFUL,
        report,
        caveats=caveats,
        skipped_existing=skipped,
        # A skipped quantum has the metadata of the earlier attempt that succeeded.
        read_seconds=None if skipped else metrics.get("time_in_get"),
        write_seconds=None if skipped else metrics.get("time_in_put"),
    )


def failure_outcome(work: QuantumWork, failure: BaseException, *, fail_fast: bool) -> QuantumOutcome:
    """Build the outcome of an attempt that raised, with the exit code of pipe_base's multiprocess executor.

    With ``fail_fast``, that executor gives some exceptions their own exit codes.
    """
    assert work.quantum.dataId is not None
    exit_code = 1
    if isinstance(failure, InvalidQuantumError) or (
        isinstance(failure, RepeatableQuantumError) and fail_fast
    ):
        exit_code = failure.EXIT_CODE
    elif isinstance(failure, SystemExit):
        code = failure.code
        exit_code = code if isinstance(code, int) else int(code is not None)
    if isinstance(failure, Exception):
        report = QuantumReport.from_exception(
            failure, work.quantum.dataId, work.task_label, exitCode=exit_code, quantumId=work.quantum_id
        )
    else:
        report = QuantumReport.from_exit_code(
            exit_code, work.quantum.dataId, work.task_label, quantumId=work.quantum_id
        )
        # A task that ends its process has not finished its quantum, even with exit status 0.
        report.status = ExecutionStatus.FAILURE
    return QuantumOutcome(
        work.quantum_id,
        QuantumAttemptStatus.FAILED,
        report,
        kind=classify(failure),
        reason=f"{type(failure).__name__}: {brief(failure)}" if str(failure) else type(failure).__name__,
        traceback=hide_secrets("".join(traceback.format_exception(failure))),
    )
