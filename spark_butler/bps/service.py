"""Service that BPS calls to prepare, submit, watch and cancel a submission.

Runs in the process of the ``bps`` commands.  The ID of a submission is its submit directory.
"""

from __future__ import annotations

__all__ = ["SparkService", "SparkWorkflow"]

import os
import socket
import urllib.parse
from pathlib import Path
from typing import Any

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow, WmsRunReport, WmsStates

from ..atomic_write import atomic_write
from ..detached.job import DetachedJob
from ..errors import SessionError, UserError
from ..report.folder import find_attempts
from ..spark.java import find_java_home
from ..text import best_effort
from .status import find_roots, is_recent, make_report, run_state
from .translate import translate

_CONNECT_SECONDS = 5.0


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
                return [make_report(DetachedJob(Path(wms_workflow_id)))], ""
            except UserError as exc:
                return [], str(exc)
        return [make_report(job) for job in _recall(user, days=hist or 0)], ""

    def get_status(
        self, wms_workflow_id: str, hist: float = 1, is_global: bool = False
    ) -> tuple[WmsStates, str]:
        try:
            return run_state(DetachedJob(Path(wms_workflow_id)).read_state())
        except UserError as exc:
            return WmsStates.UNKNOWN, str(exc)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        try:
            job = DetachedJob(Path(wms_id))
            with best_effort("The request to stop the run can't be written to the datastore"):
                # The driver may run on the cluster, where a signal from this machine doesn't arrive.
                for attempt in find_attempts(find_roots(job), job.details["output_run"])[-1:]:
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
            if is_recent(job, days) and user in (None, job.details["operator"]):
                jobs.append(job)
    return jobs
