"""Pass on what the JVM and the workers below it write to standard error."""

from __future__ import annotations

__all__ = ["JVM_STDERR", "StderrRelay"]

import atexit
import contextlib
import fcntl
import logging
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

_PIPE_BYTES = 1 << 20
_MOST_HELD = 1 << 20
_PATIENCE_MILLISECONDS = 100
_EXIT_SECONDS = 1.0


class StderrRelay:
    """A pipe to standard error that can be held back, or led to where it disturbs no bars.

    It is given to `subprocess.Popen` as ``stderr``.  The standard error of
    this process stays what it is, so that nothing here stands between a
    traceback and the terminal.

    Parameters
    ----------
    target
        Descriptor to which all goes in the end.

    Notes
    -----
    A thread reads the pipe at all times, whatever becomes of what it reads:
    those who write never wait for this process.  Lines stay whole.
    """

    def __init__(self, target: int = 2):
        self._target = target
        self._lock = threading.Lock()
        self._pipe: tuple[int, int] | None = None
        self._kept = bytearray()
        self._is_holding = False
        self._write: Callable[[str], object] | None = None

    def fileno(self) -> int:
        """Return the descriptor to write to."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[0], False)
                with contextlib.suppress(OSError, AttributeError):
                    # Linux only, and no more than the system's limit.
                    fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                threading.Thread(
                    target=self._serve, args=(self._pipe[0],), name="stderr", daemon=True
                ).start()
                atexit.register(self.hand_over)
            return self._pipe[1]

    def hold(self) -> None:
        """Show nothing for the time being, unless it is very much."""
        with self._lock:
            self._is_holding = True

    def release(self) -> None:
        """Show what was held, and all that follows."""
        with self._lock:
            self._is_holding = False
            self._take()
            self._show(partial=self._write is None)

    def drop(self) -> None:
        """Forget what is held, and go on holding."""
        with self._lock:
            self._take()
            if not self._is_holding:
                return
            text = self._kept.decode(errors="replace")
            self._kept.clear()
        # Outside of the lock, which a handler may want.
        logger.debug("Spark said, and was not wanted any more: %s", text)

    def flush(self) -> None:
        """Show all that was written until now, unless it is held."""
        with self._lock:
            self._take()
            self._show(partial=self._write is None)

    @contextlib.contextmanager
    def diverted(self, write: Callable[[str], object]) -> Iterator[None]:
        """Show lines by other means as long as the context lasts.

        Parameters
        ----------
        write
            Given one or several whole lines at a time, in any thread.
        """
        self.flush()
        with self._lock:
            self._write = write
        try:
            yield
        finally:
            with self._lock:
                self._take()
                if self._kept and not self._kept.endswith(b"\n"):
                    # Others are at the terminal, too.
                    self._kept += b"\n"
                self._show()
                self._write = None

    def hand_over(self) -> None:
        """Leave the pipe to a process that outlives this one, as the JVM does for a moment."""
        # Who holds the lock may be waiting for a terminal that was stopped.
        if not self._lock.acquire(timeout=_EXIT_SECONDS):
            return
        try:
            if self._pipe is None or self._is_holding:
                return
            reader, writer = self._pipe
            self._pipe = None
            os.close(writer)
            is_over = self._read(reader)
            self._show(partial=True)
            os.set_blocking(reader, True)
            if not is_over:
                with contextlib.suppress(OSError):
                    subprocess.Popen(["cat"], stdin=reader, stdout=self._target)
        finally:
            self._lock.release()

    def _serve(self, reader: int) -> None:
        """Read as soon as there is something."""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        while True:
            # A line without an end is shown when its writer makes a pause.
            has_partial = bool(self._kept) and not self._is_holding and self._write is None
            is_ready = bool(poll.poll(_PATIENCE_MILLISECONDS if has_partial else None))
            with self._lock:
                if self._pipe is None:
                    return
                self._take()
                self._show(partial=not is_ready and self._write is None)

    def _take(self) -> None:
        if self._pipe is not None:
            self._read(self._pipe[0])

    def _read(self, reader: int) -> bool:
        """Read what is in the pipe, but no more than fits in; return whether nobody can write to it."""
        limit = len(self._kept) + _PIPE_BYTES
        while len(self._kept) < limit:
            try:
                data = os.read(reader, 65536)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._kept += data
        return False

    def _show(self, *, partial: bool = False) -> None:
        """Show the lines that were read."""
        if self._is_holding and len(self._kept) <= _MOST_HELD:
            return
        self._is_holding = False
        end = len(self._kept) if partial else self._kept.rfind(b"\n") + 1
        if end:
            self._pass_on(bytes(self._kept[:end]))
            del self._kept[:end]

    def _pass_on(self, data: bytes) -> None:
        """Write by other means, or if these fail to the target."""
        if self._write is not None:
            try:
                self._write(data.decode(errors="replace"))
            except Exception:  # noqa: BLE001  (rich may fail in many ways)
                self._write = None
            else:
                return
        _write_all(self._target, data)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write to where nobody may be listening any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [], 1.0)
        except OSError:
            return


JVM_STDERR = StderrRelay()
"""Standard error of the JVM of this process, of which there is one at most."""
