"""All that happens in a worker for one group of quanta.

A worker makes its own butler, pointed straight at the datastore, and never
sees the registry.  Nothing here knows how the work came to the worker.
"""

from __future__ import annotations

__all__ = ["failure_outcome", "find_complete", "find_outputs", "run_group"]

import dataclasses
import logging
import os
import resource
import socket
import time
import traceback
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence

from lsst.daf.butler import ButlerLogRecords
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.pipe.base import (
    InvalidQuantumError,
    QuantumAttemptStatus,
    QuantumSuccessCaveats,
    RepeatableQuantumError,
)
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from .._daf_butler import export_records
from .._pipe_base import name_previous_quanta
from ..datastore.prefetch import Prefetcher
from ..datastore.quantum_butler import make_quantum_butler
from ..datastore.s3_clients import traffic_so_far
from ..model.failures import classify
from ..model.outcomes import QuantumOutcome, QuantumStarted
from ..model.quanta import all_inputs, all_outputs
from ..model.work import GroupContent, Parcel, QuantumOutputs, QuantumWork, WorkerContext
from ..temporaries.butler import GroupButler
from ..temporaries.shuffle_records import EMPTY_NOTICE, CompletionNotice, ReceiveBuffer
from ..text import brief, hide_secrets

logger = logging.getLogger(__name__)


def run_group(
    context: WorkerContext,
    content: GroupContent,
    received: ReceiveBuffer | None = None,
    *,
    index: int = 0,
    skip: frozenset[int] = frozenset(),
    sent: frozenset[uuid.UUID] = frozenset(),
    most_ahead: int = 0,
) -> Iterator[QuantumStarted | QuantumOutcome | Parcel]:
    """Run the quanta of a group, one after another, in this process.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    content
        The group.
    received
        Temporaries and notices from other groups, complete.
    index
        Position of the group in the plan.
    skip
        Positions of quanta that are not to run.
    sent
        Temporaries that are not to be sent again.
    most_ahead
        How much memory files may take up that are read ahead, in bytes.

    Yields
    ------
    event
        A start and an outcome for each quantum that was tried, and between
        them a parcel for each temporary that other groups read.  Quanta that
        need one that failed are left out.

    Raises
    ------
    spark_butler.errors.EngineError
        Raised if something that was sent has not arrived.  What a task
        raises is an outcome.
    """
    news = received.close(content.senders) if received is not None else EMPTY_NOTICE
    butler = _make_butler(context, content, received, news) if context.quantum_executor is None else None
    prefetcher = Prefetcher(
        context,
        content,
        butler.wrapped if butler is not None else None,
        known={**content.known, **news.produced},
        left_out=skip,
        most_bytes=most_ahead,
    )
    bad: set[int] = set()
    before: list[uuid.UUID] = []
    try:
        with prefetcher:
            for position, work in enumerate(content.quanta):
                if position in skip:
                    continue
                if not bad.isdisjoint(work.upstream) or not news.failed.isdisjoint(work.needs):
                    bad.add(position)
                    continue
                prefetcher.begin(position, bad)
                yield QuantumStarted(work.quantum_id)
                traffic = traffic_so_far()
                outcome, parcels = _run_quantum(context, content, work, butler, sent, before)
                before.append(work.quantum_id)
                if not outcome.succeeded:
                    bad.add(position)
                prefetcher.end(position, bad)
                outcome = dataclasses.replace(outcome, traffic=traffic_so_far() - traffic)
                yield from parcels
                del parcels
                yield outcome
                if butler is not None:
                    butler.end_quantum(work.quantum)
    finally:
        if butler is not None:
            butler.close()


def find_complete(
    context: WorkerContext, content: GroupContent, positions: Collection[int], *, sure: bool = True
) -> list[QuantumOutcome]:
    """Look in the datastore for quanta of a group that an earlier attempt has completed.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    content
        The group.
    positions
        Positions of the quanta to look for.
    sure
        Whether there was an earlier attempt.  Otherwise the first of the
        quanta is asked for first: without a log of it, nothing was begun.

    Returns
    -------
    outcomes
        Outcomes of the quanta whose metadata and log are there, which are
        written last.
    """
    last = {}
    for position, work in enumerate(content.quanta):
        if position in positions and not work.may_exist and not work.forced:
            node = context.task_nodes[work.task_label]
            edges = (node.metadata_output, node.log_output)
            last[work.quantum_id] = [
                work.quantum.outputs[edge.dataset_type_name][0] for edge in edges if edge is not None
            ]
    if not last:
        return []
    with _make_butler(context, content) as butler:
        if not sure:
            if not butler.wrapped.stored(next(iter(last.values()))[-1]):
                return []
        stored = butler.wrapped.stored_many(ref for refs in last.values() for ref in refs)
    outcomes = []
    for work in content.quanta:
        if work.quantum_id in last and all(stored[ref] for ref in last[work.quantum_id]):
            left = find_outputs(context, content, work.quantum_id, complete=True)
            outcomes.append(
                dataclasses.replace(
                    _success_outcome(work, None), outputs=left.ids, records=left.records, recovered=True
                )
            )
    return outcomes


def find_outputs(
    context: WorkerContext, content: GroupContent, quantum_id: uuid.UUID, *, complete: bool = False
) -> QuantumOutputs:
    """Look in the datastore for what a quantum has left that can't tell any more.

    Parameters
    ----------
    context
        What all groups of the run have in common.
    content
        The group.
    quantum_id
        The quantum, one of the group.
    complete
        Whether it has succeeded; otherwise metadata can only be an earlier
        attempt's, and is left out.

    Returns
    -------
    outputs
        The stored datasets that are there, with predicted datastore records.
    """
    (work,) = (work for work in content.quanta if work.quantum_id == quantum_id)
    metadata = context.task_nodes[work.task_label].metadata_output.dataset_type_name
    with _make_butler(context, content) as butler:
        refs = [
            ref for ref in all_outputs(work.quantum) if ref.datasetType.name not in context.temporary_types
        ]
        stored = butler.wrapped.stored_many(refs)
        left = [ref for ref in refs if stored[ref] and (complete or ref.datasetType.name != metadata)]
        records = butler.wrapped.export_predicted_datastore_records(left) if left else {}
    removed = tuple(ref.id for ref in refs if content.known.get(ref.id) and not stored[ref])
    return QuantumOutputs(tuple(ref.id for ref in left), dict(records), removed)


def _make_butler(
    context: WorkerContext,
    content: GroupContent,
    received: ReceiveBuffer | None = None,
    news: CompletionNotice = EMPTY_NOTICE,
) -> GroupButler:
    """Make the butler of a group."""
    assert context.butler_config is not None
    quanta = [work.quantum for work in content.quanta]
    wrapped = make_quantum_butler(
        context.butler_config,
        context.universe,
        inputs=[ref.id for quantum in quanta for ref in all_inputs(quantum)],
        outputs=[ref.id for quantum in quanta for ref in all_outputs(quantum)],
        records=content.records,
        dataset_types=context.dataset_types,
    )
    return GroupButler(
        wrapped,
        dataset_types=context.dataset_types,
        temporary_types=context.temporary_types,
        consumers=content.consumers,
        known={**content.known, **news.produced},
        received=received,
    )


def _run_quantum(
    context: WorkerContext,
    content: GroupContent,
    work: QuantumWork,
    butler: GroupButler | None,
    sent: frozenset[uuid.UUID],
    before: Sequence[uuid.UUID],
) -> tuple[QuantumOutcome, list[Parcel]]:
    """Make one attempt at one quantum; whatever the task does becomes an outcome."""
    executor = context.quantum_executor
    if executor is None:
        assert butler is not None
        node = context.task_nodes[work.task_label]
        automatic = (node.metadata_output, *([node.log_output] if node.log_output is not None else []))
        butler.begin_quantum(work.quantum, {edge.dataset_type_name for edge in automatic})
        executor = SingleQuantumExecutor(
            butler=butler,
            task_factory=context.task_factory,
            clobber_outputs=work.clobber,
            assume_no_existing_outputs=not work.may_exist,
            raise_on_partial_outputs=context.raise_on_partial_outputs,
            resources=context.resources,
            enable_lsst_debug=context.enable_lsst_debug,
        )
        # One executor for all would know them, but options differ from quantum to quantum.
        name_previous_quanta(executor, before)
    wall, cpu = time.time(), time.process_time()
    result: QuantumExecutionResult | None = None
    failure: BaseException | None = None
    parcels: list[Parcel] = []
    pack_seconds = 0.0
    logs = ButlerLogRecords([]) if context.provenance else None
    try:
        result = executor.execute(
            context.task_nodes[work.task_label],
            work.quantum,
            quantum_id=work.quantum_id,
            # Executors of users may be older than this argument.
            **({} if logs is None else {"log_records": logs}),
        )
        if butler is not None:
            packing = time.time()
            parcels = _pack_parcels(content, work, butler, sent)
            pack_seconds = time.time() - packing if parcels else 0.0
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:  # noqa: BLE001  (a failed quantum is data, whatever its task raises)
        failure = _true_cause(exc)
    scan = _scan(context, work, result, logs, failure)
    if failure is None:
        outcome = _success_outcome(work, result)
    else:
        outcome = failure_outcome(work, failure, fail_fast=context.fail_fast)
    records: dict[str, DatastoreRecordData] = {}
    outputs: tuple[uuid.UUID, ...] = ()
    removed: tuple[uuid.UUID, ...] = ()
    if butler is not None:
        if failure is not None:
            _withdraw_metadata(context, work, butler)
        put_refs = butler.put_refs
        outputs = tuple(ref.id for ref in put_refs)
        removed = tuple(butler.pruned)
        if put_refs:
            records = export_records(butler, put_refs)
    outcome = dataclasses.replace(
        outcome,
        outputs=outputs,
        records=records,
        removed=removed,
        started=wall,
        wall_seconds=time.time() - wall,
        pack_seconds=pack_seconds,
        cpu_seconds=time.process_time() - cpu,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        scan=scan,
    )
    return outcome, parcels


def _withdraw_metadata(context: WorkerContext, work: QuantumWork, butler: GroupButler) -> None:
    """Remove the metadata of a quantum that failed after it was written, since it stands for success."""
    name = context.task_nodes[work.task_label].metadata_output.dataset_type_name
    refs = [ref for ref in butler.put_refs if ref.datasetType.name == name]
    if not refs:
        return
    try:
        butler.pruneDatasets(refs, unstore=True, purge=True)
    except Exception as exc:  # noqa: BLE001  (the store may be what failed; the driver doesn't hear of the file)
        logger.warning("Metadata of a failed quantum could not be removed: %s", brief(exc))


def _scan(
    context: WorkerContext,
    work: QuantumWork,
    result: QuantumExecutionResult | None,
    logs: ButlerLogRecords | None,
    failure: BaseException | None,
) -> bytes | None:
    """Pack what a provenance graph holds of an attempt, unless the driver has to look for it."""
    metadata = None
    if failure is None and isinstance(result, QuantumExecutionResult):
        if result.skipped_existing:
            return None
        metadata = result.task_metadata
    if logs is None:
        return None
    from ..provenance.scan import MAX_SCAN_BYTES, pack_attempt

    node = context.task_nodes[work.task_label]
    scan = pack_attempt(node, work.quantum, work.quantum_id, metadata, logs, failure)
    if scan is not None and len(scan) > MAX_SCAN_BYTES and context.quantum_executor is None:
        return None
    return scan


def _pack_parcels(
    content: GroupContent, work: QuantumWork, butler: GroupButler, sent: frozenset[uuid.UUID]
) -> list[Parcel]:
    """Serialize the temporaries of a quantum that other groups read."""
    made = [ref.id for ref in all_outputs(work.quantum)]
    return [
        Parcel(dataset_id, butler.encode(dataset_id))
        for dataset_id in made
        if dataset_id in content.outgoing and dataset_id in butler.live and dataset_id not in sent
    ]


def _true_cause(exc: BaseException) -> BaseException:
    """Find the exception of a task constructor, which pipe_base hides behind an `UnboundLocalError`."""
    if isinstance(exc, UnboundLocalError) and exc.__context__ is not None and "'task'" in str(exc):
        return exc.__context__
    return exc


def _success_outcome(work: QuantumWork, result: QuantumExecutionResult | None) -> QuantumOutcome:
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
        # Of one that was skipped, they are those of the attempt that had succeeded.
        read_seconds=None if skipped else metrics.get("time_in_get"),
        write_seconds=None if skipped else metrics.get("time_in_put"),
    )


def failure_outcome(work: QuantumWork, failure: BaseException, *, fail_fast: bool) -> QuantumOutcome:
    """Describe an attempt that raised.

    Parameters
    ----------
    work
        The quantum.
    failure
        What was raised.
    fail_fast
        Whether the first failure ends the run, which gives some exceptions an
        exit code of their own.

    Returns
    -------
    outcome
        The outcome, with the exit code that pipe_base's multiprocess executor
        would give.
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
        # A task that leaves has not finished its quantum, whatever status it gives.
        report.status = ExecutionStatus.FAILURE
    return QuantumOutcome(
        work.quantum_id,
        QuantumAttemptStatus.FAILED,
        report,
        kind=classify(failure),
        reason=f"{type(failure).__name__}: {brief(failure)}" if str(failure) else type(failure).__name__,
        traceback=hide_secrets("".join(traceback.format_exception(failure))),
    )
