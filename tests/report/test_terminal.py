"""All lines of the driver are above the bars in a terminal, and nothing is there twice."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.report.terminal_screen import read_screen

_WIDTH = 80

_START = """
import logging, os, signal, subprocess, sys, threading, time
from spark_butler.report.progress import Progress
from spark_butler.report.terminal import Bars

logging.basicConfig(level=logging.INFO, format="%(message)s")

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
        """Read until some text has come, or until no process has the terminal open any more."""
        data = self.written.encode()
        while until is None or until.encode() not in data:
            try:
                more = os.read(self._master, 65536)
            except OSError:
                # No process has it open any more.
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


def test_lines_of_this_process_are_above_the_bars(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        """
with bars:
    for n in range(8):
        logging.info("driver line %d", n)
        print("\\x1b[31mprinted\\x1b[0m\\tline", n, file=sys.stderr)
        time.sleep(0.1)
    print("x" * 200, file=sys.stderr)
    sys.stderr.write("last")
""",
    )
    screen = terminal.finish()
    words = [f"{word}line {n}" for n in range(8) for word in ("driver ", "printed\t")]
    assert _check(screen, [*words, "x" * 80, "x" * 80, "x" * 40]) == ["last"]
    assert terminal.process.returncode == 0
    # In one piece, although it is wider than the terminal.
    assert "x" * 200 in terminal.written
    # Colors come through as they are.
    assert terminal.written.count("\x1b[31mprinted\x1b[0m\tline") == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    terminal = _Terminal(
        tmp_path,
        """
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
# A shell that runs the tests in the background lets its processes ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
with bars:
    for n in range(3):
        logging.info("line %d", n)
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


def test_crash_is_shown_and_restores_the_cursor(tmp_path: Path) -> None:
    terminal = _Terminal(
        tmp_path,
        "import faulthandler\nfaulthandler.enable()\nwith bars:\n    time.sleep(0.5)\n    os.abort()\n",
    )
    assert "Fatal Python error: Aborted" in "\n".join(terminal.finish())
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")
