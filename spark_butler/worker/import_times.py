"""When a process has imported what quanta need, to be told to the driver once."""

from __future__ import annotations

__all__ = ["ImportTime", "note_imports", "process_start", "start_of_imports", "take_import_times"]

import dataclasses
import os
import socket
import time
from pathlib import Path

_LEAST_SECONDS = 0.001
# Position in /proc/self/stat, behind the name.
_START_TIME = 19


@dataclasses.dataclass(frozen=True, slots=True)
class ImportTime:
    """A time that a process spent on imports."""

    process: str
    """Host name and process ID; workers that inherit it tell of the same."""

    began: float
    """When it began, in seconds since the epoch."""

    seconds: float
    """How long it took, in seconds."""


_times: list[ImportTime] = []
_has_noted = False


def note_imports(began: float) -> None:
    """Note that this process has imported things from then until now.

    What was noted of shorter times within that is forgotten, and a millisecond is not worth it.

    Parameters
    ----------
    began
        When it began, in seconds since the epoch.
    """
    global _has_noted
    _has_noted = True
    seconds = time.time() - began
    if seconds < _LEAST_SECONDS:
        return
    _times[:] = [each for each in _times if each.began < began]
    _times.append(ImportTime(f"{socket.gethostname()}:{os.getpid()}", began, seconds))


def take_import_times() -> tuple[ImportTime, ...]:
    """Take what this process, and those that it was forked from, have noted since the last call."""
    taken = tuple(_times)
    _times.clear()
    return taken


def start_of_imports() -> float:
    """When the imports that are going on have begun, in seconds since the epoch.

    That is now, if this process or the one that it was forked from has noted
    its imports before.  If not, nobody was there to look at the clock; the
    processor time of the process then stands for them.
    """
    return time.time() - (0.0 if _has_noted else time.process_time())


def process_start() -> float:
    """When this process was started, in seconds since the epoch; about so where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[-1].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = time.process_time()
    return time.time() - age
