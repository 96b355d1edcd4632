"""Queue of files that a thread reads from an object store before a quantum needs them.

Runs where a group of quanta runs: in a child of a worker, or in the process of
the serial backend.
"""

from __future__ import annotations

__all__ = ["FileKey", "PrefetchQueue"]

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..model.outcomes import NO_TRAFFIC, Traffic

type FileKey = tuple[str, str]
"""Bucket and key of a file."""

type Fetched = tuple[bytes | None, Traffic]
"""Content of a file, `None` if it could not be read, and the traffic of reading it."""


@dataclasses.dataclass(slots=True)
class _File:
    """A queued file."""

    size: int
    owner: int
    fetched: Future[Fetched]
    is_counted: bool = False


class PrefetchQueue:
    """Queue of files to read, and buffer of files that were read, of ``most_bytes`` altogether.

    Each file is read either by the thread of the queue or by the quantum, never by both.  Any
    thread calls ``count`` with the traffic of a file that no quantum used.
    """

    def __init__(self, most_bytes: int, count: Callable[[Traffic], None] = lambda _: None):
        self.most_bytes = most_bytes
        self._count = count
        self._executor = ThreadPoolExecutor(1, "spark-butler-prefetch")
        self._files: dict[FileKey, _File] = {}
        self._read: dict[FileKey, int] = {}

    def add(self, key: FileKey, size: int, owner: int, fetch: Callable[[], Fetched]) -> None:
        """Queue a file, unless it is queued already or there is no room for it.

        ``fetch`` reads the file in another thread; it must not raise.
        """
        if (file := self._files.get(key)) is not None:
            file.owner = owner
        elif size + sum(each.size for each in self._files.values()) <= self.most_bytes:
            self._files[key] = _File(size, owner, self._executor.submit(fetch))

    def get(self, key: FileKey) -> Fetched:
        """Return the content of a file and the traffic of reading it; wait while the thread reads it.

        The content is `None` if the caller has to read the file.  In further calls
        the traffic is zero.
        """
        file = self._files.get(key)
        if file is None or file.fetched.cancel():
            self._files.pop(key, None)
            return None, NO_TRAFFIC
        data, traffic = file.fetched.result()
        is_counted, file.is_counted = file.is_counted, True
        return data, NO_TRAFFIC if is_counted else traffic

    def record_read(self, key: FileKey, size: int) -> None:
        """Record that a quantum has read a file, of the size in bytes, or a part of it."""
        self._read[key] = max(size, self._read.get(key, 0))

    def pop_reads(self) -> dict[FileKey, int]:
        """Return the sizes of the files that were read since the last call."""
        read, self._read = self._read, {}
        return read

    def drop(self, key: FileKey) -> None:
        """Drop a file, if it is queued."""
        file = self._files.pop(key, None)
        if file is not None and not file.fetched.cancel() and not file.is_counted:
            file.fetched.add_done_callback(lambda fetched: self._count(fetched.result()[1]))

    def drop_for(self, is_over: Callable[[int], bool]) -> None:
        """Drop the files of quanta that will not read them any more, by the quantum's position."""
        for key in [key for key, file in self._files.items() if is_over(file.owner)]:
            self.drop(key)

    def close(self) -> None:
        """Drop all files and end the thread, without waiting for a store that does not answer."""
        self.drop_for(lambda owner: True)
        self._executor.shutdown(wait=False, cancel_futures=True)
