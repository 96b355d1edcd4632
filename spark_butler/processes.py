"""Child processes that must not outlive this one."""

from __future__ import annotations

__all__ = ["dying_with_parent"]

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def dying_with_parent() -> Callable[[], None] | None:
    """Find what a child must call to be killed with its parent.

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
