"""Tables of progress and of failures that a notebook shows of a run."""

from __future__ import annotations

import inspect
import sys
import time
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import ExceptionInfo, ExecutionStatus, QuantumReport

from spark_butler import SparkButler
from spark_butler.cli.run import make_run_command
from spark_butler.errors import UserError
from spark_butler.model.outcomes import FailureKind, QuantumOutcome
from spark_butler.notebook.run_arguments import _ELSEWHERE
from spark_butler.planning.partition import cut_graph
from spark_butler.planning.plan import GraphSketch
from spark_butler.report.failures import Failures, describe_failure
from spark_butler.report.live_table import LiveDisplay, ReportPage, make_html
from spark_butler.report.progress import Progress, ProgressSnapshot
from spark_butler.report.text import format_progress
from spark_butler.spark.rdd import _worker_traceback
from spark_butler.tasks.isr import IsrTask

_ISR = cast("Any", types.SimpleNamespace(task_class=IsrTask, log_output=None))


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


def test_the_address_of_a_report_is_a_link_where_a_notebook_can_open_it(
    snapshot: ProgressSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def show(address: str) -> str:
        return make_html("u/me/run", "failed", snapshot, report=address).partition("Report: ")[2]

    assert "<a href='https://a/%20&amp;/report.html'" in show("https://a/%20&/report.html")
    assert "<a href='u/%23%26.html'" in show(f"file://{tmp_path}/u/%23&.html")
    assert "<a" not in show("file:///elsewhere/report.html")
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
    failure = describe_failure(_outcome(traceback=traceback), _ISR, {})
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
        '  File "/lib/spark_butler/worker/function_butler.py", line 320, in run_batch\n'
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
    def __init__(self, shown: list[dict[str, str]]):
        self._shown = shown

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self._shown.append(bundle)


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Bundles that an IPython that isn't there was given to show."""
    shown: list[dict[str, str]] = []
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> _Handle:
        assert raw
        assert display_id
        shown.append(bundle)
        return _Handle(shown)

    compiler = types.SimpleNamespace(format_code_name={"/tmp/kernel/3.py": ("Cell", "In[3]")}.get)
    shell = types.SimpleNamespace(kernel=object(), compile=compiler)
    package.get_ipython = lambda: shell  # type: ignore[attr-defined]
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_display_is_kept_up_to_date_until_the_end(front_end: list[dict[str, str]]) -> None:
    states = ["one"]
    live = LiveDisplay(lambda: {"text/plain": states[-1]}, interval=0.02)
    assert live.show()
    assert front_end == [{"text/plain": "one"}]
    states.append("two")
    _wait_for(lambda: front_end[-1]["text/plain"] == "two")
    states.append("three")
    live.finish()
    _wait_for(lambda: front_end[-1]["text/plain"] == "three")
    n_shown = len(front_end)
    states.append("four")
    time.sleep(0.1)
    assert len(front_end) == n_shown <= 4


def test_without_a_notebook_nothing_is_displayed() -> None:
    assert not LiveDisplay(dict, interval=1.0).show()


@pytest.mark.usefixtures("front_end")
def test_lines_of_cells_have_the_names_of_ipython() -> None:
    traceback = (
        'Traceback (most recent call last):\n  File "/tmp/kernel/3.py", line 17, in run\n'
        '  File "/lib/other.py", line 5, in subtract\n    raise ValueError\nValueError: bad\n'
    )
    failure = describe_failure(_outcome(traceback=traceback), _ISR, {})
    assert "  Cell In[3], line 17, in run\n" in failure.traceback
    assert '  File "/lib/other.py", line 5, in subtract\n' in failure.traceback
    cell = traceback.replace('  File "/lib/other.py", line 5, in subtract\n    raise ValueError\n', "")
    assert describe_failure(_outcome(traceback=cell), _ISR, {}).line == "Cell In[3], line 17 in run"
    shown = _worker_traceback(RuntimeError(f"Job aborted: {cell}\n\tat org.apache.spark.X(Y.scala:1)\n"))
    assert shown == "ValueError: bad\n\nIn the worker:\n  Cell In[3], line 17, in run\nValueError: bad"


def test_page_of_a_report_is_framed_and_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    html = "<p title='a'>1 < 2</p>"
    shown = ReportPage("u/me/run", html)._repr_html_()
    assert "srcdoc='&lt;p title=&#39;a&#39;&gt;1 &lt; 2&lt;/p&gt;'" in shown
    assert "<a" not in shown
    page = ReportPage("u/me/run", html, "my report.html")
    page.save()
    assert (tmp_path / "my report.html").read_text() == html == str(page)
    assert "<a href='my%20report.html' target='_blank'>my report.html</a>" in page._repr_html_()
    assert repr(page) == "<ReportPage of u/me/run, in my report.html>"
    with pytest.raises(UserError, match="Can't write"):
        ReportPage("u/me/run", html, str(tmp_path)).save()


def test_run_has_a_signature_with_documented_arguments() -> None:
    for method in (SparkButler.run, SparkButler.plan):
        parameters = inspect.signature(method).parameters
        keywords = {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
        assert list(parameters)[:2] == ["self", "pipeline"]
        assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        assert {"output", "where", "temporary", "memory", "config", "extend_run"} <= keywords.keys()
        assert keywords["group_by"].default == "auto"
        assert keywords["register_dataset_types"].default is True
        for name in keywords:
            assert f"\n{name}\n    " in str(method.__doc__)
    # Every option of the command is an argument, or has no meaning in a notebook.
    command = make_run_command("run")
    options = {param.name for param in command.params if not str(param.name).startswith("option_section")}
    assert options - keywords.keys() - _ELSEWHERE.keys() == {"data_query", "pipeline", "options_file"}
    assert keywords.keys() - options == {"where", "memory"}
