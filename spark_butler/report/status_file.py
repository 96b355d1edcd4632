"""The status file of a run, which ``spark-butler status`` reads while the driver of the run updates it.

Runs in the driver, and in the commands that show runs.
"""

from __future__ import annotations

__all__ = ["is_silent", "write_status"]

import datetime
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from ..atomic_write import write_at_once
from ..masking import hide_secrets
from ..model.outcomes import job_text
from .folder import AttemptFolder
from .progress import ProgressSnapshot
from .record import RunInfo
from .text import failure_text

_SILENT_AFTER = 6
_N_FAILURES = 5


def write_status(
    folder: AttemptFolder, run: RunInfo, snapshot: ProgressSnapshot, state: str, every: float
) -> None:
    """Write the status of a run, which is ``running``, or ended as a state says.

    ``every`` is the number of seconds between two updates.
    """
    status: dict[str, Any] = {
        "format": 1,
        "run": run.run,
        "state": state,
        "started": run.started.isoformat(timespec="seconds"),
        "driver": f"{socket.gethostname()}:{os.getpid()}",
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "every": every,
        **(snapshot if state == "running" else snapshot.at_end()).describe(),
        "failures": [
            hide_secrets(f"{job_text(outcome.report)}: {failure_text(outcome)}")
            for outcome in snapshot.failures[-_N_FAILURES:]
        ],
    }
    write_at_once(folder.status_file, json.dumps(status, separators=(",", ":")).encode())


def is_silent(status: Mapping[str, Any], now: datetime.datetime) -> bool:
    """Return whether the driver of an unfinished run has stopped updating its status."""
    updated = datetime.datetime.fromisoformat(status["updated"])
    silent = (now - updated).total_seconds() > _SILENT_AFTER * float(status["every"])
    return silent and status["state"] == "running"
