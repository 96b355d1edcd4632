"""The last log lines of a child process, kept where they survive its death.

The worker makes the file; its child writes to it.
"""

from __future__ import annotations

__all__ = ["LogTail"]

import contextlib
import faulthandler
import logging
import os
import tempfile
from typing import Literal, Self

from ..text import hide_secrets

_LONGEST = 256 * 1024
_SHOWN = 20
_SHOWN_STACK = 12


class LogTail:
    """A nameless file in memory that a child process logs to and its parent reads.

    Made before the fork; the child calls `attach` and `clear`, the parent
    `read`.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("spark-butler-log")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        os.close(self._file)
        return False

    def attach(self) -> None:
        """Send what this process logs from now on, and the stack at a crash, to the file as well."""
        handler = _TailHandler(self._file)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        with contextlib.suppress(OSError, RuntimeError):
            faulthandler.enable(self._file, all_threads=False)

    def clear(self) -> None:
        """Forget what was logged so far."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)

    def read(self) -> str:
        """Return the last lines, without secrets."""
        length = os.fstat(self._file).st_size
        data = os.pread(self._file, _LONGEST, max(0, length - _LONGEST))
        logged, fatal, stack = data.decode(errors="replace").partition("Fatal Python error")
        lines = logged.splitlines()[-_SHOWN:]
        # The innermost calls come first; after them, a list of all modules.
        lines += f"{fatal}{stack}".splitlines()[:_SHOWN_STACK]
        return hide_secrets("\n".join(line for line in lines if not line.startswith("Extension modules:")))


class _TailHandler(logging.Handler):
    """Writes records to a file that starts again when it has grown long."""

    def __init__(self, file: int):
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="replace")[:_LONGEST]
            if os.lseek(self._file, 0, os.SEEK_END) + len(line) > _LONGEST:
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, line)
        except Exception:  # noqa: BLE001  (as all handlers of the standard library do)
            self.handleError(record)
