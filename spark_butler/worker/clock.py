"""Clocks of a worker: what its slot does between quanta, and when it imports things.

Runs in workers and in the daemon that forks them; outcomes take the times to the driver.
"""

from __future__ import annotations

__all__ = ["SlotClock", "note_imports", "process_start", "start_of_imports", "take_import_times"]

import dataclasses
import os
import socket
import time
from pathlib import Path

from ..model.outcomes import ImportTime, QuantumOutcome

_LEAST_SECONDS = 0.001
# Position in /proc/self/stat, behind the name.
_START_TIME = 19

_times: list[ImportTime] = []
_has_noted = False


class SlotClock:
    """Measures the time that a slot spends on temporaries between its quanta.

    Times are those of the wall clock, since a child's and its parent's are
    compared.
    """

    def __init__(self) -> None:
        self._shuffle = 0.0
        self._until = 0.0
        self._until_told = 0.0

    def note_shuffle(self, began: float) -> None:
        """Note that temporaries were received or sent from then until now; no moment counts twice.

        Parameters
        ----------
        began
            When that began, in seconds since the epoch.
        """
        now = time.time()
        self._shuffle += max(0.0, now - max(began, self._until))
        self._until = now

    def stamp(self, outcome: QuantumOutcome) -> QuantumOutcome:
        """Add to an outcome what was measured since the last one.

        Parameters
        ----------
        outcome
            The outcome of a quantum of this slot.
        """
        if outcome.started:
            # A child may have begun its next quantum before its parent had sent on all of the one before.
            self._shuffle -= max(0.0, self._until_told - outcome.started)
        self._until_told = self._until
        imports = take_import_times()
        seconds = max(0.0, self._shuffle)
        if not imports and not seconds:
            return outcome
        self._shuffle -= seconds
        return dataclasses.replace(outcome, shuffle_seconds=seconds, imports=imports)


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
