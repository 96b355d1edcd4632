"""Spark starts beside other work, with workers that have imported the tasks."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from spark_butler.cli.main import main
from spark_butler.errors import SessionError
from spark_butler.spark import startup as spark_start
from spark_butler.spark.startup import SparkStart

_SCRIPT = """
import sys
from pyspark import SparkContext
from spark_butler.spark.startup import SparkStart

with SparkStart() as start:
    start.launch()
    start.start(["talkative", "broken"])
    context = start.wait()
    # By their names in sys.modules only: to unpickle a function must not import anything.
    found = context.parallelize([0], 1).map(
        lambda _: [name in __import__("sys").modules for name in ("talkative", "broken", "lsst.images")]
    ).collect()
    assert found == [[True, False, False]], found
assert SparkContext._active_spark_context is None

start = SparkStart()
try:
    with start:
        start.start()
        raise ValueError("the graph is empty")
except ValueError:
    pass
start._starter.join()
assert SparkContext._active_spark_context is None

# The arguments of the command are refused.
refused = SparkStart()
refused.launch()
refused.close()
assert SparkContext._active_spark_context is None
print("done")
"""


@pytest.mark.slow
@pytest.mark.jvm
def test_workers_are_forked_with_tasks_imported_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text("import os\nprint('hello')\nos.write(1, b'hello')\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('not here')\n")
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    process = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "done\n"


_SPEAKING = """
import sys
from spark_butler.errors import UserError
from spark_butler.spark.startup import SparkStart

spark = SparkStart()
spark.launch()
try:
    with spark:
        spark.start()
        # Spark has said all that it will.
        spark._starter.join()
        if sys.argv[1] == "refused":
            raise UserError("the graph is empty")
        if sys.argv[1] == "crash":
            raise ValueError("a bug")
        spark.wait()
        print("up", file=sys.stderr, flush=True)
except UserError as exc:
    print("Error:", exc, file=sys.stderr)
"""


def _read_terminal(command: Sequence[str | Path], environment: Mapping[str, str]) -> list[str]:
    """Run a command whose standard error is a terminal; return the lines in it."""
    master, slave = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", **environment}
    with subprocess.Popen(command, env=environment, stderr=slave) as process:
        os.close(slave)
        data = b""
        # When all of the terminal's users have ended, reading is an error.
        with contextlib.suppress(OSError):
            while more := os.read(master, 65536):
                data += more
    os.close(master)
    assert process.returncode in (0, 1)
    return data.decode().splitlines()


@pytest.mark.jvm
@pytest.mark.parametrize(
    ("how", "environment", "said", "last"),
    [
        pytest.param(*("refused", {}, None, "Error: the graph is empty"), marks=pytest.mark.slow),
        pytest.param(
            *("crash", {}, "Setting default log level", "ValueError: a bug"), marks=pytest.mark.slow
        ),
        pytest.param(*("wait", {}, "Setting default log level", "up"), marks=pytest.mark.slow),
        pytest.param(
            *(
                "wait",
                {"PYSPARK_SUBMIT_ARGS": "--nonsense pyspark-shell"},
                "--nonsense",
                "Error: Spark did not",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_output_of_the_jvm_is_shown_in_a_terminal_unless_a_refusal_makes_it_idle(
    tmp_path: Path, how: str, environment: dict[str, str], said: str | None, last: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SPEAKING)
    lines = _read_terminal([sys.executable, script, how], environment)
    if said is None:
        assert lines == [last]
    else:
        assert any(said in line for line in lines)
        assert any(line.startswith(last) for line in lines)


class _Context:
    def __init__(self) -> None:
        self.made = self.stopped = 0
        self.imports: list[Sequence[str]] = []

    def make(self) -> _Context:
        self.made += 1
        return self

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> _Context:
    context = _Context()
    monkeypatch.setattr(spark_start, "spark_is_up", lambda: False)
    monkeypatch.setattr(spark_start, "check_platform", lambda: None)
    monkeypatch.setattr(spark_start, "launch_jvm", lambda: None)
    monkeypatch.setattr(spark_start, "default_master_is_local", lambda: True)
    monkeypatch.setattr(spark_start, "make_spark_context", context.make)
    monkeypatch.setattr(
        spark_start, "set_imports", lambda context, names, stores: context.imports.append(list(names))
    )
    monkeypatch.setattr(spark_start, "check_workers", lambda context, imports, stores: None)
    return context


@pytest.mark.parametrize("launched", [False, True])
def test_existing_session_is_not_stopped(
    launched: bool, context: _Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_up, n_stopped in ((False, 1), (True, 1)):
        monkeypatch.setattr(spark_start, "spark_is_up", lambda is_up=is_up: is_up)
        with SparkStart() as start:
            if launched:
                start.launch()
            start.start(["of.tasks"])
            found: object = start.wait()
            assert found is context
        assert context.stopped == n_stopped
    # Daemons of a session that ran before have started with other modules.
    assert context.imports == [["of.tasks"]]


@pytest.mark.parametrize(("is_local", "n_made"), [(True, 1), (False, 0)])
def test_context_of_a_cluster_is_not_started_before_the_request_is_checked(
    is_local: bool, n_made: int, context: _Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_start, "default_master_is_local", lambda: is_local)
    start = SparkStart()
    start.launch(["run"])
    start.close()
    assert (context.made, context.stopped) == (n_made, n_made)


def test_startup_error_is_raised_when_awaited(context: _Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(context: object, imports: object, stores: object) -> None:
        raise SessionError("Workers can't work.")

    monkeypatch.setattr(spark_start, "check_workers", refuse)
    with SparkStart() as start:
        start.start()
        with pytest.raises(SessionError, match="can't work"):
            start.wait()
    assert context.stopped == 1


_TWO_LAUNCH = """
import os, threading, time
from pyspark import SparkContext, java_gateway
from spark_butler.spark.jvm import launch_jvm

launch = java_gateway.launch_gateway
calls = []

def slow(**kwargs):
    calls.append(kwargs)
    time.sleep(1)
    return launch(**kwargs)

java_gateway.launch_gateway = slow
errors = []

def start():
    try:
        launch_jvm()
    except BaseException as exc:
        errors.append(exc)

threads = [threading.Thread(target=start) for _ in range(3)]
for each in threads:
    each.start()
    time.sleep(0.2)
for each in threads:
    each.join()
assert not errors, errors
assert len(calls) == 1 and SparkContext._gateway is not None
print("done")
"""


@pytest.mark.jvm
def test_concurrent_launches_start_one_jvm() -> None:
    process = subprocess.run([sys.executable, "-c", _TWO_LAUNCH], capture_output=True, text=True, timeout=120)
    assert process.stdout == "done\n", process.stderr


@pytest.mark.parametrize(
    "arguments", ["run -b x", "run --help", "run --backend serial", "plan", "run --dry-run"]
)
def test_jvm_is_launched_only_for_quanta(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(SparkStart, "_launch", lambda _: launched.append("jvm"))
    CliRunner().invoke(main, arguments.split(), catch_exceptions=False)
    for thread in threading.enumerate():
        if thread.name == "jvm-start":
            thread.join()
    assert len(launched) == (arguments == "run -b x")
