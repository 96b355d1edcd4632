"""Temporary directory of a child, which is removed even if its processes are killed.

A worker creates it before it forks the child, whose tasks write into it.
"""

from __future__ import annotations

__all__ = ["TemporaryFolder"]

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from lsst.resources.utils import get_tempdir

from ..signals_and_locks import try_lock

_FOLDER_PREFIX = "spark-butler-child-"
_LOCK_FILE = ".lock"


class TemporaryFolder:
    """A directory that is removed with its contents when a child ends; the child calls `use`.

    If this process is killed as well, the directory stays until `remove_abandoned` is called on
    the same host.  A directory is abandoned if its lock is free; the kernel releases the lock when
    the last process that holds it ends.  On a file system without locks there is no lock file, and
    `remove_abandoned` doesn't remove the directory.
    """

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=get_tempdir()))
        new = self._path / f"{_LOCK_FILE}.new"
        # Open for writing, since NFS gives exclusive locks for nothing else.
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(self._lock, fcntl.LOCK_EX):
            # Renamed when it is locked, so that no other worker finds it free.
            new.rename(self._path / _LOCK_FILE)
        else:
            new.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)

    def use(self) -> None:
        """Make all later temporary files of this process in the directory."""
        os.environ.update(dict.fromkeys(("LSST_RESOURCES_TMPDIR", "TMPDIR"), str(self._path)))
        # Both have read the variables before the fork.
        tempfile.tempdir = None
        get_tempdir.cache_clear()

    @staticmethod
    def remove_abandoned() -> None:
        """Remove the directories of processes that were killed."""
        for path in Path(get_tempdir()).glob(f"{_FOLDER_PREFIX}*"):
            # Another process may remove it at the same time, or it is another user's.
            with contextlib.suppress(OSError):
                if path.lstat().st_uid != os.geteuid():
                    continue
                lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if try_lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)
