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

__all__ = ["FORK_SERVER_VARIABLE", "Fork", "ForkServer", "ask_fork_server", "wait_for_fork"]

import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

FORK_SERVER_VARIABLE = "SPARK_BUTLER_FORK_SERVER"
"""Environment variable that says at which socket a daemon may ask for a fork."""

_LENGTH = struct.Struct("!I")
_PROCESS = struct.Struct("!q")
_CREDENTIALS = struct.Struct("3i")
_ANSWER_SECONDS = 5.0
_MOST_BYTES = 1 << 26
_N_STREAMS = 3
# No longer than Linux takes.
_TITLE = "sb-fork-server"


class Fork(NamedTuple):
    """A fork, as the process sees it that has asked for it."""

    connection: socket.socket
    """On which the server tells the exit status."""

    ended: int
    """File that can be read when the fork has ended."""


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
        if not _has_what_it_takes():
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


def ask_fork_server(address: str) -> Fork | None:
    """Ask for a fork that takes over the streams of this process, its environment, folder and path.

    Parameters
    ----------
    address
        Path of the server's socket.

    Returns
    -------
    fork
        For `wait_for_fork`; `None` if there is no server, or if it is of
        another Python, user or hash seed.  This process then has its streams
        still.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(address)
        if _is_ours(connection):
            data = json.dumps(_describe_self()).encode()
            socket.send_fds(connection, [_LENGTH.pack(len(data))], list(range(_N_STREAMS)))
            connection.sendall(data)
            if len(answer := connection.recv(_PROCESS.size)) == _PROCESS.size:
                connection.settimeout(None)
                return Fork(connection, os.pidfd_open(_PROCESS.unpack(answer)[0]))
    except (OSError, TypeError, ValueError):
        pass
    connection.close()
    return None


def wait_for_fork(fork: Fork) -> int:
    """Leave the streams to a fork, wait for its end, and return its exit status.

    Parameters
    ----------
    fork
        What `ask_fork_server` has returned.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(_N_STREAMS):
        os.dup2(nothing, stream)
    if status := fork.connection.recv(1):
        return status[0]
    # The server has gone, which is no reason for Java to take its daemon for dead.
    select.select([fork.ended], [], [])
    return 1


def _has_what_it_takes() -> bool:
    """Whether the system has what is needed, which may be newer than its kernel."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return hasattr(socket, "SO_PEERCRED")


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end of a connection is a process of the same user."""
    other = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(other)[1] == os.getuid())


def _describe_self() -> dict[str, Any]:
    """Say what a fork is to take over."""
    return {
        "python": _describe_python(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "arguments": sys.argv,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def _socket_path(folder: Path) -> Path:
    return folder / "socket"


def _describe_python() -> list[str]:
    """Say what must be the same for one to stand for the other."""
    # Spark's own processes have the hash seed 0, which can't be changed later.
    return [sys.version, os.path.realpath(sys.executable), sys.prefix, str(hash("spark-butler"))]


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
        _let_go_of_files({listener.fileno(), lifeline.fileno()})
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
            self._watch(process, connection)
        except (OSError, ValueError):
            connection.close()
        finally:
            for number in streams:
                os.close(number)

    def _watch(self, process: int, connection: socket.socket) -> None:
        """Wait for the end of a fork, and of who has asked for it."""
        try:
            ended = os.pidfd_open(process)
            connection.send(_PROCESS.pack(process))
        except OSError:
            # Two must not have the same streams.
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise
        self._forks[ended] = process, connection
        self._asking[connection.fileno()] = process
        self._poll.register(ended, select.POLLIN)
        # He says no more; it is ready when he has ended.
        self._poll.register(connection, select.POLLIN)

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
            if request["environment"].get("PYTHONUNBUFFERED"):
                for text in (sys.stdout, sys.stderr):
                    cast("io.TextIOWrapper", text).reconfigure(line_buffering=True, write_through=True)
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            with contextlib.suppress(OSError, ValueError):
                # Java raises its own, and has its children inherit it.
                resource.setrlimit(resource.RLIMIT_NOFILE, (request["files"], most))
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
    head, received, _, _ = socket.recv_fds(connection, _LENGTH.size, _N_STREAMS)
    streams += received
    if not _is_ours(connection) or len(head) < _LENGTH.size:
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
    request = json.loads(data)
    is_alike = isinstance(request, dict) and request.get("python") == _describe_python()
    return request if is_alike else None
