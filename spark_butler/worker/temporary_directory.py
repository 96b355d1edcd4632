"""A directory for the temporary files of a child that may be killed.

Made and removed by workers, used by their children.
"""

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

from ..processes import try_lock

_PREFIX = "spark-butler-child-"
_LOCK = ".lock"


class TemporaryFolder:
    """A directory that is removed with everything in it when a child ends, however it ends.

    Made before the fork; the child calls `use`.

    Notes
    -----
    When this process is killed, too, the directory stays until
    `remove_abandoned` is called on the same host.  A directory is abandoned
    when its lock is free: the kernel releases it when the last process ends
    that holds it.  On a file system without locks there is no lock file, and
    `remove_abandoned` leaves the directory alone.
    """

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=get_tempdir()))
        new = self._path / f"{_LOCK}.new"
        # Open for writing, since NFS gives exclusive locks for nothing else.
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(self._lock, fcntl.LOCK_EX):
            # Renamed when it is locked, so that no other worker finds it free.
            new.rename(self._path / _LOCK)
        else:
            new.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)
        return False

    def use(self) -> None:
        """Make all later temporary files of this process in the directory."""
        os.environ.update(dict.fromkeys(("LSST_RESOURCES_TMPDIR", "TMPDIR"), str(self._path)))
        # Both have read the variables before the fork.
        tempfile.tempdir = None
        get_tempdir.cache_clear()

    @staticmethod
    def remove_abandoned() -> None:
        """Remove the directories of processes that were killed."""
        for path in Path(get_tempdir()).glob(f"{_PREFIX}*"):
            # Another process may remove it at the same time, or it is another user's.
            with contextlib.suppress(OSError):
                if path.lstat().st_uid != os.geteuid():
                    continue
                lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if try_lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)
