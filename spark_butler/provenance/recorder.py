"""Recorder of the provenance quantum graph of a run, which uses pipe_base's writer.

Runs in the driver.  During the run, the recorder keeps the scans of workers in an unnamed temporary
file, which the system removes when the process ends.  After the run, it writes the graph beside its
destination, and moves it there when it is complete.
"""

from __future__ import annotations

__all__ = ["ProvenanceRecorder", "RecordingExecutor", "check_destination"]

import contextlib
import logging
import pickle
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Self

import networkx
from lsst.daf.butler import ButlerLogRecords, LimitedButler, Quantum
from lsst.pipe.base import ExceptionInfo, QuantumAttemptStatus
from lsst.pipe.base.log_on_close import LogOnClose
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph import (
    PredictedQuantumDatasetsModel,
    PredictedQuantumGraph,
    ProvenanceQuantumGraphWriter,
    ProvenanceQuantumModel,
    ProvenanceQuantumScanData,
    ProvenanceQuantumScanStatus,
)
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor
from lsst.pipe.base.quantum_reports import QuantumReport
from lsst.resources import ResourcePath, ResourcePathExpression
from lsst.utils.introspection import get_full_type_name

from .._pipe_base import init_quanta, quantum_datasets
from ..atomic_write import atomic_write
from ..errors import EngineError, OptionsError
from ..masking import hide_secrets
from ..model.outcomes import FailureKind, QuantumOutcome, RunResult
from ..repository.checks import may_write
from ..text import brief
from .readback import Readback
from .scan import QuantumScan, empty_scan, join_scans, pack_attempt, up_to_success

logger = logging.getLogger(__name__)


def check_destination(destination: ResourcePathExpression) -> None:
    """Check before a run that its provenance graph can be written; refuse the option otherwise."""
    uri = ResourcePath(destination, forceDirectory=None)
    if uri.getExtension() != ".qg":
        raise OptionsError(f"The provenance graph {str(destination)!r} needs a name that ends in .qg.")
    if not may_write(uri):
        raise OptionsError(f"The provenance graph {str(destination)!r} can't be written there.")


class ProvenanceRecorder:
    """Collector of the outcomes of a run's quanta, which writes their provenance graph.

    Workers don't send all logs and metadata: those of quanta of earlier runs, those of
    quanta whose worker was lost, and very long logs are missing.  The recorder reads them
    through the butler of the repository or that of the quantum executor.  ``xgraph`` has
    the edges to respect, if these are not the graph's own.

    Notes
    -----
    A context manager; no graph is written unless `finish` is called.
    """

    def __init__(
        self,
        graph: PredictedQuantumGraph,
        destination: ResourcePathExpression,
        *,
        butler: LimitedButler | None = None,
        quantum_executor: QuantumExecutor | None = None,
        xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    ):
        self._graph = graph
        self._xgraph = graph.quantum_only_xgraph if xgraph is None else xgraph
        self._destination = destination
        self._butler = butler
        self._quantum_executor = quantum_executor
        # Unbuffered, so that a failed write raises at once.
        self._spool = tempfile.TemporaryFile(prefix="spark-butler-", buffering=0)  # noqa: SIM115
        self._places: defaultdict[uuid.UUID, list[tuple[int, int]]] = defaultdict(list)
        self._reported: dict[uuid.UUID, bool] = {}
        self._length = 0
        self._is_full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._spool.close()

    def add(self, outcome: QuantumOutcome) -> None:
        """Keep the scan of an outcome; a quantum may have several outcomes."""
        if outcome.quantum_id in self._reported:
            # The quantum ran again; its first outcome has reported the earlier attempts.
            self._keep(outcome.quantum_id, outcome.scan)
            return
        *before, last = _all_scans(outcome)
        for scan in before:
            self._keep(outcome.quantum_id, scan)
        self._reported[outcome.quantum_id] = self._keep(outcome.quantum_id, last)

    def _keep(self, quantum_id: uuid.UUID, scan: bytes | None) -> bool:
        """Write a scan to the end of the file; return whether there is one."""
        if scan is None or self._is_full:
            return False
        try:
            if self._spool.write(scan) != len(scan):
                raise OSError("the disk is full.")
        except OSError as exc:
            # The run continues without scans; `finish` reads the datastore instead.
            logger.warning(
                "No more scans are kept; the rest of the provenance graph is read from the datastore: %s",
                brief(exc),
            )
            self._is_full = True
            return False
        self._places[quantum_id].append((self._length, len(scan)))
        self._length += len(scan)
        return True

    def finish(self, result: RunResult) -> None:
        """Write the graph when the run has ended; if that fails, a file that exists is not changed."""
        start = time.monotonic()
        logger.info("Writing the provenance of %d quanta to %s.", len(self._graph), self._destination)
        try:
            readback = Readback(self._graph, self._butler, self._quantum_executor)
            with atomic_write(self._destination) as path:
                self._write(path, result, readback)
        except Exception as exc:
            raise EngineError(
                f"The run has ended, and its outputs are in the repository, but its provenance graph "
                f"{str(self._destination)!r} can't be written: {type(exc).__name__}: {brief(exc)}"
            ) from exc
        logger.info("Wrote the provenance graph in %.1f s.", time.monotonic() - start)

    def _write(self, path: Path, result: RunResult, readback: Readback) -> None:
        blocked = _find_blocked(self._xgraph, result)
        with contextlib.ExitStack() as stack:
            writer = ProvenanceQuantumGraphWriter(
                str(path), exit_stack=stack, log_on_close=LogOnClose(logger.log), predicted=self._graph
            )
            untold: dict[uuid.UUID, bool] = {}
            for quantum_id in quantum_datasets(self._graph):
                outcome = result.outcomes.get(quantum_id)
                if self._reported.get(quantum_id):
                    assert outcome is not None
                    self._write_quantum(writer, quantum_id, self._join(outcome, None))
                elif outcome is not None:
                    untold[quantum_id] = outcome.succeeded
                elif not blocked.get(quantum_id) and readback.has_trace(quantum_id):
                    untold[quantum_id] = True
                else:
                    unknown = None if quantum_id in blocked else empty_scan(QuantumAttemptStatus.UNKNOWN)
                    self._write_quantum(writer, quantum_id, unknown)
            for quantum_id, found in readback.read_many(untold.items()):
                if (outcome := result.outcomes.get(quantum_id)) is not None:
                    found = self._join(outcome, found, readback.automatic_ids(quantum_id))
                elif found is None and quantum_id not in blocked:
                    found = empty_scan(QuantumAttemptStatus.UNKNOWN)
                self._write_quantum(writer, quantum_id, found)
            writer.write_overall_inputs()
            writer.write_packages()
            self._write_init_outputs(writer, readback.present)

    def _write_quantum(
        self, writer: ProvenanceQuantumGraphWriter, quantum_id: uuid.UUID, scan: QuantumScan | None
    ) -> None:
        """Write the attempts at a quantum, or that it was blocked."""
        if scan is None:
            writer.write_blocked_quantum_provenance(quantum_id)
        else:
            writer.write_scan_data(_scan_data(quantum_datasets(self._graph)[quantum_id], scan, writer))

    def _write_init_outputs(
        self, writer: ProvenanceQuantumGraphWriter, present: frozenset[uuid.UUID] | None
    ) -> None:
        """Write which init-outputs exist."""
        if present is not None:
            for predicted in init_quanta(self._graph).values():
                ids = set(predicted.iter_output_dataset_ids())
                writer.write_scan_data(
                    ProvenanceQuantumScanData(
                        predicted.quantum_id, ProvenanceQuantumScanStatus.INIT, existing_outputs=ids & present
                    )
                )
        writer.write_init_outputs(assume_existence=present is None)

    def _join(
        self, outcome: QuantumOutcome, found: QuantumScan | None, automatic: Collection[uuid.UUID] = ()
    ) -> QuantumScan:
        """Return the scan of a quantum that was tried, joined from the scans of its attempts.

        ``found`` is the scan from the repository, if the worker has sent none;
        ``automatic`` are the IDs of metadata and log.
        """
        kept = [self._read(*place) for place in self._places.get(outcome.quantum_id, ())]
        if outcome.succeeded:
            kept = up_to_success(kept)
            if not kept or kept[-1].status is not QuantumAttemptStatus.SUCCESSFUL:
                kept.append(found or empty_scan(QuantumAttemptStatus.UNKNOWN))
        elif not self._reported[outcome.quantum_id]:
            kept += [] if found is None else [found]
            has_log = outcome.status is QuantumAttemptStatus.FAILED
            if found is None or not has_log or outcome.kind is FailureKind.UPSTREAM:
                # The log in the repository belongs to another attempt.
                written = frozenset(outcome.outputs).difference(automatic)
                info = _abort_info(outcome.kind, outcome.reason)
                kept.append(empty_scan(QuantumAttemptStatus.ABORTED, info, written))
        return kept[0] if len(kept) == 1 else join_scans(kept)

    def _read(self, place: int, length: int) -> QuantumScan:
        self._spool.seek(place)
        scan = pickle.loads(self._spool.read(length))
        assert isinstance(scan, QuantumScan)
        return scan


class RecordingExecutor(QuantumExecutor):
    """Executor that runs quanta in this process with another executor, and records their outcomes."""

    def __init__(self, wrapped: QuantumExecutor, recorder: ProvenanceRecorder):
        self._wrapped = wrapped
        self._recorder = recorder
        self._result = RunResult()

    def execute(
        self,
        task_node: TaskNode,
        /,
        quantum: Quantum,
        quantum_id: uuid.UUID | None = None,
        *,
        log_records: ButlerLogRecords | None = None,
    ) -> QuantumExecutionResult:
        # Docstring inherited from QuantumExecutor.execute.
        assert quantum_id is not None
        assert quantum.dataId is not None
        logs = log_records if log_records is not None else ButlerLogRecords([])
        report = QuantumReport(quantumId=quantum_id, dataId=quantum.dataId, taskLabel=task_node.label)
        try:
            result = self._wrapped.execute(task_node, quantum, quantum_id, log_records=logs)
        except Exception as exc:
            scan = pack_attempt(task_node, quantum, quantum_id, None, logs, exc)
            outcome = QuantumOutcome(quantum_id, QuantumAttemptStatus.FAILED, report, scan=scan)
            self._result.stopped_by = outcome
            self._record(outcome)
            raise
        scan = None
        if not result.skipped_existing:
            scan = pack_attempt(task_node, quantum, quantum_id, result.task_metadata, logs)
        self._record(QuantumOutcome(quantum_id, QuantumAttemptStatus.SUCCESSFUL, report, scan=scan))
        return result

    def finish(self) -> None:
        """Write the provenance of the quanta that have run.  See `ProvenanceRecorder.finish`."""
        self._recorder.finish(self._result)

    def _record(self, outcome: QuantumOutcome) -> None:
        self._recorder.add(outcome)
        self._result.outcomes[outcome.quantum_id] = outcome.without_scans()


def _find_blocked(xgraph: networkx.DiGraph[uuid.UUID], result: RunResult) -> dict[uuid.UUID, bool]:
    """Find the quanta that did not run because of a failure upstream, and whether this is certain."""
    blocked = dict.fromkeys(result.blocked, True)
    if result.stopped_by is not None:
        for outcome in result.failed:
            for quantum_id in networkx.descendants(xgraph, outcome.quantum_id):
                blocked.setdefault(quantum_id, False)
    return blocked


def _scan_data(
    predicted: PredictedQuantumDatasetsModel, scan: QuantumScan, writer: ProvenanceQuantumGraphWriter
) -> ProvenanceQuantumScanData:
    """Return a scan in the form of pipe_base's writer."""
    quantum = ProvenanceQuantumModel.from_predicted(predicted)
    quantum.attempts = scan.open_attempts()
    succeeded = scan.status is QuantumAttemptStatus.SUCCESSFUL
    return ProvenanceQuantumScanData(
        predicted.quantum_id,
        ProvenanceQuantumScanStatus.SUCCESSFUL if succeeded else ProvenanceQuantumScanStatus.FAILED,
        existing_outputs=set(scan.produced),
        quantum=writer.compressor.compress(quantum.model_dump_json().encode()),
        metadata=scan.metadata,
        logs=scan.logs,
        is_compressed=True,
    )


def _all_scans(outcome: QuantumOutcome) -> list[bytes | None]:
    """Return the scans of all attempts at a quantum, first to last; `None` for an attempt without a scan."""
    return [*(attempt.scan or _aborted_attempt(attempt) for attempt in outcome.attempts), outcome.scan]


def _aborted_attempt(attempt: QuantumOutcome) -> bytes | None:
    """Build the scan of an attempt that died; `None` if the log of the next attempt describes it."""
    if attempt.status is not QuantumAttemptStatus.ABORTED:
        return None
    info = _abort_info(attempt.kind, attempt.reason)
    return pickle.dumps(empty_scan(QuantumAttemptStatus.ABORTED, info))


def _abort_info(kind: FailureKind | None, reason: str) -> ExceptionInfo:
    """Return the reason why an attempt died, in pipe_base's form of an exception."""
    error: type[BaseException] = MPGraphExecutorError
    if kind is FailureKind.TIMEOUT:
        error = MPTimeoutError
    elif kind is FailureKind.MEMORY:
        error = MemoryError
    return ExceptionInfo(type_name=get_full_type_name(error), message=hide_secrets(reason), metadata={})
