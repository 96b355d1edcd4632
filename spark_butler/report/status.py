"""A small file that says how a run stands, written while it goes on, and read by others."""

from __future__ import annotations

__all__ = ["SECONDS_BETWEEN", "describe_progress", "is_silent", "progress_line"]

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from ..model.outcomes import job_text
from ..text import format_seconds, hide_secrets
from .progress import ProgressSnapshot

SECONDS_BETWEEN = 10.0
"""Time between two writings, in seconds."""

_N_FAILURES = 5
_SILENT_AFTER = 6


def describe_progress(snapshot: ProgressSnapshot) -> dict[str, Any]:
    """Write down how a run stands, as JSON can hold it.

    Parameters
    ----------
    snapshot
        How it stands.
    """
    tasks = [{**dataclasses.asdict(task), "total": task.total} for task in snapshot.tasks]
    return {
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "every": SECONDS_BETWEEN,
        "tasks": tasks,
        "quanta_per_second": round(snapshot.rate, 3),
        "seconds_left": None if snapshot.seconds_left is None else round(snapshot.seconds_left),
        "slots": snapshot.slots,
        "busy": snapshot.busy,
        "n_failures": len(snapshot.failures),
        "failures": [
            hide_secrets(f"{job_text(outcome.report)}: {outcome.reason}")
            for outcome in snapshot.failures[-_N_FAILURES:]
        ],
    }


def is_silent(status: Mapping[str, Any], now: datetime.datetime) -> bool:
    """Whether a run that says that it goes on was not heard of for too long.

    Parameters
    ----------
    status
        What was read from the file.
    now
        The time, in UTC.
    """
    updated = datetime.datetime.fromisoformat(status["updated"])
    silent = (now - updated).total_seconds() > _SILENT_AFTER * float(status["every"])
    return silent and status["state"] == "running"


def progress_line(snapshot: ProgressSnapshot) -> str:
    """Say in one line how a run stands, in the words of pipetask.

    Parameters
    ----------
    snapshot
        How it stands.
    """
    total = snapshot.total
    failed = total.failed + total.blocked
    text = (
        f"Executed {total.done} quanta successfully, {failed} failed and "
        f"{total.pending + total.running} remain out of total {total.total} quanta; "
        f"{snapshot.rate:.3g} quanta/s, {snapshot.busy} of {snapshot.slots} slots busy"
    )
    if snapshot.seconds_left:
        end = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=snapshot.seconds_left)
        text += f", about {format_seconds(snapshot.seconds_left)} left (until {end:%H:%M})"
    return f"{text}."
