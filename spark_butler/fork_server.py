"""A copy of this process, taken when it has imported the middleware, that is forked for Spark's workers.

The driver and the daemon from which Spark forks Python workers import nearly
the same, which takes seconds.  Where both are on one machine the driver forks
a server right after its imports, as long as nothing else has begun.  The
program that Spark starts as its daemon then only asks that server for a fork
(as in `multiprocessing`'s *forkserver*), which takes over its standard
streams, environment, folder and path, and becomes the daemon.

Nothing here imports the middleware.
"""

from __future__ import annotations

__all__ = ["FORK_SERVER_VARIABLE", "ForkServer", "ask_fork_server", "wait_for_fork"]

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

FORK_SERVER_VARIABLE = "SPARK_BUTLER_FORK_SERVER"
"""Environment variable that says at which socket a daemon may ask for a fork."""

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")
_ANSWER_SECONDS = 5.0
_MOST_BYTES = 1 << 26
_N_STREAMS = 3
# No longer than Linux takes.
_TITLE = "sb-fork-server"


class ForkServer:
    """The server, as its driver sees it.

    Parameters
    ----------
    folder
        Where its socket is, which nobody else can enter.
    lifeline
        The server ends when this is closed, or the driver ends.
    """

    def __init__(self, folder: Path, lifeline: socket.socket):
        self._folder = folder
        self._lifeline = lifeline

    @property
    def address(self) -> str:
        """Path of its socket."""
        return str(_socket_path(self._folder))

    @classmethod
    def start(
        cls, serve: Callable[[], object], prepare: Callable[[], object] = lambda: None
    ) -> ForkServer | None:
        """Fork this process, which should have no thread that is in the middle of anything.

        Parameters
        ----------
        serve
            What a fork of the server does when it has become another.  It
            must let go of nothing that closes files of the driver's.
        prepare
            What the server does before it serves.

        Returns
        -------
        server
            `None` where the system has not what it takes.
        """
        if not hasattr(os, "pidfd_open") or not hasattr(socket, "SO_PEERCRED"):
            return None
        if None in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
            # Numbers of closed streams may be used for something else.
            return None
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="spark-butler-fork-"))
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
                listener.bind(str(_socket_path(folder)))
                listener.listen()
                ours, theirs = socket.socketpair()
                sys.stdout.flush()
                sys.stderr.flush()
                if os.fork() == 0:
                    _become_server(folder, listener, theirs, serve, prepare)
                theirs.close()
                return cls(folder, ours)
        except OSError:
            # A long name of the folder for temporary files is enough.
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            return None

    def close(self) -> None:
        """Let it end; what it has forked lives on."""
        self._lifeline.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def ask_fork_server(address: str) -> socket.socket | None:
    """Ask for a fork that takes over the streams of this process, its environment, folder and path.

    Parameters
    ----------
    address
        Path of the server's socket.

    Returns
    -------
    connection
        For `wait_for_fork`; `None` if there is no server, or if it is of
        another Python.  This process then has its streams still.
    """
    request = {
        "python": _describe_python(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "arguments": sys.argv,
    }
    data = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(address)
        socket.send_fds(connection, [_LENGTH.pack(len(data))], list(range(_N_STREAMS)))
        connection.sendall(data)
        if connection.recv(1):
            connection.settimeout(None)
            return connection
    except OSError:
        pass
    connection.close()
    return None


def wait_for_fork(connection: socket.socket) -> int:
    """Leave the streams to the fork, wait for its end, and return its exit status.

    Parameters
    ----------
    connection
        What `ask_fork_server` has returned.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(_N_STREAMS):
        os.dup2(nothing, stream)
    status = connection.recv(1)
    # Without a word the server has gone, and it is not known what became of the fork.
    return status[0] if status else 1


def _socket_path(folder: Path) -> Path:
    return folder / "socket"


def _describe_python() -> list[str]:
    """Say what must be the same for one to stand for the other."""
    return [sys.version, os.path.realpath(sys.executable), sys.prefix]


def _set_title(title: str) -> None:
    """Name this process for those who list them."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(title)


def _become_server(
    folder: Path,
    listener: socket.socket,
    lifeline: socket.socket,
    serve: Callable[[], object],
    prepare: Callable[[], object],
) -> NoReturn:
    """Serve until the driver ends, and leave without any of the driver's exit handlers."""
    status = 1
    try:
        # Ctrl-C is for the driver, and Java keeps it from its children, too.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _set_title(_TITLE)
        _let_go_of_files({0, 1, 2, listener.fileno(), lifeline.fileno()})
        prepare()
        _Server(listener, lifeline, serve).run()
        status = 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)


def _let_go_of_files(wanted: set[int]) -> None:
    """Let nothing be open that is the driver's, without freeing numbers that its objects may close later."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number not in wanted and number != nothing:
            # That of the listing itself is closed by now.
            with contextlib.suppress(OSError):
                os.fstat(number)
                os.dup2(nothing, number, inheritable=False)


class _Server:
    """What the server does."""

    def __init__(self, listener: socket.socket, lifeline: socket.socket, serve: Callable[[], object]):
        self._listener = listener
        self._lifeline = lifeline
        self._serve = serve
        # By the number of a file that is ready when a fork has ended, and by that of the connection.
        self._forks: dict[int, tuple[int, socket.socket]] = {}
        self._asking: dict[int, int] = {}
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until the driver ends."""
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._lifeline, select.POLLIN)
        while True:
            for number, _ in self._poll.poll():
                if number == self._lifeline.fileno():
                    return
                if number == self._listener.fileno():
                    self._answer()
                elif number in self._forks:
                    self._tell_end(number)
                elif number in self._asking:
                    self._end_fork(number)

    def _answer(self) -> None:
        """Fork for one who asks, if he may."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        streams: list[int] = []
        try:
            connection.settimeout(_ANSWER_SECONDS)
            request = _receive(connection, streams)
            if request is None:
                connection.close()
                return
            process = os.fork()
            if process == 0:
                self._become(request, streams, connection)
            ended = os.pidfd_open(process)
            self._forks[ended] = process, connection
            self._asking[connection.fileno()] = process
            self._poll.register(ended, select.POLLIN)
            # He says no more; it is ready when he has ended.
            self._poll.register(connection, select.POLLIN)
            connection.send(b"y")
        except OSError:
            connection.close()
        finally:
            for number in streams:
                os.close(number)

    def _become(self, request: dict[str, Any], streams: list[int], connection: socket.socket) -> NoReturn:
        """Become what has asked."""
        status = 1
        try:
            for stream, number in enumerate(streams):
                os.dup2(number, stream)
                os.close(number)
            for each in (self._listener, self._lifeline, connection):
                each.close()
            for number, (_, other) in self._forks.items():
                os.close(number)
                other.close()
            _set_title(os.path.basename(sys.executable))
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            sys.path[:] = request["path"]
            sys.argv[:] = request["arguments"]
            self._serve()
            status = 0
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:  # noqa: BLE001  (as the interpreter does it)
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _tell_end(self, number: int) -> None:
        """Tell the one who has asked that his fork has ended."""
        process, connection = self._forks.pop(number)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            connection.send(bytes([code if 0 <= code < 256 else 1]))
        self._poll.unregister(number)
        os.close(number)
        if self._asking.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection)
        connection.close()

    def _end_fork(self, number: int) -> None:
        """End a fork whose asker has ended, as when Java destroys its process."""
        self._poll.unregister(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._asking.pop(number), signal.SIGTERM)


def _receive(connection: socket.socket, streams: list[int]) -> dict[str, Any] | None:
    """Take a request and the streams that come with it; `None` if it is not to be granted."""
    asker = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    head, received, _, _ = socket.recv_fds(connection, _LENGTH.size, _N_STREAMS)
    streams += received
    if _CREDENTIALS.unpack(asker)[1] != os.getuid() or len(head) < _LENGTH.size:
        return None
    (left,) = _LENGTH.unpack(head)
    if len(streams) != _N_STREAMS or left > _MOST_BYTES:
        return None
    data = bytearray()
    while len(data) < left:
        chunk = connection.recv(left - len(data))
        if not chunk:
            return None
        data += chunk
    request: dict[str, Any] = json.loads(data)
    return request if request.get("python") == _describe_python() else None
