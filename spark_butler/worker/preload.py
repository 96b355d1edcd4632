"""Import in the parent what forked children had to import, so that later forks inherit it.

Runs in workers and in the daemon that forks them.  Threads do not survive a fork:
a module that starts some when it is imported is left to the children.
"""

from __future__ import annotations

__all__ = ["NOT_PRELOADED_VARIABLE", "Imported", "Preloader", "count_threads", "imported_since"]

import dataclasses
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable

from ..text import best_effort

logger = logging.getLogger(__name__)

NOT_PRELOADED_VARIABLE = "SPARK_BUTLER_NOT_PRELOADED"
"""Environment variable that names the modules that a daemon has found to start threads, with commas."""


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
    """List the modules that this process has imported.

    Parameters
    ----------
    before
        Names of the modules that it had before.
    """
    names = tuple(
        name
        for name, module in list(sys.modules.items())
        # Some names stand for what is in another module, or for nothing.
        if name not in before and getattr(module, "__spec__", None) is not None
    )
    return Imported(names, count_threads() > 1)


class Preloader:
    """Imports modules for the processes that this one forks."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._threaded = set(os.environ.get(NOT_PRELOADED_VARIABLE, "").split(","))

    def find_missing(self, names: Iterable[str]) -> list[str]:
        """Return the modules that were not imported here, nor tried before, nor start threads.

        Parameters
        ----------
        names
            Names of modules.
        """
        done = self._tried | self._threaded | sys.modules.keys()
        return [name for name in names if name not in done]

    def import_modules(self, names: Iterable[str]) -> list[str]:
        """Import modules, each once in the life of this process.

        Parameters
        ----------
        names
            Names of modules; those that can't be imported here are left alone.

        Returns
        -------
        threaded
            Those that have started threads.
        """
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
        self, names: Iterable[str], ask: Callable[[Callable[[], list[str]]], list[str] | None]
    ) -> bool:
        """Import modules that start no threads; find out which do in another process.

        Parameters
        ----------
        names
            Names of modules.
        ask
            Calls a function in a forked process; returns `None` if that has
            died.

        Returns
        -------
        is_complete
            Whether all of them may be imported in this process.
        """
        names = list(names)
        while missing := self.find_missing(names):
            threaded = ask(lambda missing=missing: self.import_modules(missing))  # type: ignore[misc]
            if threaded is None:
                self._tried.update(missing)
                return False
            if not threaded:
                self.import_modules(missing)
                break
            self.exclude(threaded)
        return self._threaded.isdisjoint(names)

    def exclude(self, names: Iterable[str]) -> None:
        """Leave modules to children, and log a warning that names them.

        Parameters
        ----------
        names
            Names of modules that start threads.
        """
        self._threaded.update(names)
        for name in names:
            logger.warning(
                "Module %s starts threads when it is imported, which do not survive a fork; each process "
                "that runs quanta imports it anew.  Start the threads when they are first used.",
                name,
            )
