"""Spark starts beside other work, with workers that have imported the tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_butler import spark_start
from spark_butler.errors import SessionError
from spark_butler.jvm import may_be_elsewhere
from spark_butler.spark_start import SparkStart

_SCRIPT = """
import sys
from pyspark import SparkContext
from spark_butler.spark_start import SparkStart

with SparkStart(["talkative", "no_such_module", "broken"]) as start:
    context = start.wait()
    # By their names in sys.modules only: to unpickle a function must not import anything.
    found = context.parallelize([0], 1).map(
        lambda _: [name in __import__("sys").modules for name in ("talkative", "broken", "lsst.images")]
    ).collect()
    assert found == [[True, False, False]], found
    # Of two that say something of the same, the user's is the last.
    options = list(context._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments())
    levels = [each for each in options if "TieredStopAtLevel" in each]
    assert levels == ["-XX:TieredStopAtLevel=1", "-XX:TieredStopAtLevel=4"], options
    import os
    assert os.environ["SPARK_SUBMIT_OPTS"] == "-XX:TieredStopAtLevel=4"
assert SparkContext._active_spark_context is None

start = SparkStart()
try:
    with start:
        raise ValueError("the graph is empty")
except ValueError:
    pass
start._thread.join()
assert SparkContext._active_spark_context is None
print("done")
"""


def test_workers_are_forked_with_tasks_imported_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text("import os\nprint('hello')\nos.write(1, b'hello')\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('not here')\n")
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    process = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SPARK_SUBMIT_OPTS": "-XX:TieredStopAtLevel=4"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "done\n"


_SPEAKING = """
import os, sys
from spark_butler.errors import UserError
from spark_butler.spark_start import SparkStart
from spark_butler.stderr_relay import JVM_STDERR

def start():
    with SparkStart() as spark:
        if sys.argv[1] == "refused":
            # Spark has said all that it will.
            spark._thread.join()
            raise UserError("the graph is empty")
        if sys.argv[1] == "crash":
            spark._thread.join()
            raise ValueError("a bug")
        spark.wait()

try:
    start()
except UserError as exc:
    JVM_STDERR.flush()
    print("Error:", exc, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("how", "environment", "said", "last"),
    [
        ("refused", {}, None, "Error: the graph is empty"),
        ("crash", {}, "Setting default log level", "ValueError: a bug"),
        ("wait", {"PYSPARK_SUBMIT_ARGS": "--nonsense pyspark-shell"}, "--nonsense", "Error: Spark did not"),
    ],
)
def test_what_spark_says_is_seen_unless_a_refusal_makes_it_idle(
    tmp_path: Path, how: str, environment: dict[str, str], said: str | None, last: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SPEAKING)
    process = subprocess.run(
        [sys.executable, script, how],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    lines = process.stderr.splitlines()
    assert lines[-1].startswith(last), process.stderr
    if said is None:
        assert len(lines) == 1, process.stderr
    else:
        assert said in "\n".join(lines[:-1])


class _Context:
    stopped = 0

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> _Context:
    context = _Context()
    monkeypatch.setattr(spark_start, "spark_is_up", lambda: False)
    monkeypatch.setattr(spark_start, "make_spark_context", lambda **_: context)
    monkeypatch.setattr(spark_start, "check_workers", lambda context, stores: None)
    return context


def test_spark_that_was_there_before_stays(context: _Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with SparkStart() as start:
        start.wait()
    assert context.stopped == 1
    monkeypatch.setattr(spark_start, "spark_is_up", lambda: True)
    with SparkStart() as start:
        assert start.wait() is context
    assert context.stopped == 1


def test_what_stands_against_it_is_raised_where_it_is_waited_for(
    context: _Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(context: object, stores: object) -> None:
        raise SessionError("Workers can't work.")

    monkeypatch.setattr(spark_start, "check_workers", refuse)
    with pytest.raises(SessionError, match="can't work"), SparkStart() as start:
        start.wait()
    assert context.stopped == 1


@pytest.mark.parametrize(
    ("environment", "defaults", "expected"),
    [
        ({}, "", False),
        ({"MASTER": "spark://there:7077"}, "", True),
        ({"PYSPARK_SUBMIT_ARGS": "--master yarn pyspark-shell"}, "", True),
        ({}, "spark.master spark://there:7077\n", True),
        ({}, "spark.executor.memory 4g\n", False),
    ],
)
def test_a_cluster_is_seen_before_there_is_a_jvm(
    environment: dict[str, str],
    defaults: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MASTER", "PYSPARK_SUBMIT_ARGS", "SPARK_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if defaults:
        (tmp_path / "spark-defaults.conf").write_text(defaults)
    assert may_be_elsewhere(None, {}) is expected
    assert may_be_elsewhere("local[2]", {}) is False
    assert may_be_elsewhere(None, {"spark.master": "yarn"}) is True


_TWO_LAUNCH = """
import os, threading, time
from pyspark import SparkContext, java_gateway
from spark_butler.jvm import launch_jvm

launch = java_gateway.launch_gateway
calls = []

def slow(**kwargs):
    calls.append(kwargs)
    time.sleep(1)
    return launch(**kwargs)

java_gateway.launch_gateway = slow
from spark_butler.stderr_relay import JVM_STDERR
errors = []

def start():
    try:
        launch_jvm(quick=True, stderr=JVM_STDERR)
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
assert "SPARK_SUBMIT_OPTS" not in os.environ
print("done")
"""


def test_two_that_launch_java_launch_one() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_SUBMIT_OPTS"}
    process = subprocess.run(
        [sys.executable, "-c", _TWO_LAUNCH], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.stdout == "done\n", process.stderr
