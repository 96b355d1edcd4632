"""Detached job in a folder.  Runs in the command that submits or watches it, and in its own process."""

from __future__ import annotations

__all__ = ["DetachedJob", "JobState", "Step"]

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import psutil

from ..atomic_write import atomic_write
from ..errors import OptionsError, UserError

_MODULE = "spark_butler.detached"
_SECONDS_BETWEEN = 0.1


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a job."""

    name: str
    command: tuple[str, ...]
    always: bool = False
    """Whether the step runs even if an earlier step has failed."""
    retries: int = 0
    final_statuses: tuple[int, ...] = ()
    """Exit statuses after which the step is not retried."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables in addition to those of the submitting process."""


@dataclasses.dataclass
class JobState:
    """State of a job, as its process last wrote it."""

    state: str = "prepared"
    """``prepared``, ``running``, ``succeeded``, ``failed``, ``stopped``; ``lost`` if its process died."""

    pid: int = 0
    host: str = ""
    """Machine on which the process runs."""
    started: str = ""
    updated: str = ""
    """Time in UTC at which the state was written."""
    steps: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """``state``, ``exit_status``, ``started`` and ``ended`` of each step that has begun, by name."""


class DetachedJob:
    """A job that `create` has written into a folder."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        try:
            content = json.loads((self.folder / "job.json").read_text())
            self.steps = [Step(**{**step, "command": tuple(step["command"])}) for step in content["steps"]]
            self.directory = Path(content["directory"])
            self.details: dict[str, Any] = content["details"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UserError(f"The folder {str(folder)!r} holds no submitted job: {exc}") from exc

    @classmethod
    def create(cls, folder: Path, steps: Sequence[Step], details: Mapping[str, Any]) -> Self:
        """Write the folder of a new job; its details are other data to keep, for `json.dumps`."""
        file = folder / "job.json"
        if file.exists():
            raise OptionsError(f"The folder {str(folder)!r} holds a submitted job already; choose another.")
        content = {
            "steps": [dataclasses.asdict(step) for step in steps],
            "directory": os.getcwd(),
            "details": details,
        }
        with atomic_write(str(file)) as path:
            path.write_text(json.dumps(content, indent=2))
        return cls(folder)

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def log_file(self, step: str) -> Path:
        return self.folder / f"{step}.log"

    def start(self) -> int:
        """Start the process of the job without a controlling terminal, and return its ID.

        Steps that have succeeded before are skipped.
        """
        state = self.read_state()
        if state.state == "running":
            raise UserError(f"The job in {self.folder} is running already.")
        self.write_state(dataclasses.replace(state, state="running", pid=0))
        with open(self.log_file("job"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(self.folder)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self.read_state().pid:
            if process.poll() is not None:
                self.write_state(dataclasses.replace(state, state="failed"))
                raise UserError(f"The job can't be started; see {self.log_file('job')}.")
            time.sleep(_SECONDS_BETWEEN)
        return process.pid

    def read_state(self) -> JobState:
        """Read the state; a job is lost if its process has ended without writing a final state."""
        try:
            state = JobState(**json.loads(self._state_file.read_text()))
        except (OSError, ValueError, TypeError):
            return JobState()
        here = state.host == socket.gethostname()
        if state.state == "running" and state.pid and here and not _is_alive(state.pid):
            state.state = "lost"
        return state

    def write_state(self, state: JobState) -> None:
        state.host = socket.gethostname()
        state.updated = utc_now()
        with atomic_write(str(self._state_file)) as path:
            path.write_text(json.dumps(dataclasses.asdict(state), indent=2))

    def wait(self, seconds: float) -> JobState:
        """Wait until the job has ended, at most for some time."""
        until = time.monotonic() + seconds
        while (state := self.read_state()).state == "running" and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN)
        return state

    def cancel(self) -> None:
        """Stop the job by SIGTERM, if it is running on this machine."""
        state = self.read_state()
        if state.state != "running":
            raise UserError(f"The job in {self.folder} is not running ({state.state}).")
        if state.host != socket.gethostname():
            raise UserError(f"The job in {self.folder} runs on {state.host}; cancel it there.")
        os.kill(state.pid, signal.SIGTERM)


def find_program(spark_submit: Sequence[str] | None, wanted_by: str) -> list[str]:
    """Return the first words of a command line of ``spark-butler``, with spark-submit if it has options.

    ``wanted_by`` begins the error message without spark-submit, such as "--spark-submit needs".
    """
    if spark_submit is None:
        return [sys.executable, "-m", "spark_butler.cli"]
    if (program := shutil.which("spark-submit")) is None:
        raise OptionsError(f"{wanted_by} the program spark-submit, which is not in the PATH.")
    return [program, *spark_submit, str(files("spark_butler.cli").joinpath("__main__.py"))]


def utc_now() -> str:
    """Return the present time in the format of the state file."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_alive(pid: int) -> bool:
    """Return whether a process ID still belongs to the job and not to a later process."""
    with contextlib.suppress(psutil.Error):
        return _MODULE in psutil.Process(pid).cmdline()
    return False
