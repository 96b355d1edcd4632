"""Bars, lines and files of a run that is watched; none of them can spoil it."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from lsst.resources import ResourcePath
from rich.console import Console

from spark_butler.errors import EngineError
from spark_butler.report import RunReporter, find_attempts, read_json
from spark_butler.report.progress import ProgressSnapshot, TaskProgress
from spark_butler.report.terminal import Bars
from spark_butler.report.text import progress_line
from tests.report.fake_runs import make_run

_SNAPSHOT = ProgressSnapshot(
    (TaskProgress("isr", 0, 0, 300, 0, 0), TaskProgress("calibrate", 62, 20, 214, 2, 2)),
    rate=3.42,
    seconds_left=412.0,
    elapsed=251.0,
    slots=8,
    busy=7,
    failures=(),
)


def test_log_lines_appear_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    long_line = "Task failed: " + "x" * 200
    try:
        with Bars(lambda: _SNAPSHOT, Console(file=terminal, force_terminal=True, width=80)):
            logging.getLogger("a.task").error(long_line)
        assert handler.stream is terminal
    finally:
        root.removeHandler(handler)
    shown = terminal.getvalue()
    # In one piece, although it is wider than the terminal.
    assert long_line in shown
    last = shown[shown.rindex(long_line) :]
    for wanted in ("isr", "300/300", "218/300", "20 running", "2 failed", "2 blocked", "7 of 8 slots busy"):
        assert wanted in last
    assert "about 6 min 52 s left" in last


def test_progress_line_is_that_of_pipetask_and_the_time_left() -> None:
    line = progress_line(_SNAPSHOT)
    assert line.startswith(
        "Executed 514 quanta successfully, 4 failed and 82 remain out of total 600 quanta; "
        "7 of 8 slots busy, 3.42 quanta/s, 4 min 11 s so far, about 6 min 52 s left (until "
    )


def test_each_attempt_has_a_report_of_its_own(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)
    for state in ("stopped", "succeeded"):
        run = make_run()
        object.__setattr__(run, "started", run.started.replace(year=2026 + (state == "succeeded")))
        with RunReporter(run, root, bars=False) as watch:
            pass
        watch.finish(state)
        assert [place.basename() for place in watch.places] == ["report.html"]
    attempts = find_attempts([root], "u/me/first")
    assert [attempt.stamp[:4] for attempt in attempts] == ["2026", "2027"]
    assert [(read_json(attempt.report_file) or {})["state"] for attempt in attempts] == [
        "stopped",
        "succeeded",
    ]
    status = json.loads(attempts[-1].status_file.read())
    assert (status["state"], status["run"]) == ("succeeded", "u/me/first/20260101T000000Z")
    assert find_attempts([root], "u/me/fir") == []


def test_report_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    root = ResourcePath(tmp_path / "file", forceDirectory=True)
    with RunReporter(make_run(), root, bars=False, seconds_between=0.01) as watch:
        pass
    watch.finish("succeeded")
    assert watch.places == []
    assert "The report could not be written to" in caplog.text
    assert "The status of the run failed" in caplog.text


def test_run_with_engine_error_has_a_report(tmp_path: Path) -> None:
    root = ResourcePath(tmp_path, forceDirectory=True)

    def break_down() -> None:
        with RunReporter(make_run(), root, bars=False) as watch:
            watch.record.totals["isr"] = 3
            raise EngineError("the cluster is gone")

    with pytest.raises(EngineError):
        break_down()
    (attempt,) = find_attempts([root])
    content = read_json(attempt.report_file)
    assert content is not None
    assert (content["state"], content["reason"]) == ("broken", "the cluster is gone")
    assert content["totals"]["not_run"] == 3


def test_failure_to_build_report_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such number")

    monkeypatch.setattr("spark_butler.report.reporter.make_content", fail)
    watch = RunReporter(make_run(), ResourcePath(tmp_path, forceDirectory=True), bars=False)
    watch.finish("succeeded")
    assert "No report could be made of the run: no such number" in caplog.text
