"""Reports of submissions, from status files.  Runs in ``bps report``; it doesn't open the registry."""

from __future__ import annotations

__all__ = ["find_roots", "is_recent", "make_report", "run_state"]

import datetime
from collections import Counter
from typing import Any

from lsst.ctrl.bps import WmsRunReport, WmsStates
from lsst.daf.butler import ButlerConfig, DimensionUniverse
from lsst.resources import ResourcePath

from ..datastore.quantum_butler import read_datastore
from ..detached.job import DetachedJob, JobState
from ..errors import UserError
from ..report.folder import find_attempts, read_json
from ..text import translate_errors
from .translate import RUN_STEP

_STATES = {
    "prepared": WmsStates.READY,
    "running": WmsStates.RUNNING,
    "succeeded": WmsStates.SUCCEEDED,
    "failed": WmsStates.FAILED,
    "stopped": WmsStates.DELETED,
    "lost": WmsStates.FAILED,
}

_OF_QUANTA = {
    "pending": WmsStates.UNREADY,
    "running": WmsStates.RUNNING,
    "done": WmsStates.SUCCEEDED,
    "failed": WmsStates.FAILED,
    "blocked": WmsStates.PRUNED,
}


def run_state(state: JobState) -> tuple[WmsStates, str]:
    """Return the state of a job, with a message if its process has ended unexpectedly."""
    message = ""
    if state.state == "lost":
        message = f"The process of the submission on {state.host} has ended; `bps restart` resumes it."
    return _STATES.get(state.state, WmsStates.UNKNOWN), message


def is_recent(job: DetachedJob, days: float) -> bool:
    """Return whether a job is running, or ended at most some days ago."""
    state = job.read_state()
    if state.state in ("prepared", "running"):
        return True
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(state.updated)
    return age < datetime.timedelta(days=days)


def find_roots(job: DetachedJob) -> list[ResourcePath]:
    """Return the roots of the datastores of a job's repository."""
    config = ButlerConfig(job.details["repository"])
    roots = read_datastore(config, DimensionUniverse()).roots.values()
    return [root for root in roots if root is not None]


def make_report(job: DetachedJob) -> WmsRunReport:
    """Build the report of a job; its BPS jobs are the quanta, and the steps before and after them."""
    state = job.read_state()
    details = job.details
    with translate_errors(UserError, f"Can't read the status of {job.folder}"):
        summary = {label: dict(counts) for label, counts in _count(job, state).items()}
    totals: Counter[WmsStates] = Counter()
    for counts in summary.values():
        totals.update(counts)
    return WmsRunReport(
        wms_id=str(job.folder),
        global_wms_id=str(job.folder),
        path=str(job.folder),
        label=details["payload"],
        run=details["name"],
        **{name: details[name] for name in ("project", "campaign", "payload", "operator", "site")},
        run_summary=";".join(f"{label}:{sum(counts.values())}" for label, counts in summary.items()),
        state=run_state(state)[0],
        jobs=None,
        total_number_jobs=totals.total(),
        job_state_counts={each: totals[each] for each in WmsStates},
        job_summary={label: {each: n.get(each, 0) for each in WmsStates} for label, n in summary.items()},
        exit_code_summary=_list_exit_codes(state, summary),
    )


def _list_exit_codes(state: JobState, summary: dict[str, dict[WmsStates, int]]) -> dict[str, list[int]]:
    """Return the exit statuses of failed steps, and 1 for each failed quantum, as `pipetask` would return."""
    codes = {label: [1] * counts.get(WmsStates.FAILED, 0) for label, counts in summary.items()}
    for name, step in state.steps.items():
        codes[name] = [step["exit_status"]] if step.get("exit_status") else []
    return codes


def _count(job: DetachedJob, state: JobState) -> dict[str, Counter[WmsStates]]:
    """Count the quanta of each task by state; each other step counts as one."""
    summary: dict[str, Counter[WmsStates]] = {}
    for step in job.steps:
        if step.name == RUN_STEP:
            progress = _read_progress(job) if RUN_STEP in state.steps else {}
            for label, n_quanta in job.details["quanta"].items():
                task = progress.get(label, {} if progress else {"pending": n_quanta})
                counts = Counter({_OF_QUANTA[name]: task.get(name, 0) for name in _OF_QUANTA})
                if counts.total() < n_quanta:
                    # The other quanta have succeeded in an earlier attempt.
                    counts[WmsStates.SUCCEEDED] += n_quanta - counts.total()
                summary[label] = counts
        else:
            entry = state.steps.get(step.name)
            state_of_step = WmsStates.UNREADY if entry is None else _STATES[entry["state"]]
            summary[step.name] = Counter({state_of_step: 1})
    return summary


def _read_progress(job: DetachedJob) -> dict[str, Any]:
    """Read the counts of the latest attempt, by task label."""
    attempts = find_attempts(find_roots(job), job.details["output_run"])
    content = read_json(attempts[-1].status_file) if attempts else None
    return {task["label"]: task for task in (content or {}).get("tasks", ())}
