"""Write the provenance quantum graph of a run, by pipe_base's own writer.

While the run goes on, what workers send is kept in a file without a name, which
is gone with the process.  The graph is written when the run has ended, beside
its destination, and takes its place when it is whole.
"""

from __future__ import annotations

__all__ = ["ProvenanceRecorder", "RecordingExecutor", "check_destination", "whole_file"]

import contextlib
import dataclasses
import logging
import os
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import networkx
from lsst.daf.butler import Butler, ButlerLogRecords, DatasetRef, LimitedButler, Quantum
from lsst.pipe.base import ExceptionInfo, QuantumAttemptStatus
from lsst.pipe.base import automatic_connection_constants as acc
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
from lsst.pipe.base.quantum_graph._provenance import ProvenanceQuantumAttemptModel
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor
from lsst.pipe.base.quantum_reports import QuantumReport
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.resources import ResourcePath, ResourcePathExpression
from lsst.utils.introspection import get_full_type_name

from .dispatch import RunResult
from .errors import EngineError, OptionsError
from .failures import FailureKind
from .messages import brief, hide_secrets
from .outcomes import Attempt, QuantumOutcome
from .registry import fetch_ids
from .scans import OpenedAttempt, QuantumScan, scan_attempt

logger = logging.getLogger(__name__)


class ProvenanceRecorder:
    """Remembers what comes of the quanta of a run, and writes it down.

    Parameters
    ----------
    graph
        The graph that is executed.
    destination
        Where to write the provenance graph.
    butler
        Butler of the repository, to read the logs and metadata that the
        workers of this run have not sent: of quanta that earlier runs have
        done, of those whose worker was lost, and very long ones.
    quantum_executor
        The executor that runs the quanta, where it brings its own butler.
    xgraph
        The quanta with the edges to respect, where those are not the graph's
        own.

    Notes
    -----
    A context manager; when it is left before `finish`, nothing was written.
    """

    def __init__(
        self,
        graph: PredictedQuantumGraph,
        destination: ResourcePathExpression,
        *,
        butler: Butler | None = None,
        quantum_executor: QuantumExecutor | None = None,
        xgraph: networkx.DiGraph[uuid.UUID] | None = None,
    ):
        self._graph = graph
        self._xgraph = graph.quantum_only_xgraph if xgraph is None else xgraph
        self._destination = destination
        self._butler = butler
        self._quantum_executor = quantum_executor
        self._present: frozenset[uuid.UUID] = frozenset()
        # Without a buffer, so that what can't be written is known at once.
        self._spool = tempfile.TemporaryFile(prefix="spark-butler-", buffering=0)  # noqa: SIM115
        self._places: defaultdict[uuid.UUID, list[tuple[int, int]]] = defaultdict(list)
        self._told: set[uuid.UUID] = set()
        self._length = 0
        self._is_full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        self._spool.close()
        return False

    def add(self, outcome: QuantumOutcome) -> None:
        """Keep what came with an outcome.

        Parameters
        ----------
        outcome
            The outcome.  There may be several of a quantum.
        """
        if outcome.quantum_id not in self._places:
            # Later outcomes tell of them again.
            for attempt in outcome.attempts:
                self._keep(outcome.quantum_id, attempt.scan or _aborted_attempt(attempt))
        if self._keep(outcome.quantum_id, outcome.scan):
            self._told.add(outcome.quantum_id)

    def _keep(self, quantum_id: uuid.UUID, scan: bytes | None) -> bool:
        """Write a scan to the end of the file; return whether there is one."""
        if scan is None or self._is_full:
            return False
        try:
            if self._spool.write(scan) != len(scan):
                raise OSError("the disk is full.")
        except OSError as exc:
            # The run is worth more than its provenance; `finish` looks in the datastore instead.
            logger.warning("Nothing more is kept for the provenance graph until the run ends: %s", brief(exc))
            self._is_full = True
            return False
        self._places[quantum_id].append((self._length, len(scan)))
        self._length += len(scan)
        return True

    def finish(self, result: RunResult) -> None:
        """Write the graph.

        Parameters
        ----------
        result
            What came of the run.

        Raises
        ------
        EngineError
            Raised if the graph can't be written.  There is no file then, or
            the one that was there before.
        """
        start = time.monotonic()
        logger.info("Writing the provenance of %d quanta to %s.", len(self._graph), self._destination)
        try:
            if self._butler is not None:
                self._present = fetch_ids(self._butler, self._graph.header.output_run)
            with whole_file(self._destination) as path:
                self._write(path, result)
        except Exception as exc:
            raise EngineError(
                f"The run has ended, and what it made is in the repository, but its provenance graph "
                f"{str(self._destination)!r} can't be written: {type(exc).__name__}: {brief(exc)}"
            ) from exc
        logger.info("Wrote the provenance graph in %.1f s.", time.monotonic() - start)

    def _write(self, path: Path, result: RunResult) -> None:
        """Write the graph to a local file."""
        blocked = _find_blocked(self._xgraph, result)
        with contextlib.ExitStack() as stack:
            writer = ProvenanceQuantumGraphWriter(
                str(path), exit_stack=stack, log_on_close=LogOnClose(logger.log), predicted=self._graph
            )
            for quantum_id, predicted in self._graph._quantum_datasets.items():
                scan = self._scan_of(quantum_id, result.outcomes.get(quantum_id), blocked.get(quantum_id))
                if scan is None:
                    writer.write_blocked_quantum_provenance(quantum_id)
                else:
                    writer.write_scan_data(_scan_data(predicted, scan, writer))
            writer.write_overall_inputs()
            writer.write_packages()
            self._write_init_outputs(writer)

    def _write_init_outputs(self, writer: ProvenanceQuantumGraphWriter) -> None:
        """Write down which init-outputs exist."""
        if self._butler is not None:
            for predicted in self._graph._init_quanta.values():
                ids = set(predicted.iter_output_dataset_ids())
                writer.write_scan_data(
                    ProvenanceQuantumScanData(
                        predicted.quantum_id,
                        ProvenanceQuantumScanStatus.INIT,
                        existing_outputs=ids & self._present,
                    )
                )
        writer.write_init_outputs(assume_existence=self._butler is None)

    def _scan_of(
        self, quantum_id: uuid.UUID, outcome: QuantumOutcome | None, blocked: bool | None
    ) -> QuantumScan | None:
        """Put together what is known of a quantum.

        Parameters
        ----------
        quantum_id
            The quantum.
        outcome
            The outcome that counts, if it was tried.
        blocked
            If it was not tried because of a failure upstream: whether that is
            the whole truth, or it may have been done in an earlier run.

        Returns
        -------
        scan
            What is known; `None` for a quantum that was blocked.
        """
        if outcome is None:
            # An executor of the caller decides itself what has been done before, which is an outcome.
            may_be_done = not blocked and self._butler is not None
            found = self._look(quantum_id, with_metadata=True) if may_be_done else None
            if found is None and blocked is None:
                return _empty_scan(QuantumAttemptStatus.UNKNOWN)
            return found
        kept = [self._read(*place) for place in self._places.get(quantum_id, ())]
        if outcome.succeeded:
            kept = _up_to_success(kept)
            if not kept or kept[-1].status is not QuantumAttemptStatus.SUCCESSFUL:
                found = self._look(quantum_id, with_metadata=True)
                kept.append(found or _empty_scan(QuantumAttemptStatus.UNKNOWN))
        elif quantum_id not in self._told:
            kept.append(self._aborted_scan(quantum_id, outcome))
        return kept[0] if len(kept) == 1 else _join(kept)

    def _read(self, place: int, length: int) -> QuantumScan:
        self._spool.seek(place)
        return QuantumScan.from_bytes(self._spool.read(length))

    def _aborted_scan(self, quantum_id: uuid.UUID, outcome: QuantumOutcome) -> QuantumScan:
        """Describe a failure of which the worker could not tell more than that."""
        found = self._look(quantum_id, with_metadata=False)
        has_log = outcome.status is QuantumAttemptStatus.FAILED and outcome.kind is not FailureKind.UPSTREAM
        if found is not None and has_log:
            # It had written its log, which was too long for the way here.
            return found
        written = frozenset(outcome.outputs) - set(self._automatic_ids(quantum_id))
        info = _abort_info(outcome.kind, outcome.reason)
        aborted = _empty_scan(QuantumAttemptStatus.ABORTED, info, written)
        return aborted if found is None else _join([found, aborted])

    def _automatic_ids(self, quantum_id: uuid.UUID) -> list[uuid.UUID]:
        """Find the IDs of the metadata and the log of a quantum."""
        outputs = self._graph._quantum_datasets[quantum_id].outputs
        names = (acc.METADATA_OUTPUT_CONNECTION_NAME, acc.LOG_OUTPUT_CONNECTION_NAME)
        return [dataset.dataset_id for name in names for dataset in outputs.get(name, ())]

    def _look(self, quantum_id: uuid.UUID, *, with_metadata: bool) -> QuantumScan | None:
        """Read in the repository what a quantum has left; `None` if it has left nothing."""
        if self._butler is not None and self._present.isdisjoint(self._automatic_ids(quantum_id)):
            return None
        quantum = self._graph.build_execution_quanta([quantum_id])[quantum_id]
        task_node = self._graph.pipeline_graph.tasks[
            self._graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
        ]
        (metadata_ref,) = quantum.outputs[task_node.metadata_output.dataset_type_name]
        log_ref: DatasetRef | None = None
        if task_node.log_output is not None:
            (log_ref,) = quantum.outputs[task_node.log_output.dataset_type_name]
        with _open_butler(self._butler or self._quantum_executor, quantum) as butler:
            if butler is None:
                return None
            logs = _get(butler, log_ref) if log_ref is not None else None
            metadata = _get(butler, metadata_ref) if with_metadata else None
        if logs is None and metadata is None:
            return None
        return scan_attempt(task_node, quantum, quantum_id, metadata, logs)


class RecordingExecutor(QuantumExecutor):
    """Runs quanta in this process by another executor, and records what comes of them.

    Parameters
    ----------
    wrapped
        The executor that runs them.
    recorder
        Takes what comes of them.
    """

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
            scan = scan_attempt(task_node, quantum, quantum_id, None, logs, exc)
            outcome = QuantumOutcome(quantum_id, QuantumAttemptStatus.FAILED, report, scan=scan.to_bytes())
            self._result.stopped_by = outcome
            self._take(outcome)
            raise
        outcome = QuantumOutcome(quantum_id, QuantumAttemptStatus.SUCCESSFUL, report)
        if not result.skipped_existing:
            scan = scan_attempt(task_node, quantum, quantum_id, result.task_metadata, logs)
            outcome = dataclasses.replace(outcome, scan=scan.to_bytes())
        self._take(outcome)
        return result

    def finish(self) -> None:
        """Write the provenance of what has run.  See `ProvenanceRecorder.finish`."""
        self._recorder.finish(self._result)

    def _take(self, outcome: QuantumOutcome) -> None:
        self._recorder.add(outcome)
        self._result.outcomes[outcome.quantum_id] = outcome.without_scans()


@contextlib.contextmanager
def _open_butler(
    owner: LimitedButler | QuantumExecutor | None, quantum: Quantum
) -> Iterator[LimitedButler | None]:
    """Find a butler for what a quantum has written."""
    if isinstance(owner, LimitedButler):
        yield owner
    elif isinstance(owner, SingleQuantumExecutor):
        if (butler := owner._butler or owner._limited_butler) is not None:
            yield butler
        else:
            assert owner._limited_butler_factory is not None
            butler = owner._limited_butler_factory(quantum)
            try:
                yield butler
            finally:
                butler.close()
    else:
        yield None


def _get(butler: LimitedButler, ref: DatasetRef) -> Any:
    """Read a dataset; `None` if it isn't there."""
    try:
        return butler.get(ref)
    except (FileNotFoundError, LookupError):
        return None


def _find_blocked(xgraph: networkx.DiGraph[uuid.UUID], result: RunResult) -> dict[uuid.UUID, bool]:
    """Find the quanta that were not tried because of a failure upstream, and whether that is for sure."""
    blocked = dict.fromkeys(result.blocked, True)
    if result.stopped_by is not None:
        for outcome in result.failed:
            for quantum_id in networkx.descendants(xgraph, outcome.quantum_id):
                blocked.setdefault(quantum_id, False)
    return blocked


def _scan_data(
    predicted: PredictedQuantumDatasetsModel, scan: QuantumScan, writer: ProvenanceQuantumGraphWriter
) -> ProvenanceQuantumScanData:
    """Give a scan the form in which pipe_base writes it."""
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


def _empty_scan(
    status: QuantumAttemptStatus,
    exception: ExceptionInfo | None = None,
    produced: frozenset[uuid.UUID] = frozenset(),
) -> QuantumScan:
    """Describe an attempt without logs and metadata."""
    model = ProvenanceQuantumAttemptModel(status=status, exception=exception)
    return QuantumScan.make([OpenedAttempt(model, None, None)], produced)


def _up_to_success(scans: Sequence[QuantumScan]) -> list[QuantumScan]:
    """Leave out failures after a success.

    What ran again for a lost temporary may have failed then, which is the
    failure of the readers of that.
    """
    kept: list[QuantumScan] = []
    for scan in scans:
        succeeded = scan.status is QuantumAttemptStatus.SUCCESSFUL
        if succeeded or not kept or kept[-1].status is not QuantumAttemptStatus.SUCCESSFUL:
            kept.append(scan)
    return kept


def _join(scans: Sequence[QuantumScan]) -> QuantumScan:
    """Put the attempts of several scans in a row, those once that several tell of."""
    attempts: list[OpenedAttempt] = []
    for scan in scans:
        *before, last = scan.open()
        known, attempts = attempts, []
        for attempt in before:
            places = [
                n for n, each in enumerate(known) if each.logs is not None and each.logs == attempt.logs
            ]
            if places:
                attempts += known[: places[0]]
                del known[: places[0] + 1]
            attempts.append(attempt)
        attempts += [*known, last]
    return QuantumScan.make(attempts, scans[-1].produced)


def _aborted_attempt(attempt: Attempt) -> bytes | None:
    """Describe an attempt that died; `None` for one of which the log of the next tells."""
    if attempt.status is not QuantumAttemptStatus.ABORTED:
        return None
    info = _abort_info(attempt.kind, attempt.reason)
    return _empty_scan(QuantumAttemptStatus.ABORTED, info).to_bytes()


def _abort_info(kind: FailureKind | None, reason: str) -> ExceptionInfo:
    """Say of what an attempt has died, by the names that there are for it."""
    error: type[BaseException] = MPGraphExecutorError
    if kind is FailureKind.TIMEOUT:
        error = MPTimeoutError
    elif kind is FailureKind.MEMORY:
        error = MemoryError
    return ExceptionInfo(type_name=get_full_type_name(error), message=hide_secrets(reason), metadata={})


def check_destination(destination: ResourcePathExpression) -> None:
    """Look whether a provenance graph can be written, before there is anything to write.

    Parameters
    ----------
    destination
        Where it is to go.

    Raises
    ------
    OptionsError
        Raised if it can't.
    """
    uri = ResourcePath(destination, forceDirectory=None)
    if uri.getExtension() != ".qg":
        raise OptionsError(f"The provenance graph {str(destination)!r} needs a name that ends in .qg.")
    if not uri.isLocal:
        return
    folder = Path(uri.ospath).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(uri.ospath).is_dir():
        raise OptionsError(f"The provenance graph {str(destination)!r} can't be written there.")


@contextlib.contextmanager
def whole_file(destination: ResourcePathExpression) -> Iterator[Path]:
    """Write a file so that there is a whole one or none.

    Parameters
    ----------
    destination
        Where it is to go, which may be on another machine.

    Yields
    ------
    path
        Where to write.  What is there in the end goes to the destination,
        unless an exception is raised.
    """
    uri = ResourcePath(destination, forceDirectory=False)
    if not uri.isLocal:
        with tempfile.TemporaryDirectory(prefix="spark-butler-") as folder:
            path = Path(folder, uri.basename())
            yield path
            uri.transfer_from(ResourcePath(str(path)), transfer="copy", overwrite=True)
        return
    final = Path(uri.ospath)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Always of this name, so that the next attempt replaces what a killed one has left.
    path = final.with_name(f".{final.name}.partial")
    try:
        yield path
        path.replace(final)
    finally:
        path.unlink(missing_ok=True)
