"""State that a worker keeps from group to group: clients, butlers, a clock, and a preloader of modules.

Runs in workers and their children.  Spark's daemon creates the state before it forks the workers; the serial
backend creates its own.
"""

from __future__ import annotations

__all__ = [
    "NOT_PRELOADED_VARIABLE",
    "Imported",
    "Preloader",
    "WorkerClock",
    "WorkerState",
    "count_threads",
    "imported_since",
]

import dataclasses
import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from lsst.daf.butler.cli.cliLog import CliLog
from lsst.utils.threads import disable_implicit_threading

from ..datastore.quantum_butler import QuantumButlers
from ..datastore.s3_clients import S3Clients
from ..masking import mask_logs
from ..model.outcomes import ImportTime, QuantumOutcome
from ..model.work import WorkerContext
from ..text import best_effort

logger = logging.getLogger(__name__)

NOT_PRELOADED_VARIABLE = "SPARK_BUTLER_NOT_PRELOADED"
"""Environment variable that names the modules that a daemon has found to start threads, with commas."""

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
        """Drop the times of another run."""
        self._shuffle = 0.0
        self._until = 0.0
        self._until_stamped = 0.0

    def record_shuffle(self, began: float) -> None:
        """Record that temporaries were received or sent since a time; overlapping times count once."""
        now = time.time()
        self._shuffle += max(0.0, now - max(began, self._until))
        self._until = now

    def record_imports(self, began: float) -> None:
        """Record imports of this process since a time, which replace shorter ones within it."""
        self._has_recorded_imports = True
        seconds = time.time() - began
        if seconds < _LEAST_SECONDS:
            return
        self._imports = [each for each in self._imports if each.began < began]
        self._imports.append(ImportTime(f"{socket.gethostname()}:{os.getpid()}", began, seconds))

    def record_startup(self) -> None:
        """Record that this process has only imported modules since it was started."""
        self.record_imports(_process_start())

    def start_of_imports(self) -> float:
        """Return when the current imports began, in seconds since the epoch.

        They begin now if this process, or the process that forked it, has recorded imports before.
        Otherwise the processor time of the process so far counts as time of imports.
        """
        return time.time() - (0.0 if self._has_recorded_imports else time.process_time())

    def pop_imports(self) -> tuple[ImportTime, ...]:
        """Return the import times that were recorded since the last call."""
        recorded, self._imports = tuple(self._imports), []
        return recorded

    def stamp(self, outcome: QuantumOutcome) -> QuantumOutcome:
        """Add the times since the last outcome to an outcome."""
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
class Imported:
    """The imports of a child."""

    names: tuple[str, ...]
    """Names of modules, in the order in which they were imported."""

    has_threads: bool = False
    """Whether the child has threads now, which may come from an import."""


def count_threads() -> int:
    """Return the number of threads of this process, those of libraries in C included."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def imported_since(before: Collection[str]) -> Imported:
    """List the modules that this process has imported in addition to the given ones."""
    names = tuple(
        name
        for name, module in list(sys.modules.items())
        # Some names refer to attributes of another module, or to no module.
        if name not in before and getattr(module, "__spec__", None) is not None
    )
    return Imported(names, count_threads() > 1)


class Preloader:
    """Imports in a parent what its children had to import, so that later forks inherit it.

    Threads do not survive a fork, so children import modules that start threads themselves.
    """

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._threaded = set(os.environ.get(NOT_PRELOADED_VARIABLE, "").split(","))

    def find_missing(self, names: Iterable[str]) -> list[str]:
        """Return the modules that were neither imported nor tried before, and don't start threads."""
        done = self._tried | self._threaded | sys.modules.keys()
        return [name for name in names if name not in done]

    def import_modules(self, names: Iterable[str]) -> list[str]:
        """Import what can be imported, each module at most once; return the modules that start threads."""
        threaded = []
        n_threads = count_threads()
        for name in self.find_missing(names):
            self._tried.add(name)
            # The child that needs it raises the error.
            with best_effort(f"A worker can't import {name}", level=logging.DEBUG):
                importlib.import_module(name)
            before, n_threads = n_threads, count_threads()
            if n_threads > before:
                threaded.append(name)
        return threaded

    def preload(
        self, names: Iterable[str], call: Callable[[Callable[[], list[str]]], list[str] | None]
    ) -> bool:
        """Import modules that start no threads; return whether they all may be imported in this process.

        ``call`` calls a function in a forked process to find the modules that start
        threads, and returns `None` if that process has died.
        """
        names = list(names)
        while missing := self.find_missing(names):
            threaded = call(lambda missing=missing: self.import_modules(missing))  # type: ignore[misc]
            if threaded is None:
                self._tried.update(missing)
                return False
            if not threaded:
                self.import_modules(missing)
                break
            self.exclude(threaded)
        return self._threaded.isdisjoint(names)

    def exclude(self, names: Iterable[str]) -> None:
        """Leave modules that start threads to children, and log a warning that names them."""
        self._threaded.update(names)
        for name in names:
            logger.warning(
                "Module %s starts threads when it is imported, which do not survive a fork; each process "
                "that runs quanta imports it anew.  Start the threads when they are first used.",
                name,
            )


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerState:
    """State that a worker keeps from group to group, and that its forked children inherit."""

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
        for name, value in context.environment.items():
            os.environ.setdefault(name, value)
        # A killed worker must not leave files behind.
        os.environ.setdefault("DAF_BUTLER_CACHE_EXPIRATION_MODE", "disabled")
        disable_implicit_threading()
        mask_logs()
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
