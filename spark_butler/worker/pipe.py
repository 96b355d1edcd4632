"""A one-way pipe from a child to its worker, for objects and for large records."""

from __future__ import annotations

__all__ = ["END", "Channel"]

import contextlib
import fcntl
import os
import pickle
import select
import struct
import sys
import time
from collections.abc import Sequence
from typing import Final, Self

_HEAD = struct.Struct("<?Q")
_PIPE_BYTES = 2**20
_POLL_SECONDS = 3600.0
_MAX_PIECES = 512

END: Final = object()
"""The item that a receiver gets when the sender is gone."""


class Channel:
    """One end of a pipe.

    Parameters
    ----------
    descriptor
        File descriptor of the end.

    Notes
    -----
    Unlike a `multiprocessing.connection.Connection` it writes a record from
    several pieces and reads it straight into one buffer, so that an object of
    any size passes with a copy in and a copy out.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    @classmethod
    def make_pair(cls) -> tuple[Self, Self]:
        """Return both ends: first the receiver, then the sender."""
        reader, writer = os.pipe()
        if sys.platform == "linux":
            # An ordinary user may have only so much; then it stays as it is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return cls(reader), cls(writer)

    def close(self) -> None:
        """Close this end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def send(self, obj: object) -> None:
        """Send an object.

        Parameters
        ----------
        obj
            The object, small enough to be pickled at once.
        """
        data = pickle.dumps(obj)
        self._write([_HEAD.pack(True, len(data)), data])

    def send_record(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send a record.

        Parameters
        ----------
        pieces
            The record, in consecutive pieces.
        """
        self._write([_HEAD.pack(False, sum(map(len, pieces))), *pieces])

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(piece) for piece in pieces if len(piece)]
        while views:
            written = os.writev(self._descriptor, views[:_MAX_PIECES])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def receive(self, limit: float | None = None) -> object:
        """Wait for what comes next.

        Parameters
        ----------
        limit
            Seconds to wait for it to begin; `None` for ever.

        Returns
        -------
        item
            An object that was sent, or a record as a `bytearray`; `None` when
            the time is over, `END` when the sender is gone, also in the middle
            of a record.
        """
        if not self._wait(limit):
            return None
        head = self._read(_HEAD.size)
        if head is None:
            return END
        is_object, length = _HEAD.unpack(head)
        data = self._read(length)
        if data is None:
            return END
        return pickle.loads(data) if is_object else data

    def _wait(self, limit: float | None) -> bool:
        """Wait until there is something to read."""
        deadline = None if limit is None else time.monotonic() + limit
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN | select.POLLHUP)
        while True:
            left = _POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            if poll.poll(1000 * min(left, _POLL_SECONDS)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _read(self, length: int) -> bytearray | None:
        """Read so many bytes; `None` if they end before."""
        data = bytearray(length)
        view = memoryview(data)
        while len(view):
            count = os.readv(self._descriptor, [view])
            if not count:
                return None
            view = view[count:]
        return data
