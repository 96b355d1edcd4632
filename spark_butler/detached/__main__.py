"""Main program of a detached job, which runs its steps one after another, with retries.

Runs in the job's own process, which forwards SIGTERM, SIGINT and SIGHUP to the running step.
"""

from __future__ import annotations

__all__: list[str] = []

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from .job import DetachedJob, JobState, Step, utc_now

_SECONDS_BETWEEN_TRIES = 5.0


class _Runner:
    """Runner of the steps of a job."""

    def __init__(self, job: DetachedJob):
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal to the running step, and start no further step."""
        self._is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def run(self) -> int:
        """Run the steps, and return the exit status of the first that failed; 0 if none did."""
        before = self._job.read_state().steps
        state = JobState("running", os.getpid(), started=utc_now())
        first_failure = 0
        for step in self._job.steps:
            if before.get(step.name, {}).get("state") == "succeeded":
                state.steps[step.name] = before[step.name]
                continue
            # If a step runs again, the steps after it run again, too.
            before = {}
            if self._is_stopping or (first_failure and not step.always):
                continue
            self._job.write_state(state)
            status = self._run_step(step, state)
            first_failure = first_failure or status
        if self._is_stopping:
            state.state = "stopped"
        else:
            state.state = "failed" if first_failure else "succeeded"
        self._job.write_state(state)
        return first_failure

    def _run_step(self, step: Step, state: JobState) -> int:
        """Run a step with its retries, and return the exit status of the last attempt."""
        entry = state.steps[step.name] = {"state": "running", "started": utc_now()}
        for tries in range(step.retries + 1):
            self._job.write_state(state)
            status = self._run_once(step)
            entry.update(exit_status=status, tries=tries + 1)
            if not status or self._is_stopping or status in step.final_statuses or tries == step.retries:
                break
            time.sleep(_SECONDS_BETWEEN_TRIES)
        entry.update(state="failed" if status else "succeeded", ended=utc_now())
        return status

    def _run_once(self, step: Step) -> int:
        """Run the command of a step, and return its exit status.

        As in a shell, that is 127 if it can't start, and 128 + N after signal N.
        """
        with open(self._job.log_file(step.name), "ab") as log:
            try:
                self._process = subprocess.Popen(
                    step.command,
                    env={**os.environ, **step.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except OSError as exc:
                log.write(f"Error: {step.command[0]} can't be started: {exc}\n".encode())
                return 127
            if self._is_stopping:
                self._process.terminate()
            status = self._process.wait()
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    runner = _Runner(DetachedJob(Path(sys.argv[1])))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, runner.stop)
    sys.exit(runner.run())
