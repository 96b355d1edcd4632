"""Requests for resources, kinds of failures, and the small parts that limits are made of."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError
from lsst.daf.butler import FileIntegrityError
from lsst.pipe.base import InvalidQuantumError, RepeatableQuantumError
from lsst.resources import ResourcePath
from lsst.resources.utils import get_tempdir

from spark_butler.errors import OptionsError
from spark_butler.model.failures import FailureKind, classify
from spark_butler.model.limits import MIB, Limits, ResourceRequests, read_requests
from spark_butler.model.options import RunOptions
from spark_butler.text import brief
from spark_butler.worker.memory import machine_memory, resident_memory
from spark_butler.worker.memory_lock import MemoryLock
from spark_butler.worker.temporary_directory import TemporaryFolder


def _client_error(code: str, status: int) -> ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), FailureKind.TASK),
        (RepeatableQuantumError("x"), FailureKind.REPEATABLE),
        (InvalidQuantumError("x"), FailureKind.INVALID),
        (SystemExit(3), FailureKind.EXIT),
        (MemoryError(), FailureKind.MEMORY),
        (_caused(ValueError("x"), MemoryError()), FailureKind.MEMORY),
        (FileNotFoundError("x"), FailureKind.TASK),
        (ConnectionResetError("x"), FailureKind.IO),
        (TimeoutError("x"), FailureKind.IO),
        (OSError(28, "No space left on device"), FailureKind.IO),
        (FileIntegrityError("x"), FailureKind.IO),
        (requests.ConnectionError("x"), FailureKind.IO),
        (EndpointConnectionError(endpoint_url="http://x"), FailureKind.IO),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), FailureKind.IO),
        (_client_error("SlowDown", 503), FailureKind.IO),
        (_client_error("ExpiredToken", 403), FailureKind.IO),
        (_client_error("NoSuchKey", 404), FailureKind.TASK),
        (_caused(RuntimeError("x"), _client_error("InternalError", 500)), FailureKind.IO),
        (_caused(FileNotFoundError("x"), _client_error("SlowDown", 503)), FailureKind.TASK),
    ],
)
def test_kind_of_an_exception(error: BaseException, kind: FailureKind) -> None:
    assert classify(error) is kind
    assert kind.may_pass == (kind in (FailureKind.IO, FailureKind.MEMORY))


def test_task_request_overrides_default_request(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(
        "requestMemory: 2048\nmemoryMultiplier: 3\nmemoryLimit: 9000\nnumberOfRetries: 5\ntimeout: 60\n"
        "pipetask:\n  isr:\n    requestMemory: 500\n    numberOfRetries: 0\n    timeout: 7.5\n"
    )
    limits = read_requests(str(file)).limits(["isr", "calibrate"], {"calibrate": 3000 * MIB, "isr": 1})
    assert limits["isr"] == Limits(7.5, 500 * MIB, 3.0, 9000 * MIB, 0)
    assert limits["calibrate"] == Limits(60.0, 3000 * MIB, 3.0, 9000 * MIB, 5)
    assert limits["calibrate"].grow(3000 * MIB) == 9000 * MIB
    assert limits["calibrate"].grow(9000 * MIB) == 9000 * MIB


def test_options_override_file_defaults_but_not_its_tasks() -> None:
    given = ResourceRequests.model_validate({"timeout": 60, "pipetask": {"isr": {"timeout": 5}}})
    limits = given.with_options(timeout=90.0, number_of_retries=None).limits(["isr", "calibrate"])
    assert (limits["isr"].timeout, limits["calibrate"].timeout) == (5.0, 90.0)
    assert limits["isr"].retries == Limits().retries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requestmemory: 5", "there is no request 'requestmemory'; known are timeout, requestMemory"),
        ("pipetask: {isr: {requestMemory: lots}}", "pipetask.isr.requestMemory is 'lots'"),
        ("requestMemory: -1", "requestMemory is -1: Input should be greater than 0"),
        ("- a", "must contain a YAML mapping"),
        ("a: [", "can't be read"),
    ],
)
def test_invalid_request_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(text)
    with pytest.raises(OptionsError, match="--resources file") as caught:
        read_requests(str(file))
    assert message in str(caught.value)


def test_requests_for_unknown_tasks_are_refused() -> None:
    unknown = ResourceRequests.model_validate({"pipetask": {"irs": {"requestMemory": 5}}})
    with pytest.raises(OptionsError, match="requests for irs; the tasks of the pipeline are isr"):
        unknown.limits(["isr"])
    small = ResourceRequests.model_validate({"requestMemory": 500, "memoryLimit": 400})
    with pytest.raises(OptionsError, match="memoryLimit of 'isr' is 400 MB, less than its requestMemory"):
        small.limits(["isr"])
    with pytest.raises(OptionsError, match="can't be read"):
        read_requests("no/such/file.yaml")


@pytest.mark.parametrize("text", ["0", "-3", "x", "5.5%", "%"])
def test_invalid_failure_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number such as 10 or a percentage such as 5%"):
        RunOptions(max_failures=text)


def test_request_options_are_parsed_as_on_the_command_line() -> None:
    assert RunOptions(group_by="visit").group_by == ("visit",)
    assert RunOptions(group_by="visit, detector").group_by == ("visit", "detector")
    assert RunOptions(group_by="fused").group_by == "fused"
    with pytest.raises(OptionsError, match="group_by is 'visit,': expected auto, fused, or names"):
        RunOptions(group_by="visit,")
    with pytest.raises(OptionsError, match="retries is -1: .*greater than or equal to 0"):
        RunOptions(retries=-1)
    with pytest.raises(OptionsError, match="tempory is no option; known are temporary, "):
        RunOptions(tempory=("a",))  # type: ignore[call-arg]


def test_transient_errors_are_retried_with_growing_delay() -> None:
    limits = Limits(memory=100, memory_cap=400, retries=3)
    assert not limits.may_retry(FailureKind.TASK, 1, None)
    assert limits.may_retry(FailureKind.IO, 3, None)
    assert not limits.may_retry(FailureKind.IO, 4, None)
    assert limits.may_retry(FailureKind.MEMORY, 1, 200)
    assert not limits.may_retry(FailureKind.MEMORY, 1, 400)
    assert limits.may_retry(FailureKind.MEMORY, 1, None)
    pauses = [Limits.pause(FailureKind.IO, n) for n in range(1, 12)]
    assert 1.0 <= pauses[0] <= 3.0
    assert 4.0 <= pauses[2] <= 12.0
    assert max(pauses) <= 90.0
    assert Limits.pause(FailureKind.MEMORY, 5) == 0.0


def test_worker_error_is_extracted_from_spark_error() -> None:
    text = (
        "An exception was thrown from the Python worker:\nTraceback (most recent call last):\n"
        '  File "worker.py", line 1, in main\n    process()\nValueError: first\n\nDuring handling:\n'
        'Traceback (most recent call last):\n  File "b.py", line 2\n'
        "spark_butler.errors.EngineError: the last\n\n\tat org.apache.spark.api.PythonRunner(P.scala:9)\n"
        "org.apache.spark.SparkException: no\n"
    )
    assert brief(RuntimeError(text)) == "spark_butler.errors.EngineError: the last"
    assert brief(RuntimeError("plain")) == "plain"


def test_log_of_killed_process_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import ctypes, logging, os, sys
from spark_butler.worker.log_tail import LogTail
tail = LogTail()
child = os.fork()
if not child:
    tail.attach()
    logging.getLogger("a").warning("before")
    tail.clear()
    for n in range(20000):
        logging.getLogger("a").warning("line %s of secret-key-of-mine", n)
    ctypes.string_at(0)
os.waitpid(child, 0)
sys.stdout.write(tail.read())
"""
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "secret-key-of-mine"}
    text = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "WARNING a: line 19999 of ***" in text
    assert "before" not in text
    assert "Segmentation fault" in text
    assert "string_at" in text
    assert len(text.splitlines()) < 40


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
    """Whether somebody who wants to be alone has closed the entrance."""
    with (folder / "spark-butler-entrance.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


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


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_temporary_files_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("LSST_RESOURCES_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    get_tempdir.cache_clear()
    with TemporaryFolder() as mine:
        child = os.fork()
        if not child:
            TemporaryFolder()
            # Killed like this, it removes nothing.
            os._exit(0)
        os.waitpid(child, 0)
        assert len(list(tmp_path.iterdir())) == 2
        TemporaryFolder.remove_abandoned()
        (left,) = tmp_path.iterdir()
        mine.use()
        tempfile.mkstemp()
        assert len([path for path in left.iterdir() if path.name != ".lock"]) == 1
        with ResourcePath.temporary_uri() as uri:
            assert Path(uri.ospath).parent == left
    get_tempdir.cache_clear()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses locks, as Lustre and NFS do."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_memory_lock_is_a_no_op_without_file_locks(tmp_path: Path) -> None:
    with MemoryLock(tmp_path).acquire(exclusive=True), MemoryLock(tmp_path).acquire(exclusive=False):
        pass


@pytest.mark.usefixtures("no_locks")
def test_temporary_folder_without_file_locks_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSST_RESOURCES_TMPDIR", str(tmp_path))
    get_tempdir.cache_clear()
    with TemporaryFolder():
        monkeypatch.undo()
        monkeypatch.setenv("LSST_RESOURCES_TMPDIR", str(tmp_path))
        TemporaryFolder.remove_abandoned()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    get_tempdir.cache_clear()


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
