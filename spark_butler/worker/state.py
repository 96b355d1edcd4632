"""What a worker keeps from group to group: clients, butlers, and a clock.

The worker entry of Spark makes one for its process, before it is forked from the
daemon, and the serial backend makes its own.
"""

from __future__ import annotations

__all__ = ["WorkerClock", "WorkerState"]

import dataclasses
import logging
import os
import socket
import time
from pathlib import Path

from lsst.daf.butler.cli.cliLog import CliLog
from lsst.utils.threads import disable_implicit_threading

from ..datastore.quantum_butler import QuantumButlers
from ..datastore.s3_clients import S3Clients
from ..model.outcomes import ImportTime, QuantumOutcome
from ..model.work import WorkerContext
from ..text import best_effort
from .preload import Preloader

_ENVIRONMENT = {
    # Nothing may be left behind by a worker that is killed.
    "DAF_BUTLER_CACHE_EXPIRATION_MODE": "disabled",
    "LSST_RESOURCES_NUM_WORKERS": "1",
    "LSST_S3_USE_THREADS": "False",
}
_LEAST_SECONDS = 0.001
# Position in /proc/self/stat, behind the name.
_START_TIME = 19


class WorkerClock:
    """Measures the time that a worker spends on temporaries between its quanta, and on imports.

    Times are those of the wall clock, since a child's and its parent's are
    compared.  A worker inherits the import times of the processes that it was
    forked from.
    """

    def __init__(self) -> None:
        self._imports: list[ImportTime] = []
        self._has_recorded_imports = False
        self.begin_run()

    def begin_run(self) -> None:
        """Drop what is left of the times of another run."""
        self._shuffle = 0.0
        self._until = 0.0
        self._until_stamped = 0.0

    def record_shuffle(self, began: float) -> None:
        """Record that temporaries were received or sent from then until now; no moment counts twice.

        Parameters
        ----------
        began
            When that began, in seconds since the epoch.
        """
        now = time.time()
        self._shuffle += max(0.0, now - max(began, self._until))
        self._until = now

    def record_imports(self, began: float) -> None:
        """Record that this process has imported things from then until now, unless it took no time.

        Shorter times within that one are dropped.

        Parameters
        ----------
        began
            When it began, in seconds since the epoch.
        """
        self._has_recorded_imports = True
        seconds = time.time() - began
        if seconds < _LEAST_SECONDS:
            return
        self._imports = [each for each in self._imports if each.began < began]
        self._imports.append(ImportTime(f"{socket.gethostname()}:{os.getpid()}", began, seconds))

    def record_startup(self) -> None:
        """Record that this process has done nothing but import things since it was started."""
        self.record_imports(_process_start())

    def start_of_imports(self) -> float:
        """Return when the imports that are going on began, in seconds since the epoch.

        That is now, if this process or the one that it was forked from has
        recorded its imports before.  If not, the processor time of the process
        stands for them.
        """
        return time.time() - (0.0 if self._has_recorded_imports else time.process_time())

    def pop_imports(self) -> tuple[ImportTime, ...]:
        """Return the import times that were recorded since the last call."""
        recorded, self._imports = tuple(self._imports), []
        return recorded

    def stamp(self, outcome: QuantumOutcome) -> QuantumOutcome:
        """Add to an outcome what was measured since the last one.

        Parameters
        ----------
        outcome
            The outcome of a quantum of this worker.
        """
        if outcome.started:
            # A child may have begun its next quantum before its parent had sent on all of the one before.
            self._shuffle -= max(0.0, self._until_stamped - outcome.started)
        self._until_stamped = self._until
        imports = self.pop_imports()
        seconds = max(0.0, self._shuffle)
        if not imports and not seconds:
            return outcome
        self._shuffle -= seconds
        return dataclasses.replace(outcome, shuffle_seconds=seconds, imports=imports)


def _process_start() -> float:
    """Return when this process was started, in seconds since the epoch; without /proc, a guess."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[-1].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = time.process_time()
    return time.time() - age


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker keeps from group to group; the processes that it forks inherit it."""

    clients: S3Clients = dataclasses.field(default_factory=S3Clients)
    """Clients of object stores, with the files that they keep in memory."""

    butlers: QuantumButlers = dataclasses.field(default_factory=QuantumButlers)
    """The datastore of the last context, to be cloned."""

    clock: WorkerClock = dataclasses.field(default_factory=WorkerClock)
    """Measures the time between quanta."""

    preloader: Preloader = dataclasses.field(default_factory=Preloader)
    """Imports modules for children."""

    def prepare(self, context: WorkerContext) -> None:
        """Set up this process for a run: environment, logging, threads and datastore."""
        for name, value in (*context.environment.items(), *_ENVIRONMENT.items()):
            os.environ.setdefault(name, value)
        disable_implicit_threading()
        if context.log_state:
            if not CliLog.configState:
                CliLog.replayConfigState(list(context.log_state))
            # Without a handler, Python would write warnings to standard error.
            logging.getLogger().addHandler(logging.NullHandler())
        elif logging.getLogger("lsst").level == logging.NOTSET:
            logging.getLogger("lsst").setLevel(logging.INFO)
        if context.butler_config is not None:
            # The first quantum fails with the same error.
            with best_effort("The datastore can't be set up", level=logging.DEBUG):
                self.butlers.prepare(context.butler_config, context.universe)
