"""Services of the operating system: death signals, file locks, and the signals that stop a run.

Runs in every process; only the driver stops on signals.
"""

from __future__ import annotations

__all__ = ["Stopped", "dying_with_parent", "end_in_order", "ending_on_signals", "try_lock"]

import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

# Lustre without ``-o flock``, NFS without a lock daemon, and NFS that locks only what is open for writing.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def dying_with_parent() -> Callable[[], None] | None:
    """Return a function by which the system kills a child when its parent ends; `None` if it can't.

    Call `dying_with_parent` before the fork, because a child of a threaded process must not import or load
    anything.  The child calls the result first of all.
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
    """Lock or unlock an open file, as `fcntl.flock` does; return whether its file system has locks.

    The lack of locks is logged once in each process.

    Raises
    ------
    OSError
        Raised if the lock is held by another process and ``operation`` contains `fcntl.LOCK_NB`, and for all
        other errors.
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


class Stopped(BaseException):
    """Request of a signal to stop the run."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT, SIGTERM or SIGHUP in the block; the second kills."""

    def stop(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signal.Signals(number))

    try:
        # nohup ignores SIGHUP, and so does the run.
        numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:
        # Only the main thread receives signals.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in_order() -> None:
    """Stop the run of this process cleanly, by SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        # An earlier signal has restored the default and is stopping the run; another one would kill it.
        logger.info("The run is stopping already.")
        return
    if handler in (signal.SIG_IGN, None):
        logger.warning("This process has no handler of SIGTERM; the run continues.")
        return
    os.kill(os.getpid(), signal.SIGTERM)
