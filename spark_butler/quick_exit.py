"""Leave a program without taking the interpreter down piece by piece.

With the middleware imported that takes a second, and two of processor time.
"""

from __future__ import annotations

__all__ = ["run_program"]

import atexit
import os
import sys
import threading
from collections.abc import Callable

# As the interpreter has it when what was written can't be sent off.
_NOT_FLUSHED = 120


def run_program(main: Callable[[], object]) -> None:
    """Run the main function of a program, and end the process if it ends in order.

    Threads are waited for and exit handlers called as ever.  An exception
    goes its usual way.

    Parameters
    ----------
    main
        The function.
    """
    try:
        main()
    except SystemExit as exc:
        if exc.code is not None and not isinstance(exc.code, int):
            raise
        status = exc.code or 0
    else:
        status = 0
    # What the interpreter does first.  Both are private, and if they are not there it does all the rest, too.
    join_threads = getattr(threading, "_shutdown", None)
    call_handlers = getattr(atexit, "_run_exitfuncs", None)
    if join_threads is None or call_handlers is None or _is_watched():
        sys.exit(status)
    join_threads()
    call_handlers()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = _NOT_FLUSHED if stream is sys.stdout else status
    os._exit(status & 0xFF)


def _is_watched() -> bool:
    """Whether something like a profiler wants to have the last word."""
    tools = range(6)
    return bool(sys.gettrace() or sys.getprofile() or any(map(sys.monitoring.get_tool, tools)))
