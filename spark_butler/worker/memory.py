"""What the operating system knows and does about memory."""

from __future__ import annotations

__all__ = ["count_out_of_memory_kills", "limit_allocations", "machine_memory", "resident_memory"]

import contextlib
import functools
import os
import resource
from pathlib import Path

_PAGE = resource.getpagesize()
_HUGE = 1 << 60


def resident_memory(process_id: int) -> int:
    """Find how much memory a process has resident.

    Parameters
    ----------
    process_id
        The process.

    Returns
    -------
    nbytes
        Bytes, shared pages included; 0 where the system doesn't say.
    """
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


@functools.cache
def machine_memory() -> int:
    """Find how much memory the processes of this machine or container may have together.

    Returns
    -------
    nbytes
        Bytes; 0 where the system doesn't say.
    """
    found = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * _PAGE)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(name).read_text()))
    # Old control groups say "no limit" by a huge number.
    return min((nbytes for nbytes in found if 0 < nbytes < _HUGE), default=0)


def count_out_of_memory_kills() -> int:
    """Count the processes that the kernel has killed for want of memory since it was started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def limit_allocations(nbytes: int | None) -> None:
    """Let this process ask for so much more memory; beyond it, allocation fails.

    A task that asks for far too much at once gets a `MemoryError` by it, with
    a traceback.  What it really uses is watched from outside.

    Parameters
    ----------
    nbytes
        Bytes; `None` lifts the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if nbytes is not None:
        try:
            # Pages of code, library, data and stack; the sixth is data and stack.
            data = int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE
        except (OSError, IndexError, ValueError):
            return
        soft = data + nbytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
