"""Service that BPS calls to prepare, submit, watch and cancel a submission.

Runs in the process of the ``bps`` commands.  The ID of a submission is its submit directory.  Reports come
from the status file that the driver of a run writes; no registry is opened.
"""

from __future__ import annotations

__all__ = ["SparkService", "SparkWorkflow"]

import datetime
import os
import socket
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow, WmsRunReport, WmsStates
from lsst.daf.butler import ButlerConfig, DimensionUniverse
from lsst.resources import ResourcePath

from ..atomic_write import atomic_write
from ..datastore.quantum_butler import read_datastore
from ..detached.job import DetachedJob, JobState
from ..errors import SessionError, UserError
from ..report.folder import find_attempts, read_json
from ..spark.java import find_java_home
from ..text import best_effort, translate_errors
from .translate import RUN_STEP, translate

_CONNECT_SECONDS = 5.0

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


class SparkWorkflow(BaseWmsWorkflow):  # type: ignore[misc]
    """Workflow of a submission, a detached job in the submit directory."""

    def __init__(self, name: str, config: BpsConfig, job: DetachedJob):
        super().__init__(name, config)
        self.job = job
        self.submit_path = str(job.folder)

    def write(self, out_prefix: str) -> None:
        """Do nothing; the job is written when it is made.  See `lsst.ctrl.bps.BaseWmsWorkflow`."""


class SparkService(BaseWmsService):  # type: ignore[misc]
    """Workflow service that runs all quanta of a submission as one detached Spark run.

    Quanta that have succeeded don't run again after a restart; `cancel` keeps finished quanta.
    """

    def prepare(
        self, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str | None = None
    ) -> BaseWmsWorkflow:
        folder = Path(config["submitPath"] if out_prefix is None else out_prefix)
        steps, details = translate(config, generic_workflow, folder)
        workflow = SparkWorkflow(generic_workflow.name, config, DetachedJob.create(folder, steps, details))
        workflow.service_class = f"{type(self).__module__}.{type(self).__name__}"
        return workflow

    def submit(self, workflow: SparkWorkflow, **kwargs: Any) -> BaseWmsWorkflow:
        workflow.job.start()
        workflow.run_id = str(workflow.job.folder)
        with best_effort("`bps report` will not list this submission without its ID"):
            known = _index().read_text().splitlines() if _index().exists() else []
            with atomic_write(str(_index())) as path:
                path.write_text("".join(f"{line}\n" for line in dict.fromkeys([*known, workflow.run_id])))
        return workflow

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        try:
            job = DetachedJob(Path(wms_workflow_id))
            job.start()
        except UserError as exc:
            return None, None, str(exc)
        return str(job.folder), job.details["name"], ""

    def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        jobs = [DetachedJob(Path(wms_id))] if wms_id is not None else _recall(user)
        return [str(job.folder) for job in jobs if job.read_state().state == "running"]

    def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        if wms_workflow_id is not None:
            try:
                return [_make_report(DetachedJob(Path(wms_workflow_id)))], ""
            except UserError as exc:
                return [], str(exc)
        reports, unread = [], []
        for job in _recall(user, days=hist or 0):
            try:
                reports.append(_make_report(job))
            except UserError as exc:
                unread.append(str(exc))
        return reports, "\n".join(unread)

    def get_status(
        self, wms_workflow_id: str, hist: float = 1, is_global: bool = False
    ) -> tuple[WmsStates, str]:
        try:
            return _run_state(DetachedJob(Path(wms_workflow_id)).read_state())
        except UserError as exc:
            return WmsStates.UNKNOWN, str(exc)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        try:
            job = DetachedJob(Path(wms_id))
            with best_effort("The request to stop the run can't be written to the datastore"):
                # The driver may run on the cluster, where a signal from this machine doesn't arrive.
                for attempt in find_attempts(_find_roots(job), job.details["output_run"])[-1:]:
                    attempt.cancel_file.write(b"")
            job.cancel()
        except UserError as exc:
            return False, str(exc)
        return True, ""

    def run_submission_checks(self) -> None:
        status, message = self.ping(None)
        if status:
            raise SessionError(message)

    def ping(self, pass_thru: str | None) -> tuple[int, str]:
        """Check that Java is installed, and that the master of a cluster answers.

        The address of the master is the value of ``bps ping --pass-thru``.
        """
        try:
            find_java_home()
            site = str(self.config["computeSite"]) if "computeSite" in (self.config or {}) else ""
            master = pass_thru
            if master is None and isinstance(self.config, BpsConfig):
                options = {"curvals": {"curr_site": site}, "default": ""}
                master = str(self.config.search("sparkMaster", opt=options)[1])
            if master and master.startswith("spark://"):
                address = urllib.parse.urlsplit(master.split(",")[0])
                socket.create_connection((address.hostname, address.port or 7077), _CONNECT_SECONDS).close()
        except UserError as exc:
            return 1, str(exc)
        except OSError as exc:
            return 1, f"The master {master} does not answer: {exc}"
        return 0, ""


def _index() -> Path:
    """Return the file with the submit directories of this user."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "spark-butler", "submitted.txt")


def _recall(user: str | None, *, days: float = 0) -> list[DetachedJob]:
    """Return the jobs of this user that are running or ended a few days ago at most."""
    if not _index().exists():
        return []
    jobs = []
    for line in _index().read_text().splitlines():
        with best_effort(f"The submission {line} is left out", level=10):
            job = DetachedJob(Path(line))
            if _is_recent(job, days) and user in (None, job.details["operator"]):
                jobs.append(job)
    return jobs


def _run_state(state: JobState) -> tuple[WmsStates, str]:
    """Return the state of a job, with a message if its process has ended unexpectedly."""
    message = ""
    if state.state == "lost":
        message = f"The process of the submission on {state.host} has ended; `bps restart` resumes it."
    return _STATES.get(state.state, WmsStates.UNKNOWN), message


def _is_recent(job: DetachedJob, days: float) -> bool:
    """Return whether a job is running, or ended at most some days ago."""
    state = job.read_state()
    if state.state in ("prepared", "running"):
        return True
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(state.updated)
    return age < datetime.timedelta(days=days)


def _find_roots(job: DetachedJob) -> list[ResourcePath]:
    """Return the roots of the datastores of a job's repository."""
    config = ButlerConfig(job.details["repository"])
    roots = read_datastore(config, DimensionUniverse()).roots.values()
    return [root for root in roots if root is not None]


def _make_report(job: DetachedJob) -> WmsRunReport:
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
        state=_run_state(state)[0],
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
    attempts = find_attempts(_find_roots(job), job.details["output_run"])
    content = read_json(attempts[-1].status_file) if attempts else None
    return {task["label"]: task for task in (content or {}).get("tasks", ())}
