"""Files of an object store that are read before they are asked for: ordered, on their way, or in memory.

One thread reads them.  Whoever asks for one finds it here, waits for it, or
learns that it has to be read after all: no file is read by both.
"""

from __future__ import annotations

__all__ = ["FileKey", "FilesAhead"]

import dataclasses
import enum
import threading
from collections.abc import Callable, Mapping

from ..model.traffic import NO_TRAFFIC, Traffic

type FileKey = tuple[str, str]
"""Bucket and key of a file."""


class _State(enum.Enum):
    ORDERED = enum.auto()
    UNDER_WAY = enum.auto()
    HERE = enum.auto()
    FAILED = enum.auto()


@dataclasses.dataclass(slots=True)
class _File:
    """A file that was ordered."""

    size: int
    """Bytes that it takes up, or is expected to."""

    position: int
    """Position of the quantum that reads it."""

    state: _State = _State.ORDERED
    """How far it has come."""

    data: bytes = b""
    """Its contents."""

    traffic: Traffic = NO_TRAFFIC
    """What reading it has cost, until somebody has to answer for that."""


class FilesAhead:
    """Files that the next quanta of a group read.

    Parameters
    ----------
    most_bytes
        How much memory they may take up together, in bytes.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._changed = threading.Condition()
        self._files: dict[FileKey, _File] = {}
        self._read: dict[FileKey, int] = {}
        self._unclaimed = NO_TRAFFIC
        self._closed = False

    def order(self, files: Mapping[FileKey, int], position: int) -> None:
        """Have files read.

        Parameters
        ----------
        files
            Their sizes in bytes.
        position
            Position of the quantum that reads them.
        """
        with self._changed:
            for key, size in files.items():
                if key in self._files:
                    self._files[key].position = position
                elif size <= self.most_bytes:
                    self._files[key] = _File(size, position)
            self._changed.notify_all()

    def next(self) -> FileKey | None:
        """Wait for a file that is to be read, and for room; `None` when there will be no more."""
        with self._changed:
            while not self._closed:
                ordered = (key for key, file in self._files.items() if file.state is _State.ORDERED)
                if (key := next(ordered, None)) is not None and self._has_room(self._files[key].size):
                    self._files[key].state = _State.UNDER_WAY
                    return key
                self._changed.wait()
        return None

    def _has_room(self, size: int) -> bool:
        taken = (_State.UNDER_WAY, _State.HERE)
        return (
            size + sum(file.size for file in self._files.values() if file.state in taken) <= self.most_bytes
        )

    def arrive(self, key: FileKey, data: bytes | None, traffic: Traffic) -> None:
        """Take what was read.

        Parameters
        ----------
        key
            The file.
        data
            Its contents; `None` where it could not be read.
        traffic
            What that has cost.
        """
        with self._changed:
            file = self._files.get(key)
            if file is None or file.state is not _State.UNDER_WAY:
                self._unclaimed += traffic
            else:
                file.state = _State.FAILED if data is None else _State.HERE
                file.data = data or b""
                file.size = len(file.data)
                file.traffic = traffic
            self._changed.notify_all()

    def ask(self, key: FileKey) -> tuple[bytes | None, Traffic]:
        """Find a file; wait for one that is on its way, and don't wait for one that was only ordered.

        Parameters
        ----------
        key
            The file.

        Returns
        -------
        data
            Its contents; `None` where the store has to be asked.
        traffic
            What was done for it and has not been counted yet.
        """
        with self._changed:
            while (file := self._files.get(key)) is not None and file.state is _State.UNDER_WAY:
                self._changed.wait()
            if file is None:
                return None, NO_TRAFFIC
            if file.state is _State.ORDERED:
                del self._files[key]
            traffic, file.traffic = file.traffic, NO_TRAFFIC
            return (file.data if file.state is _State.HERE else None), traffic

    def note(self, key: FileKey, size: int) -> None:
        """Note that a file was read by the one who wanted it.

        Parameters
        ----------
        key
            The file.
        size
            Its size in bytes.
        """
        with self._changed:
            self._read[key] = max(size, self._read.get(key, 0))

    def take_notes(self) -> dict[FileKey, int]:
        """Take the sizes of the files that were read since this was called last."""
        with self._changed:
            notes, self._read = self._read, {}
        return notes

    def drop(self, key: FileKey) -> None:
        """Let a file go, if it is there.

        Parameters
        ----------
        key
            The file.
        """
        with self._changed:
            self._let_go(key)

    def drop_for(self, is_over: Callable[[int], bool]) -> None:
        """Let go what was ordered for quanta that will not read it any more.

        Parameters
        ----------
        is_over
            Tells that of the quantum at a position.
        """
        with self._changed:
            for key in [key for key, file in self._files.items() if is_over(file.position)]:
                self._let_go(key)

    def _let_go(self, key: FileKey) -> None:
        if (file := self._files.pop(key, None)) is not None:
            self._unclaimed += file.traffic
            self._changed.notify_all()

    def settle(self) -> Traffic:
        """Take what was done in vain, to be counted."""
        with self._changed:
            unclaimed, self._unclaimed = self._unclaimed, NO_TRAFFIC
        return unclaimed

    def close(self) -> None:
        """Let everything go, and order nothing any more."""
        with self._changed:
            self._closed = True
            for key in list(self._files):
                self._let_go(key)
            self._changed.notify_all()

    def forget_thread(self) -> None:
        """Become empty in a process that was forked, where nobody reads and locks may be taken for ever."""
        self._changed = threading.Condition()
        self._files = {}
        self._closed = True
