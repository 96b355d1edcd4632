"""Measurement of a command: wall time, processor time and memory of all processes that it starts."""

from __future__ import annotations

__all__ = ["Usage", "cpu_of_family", "run_metered"]

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

_PR_SET_CHILD_SUBREAPER = 36
# A sample reads the memory maps of all processes, which itself takes processor time.
_SAMPLE_SECONDS = 1.0
_GRACE_SECONDS = 10.0


class Usage(NamedTuple):
    """Resources that a command has used."""

    wall: float
    """Wall time in seconds."""

    cpu: float
    """Processor time of all its processes, in seconds."""

    peak: dict[str, int]
    """Greatest sampled memory in bytes of the process itself, of JVMs, and of all other processes."""

    status: int
    """Exit status."""

    output: str
    """Output of the command."""

    stopped: bool = False
    """Whether the command was stopped before its end."""


def cpu_of_family(apart: int | None = None) -> tuple[float, float]:
    """Return the processor time of this process and its descendants, including those that have ended.

    Parameters
    ----------
    apart
        ID of a process to count separately.

    Returns
    -------
    total
        Time of all other processes, in seconds.
    its_own
        Time of that process, in seconds.
    """
    total = its_own = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent = sum(times[:4])
        if process.pid == apart:
            its_own = spent
        else:
            total += spent
    return total, its_own


def run_metered(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    longest: float | None = None,
) -> Usage:
    """Run a command until it and all processes that it leaves behind have ended.

    Parameters
    ----------
    command
        The command.
    environment
        Its environment.
    folder
        Its working directory, in which its output is kept.
    longest
        Seconds after which the command is stopped.

    Notes
    -----
    Processes that lose their parent become children of this process, so the kernel
    adds their time to that of its ended children.  It doesn't do so if the parent
    ignores the end of its children, as PySpark's daemon does.  The time of such
    processes is that of the last sample.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    others = {process.pid for process in psutil.Process().children()}
    before = _cpu_of_children()
    peak: dict[str, int] = {}
    unwaited: dict[int, float] = {}
    stopped = False
    started = time.perf_counter()
    with open(folder / "output", "wb") as stream:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=stream, stderr=subprocess.STDOUT
        )
        while True:
            _sample(process.pid, peak, unwaited)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_SECONDS)
                break
            if longest is not None and not stopped and time.perf_counter() - started > longest:
                stopped = True
                process.kill()
        wall = time.perf_counter() - started
        for pid in _reap(others):
            unwaited.pop(pid, None)
    return Usage(
        wall,
        _cpu_of_children() - before + sum(unwaited.values()),
        peak,
        process.returncode,
        (folder / "output").read_text(errors="replace"),
        stopped,
    )


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _sample(pid: int, peak: dict[str, int], unwaited: dict[int, float]) -> None:
    """Sample a process and its descendants.

    Adds up their memory, with shared memory divided among the processes that share
    it.  Keeps the processor time of processes whose end no process waits for.
    """
    now: dict[str, int] = {}
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            role = "driver" if process.pid == pid else "jvm" if process.name() == "java" else "others"
            now[role] = now.get(role, 0) + process.memory_full_info().pss
            if process.pid != pid and _ignores_children(process.ppid()):
                unwaited[process.pid] = sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    for role, size in now.items():
        peak[role] = max(peak.get(role, 0), size)


def _ignores_children(pid: int) -> bool:
    """Return whether a process ignores the end of its children, so that the kernel drops their times."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGCHLD - 1) & 1)


def _reap(others: set[int]) -> list[int]:
    """Wait for the processes that the command has left behind, kill those that don't end, and return them."""
    deadline = time.monotonic() + _GRACE_SECONDS
    reaped = []
    while left := [child for child in psutil.Process().children() if child.pid not in others]:
        for child in left:
            if time.monotonic() > deadline:
                child.send_signal(signal.SIGKILL)
            reaped.append(os.waitpid(child.pid, 0 if time.monotonic() > deadline else os.WNOHANG)[0])
        time.sleep(0.05)
    return reaped
