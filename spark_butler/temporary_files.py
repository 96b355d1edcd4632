"""A folder for the temporary files of a process that may be killed."""

from __future__ import annotations

__all__ = ["TemporaryFolder"]

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, Self

from lsst.resources.utils import get_tempdir

_PREFIX = "spark-butler-child-"


class TemporaryFolder:
    """A folder that is removed with all that a child has left in it, however the child ended.

    Made before the fork; the child calls `use`.

    Notes
    -----
    Where this process is killed, too, the folder stays until `remove_abandoned`
    is called on the same machine.  That a folder is abandoned is seen by its
    lock, which the kernel gives back when all processes have ended that had it.
    """

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=get_tempdir()))
        self._lock = os.open(self._path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)
        return False

    def use(self) -> None:
        """Let this process make its temporary files in the folder from now on."""
        tempfile.tempdir = str(self._path)
        # lsst.resources looks there first, and so do programs that a task may start.
        os.environ.update(dict.fromkeys(("LSST_RESOURCES_TMPDIR", "TMPDIR"), str(self._path)))
        get_tempdir.cache_clear()

    @staticmethod
    def remove_abandoned() -> None:
        """Remove the folders of processes that were killed."""
        for path in Path(get_tempdir()).glob(f"{_PREFIX}*"):
            # Another process may remove it at the same time, or it is another user's.
            with contextlib.suppress(OSError):
                lock = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)
