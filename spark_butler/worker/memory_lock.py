"""A host-wide reader-writer lock: groups share it, a memory-hungry group takes it exclusively.

Runs in workers.
"""

from __future__ import annotations

__all__ = ["MemoryLock"]

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from ..processes import try_lock


class MemoryLock:
    """A lock that many processes of a host share and one process takes exclusively.

    Parameters
    ----------
    folder
        Directory for its two files, common to the processes to keep apart.

    Notes
    -----
    The kernel releases the lock of a process that ends, however it ends.  A
    process that wants the lock exclusively first closes the entrance to
    newcomers and then waits for the holders.  On a file system without locks
    no process waits.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @contextlib.contextmanager
    def acquire(self, *, exclusive: bool) -> Iterator[None]:
        """Wait for the lock and hold it.

        Parameters
        ----------
        exclusive
            Whether no other process may hold it meanwhile.
        """
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        with self._open("entrance") as entrance, self._open("inside") as inside:
            try_lock(entrance, kind)
            try_lock(inside, kind)
            try_lock(entrance, fcntl.LOCK_UN)
            try:
                yield
            finally:
                # Not left to the closing of the file: a process that was forked meanwhile has it open, too.
                try_lock(inside, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with (self._folder / f"spark-butler-{name}.lock").open("ab") as file:
            yield file.fileno()
