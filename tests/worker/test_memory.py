"""The lock for quanta that need much memory, and the measuring of memory."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_butler.worker.memory import MemoryLock, machine_memory, resident_memory


def _hold(folder: str, alone: bool, until: str) -> None:
    log = Path(folder, "log")
    with MemoryLock(Path(folder)).acquire(exclusive=alone), log.open("a") as stream:
        stream.write(f"in {alone}\n")
        stream.flush()
        _wait_until(lambda: not until or Path(until).exists())
        stream.write(f"out {alone}\n")


def _start(folder: Path, alone: bool, until: Path | None = None) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=_hold, args=(str(folder), alone, str(until or ""))
    )
    process.start()
    return process


def _is_closed(folder: Path) -> bool:
    """Return whether a process that waits for the exclusive lock has closed the entrance."""
    with (folder / "spark-butler-entrance.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_memory_lock_is_shared_or_exclusive(tmp_path: Path) -> None:
    log, leave = tmp_path / "log", tmp_path / "leave"
    processes = [_start(tmp_path, False, leave), _start(tmp_path, False, leave)]
    _wait_until(lambda: log.exists() and log.read_text().count("in") == 2)
    processes.append(_start(tmp_path, True))
    _wait_until(lambda: _is_closed(tmp_path))
    # This one has to wait, although only shared places are taken.
    processes.append(_start(tmp_path, False))
    time.sleep(0.3)
    assert log.read_text() == "in False\nin False\n"
    leave.touch()
    for process in processes:
        process.join()
    lines = log.read_text().splitlines()
    assert lines[2:] == ["out False"] * 2 + ["in True", "out True", "in False", "out False"]


def test_memory_lock_of_killed_process_is_released(tmp_path: Path) -> None:
    process = _start(tmp_path, True, tmp_path / "never")
    _wait_until((tmp_path / "log").exists)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    entered = threading.Event()

    def enter() -> None:
        with MemoryLock(tmp_path).acquire(exclusive=True):
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    assert entered.wait(10)


@pytest.mark.usefixtures("no_locks")
def test_memory_lock_is_a_no_op_without_file_locks(tmp_path: Path) -> None:
    with MemoryLock(tmp_path).acquire(exclusive=True), MemoryLock(tmp_path).acquire(exclusive=False):
        pass


def test_other_lock_errors_are_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), MemoryLock(tmp_path).acquire(exclusive=True):
        pass


def test_memory_is_measured() -> None:
    before = resident_memory(os.getpid())
    block = bytearray(os.urandom(1)) * (200 * 2**20)
    assert resident_memory(os.getpid()) - before > 150 * 2**20
    assert before < machine_memory()
    del block
    assert resident_memory(2**22 + 1) == 0
