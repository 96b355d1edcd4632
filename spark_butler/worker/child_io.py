"""Pipe and log file of a child.

The worker creates them before it forks the child, reads them, and removes them;
the child writes to them.
"""

from __future__ import annotations

__all__ = ["END", "Channel", "LogTail"]

import contextlib
import faulthandler
import fcntl
import logging
import os
import pickle
import select
import struct
import sys
import tempfile
from collections.abc import Sequence
from typing import Final, Self

from ..masking import hide_secrets

_HEAD = struct.Struct("<?Q")
_PIPE_BYTES = 2**20
_MAX_PIECES = 512
_MAX_LOG_BYTES = 256 * 1024
_LOG_LINES = 20
_STACK_LINES = 12

END: Final = object()
"""The item that a receiver gets after the sender has ended."""


class Channel:
    """One end of a pipe.

    Unlike a `multiprocessing.connection.Connection`, it writes a record from several pieces and
    reads it directly into one buffer.  An object of any size is therefore copied only once on
    each side.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    @classmethod
    def make_pair(cls) -> tuple[Self, Self]:
        """Return both ends: first the receiver, then the sender."""
        reader, writer = os.pipe()
        if sys.platform == "linux":
            # The system may limit the size for ordinary users; then the default stays.
            with contextlib.suppress(OSError):
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return cls(reader), cls(writer)

    def close(self) -> None:
        """Close this end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def send(self, obj: object) -> None:
        """Send an object that is small enough to be pickled at once."""
        data = pickle.dumps(obj)
        self._write([_HEAD.pack(True, len(data)), data])

    def send_record(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send a record that is given in consecutive pieces."""
        self._write([_HEAD.pack(False, sum(map(len, pieces))), *pieces])

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(piece) for piece in pieces if len(piece)]
        while views:
            written = os.writev(self._descriptor, views[:_MAX_PIECES])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def receive(self, limit: float) -> object:
        """Wait for an object or a record (a `bytearray`), at most for some seconds.

        Returns `None` after a timeout, and `END` if the sender has ended, even in the middle of a record.
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN | select.POLLHUP)
        if not poll.poll(1000 * limit):
            return None
        head = self._read(_HEAD.size)
        if head is None:
            return END
        is_object, length = _HEAD.unpack(head)
        data = self._read(length)
        if data is None:
            return END
        return pickle.loads(data) if is_object else data

    def _read(self, length: int) -> bytearray | None:
        """Read some bytes; return `None` if the pipe ends before."""
        data = bytearray(length)
        view = memoryview(data)
        while len(view):
            count = os.readv(self._descriptor, [view])
            if not count:
                return None
            view = view[count:]
        return data


class LogTail:
    """A nameless file in memory: a child calls `attach` and `clear`, its parent makes it and calls `read`."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("spark-butler-log")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._file)

    def attach(self) -> None:
        """Write later log messages of this process, and the stack after a crash, to the file as well."""
        handler = _TailHandler(self._file)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        with contextlib.suppress(OSError, RuntimeError):
            faulthandler.enable(self._file, all_threads=False)

    def clear(self) -> None:
        """Drop all messages so far."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)

    def read(self) -> str:
        """Return the last lines, without secrets."""
        length = os.fstat(self._file).st_size
        data = os.pread(self._file, _MAX_LOG_BYTES, max(0, length - _MAX_LOG_BYTES))
        logged, fatal, stack = data.decode(errors="replace").partition("Fatal Python error")
        lines = logged.splitlines()[-_LOG_LINES:]
        # The innermost calls come first; after them, a list of all modules.
        lines += f"{fatal}{stack}".splitlines()[:_STACK_LINES]
        return hide_secrets("\n".join(line for line in lines if not line.startswith("Extension modules:")))


class _TailHandler(logging.Handler):
    """Writes records to a file that starts again when it has grown long."""

    def __init__(self, file: int):
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="replace")[:_MAX_LOG_BYTES]
            if os.lseek(self._file, 0, os.SEEK_END) + len(line) > _MAX_LOG_BYTES:
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, line)
        except Exception:  # noqa: BLE001  (as all handlers of the standard library do)
            self.handleError(record)
