"""Services of the operating system that may be absent: death signals and file locks.

Runs in workers and in their children.
"""

from __future__ import annotations

__all__ = ["dying_with_parent", "try_lock"]

import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

# Lustre without ``-o flock``, NFS without a lock daemon, and NFS that locks only what is open for writing.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


def dying_with_parent() -> Callable[[], None] | None:
    """Return what a child must call to be killed with its parent.

    Returns
    -------
    call
        To be called in the child, first of all; `None` where the system has
        no such thing.  It is found before the fork, since a child of a
        threaded process must not import or load anything.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return call


def try_lock(descriptor: int, operation: int) -> bool:
    """Lock or unlock an open file, where its file system has locks.

    Parameters
    ----------
    operation
        The operation, as `fcntl.flock` takes it.

    Returns
    -------
    locked
        Whether the file system carried it out; `False` where it has no
        locks, which is logged once in each process.

    Raises
    ------
    OSError
        Raised if the lock is held by another process and ``operation``
        contains `fcntl.LOCK_NB`, and for all other errors.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        _log_missing_locks(errno.errorcode.get(exc.errno, str(exc.errno)))
        return False
    return True


@functools.cache
def _log_missing_locks(name: str) -> None:
    logger.warning(
        "The file system of Spark's local directory or of the temporary folder has no file locks (%s); "
        "the run goes on without them. Memory-hungry quanta may run beside others, and temporary files of "
        "killed workers may stay.",
        name,
    )
