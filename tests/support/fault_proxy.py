"""An HTTP proxy before an S3 server, in a process of its own, that spoils answers by seed and rate.

It passes requests on as they are, the header ``Host`` included, so that their
signatures stay valid: clients sign for the proxy, and the server believes the
header.
"""

from __future__ import annotations

__all__ = ["FAULTS", "FaultPlan", "FaultProxy", "main"]

import asyncio
import contextlib
import dataclasses
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FAULTS = (
    "500",
    "500-after",
    "503",
    "hang",
    "reset",
    "reset-after",
    "reset-middle",
    "short",
    "slow",
    "truncated",
)
"""Faults of a single request.

``500`` and ``503`` are answers instead of the server's, ``reset`` is none.
With ``-after`` the server has done what was asked for.  ``reset-middle`` and
``truncated`` end in the middle of the answer, with and without an error;
``short`` is half of an object with the length of that half, which HTTP can't
tell from a whole one.  ``slow`` trickles, ``hang`` is a silence that ends
with a reset.
"""

_STATES = ("outage", "expired", "overload")
"""Faults of all requests for a while: no connection, 403 ExpiredToken, 503 SlowDown."""

_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "overload": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}

_START_SECONDS = 20.0
_UPSTREAM_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class FaultPlan:
    """Which requests are faulty."""

    seed: int = 0
    """Seed of all that is drawn by lot."""

    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Share of the requests that suffer each of `FAULTS`."""

    only: str = ""
    """Regular expression of the requests that may be faulty: method, space, path."""

    budget: int = 2
    """Most faults of the same request."""

    slow_seconds: float = 2.0
    """Time of a slow answer."""

    hang_seconds: float = 4.0
    """Time of a silence."""

    delays: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds for which requests are kept before they are passed on, by HTTP method."""

    def choose(self, method: str, target: str, number: int) -> str:
        """Draw what happens to a request.

        Parameters
        ----------
        method, target
            The request.
        number
            How many of the same there were before.
        """
        if not re.match(self.only, f"{method} {target}"):
            return ""
        # The same requests are faulty, in whatever order they come.
        lot = random.Random(f"{self.seed} {method} {target} {number}").random()
        for fault, rate in self.rates.items():
            if lot < rate:
                return fault
            lot -= rate
        return ""


class FaultProxy:
    """A running proxy, as a context manager.

    Parameters
    ----------
    upstream
        Address of the server, ``http://127.0.0.1:1234``.
    plan
        Which requests are faulty.
    log
        File that gets a line of JSON for each request.
    """

    endpoint_url: str
    """Where it listens, once it is started."""

    def __init__(self, upstream: str, plan: FaultPlan, log: Path):
        self._arguments = [upstream, json.dumps(dataclasses.asdict(plan)), str(log)]
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__).resolve()), *self._arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.log.touch()
        assert self._process.stdout is not None
        self.endpoint_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def move(self, upstream: str) -> None:
        """Pass requests to another address from now on."""
        self._tell({"upstream": upstream})

    def suffer(self, state: str, seconds: float) -> None:
        """Spoil all requests for a while.

        Parameters
        ----------
        state
            ``outage``, ``expired`` or ``overload``.
        seconds
            For how long.
        """
        assert state in _STATES
        self._tell({"state": state, "seconds": seconds})

    def be_kind(self) -> None:
        """Spoil nothing from now on."""
        self._tell({"rates": {}})

    def _tell(self, word: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word).encode() + b"\n")
        self._process.stdin.flush()

    def requests(self) -> list[dict[str, Any]]:
        """Read what has been asked for so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def count_faults(self) -> Counter[str]:
        """Count the faulty requests, by fault."""
        return Counter(each["fault"] for each in self.requests() if each["fault"])


@dataclasses.dataclass
class _Message:
    """A request or an answer, read as a whole."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str:
        """The value of a header."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def head(self, length: int | None = None) -> bytes:
        """All but the body."""
        headers = [
            (key, value)
            for key, value in self.headers
            if key.lower() not in ("transfer-encoding", "expect")
            and (length is None or key.lower() != "content-length")
        ]
        if length is not None:
            headers.append(("Content-Length", str(length)))
        return "\r\n".join([self.start, *(f"{k}: {v}" for k, v in headers), "", ""]).encode("latin-1")


class _Reset(Exception):
    """The connection is to be reset."""


class _Proxy:
    """The proxy itself.

    Parameters
    ----------
    upstream, plan, log
        See `FaultProxy`.
    """

    def __init__(self, upstream: str, plan: FaultPlan, log: Path):
        self._upstream = upstream
        self._plan = plan
        self._log = log.open("a", buffering=1)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._n_faults: Counter[tuple[str, str]] = Counter()
        self._state, self._until = "", 0.0
        self._began = time.monotonic()

    async def serve(self) -> None:
        """Serve until the other end of the standard input is gone."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=2**20, backlog=512)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            self._obey(json.loads(line))

    def _obey(self, word: Mapping[str, Any]) -> None:
        self._upstream = word.get("upstream", self._upstream)
        if "rates" in word:
            self._plan = dataclasses.replace(self._plan, rates=word["rates"])
            self._state = ""
        if "state" in word:
            self._state, self._until = word["state"], time.monotonic() + word["seconds"]

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (request := await _read_head(reader)) is not None:
                if request.header("expect").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.body = await _read_body(reader, request)
                if upstream is None or upstream[1].is_closing():
                    upstream = None
                fault = self._draw(request)
                began = time.monotonic()
                status = ""
                try:
                    upstream, status = await self._answer(request, fault, writer, upstream)
                finally:
                    self._note(request, fault, status, began)
        except (TimeoutError, _Reset, OSError, asyncio.IncompleteReadError, ValueError):
            _reset(writer)
        finally:
            for each in (writer, *([upstream[1]] if upstream else [])):
                with contextlib.suppress(OSError):
                    each.close()

    def _draw(self, request: _Message) -> str:
        """Draw what happens to a request."""
        if self._state and time.monotonic() < self._until:
            return self._state
        method, target, _ = request.start.split(" ", 2)
        number, self._seen[method, target] = self._seen[method, target], self._seen[method, target] + 1
        fault = self._plan.choose(method, target, number)
        if fault == "short" and method != "GET":
            fault = "truncated"
        if not fault or self._n_faults[method, target] >= self._plan.budget:
            return ""
        self._n_faults[method, target] += 1
        return fault

    def _note(self, request: _Message, fault: str, status: str, began: float) -> None:
        method, target, _ = request.start.split(" ", 2)
        line = {
            "time": round(began - self._began, 3),
            "seconds": round(time.monotonic() - began, 3),
            "method": method,
            "target": target,
            "fault": fault,
            "status": status,
        }
        self._log.write(json.dumps(line) + "\n")

    async def _answer(
        self,
        request: _Message,
        fault: str,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
    ) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, str]:
        """Answer a request; return the connection to the server, to be used again, and its status."""
        if fault in ("reset", "outage"):
            raise _Reset
        if fault in _ERRORS:
            writer.write(_error_answer(fault, request))
            await writer.drain()
            return upstream, ""
        if fault == "hang":
            await asyncio.sleep(self._plan.hang_seconds)
            raise _Reset
        await asyncio.sleep(self._plan.delays.get(request.start.split(" ", 1)[0], 0.0))
        answer, upstream = await self._ask(request, upstream)
        status = answer.start.split(" ", 2)[1]
        bodiless = request.start.startswith("HEAD ") or status in ("204", "304")
        if fault == "500-after":
            writer.write(_error_answer("500", request))
            await writer.drain()
        else:
            await self._send(answer, fault, writer, bodiless)
        if answer.header("connection").lower() == "close":
            upstream[1].close()
        return upstream, status

    async def _send(self, answer: _Message, fault: str, writer: asyncio.StreamWriter, bodiless: bool) -> None:
        """Send the server's answer, or the part that the fault leaves."""
        if fault == "reset-after":
            raise _Reset
        body = b"" if bodiless else answer.body
        head = answer.head(None if bodiless else len(body))
        half = body[: len(body) // 2]
        if fault == "short" and answer.start.split(" ", 2)[1] in ("200", "206"):
            writer.write(answer.head(len(half)) + half)
        elif fault in ("reset-middle", "truncated"):
            # Clients take a head without its end for a whole one.
            writer.write(head + half if body else head[:5])
            await writer.drain()
            if fault == "reset-middle":
                raise _Reset
            writer.close()
            return
        elif fault == "slow":
            data, step = head + body, max(1, (len(head) + len(body)) // 8)
            for start in range(0, len(data), step):
                await asyncio.sleep(self._plan.slow_seconds / 8)
                writer.write(data[start : start + step])
                await writer.drain()
        else:
            writer.write(head + body)
        await writer.drain()

    async def _ask(
        self, request: _Message, upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None
    ) -> tuple[_Message, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Pass a request on and read the answer."""
        async with asyncio.timeout(_UPSTREAM_SECONDS):
            again = upstream is not None
            while True:
                if upstream is None:
                    host, _, port = self._upstream.removeprefix("http://").rpartition(":")
                    upstream = await asyncio.open_connection(host, int(port), limit=2**20)
                reader, writer = upstream
                try:
                    writer.write(request.head(len(request.body)) + request.body)
                    await writer.drain()
                    answer = await _read_head(reader)
                    if answer is None:
                        raise asyncio.IncompleteReadError(b"", None)
                except (OSError, asyncio.IncompleteReadError):
                    writer.close()
                    if not again:
                        raise
                    # The server may have closed a connection that was kept.
                    upstream, again = None, False
                    continue
                status = answer.start.split(" ", 2)[1]
                if not (request.start.startswith("HEAD ") or status in ("204", "304")):
                    answer.body = await _read_body(reader, answer)
                return answer, upstream


async def _read_head(reader: asyncio.StreamReader) -> _Message | None:
    """Read a message up to its body; `None` at the end."""
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if not exc.partial:
            return None
        raise
    start, *lines = data.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    return _Message(start, [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)])


async def _read_body(reader: asyncio.StreamReader, message: _Message) -> bytes:
    """Read the body of a message."""
    if message.header("transfer-encoding").lower() != "chunked":
        return await reader.readexactly(int(message.header("content-length") or 0))
    pieces = []
    while length := int((await reader.readline()).split(b";")[0], 16):
        pieces.append(await reader.readexactly(length))
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return b"".join(pieces)


def _error_answer(kind: str, request: _Message) -> bytes:
    """Make an error as S3 does."""
    status, code, text = _ERRORS[kind]
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{text}</Message><RequestId>chaos</RequestId></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.start.startswith("HEAD ") else body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Have the connection end with an error and not in order."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main(arguments: Sequence[str]) -> None:
    """Serve.

    Parameters
    ----------
    arguments
        Address of the server, plan as JSON, and log file.
    """
    upstream, plan, log = arguments
    asyncio.run(_Proxy(upstream, FaultPlan(**json.loads(plan)), Path(log)).serve())


if __name__ == "__main__":
    main(sys.argv[1:])
