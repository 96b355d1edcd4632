"""Spark sessions: settings of workers, and refusals."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from spark_butler.errors import SessionError
from spark_butler.spark import session
from spark_butler.spark.preflight import _worker_reason

_PROGRAM = """
from spark_butler.spark.preflight import check_workers
from spark_butler.spark.session import make_spark_context

context = make_spark_context("local[1]", conf={"spark.ui.enabled": "false"})
print(context.getConf().get("spark.python.unix.domain.socket.enabled", "false"))
check_workers(context)
try:
    check_workers(context, ["os.path", "no_such_module", "no.such"])
except Exception as exc:
    print(exc)
context.stop()
"""


@pytest.mark.slow
@pytest.mark.jvm
def test_workers_start_under_a_long_temporary_directory(tmp_path: Path) -> None:
    folder = tmp_path / "x".ljust(119 - len(str(tmp_path)), "x")
    folder.mkdir()
    submit = f"--conf spark.driver.extraJavaOptions=-Djava.io.tmpdir={folder} pyspark-shell"
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": submit},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    used, missing = process.stdout.splitlines()
    assert used == "false"
    assert "there is no module 'no.such'. Install it" in missing


@pytest.mark.parametrize(
    ("address", "folder", "jvm_folder", "fits"),
    [
        ("local[2]", None, "/tmp", True),
        ("local[2]", None, "/tmp/" + "x" * 115, False),
        ("local[2]", "/run/spark", "/tmp/" + "x" * 115, True),
        # The executors may have another java.io.tmpdir.
        ("yarn", None, "/tmp", False),
        ("spark://host:7077", None, "/tmp", False),
        ("local-cluster[2,1,1024]", None, "/tmp", False),
        ("yarn", "/tmp", "/tmp", True),
        ("yarn", "/data/" + "y" * 60, "/tmp", False),
    ],
)
def test_sockets_are_chosen_where_their_addresses_are_known_to_fit(
    monkeypatch: pytest.MonkeyPatch, address: str, folder: str | None, jvm_folder: str, fits: bool
) -> None:
    monkeypatch.setattr("spark_butler.spark._pyspark.java_property", lambda name: jvm_folder)
    assert session._has_short_socket_folder(address, folder) is fits


def test_user_without_passwd_entry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", absent)
    with pytest.raises(SessionError, match=f"User ID {os.getuid()} has no passwd entry.*: run as a user"):
        session.check_platform()


_ABORTED = (
    "An error occurred while calling o1.collect.\n: org.apache.spark.SparkException: "
    "Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, most recent failure: "
    "Lost task 0.3 in stage 0.0 (TID 3) "
    "(10.0.0.7 executor 1): "
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            f"{_ABORTED}org.apache.spark.SparkException:\nError from python worker:\n"
            '  Traceback (most recent call last):\n    File "daemon.py", line 3, in <module>\n      main()\n'
            "  OSError: AF_UNIX path too long\nPYTHONPATH was:\n  /opt\n\tat org.apache.X.y(Z.scala:3)",
            "OSError: AF_UNIX path too long",
        ),
        (
            f"{_ABORTED}\nError from python worker:\n  python9: No module named spark_butler.spark.daemon\n"
            "PYTHONPATH was:\n  /opt\n\tat org.apache.X.y(Z.scala:3)",
            "python9: No module named spark_butler.spark.daemon",
        ),
        (
            f"{_ABORTED}org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
            "  File worker.py, line 3, in main\n    func()\nModuleNotFoundError: No module named 'lsst'\n\n"
            "\tat org.apache.X.y(Z.scala:3)",
            "ModuleNotFoundError: No module named 'lsst'",
        ),
    ],
)
def test_error_of_a_worker_is_its_last_line_with_host_and_interpreter(
    monkeypatch: pytest.MonkeyPatch, message: str, reason: str
) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/opt/python")
    assert _worker_reason(message).startswith(f"{reason} (host 10.0.0.7, interpreter /opt/python; ")


_SUBMITTED = """
from spark_butler.spark.session import make_spark_context
context = make_spark_context()
print(context.parallelize([1, 2], 1).sum())
context.stop()
"""


@pytest.mark.slow
@pytest.mark.jvm
def test_spark_logs_no_information_under_spark_submit(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SUBMITTED)
    program = Path(sys.executable).with_name("spark-submit")
    process = subprocess.run(
        [program, "--master", "local[1]", "--conf", "spark.ui.enabled=false", script],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "3\n"
    assert " INFO " not in process.stderr
