"""Lets the groups of one machine run side by side, and a group that needs much memory alone."""

from __future__ import annotations

__all__ = ["Turnstile"]

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Turnstile:
    """A lock that many may share and one may have alone.

    Parameters
    ----------
    folder
        Directory for its two files, common to those it is to keep apart.

    Notes
    -----
    The kernel gives a lock back when the process that has it ends, however
    that happens.  Who wants to be alone closes the entrance to newcomers and
    then waits for those inside.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @contextlib.contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        """Wait for a place and keep it.

        Parameters
        ----------
        alone
            Whether nobody else may be inside.
        """
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        with self._open("entrance") as entrance, self._open("inside") as inside:
            fcntl.flock(entrance, kind)
            fcntl.flock(inside, kind)
            fcntl.flock(entrance, fcntl.LOCK_UN)
            try:
                yield
            finally:
                # Not left to the closing of the file: a process that was forked meanwhile has it open, too.
                fcntl.flock(inside, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with (self._folder / f"spark-butler-{name}.lock").open("ab") as file:
            yield file.fileno()
