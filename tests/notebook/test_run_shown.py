"""What a notebook shows of a run: tables of progress and of failures."""

from __future__ import annotations

import sys
import time
import types
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import ExceptionInfo, ExecutionStatus, QuantumReport

from spark_butler.model.outcomes import FailureKind, QuantumOutcome
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch
from spark_butler.report.failures import Failures, describe_failure
from spark_butler.report.live_table import LiveDisplay, make_html
from spark_butler.report.progress import Progress, ProgressSnapshot
from spark_butler.report.text import format_progress
from spark_butler.spark.rdd import _worker_traceback
from spark_butler.tasks.isr import IsrTask


def _outcome(label: str = "isr", traceback: str = "", message: str = "bad <pixels>") -> QuantumOutcome:
    quantum_id = uuid.UUID(int=0)
    report = QuantumReport(
        quantumId=quantum_id,
        status=ExecutionStatus.FAILURE,
        dataId={"instrument": "SimCam", "detector": 1},
        taskLabel=label,
        exceptionInfo=ExceptionInfo(className="builtins.ValueError", message=message),
    )
    return QuantumOutcome(
        quantum_id,
        QuantumAttemptStatus.FAILED,
        report,
        kind=FailureKind.TASK,
        traceback=traceback,
        log_tail="last words",
    )


@pytest.fixture
def snapshot() -> ProgressSnapshot:
    """Ten quanta of a task, of which some have ended, and one of another."""
    now = 0.0
    ids = [uuid.UUID(int=number) for number in range(11)]
    progress = Progress(slots=4, clock=lambda: now)
    progress.on_plan(cut_graph(GraphSketch(dict.fromkeys(ids, "isr") | {ids[10]: "<coadd>"}, [])))
    progress.on_dispatch(ids[:6])
    now = 10.0
    progress.on_outcome(_outcome())
    progress.on_blocked(ids[10:])
    return progress.snapshot()


def test_text_has_a_row_for_each_task_and_one_for_all(snapshot: ProgressSnapshot) -> None:
    lines = format_progress("u/me/run", "running", snapshot).splitlines()
    assert lines[0].startswith("Run u/me/run: running. 4 of 4 slots busy, 0.1 quanta/s, 10 s so far")
    assert [line.split() for line in lines[1:]] == [
        ["task", "pending", "running", "done", "failed", "blocked"],
        ["isr", "5", "4", "0", "1", "0"],
        ["<coadd>", "0", "0", "0", "0", "1"],
        ["total", "5", "4", "0", "1", "1"],
    ]


def test_finished_run_shows_its_duration(snapshot: ProgressSnapshot) -> None:
    assert (
        format_progress("u/me/run", "failed", snapshot).splitlines()[0] == "Run u/me/run: failed after 10 s."
    )
    assert "<b>u/me/run</b>: failed after 10 s.</div>" in make_html("u/me/run", "failed", snapshot)


def test_the_address_of_a_report_is_a_link_where_a_browser_can_open_it(snapshot: ProgressSnapshot) -> None:
    def show(address: str) -> str:
        return make_html("u/me/run", "failed", snapshot, report=address).partition("Report: ")[2]

    assert "<a href='file:///a/%20&amp;/report.html'" in show("file:///a/%20&/report.html")
    assert "s3://bucket/repo/report.html<" in show("s3://bucket/repo/report.html")
    assert "<a" not in show("s3://bucket/repo/report.html")
    assert "Report" not in make_html("u/me/run", "failed", snapshot)


def test_html_escapes_names_and_needs_nothing_else(snapshot: ProgressSnapshot) -> None:
    html = make_html("u/<me>", "broken", snapshot, "no <disk>")
    assert "&lt;coadd&gt;" in html
    assert "u/&lt;me&gt;" in html
    assert "no &lt;disk&gt;" in html
    assert "<coadd>" not in html
    assert not {"http", "<script", "<link", "src="} & {
        each for each in ("http", "<script", "<link", "src=") if each in html
    }
    assert html.count("<tr>") == 4
    assert "title='5 pending'" not in html
    assert "title='4 running'" in html


def test_a_failure_names_the_innermost_line_of_its_task() -> None:
    file = sys.modules[IsrTask.__module__].__file__
    traceback = (
        "Traceback (most recent call last):\n"
        '  File "/lib/single_quantum_executor.py", line 3, in execute\n'
        "    task.runQuantum()\n"
        f'  File "{file}", line 17, in run\n'
        "    subtract(bias)\n"
        "    ~~~~~~~~^^^^^^\n"
        '  File "/lib/numpy/core.py", line 5, in subtract\n'
        "    raise ValueError\n"
        "ValueError: bad <pixels>\n"
    )
    failure = describe_failure(_outcome(traceback=traceback), IsrTask, "isr_log", {})
    assert failure.line == "isr.py:17 in run: subtract(bias)"
    assert failure.error == "ValueError: bad <pixels>"
    assert failure.log == "last words"
    table = Failures([failure]).table()
    assert list(table[0]) == [
        "isr",
        "instrument: SimCam, detector: 1",
        "ValueError: bad <pixels>",
        "isr.py:17 in run: subtract(bias)",
        "",
    ]
    html = Failures([failure])._repr_html_()
    assert "bad &lt;pixels&gt;" in html
    assert "<pixels>" not in html


def test_no_failures_are_a_table_without_rows() -> None:
    assert len(Failures([]).table()) == 0
    assert Failures([]).table().colnames == ["label", "data ID", "error", "line", "log"]
    assert repr(Failures([])) == "No failures."


def test_the_traceback_of_a_worker_begins_with_the_users_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    text = (
        "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
        ": org.apache.spark.SparkException: Job aborted: Traceback (most recent call last):\n"
        '  File "/lib/pyspark/worker.py", line 4, in main\n'
        "    process()\n"
        '  File "/lib/spark_butler/worker/butler.py", line 320, in run_batch\n'
        "    result = function(butler, data_id)\n"
        '  File "<ipython-input-3>", line 6, in level\n'
        "    1 / 0\n"
        "ZeroDivisionError: division by zero, very-secret\n"
        "(data ID {detector: 1})\n"
        "\n\tat org.apache.spark.api.python.Runner(PythonRunner.scala:1)\n"
    )
    shown = _worker_traceback(RuntimeError(text))
    assert shown is not None
    assert shown.splitlines()[0] == "ZeroDivisionError: division by zero, *** (data ID {detector: 1})"
    assert '"<ipython-input-3>", line 6, in level' in shown
    assert "worker.py" not in shown
    assert "scala" not in shown
    assert _worker_traceback(RuntimeError("Spark is gone")) is None


class _Handle:
    def __init__(self, shown: list[str]):
        self._shown = shown

    def update(self, html: str) -> None:
        self._shown.append(html)


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an IPython that isn't there was told to show."""
    shown: list[str] = []
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")

    def display(html: str, *, display_id: bool) -> _Handle:
        assert display_id
        shown.append(html)
        return _Handle(shown)

    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.HTML, module.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_display_is_kept_up_to_date_until_the_end(front_end: list[str]) -> None:
    states = ["one"]
    live = LiveDisplay(lambda: states[-1], interval=0.02)
    assert live.show()
    assert front_end == ["one"]
    states.append("two")
    _wait_for(lambda: front_end[-1] == "two")
    states.append("three")
    live.finish()
    _wait_for(lambda: front_end[-1] == "three")
    n_shown = len(front_end)
    states.append("four")
    time.sleep(0.1)
    assert len(front_end) == n_shown <= 4


def test_without_a_notebook_nothing_is_displayed() -> None:
    assert not LiveDisplay(lambda: "", interval=1.0).show()
