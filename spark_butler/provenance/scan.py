"""Metadata and logs of attempts, packed for a provenance graph.  Workers make them; the driver joins them."""

from __future__ import annotations

__all__ = [
    "MAX_SCAN_BYTES",
    "OpenedAttempt",
    "QuantumScan",
    "empty_scan",
    "join_scans",
    "pack_attempt",
    "scan_attempt",
    "up_to_success",
]

import dataclasses
import itertools
import pickle
import uuid
from collections.abc import Sequence

import pydantic
import zstandard
from lsst.daf.butler import ButlerLogRecords, Quantum
from lsst.daf.butler.logging import ButlerLogRecord
from lsst.pipe.base import ExceptionInfo, QuantumAttemptStatus, TaskMetadata
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph import (
    PredictedDatasetModel,
    PredictedQuantumDatasetsModel,
    ProvenanceLogRecordsModel,
    ProvenanceQuantumScanModels,
    ProvenanceTaskMetadataModel,
)
from lsst.utils.introspection import get_full_type_name

from .._pipe_base import ProvenanceQuantumAttemptModel
from ..model.work import TEMPORARIES_KEY
from ..text import best_effort

MAX_SCAN_BYTES = 1 << 20
"""Length in bytes above which a scan is not sent through Spark; the driver reads the datasets instead."""

# The level of pipe_base's writer.
_ZSTD_LEVEL = 10

_ATTEMPTS = pydantic.TypeAdapter(list[ProvenanceQuantumAttemptModel])


def _compress(model: pydantic.BaseModel) -> bytes:
    """Return a block of a graph file."""
    # A dictionary would have to be the same in all blocks of a graph, and does not exist before the run.
    return zstandard.compress(model.model_dump_json().encode(), level=_ZSTD_LEVEL)


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedAttempt:
    """One attempt at a quantum, with its log records and metadata if it has written any."""

    model: ProvenanceQuantumAttemptModel
    """Its status, exception and resource usage, in pipe_base's form."""

    logs: list[ButlerLogRecord] | None
    metadata: TaskMetadata | None


@dataclasses.dataclass(frozen=True, slots=True)
class QuantumScan:
    """All contents of a provenance graph for the attempts at one quantum.

    Logs and metadata are compressed blocks of the graph file, so that the
    driver copies them without decompression.
    """

    status: QuantumAttemptStatus
    """Status of the last attempt."""

    attempts: bytes
    """The attempts, first to last, as JSON."""

    logs: bytes
    """The log of each attempt; empty without logs."""

    metadata: bytes
    """The metadata of each attempt; empty without metadata."""

    produced: frozenset[uuid.UUID]
    """IDs of the datasets that the last attempt has written, temporaries included."""

    @classmethod
    def make(cls, attempts: Sequence[OpenedAttempt], produced: frozenset[uuid.UUID]) -> QuantumScan:
        """Serialize and compress the attempts, first to last, with numbers."""
        for number, attempt in enumerate(attempts):
            attempt.model.attempt = number
        logs = metadata = b""
        if any(attempt.logs is not None for attempt in attempts):
            all_logs = [attempt.logs for attempt in attempts]
            logs = _compress(ProvenanceLogRecordsModel.model_construct(attempts=all_logs))
        if any(attempt.metadata is not None for attempt in attempts):
            all_metadata = [attempt.metadata for attempt in attempts]
            metadata = _compress(ProvenanceTaskMetadataModel.model_construct(attempts=all_metadata))
        models = [attempt.model for attempt in attempts]
        return cls.from_blocks(models, logs=logs, metadata=metadata, produced=produced)

    @classmethod
    def from_blocks(
        cls,
        models: Sequence[ProvenanceQuantumAttemptModel],
        *,
        logs: bytes,
        metadata: bytes,
        produced: frozenset[uuid.UUID],
    ) -> QuantumScan:
        """Build a scan from the attempts, first to last, and compressed blocks of a graph file."""
        return cls(models[-1].status, _ATTEMPTS.dump_json(list(models)), logs, metadata, produced)

    def open(self) -> list[OpenedAttempt]:
        attempts = self.open_attempts()
        decompress = zstandard.ZstdDecompressor().decompress
        logs: list[list[ButlerLogRecord] | None] = [None] * len(attempts)
        metadata: list[TaskMetadata | None] = [None] * len(attempts)
        if self.logs:
            logs = ProvenanceLogRecordsModel.model_validate_json(decompress(self.logs)).attempts
        if self.metadata:
            metadata = ProvenanceTaskMetadataModel.model_validate_json(decompress(self.metadata)).attempts
        return list(map(OpenedAttempt, attempts, logs, metadata))

    def open_attempts(self) -> list[ProvenanceQuantumAttemptModel]:
        return _ATTEMPTS.validate_json(self.attempts)


def scan_attempt(
    task_node: TaskNode,
    quantum: Quantum,
    quantum_id: uuid.UUID,
    metadata: TaskMetadata | None,
    logs: ButlerLogRecords | None,
    failure: BaseException | None = None,
) -> QuantumScan:
    """Build the scan of a quantum, with one attempt or more.

    Only a success has metadata.  Logs contain the additions of
    `lsst.pipe.base.log_capture.LogCapture`: the exception of a failure, and the
    earlier attempts.  ``failure`` is the raised exception, for logs without it.
    """
    outputs = {
        edge.connection_name: [
            PredictedDatasetModel.from_dataset_ref(ref) for ref in quantum.outputs[edge.dataset_type_name]
        ]
        for edge in task_node.iter_all_outputs()
    }
    keeps_logs = acc.LOG_OUTPUT_CONNECTION_NAME in outputs
    if not keeps_logs:
        # pipe_base expects a log of every task; this one represents a dataset that is never written.
        outputs[acc.LOG_OUTPUT_CONNECTION_NAME] = [
            PredictedDatasetModel.model_construct(dataset_id=uuid.uuid4(), dataset_type_name="", run="")
        ]
        logs = ButlerLogRecords([])
    elif logs is not None and not logs and not logs.extra:
        # The quantum failed before its first log message.
        logs = None
    predicted = PredictedQuantumDatasetsModel.model_construct(
        quantum_id=quantum_id, task_label=task_node.label, outputs=outputs
    )
    models = ProvenanceQuantumScanModels.from_metadata_and_logs(predicted, metadata, logs)
    if failure is not None and models.attempts[-1].exception is None:
        models.attempts[-1].exception = ExceptionInfo(
            type_name=get_full_type_name(failure), message=str(failure), metadata={}
        )
    if logs is None and metadata is None:
        # In this state, readers expect no log.
        models.attempts[-1].status = QuantumAttemptStatus.ABORTED
    known = {
        dataset.dataset_id
        for name, datasets in outputs.items()
        if keeps_logs or name != acc.LOG_OUTPUT_CONNECTION_NAME
        for dataset in datasets
    }
    produced = {dataset_id for dataset_id, exists in models.output_existence.items() if exists}
    n_attempts = len(models.attempts)
    logs_of = _fill(models.logs.attempts, n_attempts) if keeps_logs else [None] * n_attempts
    metadata_of = _fill(models.metadata.attempts, n_attempts)
    attempts = list(map(OpenedAttempt, models.attempts, logs_of, metadata_of))
    return QuantumScan.make(attempts, frozenset(known & (produced | _temporaries_in(metadata_of[-1]))))


def _temporaries_in(metadata: TaskMetadata | None) -> set[uuid.UUID]:
    """Return the temporaries that metadata list separately from the other outputs."""
    if metadata is None or "quantum" not in metadata or TEMPORARIES_KEY not in metadata["quantum"]:
        return set()
    return set(map(uuid.UUID, metadata["quantum"].getArray(TEMPORARIES_KEY)))


def _fill[T](items: Sequence[T | None], length: int) -> list[T | None]:
    """Return items cut to a length, or filled up with `None` for attempts that wrote nothing.

    The metadata of a success may occur twice, because logs that pipe_base has
    streamed to a file contain them, too.
    """
    return list(itertools.islice(itertools.chain(items, itertools.repeat(None)), length))


def pack_attempt(
    task_node: TaskNode,
    quantum: Quantum,
    quantum_id: uuid.UUID,
    metadata: TaskMetadata | None,
    logs: ButlerLogRecords,
    failure: BaseException | None = None,
) -> bytes | None:
    """Pack a `scan_attempt`; `None` if it can't be made, as no quantum may fail because of its provenance."""
    with best_effort(f"No provenance could be recorded for a quantum of {task_node.label}"):
        return pickle.dumps(scan_attempt(task_node, quantum, quantum_id, metadata, logs, failure))
    return None


def empty_scan(
    status: QuantumAttemptStatus,
    exception: ExceptionInfo | None = None,
    produced: frozenset[uuid.UUID] = frozenset(),
) -> QuantumScan:
    """Build the scan of an attempt without logs and metadata, with the reason if it is known."""
    model = ProvenanceQuantumAttemptModel(status=status, exception=exception)
    return QuantumScan.make([OpenedAttempt(model, None, None)], produced)


def up_to_success(scans: Sequence[QuantumScan]) -> list[QuantumScan]:
    """Return the scans without failures after a success.

    A rerun that replaces a lost temporary may fail; that failure is reported for
    the readers of the temporary.
    """
    kept: list[QuantumScan] = []
    for scan in scans:
        succeeded = scan.status is QuantumAttemptStatus.SUCCESSFUL
        if succeeded or not kept or kept[-1].status is not QuantumAttemptStatus.SUCCESSFUL:
            kept.append(scan)
    return kept


def join_scans(scans: Sequence[QuantumScan]) -> QuantumScan:
    """Join ordered scans of one quantum into one scan, with each attempt once."""
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
