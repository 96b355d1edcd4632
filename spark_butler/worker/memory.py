"""Memory of processes: measurement, limits, and a lock.  Runs in workers and children."""

from __future__ import annotations

__all__ = [
    "MemoryLock",
    "count_out_of_memory_kills",
    "limit_allocations",
    "machine_memory",
    "resident_memory",
]

import contextlib
import fcntl
import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from ..signals_and_locks import try_lock

_PAGE = resource.getpagesize()
_HUGE = 1 << 60


def resident_memory(process_id: int) -> int:
    """Return a process's resident memory in bytes, with shared pages; 0 if unknown."""
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


@functools.cache
def machine_memory() -> int:
    """Return the memory in bytes for all processes of this machine or container; 0 if unknown."""
    found = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * _PAGE)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(name).read_text()))
    # Control groups of version 1 write "no limit" as a huge number.
    return min((nbytes for nbytes in found if 0 < nbytes < _HUGE), default=0)


def count_out_of_memory_kills() -> int:
    """Return the number of processes that the kernel has killed for lack of memory since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def limit_allocations(nbytes: int | None) -> None:
    """Limit how many more bytes this process can allocate; `None` removes the limit.

    A larger allocation raises `MemoryError` in the task; the worker watches the used memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if nbytes is not None:
        try:
            # The sixth number counts the pages of data and stack.
            data = int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE
        except (OSError, IndexError, ValueError):
            return
        soft = data + nbytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class MemoryLock:
    """Reader-writer lock of a host: many processes share it, or one takes it exclusively.

    It consists of two files in a folder of these processes.  The kernel releases it when a process
    ends for any reason.  A process that requests it exclusively first blocks new holders, then waits
    for the present ones.  On a file system without locks no process waits.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @contextlib.contextmanager
    def acquire(self, *, exclusive: bool) -> Iterator[None]:
        """Wait for the lock and hold it, either alone (``exclusive``) or together with other processes."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        with self._open("entrance") as entrance, self._open("inside") as inside:
            try_lock(entrance, kind)
            try_lock(inside, kind)
            try_lock(entrance, fcntl.LOCK_UN)
            try:
                yield
            finally:
                # Released explicitly: a process that was forked meanwhile has the file open, too.
                try_lock(inside, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with (self._folder / f"spark-butler-{name}.lock").open("ab") as file:
            yield file.fileno()
