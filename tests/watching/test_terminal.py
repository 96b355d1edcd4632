"""Other processes may write to the terminal that has the bars; all is to be seen, and nothing twice."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal_screen import read_screen

from spark_butler.stderr_relay import StderrRelay

_WIDTH = 80

_START = """
import logging, os, signal, subprocess, sys, threading, time
from spark_butler.progress import Progress
from spark_butler.stderr_relay import JVM_STDERR
from spark_butler.watching._terminal import Bars

logging.basicConfig(level=logging.INFO, format="%(message)s")

def child(code):
    return subprocess.Popen([sys.executable, "-c", "import os, sys, time\\n" + code], stderr=JVM_STDERR)

bars = Bars(Progress({"isr": 4, "calibrate": 4}, slots=2).snapshot)
"""


class _Terminal:
    """A script in a terminal of its own."""

    def __init__(self, folder: Path, script: str):
        path = folder / "script.py"
        path.write_text(_START + script)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _WIDTH, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, path], stdin=slave, stderr=slave, stdout=subprocess.PIPE, env=environment
        )
        os.close(slave)
        self.written = ""

    def read(self, until: str | None = None) -> None:
        """Read until some text has come, or until nobody has the terminal any more."""
        data = self.written.encode()
        while until is None or until.encode() not in data:
            try:
                more = os.read(self._master, 65536)
            except OSError:
                # Nobody has it open any more.
                more = b""
            if not more:
                assert until is None, data
                break
            data += more
        self.written = data.decode()

    def finish(self) -> list[str]:
        """Wait for the end and return what is to be seen."""
        self.read()
        output, _ = self.process.communicate(timeout=60)
        os.close(self._master)
        assert output == b""
        return read_screen(self.written, width=_WIDTH)


def _is_bar(line: str) -> bool:
    return line.startswith(("isr ", "calibrate ")) or "slots busy" in line


def _check(screen: list[str], lines: list[str]) -> list[str]:
    """Check for one copy of the bars and of each line, as it was written, and return what is below."""
    where = [n for n, line in enumerate(screen) if _is_bar(line)]
    assert len(where) == 3, "\n".join(screen)
    assert where == list(range(where[0], where[0] + 3))
    above = [line for line in screen[: where[0]] if line]
    assert sorted(above) == sorted(lines), "\n".join(screen)
    return [line for line in screen[where[-1] + 1 :] if line]


def test_lines_of_this_process_and_of_others_are_above_the_bars(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        """
with bars:
    code = "for n in range(8):\\n    os.write(2, b'\\\\x1b[31mworker\\\\x1b[0m\\\\tline %d\\\\n' % n)\\n"
    other = child(code + "    time.sleep(0.1)\\nos.write(2, b'x' * 200 + b'\\\\n')")
    for n in range(8):
        logging.info("driver line %d", n)
        print("printed line", n, file=sys.stderr)
        time.sleep(0.1)
    assert other.wait() == 0
    # Right up to the end, in halves, and without an end.
    assert child("os.write(2, b'h'); time.sleep(0.2); os.write(2, b'alf\\\\nlast')").wait() == 0
    sys.stderr.write("own last")
""",
    )
    screen = terminal.finish()
    words = [f"{word}line {n}" for n in range(8) for word in ("worker\t", "driver ", "printed ")]
    below = _check(screen, [*words, "x" * 80, "x" * 80, "x" * 40, "half"])
    assert sorted(below) == ["last", "own last"]
    assert terminal.process.returncode == 0
    # In one piece, although it is wider than the terminal.
    assert "x" * 200 in terminal.written
    # Colours of others come through as they are.
    assert terminal.written.count("\x1b[31mworker\x1b[0m\tline") == 8


def test_who_keeps_the_pipe_after_the_end_is_not_waited_for_and_still_heard(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        """
with bars:
    code = "parent = os.getppid()\\nos.write(2, b'early\\\\n')\\n"
    child(code + "while os.getppid() == parent: time.sleep(0.1)\\nos.write(2, b'late\\\\n')")
    time.sleep(2)
logging.info("over")
""",
    )
    terminal.read("late")
    assert _check(terminal.finish(), ["early"]) == ["over", "late"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    terminal = _Terminal(
        tmp_path,
        """
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
with bars:
    child("for n in range(3): os.write(2, b'line %d\\\\n' % n); time.sleep(0.1)").wait()
    logging.info("ready")
    time.sleep(60)
""",
    )
    terminal.read("ready")
    # rich is not to be caught in the middle of that line, which it would write once more.
    time.sleep(0.3)
    terminal.process.send_signal(number)
    screen = terminal.finish()
    below = _check(screen, ["line 0", "line 1", "line 2", "ready"])
    assert (below[0], below[-1]) == ("Traceback (most recent call last):", "KeyboardInterrupt")
    assert terminal.process.returncode in (-signal.SIGINT, 130)


def test_crash_is_seen_and_leaves_the_cursor(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        "import faulthandler\nfaulthandler.enable()\nwith bars:\n    time.sleep(0.5)\n    os.abort()\n",
    )
    assert "Fatal Python error: Aborted" in "\n".join(terminal.finish())
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")


def test_flood_blocks_nobody(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        """
code = "for n in range(20_000): os.write(2, b'%d another line of a worker that has much to tell\\\\n' % n)"
with bars:
    others = [child(code), child(code)]
    for n in range(50):
        logging.info("driver line")
    print([other.wait() for other in others], file=sys.stderr)
""",
    )
    start = time.monotonic()
    screen = terminal.finish()
    assert time.monotonic() - start < 60
    assert terminal.process.returncode == 0
    assert "[0, 0]" in screen
    assert sum(line.endswith("much to tell") for line in screen) == 40_000
    assert len([line for line in screen if _is_bar(line)]) == 3


@pytest.fixture
def relay() -> Iterator[tuple[StderrRelay, Callable[[], str]]]:
    """A relay, and what it has shown until now."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def shown() -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(reader, 1 << 20).decode()
        return ""

    relay = StderrRelay(writer)
    yield relay, shown
    relay.hold()
    relay.hand_over()
    os.close(reader)
    os.close(writer)


def _wait_for(shown: Callable[[], str], text: str) -> str:
    seen = ""
    deadline = time.monotonic() + 10
    while text not in seen and time.monotonic() < deadline:
        seen += shown()
        time.sleep(0.02)
    return seen


def test_what_is_held_is_shown_later(relay: tuple[StderrRelay, Callable[[], str]]) -> None:
    held, shown = relay
    held.hold()
    os.write(held.fileno(), b"noise\nand")
    time.sleep(0.3)
    held.flush()
    assert shown() == ""
    held.release()
    assert shown() == "noise\nand"
    # Half a line is shown when nothing follows.
    os.write(held.fileno(), b" more")
    assert _wait_for(shown, "more") == " more"


def test_what_is_dropped_is_for_the_debug_log_only(
    relay: tuple[StderrRelay, Callable[[], str]], caplog: pytest.LogCaptureFixture
) -> None:
    held, shown = relay
    held.hold()
    os.write(held.fileno(), b"noise\n")
    with caplog.at_level(logging.DEBUG, "spark_butler"):
        held.drop()
    assert "noise" in caplog.text
    held.release()
    assert shown() == ""


def test_very_much_is_not_held(relay: tuple[StderrRelay, Callable[[], str]]) -> None:
    held, shown = relay
    held.hold()
    descriptor = held.fileno()

    def write() -> None:
        for _ in range(20):
            os.write(descriptor, b"trouble\n" * 10_000)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    seen = 0
    deadline = time.monotonic() + 20
    while seen < 20 * 80_000 and time.monotonic() < deadline:
        seen += len(_wait_for(shown, "\n"))
    assert seen == 20 * 80_000


def test_display_that_fails_loses_nothing(relay: tuple[StderrRelay, Callable[[], str]]) -> None:
    held, shown = relay

    def fail(text: str) -> None:
        raise OSError(errno.EIO, "no terminal")

    with held.diverted(fail):
        os.write(held.fileno(), b"one\n")
        assert _wait_for(shown, "one") == "one\n"
        os.write(held.fileno(), b"two\n")
        assert _wait_for(shown, "two") == "two\n"


def test_nobody_who_listens_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    relay = StderrRelay(writer)
    for _ in range(4):
        os.write(relay.fileno(), b"x" * 60_000 + b"\n")
        time.sleep(0.1)
    relay.flush()
    relay.hand_over()
    os.close(writer)
