"""Units lost with their worker: why, and the outcome of those lost too often.  Runs in the driver."""

from __future__ import annotations

__all__ = ["MAX_LOSSES", "explain_loss", "lost_outcome"]

import logging
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import ExecutionStatus, QuantumReport

from ..errors import EngineError, WorkerDiskError
from ..model.outcomes import FailureKind, QuantumOutcome
from ..text import brief
from .backend import Backend

logger = logging.getLogger(__name__)

MAX_LOSSES = 3
"""Number of losses of a unit that ran alone after which it has failed."""


def explain_loss(error: BaseException | None, missing: Sequence[uuid.UUID], backend: Backend) -> str:
    """Return why a job has ended without outcomes of the ``missing`` quanta; empty if none is missing.

    Raises
    ------
    EngineError
        Raised if further jobs would be lost for the same reason.
    """
    if error is not None and not backend.is_alive():
        raise EngineError(f"The backend failed: {type(error).__name__}: {brief(error)}") from error
    if isinstance(error, OSError | EngineError) and not isinstance(error, WorkerDiskError):
        # Errors of workers have other types.  An error of the driver would occur again with every job.
        hint = f"Check disk space and the temporary folder of the driver ({tempfile.gettempdir()})."
        raise EngineError(f"The driver can't submit work: {brief(error)}. {hint}") from error
    if not missing:
        return ""
    if not backend.is_alive():
        names = sorted(map(str, missing))
        raise EngineError(f"No outcome came back for {len(names)} quanta of a job: {names}.")
    if error is not None:
        logger.debug("The job was lost.", exc_info=error)
    return "no outcome came back" if error is None else brief(error)


def lost_outcome(
    quantum_id: uuid.UUID, label: str, data_id: Mapping[str, Any], reason: str, kind: FailureKind
) -> QuantumOutcome:
    """Return the outcome of a quantum whose worker or disk failed."""
    report = QuantumReport(
        quantumId=quantum_id, status=ExecutionStatus.FAILURE, dataId=data_id, taskLabel=label
    )
    return QuantumOutcome(quantum_id, QuantumAttemptStatus.ABORTED, report, kind=kind, reason=reason)
